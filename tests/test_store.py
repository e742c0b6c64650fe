"""The store gives back what was put in, loses nothing when killed, and refuses what is damaged by name."""

import logging
import os
import pickle
import shutil
import signal
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny_store
import torch
from tiny_store import HEIGHT, WIDTH, fill, frame_row, write_estimates, write_frames
from torch.utils.data import DataLoader

from bodies.errors import InputError
from datamodules import store_checks, store_file, store_writer, store_writing
from datamodules.crops import decode_jpeg
from datamodules.spool import Spool
from datamodules.store import (
    EstimateStore,
    EstimateWriter,
    FrameStore,
    FrameWriter,
    StoredImage,
    SurfacePoints,
    amend_frames,
)
from datamodules.store_speed import CropDataset, measure_store_speed

ROWS = 6
#: Pages of the memory a forked child may touch are copied, so this is cheap; Python 3.12 warns of it in general.
FORK_WARNING = "ignore:.*use of fork.*:DeprecationWarning"
pytestmark = pytest.mark.filterwarnings(FORK_WARNING)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a good frames file and a good estimates file, not to be changed."""
    folder = tmp_path_factory.mktemp("store")
    frames = write_frames(folder / "frames.h5", ROWS)
    write_estimates(folder / "pare.h5", frames, [4, 0, 3, 1], samples=3)
    return folder


@pytest.fixture
def files(made, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def poke(path: Path, name: str, index: object, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file[name][index] = value


# ---------------------------------------------------------------------------------------------- what comes back


def test_every_field_comes_back_as_it_was_written(made):
    store = FrameStore(made / "frames.h5")
    assert (len(store), store.dataset, store.split, store.body_model) == (ROWS, "tiny", "train", "standin-tiny")
    assert store.subjects == ("subject 0", "subject 1")
    assert store.sequences == tuple(f"sequence/ü{k}" for k in range(3))
    assert store.row_ids == tuple(frame_row(number).row_id for number in range(ROWS))
    for number in range(ROWS):
        put, image, got = frame_row(number), tiny_store.stored_image(number // 2), store.read(number)
        assert (got.row, got.row_id, got.frame, got.gender) == (number, put.row_id, put.frame, put.gender)
        assert store.subjects[got.subject] == put.subject
        assert store.sequences[got.sequence] == put.sequence
        assert got.image_name == image.name
        assert store.read_jpeg(number) == image.jpeg
        np.testing.assert_array_equal(got.camera.size_px, image.size_px)
        np.testing.assert_array_equal(got.camera.focal_px, put.focal_px)
        np.testing.assert_array_equal(got.camera.center_px, put.center_px)
        for name in ("box_px", "pose", "betas", "transl"):
            np.testing.assert_array_equal(getattr(got, name), getattr(put, name))
            np.testing.assert_array_equal(store.column(name)[number], getattr(put, name))
        for name in ("detected_keypoints_px", "true_keypoints_px", "joints_m"):
            there = getattr(put, name)
            np.testing.assert_array_equal(getattr(got, name), 0 if there is None else there)
        for mine, theirs in zip(store.read_surface(got), put.surface, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    cameras = store.cameras()
    assert cameras.focal_px.tolist() == store.column("focal_px").tolist()
    assert cameras.size_px.tolist() == [[2 * WIDTH, 2 * HEIGHT]] * ROWS


def test_rows_that_share_an_image_store_it_once(made):
    store = FrameStore(made / "frames.h5")
    assert store.column("image").tolist() == [0, 0, 1, 1, 2, 2]
    assert store.image_names == tuple(tiny_store.stored_image(k).name for k in range(3))
    with h5py.File(made / "frames.h5") as file:
        assert file["images/jpeg"].size == sum(len(tiny_store.stored_image(k).jpeg) for k in range(3))


def test_two_pieces_of_one_image_are_two_images(tmp_path):
    with FrameWriter(tmp_path / "f.h5", "d", "s", "b") as writer:
        names = [writer.add_image(StoredImage("a.jpg", tiny_store.jpeg(k), (200, 200), (k, 0))) for k in (0, 1, 0)]
        assert names == [0, 1, 0]
        writer.add_row(frame_row(0, 1))
    assert FrameStore(tmp_path / "f.h5").read_image(0).origin_px == (1, 0)


def test_the_stored_piece_is_decoded_in_rgb(made):
    piece = FrameStore(made / "frames.h5").read_image(3)
    assert (piece.origin_px, piece.size_px) == ((1, 3), (2 * WIDTH, 2 * HEIGHT))
    np.testing.assert_array_equal(piece.pixels[..., ::-1], decode_jpeg(tiny_store.stored_image(1).jpeg))


def test_a_crop_of_the_whole_piece_is_the_piece(made):
    store = FrameStore(made / "frames.h5")
    # The piece is 64 x 48 and begins at (0, 3): a box of side 48 at its left edge covers 48 x 48 pixels one to one.
    crop = store.read_crop(0, np.array([24.0, 27.0]), 48.0, 48)
    np.testing.assert_array_equal(crop.image, store.read_image(0).pixels[:, :48])


def test_textures_of_both_kinds_come_back(made, tmp_path):
    store = FrameStore(made / "frames.h5")
    for subject in (0, 1):
        got = store.read_texture(store.subjects.index(f"subject {subject}"))
        assert got.kind == "uv"
        np.testing.assert_array_equal(got.rgba, tiny_store.texture(subject))
    with FrameWriter(tmp_path / "f.h5", "d", "s", "b") as writer:
        writer.add_row(frame_row(0, writer.add_image(tiny_store.stored_image(0))))
        writer.add_row(frame_row(1, 0))
        writer.add_texture("subject 1", tiny_store.texture(0, (9, 4)))
    store = FrameStore(tmp_path / "f.h5")
    assert store.read_texture(0) is None
    assert store.read_texture(1).kind == "vertices"
    np.testing.assert_array_equal(store.read_texture(1).rgba, tiny_store.texture(0, (9, 4)))


def test_estimates_come_back_by_row_whatever_order_they_came_in(made):
    store = EstimateStore(made / "pare.h5", FrameStore(made / "frames.h5"))
    assert (len(store), store.samples, store.regressor) == (ROWS, 3, "pare")
    assert store.valid.tolist() == [True, True, False, True, True, False]
    for row in range(ROWS):
        put = tiny_store.estimate(row, 3)
        for sample in range(3):
            got = store.read(row, sample)
            assert got.valid == bool(store.valid[row])
            for name in ("pose", "betas", "transl"):
                np.testing.assert_array_equal(getattr(got, name), put[name][sample] if got.valid else 0)
            assert got.focal_px == (put["focal_px"] if got.valid else 0)
    np.testing.assert_array_equal(store.column("pose")[3], tiny_store.estimate(3, 3)["pose"])
    with pytest.raises(IndexError, match="6 rows of 3"):
        store.read(0, 3)


def test_other_programs_can_read_it(made):
    with h5py.File(made / "frames.h5") as file:
        assert file["rows/row_id"][2].decode() == frame_row(2).row_id
        np.testing.assert_array_equal(file["rows/pose"][1], frame_row(1).pose)
        start, length = file["images/start"][1], file["images/length"][1]
        assert file["images/jpeg"][start : start + length].tobytes() == tiny_store.stored_image(1).jpeg


def test_what_is_read_cannot_be_changed(made):
    store = FrameStore(made / "frames.h5")
    for array in (store.read(0).pose, store.column("pose"), store.rows):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_an_index_out_of_range_ends_iteration(made):
    store = FrameStore(made / "frames.h5")
    assert store.read(-1).row == ROWS - 1
    for index in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError, match=f"{ROWS} rows"):
            store.read(index)


# ---------------------------------------------------------------------------------- workers, pickling, descriptors


class WholeSample(torch.utils.data.Dataset):
    """What a worker reads of a row, as numbers that a test can compare."""

    def __init__(self, frames: FrameStore, estimates: EstimateStore) -> None:
        self.frames, self.estimates = frames, estimates

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        frame = self.frames.read(index)
        crop = self.frames.read_crop(index, frame.box_px[:2], float(frame.box_px[2]), 32)
        return frame.pose.copy(), crop.image, self.estimates.read(frame.row, 1).pose.copy()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_as_the_process_that_opened_it(made, method):
    frames = FrameStore(made / "frames.h5")
    data = WholeSample(frames, EstimateStore(made / "pare.h5", frames))
    # Read before the workers start, so that they inherit or pickle a store in use.
    here = [data[index] for index in range(ROWS)]
    workers = 2 if method == "fork" else 1
    loader = DataLoader(data, batch_size=1, num_workers=workers, multiprocessing_context=method)
    for mine, theirs in zip(here, loader, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b[0].numpy())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open descriptors are listed in /proc")
def test_a_store_pickles_small_and_closes_what_it_opens(files):
    def opened() -> int:
        targets = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        return targets.count(os.path.realpath(files / "frames.h5"))

    store = FrameStore(files / "frames.h5")
    assert opened() == 1
    data = pickle.dumps(store)
    assert len(data) < 10_000
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.read(4).pose, store.read(4).pose)
    assert opened() == 2
    del store, copy
    assert opened() == 0


def test_a_file_that_was_replaced_is_noticed(files):
    store = FrameStore(files / "frames.h5")
    unread = pickle.loads(pickle.dumps(store))
    pose = store.read(0).pose
    write_frames(files / "frames.h5", ROWS)
    # The open file is still the old one; who opens it now would mix two files.
    np.testing.assert_array_equal(store.read(0).pose, pose)
    with pytest.raises(InputError, match=r"frames\.h5: it was replaced"):
        unread.read(0)


def test_a_file_cut_off_in_use_is_an_error(files):
    store = FrameStore(files / "frames.h5")
    store.read(0)
    os.truncate(files / "frames.h5", 2000)
    with pytest.raises(InputError, match=r"frames\.h5: it was cut off"):
        store.read_jpeg(5)


# -------------------------------------------------------------------------------------------- refused at the door


def test_estimates_for_other_rows_are_refused_by_both_names(made, tmp_path):
    with FrameWriter(tmp_path / "other.h5", "tiny", "train", "standin-tiny") as writer:
        for number in range(ROWS):
            image = writer.add_image(tiny_store.stored_image(number // 2))
            writer.add_row(frame_row(number, image, row_id=f"renamed/{number}"))
    with pytest.raises(InputError, match=r"pare\.h5: .* not for the rows of .*other\.h5 \(made for frames\.h5\)"):
        EstimateStore(made / "pare.h5", FrameStore(tmp_path / "other.h5"))


@pytest.mark.parametrize("missing", [True, False])
def test_a_file_that_is_not_there_or_no_store_is_refused(tmp_path, missing):
    path = tmp_path / "frames.h5"
    if not missing:
        path.write_bytes(b"\xff\xd8 this is no HDF5 file" * 99)
    with pytest.raises(InputError, match=r"frames\.h5: " + ("there is no" if missing else "not a whole HDF5")):
        FrameStore(path)


def test_an_unfinished_file_is_hinted_at(tmp_path):
    with pytest.raises(RuntimeError), FrameWriter(tmp_path / "frames.h5", "d", "s", "b"):
        raise RuntimeError
    with pytest.raises(InputError, match=r"there is no such file; frames\.h5\.partial is there"):
        FrameStore(tmp_path / "frames.h5")


def test_a_foreign_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["rows/pose"] = np.zeros((3, 72))
    with pytest.raises(InputError, match=r"x\.h5: not a snugfit store"):
        FrameStore(tmp_path / "x.h5")


def test_the_other_kind_of_file_is_refused(made):
    with pytest.raises(InputError, match=r"pare\.h5: it holds estimates, expected was a file of frames"):
        FrameStore(made / "pare.h5")
    with pytest.raises(InputError, match=r"frames\.h5: it holds frames, expected was a file of estimates"):
        EstimateStore(made / "frames.h5", FrameStore(made / "frames.h5"))


@pytest.mark.parametrize(("version", "advice"), [(2, "update snugfit"), (0, "convert its source again")])
def test_another_version_is_refused(files, version, advice):
    with h5py.File(files / "frames.h5", "r+") as file:
        file.attrs["version"] = version
    with pytest.raises(InputError, match=f"frames.h5: layout version {version}, .*{advice}"):
        FrameStore(files / "frames.h5")


@pytest.mark.parametrize("name", ["dataset", "row_fingerprint", "version"])
def test_a_missing_attribute_is_named(files, name):
    with h5py.File(files / "frames.h5", "r+") as file:
        del file.attrs[name]
    with pytest.raises(InputError, match=rf"frames\.h5: .*{name}"):
        FrameStore(files / "frames.h5")


def every_dataset(path: Path) -> list[str]:
    names: list[str] = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    return names


def test_every_missing_dataset_is_named(files):
    for name in every_dataset(files / "frames.h5"):
        shutil.copy(files / "frames.h5", files / "less.h5")
        with h5py.File(files / "less.h5", "r+") as file:
            del file[name]
        with pytest.raises(InputError, match=rf"less\.h5: the dataset {name} is missing"):
            FrameStore(files / "less.h5")
    frames = FrameStore(files / "frames.h5")
    for name in every_dataset(files / "pare.h5"):
        shutil.copy(files / "pare.h5", files / "less.h5")
        with h5py.File(files / "less.h5", "r+") as file:
            del file[name]
        with pytest.raises(InputError, match=rf"less\.h5: the dataset {name} is missing"):
            EstimateStore(files / "less.h5", frames)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((ROWS, 72)), {}, "rows/pose is of type float64, expected was <f4"),
        (np.zeros((ROWS, 24, 3), "f4"), {}, r"rows/pose has rows of shape \(24, 3\), expected was \(72,\)"),
        (np.zeros((ROWS - 1, 72), "f4"), {}, "rows/pose has 5 rows, but rows/image has 6"),
        (np.zeros((ROWS, 72), "f4"), {"compression": "gzip"}, "rows/pose is chunked or compressed"),
        (np.zeros((ROWS, 72), "f4"), {"chunks": (2, 72)}, "rows/pose is chunked or compressed"),
    ],
)
def test_a_column_of_another_form_is_refused(files, values, options, message):
    with h5py.File(files / "frames.h5", "r+") as file:
        del file["rows/pose"]
        file.create_dataset("rows/pose", data=values, **options)
    with pytest.raises(InputError, match=rf"frames\.h5: {message}"):
        FrameStore(files / "frames.h5")


def test_a_cut_off_file_is_refused_wherever_the_cut_is(files):
    whole = (files / "frames.h5").read_bytes()
    for length in np.linspace(0, len(whole) - 1, 40).astype(int):
        (files / "frames.h5").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"frames\.h5: not a whole HDF5 file"):
            FrameStore(files / "frames.h5")


def test_a_changed_or_doubled_row_id_is_refused(files):
    poke(files / "frames.h5", "rows/row_id", 1, b"something else")
    with pytest.raises(InputError, match="do not match their fingerprint"):
        FrameStore(files / "frames.h5")
    poke(files / "frames.h5", "rows/row_id", 1, frame_row(0).row_id.encode())
    with pytest.raises(InputError, match=f"the row id '{frame_row(0).row_id}' appears 2 times"):
        FrameStore(files / "frames.h5")


def test_a_texture_of_nobody_is_refused(files):
    poke(files / "frames.h5", "textures/subject", 0, 7)
    with pytest.raises(InputError, match="a texture belongs to a subject that does not exist"):
        FrameStore(files / "frames.h5")


# ------------------------------------------------------------------------------------------------------ bad rows

BAD_VALUES = [
    ("rows/pose", (3, 10), np.nan, "pose is not finite"),
    ("rows/betas", (3, 0), np.inf, "betas is not finite"),
    ("rows/betas", (3, 0), -21, "betas holds -21, allowed is -20 to 20"),
    ("rows/pose", (3, 1), 90, "pose holds 90"),
    ("rows/transl", (3, 2), -1, "transl holds -1, allowed is 0.001 to 10000"),
    ("rows/focal_px", (3, 1), 0, "focal_px holds 0, allowed is 1 to"),
    ("rows/box_px", (3, 2), 0, "box_px holds 0"),
    ("rows/center_px", (3, 0), np.nan, "center_px is not finite"),
    ("rows/detected_keypoints_px", (3, 5, 2), -0.5, "detected_keypoints_px holds -0.5, allowed is 0 to 2"),
    ("rows/true_keypoints_px", (3, 5, 0), np.nan, "true_keypoints_px is not finite"),
    ("rows/joints_m", (3, 16, 3), 2, "joints_m holds 2, allowed is 0 to 1"),
    ("rows/gender", 3, 3, "gender holds 3, allowed is 0 to 2"),
    ("rows/frame", 3, -1, "frame holds -1"),
    ("rows/image", 3, 3, "it refers to one of 3 images that does not exist"),
    ("rows/image", 3, -1, "image holds -1"),
    ("rows/subject", 3, 2, "it refers to one of 2 subjects"),
    ("rows/sequence", 3, 99, "it refers to one of 3 sequences"),
    ("rows/surface_count", 3, 10**6, "its surface points lie outside"),
]


@pytest.mark.parametrize(("name", "index", "value", "message"), BAD_VALUES)
def test_a_bad_row_is_named_or_left_out(files, caplog, name, index, value, message):
    path = files / "frames.h5"
    poke(path, name, index, value)
    where = rf"frames\.h5: row 3 \({frame_row(3).row_id}\): "
    with pytest.raises(InputError, match=where + message) as raised:
        FrameStore(path)
    assert "\n" not in str(raised.value)
    with caplog.at_level(logging.WARNING):
        store = FrameStore(path, skip_bad_rows=True)
    assert len(store) == ROWS - 1
    assert [(entry.row, entry.row_id) for entry in store.skipped] == [(3, frame_row(3).row_id)]
    assert "left out 1 of 6 rows" in caplog.text
    assert message.split(",")[0] in caplog.text
    assert [store.read(k).row for k in range(len(store))] == [0, 1, 2, 4, 5]
    assert store.row_ids[3] == frame_row(4).row_id
    np.testing.assert_array_equal(store.column("transl")[3], frame_row(4).transl)
    np.testing.assert_array_equal(store.read(3).transl, frame_row(4).transl)
    # Estimates are kept by the row in the file, so they stay right.
    assert EstimateStore(files / "pare.h5", store).read(store.read(3).row, 0).pose[0] == pytest.approx(
        tiny_store.estimate(4, 3)["pose"][0, 0]
    )


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("images/length", 1, 10**6, "its bytes lie outside of the file"),
        ("images/start", 1, -1, "start holds -1, allowed is 0 or more"),
        ("images/size_px", (1, 0), 10, "the stored piece lies outside of the full image"),
        ("images/crc32", 1, 5, "is damaged"),
    ],
)
def test_a_bad_image_makes_all_its_rows_bad(files, name, index, value, message):
    path = files / "frames.h5"
    poke(path, name, index, value)
    if name == "images/crc32":  # is looked at when the image is read
        store = FrameStore(path)
        for row in (2, 3):
            with pytest.raises(InputError, match=rf"frames\.h5: row {row} \({frame_row(row).row_id}\): .*{message}"):
                store.read_crop(row, np.array([30.0, 30.0]), 20.0, 16)
    else:
        with pytest.raises(InputError, match=rf"row 2 \(.*: its image 'images/0001.jpg': {message} \(and 1 more"):
            FrameStore(path)
    store = FrameStore(path, skip_bad_rows=True)
    assert [entry.row for entry in store.skipped] == [2, 3]
    assert all(message in entry.problem for entry in store.skipped)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_one_flipped_bit_in_a_jpeg_is_found(files, place):
    path = files / "frames.h5"
    with h5py.File(path, "r+") as file:
        at = int(file["images/start"][2] + place * file["images/length"][2])
        file["images/jpeg"][at] ^= 4
    store = FrameStore(path)
    store.read_jpeg(3)
    for read in (store.read_jpeg, store.read_image):
        with pytest.raises(InputError, match=r"frames\.h5: row 4 \(.*: its image 'images/0002.jpg' is damaged"):
            read(4)
    assert [FrameStore(path, skip_bad_rows=True).read(k).row for k in range(4)] == [0, 1, 2, 3]


def test_a_jpeg_that_was_stored_broken_is_refused_by_row(tmp_path):
    # Header and end are those of a JPEG, but there is nothing between them.
    hollow = tiny_store.jpeg()[:250] + b"\xff\xd9"
    with FrameWriter(tmp_path / "f.h5", "d", "s", "b") as writer:
        writer.add_row(frame_row(0, writer.add_image(StoredImage("a.jpg", hollow, (WIDTH, HEIGHT)))))
    with pytest.raises(InputError, match=r"f\.h5: row 0 \(.*\): its image 'a.jpg' cannot be decoded"):
        FrameStore(tmp_path / "f.h5").read_image(0)


@pytest.mark.parametrize(
    ("name", "value"), [("surface/position_px", np.nan), ("surface/triangle", -4), ("surface/barycentric", 0.9)]
)
def test_a_bad_surface_point_is_charged_to_its_row(files, name, value):
    path = files / "frames.h5"
    with h5py.File(path) as file:
        point = int(file["rows/surface_start"][1])
    poke(path, name, point, value)
    with pytest.raises(InputError, match=r"row 1 \(.*a surface point"):
        FrameStore(path)
    assert [entry.row for entry in FrameStore(path, skip_bad_rows=True).skipped] == [1]


def test_a_file_of_bad_rows_only_is_refused(files):
    poke(files / "frames.h5", "rows/pose", slice(None), np.nan)
    with pytest.raises(InputError, match=r"frames\.h5: all of its 6 rows are bad"):
        FrameStore(files / "frames.h5", skip_bad_rows=True)


def test_a_bad_estimate_is_named_or_counts_as_missing(files, caplog):
    path, frames = files / "pare.h5", FrameStore(files / "frames.h5")
    poke(path, "rows/betas", (4, 2, 9), np.nan)
    # Of a row without an estimate nothing is expected.
    poke(path, "rows/pose", (2, 0, 0), np.nan)
    with pytest.raises(InputError, match=rf"pare\.h5: row 4 \({frame_row(4).row_id}\): betas is not finite"):
        EstimateStore(path, frames)
    with caplog.at_level(logging.WARNING):
        store = EstimateStore(path, frames, skip_bad_rows=True)
    assert store.valid.tolist() == [True, True, False, True, False, False]
    assert "left out 1 of 6 rows" in caplog.text
    assert not store.read(4).valid
    assert (store.read(4).betas == 0).all()


# ---------------------------------------------------------------------------------------- refused by the writers

BAD_ROWS = [
    ({"pose": np.full(72, np.nan)}, "pose is not finite"),
    ({"pose": np.zeros((24, 3))}, r"pose has shape \(24, 3\), expected was \(72,\)"),
    ({"pose": np.full(72, 30.0)}, "pose holds 30"),
    ({"betas": np.full(10, 1e30)}, r"betas holds 1e\+30"),
    ({"betas": np.zeros(300)}, r"betas has shape \(300,\)"),
    ({"transl": np.array([0.0, 0.0, 0.0])}, "transl holds 0, allowed is 0.001"),
    ({"transl": np.array([0.0, 0.0, 5e4])}, "transl holds 50000"),
    ({"focal_px": np.array([0.0, 500.0])}, "focal_px holds 0"),
    ({"focal_px": np.array([np.inf, 500.0])}, "focal_px is not finite"),
    ({"box_px": np.array([0.0, 0.0, -3.0])}, "box_px holds -3"),
    ({"joints_m": np.full((17, 4), np.nan)}, "joints_m is not finite"),
    ({"detected_keypoints_px": np.zeros((18, 3))}, r"detected_keypoints_px has shape \(18, 3\)"),
    ({"frame": -1}, "frame holds -1"),
    ({"image": 1}, "it refers to image 1 of 1"),
    ({"row_id": ""}, "names must not be empty"),
    ({"sequence": "a\nb"}, "names must not be empty or hold line breaks"),
    ({"subject": "\ud800"}, "is not valid text"),
    ({"surface": SurfacePoints(np.zeros((2, 2)), np.zeros(3, int), np.zeros((3, 3)))}, "surface position_px has shape"),
    ({"surface": SurfacePoints(np.zeros((1, 2)), np.zeros(1, int), np.zeros((1, 3)))}, "weights do not sum to 1"),
    ({"surface": SurfacePoints(np.zeros((1, 2)), np.array([-1]), np.eye(3)[:1])}, "surface point 0: triangle holds -1"),
]


def test_a_row_that_cannot_be_is_named_and_leaves_no_trace(tmp_path):
    with FrameWriter(tmp_path / "f.h5", "d", "s", "b") as writer:
        image = writer.add_image(tiny_store.stored_image(0))
        for number, (changes, message) in enumerate(BAD_ROWS):
            row = frame_row(0, **{"image": image, "row_id": f"bad {number}", **changes})
            with pytest.raises(InputError, match=rf"f\.h5: row {row.row_id!r}: .*{message}") as raised:
                writer.add_row(row)
            assert "\n" not in str(raised.value)
        writer.add_row(frame_row(1, image))
        with pytest.raises(InputError, match="it is there already"):
            writer.add_row(frame_row(1, image))
        assert len(writer) == 1
    store = FrameStore(tmp_path / "f.h5")
    assert store.row_ids == (frame_row(1).row_id,)
    assert (store.subjects, store.sequences) == (("subject 1",), ("sequence/ü0",))


def test_an_image_that_cannot_be_is_refused(tmp_path):
    good = tiny_store.stored_image(0)
    with FrameWriter(tmp_path / "f.h5", "d", "s", "b") as writer:
        for jpeg, size_px, origin_px, message in [
            (b"GIF89a", (WIDTH, HEIGHT), (0, 0), "does not begin as a JPEG"),
            (good.jpeg[:-99], (WIDTH, HEIGHT), (0, 0), "cut off"),
            (good.jpeg, (WIDTH, HEIGHT), (1, 0), "lies outside of the image"),
            (good.jpeg, (WIDTH, HEIGHT - 1), (0, 0), "lies outside of the image"),
            (good.jpeg, (WIDTH, HEIGHT), (-1, 0), "lies outside of the image"),
        ]:
            with pytest.raises(InputError, match=rf"f\.h5: image 'a.jpg': .*{message}"):
                writer.add_image(StoredImage("a.jpg", jpeg, size_px, origin_px))
        assert writer.add_image(StoredImage("a.jpg", good.jpeg, (WIDTH, HEIGHT))) == 0
        other = tiny_store.jpeg(8)
        with pytest.raises(InputError, match="it was added before, with other bytes"):
            writer.add_image(StoredImage("a.jpg", other, (WIDTH, HEIGHT)))
        writer.add_row(frame_row(0, 0))
    assert len(FrameStore(tmp_path / "f.h5").image_names) == 1


def test_a_texture_that_cannot_be_is_refused(tmp_path):
    with FrameWriter(tmp_path / "f.h5", "d", "s", "b") as writer:
        image = writer.add_image(tiny_store.stored_image(0))
        writer.add_row(frame_row(0, image))
        writer.add_row(frame_row(1, image))
        writer.add_texture("subject 0", tiny_store.texture(0))
        for subject, shape, message in [
            ("nobody", (4, 6, 4), "no row is of this subject"),
            ("subject 0", (4, 6, 4), "it is there already"),
            ("subject 1", (4, 6, 3), r"it has shape \(4, 6, 3\)"),
            ("subject 1", (8, 6, 4), "the first texture has"),
        ]:
            with pytest.raises(InputError, match=f"texture of {subject!r}: .*{message}"):
                writer.add_texture(subject, tiny_store.texture(0, shape))


def test_an_estimate_that_cannot_be_is_named(made, tmp_path):
    frames = FrameStore(made / "frames.h5")
    with EstimateWriter(tmp_path / "e.h5", frames, "pare") as writer:
        for changes, message in [
            ({"transl": np.array([[0.0, 0.0, -2.0]])}, "transl holds -2"),
            ({"pose": np.zeros(72)}, r"pose has shape \(72,\), expected was \(1, 72\)"),
            ({"betas": np.full((1, 10), np.nan)}, "betas is not finite"),
            ({"focal_px": 0.0}, "focal_px holds 0"),
        ]:
            with pytest.raises(InputError, match=rf"e\.h5: row 2 \({frame_row(2).row_id}\): {message}"):
                writer.add(2, **{**tiny_store.estimate(2), **changes})
        with pytest.raises(InputError, match=r"row 6: .* has 6 rows"):
            writer.add(ROWS, **tiny_store.estimate(2))
        writer.add(2, **tiny_store.estimate(2))
        with pytest.raises(InputError, match="it is there already"):
            writer.add(2, **tiny_store.estimate(2))
        assert 2 in writer
    assert EstimateStore(tmp_path / "e.h5", frames).valid.sum() == 1
    with pytest.raises(InputError, match="at least one estimate"):
        EstimateWriter(tmp_path / "e.h5", frames, "pare", 0)


def test_nothing_is_written_for_nothing(made, tmp_path):
    with pytest.raises(InputError, match=r"f\.h5: there is not one row"), FrameWriter(tmp_path / "f.h5", "d", "s", "b"):
        pass
    frames = FrameStore(made / "frames.h5")
    with pytest.raises(InputError, match="not one estimate"), EstimateWriter(tmp_path / "e.h5", frames, "pare"):
        pass
    assert not (tmp_path / "f.h5").exists()
    assert not (tmp_path / "e.h5").exists()


def test_where_nothing_can_be_written_the_file_is_named(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(InputError, match=r"f\.h5: it cannot be written"):
        FrameWriter(tmp_path / "folder" / "f.h5", "d", "s", "b")


# --------------------------------------------------------------------------------------- interrupted and resumed


def in_a_fork(work) -> int:
    """Runs it in a forked child and returns how that ended: the exit code, or minus the signal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class KilledSpool(Spool):
    """A spool whose process is killed at its n-th act, after what was written so far has reached the files."""

    acts_left = 0

    def act(self) -> None:
        KilledSpool.acts_left -= 1
        if KilledSpool.acts_left == 0:
            for file in self._files.values():
                file.flush()
            self._columns.write_block()
            os.kill(os.getpid(), signal.SIGKILL)

    def append(self, name, data):
        super().append(name, data)
        self.act()

    def flush(self):
        self.act()
        super().flush()
        self.act()

    def extend(self, name, parts):
        super().extend(name, parts)
        self.act()

    def copied(self, name, target, offset):
        self.act()
        yield from super().copied(name, target, offset)
        self.act()

    def remove(self):
        self.act()
        super().remove()


