"""RICH: small sets in exactly the downloaded format, written by code that shares nothing with the converter."""

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import body_oracle
import cv2
import numpy as np
import pytest
import scipy.sparse
import tiny
import tiny_smplx
import torch
from scipy.spatial.transform import Rotation

import main
from bodies import BodyParameters, InputError, load_body_model
from bodies.model_files import STAND_INS
from datamodules.convert.rich import ModelFiles, convert_rich
from datamodules.convert.rich_files import Recording, read_calibration, read_genders, whole_image_size_px
from datamodules.convert.summary import RunOptions
from datamodules.store import FrameStore

QUIET = RunOptions(workers=2, quiet=True)
#: Images are written at an eighth of the size that the cameras are calibrated for.
EIGHTH, PORTRAIT_EIGHTH = (514, 376), (376, 514)
DUET, SOLO = "ParkingLot2_009_014_dance1", "Pavallion_014_yoga"
GENDERS = {9: "female", 14: "male"}


@dataclass(frozen=True)
class Camera:
    matrix: np.ndarray
    """Intrinsics of the full-size image."""
    rotation: np.ndarray
    shift: np.ndarray

    def project(self, points: np.ndarray) -> np.ndarray:
        """To an image of an eighth of the size."""
        seen = (points @ self.rotation.T + self.shift) @ self.matrix.T
        return seen[:, :2] / seen[:, 2:] / 8


def camera(number: int, *, portrait: bool = False) -> Camera:
    center = (1483.4, 2076.9) if portrait else (2147.6 - 20 * number, 1303.5 + 50 * number)
    matrix = np.array([[3570.8 + number, 0, center[0]], [0, 3571.5, center[1]], [0, 0, 1]])
    turn = Rotation.from_euler("yxz", [25 * number, 4 * number, -7 * number], degrees=True).as_matrix()
    # All look at what lies five metres in front of camera 0.
    return Camera(matrix, turn, np.array([0.1 * number, 0, 5.5]) - turn @ (0, 0, 5.0) if number else np.zeros(3))


