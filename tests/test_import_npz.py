"""The documented .npz: a perfect regressor's results come back as the truth, and what can be misread is named."""

import numpy as np
import pytest
import tiny_import as ti

from bodies import InputError
from datamodules.convert.generic import read_generic
from datamodules.store import EstimateStore

TRUE = ti.truth()
FULL = {"imgname": TRUE.names, "pose": TRUE.pose, "betas": TRUE.betas, "transl": TRUE.transl}
PINHOLE = {"focal_px": ti.FOCAL_PX, "center_px": ti.CENTER_PX}
CROP = {
    "imgname": TRUE.names,
    "rotmats": TRUE.rotations,
    "betas": TRUE.betas,
    "pred_cam": TRUE.crop_camera(),
    "box_px": TRUE.box_px,
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return ti.write_frames(tmp_path_factory.mktemp("frames") / "frames.h5", TRUE)


def run(tmp_path, frames, arrays, **options):
    path = tmp_path / "some.npz"
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return ti.run_import(tmp_path, read_generic(path), frames, **options)


INTRINSICS = np.array([[ti.FOCAL_PX, 0, ti.CENTER_PX[0]], [0, ti.FOCAL_PX, ti.CENTER_PX[1]], [0, 0, 1]])
ROOT_BODY = {"global_orient": TRUE.pose[:, :3], "body_pose": TRUE.pose[:, 3:]}
ROOT_BODY_MATRICES = {"global_orient": TRUE.rotations[:, :1], "body_pose": TRUE.rotations[:, 1:]}


@pytest.mark.parametrize(
    "arrays",
    [
        FULL | PINHOLE,
        FULL | {"K": INTRINSICS},
        FULL | {"cam_int": np.stack([INTRINSICS] * ti.ROWS)},
        FULL | PINHOLE | {"pose": None, "rotations": TRUE.rotations},
        FULL | PINHOLE | {"pose": None, "poses": TRUE.pose.reshape(-1, 24, 3)},
        FULL | PINHOLE | {"pose": None, **ROOT_BODY},
        FULL | PINHOLE | {"pose": None, **ROOT_BODY_MATRICES},
        FULL
        | PINHOLE
        | {"transl": None, "global_t": TRUE.transl, "focal_px": None, "focal_l": [ti.FOCAL_PX] * ti.ROWS},
        CROP,
        CROP | {"box_px": None, "center": TRUE.box_px[:, :2], "scale": TRUE.box_px[:, 2]},
        CROP | {"box_px": None, "center": TRUE.box_px[:, :2], "scale": TRUE.box_px[:, 2] / 200},
    ],
)
def test_every_layout_gives_the_truth(tmp_path, frames, arrays):
    report = run(tmp_path, frames, arrays)
    assert (report.rows, report.samples) == (ti.ROWS, 1)
    assert report.agreement.error_mm < 0.1
    assert report.agreement.size_ratio == pytest.approx(1, abs=1e-4)
    ti.assert_is_truth(tmp_path, frames, TRUE)


def test_persons_of_an_image_are_told_apart_whatever_the_order(tmp_path, frames):
    order = np.random.default_rng(1).permutation(ti.ROWS)
    for arrays in (CROP, FULL | PINHOLE):
        shuffled = {n: v[order] if np.shape(v)[:1] == (ti.ROWS,) else v for n, v in arrays.items()}
        run(tmp_path, frames, shuffled)
        ti.assert_is_truth(tmp_path, frames, TRUE)


def test_row_ids_need_no_boxes(tmp_path, frames):
    order = np.arange(ti.ROWS)[::-1]
    arrays = {n: v[order] for n, v in FULL.items()} | {"imgname": None, "row_id": np.array(frames.row_ids)[order]}
    run(tmp_path, frames, arrays | PINHOLE)
    ti.assert_is_truth(tmp_path, frames, TRUE)


def test_samples_are_kept(tmp_path, frames):
    other = TRUE.pose + 0.1
    pose = np.stack([TRUE.pose, other], axis=1)
    report = run(tmp_path, frames, CROP | {"rotmats": None, "pose": pose})
    assert report.samples == 2
    ti.assert_is_truth(tmp_path, frames, TRUE)
    assert np.allclose(EstimateStore(tmp_path / "out.h5", frames).read(3, 1).pose, other[3])


def test_trap_depth_follows_the_focal_length_and_the_body_stays_in_its_box(tmp_path, frames):
    """Crop cameras say how large, not how far: the origin keeps its pixel whatever the focal length."""
    diagonal = np.hypot(ti.WIDTH, ti.HEIGHT)
    for focal, focal_px in (("diagonal", diagonal), (5000.0, 5000.0)):
        run(tmp_path, frames, CROP, focal=focal)
        store = EstimateStore(tmp_path / "out.h5", frames)
        for row in range(ti.ROWS):
            got = store.read(row)
            assert got.focal_px == pytest.approx(focal_px)
            assert got.transl[2] == pytest.approx(TRUE.transl[row, 2] * focal_px / ti.FOCAL_PX, rel=1e-4)
            # The crop's own pinhole camera, focal length 5000 on 224 pixels (SPIN, PARE, ProHMR, mmhuman3d).
            s, tx, ty = CROP["pred_cam"][row]
            crop_px = 112 + 5000 * np.array([tx, ty]) / (2 * 5000 / (224 * s))
            full_px = TRUE.box_px[row, :2] + (crop_px - 112) * TRUE.box_px[row, 2] / 224
            assert np.allclose(got.transl[:2] / got.transl[2] * focal_px + ti.CENTER_PX, full_px, atol=1e-2)


def test_trap_the_principal_point_was_the_middle_of_the_image(tmp_path, frames):
    """The translation is moved so that the body's origin keeps its pixel."""
    middle = np.array([ti.WIDTH, ti.HEIGHT]) / 2
    transl = TRUE.transl.copy()
    transl[:, :2] += (ti.CENTER_PX - middle) / ti.FOCAL_PX * transl[:, 2:]
    run(tmp_path, frames, FULL | {"transl": transl, "focal_px": ti.FOCAL_PX})
    ti.assert_is_truth(tmp_path, frames, TRUE)


@pytest.mark.parametrize("full", [True, False])
def test_trap_the_regressor_saw_a_resized_image(tmp_path, frames, full):
    half = {"image_size_px": [ti.WIDTH / 2, ti.HEIGHT / 2]}
    if full:
        half |= FULL | {"focal_px": ti.FOCAL_PX / 2, "center_px": ti.CENTER_PX / 2}
    else:
        half |= CROP | {"box_px": TRUE.box_px / 2}
    run(tmp_path, frames, half)
    ti.assert_is_truth(tmp_path, frames, TRUE)
    with pytest.raises(InputError, match="cropped or turned"):
        run(tmp_path, frames, half | {"image_size_px": [ti.WIDTH / 2, ti.HEIGHT]})


GL = np.array([1.0, -1.0, -1.0])


def _root_turned(turn):
    rotations = TRUE.rotations.copy()
    rotations[:, 0] = turn @ rotations[:, 0]
    return rotations


def _mirrored():
    """The whole body seen in a mirror, as when images were flipped and the poses not."""
    swap = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22]
    return TRUE.pose.reshape(-1, 24, 3)[:, swap].reshape(-1, 72) * np.tile([1, -1, -1], 24)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (CROP | {"rotmats": _root_turned(np.diag(GL))}, "the axes differ: .* about x"),
        (CROP | {"rotmats": _root_turned(np.diag([-1.0, -1.0, 1.0]))}, "the axes differ: .* about z"),
        (FULL | PINHOLE | {"transl": 1000 * TRUE.transl}, "the translations are in millimetres"),
        (FULL | PINHOLE | {"focal_px": 5 * ti.FOCAL_PX}, "made with a focal length of about 600 px"),
        (FULL | PINHOLE | {"focal_px": 5000 / 224 * ti.FOCAL_PX}, "made with a focal length of about 600 px"),
        (CROP | {"box_px": TRUE.box_px * [1, 1, 1 / 200]}, "divided by 200"),
        (CROP | {"box_px": TRUE.box_px + np.array([1500.0, 0, 0])}, "beside the persons"),
        (FULL | PINHOLE | {"pose": np.degrees(TRUE.pose)}, r"not in radians \(degrees\?\)"),
        (CROP | {"pred_cam": TRUE.transl * [1, 1, -1] - [9, 0, 0]}, "no positive scale"),
    ],
)
def test_trap_absurd_results_fail_with_the_cause(tmp_path, frames, arrays, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, frames, arrays)
    assert not (tmp_path / "out.h5").exists()
    assert not (tmp_path / "out.h5.partial").exists()


