"""`snugfit data info` on estimates: errors against the true bodies, held against numbers found in numpy."""

import re
from pathlib import Path

import body_oracle
import numpy as np
import pytest
import tiny
import tiny_import as ti
from tiny_store import frame_row, stored_image, write_frames

from bodies.joints import LSP14_FROM_H36M17
from commands._data_errors import load_measure, measure_errors
from commands._data_info import info_table
from datamodules.store import EstimateStore, EstimateWriter, FrameStore, FrameWriter
from main import EXIT_USAGE, main

TRUE = ti.truth(4)
WORDS = ["data", "info"]


@pytest.fixture
def frames(tmp_path):
    return ti.write_frames(tmp_path / "frames.h5", TRUE)


def write_estimates(path: Path, frames: FrameStore, name: str, pose: np.ndarray, rows: list[int], **changes) -> None:
    """Estimates (rows, samples, 72) with the true shape and place."""
    samples = pose.shape[1]
    with EstimateWriter(path, frames, name, samples) as writer:
        for row in rows:
            betas, transl = (np.repeat(part[row][None], samples, axis=0) for part in (TRUE.betas, TRUE.transl))
            values = {"betas": betas, "transl": transl, "focal_px": ti.FOCAL_PX, **changes}
            writer.add(row, pose[row].astype(np.float32), **values)


def turned(scale: float, samples: int = 1, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=scale, size=(ti.ROWS, samples, 72))
    return TRUE.pose[:, None] + noise


def expected_mm(pose: np.ndarray, betas: np.ndarray = TRUE.betas) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MPJPE, PA-MPJPE and PVE of poses (rows, 72), by the H36M regressor and Kabsch's algorithm."""
    regressor = ti.body().keypoint_regressor("h36m17").numpy()[:, : ti.body().num_vertices]
    errors = []
    for row in range(ti.ROWS):
        meshes = [
            ti.vertices(p[row][None], b[row][None], np.zeros((1, 3)))[0].astype(float)
            for p, b in ((pose, betas), (TRUE.pose, TRUE.betas))
        ]
        joints = [regressor @ mesh for mesh in meshes]
        points = [joint[list(LSP14_FROM_H36M17)] - joint[0] for joint in joints]
        mesh, true_mesh = (mesh - joint[0] for mesh, joint in zip(meshes, joints, strict=True))
        centred = [point - point.mean(axis=0) for point in points]
        left, scale, right = np.linalg.svd(centred[0].T @ centred[1])
        signs = np.diag([1, 1, np.sign(np.linalg.det(left @ right))])
        factor = np.trace(np.diag(scale) @ signs) / (centred[0] ** 2).sum()
        aligned = factor * centred[0] @ left @ signs @ right
        pairs = (points, (aligned, centred[1]), (mesh, true_mesh))
        errors.append([1000 * np.linalg.norm(a - b, axis=1).mean() for a, b in pairs])
    return tuple(np.array(errors).T)


def printed(capsys, *words: str) -> str:
    assert main([*WORDS, *words]) == 0
    return capsys.readouterr().out


def cells(out: str, name: str) -> list[str]:
    """The cells of a row of a printed table: between bars, or two spaces apart."""
    rows = [re.split(r"│" if "│" in line else r"  +", line.strip("│ ")) for line in out.splitlines()]
    return next([cell.strip() for cell in row] for row in rows if row[0].strip() == name)


def test_errors_of_a_regressor(tmp_path, frames, capsys):
    pose = turned(0.2)
    write_estimates(tmp_path / "pare.h5", frames, "pare", pose, [0, 1, 2, 4, 6])
    out = printed(capsys, str(frames.path), "--estimates", str(tmp_path / "pare.h5"))
    kept = [0, 1, 2, 4, 6]
    shown = [f"{np.mean(e[kept]):.1f} / {np.median(e[kept]):.1f}" for e in expected_mm(pose[:, 0])]
    assert cells(out, "pare") == ["pare", "5", "2", *shown]
    assert cells(out, "missing rows")[1] == "2"
    assert "at lsp14" in out
    assert "frames.h5: tiny, test" in out


