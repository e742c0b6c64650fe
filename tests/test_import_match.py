"""Frames and predictions find each other by image name and person, and the command reports what is left."""

import numpy as np
import pytest
import tiny_import as ti
from scipy.spatial.transform import Rotation

from bodies import InputError
from commands._data_import import import_
from datamodules.convert.match import find_images, match_persons, square_overlap
from datamodules.store import EstimateStore

TRUE = ti.truth(2)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    return ti.write_frames(tmp_path_factory.mktemp("frames") / "frames.h5", TRUE)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("imageFiles/walk_00/image_00001.jpg", 1),
        ("/data/3dpw/imageFiles/walk_00/image_00001.jpg", 1),
        ("C:\\data\\imageFiles\\run_01\\image_00001.jpg", 4),
        ("./imageFiles/run_01/image_00001.png", 4),  # frames extracted anew, in another format
        ("run_01/image_00001", 4),
        ("elsewhere/run_01/image_00001.jpg", 4),  # other folders above
        ("image_00002.jpg", 2),
        ("image_00001.jpg", -2),  # in both sequences
        ("swim_09/image_00001.jpg", -1),  # the file's name alone is not enough
        ("swim_09/image_00002.jpg", -1),
        ("mage_00002.jpg", -1),
        ("", -1),
    ],
)
def test_image_names(name, image):
    assert find_images(ti.IMAGE_NAMES, [name]).tolist() == [image]


def test_a_bare_name_in_the_frames_is_found_below_any_folder():
    names = ["S9_Directions_1.54138969_000001.jpg", "S9_Directions_1.54138969_000006.jpg"]
    given = ["images/S9_Directions_1.54138969_000006.jpg", "S9_Directions_1.54138969_000001"]
    assert find_images(names, given).tolist() == [1, 0]


def test_overlap_of_squares():
    first = np.array([[0.0, 0, 2], [10, 0, 2]])
    second = np.array([[0.0, 0, 2], [1, 0, 2], [0, 0, 4], [9, 9, np.nan], [0, 0, 0]])
    assert np.allclose(square_overlap(first, second)[0], [1, 2 / 6, 4 / 16, 0, 0])
    assert np.allclose(square_overlap(first, second)[1], 0)


def test_persons_are_assigned_jointly_and_duplicates_are_left_over(frames):
    images = np.array([0, 0, 0, 1, 4])
    one, other = TRUE.box_px[0], TRUE.box_px[1]
    # The second detection of the first person is worse; the person of image 1 is where nobody is.
    aside, away = np.array([40.0, 0, 0]), np.array([5000.0, 0, 0])
    box_px = np.stack([other, one + aside, one, one + away, TRUE.box_px[6]])
    matches = match_persons(frames, ["a", "b", "c", "d", "e"], images, box_px)
    assert list(zip(matches.rows.tolist(), matches.predictions.tolist(), strict=True)) == [(0, 2), (1, 0), (6, 4)]
    assert matches.unmatched_rows == tuple(frames.row_ids[row] for row in (2, 3, 4, 5))
    assert matches.unmatched_predictions == ("b: nobody is where its box is", "d: nobody is where its box is")


def write_npz(path, **changes):
    arrays = {
        "imgname": TRUE.names,
        "pose": TRUE.pose,
        "betas": TRUE.betas,
        "pred_cam": TRUE.crop_camera(),
        "box_px": TRUE.box_px,
    }
    np.savez(path, **arrays | changes)
    return path


def test_command_writes_reports_and_keeps_what_is_complete(tmp_path, frames, capsys):
    names = np.array([*TRUE.names[:-1], "nowhere.jpg"])
    source, out = write_npz(tmp_path / "cliff.npz", imgname=names), tmp_path / "out.h5"
    options = {"frames": frames.path, "out": out, "name": "cliff"}
    import_("npz", source, **options, dry_run=True)
    assert not out.exists()
    import_("npz", source, **options, list_file=tmp_path / "left.txt")
    printed = capsys.readouterr().out
    assert "nowhere.jpg: no image of this name" in printed
    assert frames.row_id(6) in printed
    assert "6 of 7" in printed
    left = (tmp_path / "left.txt").read_text()
    assert "nowhere.jpg: no image of this name" in left
    assert frames.row_id(6) in left
    store = EstimateStore(out, frames)
    assert store.regressor == "cliff"
    assert store.valid.tolist() == [True] * 6 + [False]
    before = out.stat().st_mtime_ns
    import_("npz", tmp_path / "cliff.npz", **options)
    assert "is complete already" in capsys.readouterr().out
    assert out.stat().st_mtime_ns == before
    import_("npz", source, **options, overwrite=True)
    assert out.stat().st_mtime_ns > before


def test_command_names_what_is_wrong_and_leaves_no_file(tmp_path, frames):
    out = tmp_path / "out.h5"
    with pytest.raises(InputError, match=r"absent.npz: there is no such file"):
        import_("npz", tmp_path / "absent.npz", frames=frames.path, out=out)
    source = write_npz(tmp_path / "a.npz", imgname=np.array(["x.jpg"] * ti.ROWS))
    with pytest.raises(InputError, match=r"a.npz: none of 7 predictions belongs to a row of .*x.jpg: no image of this"):
        import_("npz", source, frames=frames.path, out=out)
    down = (Rotation.from_euler("x", np.pi) * Rotation.from_rotvec(TRUE.pose[:, :3])).as_rotvec()
    write_npz(source, pose=np.concatenate([down, TRUE.pose[:, 3:]], axis=1))
    with pytest.raises(InputError, match=r"a.npz: this cannot be an estimate of .*OpenGL's axes"):
        import_("npz", source, frames=frames.path, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_body_model_that_is_not_at_hand_is_replaced_by_the_stand_in(tmp_path, monkeypatch, frames, capsys):
    monkeypatch.setattr("datamodules.store.FrameStore", lambda path: store)
    store = frames.__class__(frames.path)
    store.body_model = "smpl"
    source = write_npz(tmp_path / "a.npz")
    import_("npz", source, frames=frames.path, out=tmp_path / "out.h5")
    assert "body model 'smpl' is not at hand" in capsys.readouterr().out
    ti.assert_is_truth(tmp_path, frames, TRUE)