def test_trap_transposed_matrices_and_mirrored_poses_are_named(tmp_path, frames):
    """Neither need exceed 400 mm; then the file is written and the report says what looks wrong."""
    for changes, message in (
        ({"rotmats": np.swapaxes(TRUE.rotations, -1, -2)}, "transposed matrices"),
        ({"rotmats": None, "pose": _mirrored()}, "left and right are swapped"),
    ):
        try:
            hint = run(tmp_path, frames, CROP | changes).agreement.hint
        except InputError as error:
            hint = str(error)
        assert hint is not None
        assert message in hint


def test_left_over_rows_and_predictions_are_listed(tmp_path, frames):
    arrays = {name: value[:5] for name, value in CROP.items()}
    arrays["imgname"] = np.array([*TRUE.names[:4], "elsewhere/image_00002.jpg"])
    report = run(tmp_path, frames, arrays)
    assert report.unmatched_rows == frames.row_ids[4:]
    assert report.unmatched_predictions == ("elsewhere/image_00002.jpg: no image of this name",)
    ti.assert_is_truth(tmp_path, frames, TRUE, rows=[0, 1, 2, 3])


def test_rows_that_are_not_finite_cost_themselves_only(tmp_path, frames):
    for part in ("rotmats", "betas", "pred_cam"):
        broken = CROP[part].copy()
        broken[2].flat[0] = np.nan
        report = run(tmp_path, frames, CROP | {part: broken})
        (skipped,) = report.skipped
        assert frames.row_id(2) in skipped
        assert "finite" in skipped
        ti.assert_is_truth(tmp_path, frames, TRUE, rows=[0, 1, 3, 4, 5, 6])


