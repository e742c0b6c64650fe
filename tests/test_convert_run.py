"""What the converters share, with jobs made by hand."""

import threading
from pathlib import Path

import body_oracle
import numpy as np
import pytest
import tiny_store
from tiny_threedpw import LANDSCAPE, Truth, write_sequence

from bodies import InputError
from commands._data_convert import convert
from datamodules.convert.complete import finished
from datamodules.convert.run import Conversion, Job, JobPlan, PlannedFrame, in_order, run_conversion
from datamodules.convert.summary import RunOptions, Skipped, write_skipped
from datamodules.store import FrameStore

QUIET = RunOptions(workers=2, quiet=True)


class TinyJob(Job):
    """One image with two rows; counts how often its image is read, and fails while `broken`."""

    def __init__(self, number: int, **changes: object) -> None:
        self.number, self.changes, self.reads, self.broken = number, changes, 0, False

    def plan(self) -> JobPlan:
        rows = tuple(tiny_store.frame_row(2 * self.number + person, -1, **self.changes) for person in (0, 1))
        return JobPlan((PlannedFrame(f"{self.number}.jpg", self.number, rows),))

    def images(self, frames):
        for _ in frames:
            self.reads += 1
            if self.broken:
                raise InputError("broken")
            yield tiny_store.stored_image(self.number)


def conversion(jobs: list[TinyJob], **changes) -> Conversion:
    return Conversion("tiny", "train", "standin-tiny", tuple(jobs), **changes)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    jobs = [TinyJob(number) for number in range(6)]
    run_conversion(conversion(jobs), tmp_path / "whole.h5", QUIET)
    assert all(job.reads == 1 for job in jobs)
    jobs[4].broken = True
    with pytest.raises(InputError, match="broken"):
        run_conversion(conversion(jobs), tmp_path / "out.h5", RunOptions(0, quiet=True))
    assert not (tmp_path / "out.h5").exists()
    jobs[4].broken = False
    assert run_conversion(conversion(jobs), tmp_path / "out.h5", QUIET).rows == 12
    assert [job.reads for job in jobs] == [2, 2, 2, 2, 3, 2]
    assert (tmp_path / "out.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_going_on_with_another_source_is_refused(tmp_path):
    broken = TinyJob(1)
    broken.broken = True
    with pytest.raises(InputError, match="broken"):
        run_conversion(conversion([TinyJob(0), broken], settings={"every": 1}), tmp_path / "out.h5", QUIET)
    with pytest.raises(InputError, match="it was begun with every 1, now it is 2"):
        run_conversion(conversion([TinyJob(0)], settings={"every": 2}), tmp_path / "out.h5", QUIET)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"transl": np.array([0, 0, np.nan])}, "transl is not finite or out of range"),
        ({"transl": np.array([0.0, 0, -1])}, "transl is not finite or out of range"),
        ({"pose": np.full(72, 90.0)}, "pose is not finite or out of range"),
        ({"detected_keypoints_px": np.full((25, 3), np.inf)}, "detected_keypoints_px is not finite or out of range"),
    ],
)
def test_a_bad_row_does_not_end_the_conversion(tmp_path, changes, reason):
    jobs = [TinyJob(0), TinyJob(1, **changes), TinyJob(2)]
    summary = run_conversion(conversion(jobs), tmp_path / "out.h5", QUIET)
    assert (summary.rows, jobs[1].reads) == (4, 0)
    assert [entry.reason for entry in summary.skipped] == [reason] * 2
    dry = run_conversion(conversion(jobs), tmp_path / "dry.h5", RunOptions(1, dry_run=True, quiet=True))
    assert (dry.rows, len(dry.skipped)) == (4, 2)


def test_nothing_to_convert_is_an_error(tmp_path):
    with pytest.raises(InputError, match="there is nothing to be converted, the first because empty"):
        run_conversion(conversion([], skipped=(Skipped("a", "empty"),)), tmp_path / "out.h5", QUIET)
    assert not list(tmp_path.iterdir())


def test_a_file_of_something_else_is_not_overwritten_unasked(tmp_path):
    run_conversion(conversion([TinyJob(0)]), tmp_path / "out.h5", QUIET)
    assert finished(tmp_path / "out.h5", "tiny", "train", QUIET).state == "complete"
    assert finished(tmp_path / "out.h5", "tiny", "train", RunOptions(overwrite=True)) is None
    assert finished(tmp_path / "other.h5", "tiny", "train", QUIET) is None
    with pytest.raises(InputError, match="it holds tiny, train; give --overwrite"):
        finished(tmp_path / "out.h5", "3dpw", "train", QUIET)


def test_the_list_of_what_was_skipped_goes_when_nothing_is(tmp_path):
    write_skipped(tmp_path / "s.tsv", [Skipped("a", "why", 3)])
    assert (tmp_path / "s.tsv").read_text() == "a\t3\twhy\n"
    write_skipped(tmp_path / "s.tsv", [])
    assert not (tmp_path / "s.tsv").exists()


def test_threads_keep_the_order_and_do_not_run_ahead():
    """The first item is slow; no more than a few others are begun before its result is taken."""
    begun, release = [], threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            release.wait(5)
        return item * item

    results = in_order(work, range(100), 3)
    timer = threading.Timer(0.1, release.set)
    timer.start()
    assert next(results) == 0
    assert len(begun) <= 6
    assert list(results) == [item * item for item in range(1, 100)]


def test_errors_of_threads_come_out_and_negative_numbers_are_refused():
    def work(item: int) -> int:
        raise InputError(f"item {item}")

    with pytest.raises(InputError, match="item 0"):
        list(in_order(work, range(9), 2))
    with pytest.raises(InputError, match="workers -1"):
        RunOptions(workers=-1)


def test_the_command_converts_and_reports(tmp_path: Path, capsys):
    body = body_oracle.write_models(tmp_path / "smpl")
    write_sequence(tmp_path, "a_00", "train", "m", 2, LANDSCAPE, Truth({}, {}))
    out = tmp_path / "out.h5"
    convert("3dpw", tmp_path, out=out, split="train", body=body, workers=1, dry_run=True)
    assert not out.exists()
    convert("3dpw", tmp_path, out=out, split="train", body=body, workers=1)
    assert len(FrameStore(out)) == 2
    convert("3dpw", tmp_path, out=out, split="train", body=body)
    printed = capsys.readouterr().out
    for text in ("would write", "wrote", "is complete already"):
        assert text in printed
    with pytest.raises(InputError, match="there are no clips"):
        convert("surreal", tmp_path, out=tmp_path / "s.h5", split="train", body=body)


@pytest.mark.parametrize(
    ("dataset", "option", "message"),
    [
        ("3dpw", {"views": "all"}, "--views: 3dpw has no use for it, only h36m"),
        ("rich", {"undistort": False}, "--no-undistort: rich has no use for it, only h36m"),
        ("surreal", {"joints_only": True}, "--joints-only"),
        ("h36m", {"transfer": Path("matrix.pkl")}, "--transfer: h36m has no use for it, only rich"),
    ],
)
def test_an_option_of_another_data_set_is_not_ignored(tmp_path, dataset, option, message):
    with pytest.raises(InputError, match=message):
        convert(dataset, tmp_path, out=tmp_path / "out.h5", split="train", body=tmp_path, **option)
