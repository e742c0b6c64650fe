"""A store file read by position: the HDF5 library looks once at where each column lies, then plain reads do.

A descriptor that only `os.pread` uses keeps no place in the file and no cache, so it serves threads and forked workers
alike; a pickled file opens its own at the first read. That it is still the file that was checked is looked up then.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import h5py
import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from bodies.errors import InputError
from datamodules.store_layout import (
    ESTIMATE_ATTRIBUTES,
    FRAME_ATTRIBUTES,
    FRAME_BYTES,
    FRAME_COLUMNS,
    FRAME_TEXTS,
    LAYOUT_VERSION,
    VALID_COLUMN,
    Column,
    FileKind,
    estimate_columns,
)

#: Numbers are checked in blocks of about this many bytes.
BLOCK_BYTES: Final = 16 << 20


@dataclass(frozen=True)
class Extent:
    """Where a column lies in its file."""

    offset: int
    """Of its first byte."""
    dtype: np.dtype[Any]
    """Of its elements."""
    shape: tuple[int, ...]
    """Rows first."""
    row_bytes: int
    """Bytes of one row."""


class _Descriptor:
    """A file descriptor that closes itself."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if hasattr(self, "number"):
            close(self.number)


class ColumnFile:
    """A store file whose kind, version, types and shapes are as they should be.

    Args:
        path: The file.
        kind: What it has to be.
        attributes: Names of attributes that it has to have besides the format's own.
        columns_of: The numeric columns, given the attributes.
        texts: Names of the text columns.
        byte_columns: Names of uint8 datasets of any shape.

    Raises:
        InputError: If it is missing, damaged, of another kind, newer, or lacks something.
    """

    def __init__(
        self,
        path: Path,
        kind: FileKind,
        attributes: tuple[str, ...],
        columns_of: Callable[[dict[str, Any]], tuple[Column, ...]],
        texts: tuple[str, ...],
        byte_columns: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self._descriptor: _Descriptor | None = None
        with _opened(path) as file:
            self.attributes = _checked_attributes(path, file, kind, attributes)
            self.columns = columns_of(self.attributes)
            self._extents = {column.name: _column_extent(path, file, column) for column in self.columns}
            for name in texts:
                self._extents[name] = _extent(path, file, name, lambda dtype: dtype.kind == "S", "text")
            for name in byte_columns:
                self._extents[name] = _extent(path, file, name, lambda dtype: dtype == np.uint8, "bytes")
        self._check_row_counts()
        self._identity = _identity(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def rows(self, table: str) -> int:
        """How many rows a table has."""
        return next(e.shape[0] for name, e in self._extents.items() if name.partition("/")[0] == table)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a column, rows first."""
        return self._extents[name].shape

    def row(self, name: str, index: int) -> Shaped[ndarray, "..."]:
        """One row of a column, read-only."""
        extent = self._extents[name]
        data = self.read(extent.offset + index * extent.row_bytes, extent.row_bytes)
        return np.frombuffer(data, extent.dtype).reshape(extent.shape[1:])

    def element(self, name: str, row: int, index: int) -> Shaped[ndarray, "..."]:
        """Element `index` along the second axis of one row, without reading the others."""
        extent = self._extents[name]
        size = extent.row_bytes // extent.shape[1]
        data = self.read(extent.offset + row * extent.row_bytes + index * size, size)
        return np.frombuffer(data, extent.dtype).reshape(extent.shape[2:])

    def block(self, name: str, first: int, last: int) -> Shaped[ndarray, "rows ..."]:
        """Rows `first` to `last` (not included) of a column, read-only."""
        extent = self._extents[name]
        size = (last - first) * extent.row_bytes
        data = self.read(extent.offset + first * extent.row_bytes, size)
        return np.frombuffer(data, extent.dtype).reshape(last - first, *extent.shape[1:])

    def column(self, name: str) -> Shaped[ndarray, "rows ..."]:
        """A whole column, read-only."""
        return self.block(name, 0, self._extents[name].shape[0])

    def blocks(self, name: str) -> Iterator[tuple[int, Shaped[ndarray, "rows ..."]]]:
        """A column in pieces of bounded size, each with its first row."""
        count, step = self._extents[name].shape[0], self.block_rows(name)
        for first in range(0, count, step):
            yield first, self.block(name, first, min(first + step, count))

    def block_rows(self, name: str) -> int:
        """Rows to a piece of `blocks`."""
        return max(1, BLOCK_BYTES // max(1, self._extents[name].row_bytes))

    def text(self, name: str, index: int) -> str:
        """One row of a text column."""
        extent = self._extents[name]
        data = self.read(extent.offset + index * extent.row_bytes, extent.row_bytes)
        return data.rstrip(b"\0").decode(errors="replace")

    def texts(self, name: str) -> list[bytes]:
        """A text column as UTF-8, without the padding."""
        values: list[bytes] = self.column(name).tolist()
        return values

    def slice_bytes(self, name: str, start: int, length: int) -> bytes:
        """Part of a uint8 column."""
        return self.read(self._extents[name].offset + start, length)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file.

        Raises:
            InputError: If the file is no longer the one that was checked, or the disk fails.
        """
        if length == 0:
            return b""
        try:
            if self._descriptor is None:
                self._descriptor = self._open()
            data = os.pread(self._descriptor.number, length, offset)
            # One call returns at most 2 GiB, and less than asked for on some network file systems.
            while len(data) < length:
                more = os.pread(self._descriptor.number, length - len(data), offset + len(data))
                if not more:
                    raise InputError(f"{self.path}: it was cut off while it was in use")
                data += more
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        return data

    def _open(self) -> _Descriptor:
        descriptor = _Descriptor(self.path)
        if _identity(descriptor.number) != self._identity:
            raise InputError(f"{self.path}: it was replaced or changed after it was opened")
        return descriptor

    def _check_row_counts(self) -> None:
        """All columns of a table are equally long; the byte streams are not columns of a table."""
        counts: dict[str, tuple[str, int]] = {}
        for name, extent in self._extents.items():
            if name == "images/jpeg":
                continue
            table = name.partition("/")[0]
            first, count = counts.setdefault(table, (name, extent.shape[0]))
            if extent.shape[0] != count:
                raise InputError(f"{self.path}: {name} has {extent.shape[0]} rows, but {first} has {count}")


def frames_file(path: Path) -> ColumnFile:
    """A frames file that has everything in its place; its values are checked by `FrameStore`.

    Raises:
        InputError: As `ColumnFile` says.
    """
    return ColumnFile(path, "frames", FRAME_ATTRIBUTES, lambda _: FRAME_COLUMNS, FRAME_TEXTS, FRAME_BYTES)


def estimates_file(path: Path) -> ColumnFile:
    """An estimates file that has everything in its place; its values are checked by `EstimateStore`.

    Raises:
        InputError: As `ColumnFile` says.
    """

    def columns_of(attributes: dict[str, Any]) -> tuple[Column, ...]:
        return (VALID_COLUMN, *estimate_columns(int(attributes["samples"])))

    return ColumnFile(path, "estimates", ESTIMATE_ATTRIBUTES, columns_of, ())


def file_header(path: Path) -> tuple[FileKind, dict[str, Any]]:
    """Which kind of store file it is and what its attributes are; nothing else of it is checked.

    Raises:
        InputError: If it is missing, damaged, or no store file.
    """
    with _opened(path) as file:
        return _kind_of(path, file), dict(file.attrs)


def checksum(data: bytes) -> int:
    """CRC-32, as kept for each image: 20 us for 90 kB, against 1.4 ms to decode it."""
    return zlib.crc32(data)


def _identity(file: Path | int) -> tuple[int, int, int]:
    status = os.stat(file)
    return status.st_ino, status.st_size, status.st_mtime_ns


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        hint = f"; {partial.name} is there, so writing it was interrupted" if partial.exists() else ""
        raise InputError(f"{path}: there is no such file{hint}")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        # h5py's own errors for files that are cut off, damaged, locked, or not HDF5 at all.
        cause = " ".join(str(error).split())
        raise InputError(f"{path}: not a whole HDF5 file ({cause})") from error


def _kind_of(path: Path, file: Any) -> FileKind:
    text = str(file.attrs.get("format", ""))
    for kind in get_args(FileKind):
        if text == f"snugfit-{kind}":
            found: FileKind = kind
            return found
    raise InputError(f"{path}: not a snugfit store file")


def _checked_attributes(path: Path, file: Any, kind: FileKind, names: tuple[str, ...]) -> dict[str, Any]:
    found = _kind_of(path, file)
    if found != kind:
        raise InputError(f"{path}: it holds {found}, expected was a file of {kind}")
    version = int(file.attrs["version"])
    if version != LAYOUT_VERSION:
        action = "update snugfit" if version > LAYOUT_VERSION else "convert its source again"
        raise InputError(f"{path}: layout version {version}, this snugfit reads {LAYOUT_VERSION}: {action}")
    missing = [name for name in names if name not in file.attrs]
    if missing:
        raise InputError(f"{path}: the attribute {missing[0]!r} is missing")
    return {name: file.attrs[name] for name in names}


def _column_extent(path: Path, file: Any, column: Column) -> Extent:
    extent = _extent(path, file, column.name, lambda dtype: dtype == np.dtype(column.dtype), column.dtype)
    if extent.shape[1:] != column.shape:
        raise InputError(f"{path}: {column.name} has rows of shape {extent.shape[1:]}, expected was {column.shape}")
    return extent


def _extent(path: Path, file: Any, name: str, fits: Callable[[Any], bool], expected: str) -> Extent:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise InputError(f"{path}: the dataset {name} is missing")
    if not fits(dataset.dtype) or not dataset.shape:
        raise InputError(f"{path}: {name} is of type {dataset.dtype}, expected was {expected}")
    offset = dataset.id.get_offset() if dataset.size else 0
    if dataset.chunks is not None or offset is None:
        raise InputError(f"{path}: {name} is chunked or compressed; store files are plain (was it repacked?)")
    row_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    return Extent(int(offset), dataset.dtype, dataset.shape, row_bytes)
