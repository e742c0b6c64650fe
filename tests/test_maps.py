"""The maps of a rendered mesh against analytic surfaces and values set by hand."""

import numpy as np
import pytest
import torch
import trimesh

from bodies import PinholeCamera, TextureLayout
from renderers import (
    MAP_CHANNELS,
    NUM_MAP_CHANNELS,
    UvTexture,
    VertexColors,
    make_rasterizer,
    render_maps,
    unique_vertex_colors,
    vertex_normals,
    vertex_to_pixel,
)

SIZE = 48
RADIUS = 0.5
CENTERS = torch.tensor([[0.1, -0.05, 2.0], [-0.2, 0.3, 3.0]])


def camera_of(batch=1):
    rows = (torch.tensor([row]) for row in ((80.0, 80.0), (24.0, 24.0), (SIZE, SIZE)))
    return PinholeCamera(*(row.float() for row in rows)).expand(batch)


@pytest.fixture(scope="module")
def scene():
    """Two spheres, each before its own camera."""
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32) + CENTERS[:, None]
    faces = torch.tensor(np.asarray(mesh.faces), dtype=torch.int64)
    return vertices, faces, make_rasterizer("cpu")(vertices, faces, camera_of(2), SIZE, SIZE)


def facing_square():
    """Two triangles that fill the image at a depth of two metres, and a UV island for each."""
    vertices = torch.tensor([[[-0.6, -0.6, 2.0], [0.6, -0.6, 2.0], [0.6, 0.6, 2.0], [-0.6, 0.6, 2.0]]])
    # Counter-clockwise as the camera sees them, so their normals point to it.
    faces = torch.tensor([[0, 2, 1], [0, 3, 2]])
    return vertices, faces, make_rasterizer("cpu")(vertices, faces, camera_of(), SIZE, SIZE)


def points_seen(fragments):
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pixels = (torch.stack([columns, rows], dim=-1) + 0.5).view(1, -1, 2).expand(len(fragments.depth), -1, -1)
    points = camera_of(len(fragments.depth)).unproject(pixels, fragments.depth.flatten(1))
    return points.view(*fragments.depth.shape, 3)


def maps_of(scene, texture=None, colors=None):
    vertices, faces, fragments = scene
    texture = texture or VertexColors(torch.full_like(vertices, 0.5))
    colors = torch.rand_like(vertices[0]) if colors is None else colors
    maps = render_maps(fragments, vertices, faces, texture, colors)
    return {name: maps[:, channels].permute(0, 2, 3, 1) for name, channels in MAP_CHANNELS.items()}, maps


def test_layout(scene):
    maps, whole = maps_of(scene)
    assert whole.shape == (2, NUM_MAP_CHANNELS, SIZE, SIZE)
    assert whole.dtype == torch.float32
    assert [maps[name].shape[-1] for name in ("texture", "depth", "normals", "colors")] == [3, 1, 3, 3]
    assert whole.permute(0, 2, 3, 1)[~scene[2].mask].eq(0).all()


def test_depth_is_relative_to_the_mesh(scene):
    vertices, _, fragments = scene
    depth = maps_of(scene)[0]["depth"][..., 0]
    # The mean vertex of a sphere is its centre, and the nearest point of the surface is a radius before it.
    assert depth[0].amin().item() == pytest.approx(-RADIUS, abs=5e-3)
    expected = points_seen(fragments)[..., 2] - CENTERS[:, 2, None, None]
    torch.testing.assert_close(depth[fragments.mask], expected[fragments.mask], rtol=0, atol=1e-5)
    # Moving mesh and images along z changes the absolute depth alone.
    moved = maps_of((vertices + torch.tensor([0, 0, 1.0]), *scene[1:]))[0]["depth"][..., 0]
    torch.testing.assert_close(moved[fragments.mask], depth[fragments.mask] - 1, rtol=0, atol=1e-5)