def write_calibration(path: Path, camera: Camera, distortion: tuple[float, ...] = (0.0,) * 8) -> None:
    """An OpenCV FileStorage, as OpenPose's calibration writes it."""
    parts = {
        "CameraMatrix": np.column_stack([camera.rotation, camera.shift]),
        "Intrinsics": camera.matrix,
        "Distortion": np.array(distortion)[:, None],
    }
    nodes = "".join(
        f'<{name} type_id="opencv-matrix">\n  <rows>{len(part)}</rows>\n  <cols>{part.shape[1]}</cols>\n  <dt>d</dt>\n'
        f"  <data>\n    {' '.join(repr(float(value)) for value in part.ravel())}</data></{name}>\n"
        for name, part in parts.items()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<?xml version="1.0"?>\n<opencv_storage>\n{nodes}</opencv_storage>\n')


def smplx_arrays(gender: str) -> dict:
    # The two versions of the model files differ in the number of columns.
    return tiny_smplx.model_arrays(body_oracle.model(gender), columns={"female": 20, "male": 400}[gender])


def person_at(rng: np.random.Generator, gender: str, pelvis: tuple[float, float, float]) -> tuple[dict, tuple]:
    """A body file for somebody upright (y of the cameras points down), and pose, betas, translation in SMPL."""
    parameters = tiny_smplx.random_parameters(rng)
    upright = Rotation.from_euler("xyz", [175, 20, 5], degrees=True).as_rotvec()
    parameters["global_orient"] = upright[None].astype(np.float32)
    smplx = smplx_arrays(gender)
    start = 300 if gender == "male" else 10
    shape = smplx["shapedirs"][..., :10] @ parameters["betas"][0]
    shape = shape + smplx["shapedirs"][..., start : start + 10] @ parameters["expression"][0]
    rest_pelvis = smplx["J_regressor"][0] @ (smplx["v_template"] + shape)
    parameters["transl"] = (np.array(pelvis) - rest_pelvis)[None].astype(np.float32)
    return parameters, tiny_smplx.in_smpl(parameters, smplx)


def write_body(root: Path, recording: str, frame: int, subject: int, parameters: object, split: str = "test") -> Path:
    path = root / "bodies" / split / recording / f"{frame:05d}" / f"{subject:03d}.pkl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(parameters))
    return path


def image_path(root: Path, recording: str, frame: int, number: int, suffix: str, split: str = "test") -> Path:
    path = root / "images" / split / recording / f"cam_{number:02d}" / f"{frame:05d}_{number:02d}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_image(path: Path, size: tuple[int, int], mark: tuple[float, float] | None = None) -> None:
    """A smooth picture, with a white square about a place if one is given."""
    across = np.linspace(0, 120, size[0], dtype=np.uint8)
    pixels = np.repeat(np.tile(across, (size[1], 1))[..., None], 3, axis=2)
    if mark:
        x, y = (round(part) for part in mark)
        pixels[y - 4 : y + 4, x - 4 : x + 4] = 255
    assert cv2.imwrite(str(path), pixels)


def write_set(root: Path) -> dict:
    """Two people and three cameras, one of which moves; one person and a camera that stands upright."""
    rng = np.random.default_rng(5)
    truth = {}
    for number in (0, 1):
        write_calibration(root / "scan_calibration/ParkingLot2/calibration" / f"{number:03d}.xml", camera(number))
    write_calibration(root / "scan_calibration/Pavallion/calibration/003.xml", camera(3, portrait=True))
    plans = (
        (
            DUET,
            {9: (-0.5, 0.1, 5.0), 14: (0.6, 0.0, 5.6)},
            {0: ".jpeg", 1: ".bmp", 5: ".jpeg"},
            range(45, 48),
        ),
        (SOLO, {14: (0.1, 0.1, 5.2)}, {3: ".png"}, range(9, 10)),
    )
    for recording, people, cameras, frames in plans:
        for frame in frames:
            for subject, pelvis in people.items():
                parameters, smpl = person_at(rng, GENDERS[subject], pelvis)
                write_body(root, recording, frame, subject, parameters)
                vertices, _ = body_oracle.posed(body_oracle.model(GENDERS[subject]), *smpl)
                truth[recording, frame, subject] = vertices, smpl
            for number, suffix in cameras.items():
                write_image(
                    image_path(root, recording, frame, number, suffix), PORTRAIT_EIGHTH if number == 3 else EIGHTH
                )
    return truth


def write_models(folder: Path) -> Path:
    """Both SMPL models, both SMPL-X models in the two file formats, and the matrix between them."""
    body_oracle.write_models(folder)
    tiny_smplx.write_model(folder / "smplx" / "SMPLX_MALE.npz", smplx_arrays("male"))
    tiny.write_pkl(folder / "smplx" / "SMPLX_FEMALE.pkl", smplx_arrays("female"))
    matrix = tiny_smplx.transfer_matrix(smplx_arrays("male"), body_oracle.model("male"))
    write_matrix(folder / "transfer_data" / "smplx2smpl_deftrafo_setup.pkl", matrix)
    return folder


def write_matrix(path: Path, matrix) -> None:
    """The official file: a scipy matrix whose second half is for normals, pickled by Python 2."""
    normals = np.random.default_rng(0).normal(size=matrix.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"mtx": scipy.sparse.hstack([matrix, normals]).tocsc()}, protocol=2))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("rich")
    write_models(folder / "models")
    return folder, write_set(folder / "RICH")


@pytest.fixture
def models(made) -> ModelFiles:
    return ModelFiles(made[0] / "models")


@pytest.fixture
def truth(made) -> dict:
    return made[1]


@pytest.fixture
def tree(made, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made[0] / "RICH", tmp_path / "RICH")
    return tmp_path / "RICH"


@pytest.fixture(scope="module")
def converted(made, tmp_path_factory) -> tuple[FrameStore, object]:
    """The undamaged set, converted once for the tests that only look."""
    out = tmp_path_factory.mktemp("out") / "rich.h5"
    summary = convert_rich(made[0] / "RICH", out, "test", ModelFiles(made[0] / "models"), options=QUIET)
    return FrameStore(out), summary


def rows_by_key(store: FrameStore) -> dict:
    """By recording, camera, frame and person."""
    result = {}
    for index in range(len(store)):
        row = store.read(index)
        recording, view, frame, subject = row.row_id.split("/")[1:]
        result[recording, int(view[4:]), int(frame), int(subject)] = row
    return result


def reasons(summary) -> dict[str, str]:
    return {entry.name: entry.reason for entry in summary.skipped}


def camera_of(recording: str, number: int) -> Camera:
    return camera(number, portrait=recording == SOLO)


def test_rows_project_to_where_the_body_is_in_every_camera(converted, truth, models):
    """Traps: SMPL-X and its pelvis, hands on top of the mean hand, expression, gender, upright camera, small images."""
    rows = rows_by_key(converted[0])
    assert set(rows) == {
        *((DUET, number, frame, subject) for number in (0, 1) for frame in range(45, 48) for subject in (9, 14)),
        (SOLO, 3, 9, 14),
    }
    for (recording, number, frame, subject), row in rows.items():
        model = load_body_model(models.smpl, row.gender)
        numbers = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
        vertices = model(BodyParameters.from_axis_angle(*numbers)).vertices
        projected = row.camera.batched().project(vertices)[0].numpy()
        expected = camera_of(recording, number).project(truth[recording, frame, subject][0])
        # The bound that converters promise is 0.5 px; the fit leaves some micrometres.
        np.testing.assert_allclose(projected, expected, atol=0.02)


def test_pose_shape_and_place_come_back(converted, truth):
    """Trap: the root turns about SMPL's rest pelvis, not about that of SMPL-X and not about the origin."""
    for (recording, number, frame, subject), row in rows_by_key(converted[0]).items():
        pose, betas, transl = truth[recording, frame, subject][1]
        view, arrays = camera_of(recording, number), body_oracle.model(GENDERS[subject])
        pelvis = body_oracle.rest_joints(arrays, betas)[0]
        root = view.rotation @ Rotation.from_rotvec(pose[:3]).as_matrix()
        np.testing.assert_allclose(Rotation.from_rotvec(row.pose[:3]).as_matrix(), root, atol=1e-4)
        np.testing.assert_allclose(row.transl, view.rotation @ (pelvis + transl) + view.shift - pelvis, atol=1e-4)
        np.testing.assert_allclose(row.pose[3:], pose[3:], atol=1e-3)
        np.testing.assert_allclose(row.betas, betas, atol=1e-3)


def test_rows_say_who_and_where(converted):
    """Trap: the people of a recording are all numbers of its name, and their genders a table of their own."""
    store, _ = converted
    row = rows_by_key(store)[DUET, 1, 46, 9]
    assert (row.gender, row.frame, row.row_id) == ("female", 46, f"rich/{DUET}/cam_01/00046/009")
    assert store.subjects[row.subject] == f"{DUET}/009"
    assert store.sequences[row.sequence] == f"{DUET}/cam_01"
    assert row.image_name == f"images/test/{DUET}/cam_01/00046_01.bmp"
    assert rows_by_key(store)[SOLO, 3, 9, 14].gender == "male"


def test_cameras_are_scaled_to_the_images(converted):
    """Traps: calibrations are for 4112 x 3008; two cameras of Pavallion are 3008 x 4112."""
    rows = rows_by_key(converted[0])
    for (recording, number), size in {(DUET, 0): EIGHTH, (DUET, 1): EIGHTH, (SOLO, 3): PORTRAIT_EIGHTH}.items():
        row = next(row for key, row in rows.items() if key[:2] == (recording, number))
        matrix = camera_of(recording, number).matrix / 8
        assert tuple(row.camera.size_px) == size
        np.testing.assert_allclose(row.camera.focal_px, (matrix[0, 0], matrix[1, 1]), rtol=1e-6)
        np.testing.assert_allclose(row.camera.center_px, matrix[:2, 2], rtol=1e-6)


def test_boxes_hold_the_person(converted, truth):
    for (recording, number, frame, subject), row in rows_by_key(converted[0]).items():
        vertices_px = camera_of(recording, number).project(truth[recording, frame, subject][0])
        low, high = vertices_px.min(axis=0), vertices_px.max(axis=0)
        # These bodies' vertices lie about 3 cm, or 3 px, from their joints.
        assert (np.abs(row.box_px[:2] - (low + high) / 2) < 25).all()
        assert 0.9 < row.box_px[2] / (high - low).max() < 1.4


