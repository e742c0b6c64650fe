"""What all converters share: jobs done by threads, progress, resume, and a summary of what was skipped and why.

A converter turns its source into `Job`s, each of which knows the rows of some images without reading a pixel (`plan`)
and reads the images that are still wanted (`images`). Rows come out in the order of the jobs, whatever the number of
threads; they are threads because reading files, decoding and encoding all release Python's lock, so images need not be
copied between processes. An interrupted run is gone on with by `FrameWriter`: rows that are there are not made again.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bodies.errors import InputError
from datamodules.convert.summary import RunOptions, Skipped, Split, Summary, write_skipped
from datamodules.store import FrameRow, FrameWriter, StoredImage
from datamodules.store_layout import OPTIONAL_COLUMNS, POSE_COLUMNS

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Jobs in flight per thread: enough to keep all busy, few enough that memory does not grow with the data set.
_IN_FLIGHT: Final = 2


class PlannedFrame(NamedTuple):
    """One image and who is in it, before its pixels are read."""

    name: str
    """Name of the image in its data set."""
    frame: int
    """Number of the frame in its recording."""
    rows: tuple[FrameRow, ...]
    """The people; `FrameRow.image` counts for nothing, the image is known when it is stored."""


class JobPlan(NamedTuple):
    """What a job would make."""

    frames: tuple[PlannedFrame, ...]
    """In the order in which they are to be stored."""
    skipped: tuple[Skipped, ...] = ()
    """What it leaves out."""


class Job(ABC):
    """A part of a conversion that one thread does; small enough that its images fit into memory several times."""

    @abstractmethod
    def plan(self) -> JobPlan:
        """The rows, without reading images.

        Raises:
            InputError: If the source is damaged in a way that should end the conversion.
        """

    @abstractmethod
    def images(self, frames: Sequence[PlannedFrame]) -> Iterator[StoredImage | str]:
        """For each of these frames its image, or why there is none.

        Raises:
            InputError: If the source is damaged in a way that should end the conversion.
        """


@dataclass(frozen=True)
class Conversion:
    """Everything that is to be done."""

    dataset: str
    """Name of the data set."""
    split: Split
    """Which part of it."""
    body_model: str
    """Which body model the parameters refer to."""
    jobs: tuple[Job, ...]
    """In the order in which their rows are stored."""
    settings: Mapping[str, str | int] = field(default_factory=dict)
    """Whatever else a run that goes on with an interrupted one has to have in common with it."""
    skipped: tuple[Skipped, ...] = ()
    """What was left out before there were jobs."""


def run_conversion(conversion: Conversion, out: Path, options: RunOptions) -> Summary:
    """Does all jobs and writes the file.

    What was skipped is listed in full beside the file, as `<out>.skipped.tsv`.

    Raises:
        InputError: If the source is damaged, nothing is left of it, or the file cannot be written.
    """
    skipped = list(conversion.skipped)
    if options.dry_run:
        plans = _progressing(conversion.jobs, lambda job: _sound(job.plan()), options)
        rows = 0
        for plan in plans:
            rows += sum(len(frame.rows) for frame in plan.frames)
            skipped += plan.skipped
        return Summary(out, rows, "planned", tuple(skipped))
    if not conversion.jobs:
        reason = f", the first because {skipped[0].reason}" if skipped else ""
        raise InputError(f"{out}: there is nothing to be converted{reason}")
    header = (conversion.dataset, conversion.split, conversion.body_model, conversion.settings)
    with FrameWriter(out, *header) as writer:
        for made, left_out in _progressing(conversion.jobs, lambda job: _make(job, writer.__contains__), options):
            skipped += left_out
            indices = writer.add_images([image for image, _ in made])
            writer.add_rows(
                [row for _, rows in made for row in rows],
                [index for index, (_, rows) in zip(indices, made, strict=True) for _ in rows],
            )
        if not len(writer):
            reason = f": all of the source was skipped, the first because {skipped[0].reason}" if skipped else ""
            raise InputError(f"{out}: there is not one row to be written{reason}")
        rows = len(writer)
    write_skipped(out.with_name(f"{out.name}.skipped.tsv"), skipped)
    return Summary(out, rows, "written", tuple(skipped))


def _make(
    job: Job, done: Callable[[str], bool]
) -> tuple[list[tuple[StoredImage, tuple[FrameRow, ...]]], tuple[Skipped, ...]]:
    """The images of a job with the rows that are not stored yet."""
    plan = _sound(job.plan())
    left = [(frame, tuple(row for row in frame.rows if not done(row.row_id))) for frame in plan.frames]
    todo = [frame if len(rows) == len(frame.rows) else frame._replace(rows=rows) for frame, rows in left if rows]
    made, skipped = [], list(plan.skipped)
    for frame, image in zip(todo, job.images(todo) if todo else (), strict=True):
        if isinstance(image, str):
            skipped += [Skipped(row.row_id, image) for row in frame.rows]
        else:
            made.append((image, frame.rows))
    return made, tuple(skipped)


def _sound(plan: JobPlan) -> JobPlan:
    """The plan without rows whose values the store would refuse: a bad row must not end the conversion."""
    problems = value_problems([row for frame in plan.frames for row in frame.rows])
    if not problems:
        return plan
    frames, skipped = [], list(plan.skipped)
    for frame in plan.frames:
        skipped += [Skipped(row.row_id, problems[row.row_id]) for row in frame.rows if row.row_id in problems]
        if rows := tuple(row for row in frame.rows if row.row_id not in problems):
            frames.append(frame._replace(rows=rows))
    return JobPlan(tuple(frames), tuple(skipped))


def value_problems(rows: Sequence[FrameRow]) -> dict[str, str]:
    """What about the numbers of rows could not be stored: not finite, behind the camera, degrees for radians ...

    Returns:
        By row id, only of the rows that have one; the first cause of several.
    """
    problems: dict[str, str] = {}
    for column in (*POSE_COLUMNS, *OPTIONAL_COLUMNS):
        known = [(row.row_id, value) for row in rows if (value := getattr(row, column.label)) is not None]
        if not known:
            continue
        for place in np.flatnonzero(column.bad_rows(np.array([value for _, value in known]))):
            problems.setdefault(known[place][0], f"{column.label} is not finite or out of range")
    return problems


def every_nth(every: int) -> int:
    """A stride of frames that was checked.

    Raises:
        InputError: If it is not positive.
    """
    if every < 1:
        raise InputError(f"every {every}: it must be 1 or more")
    return every


def _progressing(items: Sequence[Item], work: Callable[[Item], Result], options: RunOptions) -> Iterator[Result]:
    """Results of the work on each item, in order, with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), disable=options.quiet) as progress:
        task = progress.add_task("planning" if options.dry_run else "converting", total=len(items))
        for result in in_order(work, items, options.workers):
            yield result
            progress.advance(task)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int | None) -> Iterator[Result]:
    """Results of threads in the order of the items, started no further ahead than what keeps the threads busy.

    Args:
        work: What is done with each item.
        items: What there is to do.
        workers: Threads, by default one per core; the calling thread alone for 0 or 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = cores if workers is None else workers
    if threads <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= _IN_FLIGHT * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # After an error or an interruption, what has not begun is not begun.
        pool.shutdown(cancel_futures=True)
