"""`snugfit data keypoints openpose`: folders of its JSON, as it writes them, for bodies whose place is known."""

import json

import numpy as np
import pytest
import tiny_import as ti
import torch
from tiny_store import frame_row, jpeg, write_estimates

from bodies import BodyParameters, InputError
from bodies.joints import SMPL24
from commands._data_keypoints import keypoints
from datamodules.convert.openpose import read_people
from datamodules.store import EstimateStore, FrameStore, FrameWriter, StoredImage
from main import EXIT_USAGE, main

TRUE = ti.truth(8)
#: BODY_25 by number, with the joint of SMPL's chain that is there; 15 to 18 are eyes and ears, 19 and above the feet.
BODY25 = {
    0: "head", 1: "neck", 2: "right_shoulder", 3: "right_elbow", 4: "right_wrist", 5: "left_shoulder", 6: "left_elbow",
    7: "left_wrist", 8: "pelvis", 9: "right_hip", 10: "right_knee", 11: "right_ankle", 12: "left_hip", 13: "left_knee",
    14: "left_ankle",
}  # fmt: skip
#: OpenPose's COCO model likewise: no mid hip, then eyes and ears, no feet.
COCO18 = {
    0: "head", 1: "neck", 2: "right_shoulder", 3: "right_elbow", 4: "right_wrist", 5: "left_shoulder", 6: "left_elbow",
    7: "left_wrist", 8: "right_hip", 9: "right_knee", 10: "right_ankle", 11: "left_hip", 12: "left_knee",
    13: "left_ankle",
}  # fmt: skip
IMAGES = [name.removeprefix("imageFiles/").removesuffix(".jpg") for name in ti.IMAGE_NAMES]


def joints_px(rows: list[int]) -> np.ndarray:
    parts = (torch.tensor(part[rows]) for part in (TRUE.pose, TRUE.betas, TRUE.transl))
    return ti.project(ti.body()(BodyParameters.from_axis_angle(*parts)).joints.numpy(), ti.FOCAL_PX)


def found(row: int, model: dict[int, str] = BODY25, count: int = 25) -> np.ndarray:
    """What a good detector finds of a row: its joints and a pixel of noise."""
    rng = np.random.default_rng(row)
    keypoints, joints = np.zeros((count, 3)), joints_px([row])[0]
    for number, name in model.items():
        position = joints[SMPL24.index(name)] + rng.normal(scale=1.0, size=2)
        keypoints[number] = (*position, rng.uniform(0.3, 1.02))
    return keypoints


def person(keypoints: np.ndarray) -> dict[str, object]:
    numbers = [round(float(number), 3) for number in keypoints.ravel()]
    hands = [1.0, 2.0, 0.5] * 21
    return {
        "person_id": [-1],
        "pose_keypoints_2d": numbers,
        "face_keypoints_2d": [],
        "hand_left_keypoints_2d": hands,
        "hand_right_keypoints_2d": [],
        "pose_keypoints_3d": [],
        "face_keypoints_3d": [],
    }


