"""Human3.6M: small sets in exactly the formats it is kept in, written by code that has nothing of the converter."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_h36m as h36m
import torch
from tiny_cdf import write_cdf
from tiny_h36m import World
from tiny_threedpw import write_python2

from bodies import BodyParameters, InputError, load_body_model
from bodies.joints import H36M17
from datamodules.convert.h36m import H36MChoices, convert_h36m
from datamodules.convert.h36m_cameras import find_cameras
from datamodules.convert.summary import RunOptions
from datamodules.store import FrameStore

QUIET = RunOptions(workers=2, quiet=True)
FRONTAL, SIDE = "60457274", "54138969"
WALK, GREET = "S9_Directions_1.60457274", "S9_Greeting.60457274"
EDGES = (380, 250, 560, 700)


@pytest.fixture(scope="module")
def world() -> World:
    return h36m.make_world()


@pytest.fixture(scope="module")
def body(world, tmp_path_factory) -> Path:
    return h36m.write_body(tmp_path_factory.mktemp("body") / "smpl", world)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    """S9: one recording with masks and MoSh, one by the side, one without MoSh; S1: extracted images and MoSh."""
    root = tmp_path_factory.mktemp("h36m") / "h36m"
    for trial, name in (("Directions 1", FRONTAL), ("Directions 1", SIDE), ("Greeting", FRONTAL)):
        h36m.write_joints(root, world, 9, trial, name)
        h36m.write_video(root, world, 9, trial, name)
    h36m.write_karfly(root / "camera-parameters.json")
    h36m.write_masks(root, world, 9, "Directions 1", FRONTAL, EDGES)
    h36m.write_camera_mosh(root / "mosh", world, 9, "Directions 1", FRONTAL)
    h36m.write_camera_mosh(root / "mosh", world, 9, "Directions 1", SIDE)
    for trial, name, folder in (
        ("Directions 1", FRONTAL, "images"),
        ("Directions 1", "55011271", "S1/images/S1_Directions_1.55011271"),
        ("Walking", "58860488", "images"),
    ):
        h36m.write_joints(root, world, 1, trial, name, version=2, row_major=True, compressed=True, blocks=1)
        stem = f"S1_{trial.replace(' ', '_')}.{name}"
        h36m.write_images(root, [f"{folder}/{stem}_{frame:06d}.jpg" for frame in (1, 6, 11)], name)
        if trial == "Directions 1":
            h36m.write_camera_mosh(root / "mosh", world, 1, trial, name)
    h36m.write_world_mosh(root / "mosh", world, 1, "Walking")
    return root


@pytest.fixture
def tree(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made, tmp_path / "h36m")
    return tmp_path / "h36m"


def test_test_rows_project_to_where_the_body_is(tree, world, body, tmp_path):
    """Traps: stored upside down; root about the rest pelvis; no translation in the file; mm and m; row n // 5."""
    convert_h36m(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert sorted(rows) == [(WALK, 0), (WALK, 5)]  # frame 10 has an empty mask
    for (sequence, frame), (row, _) in rows.items():
        h36m.check_against_truth(row, h36m.shot_of(world, sequence, frame), body, sequence)
        assert (row.gender, row.frame) == ("neutral", frame)
        assert row.image_name == f"{sequence}_{frame + 1:06d}.jpg"
    assert FrameStore(tmp_path / "out.h5").subjects == ("S9",)


def test_training_rows_of_all_cameras_project_to_where_the_body_is(tree, world, body, tmp_path):
    """Traps: MoSh of the world is at 200 Hz; trials without a number; both layouts of extracted images; 1000 x 1000."""
    summary = convert_h36m(tree, tmp_path / "out.h5", "train", body, options=QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert {sequence for sequence, _ in rows} == {
        "S1_Directions_1.60457274", "S1_Directions_1.55011271", "S1_Walking.58860488",
    }  # fmt: skip
    assert len(rows) == summary.rows == 9
    for (sequence, frame), (row, pixels) in rows.items():
        h36m.check_against_truth(row, h36m.shot_of(world, sequence, frame), body, sequence)
        assert pixels.shape[1::-1] == h36m.SIZES[sequence[-8:]] == tuple(row.camera.size_px)


def test_protocol_2_is_the_frontal_camera_of_every_5th_frame(tree, body, tmp_path):
    """Traps: protocol 1 has all cameras; S5 to S8 and S11, which are not there, are named."""
    summary = convert_h36m(tree, tmp_path / "2.h5", "test", body, options=QUIET)
    assert h36m.reasons(summary)["h36m/S11"] == "there are no recordings of this subject"
    assert {sequence for sequence, _ in h36m.rows_of(tmp_path / "2.h5")} == {WALK}
    convert_h36m(tree, tmp_path / "1.h5", "test", body, H36MChoices(views="all"), QUIET)
    assert {sequence for sequence, _ in h36m.rows_of(tmp_path / "1.h5")} == {WALK, "S9_Directions_1.54138969"}
    convert_h36m(tree, tmp_path / "train.h5", "train", body, H36MChoices(views="frontal"), QUIET)
    assert {sequence for sequence, _ in h36m.rows_of(tmp_path / "train.h5")} == {"S1_Directions_1.60457274"}
    convert_h36m(tree, tmp_path / "tenth.h5", "train", body, H36MChoices(every=10), QUIET)
    assert {frame for _, frame in h36m.rows_of(tmp_path / "tenth.h5")} == {0, 10}


def test_other_strides_leave_out_what_mosh_does_not_have(tree, body, tmp_path):
    """Trap: the camera's MoSh has 10 Hz, so frame 3 is not its row 0."""
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, H36MChoices(every=3), QUIET)
    assert sorted(h36m.rows_of(tmp_path / "out.h5")) == [(WALK, 0)]
    assert h36m.reasons(summary)[f"h36m/{WALK}/000003/0"] == "MoSh has every 5th frame alone"


def test_image_i_of_the_video_belongs_to_row_i(tree, body, tmp_path):
    """Trap: SPIN's script for the test set drops a frame first, so that its image of frame i is frame i + 1."""
    choices = H36MChoices(joints_only=True)
    convert_h36m(tree, tmp_path / "out.h5", "test", body, choices, QUIET)
    for (_, frame), (_, pixels) in h36m.rows_of(tmp_path / "out.h5").items():
        # Frames differ by 20 grey levels; MPEG-4 and JPEG move them by a few.
        assert abs(float(np.median(pixels)) - h36m.gray(frame)) < 6


def spots(pixels: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Centres of the white spots nearest to where they are expected."""
    found = []
    for x, y in expected:
        left, top = int(x) - 24, int(y) - 24
        patch = pixels[top : top + 48, left : left + 48].astype(float).mean(axis=2)
        weight = np.clip(patch - np.median(patch), 20, None) - 20
        rows, columns = np.mgrid[: patch.shape[0], : patch.shape[1]] + 0.5
        found.append((left + (columns * weight).sum() / weight.sum(), top + (rows * weight).sum() / weight.sum()))
    return np.array(found)


def test_images_are_those_of_the_pinhole_camera(tree, world, body, tmp_path):
    """Trap: the lens moves points by several pixels, and the store's camera is a pinhole camera."""
    convert_h36m(tree, tmp_path / "out.h5", "test", body, H36MChoices(views="all"), QUIET)
    kept = convert_h36m(tree, tmp_path / "kept.h5", "test", body, H36MChoices(views="all", undistort=False), QUIET)
    bent = h36m.rows_of(tmp_path / "kept.h5")
    moved = []
    for (sequence, frame), (_, pixels) in h36m.rows_of(tmp_path / "out.h5").items():
        joints, name = h36m.shot_of(world, sequence, frame).joints[list(h36m.SPOTS)], sequence[-8:]
        straight_px, bent_px = h36m.project(joints, name), h36m.distort(joints, name)
        moved.append(np.linalg.norm(straight_px - bent_px, axis=1).max())
        np.testing.assert_allclose(spots(pixels, straight_px), straight_px, atol=0.5)
        np.testing.assert_allclose(spots(bent[sequence, frame][1], bent_px), bent_px, atol=0.5)
    assert max(moved) > 3
    assert kept.notes == ("images keep the distortion of the lenses (as asked for)",)


def test_boxes_are_those_of_spin(tree, body, tmp_path):
    """Traps: masks are stored column by column; the last row counts; 0.9 of the larger side; empty masks."""
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, H36MChoices(undistort=False), QUIET)
    left, top, right, bottom = EDGES
    row, _ = h36m.rows_of(tmp_path / "out.h5")[WALK, 5]
    expected = ((left + right) / 2, (top + bottom + 5) / 2, 0.9 * (bottom + 5 - top))
    np.testing.assert_allclose(row.box_px, expected)
    assert h36m.reasons(summary)[f"h36m/{WALK}/000010/0"] == "it has no box"


def test_boxes_move_with_the_undistorted_image(tree, world, body, tmp_path):
    convert_h36m(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    row, _ = h36m.rows_of(tmp_path / "out.h5")[WALK, 0]
    # The longer side is the vertical one; the lens changes the shorter one by less than a pixel.
    corner = row.box_px[:2] - ((EDGES[2] - EDGES[0]) / 2, row.box_px[2] / 0.9 / 2)
    ray = (corner - h36m.CENTER[FRONTAL]) / h36m.FOCAL[FRONTAL]
    np.testing.assert_allclose(h36m.distort(np.array([*ray, 1]), FRONTAL), EDGES[:2], atol=1)
    assert abs(corner[1] - EDGES[1]) > 1


def test_without_masks_boxes_are_about_the_joints(tree, world, body, tmp_path):
    convert_h36m(tree, tmp_path / "out.h5", "train", body, options=QUIET)
    row, _ = h36m.rows_of(tmp_path / "out.h5")["S1_Walking.58860488", 5]
    seen = h36m.project(h36m.shot_of(world, "S1_Walking.58860488", 5).joints, "58860488")
    low, high = seen.min(axis=0), seen.max(axis=0)
    np.testing.assert_allclose(row.box_px, (*(low + high) / 2, 1.2 * (high - low).max()), rtol=1e-5)


def test_measured_joints_are_h36m17_by_name(tree, world, body, tmp_path):
    """Traps: 17 of 32, some of which are twice there; the left leg comes first."""
    convert_h36m(tree, tmp_path / "out.h5", "train", body, options=QUIET)
    row, _ = h36m.rows_of(tmp_path / "out.h5")["S1_Walking.58860488", 0]
    numbers = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
    model = load_body_model(body, "neutral")
    joints = model.keypoints(model(BodyParameters.from_axis_angle(*numbers)), "h36m17")[0].numpy()
    for place, name in enumerate(H36M17):
        np.testing.assert_allclose(row.joints_m[place, :3], joints[place], atol=1e-4, err_msg=name)


def test_joints_of_the_world_are_brought_into_the_camera(tree, world, body, tmp_path):
    shutil.rmtree(tree / "S1" / "MyPoseFeatures" / "D3_Positions_mono")
    h36m.write_world_joints(tree, world, 1, "Walking")
    convert_h36m(tree, tmp_path / "out.h5", "train", body, options=QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert {sequence for sequence, _ in rows} == {"S1_Walking.58860488"}
    for (sequence, frame), (row, _) in rows.items():
        h36m.check_against_truth(row, h36m.shot_of(world, sequence, frame), body, sequence)


def test_rows_without_smpl_are_skipped_unless_joints_are_all_that_is_wanted(tree, world, body, tmp_path):
    """Trap: a MoSh file may be missing, and there are none of S9 and S11."""
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert {h36m.reasons(summary)[f"h36m/{GREET}/{frame:06d}/0"] for frame in (0, 5, 10)} == {"it has no MoSh file"}
    convert_h36m(tree, tmp_path / "joints.h5", "test", body, H36MChoices(joints_only=True), QUIET)
    rows = h36m.rows_of(tmp_path / "joints.h5")
    assert {sequence for sequence, _ in rows} == {WALK, GREET}
    for (sequence, frame), (row, _) in rows.items():
        shot = h36m.shot_of(world, sequence, frame)
        np.testing.assert_allclose(row.joints_m[:, :3], shot.joints, atol=1e-4)
        assert row.pose.any() == (sequence == WALK)
        if sequence == GREET:
            pelvis = load_body_model(body, "neutral").shape_joints(torch.zeros(1, 10))[0, 0].numpy()
            np.testing.assert_allclose(row.transl + pelvis, shot.joints[0], atol=1e-4)
    with pytest.raises(InputError, match="not be trained on"):
        convert_h36m(tree, tmp_path / "train.h5", "train", body, H36MChoices(joints_only=True), QUIET)


def test_a_tree_without_any_mosh_says_so(tree, body, tmp_path):
    shutil.rmtree(tree / "mosh")
    planned = convert_h36m(tree, tmp_path / "out.h5", "test", body, options=RunOptions(1, dry_run=True, quiet=True))
    assert h36m.reasons(planned)[f"h36m/{WALK}/000005/0"] == "there are no MoSh files"
    with pytest.raises(InputError, match="there is not one row to be written: all of the source was skipped"):
        convert_h36m(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert not (tmp_path / "out.h5").exists()


def mosh_file(tree: Path) -> Path:
    return tree / "mosh" / "S9" / "Directions 1_cam3_aligned.pkl"


def change_mosh(tree: Path, **changes) -> None:
    with mosh_file(tree).open("rb") as file:
        content = pickle.load(file, encoding="latin1") | changes
    write_python2(mosh_file(tree), {key: value for key, value in content.items() if value is not None})


def test_fits_that_the_joints_contradict_are_left_out(tree, world, body, tmp_path):
    """Trap: read without the turn about x, the bodies stand on their heads."""
    poses = np.stack([world.shots[9, "Directions 1", FRONTAL, frame].pose for frame in (0, 5, 10)])
    change_mosh(tree, new_poses=poses)
    choices = H36MChoices(joints_only=True)
    convert_h36m(tree, tmp_path / "out.h5", "test", body, choices, QUIET)
    assert not any(row.pose.any() for row, _ in h36m.rows_of(tmp_path / "out.h5").values())
    planned = convert_h36m(tree, tmp_path / "all.h5", "test", body, options=RunOptions(1, dry_run=True, quiet=True))
    assert h36m.reasons(planned)[f"h36m/{WALK}/000005/0"] == "its SMPL fit is far from the measured joints"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"betas": None}, "S9: not a MoSh file of this kind, it lacks betas"),
        ({"new_poses": np.zeros((3, 71))}, "S9: new_poses has shape (3, 71), expected was (any, 72)"),
        ({"new_poses": [["x"]]}, "S9: new_poses is not an array of numbers"),
        ({"betas": np.zeros(300)}, "S9: betas has shape (300,), expected was (10)"),
    ],
)
def test_recordings_with_damaged_mosh_are_named(tree, body, tmp_path, changes, message):
    change_mosh(tree, **changes)
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, H36MChoices(views="all"), QUIET)
    assert h36m.reasons(summary)[f"h36m/{WALK}"] == message
    assert {sequence for sequence, _ in h36m.rows_of(tmp_path / "out.h5")} == {"S9_Directions_1.54138969"}