def test_normals_of_a_sphere(scene):
    *_, fragments = scene
    normals = maps_of(scene)[0]["normals"]
    inside = fragments.mask
    torch.testing.assert_close(normals[inside].norm(dim=-1), torch.ones(int(inside.sum())))
    outwards = (points_seen(fragments) - CENTERS[:, None, None]) / RADIUS
    # Facets of 4 degrees: an interpolated normal is off by a small part of that.
    assert (normals - outwards)[inside].norm(dim=-1).max() < 0.01
    to_camera = -points_seen(fragments)[inside]
    assert ((normals[inside] * to_camera).sum(dim=-1) > -0.02).all()


def test_normal_of_a_surface_that_faces_the_camera():
    normals = maps_of(facing_square())[0]["normals"]
    assert torch.equal(normals, torch.tensor([0.0, 0.0, -1.0]).expand(1, SIZE, SIZE, 3))


def test_colors_tell_where_on_the_body_a_point_is(scene):
    vertices, _, fragments = scene
    template = vertices[0] - CENTERS[0]
    colors = unique_vertex_colors(template)
    torch.testing.assert_close(colors.amin(dim=0), torch.zeros(3))
    torch.testing.assert_close(colors.amax(dim=0), torch.ones(3))
    assert len(colors.unique(dim=0)) == len(colors)
    low, high = template.amin(dim=0), template.amax(dim=0)
    expected = (points_seen(fragments) - CENTERS[:, None, None] - low) / (high - low)
    ours = maps_of(scene, colors=colors)[0]["colors"]
    torch.testing.assert_close(ours[fragments.mask], expected[fragments.mask], rtol=0, atol=1e-5)


def test_vertex_colors_are_interpolated(scene):
    vertices, faces, fragments = scene
    rgb = torch.rand_like(vertices)
    assert torch.equal(maps_of(scene, VertexColors(rgb))[0]["texture"], vertex_to_pixel(fragments, faces, rgb))