def test_jpegs_are_stored_as_they_are(converted, tree):
    store, _ = converted
    for index in range(len(store)):
        row = store.read(index)
        if row.image_name.endswith(".jpeg"):
            assert store.read_jpeg(index) == (tree / row.image_name).read_bytes()
    assert len(store.image_names) == 7


@pytest.mark.parametrize("suffix", [".bmp", ".png"])
def test_of_other_images_the_piece_about_the_people_is_stored(tree, models, tmp_path, suffix):
    """At full size, and the person's pelvis is where the picture has its mark."""
    solo = write_full_size_recording(tree, suffix)
    convert_rich(tree, tmp_path / "out.h5", "train", models, options=QUIET)
    store = FrameStore(tmp_path / "out.h5")
    row, piece = store.read(0), store.read_image(0)
    assert piece.size_px == (4112, 3008)
    assert piece.pixels.shape[0] < 3008
    assert piece.pixels.shape[1] < 4112
    brightness = piece.pixels.astype(float).mean(axis=2)
    rows, columns = np.nonzero(brightness > 200)
    # Pixel i covers i to i + 1; the mark is 8 px wide and centred on a whole number.
    found = np.array([columns.mean() + 0.5, rows.mean() + 0.5]) + piece.origin_px
    np.testing.assert_allclose(found, np.round(solo), atol=0.5)
    cx, cy, side = row.box_px
    assert abs(cx - solo[0]) < side / 2
    assert abs(cy - solo[1]) < side / 2


def write_full_size_recording(tree: Path, suffix: str) -> np.ndarray:
    """One frame in the split train; where the pelvis is in the image."""
    parameters, smpl = person_at(np.random.default_rng(1), "male", (0.3, -0.2, 9.0))
    write_body(tree, "Gym_014_squat", 1, 14, parameters, "train")
    write_calibration(tree / "scan_calibration/Gym/calibration/002.xml", camera(2))
    _, joints = body_oracle.posed(body_oracle.model("male"), *smpl)
    pelvis_px = 8 * camera(2).project(joints[:1])[0]
    write_image(image_path(tree, "Gym_014_squat", 1, 2, suffix, "train"), (4112, 3008), tuple(pelvis_px))
    return pelvis_px


def test_full_size_images_have_the_calibration_as_it_is(tree, models, tmp_path):
    write_full_size_recording(tree, ".png")
    convert_rich(tree, tmp_path / "out.h5", "train", models, options=QUIET)
    row = FrameStore(tmp_path / "out.h5").read(0)
    np.testing.assert_allclose(row.camera.center_px, camera(2).matrix[:2, 2], rtol=1e-6)


def test_moving_cameras_are_skipped(converted):
    """Trap: some recordings have a camera without a calibration."""
    entry = next(entry for entry in converted[1].skipped if "cam_05" in entry.name)
    assert entry == (f"rich/{DUET}/cam_05", "its camera moves: it has no calibration", 6)


def test_lens_distortion_is_left_out_and_told(tree, models, tmp_path, converted):
    """Trap: the toolkit reads it and does not use it."""
    file = tree / "scan_calibration/ParkingLot2/calibration/000.xml"
    write_calibration(file, camera(0), (-0.2, 0.05))
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    (note,) = (note for note in summary.notes if "lens" in note)
    number = float(note.split()[-4])
    assert 0.2 < number < 10
    plain = rows_by_key(converted[0])[DUET, 0, 45, 9]
    np.testing.assert_array_equal(rows_by_key(FrameStore(tmp_path / "out.h5"))[DUET, 0, 45, 9].pose, plain.pose)
    assert not any("lens" in note for note in converted[1].notes)


def test_the_summary_tells_how_well_smpl_fits(converted):
    note = converted[1].notes[0]
    assert note == "SMPL fitted to the vertices of SMPL-X (smplx2smpl_deftrafo_setup.pkl): 0.0 mm, worst body 0.0 mm"


def test_every_nth_frame_counts_from_the_first_of_the_recording(tree, models, tmp_path):
    """Trap: frame numbers begin anywhere."""
    convert_rich(tree, tmp_path / "out.h5", "test", models, every=2, options=QUIET)
    assert {key[2] for key in rows_by_key(FrameStore(tmp_path / "out.h5")) if key[0] == DUET} == {45, 47}
    with pytest.raises(InputError, match="every 0"):
        convert_rich(tree, tmp_path / "none.h5", "test", models, every=0, options=QUIET)


def test_absent_bodies_and_images_are_skipped_and_counted(tree, models, tmp_path):
    """Trap: a body file may be absent for a frame, or for one of two people."""
    shutil.rmtree(tree / "bodies/test" / DUET / "00045")
    (tree / "bodies/test" / DUET / "00046/009.pkl").unlink()
    image_path(tree, DUET, 47, 0, ".jpeg").unlink()
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    why = reasons(summary)
    assert [why[f"rich/{DUET}/cam_0{number}/00045/014"] for number in (0, 1)] == ["there is no body file"] * 2
    assert why[f"rich/{DUET}/cam_01/00046/009"] == "there is no body file"
    assert why[f"rich/{DUET}/cam_00/00047/014"] == "there is no image file"
    assert summary.rows == 13 - 4 - 2 - 2
    assert sum("45/" in entry.name for entry in summary.skipped) == 4


def damaged(parameters: dict, **changes: object) -> dict:
    return {key: value for key, value in {**parameters, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"transl": np.full((1, 3), np.nan, np.float32)}, "a number is not finite or out of range"),
        ({"betas": np.full((1, 10), 1e30)}, "a number is not finite or out of range"),
        ({"betas": None}, "its body file is damaged: has no 'betas'"),
        ({"body_pose": np.zeros((1, 66), np.float32)}, "'body_pose' has shape (1, 66), expected was (1, 63) or (63)"),
        ({"left_hand_pose": np.zeros((1, 45), np.float32)}, "'left_hand_pose' has shape (1, 45)"),
        ({"expression": "smile"}, "'expression' does not hold numbers"),
        ({"transl": np.array([[0, 0, -3]], np.float32)}, "the camera does not see the person"),
    ],
    ids=["NaN", "absurd", "missing key", "wrong shape", "hands without components", "text", "behind the camera"],
)
def test_a_bad_body_is_skipped_alone(tree, models, tmp_path, change, reason):
    path = tree / "bodies/test" / DUET / "00046/014.pkl"
    path.write_bytes(pickle.dumps(damaged(pickle.loads(path.read_bytes()), **change)))
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert reason in reasons(summary)[f"rich/{DUET}/cam_00/00046/014"]
    assert summary.rows == 11
    assert (DUET, 0, 46, 9) in rows_by_key(FrameStore(tmp_path / "out.h5"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"cos\nsystem\n(S'true'\ntR.", "refused, it names os.system"), (b"\x80\x04]", "not a whole pickle")],
    ids=["runs code", "truncated"],
)
def test_a_body_file_that_is_no_pickle_of_arrays_is_skipped(tree, models, tmp_path, data, reason):
    (tree / "bodies/test" / SOLO / "00009/014.pkl").write_bytes(data)
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert reason in reasons(summary)[f"rich/{SOLO}/cam_03/00009/014"]


@pytest.mark.parametrize(("number", "suffix"), [(0, ".jpeg"), (1, ".bmp")])
def test_images_that_are_cut_off_are_skipped(tree, models, tmp_path, number, suffix):
    path = image_path(tree, DUET, 46, number, suffix)
    path.write_bytes(path.read_bytes()[:-40])
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert "its image is damaged" in reasons(summary)[f"rich/{DUET}/cam_0{number}/00046/009"]
    assert summary.rows == 11


def test_an_image_of_another_size_is_skipped(tree, models, tmp_path):
    write_image(image_path(tree, DUET, 47, 0, ".jpeg"), (257, 188))
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert reasons(summary)[f"rich/{DUET}/cam_00/00047/009"] == "its image has another size than others of its camera"


@pytest.mark.parametrize("size", [PORTRAIT_EIGHTH, (640, 480)], ids=["turned", "cut"])
def test_images_that_were_turned_or_cut_are_refused(tree, models, tmp_path, size):
    for frame in range(45, 48):
        write_image(image_path(tree, DUET, frame, 0, ".jpeg"), size)
    message = rf"000\.xml: images of {size[0]} x {size[1]} do not fit the principal point \(2148, 1304\)"
    with pytest.raises(InputError, match=message):
        convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("suffix", [".bmp", ".png", ".jpg"])
