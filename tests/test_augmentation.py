"""Turned crops show the turned body where it is projected; what changes colours moves nothing; the seed decides all."""

import os
import pickle

import numpy as np
import pytest
import torch

from bodies import BodyModel, InputError, load_body_model
from datamodules.augmentation import (
    Augmentation,
    PhotometricDistortion,
    channel_noise,
    draw_crop_change,
    mix_patches,
)
from datamodules.crops import ImageCamera, warp_affine
from datamodules.sample import BodyFields
from datamodules.turned_crop import (
    CropChange,
    RestPelvis,
    apply_affine,
    move_keypoints,
    turn_body,
    turn_joints,
    turned_crop,
)

CROP_PX = 128
BOX_PX = np.array([350, 260, 240], np.float32)
#: fx = fy; calibration noise; and pixels that are far from square.
FOCALS_PX = ((900.0, 900.0), (1145.0, 1143.8), (900.0, 1200.0))


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body_model("standin-tiny")


def camera(focal_px: tuple[float, float]) -> ImageCamera:
    return ImageCamera(*(np.array(a, np.float32) for a in (focal_px, (310.5, 245.2), (640, 480))))


def person(seed: int) -> BodyFields:
    rng = np.random.default_rng(seed)
    transl = np.array([rng.normal(scale=0.3), rng.normal(scale=0.3), rng.uniform(3, 6)])
    return BodyFields.from_axis_angle(rng.normal(scale=0.4, size=72), rng.normal(size=10), transl)


def vertices(body: BodyModel, fields: BodyFields) -> torch.Tensor:
    return body(BodyFields(*(part[None] for part in fields)).parameters()).vertices


def changes(count: int) -> list[CropChange]:
    rng = np.random.default_rng(1)
    strong = Augmentation(rotation_probability=1, rotation_deg=60, scale=0.3, shift=0.2)
    return [CropChange(), CropChange(np.pi), *(draw_crop_change(strong, rng) for _ in range(count))]


@pytest.mark.parametrize("focal_px", FOCALS_PX)
def test_vertices_are_projected_to_where_the_image_shows_them(body, focal_px):
    full, pelvis = camera(focal_px), RestPelvis.of(body)
    for seed, change in enumerate(changes(6)):
        fields = person(seed)
        turned = turn_body(fields, pelvis.at(fields.betas), change.angle_rad)
        crop = turned_crop(full, BOX_PX, change, 1.2, CROP_PX)
        shown_px = apply_affine(crop.full_to_crop, full.batched().project(vertices(body, fields))[0].numpy())
        projected_px = crop.camera.batched().project(vertices(body, turned))[0].numpy()
        # Asked for is 0.1 px; float32 at some hundred pixels gives a few thousandths.
        np.testing.assert_allclose(projected_px, shown_px, atol=0.01)
        turned_px = full.batched().project(vertices(body, turned))[0].numpy()
        in_turned_px = apply_affine(crop.full_to_turned, full.batched().project(vertices(body, fields))[0].numpy())
        np.testing.assert_allclose(turned_px, in_turned_px, atol=0.01)


