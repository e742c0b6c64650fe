"""Initial estimates belong to their sample's seed, err as regressors do, and keep what they should."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import roma
import tiny_store
import torch
from torch.utils.data import default_collate

from bodies import BodyModel, BodyParameters, InputError, PinholeCamera, load_body_model
from datamodules.crops import ImageCamera
from datamodules.initial import InitialDraw, NoiseScale, add_noise, choose_initial, draw_initial, usable_rows
from datamodules.initial_errors import initial_error_summary
from datamodules.poses import sample_poses
from datamodules.sample import (
    INITIAL_KINDS,
    BodyFields,
    BodySample,
    CameraFields,
    InitialSample,
    SurfaceSample,
)
from datamodules.seeded_noise import standard_normal, uniform
from datamodules.store import EstimateStore, FrameWriter

NO_NOISE = NoiseScale(0, 0, 0, 0, 0, 0, 0)
SIZE_PX = (1280, 960)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body_model("standin-tiny")


def persons(count: int) -> BodyParameters:
    """Upright people in postures of the sampler, at 4 m and more, seen from all sides."""
    rng, poses = np.random.default_rng(0), sample_poses(count, seed=0)
    facing = rng.uniform(0, 2 * np.pi, count)
    axis = np.stack([0 * facing, facing, 0 * facing], axis=1).astype(np.float32)
    # SMPL's y is up and the camera's is down.
    upright = roma.rotvec_to_rotmat(torch.tensor([torch.pi, 0, 0]))
    root = (
        upright
        @ roma.rotvec_to_rotmat(torch.from_numpy(axis))
        @ roma.rotvec_to_rotmat(torch.from_numpy(poses.root_orientation))
    )
    joints = roma.rotvec_to_rotmat(torch.from_numpy(poses.body_pose).view(count, 23, 3))
    transl = np.stack([*rng.normal(scale=0.4, size=(2, count)), rng.uniform(4, 8, count)], axis=1)
    betas = torch.from_numpy(rng.normal(size=(count, 10)))
    return BodyParameters(torch.cat([root[:, None], joints], dim=1), betas.float(), torch.from_numpy(transl).float())


def cameras(count: int) -> PinholeCamera:
    return PinholeCamera.from_image_size(torch.tensor([SIZE_PX]).float().expand(count, 2))


def reference_uniform(seed: int, number: int, stream: int) -> float:
    """The same hash in Python's own integers."""

    def mix(value: int) -> int:
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((seed + (stream + 1) * golden) % 2**64)
    return ((mix((key + (number + 1) * golden) % 2**64) >> 11) + 0.5) / 2**53


def test_seeded_numbers_are_those_of_splitmix():
    seeds = [0, 1, 2**63 - 1, 123_456_789_012_345]
    drawn = uniform(torch.tensor(seeds), 5, stream=3)
    expected = [[reference_uniform(seed, number, 3) for number in range(5)] for seed in seeds]
    # The same float64 operations on the same bits.
    torch.testing.assert_close(drawn, torch.tensor(expected, dtype=torch.float64), atol=0, rtol=0)


def test_seeded_normals_are_normal_and_uncorrelated():
    drawn = torch.cat([standard_normal(torch.arange(20_000), 3, stream) for stream in (0, 1)], dim=1)
    # Standard errors with 20,000 samples: 0.007 for a mean and a correlation, 0.005 for a deviation. Five of them.
    assert drawn.mean(dim=0).abs().max() < 0.036
    assert (drawn.std(dim=0) - 1).abs().max() < 0.025
    assert (torch.corrcoef(drawn.T) - torch.eye(6)).abs().max() < 0.036
    # 0.27 % lie beyond three deviations: of 120,000, 324, with a deviation of 18.
    assert abs(int((drawn.abs() > 3).sum()) - 324) < 90


