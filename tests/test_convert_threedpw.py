"""3DPW: small sets in exactly the downloaded format, written by code that shares nothing with the converter."""

import pickle
import shutil
from pathlib import Path

import body_oracle
import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from tiny_threedpw import COCO18, LANDSCAPE, PORTRAIT, Truth, write_python2, write_sequence

from bodies import BodyParameters, InputError, load_body_model
from bodies.joints import OPENPOSE25
from datamodules.convert.summary import RunOptions, summary_table
from datamodules.convert.threedpw import convert_threedpw, read_recording
from datamodules.store import FrameStore

QUIET = RunOptions(workers=2, quiet=True)

TWO, ONE = "courtyard_two_00", "downtown_one_01"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Truth]:
    """Two sequences: two people in landscape, one of them with 300 betas and some frames unusable; one in portrait."""
    folder, truth = tmp_path_factory.mktemp("threedpw"), Truth({}, {})
    body_oracle.write_models(folder / "smpl")
    root = folder / "3DPW"
    content = write_sequence(root, TWO, "test", "mf", 5, LANDSCAPE, truth)
    content["campose_valid"][0][1] = 0
    content["poses2d"][1][2] = 0
    rewrite(root, TWO, content)
    write_sequence(root, ONE, "test", "f", 3, PORTRAIT, truth)
    write_sequence(root, "outdoors_other_00", "train", "m", 1, LANDSCAPE, truth)
    return folder, truth


@pytest.fixture
def body(made) -> Path:
    return made[0] / "smpl"


@pytest.fixture
def truth(made) -> Truth:
    return made[1]


@pytest.fixture
def tree(made, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made[0] / "3DPW", tmp_path / "3DPW")
    return tmp_path / "3DPW"


def sequence_file(root: Path, name: str) -> Path:
    return root / "sequenceFiles" / "test" / f"{name}.pkl"


def content_of(root: Path, name: str) -> dict:
    with sequence_file(root, name).open("rb") as file:
        return pickle.load(file, encoding="latin1")


def rewrite(root: Path, name: str, content: object) -> None:
    write_python2(sequence_file(root, name), content)


def reasons(summary) -> dict[str, str]:
    return {entry.name: entry.reason for entry in summary.skipped}


def rows_by_name(store: FrameStore) -> dict:
    result = {}
    for index in range(len(store)):
        frame = store.read(index)
        name, number, person = frame.row_id.split("/")[1:]
        result[name, int(number), int(person)] = frame
    return result


def test_rows_project_to_where_the_body_is_through_a_moving_camera(tree, truth, body, tmp_path):
    """Traps: root about the rest pelvis, gendered models, one camera a frame, portrait images, 300 betas."""
    convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    rows = rows_by_name(FrameStore(tmp_path / "out.h5"))
    assert len(rows) == 5 + 5 - 2 + 3
    for key, row in rows.items():
        model = load_body_model(body, row.gender)
        numbers = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
        projected = row.camera.batched().project(model(BodyParameters.from_axis_angle(*numbers)).vertices)[0].numpy()
        # The bound that converters promise is 0.5 px; single precision at 5 m leaves a thousandth.
        np.testing.assert_allclose(projected, truth.vertices_px[key], atol=0.02)
        root, transl = truth.root_and_transl[key]
        np.testing.assert_allclose(Rotation.from_rotvec(row.pose[:3]).as_matrix(), root, atol=1e-4)
        np.testing.assert_allclose(row.transl, transl, atol=1e-4)


def test_pose_and_shape_are_those_of_the_30_hz_arrays(tree, body, tmp_path):
    """Traps: img_frame_ids are indices into the 60 Hz arrays; of 300 betas the first 10 count."""
    convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    content = content_of(tree, TWO)
    for (name, frame, person), row in rows_by_name(FrameStore(tmp_path / "out.h5")).items():
        if name == TWO:
            np.testing.assert_allclose(row.pose[3:], content["poses"][person][frame, 3:], atol=1e-6)
            np.testing.assert_allclose(row.betas, content["betas"][person][:10], atol=1e-6)
            assert row.gender == ("male", "female")[person]
            assert row.image_name == f"imageFiles/{TWO}/image_{frame:05d}.jpg"


def test_images_are_stored_once_as_they_are_with_their_own_size(tree, body, tmp_path):
    convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    store = FrameStore(tmp_path / "out.h5")
    assert len(store.image_names) == 8
    for index in range(len(store)):
        row = store.read(index)
        assert tuple(row.camera.size_px) == (PORTRAIT if ONE in row.row_id else LANDSCAPE)
        assert store.read_jpeg(index) == (tree / row.image_name).read_bytes()
    assert np.allclose(store.read(0).camera.focal_px, (1962, 1969))


def test_coco18_detections_become_body25_by_name(tree, body, tmp_path):
    """Traps: (3, 18) and not (18, 3); after the neck and arms COCO-18 has no mid hip; it has no feet."""
    convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    row = rows_by_name(FrameStore(tmp_path / "out.h5"))[ONE, 2, 0]
    detected = content_of(tree, ONE)["poses2d"][0][2]
    for place, name in enumerate(OPENPOSE25):
        expected = detected[:, COCO18.index(name)] if name in COCO18 else np.zeros(3)
        np.testing.assert_allclose(row.detected_keypoints_px[place], expected, atol=1e-4, err_msg=name)


