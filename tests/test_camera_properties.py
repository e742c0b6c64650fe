"""Mirror, crop, turn, weak perspective and change of frame commute with projection, whatever the body and camera.

Each property is that of the function that converters, importers and loaders use: project first and move the pixels, or
move the body and the camera and project then. Numbers are drawn by hypothesis, the body is a stand-in in float64.
"""

import functools

import numpy as np
import roma
import tiny_surreal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from bodies import BodyModel, BodyParameters, PinholeCamera, load_body_model
from bodies.camera import (
    crop_to_square_box,
    transform_to_camera,
    translation_to_weak_perspective,
    weak_perspective_to_translation,
)
from bodies.joints import OPENPOSE25, SMPL24, mirrored
from bodies.rest_joints import RestJoints
from datamodules.convert import h36m_rows, openpose_folder, plausibility, surreal, threedpw
from datamodules.convert.h36m_cameras import Camera
from datamodules.convert.predictions import CropCameras, FullCameras, Predictions, place
from datamodules.convert.surreal_files import Clip
from datamodules.convert.threedpw_files import Person
from datamodules.crops import ImageCamera, square_crop_affine
from datamodules.sample import BodyFields
from datamodules.turned_crop import CropChange, apply_affine, turn_body, turned_crop

#: Float64 has 1e-16 of a number, and no step here loses more than a million of that: pixels are thousands at most.
EXACT_PX = 1e-7
#: Where converters hold the rest pelvis (or all of a sample) in single precision: 2^-24 of some metres, a few times
#: over, at some hundred pixels to the metre; about 1e-6 of the image.
SINGLE_PX = 2e-3

seeds = st.integers(0, 2**32 - 1)
angles = st.floats(-np.pi, np.pi)
focals = st.floats(300, 5000)
pixels = st.floats(-500, 2500)
sides = st.floats(40, 1500)
#: Along y over along x: real lenses differ by less.
aspects = st.floats(0.95, 1.05)


@functools.cache
def body_model(double: bool = True) -> BodyModel:
    body = load_body_model("standin-tiny")
    return body.double() if double else body


