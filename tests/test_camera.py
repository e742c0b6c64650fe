"""`bodies.camera`: projection, crops, the regressors' conventions, and bodies that change frame."""

import pytest
import roma
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from bodies import BodyParameters, InputError, PinholeCamera
from bodies.camera import (
    REGRESSOR_CROP_PX,
    REGRESSOR_FOCAL_PX,
    crop_to_square_box,
    crop_translation,
    diagonal_focal_px,
    square_box,
    transform_to_camera,
    translation_to_weak_perspective,
    weak_perspective_full_image,
    weak_perspective_to_translation,
)

#: A hundredth of a pixel's hundredth: float64 leaves 1e-12 of a few thousand pixels.
EXACT_PX = 1e-8

focal = st.floats(200, 5000)
pixel = st.floats(-500, 2500)
side = st.floats(40, 1500)
scale = st.floats(0.2, 2.0)
shift = st.floats(-0.5, 0.5)


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def camera(fx: float, fy: float, cx: float, cy: float, width: float = 1920, height: float = 1080) -> PinholeCamera:
    return PinholeCamera(row(fx, fy), row(cx, cy), row(width, height))


def body_points(count: int = 200, depth: float = 0.0) -> torch.Tensor:
    """Points of the size of a person about the origin, float64, moved back by `depth`."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(1, count, 3, generator=random, dtype=torch.float64) * torch.tensor([0.3, 0.6, 0.2])
    return points + torch.tensor([0.0, 0.0, depth])


# Projection


def test_projection_of_known_points():
    points = torch.tensor([[[0.0, 0.0, 2.0], [1.0, -0.5, 2.0], [-1.0, 0.5, 4.0]]], dtype=torch.float64)
    expected = torch.tensor([[[960.0, 540.0], [1460.0, 265.0], [710.0, 677.5]]], dtype=torch.float64)
    torch.testing.assert_close(camera(1000, 1100, 960, 540).project(points), expected, atol=EXACT_PX, rtol=0)


def test_the_pixel_grid_starts_at_the_corner_of_the_first_pixel():
    # The principal point of an image of 4 x 2 is where its middle pixels meet: centres are at +0.5.
    view = PinholeCamera.from_image_size(row(4, 2))
    straight_ahead = view.project(torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64))
    torch.testing.assert_close(straight_ahead, torch.tensor([[[2.0, 1.0]]], dtype=torch.float64))


@given(fx=focal, fy=focal, cx=pixel, cy=pixel, x=pixel, y=pixel, depth=st.floats(0.05, 100))
def test_unprojecting_and_projecting_come_back(fx, fy, cx, cy, x, y, depth):
    view, position = camera(fx, fy, cx, cy), row(x, y)[:, None]
    points = view.unproject(position, row(depth))
    assert points[0, 0, 2] == depth
    torch.testing.assert_close(view.project(points), position, atol=EXACT_PX, rtol=0)


def test_projection_is_linear_in_nothing_but_the_ray():
    view = camera(1000, 1100, 900, 500)
    points = body_points(depth=3.0)
    torch.testing.assert_close(view.project(7 * points), view.project(points), atol=EXACT_PX, rtol=0)


@given(fx=focal, cx=pixel, cy=pixel, left=pixel, top=pixel, zoom_x=st.floats(0.1, 8), zoom_y=st.floats(0.1, 8))
def test_cropping_commutes_with_projecting(fx, cx, cy, left, top, zoom_x, zoom_y):
    view, points = camera(fx, 0.9 * fx, cx, cy), body_points(20, depth=3.0)
    origin, zoom = row(left, top), row(zoom_x, zoom_y)
    cropped = view.crop(origin, zoom, row(256, 256))
    expected = (view.project(points) - origin[:, None]) * zoom[:, None]
    torch.testing.assert_close(cropped.project(points), expected, atol=1e-7, rtol=1e-12)
    assert torch.equal(cropped.size_px, row(256, 256))


def test_a_crop_of_a_crop_is_one_crop():
    view = camera(1000, 1100, 900, 500)
    twice = view.crop(row(100, 50), row(2, 3), row(400, 300)).crop(row(-10, 6), row(0.5, 0.25), row(64, 64))
    once = view.crop(row(95, 52), row(1, 0.75), row(64, 64))
    for name in ("focal_px", "center_px", "size_px"):
        torch.testing.assert_close(getattr(twice, name), getattr(once, name))


@given(cx=pixel, cy=pixel, b=side)
def test_a_square_box_becomes_the_whole_crop(cx, cy, b):
    view = camera(1000, 1100, 900, 500)
    corners = torch.stack([row(cx - b / 2, cy - b / 2), row(cx, cy), row(cx + b / 2, cy + b / 2)], dim=1)
    points = view.unproject(corners, torch.full((1, 3), 4.0, dtype=torch.float64))
    cropped = crop_to_square_box(view, row(cx, cy), torch.tensor([b], dtype=torch.float64), 256)
    expected = torch.tensor([[[0.0, 0.0], [128.0, 128.0], [256.0, 256.0]]], dtype=torch.float64)
    torch.testing.assert_close(cropped.project(points), expected, atol=1e-7, rtol=0)
    assert torch.equal(cropped.size_px, row(256, 256))


def test_cameras_are_indexed_repeated_and_converted_as_one():
    view = camera(1000, 1100, 900, 500).expand(3)
    assert len(view) == 3
    assert len(view[1:]) == len(view[[0, 2]]) == 2
    assert view.to(torch.float32).focal_px.dtype == torch.float32
    points = body_points(5, depth=2.0)
    torch.testing.assert_close(
        view.project(points.expand(3, -1, -1))[2], camera(1000, 1100, 900, 500).project(points)[0]
    )


def test_unknown_focal_length_is_the_image_diagonal():
    size = torch.tensor([[3.0, 4.0], [1920.0, 1080.0]])
    expected = torch.tensor([5.0, 2202.9072])
    torch.testing.assert_close(diagonal_focal_px(size), expected)
    view = PinholeCamera.from_image_size(size)
    torch.testing.assert_close(view.focal_px, expected[:, None].expand(2, 2))
    torch.testing.assert_close(view.center_px, size / 2)
    torch.testing.assert_close(PinholeCamera.from_image_size(size, 1500.0).focal_px, torch.full((2, 2), 1500.0))


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_a_focal_length_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="focal length must be positive and finite"):
        PinholeCamera.from_image_size(row(640, 480), wrong)


def test_square_box_is_about_the_valid_points():
    position = torch.tensor([[[10.0, 20.0], [30.0, 80.0], [0.0, 0.0]], [[5.0, 5.0], [0.0, 0.0], [0.0, 0.0]]])
    for valid in (torch.tensor([[0.5, 1.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[1, 1, 0], [1, 0, 0]])):
        for kind in (valid, valid > 0):
            center, box_side = square_box(position, kind, 1.2)
            torch.testing.assert_close(center, torch.tensor([[20.0, 50.0], [5.0, 5.0]]))
            torch.testing.assert_close(box_side, torch.tensor([72.0, 0.0]))


# Weak perspective (FORMATS 9.1 to 9.3)


def test_full_image_translation_by_hand():
    # t = (tx + 2 (cx - W/2) / (s b), ty + 2 (cy - H/2) / (s b), 2 f / (s b)) with s b = 0.8 * 250 = 200.
    t = weak_perspective_to_translation(
        row(0.8, 0.1, -0.2), row(1060, 440), torch.tensor([250.0], dtype=torch.float64), camera(2000, 2000, 960, 540)
    )
    torch.testing.assert_close(t, row(0.1 + 1.0, -0.2 - 1.0, 20.0), atol=1e-9, rtol=0)


def test_crop_translation_by_hand():
    torch.testing.assert_close(
        crop_translation(row(0.9, 0.1, -0.2)), row(0.1, -0.2, 49.6031746), atol=1e-7, rtol=0
    )  # 10000 / (224 * 0.9)


def test_full_image_weak_perspective_by_hand():
    # sx = s b / W = 0.1, sy = s b / H = 0.2; tx' = tx + ((1100 - 1000) / 1000) / sx, ty' = ty + (-50 / 500) / sy.
    weak = weak_perspective_full_image(
        row(0.8, 0.1, -0.2), row(1100, 450), torch.tensor([250.0], dtype=torch.float64), row(2000, 1000)
    )
    torch.testing.assert_close(weak, row(0.1, 0.2, 0.1 + 1.0, -0.2 - 0.5), atol=1e-7, rtol=0)


@given(s=scale, tx=shift, ty=shift, cx=pixel, cy=pixel, b=side, fx=focal, ox=pixel)
def test_translation_and_weak_perspective_are_inverse(s, tx, ty, cx, cy, b, fx, ox):
    view, box, weak = (
        camera(fx, 1.05 * fx, ox, 500),
        (row(cx, cy), torch.tensor([b], dtype=torch.float64)),
        row(s, tx, ty),
    )
    translation = weak_perspective_to_translation(weak, *box, view)
    torch.testing.assert_close(translation_to_weak_perspective(translation, *box, view), weak, atol=1e-9, rtol=1e-9)


def test_a_predicted_scale_of_zero_gives_finite_numbers():
    translation = weak_perspective_to_translation(
        row(0, 0, 0), row(500, 500), torch.tensor([200.0], dtype=torch.float64), camera(1000, 1000, 960, 540)
    )
    assert translation.isfinite().all()
    assert crop_translation(row(0, 0, 0)).isfinite().all()


@given(s=scale, tx=shift, ty=shift, cx=pixel, cy=pixel, b=side, f=focal)
def test_the_three_conventions_agree_in_the_plane_of_the_translation(s, tx, ty, cx, cy, b, f):
    """At the depth of the translation all three see s b / 2 pixels per metre, so flat points agree exactly."""
    weak, center, box_side = row(s, tx, ty), row(cx, cy), torch.tensor([b], dtype=torch.float64)
    view = camera(f, f, 960, 540)
    flat = body_points(20) * torch.tensor([1.0, 1.0, 0.0])
    full = view.project(flat + weak_perspective_to_translation(weak, center, box_side, view)[:, None])

    crop_px = REGRESSOR_CROP_PX
    own = PinholeCamera(
        row(REGRESSOR_FOCAL_PX, REGRESSOR_FOCAL_PX), row(crop_px / 2, crop_px / 2), row(crop_px, crop_px)
    )
    in_crop = own.project(flat + crop_translation(weak)[:, None])
    from_crop = in_crop * b / crop_px + (center - b / 2)[:, None]
    torch.testing.assert_close(from_crop, full, atol=1e-5, rtol=1e-9)  # the epsilon of 9.1 is not that of 9.2

    sx, sy, full_tx, full_ty = weak_perspective_full_image(weak, center, box_side, view.size_px)[0]
    x = 1920 / 2 * (sx * (flat[..., 0] + full_tx) + 1)
    y = 1080 / 2 * (sy * (flat[..., 1] + full_ty) + 1)
    # The epsilon of 9.3 is beside sx, which is 0.004 or more: 2.5e-7 of up to 2000 px between box and image centre.
    torch.testing.assert_close(torch.stack([x, y], dim=-1), full, atol=1e-3, rtol=1e-9)


def test_they_agree_for_solid_bodies_as_far_as_perspective_is_weak():
    """Crop camera and full-image camera differ by the body's depth over its distance: ten times as far, a tenth off."""
    weak, center, box_side = row(0.9, 0.05, -0.1), row(1300, 300), torch.tensor([400.0], dtype=torch.float64)
    body, gaps = body_points(), []
    for f in (2e3, 2e4, 2e5):
        view = camera(f, f, 960, 540)
        full = view.project(body + weak_perspective_to_translation(weak, center, box_side, view)[:, None])
        own_focal = f * 224 / 400  # the same focal length, seen in the crop's pixels
        own = PinholeCamera(row(own_focal, own_focal), row(112, 112), row(224, 224))
        in_crop = own.project(body + crop_translation(weak, own_focal)[:, None])
        gaps.append((in_crop * 400 / 224 + (center - 200)[:, None] - full).abs().max().item())
    assert gaps[0] > 1  # pixels: at an ordinary focal length the crop camera is not good enough, hence the conversion
    assert gaps[1] == pytest.approx(gaps[0] / 10, rel=0.2)
    assert gaps[2] == pytest.approx(gaps[1] / 10, rel=0.2)


