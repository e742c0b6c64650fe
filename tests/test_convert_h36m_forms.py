"""Human3.6M as annotations in JSON and as SPIN's .npz, and what a conversion is from the outside."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_h36m as h36m
from tiny_h36m import World

import main
from bodies import InputError
from datamodules.convert.h36m import H36MChoices, convert_h36m
from datamodules.convert.summary import RunOptions
from datamodules.store import FrameStore

QUIET = RunOptions(workers=2, quiet=True)
FRONTAL = "60457274"
FIRST, SECOND = (f"S9_act_{action:02d}_subact_01.{FRONTAL}" for action in (2, 3))


@pytest.fixture(scope="module")
def world() -> World:
    return h36m.make_world()


@pytest.fixture(scope="module")
def body(world, tmp_path_factory) -> Path:
    return h36m.write_body(tmp_path_factory.mktemp("body") / "smpl", world)


@pytest.fixture(scope="module")
def made(world, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("json") / "Human36M"
    root.mkdir()
    h36m.write_annotations(root, world, 9, ("55011271", FRONTAL))
    h36m.write_annotations(root, world, 11, (FRONTAL,))
    return root


@pytest.fixture
def root(made, tmp_path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(made, tmp_path / "Human36M")
    return tmp_path / "Human36M"


def annotation(root: Path, kind: str) -> Path:
    return root / "annotations" / f"Human36M_subject9_{kind}.json"


def change(root: Path, kind: str, edit) -> None:
    content = json.loads(annotation(root, kind).read_text())
    edit(content)
    annotation(root, kind).write_text(json.dumps(content))


def shot(world: World, sequence: str, frame: int) -> h36m.Shot:
    subject, action = int(sequence[1:].partition("_")[0]), int(sequence.split("_")[2])
    return world.shots[subject, h36m.TRIALS[subject][action - 2], sequence[-8:], frame]


def test_annotated_rows_project_to_where_the_body_is(root, world, body, tmp_path):
    """Traps: world to camera about the rest pelvis; camera in mm, translation in m; right leg first; text for keys."""
    summary = convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert {sequence for sequence, _ in rows} == {
        FIRST, SECOND, FIRST.replace("S9", "S11"), SECOND.replace("S9", "S11"),
    }  # fmt: skip
    for (sequence, frame), (row, pixels) in rows.items():
        h36m.check_against_truth(row, shot(world, sequence, frame), body, sequence)
        assert abs(float(np.median(pixels)) - h36m.gray(frame)) < 3
    # Trap: frames may be missing among the parameters.
    assert h36m.reasons(summary)[f"h36m/{SECOND}/000005/0"] == "it has no SMPL parameters"
    assert summary.notes[0].startswith("images keep the distortion of the lenses (Human36M_subject9_camera.json has no")


def test_annotated_boxes_and_images_are_those_of_the_files(root, body, tmp_path):
    """Trap: boxes are corner and size; 1.25 is I2L-MeshNet's margin."""
    convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET)
    store = FrameStore(tmp_path / "out.h5")
    np.testing.assert_allclose(store.read(0).box_px, (460, 480, 1.25 * 360))
    assert store.read_jpeg(0) == (root / "images" / store.read(0).image_name).read_bytes()


def test_cameras_with_distortion_come_before_those_without(root, world, body, tmp_path):
    h36m.write_karfly(root / "camera-parameters.json")
    summary = convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET)
    assert summary.notes == ()
    for (sequence, frame), (row, _) in h36m.rows_of(tmp_path / "out.h5").items():
        h36m.check_against_truth(row, shot(world, sequence, frame), body, sequence)
        assert np.abs(row.box_px - (460, 480, 450)).max() > 0.3


def test_the_test_set_of_annotations_is_camera_4(root, body, tmp_path):
    convert_h36m(root, tmp_path / "out.h5", "test", body, H36MChoices(views="all"), QUIET)
    assert {sequence[-8:] for sequence, _ in h36m.rows_of(tmp_path / "out.h5")} == {"55011271", FRONTAL}