def frames_killed_at(path: Path, acts: int) -> int:
    def work():
        store_writing.Spool = KilledSpool
        store_writing.FLUSH_ROWS = 2
        KilledSpool.acts_left = acts
        write_frames(path, ROWS)

    return in_a_fork(work)


def test_killed_anywhere_and_resumed_it_is_the_same_file_to_the_byte(made, tmp_path):
    whole = (made / "frames.h5").read_bytes()
    path = tmp_path / "frames.h5"
    # From the first act to beyond the last; in steps, for time. 31 is prime to the acts of a row.
    acts, code, kept = 1, -signal.SIGKILL, set()
    while code == -signal.SIGKILL:
        path.write_bytes(b"an older file")
        code = frames_killed_at(path, acts)
        assert code in (0, -signal.SIGKILL)
        if path.read_bytes() == b"an older file":
            assert code == -signal.SIGKILL
            with FrameWriter(path, dataset="tiny", split="train", body_model="standin-tiny") as writer:
                kept.add(len(writer))
                fill(writer, ROWS)
        assert path.read_bytes() == whole
        shutil.rmtree(tmp_path / "frames.h5.partial", ignore_errors=True)
        acts += 31
    # The sweep met the file before, between and after its flushes, always at a whole number of rows.
    assert kept == {0, 2, 4, 6}