def test_whole_images_are_told_from_cut_ones(tmp_path, suffix):
    write_image(tmp_path / f"image{suffix}", (31, 20))
    data = (tmp_path / f"image{suffix}").read_bytes()
    assert whole_image_size_px(suffix, data) == (31, 20)
    for part in (data[: len(data) // 2], data[:5], b"", data[1:]):
        with pytest.raises(ValueError, match=r"cut off|begin as"):
            whole_image_size_px(suffix, part)


def test_empty_recordings_are_skipped(tree, models, tmp_path):
    (tree / "bodies/test/Gym_014_nothing").mkdir()
    (tree / "images/test/Gym_014_nothing").mkdir()
    shutil.rmtree(tree / "images/test" / SOLO)
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert reasons(summary)["rich/Gym_014_nothing"] == "the recording has no frames"
    assert reasons(summary)[f"rich/{SOLO}"] == "the recording has no images"
    assert summary.rows == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<opencv_storage><CameraMatrix>", "not a whole XML file"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><opencv_storage/>', "it declares entities"),
        ("<opencv_storage/>", "it lacks CameraMatrix"),
    ],
    ids=["truncated", "entities", "empty"],
)
def test_a_damaged_calibration_is_named(tree, models, tmp_path, text, message):
    (tree / "scan_calibration/ParkingLot2/calibration/001.xml").write_text(text)
    with pytest.raises(InputError, match=rf"001\.xml: .*{message}"):
        convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RICH"]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("<dt>d</dt>\n  <data>\n    1.0 ", "<dt>d</dt>\n  <data>\n    nan ", "CameraMatrix is not 12 finite numbers"),
        ("<dt>d</dt>\n  <data>\n    1.0 ", "<dt>d</dt>\n  <data>\n    -1.0 ", "CameraMatrix is not a rotation"),
        ("<dt>d</dt>\n  <data>\n    1.0 ", "<dt>d</dt>\n  <data>\n    ", "CameraMatrix is not 12 finite numbers"),
        ("3570.8 0.0 ", "3570.8 0.1 ", "Intrinsics is not that of a pinhole camera"),
        ("3570.8 0.0 ", "x 0.0 ", "Intrinsics holds something else than numbers"),
        ("0.0 0.0 0.0</data></Dis", "0.0 0.0</data></Dis", "Distortion holds 7 numbers"),
    ],
    ids=["NaN", "mirror", "11 numbers", "skew", "text", "7 coefficients"],
)
def test_wrong_calibrations_are_named(tmp_path, before, after, message):
    file = tmp_path / "000.xml"
    write_calibration(file, camera(0))
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(InputError, match=rf"000\.xml: {message}"):
        read_calibration(file)


def test_genders_are_those_of_the_file_if_it_is_there(tree):
    assert read_genders(tree)[21] == "female"
    assert read_genders(tree)[0] == read_genders(tree)[20] == "male"
    (tree / "gender.json").write_text(json.dumps({"0": "female"}))
    assert read_genders(tree) == {0: "female"}
    for content in ('{"0": "other"}', "[]", '{"a": "male"}', "{"):
        (tree / "gender.json").write_text(content)
        with pytest.raises(InputError, match=r"gender\.json: "):
            read_genders(tree)


def test_a_person_of_unknown_gender_is_named(tree, models, tmp_path):
    (tree / "gender.json").write_text(json.dumps({"9": "female"}))
    with pytest.raises(InputError, match="no gender is known of person 14"):
        convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)


def test_names_of_recordings():
    def subjects(name: str) -> tuple[int, ...]:
        return Recording(name, Path(name), None).subjects

    assert subjects("ParkingLot2_009_burpeejump1") == (9,)
    assert subjects("LectureHall_009_021_reparingprojector1") == (9, 21)
    for name in ("Gym", "Gym_squat", "Gym_squat_014"):
        with pytest.raises(InputError, match=rf"{name}: its name is not"):
            subjects(name)


def test_folders_as_the_archives_unpack_them(tree, models, tmp_path):
    """`test_body` for `bodies/test`, and the JPEG release."""
    (tree / "bodies/test").rename(tree / "test_body")
    (tree / "bodies").rmdir()
    (tree / "images").rename(tree / "JPG_images")
    assert convert_rich(tree.parent, tmp_path / "out.h5", "test", models, options=QUIET).rows == 13


