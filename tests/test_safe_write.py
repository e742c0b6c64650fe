"""Files and folders appear whole or not at all."""

import os

import pytest

from bodies.safe_write import whole_file, whole_folder


def test_file_takes_its_place_with_its_suffix_and_ordinary_permissions(tmp_path):
    target = tmp_path / "new" / "a.npz"
    with whole_file(target) as temporary:
        assert temporary.suffix == ".npz"
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~mask
    assert [p.name for p in target.parent.iterdir()] == ["a.npz"]


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(target) as temporary:
        temporary.write_text("half a file, then \udcff", encoding="utf-8")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "out"
    for name in ("first", "second"):
        with whole_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert [p.name for p in target.iterdir()] == ["second"]
    with pytest.raises(UnicodeEncodeError), whole_folder(target) as temporary:
        (temporary / "third").write_text("half a file, then \udcff", encoding="utf-8")
    assert [p.name for p in target.iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
