"""`datamodules.spool`: what comes back of a spool that was left at any moment, and how damage to it is told."""

import json
import os

import numpy as np
import pytest

from bodies import InputError
from datamodules import spool_columns
from datamodules.spool import Spool

LARGE, SMALL = ("images/jpeg",), ("rows/a", "rows/b", "rows/never")


def opened(folder, resume=True):
    return Spool(folder / "f.h5", {"split": "train"}, LARGE, resume, SMALL)


def fill(spool, first, last):
    for row in range(first, last):
        spool.extend("images/jpeg", [bytes([row]) * row, b"", b"end"])
        spool.append("rows/a", np.array(row, "<i4").tobytes())
        if row % 2:
            spool.append("rows/b", np.array([row, -row], "<f4").tobytes())


def content(spool):
    return {name: spool.read(name) for name in (*LARGE, *SMALL)}


def expected(rows):
    return {
        "images/jpeg": b"".join(bytes([row]) * row + b"end" for row in range(rows)),
        "rows/a": np.arange(rows, dtype="<i4").tobytes(),
        "rows/b": np.array([[row, -row] for row in range(1, rows, 2)], "<f4").tobytes(),
        "rows/never": b"",
    }


@pytest.mark.parametrize("gathered_bytes", [1, 40, 1 << 20])
def test_what_was_flushed_comes_back_and_nothing_else(tmp_path, monkeypatch, gathered_bytes):
    monkeypatch.setattr(spool_columns, "GATHERED_BYTES", gathered_bytes)
    spool = opened(tmp_path)
    for rows in (5, 9):
        fill(spool, 5 if rows == 9 else 0, rows)
        assert content(spool) == expected(rows)
        spool.flush()
        spool.flush()
    fill(spool, 100, 103)  # never flushed
    spool._columns.write_block()
    spool.close()
    spool = opened(tmp_path)
    assert content(spool) == expected(9)
    assert [spool.size(name) for name in SMALL] == [36, 32, 0]
    fill(spool, 9, 12)
    assert content(spool) == expected(12)
    np.testing.assert_array_equal(spool.array("rows/a", "<i4", ()), np.arange(12))
    assert spool.array("rows/never", "<f4", (3,)).shape == (0, 3)
    (tmp_path / "copy").write_bytes(b"head")
    with (tmp_path / "copy").open("r+b") as copy:
        assert sum(spool.copied("rows/b", copy.fileno(), 4)) == 48
    assert (tmp_path / "copy").read_bytes() == b"head" + expected(12)["rows/b"]
    spool.remove()
    assert os.listdir(tmp_path) == ["copy"]


def test_a_block_that_the_disk_refused_is_written_again(tmp_path, monkeypatch):
    spool = opened(tmp_path)
    fill(spool, 0, 5)
    write_all = spool_columns.write_all

    def half(file, data, offset):
        write_all(file, data[: len(data) // 2], offset)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(spool_columns, "write_all", half)
        with pytest.raises(InputError, match=r"f\.h5: it cannot be written \(No space left on device\)"):
            spool.flush()
    spool.flush()
    spool.close()
    spool = opened(tmp_path)
    assert content(spool) == expected(5)
    spool.close()


def test_many_pieces_at_once_and_a_short_write_are_all_there(tmp_path, monkeypatch):
    spool, pieces = opened(tmp_path), [bytes([number % 251]) * (number % 7) for number in range(3000)]
    spool.append("images/jpeg", b"before")
    spool.extend("images/jpeg", pieces)
    writev = os.writev
    monkeypatch.setattr(os, "writev", lambda file, parts: writev(file, [b"".join(parts)[:100]]))
    spool.extend("images/jpeg", pieces)
    spool.append("images/jpeg", b"after")
    assert spool.read("images/jpeg") == b"before" + 2 * b"".join(pieces) + b"after"
    spool.close()


def damaged(tmp_path, change):
    spool = opened(tmp_path)
    fill(spool, 0, 6)
    spool.flush()
    spool.close()
    change(tmp_path / "f.h5.partial")
    with pytest.raises(InputError) as error:
        opened(tmp_path)
    return str(error.value)


def test_damage_is_named(tmp_path):
    def shorter(folder):
        os.truncate(folder / "columns", 20)

    def other_line(folder):
        data = (folder / "columns").read_bytes()
        (folder / "columns").write_bytes(b"[" + data[1:])

    def other_sizes(folder):
        journal = json.loads((folder / "journal.json").read_text())
        journal["sizes"]["rows/a"] += 4
        (folder / "journal.json").write_text(json.dumps(journal))

    def older(folder):
        journal = json.loads((folder / "journal.json").read_text())
        del journal["columns"]
        (folder / "journal.json").write_text(json.dumps(journal))

    for number, (change, message) in enumerate(
        [
            (shorter, "columns: shorter than the journal says; delete"),
            (other_line, "columns: damaged; delete"),
            (other_sizes, "columns: damaged; delete"),
            (older, "journal.json: the journal is damaged; delete"),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert message in damaged(folder, change)