def write(path, people: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": 1.3, "people": [person(one) for one in people]}
    path.with_name(f"{path.name}_keypoints.json").write_text(json.dumps(content))


def write_all(folder, change=lambda keypoints: keypoints) -> None:
    """A file for each image; in images 0 and 1 the second row comes first."""
    for image, name in enumerate(IMAGES):
        rows = [row for row, shown in enumerate(ti.IMAGE_OF_ROW) if shown == image]
        write(folder / name, [change(found(row)) for row in reversed(rows)])


@pytest.fixture
def frames(tmp_path):
    return ti.write_frames(tmp_path / "frames.h5", TRUE)


def add(tmp_path, *words: str, source: str = "json") -> int:
    return main(
        ["data", "keypoints", "openpose", str(tmp_path / source), "--frames", str(tmp_path / "frames.h5"), *words]
    )


def stored(tmp_path) -> np.ndarray:
    return FrameStore(tmp_path / "frames.h5").column("detected_keypoints_px")


def refused(capsys, code: int) -> str:
    assert code == EXIT_USAGE
    error = capsys.readouterr().err.strip()
    assert error.startswith("snugfit: error: ")
    assert "\n" not in error
    return error


def test_every_row_gets_its_own_person(tmp_path, frames, capsys):
    """Traps: people in no order, a bystander, hands and face in the file."""
    write_all(tmp_path / "json")
    bystander = found(0) - np.array([0, 260, 0])
    write(tmp_path / "json" / IMAGES[0], [bystander, found(1), found(0)])
    assert add(tmp_path, "--list-file", str(tmp_path / "left.txt")) == 0
    for row in range(ti.ROWS):
        np.testing.assert_allclose(stored(tmp_path)[row], found(row), atol=1e-3)
    assert "7 of 7" in capsys.readouterr().out
    left = (tmp_path / "left.txt").read_text().splitlines()
    assert left == [
        "rows without a detection",
        "detections without a row",
        "  walk_00/image_00000: no person of the frames is there, or another detection fits better",
        "files and people left out",
    ]


def test_trap_a_neighbour_does_not_take_the_place_of_who_was_not_detected(tmp_path, frames, capsys):
    """Their boxes overlap by more than what tells persons apart by boxes."""
    write_all(tmp_path / "json")
    write(tmp_path / "json" / IMAGES[0], [found(1)])
    write(tmp_path / "json" / IMAGES[2], [found(4) + np.array([0.3 * TRUE.box_px[4, 2], 0, 0])])
    assert add(tmp_path) == 0
    assert not stored(tmp_path)[[0, 4]].any()
    np.testing.assert_allclose(stored(tmp_path)[1], found(1), atol=1e-3)
    out = capsys.readouterr().out
    assert "rows without a detection:\n  tiny/walk_00/0/0\n  tiny/walk_00/2/4\n" in out


def test_trap_a_fragment_of_a_person_does_not_take_the_place_of_the_whole(tmp_path, frames):
    """OpenPose at times finds a second person of two keypoints on the first, each where it should be."""
    write_all(tmp_path / "json")
    fragment = np.zeros((25, 3))
    for number in (2, 5):
        fragment[number] = (*joints_px([4])[0][SMPL24.index(BODY25[number])], 0.9)
    write(tmp_path / "json" / IMAGES[2], [fragment, found(4)])
    assert add(tmp_path) == 0
    np.testing.assert_allclose(stored(tmp_path)[4], found(4), atol=1e-3)


def test_trap_nobody_was_detected_and_undetected_keypoints_have_no_place(tmp_path, frames):
    write_all(tmp_path / "json")
    write(tmp_path / "json" / IMAGES[2], [])
    partial = found(5)
    partial[[3, 4, 10]] = 0
    nothing = np.zeros((25, 3))
    write(tmp_path / "json" / IMAGES[3], [nothing, partial])
    placed = found(6)
    placed[4] = (12, 34, 0)  # a place without confidence is none
    write(tmp_path / "json" / IMAGES[4], [placed])
    assert add(tmp_path) == 0
    assert not stored(tmp_path)[4].any()
    np.testing.assert_allclose(stored(tmp_path)[5], partial, atol=1e-3)
    assert not stored(tmp_path)[6, 4].any()


def test_trap_coco18_has_no_mid_hip_and_no_feet(tmp_path, frames):
    for row, image in enumerate(ti.IMAGE_OF_ROW):
        if row in (4, 5, 6):
            write(tmp_path / "json" / IMAGES[image], [found(row, COCO18, 18)])
    assert add(tmp_path) == 0
    got, joints = stored(tmp_path)[5], joints_px([5])[0]
    for number, name in BODY25.items():
        if name == "pelvis":
            assert not got[number].any()
        else:
            assert np.linalg.norm(got[number, :2] - joints[SMPL24.index(name)]) < 5, name
    assert not got[19:].any()


def test_eyes_and_ears_of_coco18_keep_their_sides(tmp_path):
    keypoints = np.ones((18, 3)) * 0.5
    keypoints[14:, 0] = (115, 116, 117, 118)  # right eye, left eye, right ear, left ear
    write(tmp_path / "a", [keypoints])
    got = read_people(tmp_path / "a_keypoints.json").keypoints_px[0]
    assert got[15:19, 0].tolist() == [115, 116, 117, 118]
    assert not got[[8, *range(19, 25)]].any()


def test_trap_images_of_the_same_name_in_several_folders(tmp_path, frames, capsys):
    """image_00000 and image_00001 are in both sequences; the folder's own name may be that of one."""
    write_all(tmp_path / "json")
    assert add(tmp_path, source="json/run_01") == 0
    assert stored(tmp_path).any(axis=(1, 2)).tolist() == [False] * 5 + [True] * 2
    (tmp_path / "json" / "run_01").rename(tmp_path / "flat")
    assert "no image of" in refused(capsys, add(tmp_path, "--overwrite", source="flat"))


def test_trap_videos_count_their_frames_with_twelve_digits(tmp_path, frames):
    for row, name, frame in ((4, "walk_00", 2), (5, "run_01", 0), (6, "run_01", 1)):
        write(tmp_path / "json" / f"{name}_{frame:012d}", [found(row)])
    write(tmp_path / "json" / "swim_09_000000000000", [found(6)])
    write(tmp_path / "json" / "run_01_000000000099", [found(6)])
    assert add(tmp_path) == 0
    assert np.flatnonzero(stored(tmp_path).any(axis=(1, 2))).tolist() == [4, 5, 6]
    np.testing.assert_allclose(stored(tmp_path)[5], found(5), atol=1e-3)


def mirror(keypoints: np.ndarray) -> np.ndarray:
    """What is found in the mirror image: the right arm seems to be the left one."""
    swap = [0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20, 21]
    turned = keypoints[swap]
    turned[:, 0] = np.where(turned[:, 2] > 0, ti.WIDTH - turned[:, 0], 0)
    return turned


def test_trap_surreal_stores_mirror_images_of_its_videos(tmp_path, frames, capsys):
    write_all(tmp_path / "json", mirror)
    assert "the images were mirror images; give --mirrored" in refused(capsys, add(tmp_path))
    assert add(tmp_path, "--mirrored") == 0
    for row in range(ti.ROWS):
        np.testing.assert_allclose(stored(tmp_path)[row], found(row), atol=2e-3)
    write_all(tmp_path / "json")
    assert "the images are not mirror images" in refused(capsys, add(tmp_path, "--mirrored", "--overwrite"))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda k: k / (ti.WIDTH, ti.HEIGHT, 1), "fractions of the image (--keypoint_scale 3 or 4)"),
        (lambda k: k * (0.5, 0.5, 1), "they would fit images of 0.50 times the size"),
        (lambda k: k + (k[:, 2:] > 0) * np.array([5000, 0, 0]), "they belong to other images"),
    ],
)
def test_trap_other_pixels_than_the_images(tmp_path, frames, capsys, change, cause):
    write_all(tmp_path / "json", change)
    before = (tmp_path / "frames.h5").read_bytes()
    assert cause in refused(capsys, add(tmp_path))
    assert (tmp_path / "frames.h5").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.h5", "json"]


