"""Equations 1, 2, 5 and 6 against loops, linear functions, constants and each other."""

import pytest
import torch
import trimesh

from bodies import PinholeCamera
from renderers import (
    Fragments,
    displacement_supervision,
    make_rasterizer,
    pixel_to_vertex,
    vertex_displacement,
    vertex_targets,
    vertex_to_pixel,
)

SIZE = 48


def camera_of(batch=1, focal=70.0, center=(23.7, 24.4)):
    rows = (torch.tensor([row]) for row in ((focal, focal), center, (SIZE, SIZE)))
    return PinholeCamera(*(row.float() for row in rows)).expand(batch)


def capsule_mesh(count=12):
    mesh = trimesh.creation.capsule(height=0.8, radius=0.3, count=[count, count])
    vertices = torch.tensor(mesh.vertices, dtype=torch.float32)[:, [0, 2, 1]] * torch.tensor([1.0, 1.0, -1.0])
    return vertices[None], torch.tensor(mesh.faces, dtype=torch.int64)


@pytest.fixture(scope="module")
def scene():
    """Three capsules at different places, what their cameras see of them, and the triangles."""
    vertices, faces = capsule_mesh()
    vertices = vertices + torch.tensor([[[0.0, -0.4, 2.0]], [[0.3, -0.2, 2.4]], [[-0.45, -0.1, 1.6]]])
    fragments = make_rasterizer("cpu")(vertices, faces, camera_of(3), SIZE, SIZE)
    assert fragments.mask.flatten(1).any(dim=1).all()
    return vertices, faces, fragments


def in_loops(fragments, faces, vertex_values, pixel_values):
    """Equations 2 and 5, one pixel and one corner at a time."""
    batch, num_vertices, channels = vertex_values.shape
    image = torch.zeros(*fragments.triangle_id.shape, channels, dtype=torch.float64)
    sums = torch.zeros(batch, num_vertices, pixel_values.shape[-1], dtype=torch.float64)
    weight = torch.zeros(batch, num_vertices, dtype=torch.float64)
    for sample, row, column in fragments.mask.nonzero().tolist():
        triangle = faces[fragments.triangle_id[sample, row, column]].tolist()
        for vertex, share in zip(triangle, fragments.barycentric[sample, row, column].double(), strict=True):
            image[sample, row, column] += share * vertex_values[sample, vertex]
            sums[sample, vertex] += share * pixel_values[sample, row, column]
            weight[sample, vertex] += share
    return image, torch.where(weight[..., None] > 0, sums / weight[..., None], 0), weight


def test_equals_loops(scene):
    vertices, faces, fragments = scene
    vertex_values = torch.randn(3, vertices.shape[1], 3, dtype=torch.float64)
    pixel_values = torch.randn(3, SIZE, SIZE, 2, dtype=torch.float64)
    image, mean, weight = in_loops(fragments, faces, vertex_values, pixel_values)
    torch.testing.assert_close(vertex_to_pixel(fragments, faces, vertex_values), image)
    ours = pixel_to_vertex(fragments, faces, pixel_values, vertices.shape[1])
    torch.testing.assert_close(ours[0], mean)
    torch.testing.assert_close(ours[1], weight)


def test_pixels_interpolate_a_linear_function_of_position(scene):
    vertices, faces, fragments = scene
    matrix, shift = torch.randn(3, 4), torch.randn(4)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    pixels = (torch.stack([columns, rows], dim=-1) + 0.5).view(1, -1, 2).expand(3, -1, -1)
    points = camera_of(3).unproject(pixels, fragments.depth.flatten(1)).view(3, SIZE, SIZE, 3)
    expected = (points @ matrix + shift) * fragments.mask[..., None]
    # Positions of metres, rounded to float32 in the depth and in the weights.
    torch.testing.assert_close(
        vertex_to_pixel(fragments, faces, vertices @ matrix + shift), expected, rtol=0, atol=1e-5
    )