def test_boxes_are_those_of_spin(tree, body, tmp_path):
    """Keypoints without confidence, which lie at (0, 0), do not count."""
    convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    x, y, _ = np.delete(content_of(tree, ONE)["poses2d"][0][1], 4, axis=1)
    side = 1.2 * max(x.max() - x.min(), y.max() - y.min())
    expected = ((x.min() + x.max()) / 2, (y.min() + y.max()) / 2, side)
    np.testing.assert_allclose(rows_by_name(FrameStore(tmp_path / "out.h5"))[ONE, 1, 0].box_px, expected, rtol=1e-6)


def test_unusable_rows_are_skipped_alone_and_counted(tree, body, tmp_path):
    """Traps: campose_valid is per person and frame; poses2d may be all zero where the camera is valid."""
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert reasons(summary) == {
        f"3dpw/{TWO}/00001/0": "its camera pose is marked as not valid",
        f"3dpw/{TWO}/00002/1": "no keypoint was detected",
    }
    rows = rows_by_name(FrameStore(tmp_path / "out.h5"))
    assert (TWO, 1, 1) in rows
    assert (TWO, 2, 0) in rows
    assert (tmp_path / "out.h5.skipped.tsv").read_text().splitlines() == [
        f"3dpw/{TWO}/00001/0\t1\tits camera pose is marked as not valid",
        f"3dpw/{TWO}/00002/1\t1\tno keypoint was detected",
    ]
    assert summary_table(summary).row_count == 4


@pytest.mark.parametrize("key", ["poses", "trans", "poses2d", "cam_poses"])
def test_rows_with_nan_are_skipped(tree, body, tmp_path, key):
    content = content_of(tree, ONE)
    (content[key] if key == "cam_poses" else content[key][0])[1].flat[5 if key != "trans" else 2] = np.nan
    rewrite(tree, ONE, content)
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert reasons(summary)[f"3dpw/{ONE}/00001/0"] == "a number is not finite"
    assert summary.rows == 10


def test_a_reflecting_camera_is_skipped(tree, body, tmp_path):
    content = content_of(tree, ONE)
    content["cam_poses"][2, :3, 0] *= -1
    rewrite(tree, ONE, content)
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert reasons(summary)[f"3dpw/{ONE}/00002/0"] == "its camera pose is not a rotation and a shift"


def test_people_behind_the_camera_and_boxes_of_one_keypoint_are_skipped(tree, body, tmp_path):
    content = content_of(tree, ONE)
    content["cam_poses"][0, :3, 3] -= (0, 0, 9)
    content["poses2d"][0][1][:, 1:] = 0
    rewrite(tree, ONE, content)
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert reasons(summary)[f"3dpw/{ONE}/00000/0"] == "transl is not finite or out of range"
    assert reasons(summary)[f"3dpw/{ONE}/00001/0"] == "box_px is not finite or out of range"


def test_missing_and_cut_off_images_are_skipped(tree, body, tmp_path):
    folder = tree / "imageFiles" / TWO
    (folder / "image_00000.jpg").unlink()
    cut = folder / "image_00003.jpg"
    cut.write_bytes(cut.read_bytes()[:-20])
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    expected = {0: "there is no image file", 3: "its image is damaged: the JPEG is cut off"}
    for frame, reason in expected.items():
        assert [reasons(summary)[f"3dpw/{TWO}/{frame:05d}/{person}"] for person in (0, 1)] == [reason] * 2


def test_an_empty_sequence_is_skipped(tree, body, tmp_path):
    content = content_of(tree, ONE)
    for key in ("poses", "trans", "jointPositions", "poses2d", "campose_valid"):
        content[key][0] = content[key][0][:0]
    content["cam_poses"] = content["cam_poses"][:0]
    rewrite(tree, ONE, content)
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert reasons(summary)[f"3dpw/{ONE}"] == "the sequence has no frames or people"
    assert summary.rows == 8


def test_a_truncated_pickle_is_named(tree, body, tmp_path):
    file = sequence_file(tree, ONE)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=rf"{ONE}\.pkl: not a whole pickle"):
        convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3DPW"]


def test_a_pickle_that_would_run_code_is_refused(tree, body, tmp_path):
    sequence_file(tree, ONE).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(InputError, match=r"refused, it names os\.system"):
        convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)