def test_the_mode_and_the_best_of_the_samples(tmp_path, frames, capsys):
    """Sample 0 is the mode; each row's best sample may be another one for joints and for vertices."""
    pose = turned(0.2, samples=4)
    pose[3, 2] = TRUE.pose[3]
    write_estimates(tmp_path / "prohmr.h5", frames, "prohmr", pose, list(range(ti.ROWS)))
    by_sample = np.array([expected_mm(pose[:, sample]) for sample in range(4)])
    store = EstimateStore(tmp_path / "prohmr.h5", frames)
    errors = measure_errors(frames, store, np.arange(ti.ROWS), load_measure(frames, None))
    np.testing.assert_allclose(np.stack(errors), by_sample.transpose(1, 2, 0), atol=1e-3)
    out = printed(capsys, str(tmp_path / "prohmr.h5"))
    for name, values in (("prohmr, mode", by_sample[0]), ("best of 4", by_sample.min(axis=0))):
        shown = [f"{np.mean(value):.1f} / {np.median(value):.1f}" for value in values]
        assert cells(out, name)[1:] == ["7", "0", *shown]
    assert by_sample.min(axis=0)[0, 3] < 1e-3


def test_several_regressors_and_none_of_a_row(tmp_path, frames, capsys):
    perfect = TRUE.pose[:, None]
    write_estimates(tmp_path / "a.h5", frames, "perfect", perfect, [3], transl=np.full((1, 3), 5, np.float32))
    write_estimates(tmp_path / "b.h5", frames, "prohmr", turned(0.3, 2), [0, 5])
    out = printed(capsys, str(frames.path), "--estimates", str(tmp_path / "a.h5"), str(tmp_path / "b.h5"))
    # Where the body is does not count.
    assert cells(out, "perfect") == ["perfect", "1", "6", "0.0 / 0.0", "0.0 / 0.0", "0.0 / 0.0"]
    assert cells(out, "best of 2")[1:3] == ["2", "5"]


def test_no_more_rows_than_asked_for(tmp_path, frames, capsys):
    write_estimates(tmp_path / "pare.h5", frames, "pare", turned(0.2), list(range(ti.ROWS)))
    assert cells(printed(capsys, str(tmp_path / "pare.h5"), "--measured", "3"), "pare")[1] == "3"


def test_true_bodies_are_those_of_their_gender(tmp_path):
    """The estimate of a male body by the same numbers is off by what the two bodies differ."""
    body_oracle.write_models(tmp_path / "smpl")
    neutral = tiny.model_arrays(60, seed=13)
    tiny.write_pkl(tmp_path / "smpl" / "SMPL_NEUTRAL.pkl", neutral)
    pose, betas = TRUE.pose[0], TRUE.betas[0]
    with FrameWriter(tmp_path / "frames.h5", "tiny", "test", str(tmp_path / "smpl")) as writer:
        image = writer.add_image(stored_image(0))
        for number, gender in enumerate(("male", "female", "male")):
            writer.add_row(frame_row(number, image, gender=gender, pose=pose, betas=betas))
    frames = FrameStore(tmp_path / "frames.h5")
    with EstimateWriter(tmp_path / "pare.h5", frames, "pare") as writer:
        for row in range(3):
            writer.add(row, pose[None], betas[None], np.array([[0, 0, 4]], np.float32), 500.0)
    estimate, joints = body_oracle.posed(neutral, pose, betas, np.zeros(3))
    measure = load_measure(frames, None)
    assert measure.protocol == "smpl24"
    errors = measure_errors(frames, EstimateStore(tmp_path / "pare.h5", frames), np.arange(3), measure)
    for row, gender in enumerate(("male", "female", "male")):
        vertices, true_joints = body_oracle.posed(body_oracle.model(gender), pose, betas, np.zeros(3))
        pelvis, true_pelvis = joints[1:3].mean(axis=0), true_joints[1:3].mean(axis=0)
        expected = [
            1000 * np.linalg.norm((a - pelvis) - (b - true_pelvis), axis=1).mean()
            for a, b in ((joints, true_joints), (estimate, vertices))
        ]
        np.testing.assert_allclose([errors.mpjpe[row, 0], errors.pve[row, 0]], expected, atol=1e-2)
    assert errors.mpjpe[0, 0] != pytest.approx(errors.mpjpe[1, 0], abs=1)


def test_without_the_body_model_the_rest_is_told(tmp_path, capsys):
    with FrameWriter(tmp_path / "frames.h5", "tiny", "test", str(tmp_path / "smpl")) as writer:
        image = writer.add_image(stored_image(0))
        for number in range(ti.ROWS):
            writer.add_row(frame_row(number, image, gender="neutral"))
    frames = FrameStore(tmp_path / "frames.h5")
    write_estimates(tmp_path / "pare.h5", frames, "pare", turned(0.2), [0, 1])
    out = printed(capsys, str(tmp_path / "pare.h5"))
    assert "errors are not measured" in out
    assert cells(out, "missing rows")[1] == "5"
    assert cells(printed(capsys, str(tmp_path / "pare.h5"), "--body", "standin-tiny"), "pare")[1] == "2"
    assert main([*WORDS, str(tmp_path / "pare.h5"), "--body", str(tmp_path / "none.pkl")]) == EXIT_USAGE
    assert "no such body model" in capsys.readouterr().err


def test_what_a_frames_file_lacks_is_named(tmp_path, frames, capsys):
    lacking = cells(printed(capsys, str(frames.path)), "missing")[1]
    # The console may break the line.
    assert lacking.startswith("true keypoints, detected keypoints, measured joints,")
    whole = write_frames(tmp_path / "whole.h5")
    columns = info_table(whole).columns
    facts = dict(zip(columns[0].cells, columns[1].cells, strict=True))
    assert facts["missing"] == "nothing"
    assert facts["surface points"] == "in 4 rows, 7 on average"
    assert "rows without a true body" not in facts


def test_the_frames_of_an_estimates_file_are_beside_it_or_given(tmp_path, frames, capsys):
    (tmp_path / "elsewhere").mkdir()
    write_estimates(tmp_path / "elsewhere" / "pare.h5", frames, "pare", turned(0.2), [0])
    path = str(tmp_path / "elsewhere" / "pare.h5")
    assert cells(printed(capsys, path, "--frames", str(frames.path)), "pare")[1] == "1"
    other = ti.write_frames(tmp_path / "elsewhere" / "other.h5", TRUE)
    assert other.fingerprint == frames.fingerprint
    whole = write_frames(tmp_path / "whole.h5")
    for words, cause in (
        ([path], "its frames file frames.h5 is not beside it; give --frames"),
        ([path, "--frames", str(whole.path)], "its estimates are not for the rows of"),
        ([str(frames.path), "--frames", str(frames.path)], "this is a frames file itself"),
        ([str(frames.path), "--estimates", str(whole.path)], "it holds frames, expected was a file of estimates"),
        ([str(tmp_path / "none.h5")], "none.h5: there is no such file"),
        ([path, "--frames", path], "it holds estimates, expected was a file of frames"),
        ([str(frames.path), "--measured", "0"], "measured 0"),
    ):
        assert main([*WORDS, *words]) == EXIT_USAGE
        error = capsys.readouterr().err.strip()
        assert cause in error
        assert "\n" not in error


def test_a_file_that_is_no_store_is_named(tmp_path, capsys):
    (tmp_path / "a.h5").write_bytes(b"no")
    assert main([*WORDS, str(tmp_path / "a.h5")]) == EXIT_USAGE
    assert "a.h5: not a whole HDF5 file" in capsys.readouterr().err


def test_rows_without_a_body_are_compared_at_their_measured_joints(tmp_path):
    """Human3.6M's test set: joints of the motion capture, and a pose that is all zero."""
    regressor = ti.body().keypoint_regressor("h36m17").numpy()[:, : ti.body().num_vertices]
    pose = turned(0.2)[:, 0]
    joints = regressor @ ti.vertices(TRUE.pose, TRUE.betas, TRUE.transl)
    with FrameWriter(tmp_path / "frames.h5", "h36m", "test", "standin-tiny") as writer:
        image = writer.add_image(stored_image(0))
        for row in range(ti.ROWS):
            measured = np.concatenate([joints[row], np.ones((17, 1))], axis=1).astype(np.float32)
            nothing = {"pose": np.zeros(72, np.float32), "betas": np.zeros(10, np.float32)}
            writer.add_row(frame_row(row, image, gender="neutral", joints_m=measured, **nothing))
    frames = FrameStore(tmp_path / "frames.h5")
    write_estimates(tmp_path / "pare.h5", frames, "pare", pose[:, None], list(range(ti.ROWS)))
    store = EstimateStore(tmp_path / "pare.h5", frames)
    errors = measure_errors(frames, store, np.arange(ti.ROWS), load_measure(frames, None))
    expected = expected_mm(pose)
    np.testing.assert_allclose(errors.mpjpe[:, 0], expected[0], atol=1e-2)
    np.testing.assert_allclose(errors.pa_mpjpe[:, 0], expected[1], atol=1e-2)
    assert np.isnan(errors.pve).all()
    columns = info_table(frames).columns
    facts = dict(zip(columns[0].cells, columns[1].cells, strict=True))
    assert facts["rows without a true body"] == f"{ti.ROWS}, with measured joints alone"