@pytest.mark.parametrize("focal_px", FOCALS_PX)
def test_the_warped_image_shows_a_vertex_where_it_is_projected(body, focal_px):
    """The same through pixels: a soft blob is drawn at a vertex, and its centre of mass looked up in the crop."""
    full, pelvis, vertex = camera(focal_px), RestPelvis.of(body), 7
    rows, columns = np.mgrid[:480, :640] + 0.5
    fields = person(3)
    at_px = full.batched().project(vertices(body, fields))[0, vertex].numpy()
    blob = 255 * np.exp(-((columns - at_px[0]) ** 2 + (rows - at_px[1]) ** 2) / (2 * 6.0**2))
    image = np.repeat(np.rint(blob)[..., None], 3, axis=2).astype(np.uint8)
    box_px = np.array([*at_px + 9, 160], np.float32)
    for change in (CropChange(), CropChange(0.7, 1.1, (0.05, -0.03)), CropChange(-2.5, 0.8, (0.0, 0.1))):
        turned = turn_body(fields, pelvis.at(fields.betas), change.angle_rad)
        crop = turned_crop(full, box_px, change, 1.0, CROP_PX)
        pixels = warp_affine(image, crop.full_to_crop, CROP_PX)[..., 0].astype(np.float64)
        crop_rows, crop_columns = np.mgrid[:CROP_PX, :CROP_PX] + 0.5
        center_px = [(pixels * axis).sum() / pixels.sum() for axis in (crop_columns, crop_rows)]
        projected_px = crop.camera.batched().project(vertices(body, turned))[0, vertex].numpy()
        # The acceptance of the project; rounding to bytes at the blob's rim leaves some hundredths.
        np.testing.assert_allclose(center_px, projected_px, atol=0.1)


def test_a_turn_is_undone_by_the_opposite_one(body):
    fields, pelvis = person(5), RestPelvis.of(body)
    there = turn_body(fields, pelvis.at(fields.betas), 0.9)
    back = turn_body(there, pelvis.at(fields.betas), -0.9)
    torch.testing.assert_close(back.rotations, fields.rotations, atol=1e-6, rtol=0)
    torch.testing.assert_close(back.transl, fields.transl, atol=2e-6, rtol=0)


def test_the_rest_pelvis_is_that_of_the_model(body):
    fields = person(2)
    expected = body.shape_joints(fields.betas[None])[0, 0]
    torch.testing.assert_close(RestPelvis.of(body).at(fields.betas), expected, atol=1e-6, rtol=0)


def test_joints_turn_with_the_body_and_keep_their_validity(body):
    fields, pelvis = person(4), RestPelvis.of(body)
    measured = vertices(body, fields)[0, :17].numpy()
    validity = (np.arange(17) % 3 > 0).astype(np.float32)
    turned = turn_joints(np.column_stack([measured, validity]), 0.6)
    expected = vertices(body, turn_body(fields, pelvis.at(fields.betas), 0.6))[0, :17].numpy()
    np.testing.assert_allclose(turned[:, :3], expected, atol=1e-5)
    np.testing.assert_array_equal(turned[:, 3], validity)


def test_absent_keypoints_stay_absent():
    keypoints_px = np.zeros((25, 3), np.float32)
    keypoints_px[3] = (10, 20, 0.7)
    moved = move_keypoints(keypoints_px, np.array([[0, -1, 5], [1, 0, 2]], np.float64))
    np.testing.assert_allclose(moved[3], [-15, 12, 0.7], atol=1e-5)
    assert not moved[np.arange(25) != 3].any()


def test_the_box_turns_about_the_principal_point():
    full = camera(FOCALS_PX[0])
    crop = turned_crop(full, BOX_PX, CropChange(np.pi), 1.0, CROP_PX)
    np.testing.assert_allclose(crop.box_px, [*2 * full.center_px - BOX_PX[:2], BOX_PX[2]], atol=1e-3)


def test_crop_changes_are_those_asked_for():
    rng, augmentation = np.random.default_rng(0), Augmentation()
    drawn = [draw_crop_change(augmentation, rng) for _ in range(3000)]
    angles = np.rad2deg([change.angle_rad for change in drawn])
    # Standard error of the share: 0.009; clipped at two deviations, a normal's deviation is 0.959 of what it was.
    assert np.mean(angles != 0) == pytest.approx(augmentation.rotation_probability, abs=0.03)
    assert angles[angles != 0].std() == pytest.approx(0.959 * augmentation.rotation_deg, rel=0.05)
    assert np.abs(angles).max() <= 2 * augmentation.rotation_deg + 1e-9
    assert np.abs(np.log([change.scale for change in drawn])).max() <= 2 * augmentation.scale + 1e-9
    off = Augmentation(rotation_probability=0, scale=0, shift=0)
    assert draw_crop_change(off, rng) == CropChange()