def test_neural_annot_replaces_the_other_fits(root, world, body, tmp_path):
    """In a folder of their own too."""
    for subject in (9, 11):
        fits = root / "annotations" / f"Human36M_subject{subject}_smpl_param.json"
        (tmp_path / "neural").mkdir(exist_ok=True)
        shutil.copy(fits, tmp_path / "neural" / f"Human36M_subject{subject}_SMPL_NeuralAnnot.json")
        fits.write_text("{}")
    convert_h36m(root, tmp_path / "out.h5", "test", body, H36MChoices(smpl=tmp_path / "neural"), QUIET)
    assert len(h36m.rows_of(tmp_path / "out.h5")) == 10
    with pytest.raises(InputError, match="nowhere: there is no such folder of SMPL parameters"):
        convert_h36m(root, tmp_path / "x.h5", "test", body, H36MChoices(smpl=tmp_path / "nowhere"), QUIET)


def test_fits_that_the_joints_contradict_are_left_out(root, world, body, tmp_path):
    """Trap: I2L-MeshNet's reader drops fits beyond 25 mm, with the centres aligned."""

    def bend(content):
        content["2"]["1"]["5"]["pose"][3:6] = [1.2, 0, 0]
        content["2"]["1"]["0"]["trans"][0] += 3.0

    change(root, "smpl_param", bend)
    summary = convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET)
    reasons = h36m.reasons(summary)
    assert reasons[f"h36m/{FIRST}/000005/0"] == "its SMPL fit is far from the measured joints"
    assert reasons[f"h36m/{FIRST}/000000/0"] == "its SMPL fit is beside the measured joints"
    assert f"h36m/{FIRST}/000010/0" not in reasons


def test_annotated_joints_alone(root, world, body, tmp_path):
    for subject in (9, 11):
        (root / "annotations" / f"Human36M_subject{subject}_smpl_param.json").unlink()
    convert_h36m(root, tmp_path / "out.h5", "test", body, H36MChoices(joints_only=True), QUIET)
    for (sequence, frame), (row, _) in h36m.rows_of(tmp_path / "out.h5").items():
        np.testing.assert_allclose(row.joints_m[:, :3], shot(world, sequence, frame).joints, atol=1e-4)
        assert not row.pose.any()


def test_large_shapes_are_kept(world, body, tmp_path):
    """Trap: I2L-MeshNet's reader zeroes shapes with |beta| > 3 as targets of its network, but not in its meshes."""
    large = h36m.make_world(first_beta=3.5)
    (tmp_path / "large").mkdir()
    for subject in (9, 11):
        h36m.write_annotations(tmp_path / "large", large, subject, (FRONTAL,))
    convert_h36m(tmp_path / "large", tmp_path / "out.h5", "test", body, options=QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert rows
    assert all(row.betas[0] == pytest.approx(3.5) for row, _ in rows.values())
    for (sequence, frame), (row, _) in rows.items():
        h36m.check_against_truth(row, shot(large, sequence, frame), body, sequence)


@pytest.mark.parametrize(
    ("kind", "edit", "message"),
    [
        ("data", lambda c: c.pop("images"), "data.json: it has no list images"),
        ("data", lambda c: c["images"][0].pop("frame_idx"), "data.json: an image has no frame_idx"),
        ("data", lambda c: c["images"][0].update(cam_idx=5), "cam_idx is 5, expected was 1 to 4"),
        ("data", lambda c: c["images"][0].update(action_idx="x"), "an index is not a number"),
        ("data", lambda c: [a.update(bbox=[1, 2]) for a in c["annotations"]], "data.json: a bbox is not four numbers"),
        ("camera", lambda c: c.pop("4"), "camera.json: it has no 4"),
        ("camera", lambda c: c["4"].pop("t"), "camera.json: it has no t"),
        (
            "joint_3d",
            lambda c: c["2"]["1"].update({"5": [[1, 2, 3]]}),
            r"joint_3d.json: frame 5: it has shape \(1, 3\)",
        ),
        ("smpl_param", lambda c: c["2"]["1"]["5"].pop("trans"), "smpl_param.json: frame 5: it lacks pose, shape or"),
        ("smpl_param", lambda c: c["2"]["1"]["5"].update(pose=[0.0]), "smpl_param.json: frame 5, pose: it has shape"),
        ("smpl_param", lambda c: c["2"]["1"]["5"].update(pose=["x"] * 72), "frame 5, pose: not an array of numbers"),
    ],
)
def test_damaged_annotations_are_named(root, body, tmp_path, kind, edit, message):
    change(root, kind, edit)
    with pytest.raises(InputError, match=message):
        convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Human36M"]


@pytest.mark.parametrize("kind", ["data", "joint_3d", "smpl_param", "camera"])
def test_cut_off_annotations_are_named(root, body, tmp_path, kind):
    annotation(root, kind).write_text(annotation(root, kind).read_text()[:-10])
    with pytest.raises(InputError, match=rf"{kind}\.json: not a whole JSON file"):
        convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET)


def test_annotated_rows_with_nan_missing_joints_and_missing_images_are_skipped(root, body, tmp_path):
    change(root, "smpl_param", lambda c: c["2"]["1"]["5"]["shape"].__setitem__(0, float("nan")))
    change(root, "joint_3d", lambda c: c["2"]["1"].pop("10"))
    (root / "images/s_09_act_02_subact_01_ca_04/s_09_act_02_subact_01_ca_04_000001.jpg").unlink()
    reasons = h36m.reasons(convert_h36m(root, tmp_path / "out.h5", "test", body, options=QUIET))
    assert [reasons[f"h36m/{FIRST}/{frame:06d}/0"] for frame in (0, 5, 10)] == [
        "there is no image file",
        "a number of its SMPL fit is not finite",
        "its measured joints are missing or not finite",
    ]


@pytest.fixture
def spin(world, tmp_path) -> Path:
    """The .npz of a recording for training, with images and the cameras beside it."""
    folder = tmp_path / "spin"
    folder.mkdir()
    arrays = h36m.spin_arrays(world, 1, "Walking", FRONTAL)
    np.savez(folder / "h36m_train.npz", **arrays)
    h36m.write_images(folder, arrays["imgname"].tolist(), FRONTAL)
    h36m.write_karfly(folder / "camera-parameters.json")
    return folder / "h36m_train.npz"


def rewrite(path: Path, **changes) -> None:
    with np.load(path) as archive:
        arrays = dict(archive) | changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def test_spin_rows_project_to_where_the_body_is(spin, world, body, tmp_path):
    """Traps: joints are relative to the pelvis; 24 slots; `part` is distorted; names count from 1; scale."""
    summary = convert_h36m(spin, tmp_path / "out.h5", "train", body, options=QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert sorted(rows) == [(f"S1_Walking.{FRONTAL}", frame) for frame in (0, 5)]
    for (sequence, frame), (row, _) in rows.items():
        h36m.check_against_truth(row, h36m.shot_of(world, sequence, frame), body, sequence)
        # The lens moves little in the middle of the image.
        np.testing.assert_allclose(row.box_px, (500, 480, 300), atol=3)
    assert h36m.reasons(summary) == {f"h36m/S1_Walking.{FRONTAL}/000010/0": "it has no SMPL parameters"}


def test_spins_test_set_takes_the_place_from_the_joints_of_the_data_set(world, body, tmp_path):
    """Traps: it has neither `part` nor SMPL parameters; joints of another recording would not fit."""
    arrays = h36m.spin_arrays(world, 9, "Greeting", FRONTAL)
    path = tmp_path / "h36m_valid_protocol2.npz"
    np.savez(path, **{key: arrays[key] for key in ("imgname", "center", "scale", "S")})
    h36m.write_images(tmp_path, arrays["imgname"].tolist(), FRONTAL)
    h36m.write_karfly(tmp_path / "camera-parameters.json")
    choices = H36MChoices(joints_only=True)
    with pytest.raises(InputError, match=r"protocol2\.npz: where people are cannot be known"):
        convert_h36m(path, tmp_path / "out.h5", "test", body, choices, QUIET)
    h36m.write_joints(tmp_path, world, 9, "Greeting", FRONTAL)
    convert_h36m(path, tmp_path / "out.h5", "test", body, choices, QUIET)
    rows = h36m.rows_of(tmp_path / "out.h5")
    assert len(rows) == 3
    for (sequence, frame), (row, _) in rows.items():
        np.testing.assert_allclose(row.joints_m[:, :3], h36m.shot_of(world, sequence, frame).joints, atol=1e-4)
    rewrite(path, S=np.where(np.arange(4) < 3, arrays["S"] + 0.1 * np.arange(24)[:, None] / 24, arrays["S"]))
    with pytest.raises(InputError, match=r"joints of S9_Greeting\.60457274 differ from those in .* by \d+ mm"):
        convert_h36m(path, tmp_path / "other.h5", "test", body, choices, QUIET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imgname": None}, "has no 'imgname'"),
        ({"scale": None}, "has no 'scale'"),
        ({"S": None}, "has no 'S'"),
        ({"S": np.zeros((3, 17, 4))}, r"'S' has shape \(3, 17, 4\), expected was \(3, 24, 4\)"),
        ({"pose": np.zeros((3, 24))}, "'pose' has shape"),
        ({"part": np.zeros((2, 24, 3))}, "'part' has shape"),
        ({"imgname": np.array(["a.jpg"] * 3)}, "'a.jpg' is not how SPIN calls an image of this data set"),
    ],
)
def test_damaged_archives_are_named(spin, body, tmp_path, changes, message):
    rewrite(spin, **changes)
    with pytest.raises(InputError, match=rf"h36m_train\.npz: .*{message}"):
        convert_h36m(spin, tmp_path / "out.h5", "train", body, options=QUIET)
    assert not (tmp_path / "out.h5").exists()