def test_noise_belongs_to_the_seed_alone(body):
    truth, camera, seed = persons(6), cameras(6), torch.tensor([5, 9, 2, 5, 7, 8])
    noisy, focal_px = add_noise(truth, camera.focal_px, seed, NoiseScale(), body)
    alone, alone_focal_px = add_noise(truth[2:3], camera.focal_px[2:3], seed[2:3], NoiseScale(), body)
    # Batched products may be summed in another order: a few float32 roundings.
    torch.testing.assert_close(alone.rotations[0], noisy.rotations[2], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.transl[0], noisy.transl[2], atol=1e-5, rtol=0)
    torch.testing.assert_close(alone_focal_px[0], focal_px[2])
    assert not torch.equal(noisy.betas[0] - truth.betas[0], noisy.betas[1] - truth.betas[1])
    torch.testing.assert_close(noisy.betas[0] - truth.betas[0], noisy.betas[3] - truth.betas[3], atol=1e-6, rtol=0)


def test_no_noise_is_the_truth(body):
    truth, camera = persons(3), cameras(3)
    same, focal_px = add_noise(truth, camera.focal_px, torch.arange(3), NO_NOISE, body)
    torch.testing.assert_close(same.rotations, truth.rotations, atol=1e-6, rtol=0)
    torch.testing.assert_close(same.transl, truth.transl, atol=1e-6, rtol=0)
    torch.testing.assert_close(focal_px, camera.focal_px)


def test_a_wrong_focal_length_leaves_place_and_size_in_the_image(body):
    truth, camera = persons(16), cameras(16)
    scale = dataclasses.replace(NO_NOISE, focal=0.2)
    noisy, focal_px = add_noise(truth, camera.focal_px, torch.arange(16), scale, body)
    assert ((focal_px / camera.focal_px).log().abs() > 0.02).any()
    true_pelvis, pelvis = body(truth).joints[:, :1], body(noisy).joints[:, :1]
    at_px = PinholeCamera(focal_px, camera.center_px, camera.size_px).project(pelvis)
    # Float32 at 1,000 px.
    torch.testing.assert_close(at_px, camera.project(true_pelvis), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        focal_px[:, 0] / pelvis[:, 0, 2], camera.focal_px[:, 0] / true_pelvis[:, 0, 2], atol=0, rtol=1e-5
    )


def test_wrong_depth_and_shape_leave_the_pelvis_on_its_line_of_sight(body):
    truth, camera = persons(16), cameras(16)
    scale = dataclasses.replace(NO_NOISE, depth=0.1, betas=1.0)
    noisy, _ = add_noise(truth, camera.focal_px, torch.arange(16), scale, body)
    true_pelvis, pelvis = body(truth).joints[:, :1], body(noisy).joints[:, :1]
    torch.testing.assert_close(camera.project(pelvis), camera.project(true_pelvis), atol=2e-3, rtol=0)
    assert ((pelvis - true_pelvis)[:, 0, 2].abs() > 0.1).any()


def test_the_default_noise_errs_like_pare_on_3dpw(tmp_path, body):
    count, path = 256, tmp_path / "frames.h5"
    truth, camera = persons(count), cameras(count)
    position_px = camera.project(body(truth).vertices)
    side_px = (position_px.amax(dim=1) - position_px.amin(dim=1)).amax(dim=1) * 1.1
    with FrameWriter(path, dataset="tiny", split="train", body_model=body.name) as writer:
        image = writer.add_image(tiny_store.stored_image(0))
        for i in range(count):
            values = {"pose": truth.pose[i], "betas": truth.betas[i], "transl": truth.transl[i]}
            values |= {"focal_px": camera.focal_px[i], "center_px": camera.center_px[i]}
            values |= {"box_px": torch.tensor([SIZE_PX[0] / 2, SIZE_PX[1] / 2, float(side_px[i])])}
            arrays = {name: value.numpy() for name, value in values.items()}
            writer.add_row(tiny_store.frame_row(i, image, gender="neutral", **arrays))
    (errors,) = initial_error_summary(tiny_store.FrameStore(path), body, NoiseScale(), most_rows=count)
    assert errors.rows == count
    assert errors.source == "noise"
    # PARE: 74.5, 46.6 and 88.6 mm.
    assert 75 < errors.mpjpe_mm < 95
    assert 42 < errors.pa_mpjpe_mm < 56
    assert 88 < errors.pve_mm < 110
    assert 2 < errors.displacement_percent < 8
    assert "MPJPE" in str(errors)


