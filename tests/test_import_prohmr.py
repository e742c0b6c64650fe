"""ProHMR's samples: sample 0 is the mode, six numbers go column after column."""

import numpy as np
import pytest
import tiny_import as ti

from bodies import InputError
from datamodules.convert.prohmr import read_prohmr
from datamodules.convert.rotations import matrices_from_6d
from datamodules.store import EstimateStore

TRUE = ti.truth(5)
SAMPLES = 4


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return ti.write_frames(tmp_path_factory.mktemp("frames") / "frames.h5", TRUE)


def dump() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rotations = np.stack([TRUE.rotations] * SAMPLES, axis=1)
    rotations[:, 1:] = rotations[:, 1:] @ rotations[:, :1]  # any other rotations
    return {
        "imgname": TRUE.names,
        "center": TRUE.box_px[:, :2],
        "scale": TRUE.box_px[:, 2],
        "rotmats": rotations.astype(np.float32),
        "betas": np.stack([TRUE.betas] * SAMPLES, axis=1),
        "pred_cam": np.stack([TRUE.crop_camera()] * SAMPLES, axis=1),
        "log_prob": np.concatenate([np.full((ti.ROWS, 1), 300.0), rng.uniform(100, 200, (ti.ROWS, SAMPLES - 1))], 1),
    }


def six(rotations: np.ndarray, order: str) -> np.ndarray:
    """By hand: columns one after the other, or interleaved."""
    first, second = rotations[..., 0], rotations[..., 1]
    if order == "columns":
        return np.concatenate([first, second], axis=-1)
    return np.stack([first[..., 0], second[..., 0], first[..., 1], second[..., 1], first[..., 2], second[..., 2]], -1)


def run(tmp_path, frames, arrays):
    np.savez(tmp_path / "prohmr.npz", **{name: value for name, value in arrays.items() if value is not None})
    return ti.run_import(tmp_path, read_prohmr(tmp_path / "prohmr.npz"), frames)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"betas": TRUE.betas, "pred_cam": TRUE.crop_camera()},  # one head for all samples of an image
        {"scale": TRUE.box_px[:, 2] / 200},
        {"log_prob": None},
        # Not orthonormal: the raw output of the flow.
        {"rotmats": None, "pose_6d": 1.7 * six(dump()["rotmats"], "columns").reshape(ti.ROWS, SAMPLES, 144)},
    ],
)
def test_the_mode_and_the_samples_come_back(tmp_path, frames, changes):
    report = run(tmp_path, frames, dump() | changes)
    assert report.samples == SAMPLES
    ti.assert_is_truth(tmp_path, frames, TRUE)
    store = EstimateStore(tmp_path / "out.h5", frames)
    assert not np.allclose(store.read(0, 1).pose, store.read(0, 0).pose, atol=0.1)


def test_trap_the_two_orders_of_six_numbers():
    rotations = dump()["rotmats"].astype(np.float64)
    for order in ("columns", "interleaved"):
        assert np.allclose(matrices_from_6d(six(rotations, order), order), rotations, atol=1e-6)
    wrong = matrices_from_6d(six(rotations, "interleaved"), "columns")
    assert np.abs(wrong - rotations).max() > 0.5
    assert np.isnan(matrices_from_6d(np.zeros((1, 6)), "columns")).any()


def test_trap_six_numbers_in_the_other_order_are_absurd(tmp_path, frames):
    pose_6d = six(dump()["rotmats"], "interleaved").reshape(ti.ROWS, SAMPLES, 144)
    with pytest.raises(InputError, match="mean joint error"):
        run(tmp_path, frames, dump() | {"rotmats": None, "pose_6d": pose_6d})


def test_trap_sample_0_has_to_be_the_mode(tmp_path, frames):
    with pytest.raises(InputError, match="sample 0 is not the mode"):
        run(tmp_path, frames, dump() | {"log_prob": dump()["log_prob"][:, ::-1]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotmats": None}, "has no 'rotmats' \\(or pose_6d\\)"),
        ({"scale": None}, "has no 'center' and 'scale'"),
        (
            {"betas": dump()["betas"][:, :2]},
            "'betas' has shape \\(7, 2, 10\\), expected was \\(7, 10\\) or \\(7, 4, 10",
        ),
        ({"log_prob": np.zeros(3)}, "'log_prob' has shape"),
        ({"imgname": TRUE.names[:3]}, "'rotmats' has shape"),
    ],
)
def test_bad_dumps_are_named(tmp_path, frames, changes, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, frames, dump() | changes)