def test_a_short_mosh_and_one_with_nan_cost_their_rows(tree, body, tmp_path):
    with mosh_file(tree).open("rb") as file:
        poses = pickle.load(file, encoding="latin1")["new_poses"][:1]
    change_mosh(tree, new_poses=poses)
    summary = convert_h36m(tree, tmp_path / "short.h5", "test", body, options=QUIET)
    assert h36m.reasons(summary)[f"h36m/{WALK}/000005/0"] == "its MoSh file ends before"
    poses = np.repeat(poses, 3, axis=0)
    poses[1, 0] = np.nan
    change_mosh(tree, new_poses=poses)
    summary = convert_h36m(tree, tmp_path / "nan.h5", "test", body, options=QUIET)
    assert h36m.reasons(summary)[f"h36m/{WALK}/000005/0"] == "a number of its SMPL fit is not finite"


def joints_file(tree: Path) -> Path:
    return tree / "S9" / "MyPoseFeatures" / "D3_Positions_mono" / f"Directions 1.{FRONTAL}.cdf"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: truncate(joints_file(tree)), "D3_Positions_mono: not a whole CDF file (it ends too early)"),
        (lambda tree: joints_file(tree).write_bytes(b"CDF"), "D3_Positions_mono: not a whole CDF file"),
        (
            lambda tree: write_cdf(joints_file(tree), {"Pose": np.zeros((1, 9, 64))}),
            "D3_Positions_mono: Pose has shape",
        ),
        (lambda tree: write_cdf(joints_file(tree), {"Other": np.zeros((1, 9, 96))}), "it has no variable Pose"),
        (
            lambda tree: write_cdf(joints_file(tree), {"Pose": np.zeros((0, 96))}, blocks=0),
            "the recording has no frames",
        ),
        (lambda tree: truncate(mosh_file(tree)), "S9: not a whole pickle"),
        (lambda tree: mosh_file(tree).write_bytes(b"cos\nsystem\n(S'true'\ntR."), r"S9: refused, it names os\.system"),
        (
            lambda tree: truncate(tree / "S9" / "MySegmentsMat" / "ground_truth_bb" / f"Directions 1.{FRONTAL}.mat"),
            "ground_truth_bb: not a whole MATLAB 7.3 file",
        ),
    ],
)
def test_recordings_with_damaged_files_are_named(tree, body, tmp_path, damage, message):
    damage(tree)
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, H36MChoices(views="all"), QUIET)
    assert message in h36m.reasons(summary)[f"h36m/{WALK}"].replace("os.system", r"os\.system")
    assert {sequence for sequence, _ in h36m.rows_of(tmp_path / "out.h5")} == {"S9_Directions_1.54138969"}