def test_a_constant_comes_back_where_it_was_seen(scene):
    vertices, faces, fragments = scene
    constant = torch.tensor([3.25, -7.5])
    displacement = constant.expand(3, vertices.shape[1], 2)
    image = vertex_to_pixel(fragments, faces, displacement)
    back, weight = pixel_to_vertex(fragments, faces, image, vertices.shape[1])
    whole_ring = torch.ones(3, vertices.shape[1], dtype=torch.bool)
    for sample in range(3):
        seen = fragments.triangle_id[sample].unique()
        unseen = torch.ones(len(faces), dtype=torch.bool).index_fill_(0, seen[seen >= 0], False)
        whole_ring[sample, faces[unseen].flatten()] = False
    assert whole_ring.sum() > 20
    assert (weight[whole_ring] > 0).all()
    torch.testing.assert_close(back[whole_ring], constant.expand(int(whole_ring.sum()), 2))
    # It also holds for the others that were seen at all; those that were not get nothing.
    torch.testing.assert_close(back[weight > 0], constant.expand(int((weight > 0).sum()), 2))
    assert back[weight == 0].eq(0).all()


def test_unseen_vertices_get_no_weight(scene):
    vertices, faces, fragments = scene
    _, weight = pixel_to_vertex(fragments, faces, torch.ones(3, SIZE, SIZE, 1), vertices.shape[1])
    for sample in range(3):
        seen = fragments.triangle_id[sample][fragments.mask[sample]].unique()
        touched = torch.zeros(vertices.shape[1], dtype=torch.bool).index_fill_(0, faces[seen].flatten(), True)
        assert torch.equal(weight[sample] > 0, touched)
        assert not touched.all()
    # Each rendered pixel hands out a weight of one.
    torch.testing.assert_close(weight.sum(dim=1), fragments.mask.flatten(1).sum(dim=1).float())


def test_background_is_zero_and_is_not_read(scene):
    vertices, faces, fragments = scene
    values = torch.randn(3, vertices.shape[1], 2)
    image = vertex_to_pixel(fragments, faces, values)
    assert image[~fragments.mask].eq(0).all()
    poisoned = image.masked_fill(~fragments.mask[..., None], float("nan"))
    clean, _ = pixel_to_vertex(fragments, faces, image, vertices.shape[1])
    dirty, _ = pixel_to_vertex(fragments, faces, poisoned, vertices.shape[1])
    assert torch.equal(clean, dirty)
    unseen = pixel_to_vertex(fragments, faces, image, vertices.shape[1])[1] == 0
    poisoned = values.masked_fill(unseen[..., None], float("nan"))
    torch.testing.assert_close(vertex_to_pixel(fragments, faces, poisoned), image)


def test_batch_mates_do_not_matter(scene):
    vertices, faces, fragments = scene
    vertex_values, pixel_values = torch.randn(3, vertices.shape[1], 2), torch.randn(3, SIZE, SIZE, 2)
    image = vertex_to_pixel(fragments, faces, vertex_values)
    mean, weight = pixel_to_vertex(fragments, faces, pixel_values, vertices.shape[1])
    for sample in range(3):
        part = slice(sample, sample + 1)
        alone = Fragments(fragments.triangle_id[part], fragments.barycentric[part], fragments.depth[part])
        assert torch.equal(vertex_to_pixel(alone, faces, vertex_values[part]), image[part])
        alone_mean, alone_weight = pixel_to_vertex(alone, faces, pixel_values[part], vertices.shape[1])
        torch.testing.assert_close(alone_mean, mean[part])
        torch.testing.assert_close(alone_weight, weight[part])


def tiny_scene():
    vertices = torch.tensor([[[-0.5, -0.5, 2.0], [0.5, -0.5, 2.2], [0.5, 0.5, 2.0], [-0.5, 0.5, 1.9], [0.0, 0.0, 5.0]]])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 1, 4]])
    camera = PinholeCamera(torch.full((1, 2), 10.0), torch.full((1, 2), 3.1), torch.full((1, 2), 6.0))
    return vertices, faces, make_rasterizer("cpu")(vertices, faces, camera, 6, 6)


