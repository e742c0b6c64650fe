"""What writing a store file consists of, whichever kind it is: checked records into a spool, the spool into HDF5."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import h5py
import numpy as np
from numpy import ndarray

from bodies.errors import InputError
from datamodules.crops import jpeg_size_px
from datamodules.spool import COPY_BYTES, Spool
from datamodules.store_checks import with_progress
from datamodules.store_layout import BARYCENTRIC_SLACK, LAYOUT_VERSION, SURFACE_COLUMNS, Column, FileKind
from datamodules.store_records import NO_SURFACE_POINTS, StoredImage, SurfacePoints

#: Rows between flushes: what a killed process has to do again.
FLUSH_ROWS: Final = 512


class SpooledWriter(ABC):
    """The spool, the flushes, and the assembly on leaving the `with` block.

    Args:
        path: The file to be made.
        kind: Which kind of file.
        header: What a run that goes on with this one has to have in common with it.
        names: Large columns of the spool.
        resume: Go on with an interrupted run.
        columns: Its small columns.
    """

    def __init__(
        self,
        path: Path | str,
        kind: FileKind,
        header: Mapping[str, str | int],
        names: tuple[str, ...],
        resume: bool,
        columns: tuple[str, ...] = (),
    ) -> None:
        self.path = Path(path)
        self._kind = kind
        header = {"format": f"snugfit-{kind}", "version": LAYOUT_VERSION, **header}
        self._spool = Spool(self.path, header, names, resume, columns)
        self._in_record = False
        self._since_flush = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
            return
        try:
            # What came before the error is kept for the next run, unless the error hit in the middle of a record.
            if not self._in_record:
                self._spool.flush()
        finally:
            self._spool.close()

    def flush(self) -> None:
        """Makes the rows so far survive a kill; done by itself every `FLUSH_ROWS` rows."""
        self._spool.flush()
        self._since_flush = 0

    def finish(self) -> None:
        """Assembles the file, renames it onto the target and removes the spool; leaving the `with` block does it."""
        try:
            self._spool.flush()
            temporary = self._spool.path_for_result
            with h5py.File(temporary, "w") as file:
                file.attrs.update({"format": f"snugfit-{self._kind}", "version": LAYOUT_VERSION})
                self._assemble(file)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.replace(self.path)
        except OSError as error:
            self._spool.close()
            raise InputError(f"{self.path}: it cannot be written ({error.strerror or error})") from error
        except BaseException:
            self._spool.close()
            raise
        self._spool.remove()

    @abstractmethod
    def _assemble(self, file: Any) -> None:
        """Writes attributes and datasets from the spool."""

    def _append(self, records: Mapping[str, bytes], large: Mapping[str, Sequence[bytes]] | None = None) -> None:
        """All parts of one record, or of several; of the `large` ones each by itself, for joining them costs time."""
        self._in_record = True
        for name, data in records.items():
            self._spool.append(name, data)
        for name, parts in (large or {}).items():
            self._spool.extend(name, parts)
        self._in_record = False

    def _count_rows(self, count: int) -> None:
        self._since_flush += count
        if self._since_flush >= FLUSH_ROWS:
            self.flush()


def copy_from_spool(spool: Spool, file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """One column of a spool as a contiguous dataset with rows of the given shape.

    The HDF5 library only says where the bytes belong. They are put there past it, which halves the time of large files.
    """
    row_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    # Textures that are not there have rows of no bytes.
    count = spool.size(name) // max(1, row_bytes)
    offset = _reserved(file, name, dtype, (count, *shape))
    if offset is None:
        return
    description, num_bytes = f"writing {name} of {spool.target.name}", count * row_bytes
    target = os.open(file.filename, os.O_WRONLY | os.O_CLOEXEC)
    try:
        blocks = spool.copied(name, target, offset)
        copied = sum(with_progress(blocks, description, -(-num_bytes // COPY_BYTES), num_bytes))
    finally:
        os.close(target)
    assert copied == num_bytes, f"{name} is no whole number of rows"


def _reserved(file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> int | None:
    """Makes a contiguous dataset without values; returns the place of its first byte, None if it is empty."""
    creation, links = (h5py.h5p.create(kind) for kind in (h5py.h5p.DATASET_CREATE, h5py.h5p.LINK_CREATE))
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    creation.set_obj_track_times(False)
    links.set_create_intermediate_group(True)
    kind, space = h5py.h5t.py_create(np.dtype(dtype), logical=True), h5py.h5s.create_simple(shape)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, creation, links)
    offset: int | None = dataset.get_offset() if 0 not in shape else None
    return offset


def packed(column: Column, value: Any, where: str) -> bytes:
    """One row of a column as bytes.

    Raises:
        InputError: If its shape is not the column's or a value is not allowed; `where` names the row.
    """
    given, dtype = np.asarray(value), np.dtype(column.dtype)
    if given.shape != column.shape:
        raise InputError(f"{where}: {column.label} has shape {given.shape}, expected was {column.shape}")
    if given.dtype.kind not in ("iuf" if dtype.kind == "f" else "iu"):
        raise InputError(f"{where}: {column.label} is of type {given.dtype}, expected was {dtype}")
    # Bounds are checked before the cast, so nothing overflows in it.
    if column.bad_rows(given[None])[0]:
        raise InputError(f"{where}: {column.describe(given)}")
    return given.astype(dtype).tobytes()


def packed_rows(column: Column, values: Sequence[Any] | ndarray, wheres: Sequence[str]) -> bytes:
    """Rows of a column as bytes.

    Raises:
        InputError: As `packed` does, for the first row that is bad.
    """
    dtype = np.dtype(column.dtype)
    try:
        block = np.array(values)
    except (ValueError, OverflowError):  # rows of several shapes, or an integer that is none of numpy's
        block = np.array(None)
    sound = block.shape == (len(values), *column.shape) and block.dtype.kind in ("iuf" if dtype.kind == "f" else "iu")
    if sound and not column.bad_rows(block).any():
        return block.astype(dtype).tobytes()
    return b"".join(packed(column, value, where) for value, where in zip(values, wheres, strict=True))


def packed_surfaces(surfaces: Sequence[SurfacePoints], wheres: Sequence[str]) -> dict[str, bytes]:
    """The points of rows as bytes by column.

    Raises:
        InputError: As `packed_surface` does, for the first row that is bad.
    """
    parts = [
        packed_surface(surface, where)
        for surface, where in zip(surfaces, wheres, strict=True)
        if surface is not NO_SURFACE_POINTS
    ]
    return {column.name: b"".join(part[column.name] for part in parts) for column in SURFACE_COLUMNS}


def packed_surface(surface: SurfacePoints, where: str) -> dict[str, bytes]:
    """The points of one row as bytes by column.

    Raises:
        InputError: If the arrays differ in length or a value is not allowed.
    """
    count, result = len(surface.triangle), {}
    for column, values in zip(SURFACE_COLUMNS, surface, strict=True):
        if values.shape != (count, *column.shape):
            raise InputError(
                f"{where}: surface {column.label} has shape {values.shape}, expected was {(count, *column.shape)}"
            )
        bad = np.flatnonzero(column.bad_rows(values))
        if len(bad):
            raise InputError(f"{where}: surface point {bad[0]}: {column.describe(np.asarray(values[bad[0]]))}")
        result[column.name] = values.astype(column.dtype).tobytes()
    off = np.flatnonzero(np.abs(surface.barycentric.sum(axis=1) - 1) > BARYCENTRIC_SLACK)
    if len(off):
        raise InputError(f"{where}: surface point {off[0]}: its weights do not sum to 1")
    return result


def text_line(text: str, where: str) -> bytes:
    """A name as the spool keeps it, one a line.

    Raises:
        InputError: If it is empty, or cannot be told from its padding or its neighbour.
    """
    if not text or "\n" in text or "\0" in text:
        raise InputError(f"{where}: names must not be empty or hold line breaks, got {text!r}")
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the name {text!r} is not valid text") from error


def text_lines(texts: Sequence[str], wheres: Sequence[str]) -> bytes:
    """Names as the spool keeps them, one a line.

    Raises:
        InputError: As `text_line` does, for the first that is bad.
    """
    return b"".join(map(text_line, texts, wheres))


def whole_piece_px(image: StoredImage, where: str) -> tuple[int, int]:
    """Width and height of what is stored of an image.

    Raises:
        InputError: If it is not a whole JPEG, or lies outside of the full image.
    """
    try:
        piece_px = jpeg_size_px(image.jpeg)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    for corner, piece, size in zip(image.origin_px, piece_px, image.size_px, strict=True):
        if corner < 0 or corner + piece > size:
            raise InputError(
                f"{where}: a JPEG of {piece_px} at {image.origin_px} lies outside of the image of {image.size_px}"
            )
    return piece_px


def new_names(names: Sequence[str], known: Mapping[str, int]) -> dict[str, int]:
    """The names that are not known yet, in order, each with its code."""
    new = dict.fromkeys(name for name in names if name not in known)
    return {name: code for code, name in enumerate(new, start=len(known))}


def name_lines(new: Mapping[str, int], names: Sequence[str], wheres: Sequence[str]) -> bytes:
    """New names as the spool keeps them; what cannot be a name is told of the first row that has it."""
    return text_lines(list(new), [wheres[names.index(name)] for name in new])


def check_texture_shape(shape: tuple[int, ...], first: tuple[int, ...] | None, where: str) -> None:
    """A texture is (H, W, 4) or (V, 4), and like the first one of the file.

    Raises:
        InputError: Otherwise.
    """
    if len(shape) not in (2, 3) or shape[-1] != 4 or 0 in shape:
        raise InputError(f"{where}: it has shape {shape}, expected was (H, W, 4) or (V, 4)")
    if first is not None and shape != first:
        raise InputError(f"{where}: it has shape {shape}, but the first texture has {first}")