def test_a_cut_off_archive_is_named_and_nan_costs_its_row(spin, world, body, tmp_path):
    joints = h36m.spin_arrays(world, 1, "Walking", FRONTAL)["S"]
    joints[0, 14, 1] = np.nan
    rewrite(spin, S=joints)
    summary = convert_h36m(spin, tmp_path / "nan.h5", "train", body, options=QUIET)
    assert "not finite" in h36m.reasons(summary)[f"h36m/S1_Walking.{FRONTAL}/000000/0"]
    spin.write_bytes(spin.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"h36m_train\.npz: is not a whole \.npz"):
        convert_h36m(spin, tmp_path / "out.h5", "train", body, options=QUIET)


def test_an_archive_of_nobody_of_the_split_leaves_nothing(spin, body, tmp_path):
    with pytest.raises(InputError, match="there is nothing to be converted"):
        convert_h36m(spin, tmp_path / "out.h5", "test", body, options=QUIET)


def test_a_dry_run_counts_and_writes_nothing(root, body, tmp_path):
    summary = convert_h36m(root, tmp_path / "out.h5", "test", body, options=RunOptions(1, dry_run=True, quiet=True))
    assert (summary.state, summary.rows, len(summary.skipped)) == ("planned", 10, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Human36M"]


def test_the_file_does_not_depend_on_the_number_of_threads(root, body, tmp_path):
    for workers in (0, 4):
        convert_h36m(root, tmp_path / f"{workers}.h5", "test", body, options=RunOptions(workers, quiet=True))
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "4.h5").read_bytes()


def test_a_complete_file_is_left_alone(root, body, tmp_path):
    out = tmp_path / "out.h5"
    convert_h36m(root, out, "test", body, options=QUIET)
    shutil.rmtree(root)
    assert convert_h36m(root, out, "test", body, options=QUIET).state == "complete"
    with pytest.raises(InputError, match="it holds h36m, test; give --overwrite"):
        convert_h36m(root, out, "train", body, options=QUIET)


def test_what_makes_no_sense_is_refused(root, body, tmp_path):
    out = tmp_path / "out.h5"
    with pytest.raises(InputError, match="has no validation split, only train and test"):
        convert_h36m(root, out, "validation", body, options=QUIET)
    with pytest.raises(InputError, match="every 0"):
        convert_h36m(root, out, "test", body, H36MChoices(every=0), QUIET)
    (tmp_path / "empty").mkdir()
    h36m.write_karfly(tmp_path / "empty" / "camera-parameters.json")
    with pytest.raises(InputError, match=r"empty: it is none of what Human3\.6M is kept in"):
        convert_h36m(tmp_path / "empty", out, "test", body, options=QUIET)
    bare = tmp_path / "bare"
    shutil.copytree(body, bare)
    (bare / "J_regressor_h36m.npy").unlink()
    with pytest.raises(InputError, match=r"does not define the keypoint set 'h36m17'; put J_regressor_h36m\.npy"):
        convert_h36m(root, out, "test", bare, options=QUIET)


def test_through_the_command_line(root, body, tmp_path, capsys):
    out = tmp_path / "out.h5"
    words = ["data", "convert", "h36m", str(root), "--out", str(out), "--split", "test", "--body", str(body)]
    assert main.main([*words, "--views", "all", "--workers", "1", "--no-undistort"]) == 0
    assert "converted" in capsys.readouterr().out
    assert f"h36m/{SECOND}/000005/0\t1\tit has no SMPL parameters" in Path(f"{out}.skipped.tsv").read_text()
    assert len(FrameStore(out)) == 15
    assert main.main([*words, "--every", "0", "--overwrite"]) == 2
    assert "every 0" in capsys.readouterr().err