def test_the_summary_knows_perfect_estimates_of_some_rows(tmp_path, body):
    frames = tiny_store.write_frames(tmp_path / "frames.h5")
    exact = tmp_path / "exact.h5"
    with tiny_store.EstimateWriter(exact, frames, "exact", 1) as writer:
        for index in range(3):
            row = frames.read(index)
            # The camera of the tiny rows has two focal lengths and estimates have one.
            writer.add(row.row, row.pose[None], row.betas[None], row.transl[None], float(row.camera.focal_px[0]))
    noise, errors = initial_error_summary(frames, body, NoiseScale(), [EstimateStore(exact, frames)])
    assert (noise.source, noise.rows, errors.source, errors.rows) == ("noise", 6, "exact", 3)
    # 0.01 mm: float32 at a few metres.
    assert max(errors.mpjpe_mm, errors.pa_mpjpe_mm, errors.pve_mm) < 0.01


def collated(kinds: list[str], truth: BodyParameters, given: BodyParameters, given_focal_px: float) -> BodySample:
    samples = []
    for number, kind in enumerate(kinds):
        camera = ImageCamera(*(np.array(a, np.float32) for a in ((900, 910), (640, 470), SIZE_PX)))
        code = torch.tensor(number)
        initial = InitialSample(
            torch.tensor(INITIAL_KINDS.index(kind)),
            torch.tensor(0),
            BodyFields(given.rotations[number], given.betas[number], given.transl[number]),
            torch.tensor(given_focal_px),
        )
        samples.append(
            BodySample(
                image=torch.zeros(3, 8, 8, dtype=torch.uint8),
                camera=CameraFields.of(camera),
                crop_camera=CameraFields.of(camera.crop(np.array([600.0, 500.0]), 300.0, 8)),
                box_px=torch.tensor([600.0, 500.0, 300.0]),
                body=BodyFields(truth.rotations[number], truth.betas[number], truth.transl[number]),
                has_body=torch.tensor(True),
                gender=code,
                initial=initial,
                detected_keypoints_px=torch.zeros(25, 3),
                true_keypoints_px=torch.zeros(25, 3),
                joints_m=torch.zeros(17, 4),
                surface=SurfaceSample(
                    torch.zeros(0, 2),
                    torch.zeros(0, dtype=torch.int64),
                    torch.zeros(0, 3),
                    torch.zeros(0),
                    torch.tensor(False),
                ),
                texture=torch.zeros(7, 4, dtype=torch.uint8),
                dataset=code,
                sequence=code,
                row=code,
                seed=code + 40,
            )
        )
    return default_collate(samples)


def test_each_kind_of_initial_estimate_is_what_it_says(body):
    truth, given = persons(3), persons(6)[3:]
    batch = collated(["noise", "estimate", "true_pose"], truth, given, 700.0)
    initial = draw_initial(batch, NoiseScale(), body)
    noisy, focal_px = add_noise(truth, batch.camera.focal_px, batch.seed, NoiseScale(), body)
    torch.testing.assert_close(initial.parameters.transl[0], noisy.transl[0])
    torch.testing.assert_close(initial.camera.focal_px[0], focal_px[0])
    torch.testing.assert_close(initial.parameters[1:].betas, given[1:].betas)
    torch.testing.assert_close(initial.parameters[1:].transl, given[1:].transl)
    torch.testing.assert_close(initial.camera.focal_px[1:], torch.full((2, 2), 700.0))
    torch.testing.assert_close(initial.parameters.rotations[1], given.rotations[1])
    torch.testing.assert_close(initial.parameters.rotations[2], truth.rotations[2])


def test_the_crop_camera_of_an_initial_estimate_is_its_camera_cropped(body):
    batch = collated(["noise", "estimate"], persons(2), persons(4)[2:], 700.0)
    initial = draw_initial(batch, NoiseScale(), body)
    points = body(initial.parameters).joints
    full_px, crop_px = initial.camera.project(points), initial.crop_camera.project(points)
    torch.testing.assert_close(crop_px, (full_px - torch.tensor([450.0, 350.0])) * (8 / 300), atol=1e-3, rtol=0)