def test_joints_with_nan_and_those_that_are_zero_are_skipped(tree, world, body, tmp_path):
    joints = h36m.joints_32_mm(world, 9, "Directions 1", FRONTAL)
    joints[0], joints[5, 3 * 27] = 0, np.nan
    write_cdf(joints_file(tree), {"Pose": joints[None]})
    choices = H36MChoices(joints_only=True)
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, choices, QUIET)
    for frame in (0, 5):
        assert h36m.reasons(summary)[f"h36m/{WALK}/{frame:06d}/0"] == "its measured joints are missing or not finite"


def test_videos_that_end_early_are_damaged_or_of_another_size_cost_their_rows(tree, world, body, tmp_path):
    choices = H36MChoices(joints_only=True)
    h36m.write_video(tree, world, 9, "Greeting", FRONTAL, frames=8)
    summary = convert_h36m(tree, tmp_path / "short.h5", "test", body, choices, QUIET)
    assert {name: reason for name, reason in h36m.reasons(summary).items() if "Greeting" in name} == {
        f"h36m/{GREET}/000010/0": "its video is damaged or ends before"
    }
    video = tree / "S9" / "Videos" / f"Greeting.{FRONTAL}.mp4"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"mp4v"), 50, (64, 48))
    for _ in range(12):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    summary = convert_h36m(tree, tmp_path / "small.h5", "test", body, choices, QUIET)
    assert h36m.reasons(summary)[f"h36m/{GREET}/000005/0"] == "its video is damaged or not 1000 x 1002"
    video.write_bytes(b"no video")
    summary = convert_h36m(tree, tmp_path / "none.h5", "test", body, choices, QUIET)
    assert h36m.reasons(summary)[f"h36m/{GREET}/000005/0"] == "its video is damaged or missing"