def test_killed_again_and_again_it_gets_there(made, tmp_path):
    path = tmp_path / "frames.h5"
    runs = 0
    while frames_killed_at(path, 100) != 0:
        runs += 1
        assert runs < 30
    assert runs > 1
    assert path.read_bytes() == (made / "frames.h5").read_bytes()
    assert os.listdir(tmp_path) == ["frames.h5"]


def test_estimates_killed_and_resumed_are_the_same_file_to_the_byte(made, tmp_path):
    frames, path = FrameStore(made / "frames.h5"), tmp_path / "pare.h5"

    def work():
        writer = EstimateWriter(path, frames, "pare", 3)
        writer.add(4, **tiny_store.estimate(4, 3))
        writer.flush()
        writer.add(0, **tiny_store.estimate(0, 3))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_fork(work) == -signal.SIGKILL
    with EstimateWriter(path, frames, "pare", 3) as writer:
        assert [row in writer for row in range(ROWS)] == [False, False, False, False, True, False]
        for row in (0, 3, 1):
            writer.add(row, **tiny_store.estimate(row, 3))
    assert path.read_bytes() == (made / "pare.h5").read_bytes()


def write_badly(path: Path, arguments: dict[str, str], rows: int) -> None:
    with FrameWriter(path, **arguments) as writer:
        fill(writer, rows, textures=False)
        writer.add_row(frame_row(rows, 0, row_id=""))