def picture(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_photometric_distortion_is_decided_by_the_generator():
    image = picture()
    distort = PhotometricDistortion(Augmentation(blur_probability=0.5, gray_probability=0.3))
    results = [distort(image, np.random.default_rng(seed)) for seed in range(12)]
    again = [pickle.loads(pickle.dumps(distort))(image, np.random.default_rng(seed)) for seed in reversed(range(12))]
    for first, second in zip(results, reversed(again), strict=True):
        np.testing.assert_array_equal(first, second)
    assert len({result.tobytes() for result in results}) > 8
    np.testing.assert_array_equal(image, picture())


def test_colours_change_and_places_do_not():
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:30, 40:50] = (200, 120, 60)
    distort = PhotometricDistortion(Augmentation(photometric_probability=1, blur_probability=0))
    for seed in range(5):
        result = distort(image, np.random.default_rng(seed)).astype(int)
        inside = np.zeros((64, 64), bool)
        inside[20:30, 40:50] = True
        assert len(np.unique(result[inside], axis=0)) == 1
        assert len(np.unique(result[~inside], axis=0)) == 1


def test_albumentations_does_not_ask_the_network():
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


def test_channel_noise_is_one_factor_per_channel():
    image = np.full((5, 7, 4), 100, np.uint8)
    image[..., 3] = np.arange(7)
    noisy = channel_noise(image, 0.3, np.random.default_rng(0))
    assert (noisy[..., :3] == noisy[0, 0, :3]).all()
    assert len(set(noisy[0, 0, :3].tolist())) == 3
    assert (np.abs(noisy[..., :3].astype(int) - 100) <= 30).all()
    np.testing.assert_array_equal(noisy[..., 3], image[..., 3])
    np.testing.assert_array_equal(channel_noise(image, 0.0, np.random.default_rng(0)), image)
    assert channel_noise(np.full((9, 3), 255, np.uint8), 0.9, np.random.default_rng(1)).max() == 255


def test_patches_come_from_the_image_and_cover_what_was_asked_for():
    # Every pixel of this image is unique.
    image = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3).astype(np.uint8)
    image[..., 0], image[..., 1] = np.mgrid[:64, :64]
    augmentation = Augmentation(most_patches=2, least_patch=0.2, greatest_patch=0.25)
    changed_shares = []
    for seed in range(20):
        mixed = mix_patches(image, augmentation, np.random.default_rng(seed))
        # A pixel names its source by its red and green; its blue must be that of the source.
        np.testing.assert_array_equal(mixed[..., 2], image[mixed[..., 0], mixed[..., 1], 2])
        changed = (mixed != image).any(axis=-1)
        changed_shares.append(changed.mean())
        np.testing.assert_array_equal(mixed, mix_patches(image, augmentation, np.random.default_rng(seed)))
    assert min(changed_shares) > 0.03
    assert max(changed_shares) <= 2 * 0.25**2 + 1e-9


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 3), (64, 64, 3)])
def test_patches_stay_inside_images_of_any_size(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    whole = Augmentation(least_patch=0.0, greatest_patch=0.9, most_patches=9)
    for seed in range(10):
        assert mix_patches(image, whole, np.random.default_rng(seed)).shape == shape
    none = Augmentation(most_patches=0)
    np.testing.assert_array_equal(mix_patches(image, none, np.random.default_rng(0)), image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation_probability": 1.1}, "rotation_probability must be between 0 and 1, got 1.1"),
        ({"rotation_deg": -3}, "rotation_deg must be between 0 and 180"),
        ({"hue": float("nan")}, "hue must be between 0 and 0.5"),
        ({"least_patch": 0.5}, "least_patch 0.5 is above greatest_patch 0.25"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**options)