def test_gradients():
    _, faces, fragments = tiny_scene()
    vertex_values = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    pixel_values = torch.randn(1, 6, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: vertex_to_pixel(fragments, faces, values), vertex_values)
    assert torch.autograd.gradcheck(lambda values: pixel_to_vertex(fragments, faces, values, 5)[0], pixel_values)


def test_gradients_are_finite_where_nothing_is_seen():
    _, faces, fragments = tiny_scene()
    values = torch.randn(1, 6, 6, 2, requires_grad=True)
    mean, weight = pixel_to_vertex(fragments, faces, values, 5)
    assert weight[0, 4] == 0
    mean.sum().backward()
    assert values.grad.isfinite().all()
    assert values.grad[~fragments.mask].eq(0).all()


def test_low_precision_values_are_promoted(scene):
    vertices, faces, fragments = scene
    values = torch.randn(3, SIZE, SIZE, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, weight = pixel_to_vertex(fragments, faces, values, vertices.shape[1])
        image = vertex_to_pixel(fragments, faces, mean)
    assert mean.dtype == weight.dtype == image.dtype == torch.float32
    expected, _ = pixel_to_vertex(fragments, faces, values.float(), vertices.shape[1])
    assert torch.equal(mean, expected)


def test_nothing_rendered():
    _, faces, fragments = tiny_scene()
    empty = Fragments(
        torch.full_like(fragments.triangle_id, -1),
        torch.zeros_like(fragments.barycentric),
        torch.zeros_like(fragments.depth),
    )
    assert vertex_to_pixel(empty, faces, torch.ones(1, 5, 2)).eq(0).all()
    mean, weight = pixel_to_vertex(empty, faces, torch.ones(1, 6, 6, 2), 5)
    assert mean.eq(0).all()
    assert weight.eq(0).all()
    none = Fragments(empty.triangle_id[:0], empty.barycentric[:0], empty.depth[:0])
    assert pixel_to_vertex(none, faces, torch.ones(0, 6, 6, 2), 5)[0].shape == (0, 5, 2)


# Supervision and targets -------------------------------------------------------------------------------------------


def test_displacement_of_vertices_by_hand():
    # Seen by a focal length of 100: 0.1 m at 2 m is 5 px. The second vertex moves away instead: 0.4 m at 2 m is 20 px
    # from the principal point, at 4 m 10 px.
    initial = torch.tensor([[[0.0, 0.0, 2.0], [0.4, 0.0, 2.0]]])
    true = torch.tensor([[[0.1, -0.2, 2.0], [0.4, 0.0, 4.0]]])
    camera = camera_of(focal=100.0)
    expected = torch.tensor([[[5.0, -10.0], [-10.0, 0.0]]])
    torch.testing.assert_close(vertex_displacement(initial, camera, true, camera), expected)
    # The cameras may differ: half the focal length for the truth and a shifted principal point.
    other = PinholeCamera(camera.focal_px / 2, camera.center_px + 3, camera.size_px)
    expected = torch.tensor([[[5.5, -2.0], [-12.0, 3.0]]])
    torch.testing.assert_close(vertex_displacement(initial, camera, true, other), expected)


def test_supervision_moves_pixels_of_a_plane_to_where_they_belong():
    # On triangles that face the camera projection is linear, so the displaced pixel is the projection of the point
    # that the pixel sees, moved with the mesh.
    vertices = torch.tensor([[[-0.5, -0.6, 2.0], [0.7, -0.5, 2.0], [0.0, 0.6, 2.0]]])
    faces = torch.tensor([[0, 1, 2]])
    angle = torch.tensor(0.3)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0], [0.0, 0.0, 1.0]])
    true = vertices @ turn.T + torch.tensor([0.1, 0.05, 0.5])
    camera = camera_of()
    fragments = make_rasterizer("cpu")(vertices, faces, camera, SIZE, SIZE)
    supervision = displacement_supervision(fragments, faces, (vertices, camera), (true, camera))
    assert torch.equal(supervision.mask, fragments.mask)
    rows, columns = fragments.mask[0].nonzero(as_tuple=True)
    pixels = torch.stack([columns, rows], dim=-1)[None] + 0.5
    moved = camera.unproject(pixels, fragments.depth[:, rows, columns]) @ turn.T + torch.tensor([0.1, 0.05, 0.5])
    expected = camera.project(moved) - pixels
    torch.testing.assert_close(supervision.displacement_px[0, :, rows, columns].T, expected[0], rtol=0, atol=1e-4)
    assert supervision.displacement_px.permute(0, 2, 3, 1)[~fragments.mask].eq(0).all()