def test_detections_are_not_overwritten_silently(tmp_path, frames, capsys):
    write_all(tmp_path / "json")
    write_estimates(tmp_path / "pare.h5", frames, [0, 3])
    before = (tmp_path / "frames.h5").read_bytes()
    assert add(tmp_path, "--dry-run") == 0
    assert "would write" in capsys.readouterr().out
    assert (tmp_path / "frames.h5").read_bytes() == before
    assert add(tmp_path) == 0
    once = (tmp_path / "frames.h5").read_bytes()
    assert "give --overwrite" in refused(capsys, add(tmp_path))
    assert (tmp_path / "frames.h5").read_bytes() == once
    (tmp_path / "json" / f"{IMAGES[2]}_keypoints.json").unlink()
    assert add(tmp_path, "--overwrite") == 0
    assert np.flatnonzero(~stored(tmp_path).any(axis=(1, 2))).tolist() == [4]
    # Images, rows and estimates are as they were.
    store = FrameStore(tmp_path / "frames.h5")
    assert store.row_ids == frames.row_ids
    np.testing.assert_array_equal(store.column("pose"), TRUE.pose)
    assert EstimateStore(tmp_path / "pare.h5", store).valid.sum() == 2


def test_an_interrupted_write_leaves_the_file_as_it_was(tmp_path, frames, monkeypatch):
    write_all(tmp_path / "json")
    before = (tmp_path / "frames.h5").read_bytes()

    def fail(old, new):
        raise KeyboardInterrupt

    monkeypatch.setattr("datamodules.store_amend._copy_the_rest", fail)
    assert add(tmp_path) == 130
    assert (tmp_path / "frames.h5").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames.h5", "json"]


