"""The reader of CDF files against a writer made from NASA's format description, whose files cdflib reads too."""

import contextlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_cdf import IBMPC, NETWORK, write_cdf

from bodies import InputError
from datamodules.convert.cdf import read_cdf_variable

VALUES = np.random.default_rng(0).normal(size=(5, 7, 6))


@pytest.mark.parametrize(
    ("version", "row_major", "encoding", "compressed", "blocks"),
    list(itertools.product((2, 3), (False, True), (IBMPC, NETWORK), (False, True), (1, 3))),
)
def test_numbers_come_back(tmp_path, version, row_major, encoding, compressed, blocks):
    """Versions, majorities, byte orders, compression, indices of one level and of two; variables of both kinds."""
    for dtype, whole, shared in itertools.product(("f4", "f8"), (False, True), (False, True)):
        values = VALUES.astype(dtype)
        form = (version, row_major, encoding, compressed, blocks, shared, whole)
        path = write_cdf(tmp_path / "pose.cdf", {"Before": 2 * values, "Pose": values}, *form)
        np.testing.assert_array_equal(read_cdf_variable(path, "Pose"), values)
        np.testing.assert_array_equal(read_cdf_variable(path, "Before"), 2 * values)


def test_whole_numbers_and_vectors_come_back(tmp_path):
    counts = np.arange(12, dtype=np.int32).reshape(4, 3)
    path = write_cdf(tmp_path / "pose.cdf", {"Pose": counts})
    np.testing.assert_array_equal(read_cdf_variable(path, "Pose"), counts)


def patched(path: Path, place: int, value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, b"\xcd\xf2\x00\x02", "not a CDF file of version 2.6 or later"),
        (4, b"\x00\x00\x00\x00", "not a CDF file"),
        (39, b"\x03", "its numbers are in encoding 3, which is not IEEE 754"),
        (43, b"\x00", "its values are in other files"),
        (20, bytes(8), "a record that it needs is missing"),
        (27, b"\x10", "a record is of type"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, place, value, message):
    path = patched(write_cdf(tmp_path / "pose.cdf", {"Pose": VALUES}), place, value)
    with pytest.raises(InputError, match=rf"pose\.cdf: {message}"):
        read_cdf_variable(path, "Pose")


def test_missing_files_and_variables_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.cdf: cannot be read \(No such file or directory\)"):
        read_cdf_variable(tmp_path / "none.cdf", "Pose")
    path = write_cdf(tmp_path / "pose.cdf", {"Pose": VALUES})
    with pytest.raises(InputError, match=r"pose\.cdf: it has no variable pose"):
        read_cdf_variable(path, "pose")


@pytest.mark.parametrize("form", [{}, {"compressed": True}, {"whole_compressed": True}, {"version": 2, "blocks": 3}])
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path, form):
    """The last variable is the one that is read, so every byte but padding behind it counts."""
    path = write_cdf(tmp_path / "pose.cdf", {"Before": VALUES, "Pose": VALUES}, **form)
    data = path.read_bytes()
    for kept in (*range(0, 40), *np.linspace(40, len(data) - 60, 60).astype(int)):
        path.write_bytes(data[:kept])
        with pytest.raises(InputError, match=r"pose\.cdf: "):
            read_cdf_variable(path, "Pose")


@pytest.mark.parametrize("form", [{}, {"compressed": True}, {"whole_compressed": True}, {"version": 2, "blocks": 3}])
def test_damaged_bytes_end_in_an_error_or_in_numbers(tmp_path, form):
    path = write_cdf(tmp_path / "pose.cdf", {"Pose": VALUES}, **form)
    data = path.read_bytes()
    rng = np.random.default_rng(1)
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        with contextlib.suppress(InputError):
            assert read_cdf_variable(path, "Pose").dtype == np.float64