def test_the_crop_of_the_full_camera_needs_no_conversion():
    """The crop as a change of camera sees the body exactly where the full image does, for any depth."""
    weak, center, box_side = row(0.9, 0.05, -0.1), row(1300, 300), torch.tensor([400.0], dtype=torch.float64)
    view = camera(1500, 1500, 960, 540)
    points = body_points() + weak_perspective_to_translation(weak, center, box_side, view)[:, None]
    in_crop = crop_to_square_box(view, center, box_side, 224).project(points)
    torch.testing.assert_close(in_crop * 400 / 224 + (center - 200)[:, None], view.project(points), atol=1e-8, rtol=0)


# World to camera (FORMATS 0.1)


def random_rigid(batch: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    transform = torch.eye(4).repeat(batch, 1, 1)
    transform[:, :3, :3] = roma.rotvec_to_rotmat(2 * torch.randn(batch, 3, generator=random))
    transform[:, :3, 3] = 3 * torch.randn(batch, 3, generator=random)
    return transform


def test_a_body_moved_by_its_parameters_is_the_body_moved_vertex_by_vertex():
    body, batch = tiny.body_model(), 6
    random = torch.Generator().manual_seed(1)
    pose, betas = 0.5 * torch.randn(batch, 72, generator=random), torch.randn(batch, 10, generator=random)
    world = BodyParameters.from_axis_angle(pose, betas, torch.randn(batch, 3, generator=random))
    transform = random_rigid(batch)
    root, transl = transform_to_camera(transform, world.rotations[:, 0], body.shape_joints(betas)[:, 0], world.transl)
    seen = body(BodyParameters(torch.cat([root[:, None], world.rotations[:, 1:]], dim=1), betas, transl))
    mesh = body(world)
    for ours, theirs in ((seen.vertices, mesh.vertices), (seen.joints, mesh.joints)):
        expected = theirs @ transform[:, :3, :3].mT + transform[:, None, :3, 3]
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)  # float32 at ten metres
    # Moving the translation alone, as some loaders do, is off by (R - I) J0: decimetres.
    careless = (transform[:, :3, :3] @ world.transl[..., None]).squeeze(-1) + transform[:, :3, 3]
    assert ((careless - transl).norm(dim=-1) > 0.1).any()


def test_no_change_of_frame_changes_nothing():
    root, transl = transform_to_camera(torch.eye(4)[None], torch.eye(3)[None], torch.ones(1, 3), torch.ones(1, 3) * 2)
    assert torch.equal(root, torch.eye(3)[None])
    assert torch.equal(transl, torch.ones(1, 3) * 2)