@pytest.mark.parametrize("key", ["poses2d", "cam_poses", "genders", "jointPositions"])
def test_a_missing_key_is_named(tree, key):
    content = content_of(tree, ONE)
    del content[key]
    rewrite(tree, ONE, content)
    with pytest.raises(InputError, match=rf"{ONE}\.pkl: .* lacks {key}$"):
        read_recording(sequence_file(tree, ONE))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("poses2d", [np.zeros((3, 18, 3))], r"poses2d\[0\] has shape \(3, 18, 3\), expected was \(3, 3, 18\)"),
        ("poses", [np.zeros((2, 72))], r"poses\[0\] has shape \(2, 72\)"),
        ("poses", [["x"]], r"poses\[0\] is not an array of numbers"),
        ("betas", [np.zeros(9)], r"betas\[0\] holds 9 numbers"),
        ("betas", [np.full(10, np.nan)], r"betas\[0\] holds 10 numbers, expected were 10 or 300 finite"),
        ("trans", [np.zeros((3, 3))] * 2, "trans is not a list of one entry for each of the 1 people"),
        ("genders", ["x"], r"genders\[0\] is 'x'"),
        ("genders", "f", "genders is a str"),
        ("cam_poses", np.zeros((3, 3, 4)), r"cam_poses has shape \(3, 3, 4\)"),
        ("cam_intrinsics", np.eye(4), "cam_intrinsics has shape"),
        ("cam_intrinsics", np.full((3, 3), np.nan), "cam_intrinsics is not that of a pinhole camera"),
    ],
)
def test_wrong_shapes_and_values_are_named(tree, key, value, message):
    rewrite(tree, ONE, {**content_of(tree, ONE), key: value})
    with pytest.raises(InputError, match=message):
        read_recording(sequence_file(tree, ONE))


def test_images_that_were_turned_are_refused(tree, body, tmp_path):
    for file in (tree / "imageFiles" / ONE).iterdir():
        cv2.imwrite(str(file), np.zeros((1080, 1920, 3), np.uint8))
    with pytest.raises(InputError, match=r"1920 x 1080 does not fit the principal point \(543, 955\)"):
        convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert not (tmp_path / "out.h5").exists()


def test_parameters_that_do_not_fit_the_body_are_refused(tree, body, tmp_path):
    """Millimetres for metres, or a pose already in the camera frame."""
    content = content_of(tree, ONE)
    content["trans"][0] = content["trans"][0] * 1000
    rewrite(tree, ONE, content)
    with pytest.raises(InputError, match=rf"{ONE}\.pkl: jointPositions\[0\] lie \d+ mm from those of the female body"):
        convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)


def test_the_summary_tells_how_far_the_joints_are_from_the_body(tree, body, tmp_path):
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)
    assert summary.notes == (f"joints of the files against {body}: 0.0 mm, worst person 0.0 mm",)


@pytest.mark.parametrize("part", ["imageFiles", "sequenceFiles"])
def test_a_missing_folder_is_named(tree, body, tmp_path, part):
    (tree / part).rename(tree / "elsewhere")
    with pytest.raises(InputError, match=part):
        convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=QUIET)


def test_a_split_without_files_is_named(tree, body, tmp_path):
    with pytest.raises(InputError, match="validation: there are no sequence files"):
        convert_threedpw(tree, tmp_path / "out.h5", "validation", body, options=QUIET)


def test_splits_and_strides(tree, body, tmp_path):
    """The folder above the tree will do as well."""
    train = convert_threedpw(tree.parent, tmp_path / "train.h5", "train", body, options=QUIET)
    assert (train.rows, FrameStore(tmp_path / "train.h5").split) == (1, "train")
    convert_threedpw(tree, tmp_path / "third.h5", "test", body, every=3, options=QUIET)
    assert {key[:2] for key in rows_by_name(FrameStore(tmp_path / "third.h5"))} == {(TWO, 0), (TWO, 3), (ONE, 0)}
    with pytest.raises(InputError, match="every 0"):
        convert_threedpw(tree, tmp_path / "none.h5", "test", body, every=0, options=QUIET)


def test_a_dry_run_counts_and_writes_nothing(tree, body, tmp_path):
    options = RunOptions(workers=1, dry_run=True, quiet=True)
    summary = convert_threedpw(tree, tmp_path / "out.h5", "test", body, options=options)
    assert (summary.state, summary.rows, len(summary.skipped)) == ("planned", 11, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["3DPW"]


def test_the_file_does_not_depend_on_the_number_of_threads(tree, body, tmp_path):
    for workers in (0, 1, 4):
        options = RunOptions(workers=workers, quiet=True)
        convert_threedpw(tree, tmp_path / f"{workers}.h5", "test", body, options=options)
    first = (tmp_path / "0.h5").read_bytes()
    assert all((tmp_path / f"{workers}.h5").read_bytes() == first for workers in (1, 4))


def test_a_complete_file_is_left_alone(tree, body, tmp_path):
    out = tmp_path / "out.h5"
    convert_threedpw(tree, out, "test", body, options=QUIET)
    (tree / "sequenceFiles").rename(tree / "gone")
    assert convert_threedpw(tree, out, "test", body, options=QUIET).state == "complete"
    with pytest.raises(InputError, match="it holds 3dpw, test; give --overwrite"):
        convert_threedpw(tree, out, "train", body, options=QUIET)
    (tree / "gone").rename(tree / "sequenceFiles")
    overwrite = RunOptions(workers=1, overwrite=True, quiet=True)
    assert convert_threedpw(tree, out, "train", body, options=overwrite).rows == 1