def person(seed: int, depth_m: float = 6.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose (72,), betas (10,) and translation (3,) of somebody in front of a camera, turned anyhow."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(scale=0.3, size=(24, 3))
    pose[0] = Rotation.random(random_state=rng).as_rotvec()
    return pose.ravel(), rng.normal(size=10), np.array([*rng.uniform(-1, 1, 2), depth_m + rng.uniform(-2, 2)])


def body_joints() -> RestJoints:
    """The joints of the same body, in single precision."""
    body = body_model(double=False)
    arrays = (part.numpy() for part in (body.joint_template, body.joint_shape_directions))
    return RestJoints(body.name, *arrays, body.parents)


def posed(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> torch.Tensor:
    """(1, N + 24, 3): some vertices and all joints in float64."""
    rotations = Rotation.from_rotvec(pose.reshape(24, 3)).as_matrix()
    people = BodyParameters(*(torch.tensor(part)[None] for part in (rotations, betas, transl)))
    mesh = body_model()(people, torch.arange(0, body_model().num_vertices, 25))
    return torch.cat([mesh.vertices, mesh.joints], dim=1)


def rigid(seed: int) -> np.ndarray:
    """Any world to any camera."""
    rng, matrix = np.random.default_rng(seed), np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.random(random_state=rng).as_matrix(), rng.uniform(-5, 5, 3)
    return matrix


def into_world(matrix: np.ndarray, pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> tuple:
    """Pose and translation in the world of a body in a camera's frame, by the definition of the turn of its root."""
    rotation, shift = matrix[:3, :3], matrix[:3, 3]
    root = rotation.T @ Rotation.from_rotvec(pose[:3]).as_matrix()
    pelvis = body_model().shape_joints(torch.tensor(betas)[None])[0, 0].numpy()
    world_transl = rotation.T @ (pelvis + transl - shift) - pelvis
    return np.concatenate([Rotation.from_matrix(root).as_rotvec(), pose[3:]]), world_transl


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def view(fx: float, aspect: float, cx: float, cy: float, width: float = 1920, height: float = 1080) -> PinholeCamera:
    return PinholeCamera(row(fx, fx * aspect), row(cx, cy), row(width, height))


def same_px(ours: torch.Tensor | np.ndarray, expected: torch.Tensor | np.ndarray, atol: float = EXACT_PX) -> None:
    np.testing.assert_allclose(np.asarray(ours), np.asarray(expected), atol=atol, rtol=1e-9)


# Change of frame


@settings(max_examples=40)
@given(seed=seeds, fx=focals, aspect=aspects, cx=pixels, cy=pixels)
def test_moving_a_body_into_the_camera_by_its_parameters_is_moving_its_points(seed, fx, aspect, cx, cy):
    matrix, (pose, betas, transl) = rigid(seed), person(seed)
    world_pose, world_transl = into_world(matrix, pose, betas, transl)
    seen = posed(world_pose, betas, world_transl) @ torch.tensor(matrix[:3, :3]).T + torch.tensor(matrix[:3, 3])
    pelvis = body_model().shape_joints(torch.tensor(betas)[None])[:, 0]
    root = torch.tensor(Rotation.from_rotvec(world_pose[:3]).as_matrix())[None]
    root_cam, transl_cam = transform_to_camera(torch.tensor(matrix)[None], root, pelvis, row(*world_transl))
    ours = posed(
        np.concatenate([Rotation.from_matrix(root_cam[0].numpy()).as_rotvec(), world_pose[3:]]),
        betas,
        transl_cam[0].numpy(),
    )
    camera = view(fx, aspect, cx, cy)
    same_px(camera.project(ours), camera.project(seen))


@settings(max_examples=40)
@given(seed=seeds, first=seeds, second=seeds)
def test_moving_a_body_twice_is_moving_it_by_the_product_of_both(seed, first, second):
    pose, betas, transl = person(seed)
    pelvis = body_model().shape_joints(torch.tensor(betas)[None])[:, 0]
    root = torch.tensor(Rotation.from_rotvec(pose[:3]).as_matrix())[None]
    one, two = (torch.tensor(rigid(number))[None] for number in (first, second))
    root_once, transl_once = transform_to_camera(one, root, pelvis, row(*transl))
    twice = transform_to_camera(two, root_once, pelvis, transl_once)
    for ours, expected in zip(twice, transform_to_camera(two @ one, root, pelvis, row(*transl)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-12)


@settings(max_examples=30)
@given(seed=seeds, fx=focals, aspect=aspects)
def test_3dpw_people_project_to_where_the_moving_camera_sees_their_world_points(seed, fx, aspect):
    frames = [(rigid(seed + k), *person(seed + k)) for k in range(3)]
    betas = frames[0][2]
    worlds = [into_world(matrix, pose, betas, transl) for matrix, pose, _, transl in frames]
    detected = np.tile(np.array([500.0, 400.0, 0.9])[:, None], (3, 1, 18))
    poses, transls = (np.array(part) for part in zip(*worlds, strict=True))
    someone = Person("male", betas, poses, transls, np.zeros((3, 24, 3)), detected, np.ones(3, bool))
    seen = threedpw.see_person(someone, np.array([matrix for matrix, *_ in frames]), body_joints())
    assert not seen.problem.any()
    camera = view(fx, aspect, 960, 540)
    for k, (matrix, *_) in enumerate(frames):
        points = posed(poses[k], betas, transls[k]) @ torch.tensor(matrix[:3, :3]).T + torch.tensor(matrix[:3, 3])
        same_px(camera.project(posed(seen.pose[k], betas, seen.transl[k])), camera.project(points), SINGLE_PX)


@settings(max_examples=30)
@given(seed=seeds)
def test_h36m_bodies_of_the_world_project_to_where_the_camera_sees_their_world_points(seed):
    matrix, (pose, betas, transl) = rigid(seed), person(seed)
    world_pose, world_transl = into_world(matrix, pose, betas, transl)
    focal_px, center_px = np.array([1145.0, 1143.8]), np.array([512.5, 515.5])
    camera = Camera("54138969", matrix[:3, :3], matrix[:3, 3], focal_px, center_px, np.zeros(5))
    fits = h36m_rows.Bodies(world_pose[None], betas[None], world_transl[None], True, np.array([""], object), 1.0)
    joints = np.zeros((1, 17, 3))
    shot = h36m_rows.View("S1", "S1", camera, np.array([0]), ("a.jpg",), joints, None, fits)
    placed = h36m_rows.place(shot, np.array([True]), body_model(double=False))
    points = posed(world_pose, betas, world_transl)[0].numpy() @ matrix[:3, :3].T + matrix[:3, 3]
    ours = posed(placed.pose[0], betas, placed.transl_m[0])[0].numpy()
    same_px(camera.project(ours), camera.project(points), SINGLE_PX)


# Mirror


@settings(max_examples=30)
@given(seed=seeds, turn=angles)
def test_mirroring_a_surreal_frame_and_its_camera_shows_the_body_where_the_stored_frame_does_mirrored(seed, turn):
    """Position x of the stored frame becomes 320 - x, for every vertex, with no change of the body's own pose."""
    rng, (pose, betas, _) = np.random.default_rng(seed), person(seed)
    camera_m = np.array([rng.uniform(5, 8), *rng.uniform(-1, 1, 2)])
    root = Rotation.from_euler("x", 90, degrees=True) * Rotation.from_euler("z", turn) * Rotation.from_rotvec(pose[:3])
    points = posed(np.concatenate([root.as_rotvec(), pose[3:]]), betas, rng.uniform(-1, 1, 3))[0].numpy()
    stored_px, joints = tiny_surreal.stored_px(points, camera_m), points[None, -24:]
    clip = Clip("male", pose[None], betas[None], np.array([turn]), joints, stored_px[None, -24:], camera_m)
    pose_cam, transl_cam, _ = surreal._in_camera(clip, np.array([True]), body_joints())
    camera = view(surreal.FOCAL_PX, 1.0, surreal.WIDTH / 2, surreal.HEIGHT / 2, surreal.WIDTH, surreal.HEIGHT)
    ours = camera.project(posed(pose_cam[0], betas, transl_cam[0]))[0].numpy()
    same_px(ours, np.stack([surreal.WIDTH - stored_px[:, 0], stored_px[:, 1]], axis=1), SINGLE_PX)
    np.testing.assert_array_equal(pose_cam[0, 3:], pose[3:])


@settings(max_examples=40)
@given(seed=seeds, fx=focals, aspect=aspects, cx=pixels, cy=pixels)
def test_mirroring_keypoints_is_mirroring_scene_and_camera_and_swapping_sides(seed, fx, aspect, cx, cy):
    rng, width = np.random.default_rng(seed), 1920.0
    points = torch.tensor(rng.normal(size=(1, 25, 3)) * 0.5 + (0, 0, 5))
    swapped = points[:, list(mirrored(OPENPOSE25))] * torch.tensor([-1.0, 1, 1], dtype=torch.float64)
    seen, other = view(fx, aspect, cx, cy).project(points), view(fx, aspect, width - cx, cy).project(swapped)
    confident = [np.concatenate([part[0].numpy(), np.ones((25, 1))], axis=1)[None] for part in (seen, other)]
    ours = openpose_folder.turned_over(confident[0].astype(np.float32), np.array([width], np.float32))
    same_px(ours, confident[1], SINGLE_PX)


@settings(max_examples=40)
@given(seed=seeds, fx=focals, aspect=aspects, cx=pixels, cy=pixels)
def test_mirroring_a_pose_shows_the_joints_of_a_symmetric_body_mirrored_with_their_sides_swapped(
    seed, fx, aspect, cx, cy
):
    pose, betas, transl = person(seed)
    flip, sides_swapped = torch.tensor([-1.0, 1, 1], dtype=torch.float64), list(mirrored(SMPL24))
    rest = body_model().shape_joints(torch.tensor(betas)[None])
    rest = (rest + rest[:, sides_swapped] * flip) / 2

    def joints(of: np.ndarray) -> torch.Tensor:
        return body_model().pose(rest, roma.rotvec_to_rotmat(torch.tensor(of.reshape(1, 24, 3)))).joints

    seen = view(fx, aspect, cx, cy).project(joints(pose) + row(*transl))
    other = view(fx, aspect, 1920 - cx, cy).project(joints(plausibility._mirrored(pose[None])[0]) + row(*transl) * flip)
    same_px(other, torch.stack([1920 - seen[..., 0], seen[..., 1]], dim=-1)[:, sides_swapped])


# Crop


@settings(max_examples=40)
@given(seed=seeds, fx=focals, aspect=aspects, cx=pixels, cy=pixels, bx=pixels, by=pixels, side=sides)
def test_cropping_the_camera_is_cropping_the_pixels(seed, fx, aspect, cx, cy, bx, by, side):
    points, camera = posed(*person(seed)), view(fx, aspect, cx, cy)
    cropped = crop_to_square_box(camera, row(bx, by), row(side)[0], 256).project(points)
    affine = square_crop_affine(np.array([bx, by]), side, 0.0, 256)
    same_px(cropped[0], apply_affine(affine, camera.project(points)[0].numpy()))


@settings(max_examples=40)
@given(seed=seeds, origin_x=pixels, origin_y=pixels, zoom=st.floats(0.1, 8))
def test_cropping_commutes_with_moving_the_body_into_the_camera(seed, origin_x, origin_y, zoom):
    """Camera and frame are apart: crop then move, or move then crop."""
    matrix, (pose, betas, transl) = rigid(seed), person(seed)
    world_pose, world_transl = into_world(matrix, pose, betas, transl)
    pelvis = body_model().shape_joints(torch.tensor(betas)[None])[:, 0]
    root = torch.tensor(Rotation.from_rotvec(world_pose[:3]).as_matrix())[None]
    root_cam, transl_cam = transform_to_camera(torch.tensor(matrix)[None], root, pelvis, row(*world_transl))
    moved = np.concatenate([Rotation.from_matrix(root_cam[0].numpy()).as_rotvec(), pose[3:]])
    camera = view(1000, 1.0, 960, 540)
    cropped = camera.crop(row(origin_x, origin_y), row(zoom, zoom), row(256, 256))
    ours = cropped.project(posed(moved, betas, transl_cam[0].numpy()))
    same_px(ours, (camera.project(posed(pose, betas, transl)) - row(origin_x, origin_y)) * zoom)


@settings(max_examples=50)
@given(
    seed=seeds, angle=angles, fx=focals, aspect=aspects, scale=st.floats(0.7, 1.4),
    shift=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
)  # fmt: skip
def test_turning_scaling_and_shifting_a_crop_is_turning_the_body_and_cropping_the_camera(
    seed, angle, fx, aspect, scale, shift
):
    pose, betas, transl = person(seed)
    full = ImageCamera(*(np.array(part, np.float32) for part in ((fx, fx * aspect), (950.0, 530.0), (1920, 1080))))
    exact = PinholeCamera(*(torch.tensor(part.astype(float))[None] for part in full))
    box_px = np.array([700.0, 500.0, 400.0], np.float32)
    crop = turned_crop(full, box_px, CropChange(angle, scale, shift), 1.2, 256)
    rotations = roma.rotvec_to_rotmat(torch.tensor(pose.reshape(24, 3), dtype=torch.float32))
    fields = BodyFields(rotations, *(torch.tensor(part, dtype=torch.float32) for part in (betas, transl)))
    pelvis = body_model(double=False).shape_joints(fields.betas[None])[0, 0]

    def points(of: BodyFields) -> torch.Tensor:
        return body_model()(BodyParameters(*(part.double()[None] for part in of)), torch.arange(50)).vertices

    ours = PinholeCamera(*(torch.tensor(part.astype(float))[None] for part in crop.camera)).project(
        points(turn_body(fields, pelvis, angle))
    )
    expected = apply_affine(crop.full_to_crop, exact.project(points(fields))[0].numpy())
    # The whole sample is single: 2^-24 of coordinates up to 1e4 px, and of metres at up to 2000 px each.
    np.testing.assert_allclose(ours[0], expected, atol=SINGLE_PX, rtol=2e-6)


# Weak perspective


@given(
    s=st.floats(0.2, 2), tx=st.floats(-0.5, 0.5), ty=st.floats(-0.5, 0.5), seed=seeds,
    bx=pixels, by=pixels, side=sides, fx=focals, aspect=aspects, cx=pixels, cy=pixels,
)  # fmt: skip
def test_weak_perspective_shows_points_at_the_translations_depth_where_the_full_camera_does(
    s, tx, ty, seed, bx, by, side, fx, aspect, cx, cy
):
    """Pixel = box centre + s b / 2 (X + t), with the focal length of each axis over their mean."""
    camera, center = view(fx, aspect, cx, cy), row(bx, by)
    flat = torch.tensor(np.random.default_rng(seed).normal(size=(1, 50, 3)) * (0.4, 0.8, 0))
    transl = weak_perspective_to_translation(row(s, tx, ty), center, row(side)[0], camera)
    pixels_per_m = s * side / 2 * camera.focal_px / camera.focal_px.prod(dim=1, keepdim=True).sqrt()
    expected = (flat[..., :2] + row(tx, ty)) * pixels_per_m + center
    # The epsilon beside s b, which is 8 or more, is 1e-10 of the distance from the box's centre.
    same_px(camera.project(flat + transl[:, None]), expected, 1e-6)


@given(
    seed=seeds, bx=pixels, by=pixels, side=sides, fx=focals, aspect=aspects, origin_x=pixels, origin_y=pixels,
    zoom=st.floats(0.25, 4),
)  # fmt: skip
def test_the_weak_perspective_camera_of_a_body_is_the_same_in_every_crop_and_size_of_the_image(
    seed, bx, by, side, fx, aspect, origin_x, origin_y, zoom
):
    camera, origin, (_, _, transl) = view(fx, aspect, 960, 540), row(origin_x, origin_y), person(seed)
    cropped = camera.crop(origin, row(zoom, zoom), row(256, 256))
    box, box_cropped = (row(bx, by), row(side)[0]), ((row(bx, by) - origin) * zoom, row(side * zoom)[0])
    weak = translation_to_weak_perspective(row(*transl), *box, camera)
    in_crop = translation_to_weak_perspective(row(*transl), *box_cropped, cropped)
    np.testing.assert_allclose(in_crop, weak, atol=1e-9, rtol=1e-9)
    # And back, from either: the body's own translation.
    for camera_of, box_of in ((camera, box), (cropped, box_cropped)):
        np.testing.assert_allclose(weak_perspective_to_translation(weak, *box_of, camera_of), row(*transl), atol=1e-9)


@settings(max_examples=50)
@given(seed=seeds, fx=focals, zoom=st.floats(0.25, 4))
def test_imported_crop_cameras_show_bodies_alike_whatever_the_size_of_the_image_the_regressor_saw(seed, fx, zoom):
    rng, camera = np.random.default_rng(seed), view(fx, 1.0, 940, 550)
    weak = np.array([[[rng.uniform(0.5, 1.2), *rng.uniform(-0.3, 0.3, 2)]]], np.float32)
    box_px, size_px = np.array([[800.0, 500.0, 400.0]]), np.array([[1920.0, 1080.0]])

    def placed(ratio: float) -> np.ndarray:
        cameras = CropCameras(weak, (box_px * ratio).astype(np.float32))
        numbers = np.zeros((1, 1, 72), np.float32), np.zeros((1, 1, 10), np.float32)
        size = (size_px * ratio).astype(np.float32)
        return place(Predictions(("a.jpg",), False, *numbers, cameras, None, size), camera, "frames").transl_m[0, 0]

    flat = torch.tensor(rng.normal(size=(1, 50, 3)) * (0.4, 0.8, 0))
    expected = (flat[..., :2] + row(*weak[0, 0, 1:].tolist())) * float(weak[0, 0, 0]) * 200 + row(800, 500)
    for ratio in (1.0, zoom):
        same_px(camera.project(flat + torch.tensor(placed(ratio).astype(float))), expected, SINGLE_PX)


@settings(max_examples=40)
@given(seed=seeds, fx=focals, own=focals, cx=pixels, cy=pixels)
def test_imported_full_image_cameras_keep_the_bodys_pixel_when_the_principal_point_changes(seed, fx, own, cx, cy):
    _, _, transl = person(seed)
    made_with = np.array([[cx, cy]], np.float32)
    cameras = FullCameras(transl[None, None].astype(np.float32), np.array([own], np.float32), made_with)
    numbers = np.zeros((1, 1, 72), np.float32), np.zeros((1, 1, 10), np.float32)
    bodies = place(Predictions(("a.jpg",), False, *numbers, cameras, None, None), view(fx, 1.0, 940, 550), "frames")
    ours = view(float(bodies.focal_px[0]), 1.0, 940, 550).project(torch.tensor(bodies.transl_m.astype(float)))
    expected = view(float(np.float32(own)), 1.0, *made_with[0].tolist()).project(
        torch.tensor(transl.astype(np.float32).astype(float))[None, None]
    )
    same_px(ours, expected, SINGLE_PX)
