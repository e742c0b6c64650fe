"""The verbs of `snugfit data`, through the command line."""

import cv2
import numpy as np
import pytest
from tiny_store import write_frames

import main
from commands._data_info import info_table
from commands._data_sheet import FRAME_HEIGHT_PX
from datamodules.store import FrameStore

SMALL = ["--frames", "3", "--subjects", "2", "--body", "standin-tiny", "--image-size", "64", "48", "--workers", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.h5"
    assert main.main(["data", "synthesize", "--out", str(path), *SMALL]) == 0
    return path


def test_synthesize_writes_a_store(made):
    store = FrameStore(made)
    assert (len(store), store.split, len(store.subjects)) == (3, "train", 2)
    assert list(made.parent.iterdir()) == [made]


def test_options_reach_the_set(tmp_path):
    path = tmp_path / "test.h5"
    assert main.main(["data", "synthesize", "--out", str(path), *SMALL, "--split", "test", "--seed", "7"]) == 0
    store = FrameStore(path)
    assert store.split == "test"
    assert all(name.startswith("test-7-") for name in store.subjects)
    assert store.read(0).camera.size_px.tolist() == [64, 48]


def test_info_says_what_is_there(made, capsys):
    assert main.main(["data", "info", str(made)]) == 0
    text = capsys.readouterr().out
    for fact in ("synthetic, train", "rows", "64 x 48 (3)", "standin-tiny", "vertices (1229)", "of 25 on average"):
        assert fact in text


def test_info_of_a_file_that_lacks_things(tmp_path, capsys):
    store = write_frames(tmp_path / "tiny.h5")
    cells = info_table(store)
    assert cells.row_count > 10
    assert main.main(["data", "info", str(store.path), "--skip-bad-rows"]) == 0
    assert "male 2" in capsys.readouterr().out


def test_show_draws_photo_and_body(made, tmp_path):
    out = tmp_path / "sheet.png"
    assert main.main(["data", "show", str(made), "--out", str(out), "--count", "9", "--columns", "1"]) == 0
    sheet = cv2.imread(str(out))
    store = FrameStore(made)
    bar = (sheet.shape[0] - 2 * 6) // 3 - 48
    photo, overlay = (sheet[bar : bar + 48, left : left + 64, ::-1].astype(int) for left in (0, 64 + 6))
    np.testing.assert_array_equal(photo, store.read_image(0).pixels)
    changed = np.abs(overlay - photo).max(axis=-1) > 8
    left, top = store.read(0).box_px[:2] - store.read(0).box_px[2] / 2 - 1
    right, bottom = store.read(0).box_px[:2] + store.read(0).box_px[2] / 2 + 1
    rows, columns = np.nonzero(changed)
    assert len(rows) > 50
    assert (rows >= top).all()
    assert (rows <= bottom).all()
    assert (columns >= left).all()
    assert (columns <= right).all()


def test_show_draws_pieces_of_images_and_bodies_of_any_gender(tmp_path):
    store, out = write_frames(tmp_path / "tiny.h5"), tmp_path / "sheet.png"
    assert main.main(["data", "show", str(store.path), "--out", str(out), "--body", "standin-tiny"]) == 0
    # Six pairs of 64 x 48 in three columns, with captions above.
    assert cv2.imread(str(out)).shape == (2 * (48 + 18) + 6, 3 * (2 * 64 + 6) + 2 * 6, 3)


def test_large_frames_are_shown_smaller(tmp_path):
    path, out = tmp_path / "large.h5", tmp_path / "large.png"
    words = ["--frames", "1", "--subjects", "1", "--body", "standin-tiny", "--image-size", "400", "800"]
    assert main.main(["data", "synthesize", "--out", str(path), *words, "--workers", "1"]) == 0
    assert main.main(["data", "show", str(path), "--out", str(out)]) == 0
    height, width, _ = cv2.imread(str(out)).shape
    assert FRAME_HEIGHT_PX < height < 1.2 * FRAME_HEIGHT_PX
    assert width == 2 * FRAME_HEIGHT_PX // 2 + 6


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["synthesize", "--out", "{}/a.h5", "--frames", "0"], "frames 0"),
        (["synthesize", "--out", "{}/a.h5", *SMALL, "--backgrounds", "{}/none"], "none: there is no such folder"),
        (["synthesize", "--out", "{}/a.h5", *SMALL[:4], "--body", "{}/SMPL.pkl"], "no such body model"),
        (["show", "{}/none.h5", "--out", "{}/a.png"], "none.h5"),
        (["show", "{made}", "--out", "{}/a.jpg"], "a.jpg: the picture is written as .png"),
        (["show", "{made}", "--out", "{}/a.png", "--count", "0"], "count 0"),
        (["info", "{}/none.h5"], "none.h5"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(words, cause, made, tmp_path, capsys):
    assert main.main(["data", *(word.format(tmp_path, made=made) for word in words)]) == main.EXIT_USAGE
    error = capsys.readouterr().err.strip()
    assert error.startswith("snugfit: error:")
    assert cause in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == []
