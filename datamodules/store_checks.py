"""What has to hold between the values of a store file before any row of it is used."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Int64
from numpy import ndarray
from rich.progress import track

from bodies.errors import InputError
from datamodules.store_file import BLOCK_BYTES, ColumnFile, checksum
from datamodules.store_layout import (
    BARYCENTRIC_SLACK,
    IMAGE_COLUMNS,
    JPEG_BYTES,
    ROW_COLUMNS,
    SURFACE_COLUMNS,
    TEXTURE_RGBA,
    Column,
    fingerprint,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: A pass over less than this takes under two seconds on any disk, and shows no progress bar.
PROGRESS_BYTES: Final = 256 << 20
#: How many left-out rows are named in the log; the rest is counted.
LOGGED_ROWS: Final = 10
#: The first thing found wrong with each bad row.
Problems = dict[int, str]


class SkippedRow(NamedTuple):
    """A row that `skip_bad_rows` left out."""

    row: int
    """Row in the file."""
    row_id: str
    """Its name."""
    problem: str
    """Why."""


def check_row_ids(file: ColumnFile) -> None:
    """The rows have names of their own, and they are the ones that the fingerprint was made of.

    Raises:
        InputError: Otherwise.
    """
    row_ids = file.texts("rows/row_id")
    if len(set(row_ids)) != len(row_ids):
        row_id, times = Counter(row_ids).most_common(1)[0]
        raise InputError(f"{file.path}: the row id {row_id.decode(errors='replace')!r} appears {times} times")
    if fingerprint(row_ids) != file.attributes["row_fingerprint"]:
        raise InputError(f"{file.path}: its row ids do not match their fingerprint, the file is damaged")


def frame_problems(file: ColumnFile) -> Problems:
    """Rows of a frames file that cannot be used, by what the numbers say; the images are not looked into."""
    problems: Problems = {}
    for column in ROW_COLUMNS:
        _add(problems, column_problems(file, column))
    for name, table in (("rows/image", "images"), ("rows/subject", "subjects"), ("rows/sequence", "sequences")):
        count = file.rows(table)
        for row in np.flatnonzero(file.column(name) >= count):
            problems.setdefault(int(row), f"it refers to one of {count} {table} that does not exist")
    _add(problems, _of_rows(file, _image_problems(file)))
    _add(problems, _surface_problems(file))
    return problems


def check_textures(file: ColumnFile) -> None:
    """Textures are of one shape and belong to subjects that there are.

    Raises:
        InputError: Otherwise.
    """
    shape = file.shape(TEXTURE_RGBA)
    if len(shape) not in (3, 4) or shape[-1] != 4:
        raise InputError(f"{file.path}: {TEXTURE_RGBA} has shape {shape}, expected was (T, H, W, 4) or (T, V, 4)")
    subjects = file.column("textures/subject")
    if np.any((subjects < 0) | (subjects >= file.rows("subjects"))):
        raise InputError(f"{file.path}: a texture belongs to a subject that does not exist")


def column_problems(file: ColumnFile, column: Column, rows: Bool[ndarray, " rows"] | None = None) -> Problems:
    """Rows of a column whose values are not finite or out of bounds.

    Args:
        file: The file.
        column: One of its columns.
        rows: Which rows to look at; all by default.
    """
    problems: Problems = {}
    for first, values in _blocks(file, column.name):
        bad = column.bad_rows(values)
        if rows is not None:
            bad &= rows[first : first + len(values)]
        for row in np.flatnonzero(bad):
            problems[first + int(row)] = column.describe(np.asarray(values[row]))
    return problems


def checksum_problems(file: ColumnFile) -> Problems:
    """Rows whose image bytes are not the ones that were written; reads the whole file once."""
    starts, lengths, sums = (file.column(f"images/{name}") for name in ("start", "length", "crc32"))
    total = file.shape(JPEG_BYTES)[0]
    images: Problems = {}
    description = f"checking the images of {file.path.name}"
    for image in with_progress(range(len(starts)), description, len(starts), total):
        start, length = int(starts[image]), int(lengths[image])
        # Images that lie outside of the file are reported by `frame_problems`.
        if 0 <= start <= total - length and length > 0:
            data = file.slice_bytes(JPEG_BYTES, start, length)
            if checksum(data) != int(sums[image]):
                images[image] = damaged_image(file, image)
    return _of_rows(file, images)


def damaged_image(file: ColumnFile, image: int) -> str:
    """What is said of an image whose bytes changed."""
    return f"its image {file.text('images/name', image)!r} is damaged (wrong checksum)"


def _image_problems(file: ColumnFile) -> Problems:
    problems: Problems = {}
    for column in IMAGE_COLUMNS:
        _add(problems, column_problems(file, column))
    starts, lengths = file.column("images/start"), file.column("images/length")
    for image in np.flatnonzero(starts + lengths > file.shape(JPEG_BYTES)[0]):
        problems.setdefault(int(image), "its bytes lie outside of the file")
    far_corner = file.column("images/origin_px") + file.column("images/piece_px")
    for image in np.flatnonzero((far_corner > file.column("images/size_px")).any(axis=1)):
        problems.setdefault(int(image), "the stored piece lies outside of the full image")
    return {image: f"its image {file.text('images/name', image)!r}: {text}" for image, text in problems.items()}


def _surface_problems(file: ColumnFile) -> Problems:
    starts, counts = file.column("rows/surface_start"), file.column("rows/surface_count")
    points = file.rows("surface")
    problems: Problems = {}
    for row in np.flatnonzero(starts + counts > points):
        problems[int(row)] = "its surface points lie outside of the file"
    bad = np.zeros(points, bool)
    for column in SURFACE_COLUMNS:
        for first, values in _blocks(file, column.name):
            bad[first : first + len(values)] |= column.bad_rows(values)
            if column.label == "barycentric":
                off = np.abs(values.sum(axis=1) - 1) > BARYCENTRIC_SLACK
                bad[first : first + len(values)] |= off
    bad_before = np.concatenate([[0], np.cumsum(bad)])
    ends = np.clip(starts + counts, 0, points)
    for row in np.flatnonzero(bad_before[ends] > bad_before[np.clip(starts, 0, points)]):
        problems.setdefault(int(row), "a surface point is not finite, out of range, or its weights do not sum to 1")
    return problems


def _of_rows(file: ColumnFile, images: Problems) -> Problems:
    """The rows that refer to bad images."""
    if not images:
        return {}
    of_row = file.column("rows/image")
    return {int(row): images[int(of_row[row])] for row in np.flatnonzero(np.isin(of_row, list(images)))}


def _add(problems: Problems, more: Problems) -> None:
    for row, text in more.items():
        problems.setdefault(row, text)


def _blocks(file: ColumnFile, name: str) -> Iterator[tuple[int, ndarray]]:
    count = -(-file.shape(name)[0] // file.block_rows(name))
    return with_progress(file.blocks(name), f"checking {name} of {file.path.name}", count, count * BLOCK_BYTES)


def with_progress(items: Iterable[T], description: str, count: int, num_bytes: int) -> Iterator[T]:
    """The items, with a progress bar if there are many bytes in them."""
    if num_bytes < PROGRESS_BYTES:
        return iter(items)
    return iter(track(items, description, total=count, transient=True))


def skip_or_refuse(
    path: Path, problems: Problems, skip: bool, num_rows: int, row_id: Callable[[int], str]
) -> tuple[SkippedRow, ...]:
    """The bad rows by name, logged.

    Raises:
        InputError: If they may not be skipped, naming the first, or if there is no other row.
    """
    if not problems:
        return ()
    skipped = tuple(SkippedRow(row, row_id(row), problems[row]) for row in sorted(problems))
    if not skip:
        first = skipped[0]
        more = f" (and {len(skipped) - 1} more bad rows)" if len(skipped) > 1 else ""
        raise InputError(f"{path}: row {first.row} ({first.row_id}): {first.problem}{more}")
    if len(skipped) == num_rows:
        raise InputError(f"{path}: all of its {num_rows} rows are bad, the first because {skipped[0].problem}")
    logger.warning("%s: left out %d of %d rows", path, len(skipped), num_rows)
    for entry in skipped[:LOGGED_ROWS]:
        logger.warning("%s: left out row %d (%s): %s", path, entry.row, entry.row_id, entry.problem)
    return skipped


def good_rows(num_rows: int, problems: Problems) -> Int64[ndarray, " rows"]:
    """The rows without a problem, read-only."""
    rows = np.setdiff1d(np.arange(num_rows), np.fromiter(problems, np.int64, len(problems)))
    rows.flags.writeable = False
    return rows