def test_an_error_keeps_the_old_file_and_the_rows_so_far(files):
    path, whole = files / "frames.h5", (files / "frames.h5").read_bytes()
    arguments = {"dataset": "tiny", "split": "train", "body_model": "standin-tiny"}
    with pytest.raises(InputError, match="names must not be empty"):
        write_badly(path, arguments, 3)
    assert path.read_bytes() == whole
    with pytest.raises(InputError, match="names must not be empty"):
        write_badly(path, arguments, 5)
    assert path.read_bytes() == whole
    with pytest.raises(InputError, match="it is there already"), FrameWriter(path, **arguments) as writer:
        writer.add_row(frame_row(4, 0))
    with FrameWriter(path, **arguments, resume=False) as writer:
        assert len(writer) == 0
        writer.add_row(frame_row(5, writer.add_image(tiny_store.stored_image(2))))
    assert FrameStore(path).row_ids == (frame_row(5).row_id,)


def test_an_interruption_in_the_middle_of_a_row_leaves_whole_rows(made, tmp_path, monkeypatch):
    path = tmp_path / "frames.h5"
    append, count = Spool.append, 0

    def interrupted(self, name, data):
        nonlocal count
        count += 1
        if count == 100:
            raise KeyboardInterrupt
        append(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", interrupted)
        patch.setattr(store_writing, "FLUSH_ROWS", 2)
        with pytest.raises(KeyboardInterrupt):
            write_frames(path, ROWS)
    write_frames(path, ROWS)
    assert path.read_bytes() == (made / "frames.h5").read_bytes()


def test_a_run_with_other_settings_does_not_go_on(tmp_path):
    path = tmp_path / "f.h5"
    with pytest.raises(KeyError), FrameWriter(path, "d", "train", "b", {"margin": "1.5"}):
        raise KeyError
    for split, settings, message in [
        ("test", {"margin": "1.5"}, "begun with split 'train', now it is 'test'; delete"),
        ("train", {"margin": "2"}, "begun with margin '1.5', now it is '2'"),
        ("train", {}, "begun with margin '1.5', now it is None"),
    ]:
        with pytest.raises(InputError, match=rf"f\.h5\.partial: it was {message}"):
            FrameWriter(path, "d", split, "b", settings)


@pytest.mark.parametrize("content", ["", "[]", '{"header": {}}', "{"])
def test_a_damaged_journal_is_named(tmp_path, content):
    with pytest.raises(KeyError), FrameWriter(tmp_path / "f.h5", "d", "train", "b"):
        raise KeyError
    (tmp_path / "f.h5.partial" / "journal.json").write_text(content)
    with pytest.raises(InputError, match=r"journal\.json: the journal is damaged; delete"):
        FrameWriter(tmp_path / "f.h5", "d", "train", "b")


def test_two_processes_cannot_write_one_file(tmp_path):
    def second():
        with pytest.raises(InputError, match=r"f\.h5: another process is writing it"):
            FrameWriter(tmp_path / "f.h5", "d", "train", "b")

    with FrameWriter(tmp_path / "f.h5", "d", "train", "b") as writer:
        fill(writer, 2)
        assert in_a_fork(second) == 0
    assert len(FrameStore(tmp_path / "f.h5")) == 2


# ------------------------------------------------------------------------------------------------------- amended


def test_amending_replaces_what_is_given_and_keeps_the_rest(files):
    path, before = files / "frames.h5", FrameStore(files / "frames.h5")
    keypoints = np.random.default_rng(5).uniform(0, 1, (ROWS, 25, 3)).astype(np.float32)
    points = [tiny_store.surface_points(50 + row, 2 * row) for row in range(ROWS)]
    textures = [("subject 1", tiny_store.texture(9, (7, 4)))]
    amend_frames(path, {"detected_keypoints_px": keypoints}, iter(points), iter(textures))
    after = FrameStore(path)
    np.testing.assert_array_equal(after.column("detected_keypoints_px"), keypoints)
    for row in range(ROWS):
        for mine, theirs in zip(after.read_surface(after.read(row)), points[row], strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert after.read_jpeg(row) == before.read_jpeg(row)
    assert after.read_texture(0) is None
    np.testing.assert_array_equal(after.read_texture(1).rgba, textures[0][1])
    for label in ("pose", "betas", "transl", "true_keypoints_px", "joints_m", "sequence", "frame"):
        np.testing.assert_array_equal(after.column(label), before.column(label))
    assert (after.row_ids, after.dataset, after.image_names) == (before.row_ids, before.dataset, before.image_names)
    assert len(EstimateStore(files / "pare.h5", after)) == ROWS
    assert sorted(os.listdir(files)) == ["frames.h5", "pare.h5"]


def test_amending_nothing_changes_nothing(files):
    amend_frames(files / "frames.h5")
    before, after = FrameStore(files / "frames.h5"), FrameStore(files / "frames.h5")
    for name in every_dataset(files / "frames.h5"):
        if name.startswith("rows/") and name != "rows/row_id":
            np.testing.assert_array_equal(after.column(name[5:]), before.column(name[5:]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"columns": {"pose": np.zeros((ROWS, 72))}}, "'pose' cannot be amended"),
        ({"columns": {"joints_m": np.zeros((ROWS, 14, 4))}}, "joints_m has shape"),
        ({"columns": {"joints_m": np.full((ROWS, 17, 4), np.nan)}}, r"row 0 \(tiny/s0/00000/0\): joints_m is not"),
        ({"surface": [tiny_store.surface_points(0, 3)] * (ROWS - 1)}, "surface points for 5 rows, the file has 6"),
        ({"surface": [tiny_store.surface_points(0, 3)] * (ROWS + 1)}, "surface points for more rows, the file has 6"),
        ({"textures": [("nobody", tiny_store.texture(0))]}, "texture of 'nobody': no row"),
        ({"textures": [("subject 1", tiny_store.texture(0))] * 2}, "texture of 'subject 1': it was given twice"),
    ],
)
def test_a_bad_amendment_leaves_the_file_alone(files, parts, message):
    whole = (files / "frames.h5").read_bytes()
    with pytest.raises(InputError, match=rf"frames\.h5: {message}"):
        amend_frames(files / "frames.h5", **parts)
    assert (files / "frames.h5").read_bytes() == whole
    assert sorted(os.listdir(files)) == ["frames.h5", "pare.h5"]