def test_dry_run_writes_nothing(tmp_path, frames):
    report = run(tmp_path, frames, CROP, dry_run=True)
    assert report.rows == ti.ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["some.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgname": None}, "has no 'row_id' (or image_name, imgname, image_path)"),
        ({"imgname": np.arange(ti.ROWS)}, "'imgname' does not hold text"),
        ({"betas": None}, "has no 'betas'"),
        ({"betas": TRUE.betas[:, :9]}, "'betas' has shape (7, 9)"),
        ({"betas": TRUE.betas.astype(str)}, "'betas' does not hold numbers"),
        ({"rotmats": None}, "has no 'pose', no 'rotations'"),
        ({"rotmats": TRUE.rotations[:, :22]}, "'rotmats' has shape (7, 22, 3, 3)"),
        ({"rotmats": TRUE.rotations * 2}, "'rotmats' holds matrices that are no rotations"),
        ({"rotmats": TRUE.rotations * GL[:, None] * [1, -1, 1]}, "'rotmats' holds matrices that are no rotations"),
        ({"rotmats": None, "global_orient": TRUE.pose[:, :3], "body_pose": TRUE.pose[:, 3:66]}, "SMPL-X's 21 joints"),
        ({"pred_cam": None}, "has neither a full-image 'transl' nor a crop"),
        ({"transl": TRUE.transl}, "has 'transl' and 'pred_cam'"),
        ({"box_px": None}, "'pred_cam' needs its box"),
        ({"box_px": TRUE.box_px * [1, 1, -1]}, "a side that is not positive"),
        ({"box_px": None, "center": TRUE.box_px[:, :2], "scale": np.linspace(1, 100, ti.ROWS)}, "'scale' is partly"),
        ({"image_size_px": [0, 480]}, "an 'image_size_px' is not positive"),
        ({"pred_cam": None, "transl": TRUE.transl, "focal": -1.0}, "a focal length is not positive"),
    ],
)
def test_bad_parts_are_named(tmp_path, frames, changes, message):
    with pytest.raises(InputError) as error:
        run(tmp_path, frames, CROP | changes)
    assert message in str(error.value)
    assert "some.npz" in str(error.value)


def test_files_that_are_none_are_named(tmp_path):
    np.savez(tmp_path / "whole.npz", **CROP)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:1000])
    (tmp_path / "text.npz").write_text("poses")
    np.savez(tmp_path / "empty.npz", **{name: value[:0] for name, value in CROP.items()})
    for name in ("cut.npz", "text.npz", "absent.npz", "empty.npz"):
        with pytest.raises(InputError, match=name):
            read_generic(tmp_path / name)