def test_the_initial_pelvis_follows_a_true_body_of_another_model(body):
    batch = collated(["noise"], persons(1), persons(1), 700.0)
    elsewhere = torch.tensor([[0.3, -0.2, 5.0]])
    initial = draw_initial(batch, NO_NOISE, body, elsewhere)
    torch.testing.assert_close(body(initial.parameters).joints[:, 0], elsewhere, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, EstimateStore]:
    folder: Path = tmp_path_factory.mktemp("stores")
    frames = tiny_store.write_frames(folder / "frames.h5")
    paths = {}
    for name, rows, samples in (("pare", [0, 1, 2], 1), ("prohmr", [1, 2, 3], 4)):
        paths[name] = folder / f"{name}.h5"
        with tiny_store.EstimateWriter(paths[name], frames, name, samples) as writer:
            for row in rows:
                writer.add(row, **tiny_store.estimate(row, samples))
    return {name: EstimateStore(path, frames) for name, path in paths.items()}


DRAWS = (
    InitialDraw("noise", weight=1),
    InitialDraw("estimate", "pare", weight=2),
    InitialDraw("estimate", "prohmr", weight=3),
    InitialDraw("true_pose", "pare", weight=4),
    InitialDraw("estimate", "hmr_plus", weight=90),
)


def shares(stores: dict[str, EstimateStore], row: int, count: int = 4000) -> list[float]:
    rng = np.random.default_rng(0)
    chosen = [choose_initial(DRAWS, stores, row, rng)[0] for _ in range(count)]
    return [chosen.count(draw) / count for draw in DRAWS]


def test_ways_are_taken_by_probability_among_what_there_is(stores):
    # hmr_plus has no file; the standard error of a share is below 0.008.
    assert shares(stores, row=1) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0], abs=0.03)


def test_a_missing_estimate_gives_its_turn_to_the_next_way(stores):
    assert shares(stores, row=0) == pytest.approx([0.1, 0.2, 0, 0.7, 0], abs=0.03)
    assert shares(stores, row=3) == pytest.approx([0.5, 0, 0.5, 0, 0], abs=0.03)
    assert shares(stores, row=5) == [1, 0, 0, 0, 0]


def test_one_of_the_samples_is_drawn_unless_it_is_fixed(stores):
    rng, prohmr = np.random.default_rng(0), stores["prohmr"]
    drawn = [choose_initial((InitialDraw("estimate", "prohmr"),), stores, 2, rng)[1] for _ in range(60)]
    poses = {estimate.pose.tobytes() for estimate in drawn}
    assert poses == {prohmr.read(2, sample).pose.tobytes() for sample in range(4)}
    fixed = InitialDraw("estimate", "prohmr", sample=3)
    estimate = choose_initial((fixed,), stores, 2, rng)[1]
    np.testing.assert_array_equal(estimate.pose, prohmr.read(2, 3).pose)


def test_rows_that_no_way_is_open_to_are_known(stores, tmp_path):
    frames = tiny_store.write_frames(tmp_path / "frames.h5")
    assert usable_rows(DRAWS, stores, frames).all()
    assert usable_rows(DRAWS[1:3], stores, frames).tolist() == [True, True, True, True, False, False]
    assert not usable_rows(DRAWS[4:], stores, frames).any()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (NoiseScale, {"root_deg": -1}, "root_deg must be 0 or more"),
        (NoiseScale, {"focal": float("nan")}, "focal must be 0 or more"),
        (NoiseScale, {"least_severity": 2}, "least_severity 2 is above"),
        (InitialDraw, {"kind": "noise", "weight": 0}, "weight must be positive"),
        (InitialDraw, {"kind": "noise", "regressor": "pare"}, "names no regressor"),
        (InitialDraw, {"kind": "true_pose"}, "needs the name of a regressor"),
    ],
)
def test_settings_without_sense_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        kind(**options)
