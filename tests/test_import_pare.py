"""PARE's three forms, written with joblib as PARE does, give back the bodies that they describe."""

import numpy as np
import pytest
import tiny_import as ti

from bodies import InputError
from datamodules.convert.pare import read_pare

joblib = pytest.importorskip("joblib")

TRUE = ti.truth(3)
#: Rows of the sequence walk_00, by person and frame.
TRACKS = {1: ([0, 2, 4], [0, 1, 2]), 7: ([1, 3], [0, 1])}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return ti.write_frames(tmp_path_factory.mktemp("frames") / "frames.h5", TRUE)


def orig_cam(camera: np.ndarray, box_px: np.ndarray, size: tuple[int, int] = (ti.WIDTH, ti.HEIGHT)) -> np.ndarray:
    """(sx, sy, tx, ty): weak perspective in the full image, as `convert_crop_cam_to_orig_img` has it."""
    s, tx, ty = camera.T
    half_width, half_height = size[0] / 2, size[1] / 2
    sx, sy = s * box_px[:, 2] / size[0], s * box_px[:, 2] / size[1]
    shift_x = (box_px[:, 0] - half_width) / half_width / sx
    shift_y = (box_px[:, 1] - half_height) / half_height / sy
    return np.stack([sx, sy, shift_x + tx, shift_y + ty], axis=1)


def track(rows: list[int], numbers: list[int], scale: float = 1.0, **changes: object) -> dict[str, object]:
    """A track of the video demo; `scale` is the size of the video against that of the frames."""
    box, camera = TRUE.box_px[rows] * scale, TRUE.crop_camera()[rows]
    return {
        "pred_cam": camera.astype(np.float32),
        "orig_cam": orig_cam(camera, box, (round(ti.WIDTH * scale), round(ti.HEIGHT * scale))).astype(np.float32),
        "verts": np.zeros((len(rows), 6890, 3), np.float32),
        "pose": TRUE.rotations[rows].astype(np.float32),
        "betas": TRUE.betas[rows],
        "joints3d": np.zeros((len(rows), 49, 3), np.float32),
        "joints2d": None,
        "smpl_joints2d": np.zeros((len(rows), 49, 2), np.float32),
        "bboxes": box[:, [0, 1, 2, 2]],
        "frame_ids": np.array(numbers),
        **changes,
    }


def write_video(folder, content, compress=0):
    folder.mkdir(parents=True)
    joblib.dump(content, folder / "pare_output.pkl", compress=compress)
    return folder / "pare_output.pkl"


def write_image(folder, stem: str, rows: list[int], **changes: object):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = track(rows, rows)
    content = {
        "pred_pose": arrays["pose"],
        "pred_shape": arrays["betas"],
        "pred_cam": arrays["pred_cam"],
        "pred_cam_t": np.zeros((len(rows), 3), np.float32),
        "orig_cam": arrays["orig_cam"],
        "bboxes": arrays["bboxes"],
        "smpl_vertices": np.zeros((len(rows), 6890, 3), np.float32),
        "pred_segm_mask": np.zeros((len(rows), 25, 56, 56), np.float32),
        **changes,
    }
    joblib.dump(content, folder / f"{stem}.pkl")


@pytest.mark.parametrize("compress", [0, 3])
def test_video(tmp_path, frames, compress):
    content = {person: track(*rows) for person, rows in TRACKS.items()}
    path = write_video(tmp_path / "walk_00_pare", content, compress)
    report = ti.run_import(tmp_path, read_pare(path, frames), frames)
    assert report.unmatched_rows == frames.row_ids[5:]
    ti.assert_is_truth(tmp_path, frames, TRUE, rows=[0, 1, 2, 3, 4])


def test_videos_of_several_sequences_below_one_folder(tmp_path, frames):
    write_video(tmp_path / "all" / "walk_00_", {person: track(*rows) for person, rows in TRACKS.items()})
    # README of PARE: axis-angle; its code: matrices. Both are taken.
    write_video(tmp_path / "all" / "run_01", {0: track([5, 6], [0, 1], pose=TRUE.pose[5:])})
    ti.run_import(tmp_path, read_pare(tmp_path / "all", frames), frames)
    ti.assert_is_truth(tmp_path, frames, TRUE)


def test_trap_a_track_leaves_and_the_frames_count_from_another_number(tmp_path, frames):
    path = write_video(tmp_path / "anything", {0: track([5, 6, 5], [10, 11, 12])})
    predictions = read_pare(path, frames, sequence="run_01", first_frame=-10)
    report = ti.run_import(tmp_path, predictions, frames)
    assert report.unmatched_predictions == ("anything: frame 2: no image of this name",)
    ti.assert_is_truth(tmp_path, frames, TRUE, rows=[5, 6])


def test_trap_the_video_was_resized(tmp_path, frames):
    content = {person: track(*rows, scale=0.5) for person, rows in TRACKS.items()}
    path = write_video(tmp_path / "walk_00", content)
    ti.run_import(tmp_path, read_pare(path, frames), frames)
    ti.assert_is_truth(tmp_path, frames, TRUE, rows=[0, 1, 2, 3, 4])