def test_no_error_means_no_displacement(scene):
    vertices, faces, fragments = scene
    camera = camera_of(3)
    supervision = displacement_supervision(fragments, faces, (vertices, camera), (vertices.clone(), camera))
    assert supervision.displacement_px.eq(0).all()
    assert torch.equal(supervision.mask, fragments.mask)


@pytest.mark.parametrize("value", [-2.0, float("nan"), float("inf")])
def test_pixels_without_a_meaningful_target_are_masked(scene, value):
    vertices, faces, fragments = scene
    camera = camera_of(3)
    lost = int(faces[fragments.triangle_id[1][fragments.mask[1]][0], 0])
    true = vertices + 0.01
    true[1, lost, 2 if value < 0 else 0] = value
    supervision = displacement_supervision(fragments, faces, (vertices, camera), (true, camera))
    touched = fragments.mask & (faces[fragments.triangle_id.clamp(min=0)] == lost).any(dim=-1)
    touched[[0, 2]] = False
    assert touched.any()
    assert torch.equal(supervision.mask, fragments.mask & ~touched)
    assert supervision.displacement_px.isfinite().all()
    assert supervision.displacement_px.permute(0, 2, 3, 1)[~supervision.mask].eq(0).all()


def test_targets_of_the_true_displacement_are_the_true_projections(scene):
    # A shift of the principal point displaces all vertices alike, so equation 5 loses nothing: the targets are exact.
    vertices, faces, fragments = scene
    camera = camera_of(3)
    true_camera = PinholeCamera(camera.focal_px, camera.center_px + torch.tensor([4.0, -2.5]), camera.size_px)
    supervision = displacement_supervision(fragments, faces, (vertices, camera), (vertices, true_camera))
    targets, weight = vertex_targets(fragments, faces, supervision.displacement_px, vertices, camera, camera)
    seen = weight > 0
    torch.testing.assert_close(targets[seen], true_camera.project(vertices)[seen], rtol=0, atol=1e-4)
    torch.testing.assert_close(targets[~seen], camera.project(vertices)[~seen])


def test_targets_of_a_crop_are_in_pixels_of_the_image(scene):
    vertices, faces, fragments = scene
    crop_camera = camera_of(3)
    # The image of which the crop is the part at (100, 30), resized by 0.8 and 0.5.
    scale, origin = torch.tensor([[0.8, 0.5]]), torch.tensor([[100.0, 30.0]])
    image_size = torch.tensor([[640.0, 480.0]]).expand(3, 2)
    camera = PinholeCamera(crop_camera.focal_px / scale, crop_camera.center_px / scale + origin, image_size)
    again = camera.crop(origin.expand(3, 2), scale.expand(3, 2), crop_camera.size_px)
    torch.testing.assert_close(again.center_px, crop_camera.center_px)
    displacement = torch.randn(3, 2, SIZE, SIZE)
    in_crop, weight = vertex_targets(fragments, faces, displacement, vertices, crop_camera, crop_camera)
    in_image, same = vertex_targets(fragments, faces, displacement, vertices, crop_camera, camera)
    assert torch.equal(weight, same)
    torch.testing.assert_close(in_image, in_crop / scale[:, None] + origin[:, None], rtol=1e-5, atol=1e-3)
