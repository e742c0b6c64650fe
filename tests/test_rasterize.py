"""Rasterizers against hand-computed values, ray casting written independently, and each other."""

import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh

import renderers
from bodies import InputError, PinholeCamera
from bodies.camera import NEAR_PLANE_M
from renderers import Fragments, Rasterizer, make_rasterizer, rasterize
from renderers.cpu import CpuRasterizer

#: One rounding of a float32 result computed in float64.
FLOAT32 = 1e-6


def camera_of(focal=(60.0, 70.0), center=(20.3, 14.8), size=(40, 30), batch=1):
    return PinholeCamera(*(torch.tensor([pair], dtype=torch.float32) for pair in (focal, center, size))).expand(batch)


def unit_camera(batch=1):
    """Focal length one and principal point zero: a point's x / z and y / z are its pixel."""
    return camera_of((1.0, 1.0), (0.0, 0.0), batch=batch)


def soup(seed, triangles=60, low=(-1.0, -1.0, 0.5), high=(1.0, 1.0, 4.0), spread=0.8):
    """Triangles at random that do not share vertices and pierce each other."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(low, high, (triangles, 1, 3)) + rng.normal(scale=spread, size=(triangles, 3, 3))
    vertices = torch.tensor(corners.reshape(1, -1, 3), dtype=torch.float32)
    return vertices, torch.arange(3 * triangles).view(-1, 3)


def sphere(subdivisions=3, place=(0.05, -0.1, 3.0), radius=0.6):
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
    vertices = torch.tensor(mesh.vertices + np.array(place), dtype=torch.float32)
    return vertices[None], torch.tensor(np.asarray(mesh.faces), dtype=torch.int64)


def cast_rays(vertices, faces, camera, height, width):
    """Moeller and Trumbore's ray-triangle intersection in float64, one triangle after another.

    Returns:
        Triangle, weights and depth of each pixel's nearest hit.
    """
    (fx, fy), (cx, cy) = camera.focal_px[0].double().tolist(), camera.center_px[0].double().tolist()
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    rays = np.stack([(columns - cx) / fx, (rows - cy) / fy, np.ones_like(rows)], axis=-1)
    triangle_id = np.full((height, width), -1)
    weights, depth = np.zeros((height, width, 3)), np.full((height, width), np.inf)
    for index, (v0, v1, v2) in enumerate(vertices.double().numpy()[faces.numpy()]):
        edge1, edge2 = v1 - v0, v2 - v0
        p = np.cross(rays, edge2)
        with np.errstate(all="ignore"):
            u = p @ -v0 / (p @ edge1)
            q = np.cross(-v0, edge1)
            v, t = rays @ q / (p @ edge1), edge2 @ q / (p @ edge1)
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= NEAR_PLANE_M) & (t < depth)
        triangle_id[hit], depth[hit] = index, t[hit]
        weights[hit] = np.stack([1 - u - v, u, v], axis=-1)[hit]
    return triangle_id, weights, np.where(triangle_id >= 0, depth, 0)


def assert_same(first: Fragments, second: Fragments, exact=True):
    assert torch.equal(first.triangle_id, second.triangle_id)
    tolerance = 0 if exact else 1e-5
    torch.testing.assert_close(first.barycentric, second.barycentric, rtol=0, atol=tolerance)
    torch.testing.assert_close(first.depth, second.depth, rtol=tolerance, atol=0)


@pytest.fixture(scope="module")
def draw() -> Rasterizer:
    return make_rasterizer("cpu")


def test_triangle_computed_by_hand(draw):
    # Corners at the pixels (0, 0), (4, 0) and (0, 4), the second one twice as far away. At (0.5, 0.5) the image's
    # barycentric coordinates are 3/4, 1/8, 1/8, so 1 / z = 3/4 + 1/16 + 1/8 = 15/16 and the weights are 12, 1, 2 of 15.
    vertices = torch.tensor([[[0.0, 0, 1], [8, 0, 2], [0, 4, 1]]])
    fragments = draw(vertices, torch.tensor([[0, 1, 2]]), unit_camera(), 4, 5)
    # Pixel centres with x + y = 4 lie on the hypotenuse, which is neither a left nor a top edge.
    covered = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    assert torch.equal(fragments.mask[0], covered)
    assert torch.equal(fragments.triangle_id[0], covered.long() - 1)
    torch.testing.assert_close(fragments.barycentric[0, 0, 0], torch.tensor([12.0, 1, 2]) / 15)
    torch.testing.assert_close(fragments.depth[0, 0, 0], torch.tensor(16 / 15))
    assert fragments.barycentric[~fragments.mask].eq(0).all()
    assert fragments.depth[~fragments.mask].eq(0).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("lowest", "scale"),
    [(0.5, 1.0), (-2.0, 1.0), (-2.0, NEAR_PLANE_M)],
    ids=["in front", "from behind", "across the near plane"],
)
def test_soup_equals_ray_casting(draw, seed, lowest, scale):
    vertices, faces = soup(seed, low=(-1.0, -1.0, lowest))
    vertices *= scale
    camera = camera_of()
    fragments = draw(vertices, faces, camera, 30, 40)
    triangle_id, weights, depth = cast_rays(vertices[0], faces, camera, 30, 40)
    assert fragments.mask.float().mean() > 0.3
    np.testing.assert_array_equal(fragments.triangle_id[0].numpy(), triangle_id)
    np.testing.assert_allclose(fragments.barycentric[0].numpy(), weights, atol=FLOAT32)
    np.testing.assert_allclose(fragments.depth[0].numpy(), depth, rtol=FLOAT32)


@pytest.mark.parametrize("low", [0.5, -2.0])
def test_weights_are_perspective_correct(draw, low):
    vertices, faces = soup(7, low=(-1.0, -1.0, low))
    camera = camera_of()
    fragments = draw(vertices, faces, camera, 30, 40)
    rows, columns = fragments.mask[0].nonzero(as_tuple=True)
    corners = vertices[0, faces[fragments.triangle_id[0, rows, columns]]]
    # The position is a linear attribute, so interpolating it must give the point on the pixel's ray at the depth.
    interpolated = (fragments.barycentric[0, rows, columns][..., None] * corners).sum(dim=1)
    on_ray = camera.unproject(torch.stack([columns, rows], dim=-1)[None] + 0.5, fragments.depth[:, rows, columns])
    torch.testing.assert_close(interpolated, on_ray[0], rtol=0, atol=10 * FLOAT32)


def test_floor_under_the_camera(draw):
    # A plane one metre below, from behind the camera to far ahead: row r meets it at depth fy / (r + 0.5 - cy).
    vertices = torch.tensor([[[-1000.0, 1, -500], [1000, 1, -500], [0, 1, 5000]]])
    fragments = draw(vertices, torch.tensor([[0, 1, 2]]), camera_of(), 30, 40)
    expected = 70 / (torch.arange(30) + 0.5 - 14.8)
    assert torch.equal(fragments.mask[0].any(dim=1), expected > 0)
    torch.testing.assert_close(fragments.depth[0, 15:], expected[15:, None].expand(-1, 40), rtol=FLOAT32, atol=0)


def test_surface_before_the_near_plane_is_not_drawn(draw):
    corners = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [0, 1.5, 1]])
    vertices = torch.cat([corners * NEAR_PLANE_M * 0.9, corners * 2, -corners])[None]
    fragments = draw(vertices, torch.arange(9).view(3, 3), camera_of(), 30, 40)
    assert set(fragments.triangle_id.unique().tolist()) == {-1, 1} or fragments.triangle_id.eq(1).all()
    torch.testing.assert_close(fragments.depth[fragments.mask], torch.full_like(fragments.depth[fragments.mask], 2.0))


@pytest.mark.parametrize("seed", range(3))
def test_shared_edges_are_covered_once(draw, seed):
    # A patch of a curved surface over the pixels 1..9. A third of the vertices project exactly onto pixel centres and
    # many edges run through others, where a hole or a double hit would show.
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1) * 2.0 + 1.5
    grid[1:-1, 1:-1] += rng.choice([0.0, 0.5, -0.5, 0.125], (3, 3, 2))
    depth = rng.choice([1.0, 2.0, 4.0], (5, 5, 1))
    vertices = torch.tensor(np.concatenate([grid * depth, depth], axis=-1), dtype=torch.float32).view(1, 25, 3)
    corner = torch.arange(25).view(5, 5)
    a, b, c, d = (part.flatten() for part in (corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]))
    flip = torch.tensor(rng.random(16) < 0.5)[:, None]
    first = torch.where(flip, torch.stack([a, b, c], 1), torch.stack([a, b, d], 1))
    second = torch.where(flip, torch.stack([c, d, a], 1), torch.stack([d, b, c], 1))
    faces = torch.cat([first, second])
    alone = torch.stack([draw(vertices, face[None], unit_camera(), 12, 12).mask[0] for face in faces])
    expected = torch.zeros(12, 12, dtype=torch.long)
    expected[1:9, 1:9] = 1  # the outline runs through pixel centres: left and top ones belong to it
    assert torch.equal(alone.sum(dim=0), expected)
    whole = draw(vertices, faces, unit_camera(), 12, 12)
    assert torch.equal(whole.mask[0].long(), expected)
    assert torch.equal(whole.triangle_id[0][expected.bool()], alone.long().argmax(dim=0)[expected.bool()])


def test_closed_surface_has_no_pinholes(draw):
    # Triangles of about a pixel; a hole in the front would show the back, whose depth is beyond the centre.
    vertices, faces = sphere(subdivisions=5)
    camera = camera_of((300.0, 300.0), (60.0, 50.0))
    fragments = draw(vertices, faces, camera, 110, 128)
    assert fragments.depth[fragments.mask].max() < 3.0
    rows, columns = torch.meshgrid(torch.arange(110.0), torch.arange(128.0), indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).view(1, -1, 2) + 0.5
    rays = camera.unproject(pixels, torch.ones(1, 110 * 128))[0]
    center = torch.tensor([0.05, -0.1, 3.0])
    # Distance from the centre to each ray; the facets stay within a thousandth of the sphere.
    distance = torch.linalg.cross(rays, center.expand_as(rays)).norm(dim=-1) / rays.norm(dim=-1)
    mask = fragments.mask.flatten()
    assert mask[distance < 0.6 * 0.999].all()
    assert not mask[distance > 0.6].any()


def test_equal_depth_goes_to_the_lowest_triangle(draw):
    vertices, faces = soup(3, triangles=5)
    thrice = faces.repeat(3, 1)
    fragments = draw(vertices, thrice, camera_of(), 30, 40)
    assert fragments.mask.any()
    assert_same(fragments, draw(vertices, faces, camera_of(), 30, 40))


def test_order_of_triangles_changes_only_their_numbers(draw):
    vertices, faces = soup(11)
    order = torch.randperm(len(faces))
    fragments = draw(vertices, faces, camera_of(), 30, 40)
    shuffled = draw(vertices, faces[order], camera_of(), 30, 40)
    renamed = torch.where(shuffled.mask, order[shuffled.triangle_id.clamp(min=0)], -1)
    assert_same(fragments, Fragments(renamed, shuffled.barycentric, shuffled.depth))


def test_both_orientations_are_drawn(draw):
    vertices, faces = soup(5)
    fragments = draw(vertices, faces, camera_of(), 30, 40)
    turned = draw(vertices, faces.flip(1), camera_of(), 30, 40)
    turned = Fragments(turned.triangle_id, turned.barycentric.flip(-1), turned.depth)
    assert_same(fragments, turned, exact=False)


@pytest.mark.parametrize("scale", [1, 3])
def test_crop_equals_the_crop_of_the_image(draw, scale):
    vertices, faces = sphere()
    camera = camera_of()
    big = draw(vertices, faces, camera, 30, 40)
    crop = camera.crop(torch.tensor([[7.0, 5.0]]), torch.full((1, 2), float(scale)), torch.full((1, 2), 20.0 * scale))
    cropped = draw(vertices, faces, crop, 20 * scale, 20 * scale)
    # At an odd scale the middle of each block of pixels is the centre of a pixel of the whole image.
    middle = slice(scale // 2, None, scale)
    part = Fragments(*(getattr(cropped, name)[:, middle, middle] for name in ("triangle_id", "barycentric", "depth")))
    whole = Fragments(*(getattr(big, name)[:, 5:25, 7:27] for name in ("triangle_id", "barycentric", "depth")))
    assert part.mask.any()
    # The crop's principal point is rounded to float32, which moves the rays by 1e-6 pixels.
    assert_same(part, whole, exact=False)


def test_batch_mates_do_not_matter(draw):
    _, faces = soup(0)
    vertices = torch.cat([soup(seed)[0] for seed in range(3)])
    camera = PinholeCamera(
        torch.tensor([[60.0, 60], [50, 55], [90, 80]]),
        torch.tensor([[20.0, 15], [18, 16], [25, 11]]),
        torch.tensor([[40.0, 30]]).expand(3, 2),
    )
    together = draw(vertices, faces, camera, 30, 40)
    for index in range(3):
        alone = draw(vertices[index : index + 1], faces, camera[index : index + 1], 30, 40)
        mine = Fragments(
            together.triangle_id[index : index + 1],
            together.barycentric[index : index + 1],
            together.depth[index : index + 1],
        )
        assert alone.mask.any()
        assert_same(alone, mine)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_threads_do_not_matter(threads, batch):
    _, faces = soup(0)
    vertices = torch.cat([soup(seed, low=(-1.0, -1.0, -1.0))[0] for seed in range(batch)])
    one = CpuRasterizer(threads=1)(vertices, faces, camera_of(batch=batch), 70, 40)
    assert_same(one, CpuRasterizer(threads=threads)(vertices, faces, camera_of(batch=batch), 70, 40))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("axis", range(3))
def test_triangles_with_a_non_finite_corner_are_left_out(draw, value, axis):
    vertices, faces = sphere(subdivisions=1)
    broken = vertices.clone()
    broken[0, 7, axis] = value
    kept = (faces != 7).all(dim=1).nonzero().squeeze(1)
    fragments = draw(broken, faces, camera_of(), 30, 40)
    expected = draw(vertices, faces[kept], camera_of(), 30, 40)
    renamed = torch.where(expected.mask, kept[expected.triangle_id.clamp(min=0)], -1)
    assert_same(fragments, Fragments(renamed, expected.barycentric, expected.depth))


@pytest.mark.parametrize(
    "corners",
    [
        [[0.0, 0, 2], [0, 0, 2], [1, 1, 2]],
        [[0.0, 0, 2], [0.5, 0.5, 2], [1, 1, 2]],
        [[0.0, 0, 1], [0, 0, 2], [0, 0, 3]],  # along the optical axis
        [[-1.0, 0, 1], [1, 0, 1], [0, 0, 3]],  # its plane holds the camera
        [[0.1, 0.1, -1], [0.2, 0.1, -2], [0.1, 0.2, -3]],  # behind
        [[1e30, 0, 1], [-1e30, 1e30, 1], [0, -1e30, -1e30]],
        [[1e38, 1e38, 1e38]] * 3,
    ],
)
def test_degenerate_triangles_hide_nothing(draw, corners):
    behind = torch.tensor([[-9.0, -9, 3], [9, -9, 3], [0, 9, 3]])
    vertices = torch.cat([torch.tensor(corners), behind])[None]
    fragments = draw(vertices, torch.arange(6).view(2, 3), camera_of(center=(20.5, 14.5)), 30, 40)
    finite = fragments.depth.isfinite().all() and fragments.barycentric.isfinite().all()
    assert finite
    shown = fragments.triangle_id == 1
    if max(abs(x) for corner in corners for x in corner) < 1e29:
        assert shown.all()
        torch.testing.assert_close(fragments.depth, torch.full((1, 30, 40), 3.0), rtol=FLOAT32, atol=0)


@pytest.mark.parametrize("camera", [camera_of((0.0, 0.0)), camera_of((float("nan"),) * 2), camera_of((1e30, 1e30))])
def test_useless_cameras_see_nothing_worse_than_background(draw, camera):
    fragments = draw(*sphere(subdivisions=1, place=(1.0, 1.0, 3.0)), camera, 30, 40)
    assert fragments.barycentric.isfinite().all()


def test_nothing_to_draw(draw):
    vertices, faces = sphere(subdivisions=0)
    nothing = draw(vertices, faces[:0], camera_of(), 6, 7)
    assert nothing.triangle_id.shape == (1, 6, 7)
    assert not nothing.mask.any()
    assert draw(vertices[:0], faces, camera_of()[:0], 6, 7).barycentric.shape == (0, 6, 7, 3)
    assert not draw(vertices[:, :0], faces[:0], camera_of(), 6, 7).mask.any()


def test_input_is_taken_in_any_precision_and_left_alone(draw):
    vertices, faces = sphere(subdivisions=1)
    before = vertices.clone()
    double = draw(vertices.double().requires_grad_(), faces, camera_of().to(torch.float64), 30, 40)
    assert double.depth.dtype == torch.float32
    assert not double.depth.requires_grad
    assert_same(double, draw(vertices, faces, camera_of(), 30, 40), exact=False)
    assert torch.equal(vertices, before)


def test_what_does_not_fit_together_is_refused(draw):
    vertices, faces = sphere(subdivisions=0)
    with pytest.raises(ValueError, match=r"outside 0\.\.11"):
        draw(vertices, faces + 1, camera_of(), 6, 7)
    with pytest.raises(ValueError, match=r"outside 0\.\.11"):
        draw(vertices, faces - 1, camera_of(), 6, 7)
    with pytest.raises(ValueError, match="1 meshes need as many cameras, got 2"):
        draw(vertices, faces, camera_of(batch=2), 6, 7)
    with pytest.raises(ValueError, match="at least one pixel"):
        draw(vertices, faces, camera_of(), 0, 7)


def test_auto_uses_the_cpu_for_cpu_tensors(draw):
    mesh = sphere(subdivisions=1)
    auto = make_rasterizer()
    assert_same(auto(*mesh, camera_of(), 30, 40), draw(*mesh, camera_of(), 30, 40))
    assert isinstance(auto, Rasterizer)


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_rasterizers_pickle(name):
    mesh = sphere(subdivisions=1)
    made = make_rasterizer(name)
    before = made(*mesh, camera_of(), 30, 40)
    assert_same(pickle.loads(pickle.dumps(made))(*mesh, camera_of(), 30, 40), before)


def _draw_in_child(queue, mesh):
    queue.put(CpuRasterizer(threads=2)(*mesh, camera_of(), 70, 40).depth.numpy())


# Python 3.12 warns of any fork in a process with threads; that such a fork works is what is tested.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_a_forked_process_draws_with_threads_of_its_own():
    mesh = sphere()
    before = CpuRasterizer(threads=2)(*mesh, camera_of(), 70, 40)  # starts the threads that a fork loses
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_draw_in_child, args=(queue, mesh), daemon=True)
    child.start()
    child.join(30)
    assert child.exitcode == 0
    np.testing.assert_array_equal(queue.get(), before.depth.numpy())


def test_an_installation_nobody_may_write_to(tmp_path):
    # A fresh interpreter, as in a spawned worker, with no place to keep compiled code: file permissions would not stop
    # the root user, so files stand where numba would make its folders.
    root = Path(renderers.__file__).parent.parent
    for package in ("bodies", "renderers"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "data"))
        (tmp_path / package / "__pycache__").write_text("a file")
    no_folder = str(tmp_path / "bodies" / "__pycache__" / "cache")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    # Numba looks for a place when a function is declared; the smallest one is then compiled and run.
    script = "import numpy, renderers.cpu as cpu; print(cpu.__file__, cpu._edge(numpy.eye(3, dtype='float32'), 0, 1))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=clean | {"PYTHONPATH": str(tmp_path), "HOME": no_folder, "XDG_CACHE_HOME": no_folder},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{tmp_path / 'renderers' / 'cpu.py'} (0.0, 0.0, 1.0)"


def test_missing_nvdiffrast_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(rasterize, "nvdiffrast_installed", lambda: False)
    with pytest.raises(InputError, match=r"pip install .*'snugfit\[gpu\]'"):
        make_rasterizer("nvdiffrast")


def test_missing_device_is_named(monkeypatch):
    monkeypatch.setattr(rasterize, "nvdiffrast_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="CUDA device"):
        make_rasterizer("nvdiffrast")


# The nvdiffrast rasterizer, on a stand-in for nvdiffrast -----------------------------------------------------------


def _fill(position, triangles, first, height, width):
    """What nvdiffrast documents for one image: (u, v, z / w, triangle + 1), triangle counted from `first`."""
    x = 2 * (np.arange(width) + 0.5) / width - 1
    y = 2 * (np.arange(height) + 0.5) / height - 1
    image, nearest = np.zeros((height, width, 4)), np.full((height, width), np.inf)
    for index, triangle in enumerate(triangles):
        if (triangle < 0).any():
            continue
        clip = position[triangle]
        px, py = clip[:, 0] - x[:, None] * clip[:, 3], clip[:, 1] - y[:, None] * clip[:, 3]
        after, last = [1, 2, 0], [2, 0, 1]
        areas = px[None, :, after] * py[:, None, last] - py[:, None, after] * px[None, :, last]
        total = areas.sum(axis=-1)
        with np.errstate(all="ignore"):
            weights = areas / total[..., None]
            z, w = weights @ clip[:, 2], weights @ clip[:, 3]
            hit = (weights >= 0).all(axis=-1) & (w > 0) & (np.abs(z) <= w) & (z / w < nearest)
        nearest[hit] = (z / w)[hit]
        values = [weights[..., 0], weights[..., 1], z / w, np.full_like(z, first + index + 1)]
        image[hit] = np.stack(values, axis=-1)[hit]
    return image


def _fake_rasterize(context, pos, tri, resolution, ranges=None, grad_db=True):
    assert pos.dtype == torch.float32
    assert tri.dtype == torch.int32
    assert pos.is_contiguous()
    assert tri.is_contiguous()
    assert all(side % 8 == 0 for side in resolution)
    assert pos.isfinite().all()
    context.calls.append("instances" if ranges is None else "ranges")
    tri_array, clip = tri.numpy(), pos.double().numpy()
    if ranges is None:
        images = [_fill(sample, tri_array, 0, *resolution) for sample in clip]
    else:
        assert ranges.dtype == torch.int32
        assert clip.ndim == 2
        images = [_fill(clip, tri_array[start : start + count], start, *resolution) for start, count in ranges.tolist()]
    return torch.tensor(np.stack(images), dtype=torch.float32), None


@pytest.fixture
def fake_nvdiffrast(monkeypatch):
    """An nvdiffrast rasterizer for CPU tensors whose kernel is `_fill`; the list tells how the kernel was called."""
    calls: list[str] = []
    package, module = ModuleType("nvdiffrast"), ModuleType("nvdiffrast.torch")
    module.RasterizeCudaContext = lambda device: SimpleNamespace(calls=calls, device=device, lock=lambda: None)
    module.rasterize = _fake_rasterize
    package.torch = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    from renderers import cuda

    monkeypatch.setattr(cuda, "require_nvdiffrast", lambda: None)
    monkeypatch.setattr(cuda, "_check_device", lambda device: None)
    return cuda.NvdiffrastRasterizer(), calls


def assert_agree(gpu: Fragments, cpu: Fragments, edge_pixels: float, tolerance=1e-4):
    """Triangle, weights and depth agree but for a part of the pixels, those where triangles or the outline meet."""
    agree = gpu.triangle_id == cpu.triangle_id
    agree &= ((gpu.barycentric - cpu.barycentric).abs() < tolerance).all(dim=-1)
    agree &= (gpu.depth - cpu.depth).abs() < tolerance
    assert (~agree).float().mean() < edge_pixels
    # Where both see the mesh but not the same triangle it is a neighbour: the surface is at about the same place.
    elsewhere = gpu.mask & cpu.mask & ((gpu.depth - cpu.depth).abs() > 0.02)
    assert elsewhere.float().mean() < 1e-3
    assert torch.equal(gpu.mask, gpu.depth > 0)
    torch.testing.assert_close(gpu.barycentric.sum(dim=-1), gpu.mask.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 40), (32, 24), (7, 9)])
def test_clip_space_has_our_pixels(fake_nvdiffrast, draw, size):
    gpu, calls = fake_nvdiffrast
    vertices, faces = sphere(subdivisions=2)
    vertices = torch.cat([vertices, vertices + torch.tensor([0.3, 0.2, 1.0])])
    camera = PinholeCamera(
        torch.tensor([[60.0, 70.0], [90.0, 80.0]]),
        torch.tensor([[size[1] / 2 + 0.3, size[0] / 2 - 0.2], [size[1] / 2, size[0] / 2 + 1]]),
        torch.tensor([[40.0, 30.0]]).expand(2, 2),
    )
    cpu = draw(vertices, faces, camera, *size)
    assert cpu.mask.any()
    # The stand-in decides coverage without rounding to 1/16 pixel, so only float32's rounding of clip space is left.
    assert_agree(gpu(vertices, faces, camera, *size), cpu, edge_pixels=1e-3, tolerance=1e-5)
    assert calls == ["instances"]


def test_clip_space_of_a_distant_crop(fake_nvdiffrast, draw):
    gpu, _ = fake_nvdiffrast
    vertices, faces = sphere(subdivisions=2, place=(1.5, -1.2, 3.0), radius=0.2)
    camera = camera_of((2000.0, 2000.0), (960.0, 540.0))
    place = camera.project(vertices.mean(dim=1, keepdim=True))[:, 0]
    crop = camera.crop(place - 160, torch.full((1, 2), 0.1), torch.full((1, 2), 32.0))
    cpu = draw(vertices, faces, crop, 32, 32)
    assert cpu.mask.any()
    assert_agree(gpu(vertices, faces, crop, 32, 32), cpu, edge_pixels=2e-3)


def test_clip_space_across_the_near_plane(fake_nvdiffrast, draw):
    gpu, _ = fake_nvdiffrast
    vertices, faces = soup(2, triangles=8, low=(-1.0, -1.0, -2.0))
    assert_agree(
        gpu(vertices, faces, camera_of(), 30, 40), draw(vertices, faces, camera_of(), 30, 40), edge_pixels=2e-3
    )


def test_nvdiffrast_leaves_out_what_is_not_finite(fake_nvdiffrast, draw):
    gpu, calls = fake_nvdiffrast
    vertices, faces = sphere(subdivisions=1)
    vertices = vertices.repeat(3, 1, 1)
    vertices[1, 7] = float("nan")
    vertices[2, 0, 2] = float("inf")
    result = gpu(vertices, faces, camera_of(batch=3), 30, 40)
    assert_agree(result, draw(vertices, faces, camera_of(batch=3), 30, 40), edge_pixels=1e-3)
    assert calls == ["ranges"]


def test_nvdiffrast_draws_nothing_without_asking_for_it(fake_nvdiffrast):
    gpu, calls = fake_nvdiffrast
    vertices, faces = sphere(subdivisions=0)
    assert not gpu(vertices, faces[:0], camera_of(), 6, 7).mask.any()
    assert gpu(vertices[:0], faces, camera_of()[:0], 6, 7).depth.shape == (0, 6, 7)
    assert calls == []


def test_nvdiffrast_context_stays_behind(fake_nvdiffrast):
    gpu, _ = fake_nvdiffrast
    gpu(*sphere(subdivisions=0), camera_of(), 6, 7)
    assert gpu._contexts
    assert pickle.loads(pickle.dumps(gpu))._contexts == {}
    assert copy.deepcopy(gpu)._contexts == {}


def test_large_triangle_numbers_are_decoded():
    from renderers.cuda import ID_BITS_OFFSET, _decode_ids

    numbers = torch.tensor([0, 1, (1 << 24) - 1, 1 << 24, (1 << 24) + 1, 50_000_001])
    stored = torch.where(
        numbers <= 1 << 24, numbers.float(), (numbers + ID_BITS_OFFSET).to(torch.int32).view(torch.float32)
    )
    assert torch.equal(_decode_ids(stored.view(1, 1, -1)).flatten(), numbers - 1)


def test_nvdiffrast_refuses_cpu_tensors(monkeypatch):
    from renderers import cuda

    monkeypatch.setattr(cuda, "require_nvdiffrast", lambda: None)
    with pytest.raises(ValueError, match="CUDA tensors, got cpu"):
        cuda.NvdiffrastRasterizer()(*sphere(subdivisions=0), camera_of(), 6, 7)


# The nvdiffrast rasterizer itself ----------------------------------------------------------------------------------


def to_host(fragments: Fragments) -> Fragments:
    assert fragments.triangle_id.is_cuda
    return Fragments(fragments.triangle_id.cpu(), fragments.barycentric.cpu(), fragments.depth.cpu())


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(256, 256), (250, 301), (2100, 2300)])
def test_gpu_agrees_on_a_sphere(draw, size):
    vertices, faces = sphere(subdivisions=2)
    vertices = torch.cat([vertices, vertices * torch.tensor([1.0, -1.0, 1.0]) + torch.tensor([0.1, 0.0, 0.5])])
    focal, height, width = 0.9 * max(size), *size
    camera = PinholeCamera(
        torch.full((2, 2), focal),
        torch.tensor([[width / 2, height / 2]] * 2),
        torch.tensor([[width, height]] * 2).float(),
    )
    gpu = make_rasterizer("nvdiffrast")
    result = to_host(gpu(vertices.cuda(), faces.cuda(), camera.to("cuda"), height, width))
    assert_agree(result, draw(vertices, faces, camera, height, width), edge_pixels=5e-3)


@pytest.mark.gpu
def test_gpu_agrees_on_triangles_of_a_pixel(draw):
    # Corners rounded to 1/16 pixel matter most here; the outline and the surface must agree all the same.
    mesh = trimesh.creation.capsule(height=1.0, radius=0.3, count=[100, 100])
    vertices = torch.tensor(mesh.vertices + np.array([0.0, 0.0, 3.0]), dtype=torch.float32)[None]
    faces = torch.tensor(np.asarray(mesh.faces), dtype=torch.int64)
    camera = camera_of((300.0, 300.0), (128.0, 128.0), (256, 256))
    result = to_host(make_rasterizer("nvdiffrast")(vertices.cuda(), faces.cuda(), camera.to("cuda"), 256, 256))
    cpu = draw(vertices, faces, camera, 256, 256)
    assert (result.mask != cpu.mask).float().mean() < 5e-3
    both = result.mask & cpu.mask
    # The barycentric weights at an edge are clamped to the triangle: up to 1/16 pixel, 0.6 mm here, times the slope.
    assert ((result.depth - cpu.depth)[both].abs() > 2e-3).float().mean() < 5e-3


@pytest.mark.gpu
def test_gpu_agrees_across_the_near_plane(draw):
    vertices, faces = soup(2, triangles=12, low=(-1.0, -1.0, -2.0))
    camera = camera_of((380.0, 380.0), (128.0, 128.0), (256, 256))
    result = to_host(make_rasterizer("nvdiffrast")(vertices.cuda(), faces.cuda(), camera.to("cuda"), 256, 256))
    cpu = draw(vertices, faces, camera, 256, 256)
    # Where triangles pierce each other depth decides, and its buffer resolves millimetres with so near a plane.
    assert (result.triangle_id != cpu.triangle_id).float().mean() < 1e-2


@pytest.mark.gpu
def test_gpu_leaves_out_what_is_not_finite(draw):
    vertices, faces = sphere(subdivisions=1)
    vertices = vertices.repeat(2, 1, 1)
    vertices[1, 7] = float("nan")
    camera = camera_of((300.0, 300.0), (128.0, 128.0), (256, 256), batch=2)
    result = to_host(make_rasterizer("nvdiffrast")(vertices.cuda(), faces.cuda(), camera.to("cuda"), 256, 256))
    assert_agree(result, draw(vertices, faces, camera, 256, 256), edge_pixels=5e-3)


@pytest.mark.gpu
def test_gpu_rasterizer_pickles_and_auto_chooses_it():
    vertices, faces = sphere(subdivisions=1)
    arguments = (vertices.cuda(), faces.cuda(), camera_of().to("cuda"), 30, 40)
    gpu = make_rasterizer("nvdiffrast")
    before = gpu(*arguments)
    assert_same(pickle.loads(pickle.dumps(gpu))(*arguments), before)
    assert_same(make_rasterizer("auto")(*arguments), before)
    assert to_host(make_rasterizer("cpu")(*arguments)).mask.any()