def test_images_in_folders_of_their_sequences(tmp_path, frames):
    for image, name in enumerate(ti.IMAGE_NAMES):
        *_, sequence, file = name.split("/")
        rows = [row for row, shown in enumerate(ti.IMAGE_OF_ROW) if shown == image]
        write_image(tmp_path / "all" / sequence / "pare_results", file.removesuffix(".jpg"), rows[::-1])
    ti.run_import(tmp_path, read_pare(tmp_path / "all", frames), frames)
    ti.assert_is_truth(tmp_path, frames, TRUE)


def test_images_of_the_same_name_without_folders_are_left_over(tmp_path, frames):
    write_image(tmp_path / "pare_results", "image_00002", [4])
    write_image(tmp_path / "pare_results", "image_00001", [6])
    report = ti.run_import(tmp_path, read_pare(tmp_path / "pare_results", frames), frames)
    assert report.unmatched_predictions == ("image_00001.jpg: several images end with this name",)
    ti.assert_is_truth(tmp_path, frames, TRUE, rows=[4])


def test_trap_the_extension_is_replaced_everywhere_in_the_name(tmp_path, monkeypatch):
    names = ("imageFiles/walk_00/jpg_a.jpg", *ti.IMAGE_NAMES[1:])
    monkeypatch.setattr(ti, "IMAGE_NAMES", names)
    frames = ti.write_frames(tmp_path / "frames.h5", TRUE)
    write_image(tmp_path / "pare_results", "pkl_a", [0, 1])
    ti.run_import(tmp_path, read_pare(tmp_path / "pare_results", frames), frames)
    ti.assert_is_truth(tmp_path, frames, TRUE, rows=[0, 1])


def evaluation() -> dict[str, object]:
    return {
        "imgname": list(TRUE.names),
        "dataset_name": ["3dpw"] * ti.ROWS,
        "mpjpe": np.zeros((ti.ROWS, 14)),
        "pose": TRUE.rotations,
        "shape": TRUE.betas,
        "cam": TRUE.crop_camera(),
    }


def write_boxes(path, **changes):
    box = TRUE.box_px
    np.savez(path, **{"imgname": TRUE.names, "center": box[:, :2], "scale": box[:, 2] / 200, **changes})
    return path


def test_evaluation_of_pare_and_of_spin(tmp_path, frames):
    boxes = write_boxes(tmp_path / "3dpw_all_test_with_mmpose.npz")
    joblib.dump(evaluation(), tmp_path / "evaluation_results_3dpw.pkl")
    np.savez(tmp_path / "spin.npz", pose=TRUE.pose, betas=TRUE.betas, camera=TRUE.crop_camera())
    for name in ("evaluation_results_3dpw.pkl", "spin.npz"):
        ti.run_import(tmp_path, read_pare(tmp_path / name, frames, boxes=boxes), frames)
        ti.assert_is_truth(tmp_path, frames, TRUE)


def test_bad_evaluations_are_named(tmp_path, frames):
    boxes, dump = write_boxes(tmp_path / "boxes.npz"), tmp_path / "evaluation_results_3dpw.pkl"
    names = TRUE.names[::-1]
    few = write_boxes(tmp_path / "few.npz", imgname=names[:3], center=TRUE.box_px[:3, :2], scale=np.ones(3))
    other, none = write_boxes(tmp_path / "other.npz", imgname=names), tmp_path / "none.npz"
    np.savez(none, imgname=names)
    for changes, given, message in (
        ({}, None, "has crop cameras without boxes"),
        ({"pose": None}, boxes, "writes it with TESTING.SAVE_RESULTS"),
        ({}, few, "has 7 rows, but"),
        ({}, other, "not in the order"),
        ({}, none, "has no 'center' and 'scale'"),
        ({"cam": None}, boxes, "has no 'cam'"),
    ):
        joblib.dump(evaluation() | changes, dump)
        with pytest.raises(InputError, match=message):
            read_pare(dump, frames, boxes=given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no dict or an empty one"),
        ([1], "holds no dict or an empty one"),
        ({1: {"frame_ids": np.array([0])}}, r"track 1\): has no 'pred_cam'"),
        ({1: track([0], [0], pose=np.zeros((1, 24, 6)))}, "'pose' has shape"),
        ({1: track([0], [0, 1])}, "'pred_cam' has shape"),
        ({1: track([0], [0], bboxes=np.array([[10.0, 20, 300, 400]]))}, "not square"),
    ],
)
def test_bad_videos_are_named(tmp_path, frames, content, message):
    path = write_video(tmp_path / "walk_00", content)
    with pytest.raises(InputError, match=message):
        read_pare(path, frames)


def test_bad_sources_are_named(tmp_path, frames):
    path = write_video(tmp_path / "swim_09", {1: track([0], [0])})
    with pytest.raises(InputError, match=r"no single sequence that the folder 'swim_09' names.*walk_00, run_01"):
        read_pare(path, frames)
    with pytest.raises(InputError, match="no sequence 'swim'"):
        read_pare(path, frames, sequence="swim")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"pare_output.pkl: not a whole pickle"):
        read_pare(path, frames, sequence="walk_00")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: no pare_output.pkl and no .pkl"):
        read_pare(tmp_path / "empty", frames)