def test_damaged_files_cost_their_own_image(tmp_path, frames, capsys):
    write_all(tmp_path / "json")
    cut, other, lacking = (tmp_path / "json" / f"{IMAGES[image]}_keypoints.json" for image in (2, 3, 4))
    cut.write_text(cut.read_text()[:300])
    nan = person(found(5))
    nan["pose_keypoints_2d"][7] = float("nan")
    other.write_text(json.dumps({"people": [nan]}))
    lacking.write_text(json.dumps({"people": [{"person_id": [-1]}]}))
    assert add(tmp_path, "--list-file", str(tmp_path / "left.txt")) == 0
    assert np.flatnonzero(stored(tmp_path).any(axis=(1, 2))).tolist() == [0, 1, 2, 3]
    left = (tmp_path / "left.txt").read_text()
    assert "image_00002_keypoints.json: is not JSON" in left
    assert "image_00000_keypoints.json: person 0 has keypoints that are not finite" in left
    assert "image_00001_keypoints.json: person 0 has no 'pose_keypoints_2d'" in left
    capsys.readouterr()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"people": []}, "none of 1 files holds usable keypoints (nobody was detected)"),
        ({"version": 1.3}, "has no list 'people'"),
        ([], "has no list 'people'"),
        ({"people": [{"pose_keypoints_2d": [0.5] * 45}]}, "person 0 has 15 keypoints (MPI-15), BODY_25 has 25"),
        ({"people": [{"pose_keypoints_2d": [0.5] * 405}]}, "135 keypoints (BODY_135)"),
        ({"people": [{"pose_keypoints_2d": [0.5] * 74}]}, "74 numbers"),
        ({"people": [{"pose_keypoints_2d": ["a"] * 75}]}, "not numbers"),
        ({"people": [{"pose_keypoints_2d": [-0.5] * 75}]}, "negative confidence"),
        ({"people": [{"pose_keypoints_2d": [0.0] * 75}]}, "all confidences of person 0 are zero"),
        ({"people": [{"pose_keypoints_2d": [1e9, 3.0, 0.5] * 25}]}, "nobody of"),
    ],
)
def test_a_source_without_anything_usable_is_named(tmp_path, frames, capsys, content, cause):
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "image_00002_keypoints.json").write_text(json.dumps(content))
    error = refused(capsys, add(tmp_path))
    assert str(tmp_path / "json") in error
    assert cause in error


def test_sources_that_are_not_there_are_named(tmp_path, frames, capsys):
    assert "json: there is no such file or folder" in refused(capsys, add(tmp_path))
    (tmp_path / "json").mkdir()
    assert "json: there is no file *_keypoints.json" in refused(capsys, add(tmp_path))
    write(tmp_path / "json" / "swim_09" / "image_00000", [found(0)])
    assert "no image of" in refused(capsys, add(tmp_path))
    write_all(tmp_path / "json")
    assert "no such body model" in refused(capsys, add(tmp_path, "--body", str(tmp_path / "SMPL.pkl")))


def test_confidences_that_cannot_be_are_refused_by_the_store(tmp_path, frames):
    write_all(tmp_path / "json", lambda keypoints: keypoints * (1, 1, 90))
    with pytest.raises(InputError, match=r"frames\.h5: row 0 .*detected_keypoints_px holds"):
        keypoints("openpose", tmp_path / "json", frames=tmp_path / "frames.h5")


def test_rows_without_a_body_are_told_apart_by_their_measured_joints(tmp_path):
    """Human3.6M's test set: joints of the motion capture, and a pose that is all zero."""
    regressor = ti.body().keypoint_regressor("h36m17").numpy()[:, : ti.body().num_vertices]
    joints = regressor @ ti.vertices(TRUE.pose, TRUE.betas, TRUE.transl)
    with FrameWriter(tmp_path / "frames.h5", "h36m", "test", "standin-tiny") as writer:
        for row in (0, 1):
            image = writer.add_image(StoredImage(ti.IMAGE_NAMES[0], jpeg(), (ti.WIDTH, ti.HEIGHT)))
            measured = np.concatenate([joints[row], np.ones((17, 1))], axis=1).astype(np.float32)
            measured[2] = 0  # one that was not measured
            changes = {"gender": "neutral", "joints_m": measured, "box_px": TRUE.box_px[row]}
            camera = {"focal_px": np.full(2, ti.FOCAL_PX), "center_px": ti.CENTER_PX}
            nothing = {"pose": np.zeros(72), "betas": np.zeros(10), "detected_keypoints_px": None}
            writer.add_row(frame_row(row, image, **changes, **camera, **nothing))
    write(tmp_path / "json" / IMAGES[0], [found(1), found(0)])
    assert add(tmp_path) == 0
    for row in (0, 1):
        np.testing.assert_allclose(stored(tmp_path)[row], found(row), atol=1e-3)