def test_images_that_are_missing_cut_off_or_of_another_size_are_skipped(tree, body, tmp_path):
    names = [tree / "images" / f"S1_Walking.58860488_{frame:06d}.jpg" for frame in (1, 6, 11)]
    names[0].unlink()
    names[1].write_bytes(names[1].read_bytes()[:-20])
    cv2.imwrite(str(names[2]), np.zeros((1002, 1000, 3), np.uint8))
    summary = convert_h36m(tree, tmp_path / "out.h5", "train", body, options=QUIET)
    said = [h36m.reasons(summary)[f"h36m/S1_Walking.58860488/{frame:06d}/0"] for frame in (0, 5, 10)]
    assert said == [
        "there is no image file", "its image is damaged: the JPEG is cut off", "its image is not 1000 x 1000",
    ]  # fmt: skip


def test_videos_without_joints_and_the_recording_of_all_are_no_recordings(tree, body, tmp_path):
    """Trap: '_ALL' files hold everything in a row."""
    shutil.copy(joints_file(tree), joints_file(tree).with_name(f"_ALL.{FRONTAL}.cdf"))
    shutil.copy(tree / "S9" / "Videos" / f"Greeting.{FRONTAL}.mp4", tree / "S9" / "Videos" / f"_ALL 1.{FRONTAL}.mp4")
    joints_file(tree).with_name(f"Greeting.{FRONTAL}.cdf").unlink()
    summary = convert_h36m(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert h36m.reasons(summary)[f"h36m/{GREET}"] == "it has no measured joints"
    assert not any("_ALL" in name for name in h36m.reasons(summary))
    assert {sequence for sequence, _ in h36m.rows_of(tmp_path / "out.h5")} == {WALK}


def test_image_files_are_kept_byte_for_byte_by_cameras_without_distortion(tree, body, tmp_path):
    h36m.write_karfly(tree / "camera-parameters.json", (0, 0, 0, 0, 0))
    summary = convert_h36m(tree, tmp_path / "out.h5", "train", body, options=QUIET)
    store = FrameStore(tmp_path / "out.h5")
    row = next(index for index in range(len(store)) if "Walking" in store.row_id(index))
    assert store.read_jpeg(row) == (tree / "images" / store.read(row).image_name).read_bytes()
    assert "camera-parameters.json has no distortion" in summary.notes[0]


def write_metadata(path: Path, numbers: int = 300) -> None:
    """The data set's own file: three angles and the camera's place for each camera and subject, then intrinsics."""
    values = []
    for name in h36m.IDS:
        for subject in range(1, 12):
            rotation, shift_mm = h36m.extrinsics(subject, name)
            # R = Rx Ry Rz, read off its entries.
            angles = (
                np.arctan2(-rotation[1, 2], rotation[2, 2]), np.arcsin(rotation[0, 2]),
                np.arctan2(-rotation[0, 1], rotation[0, 0]),
            )  # fmt: skip
            values += [*angles, *(-rotation.T @ shift_mm)]
    k1, k2, p1, p2, k3 = h36m.DISTORTION
    for name in h36m.IDS:
        values += [*h36m.FOCAL[name], *h36m.CENTER[name], k1, k2, k3, p1, p2]
    text = " ".join(repr(float(value)) for value in values[:numbers])
    path.write_text(f"<metadata><mapping/><w0>[{text}]</w0></metadata>")


def test_all_files_of_cameras_say_the_same(tree, world, tmp_path):
    """Traps: millimetres; rotation from the world to the camera; order of the distortion; camera '1' is 54138969."""
    karfly, _ = find_cameras((tree,), (9,))
    for kind in ("xml", "i2l"):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "xml":
            write_metadata(folder / "metadata.xml")
        else:
            h36m.write_annotations(folder, world, 9, names=())
        other, _ = find_cameras((folder,), (9,))
        for key, camera in karfly.items():
            for part in ("rotation", "shift_m", "focal_px", "center_px"):
                np.testing.assert_allclose(getattr(other[key], part), getattr(camera, part), atol=1e-9, err_msg=part)
            expected = h36m.DISTORTION if kind == "xml" else np.zeros(5)
            np.testing.assert_allclose(other[key].distortion, expected)


def change_cameras(tree: Path, subject: str, camera: str, **changes) -> None:
    path = tree / "camera-parameters.json"
    content = json.loads(path.read_text())
    for key, value in changes.items():
        where = content["extrinsics"][subject][camera] if key in ("R", "t") else content["intrinsics"][camera]
        where[key] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"R": np.diag([1, 1, -1]).tolist()}, "camera 60457274: R is not a rotation"),
        ({"t": [[0.1], [0.4], [4.4]]}, "camera 60457274: t is 4.419 long, which is no distance in millimetres"),
        ({"t": [1, 2]}, r"t has shape \(2,\), expected was \(3,\)"),
        ({"t": ["x"]}, "t is not an array of numbers"),
        ({"calibration_matrix": np.ones((3, 3)).tolist()}, "not that of a camera without skew"),
        ({"calibration_matrix": [[float("nan"), 0, 1], [0, 1, 1], [0, 0, 1]]}, "its focal lengths and principal point"),
        ({"distortion": [float("nan")] * 5}, "its distortion is not finite"),
    ],
)
def test_damaged_cameras_are_named(tree, body, tmp_path, changes, message):
    change_cameras(tree, "S9", FRONTAL, **changes)
    with pytest.raises(InputError, match=rf"camera-parameters\.json: .*{message}"):
        convert_h36m(tree, tmp_path / "out.h5", "test", body, options=QUIET)


def test_missing_and_cut_off_files_of_cameras_are_named(tree, tmp_path):
    path = tree / "camera-parameters.json"
    path.write_text(path.read_text()[:-50])
    with pytest.raises(InputError, match=r"camera-parameters\.json: not a whole JSON file"):
        find_cameras((tree,), (9,))
    path.write_text(json.dumps({"intrinsics": {}}))
    with pytest.raises(InputError, match="it has no intrinsics / 54138969"):
        find_cameras((tree,), (9,))
    path.unlink()
    with pytest.raises(InputError, match="there is no file of cameras"):
        find_cameras((tree,), (9,))
    write_metadata(tree / "metadata.xml", 299)
    with pytest.raises(InputError, match=r"metadata\.xml: w0 holds 299 numbers, expected were 300"):
        find_cameras((tree,), (9,))