@pytest.mark.parametrize("part", ["bodies", "images", "scan_calibration", "scan_calibration/Pavallion"])
def test_a_missing_folder_is_named(tree, models, tmp_path, part):
    (tree / part).rename(tree / "elsewhere")
    with pytest.raises(InputError, match=rf"{part}.*: |holds no {part}"):
        convert_rich(tree, tmp_path / "out.h5", "test", models, options=QUIET)


def test_a_split_without_bodies_is_named(tree, models, tmp_path):
    with pytest.raises(InputError, match=r"it holds no bodies/val/<recording>; unpack val_body\.zip"):
        convert_rich(tree, tmp_path / "out.h5", "validation", models, options=QUIET)


def test_a_dry_run_counts_and_writes_nothing(tree, models, tmp_path):
    options = RunOptions(workers=1, dry_run=True, quiet=True)
    summary = convert_rich(tree, tmp_path / "out.h5", "test", models, options=options)
    assert (summary.state, summary.rows) == ("planned", 13)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RICH"]


def test_the_file_does_not_depend_on_the_number_of_threads(tree, models, tmp_path):
    for workers in (0, 3):
        options = RunOptions(workers=workers, quiet=True)
        convert_rich(tree, tmp_path / f"{workers}.h5", "test", models, options=options)
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "3.h5").read_bytes()


def test_a_complete_file_is_left_alone(tree, models, tmp_path):
    out = tmp_path / "out.h5"
    convert_rich(tree, out, "test", models, options=QUIET)
    shutil.rmtree(tree / "bodies")
    assert convert_rich(tree, out, "test", models, options=QUIET).state == "complete"


def test_without_the_official_matrix_our_own_correspondence_is_used(tmp_path):
    """And said: on a mesh that has SMPL's vertices among others, they are found."""
    stored = dict(np.load(STAND_INS["standin-tiny"]))
    parts = [stored[f"J_regressor_{part}"] for part in ("values", "rows", "cols")]
    stored["J_regressor"] = scipy.sparse.csr_matrix((parts[0], tuple(parts[1:])), shape=stored["J_regressor_shape"])
    arrays = tiny_smplx.model_arrays(stored, columns=20)
    tiny_smplx.write_model(tmp_path / "models" / "SMPLX_MALE.npz", arrays)
    shutil.copy(STAND_INS["standin-tiny"], tmp_path / "models" / "SMPL_MALE.npz")
    parameters = tiny_smplx.random_parameters(np.random.default_rng(0), bend=0.2)
    parameters |= {"transl": np.array([[0.2, 0, 5]], np.float32), "global_orient": np.array([[3, 0.1, 0]], np.float32)}
    root = tmp_path / "RICH"
    write_body(root, "Gym_014_squat", 7, 14, parameters)
    write_calibration(root / "scan_calibration/Gym/calibration/001.xml", camera(1))
    write_image(image_path(root, "Gym_014_squat", 7, 1, ".jpeg"), EIGHTH)
    summary = convert_rich(root, tmp_path / "out.h5", "test", ModelFiles(tmp_path / "models"), options=QUIET)
    assert summary.notes[0].startswith("SMPL fitted to the vertices of SMPL-X (closest points of the two models): 0.")
    row = FrameStore(tmp_path / "out.h5").read(0)
    pose, betas, transl = tiny_smplx.in_smpl(parameters, arrays)
    body, view = load_body_model("standin-tiny"), camera(1)
    given, found = (
        body(BodyParameters.from_axis_angle(*(torch.tensor(part, dtype=torch.float32)[None] for part in parts))).joints
        for parts in ((pose, betas, transl), (row.pose, row.betas, row.transl))
    )
    expected = given[0].numpy() @ view.rotation.T + view.shift
    np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_the_command_line(tree, models, tmp_path, capsys):
    out = tmp_path / "rich.h5"
    words = ["data", "convert", "rich", str(tree), "--out", str(out), "--split", "test", "--body", str(models.smpl)]
    assert main.main([*words, "--every", "3", "--smplx", str(models.smpl / "smplx"), "--workers", "1"]) == 0
    assert len(FrameStore(out)) == 5
    assert "SMPL fitted to the vertices" in " ".join(capsys.readouterr().out.split())