def test_texture_is_looked_up_where_the_layout_says():
    # Texels hold their own u and v, so the map must hold the u and v of each pixel: the square shows the texture turned
    # so that u runs along its rows from 0.1 to 0.9, and v from the bottom, 0.2, to the top, 0.8.
    height, width = 40, 50
    u = ((torch.arange(width) + 0.5) / width).expand(height, width)
    v = (1 - (torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    image = torch.stack([u, v, torch.zeros_like(u)])[None]
    coordinates = torch.tensor([[0.1, 0.8], [0.9, 0.8], [0.9, 0.2], [0.1, 0.2]])
    square = facing_square()
    vertices, faces, fragments = square
    rendered = maps_of(square, UvTexture(image, coordinates, faces))[0]["texture"]
    expected = vertex_to_pixel(fragments, faces, coordinates[None])
    torch.testing.assert_close(rendered[..., :2], expected, rtol=0, atol=1e-5)
    # By hand: the centre of the upper left pixel is at (0.5, 0.5) of 48, the square's edges are outside of the image.
    left = -24 / 80 * 2 / 1.2 + 0.5
    corner = torch.tensor(
        [0.1 + 0.8 * (left + 0.5 / 48 * (1 - 2 * left)), 0.8 - 0.6 * (left + 0.5 / 48 * (1 - 2 * left))]
    )
    torch.testing.assert_close(rendered[0, 0, 0, :2], corner, rtol=0, atol=1e-5)
    assert vertices.shape[1] == 4


def test_rows_of_a_texture_run_against_v():
    square = facing_square()
    vertices, faces, _ = square
    image = torch.zeros(1, 3, 8, 8)
    image[:, 0, :2] = 1  # the upper quarter is red
    for v, red in ((0.95, 1.0), (0.05, 0.0)):
        constant = torch.tensor([[0.5, v]]).expand(4, 2)
        rendered = maps_of(square, UvTexture(image, constant, faces))[0]["texture"]
        assert rendered[..., 0].eq(red).all()
    assert len(vertices) == 1


def test_islands_of_a_texture_do_not_bleed():
    # The corners that the triangles share lie on both islands: six texture vertices for four of the mesh.
    layout = TextureLayout(
        coordinates=np.array(
            [[0.05, 0.05], [0.25, 0.05], [0.05, 0.25], [0.75, 0.95], [0.95, 0.95], [0.95, 0.75]], "f4"
        ),
        faces=np.array([[0, 1, 2], [3, 4, 5]], "i8"),
    )
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, 20:] = 1
    image[:, 2, :12] = 1
    square = facing_square()
    rendered = maps_of(square, UvTexture.from_layout(image, layout))[0]["texture"]
    first = square[2].triangle_id == 0
    # Weights of bilinear sampling sum to one up to rounding.
    torch.testing.assert_close(rendered[first], torch.tensor([1.0, 0, 0]).expand(int(first.sum()), 3))
    torch.testing.assert_close(rendered[~first], torch.tensor([0.0, 0, 1]).expand(int((~first).sum()), 3))


def test_precision_is_float32_under_autocast(scene):
    vertices, faces, _ = scene
    colors = unique_vertex_colors(vertices[0])
    uv = UvTexture(torch.rand(2, 3, 16, 16), torch.rand(vertices.shape[1], 2), faces)
    for texture in (VertexColors(torch.rand_like(vertices)), uv):
        torch.manual_seed(0)
        expected = maps_of(scene, texture, colors)[1]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(maps_of(scene, texture, colors)[1], expected)
    assert maps_of(scene, VertexColors(torch.rand_like(vertices).bfloat16()), colors)[1].dtype == torch.float32


def test_batch_mates_do_not_matter(scene):
    vertices, faces, fragments = scene
    colors, rgb = torch.rand_like(vertices[0]), torch.rand_like(vertices)
    whole = maps_of(scene, VertexColors(rgb), colors)[1]
    for part in (slice(0, 1), slice(1, 2)):
        alone = make_rasterizer("cpu")(vertices[part], faces, camera_of(), SIZE, SIZE)
        maps = render_maps(alone, vertices[part], faces, VertexColors(rgb[part]), colors)
        torch.testing.assert_close(maps, whole[part], rtol=0, atol=1e-6)
    assert fragments.mask.any()


def test_gradients_reach_the_appearance(scene):
    vertices, faces, fragments = scene
    rgb = torch.rand_like(vertices).requires_grad_()
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    for texture, leaf in ((VertexColors(rgb), rgb), (UvTexture(image, torch.rand(len(vertices[0]), 2), faces), image)):
        maps_of(scene, texture)[1].sum().backward()
        assert leaf.grad.isfinite().all()
        # A map's pixel is a weighted mean of the appearance, so the gradients of the sum add up to the pixels.
        assert leaf.grad.sum().item() == pytest.approx(3 * fragments.mask.sum().item(), rel=1e-4)


# Vertex normals ----------------------------------------------------------------------------------------------------


def test_normals_are_weighted_by_area():
    # Two triangles at a right angle along an edge, one of twice the other's area.
    vertices = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 1], [7, 7, 7]]])
    faces = torch.tensor([[0, 1, 2], [0, 3, 1]])
    normals = vertex_normals(vertices, faces)[0]
    both = torch.tensor([0.0, 1, 2]) / 5**0.5
    expected = torch.stack([both, both, torch.tensor([0.0, 0, 1]), torch.tensor([0.0, 1, 0]), torch.zeros(3)])
    torch.testing.assert_close(normals, expected)


def test_normals_turn_with_the_mesh_and_do_not_depend_on_its_size(scene):
    vertices, faces, _ = scene
    turn = torch.linalg.qr(torch.randn(3, 3)).Q
    turn *= torch.linalg.det(turn).sign()
    normals = vertex_normals(vertices, faces)
    torch.testing.assert_close(vertex_normals(vertices @ turn.T, faces), normals @ turn.T, rtol=0, atol=1e-4)
    tiny = vertices[:1] - CENTERS[0]
    torch.testing.assert_close(vertex_normals(tiny * 1e-3, faces), vertex_normals(tiny, faces), rtol=0, atol=1e-4)


def test_normals_of_degenerate_triangles_are_zero_with_a_finite_gradient():
    vertices = torch.tensor([[[0.0, 0, 0], [1, 1, 1], [2, 2, 2]]], requires_grad=True)
    normals = vertex_normals(vertices, torch.tensor([[0, 1, 2], [1, 1, 2]]))
    assert normals.eq(0).all()
    normals.sum().backward()
    assert vertices.grad.isfinite().all()
