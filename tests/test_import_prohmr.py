"""ProHMR's samples: sample 0 is the mode, six numbers go column after column."""

import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest
import tiny_import as ti
from scipy.spatial.transform import Rotation

from bodies import InputError
from datamodules import store_writer
from datamodules.convert import importing, mapped_npz
from datamodules.convert.prohmr import read_prohmr
from datamodules.convert.rotations import matrices_from_6d
from datamodules.store import EstimateStore, FrameRow, FrameStore, FrameWriter, StoredImage

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


@pytest.mark.parametrize(("save", "six_numbers"), [(np.savez, False), (np.savez_compressed, True)])
def test_memory_does_not_grow_with_the_dump(tmp_path, monkeypatch, save, six_numbers):
    """Of the rotations in the file, 64 samples of each row, no more than a block is in memory."""
    rows, samples = 200, 64
    frames, repeated = many_rows(tmp_path, rows), np.arange(rows) % ti.ROWS
    arrays = {name: dump()[name][repeated] for name in ("center", "scale")}
    for name in ("rotmats", "betas", "pred_cam"):  # all samples are the mode
        arrays[name] = np.repeat(dump()[name][repeated, :1], samples, axis=1)
    if six_numbers:
        arrays["pose_6d"] = six(arrays.pop("rotmats"), "columns").reshape(rows, samples, 144)
    save(tmp_path / "prohmr.npz", imgname=np.array(frames.image_names), **arrays)
    large = arrays["pose_6d" if six_numbers else "rotmats"].nbytes
    monkeypatch.setattr(mapped_npz, "MAPPED_BYTES", 1024)
    monkeypatch.setattr(importing, "_BLOCK_BODIES", 512)
    monkeypatch.setattr(store_writer, "COPY_BYTES", 1 << 17)
    monkeypatch.setattr(importing, "COMPARED_ROWS", 20)
    del arrays
    body = ti.body()
    tracemalloc.start()
    predictions = read_prohmr(tmp_path / "prohmr.npz")
    report = importing.import_predictions(tmp_path, predictions, frames, tmp_path / "out.h5", "prohmr", body=body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (report.rows, report.samples) == (rows, samples)
    assert peak < large / 2
    store = EstimateStore(tmp_path / "out.h5", frames)
    assert store.valid.all()
    for row in (0, 99, rows - 1):
        turned = Rotation.from_rotvec(store.read(row, samples - 1).pose.reshape(-1, 3)).as_matrix()
        np.testing.assert_allclose(turned, TRUE.rotations[row % ti.ROWS], atol=1e-4)


def many_rows(tmp_path, rows: int) -> FrameStore:
    """The people of the truth again and again, each in an image of their own."""
    names = [f"walk/{row:05d}.jpg" for row in range(rows)]
    true = replace(TRUE, **{name: getattr(TRUE, name)[np.arange(rows) % ti.ROWS] for name in TRUE.__dataclass_fields__})
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with FrameWriter(tmp_path / "many.h5", "tiny", "test", "standin-tiny") as writer:
        images = writer.add_images([StoredImage(name, jpeg, (ti.WIDTH, ti.HEIGHT)) for name in names])
        where = {"focal_px": np.full(2, ti.FOCAL_PX, np.float32), "center_px": ti.CENTER_PX.astype(np.float32)}
        writer.add_rows(
            [
                FrameRow(
                    f"row/{row}", images[row], "someone", "walk", row, "neutral", **where,
                    **{name: getattr(true, name)[row] for name in ("box_px", "pose", "betas", "transl")},
                )
                for row in range(rows)
            ]
        )  # fmt: skip
    return FrameStore(tmp_path / "many.h5")


def test_rows_that_cannot_be_used_are_listed_from_all_blocks(tmp_path, frames, monkeypatch):
    monkeypatch.setattr(importing, "_BLOCK_BODIES", 2 * SAMPLES)
    arrays = dump()
    arrays["rotmats"][[0, 5], 1, 3] *= 1.5
    arrays["pred_cam"][2, 0, 0] = np.nan
    report = run(tmp_path, frames, arrays)
    reason = "its pose is not finite or holds matrices that are no rotations"
    expected = {0: reason, 2: "its camera is not finite", 5: reason}
    assert report.skipped == tuple(f"{frames.row_id(row)}: {text}" for row, text in expected.items())
    assert report.rows == ti.ROWS - 3
    assert EstimateStore(tmp_path / "out.h5", frames).valid.tolist() == [row not in expected for row in range(ti.ROWS)]
    arrays["rotmats"] *= 1.5
    with pytest.raises(InputError, match=rf"dump: no prediction can be used, the first because {reason}"):
        run(tmp_path, frames, arrays)