# --------------------------------------------------------------------------------------------------------- speed


def test_the_speed_is_measured_part_by_part(made):
    store = FrameStore(made / "frames.h5")
    speed = measure_store_speed(store, crop_px=32, workers=1, samples=60, batch_size=4)
    assert speed.samples_per_s > 0
    assert 0 < speed.read_ms < speed.sample_ms
    assert 0 < speed.decode_fraction < 1
    assert speed.jpeg_bytes == np.mean([len(tiny_store.stored_image(k).jpeg) for k in range(3)])
    assert CropDataset(store, 32)[0].shape == (3, 32, 32)
    with pytest.raises(InputError, match="at least 28 samples"):
        measure_store_speed(store, workers=2, samples=27, batch_size=4)


@pytest.mark.parametrize("much", [False, True])
def test_a_long_pass_shows_its_progress_and_a_short_one_does_not(files, monkeypatch, much):
    shown = []

    def track(items, description, total, transient):
        items = list(items)
        assert len(items) == total
        shown.append(description)
        return items

    monkeypatch.setattr(store_checks, "track", track)
    if much:
        monkeypatch.setattr(store_checks, "PROGRESS_BYTES", 1)
    FrameStore(files / "frames.h5", skip_bad_rows=True)
    assert ("checking rows/pose of frames.h5" in shown) == much
    assert ("checking the images of frames.h5" in shown) == much


def test_the_size_of_the_blocks_it_works_in_makes_no_difference(made, tmp_path, monkeypatch):
    for module, name in ((store_writing, "COPY_BYTES"), (store_writer, "COPY_BYTES"), (store_file, "BLOCK_BYTES")):
        monkeypatch.setattr(module, name, 700)
    frames = write_frames(tmp_path / "frames.h5", ROWS)
    write_estimates(tmp_path / "pare.h5", frames, [4, 0, 3, 1], samples=3)
    for name in ("frames.h5", "pare.h5"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    # Not in the first block of the column.
    poke(tmp_path / "frames.h5", "rows/pose", (4, 3), np.nan)
    with pytest.raises(InputError, match=r"row 4 .*pose is not finite"):
        FrameStore(tmp_path / "frames.h5")
