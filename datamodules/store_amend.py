"""Adds to a frames file what is found out after it was written: detections, surface points, textures."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from bodies.errors import InputError
from bodies.safe_write import whole_file
from datamodules.spool import Spool
from datamodules.store_layout import (
    OPTIONAL_COLUMNS,
    SURFACE_COLUMNS,
    SURFACE_INDEX_COLUMNS,
    TEXTURE_COLUMNS,
    TEXTURE_RGBA,
)
from datamodules.store_reader import FrameStore
from datamodules.store_records import SurfacePoints
from datamodules.store_writing import check_texture_shape, copy_from_spool, packed_surface

_STREAMED: Final = (*SURFACE_INDEX_COLUMNS, *SURFACE_COLUMNS, *TEXTURE_COLUMNS)


def amend_frames(
    path: Path | str,
    columns: Mapping[str, Float[ndarray, "..."]] | None = None,
    surface: Iterable[SurfacePoints] | None = None,
    textures: Iterable[tuple[str, UInt8[ndarray, "..."]]] | None = None,
) -> None:
    """Replaces parts of a frames file; the row ids stay, so estimates files keep fitting.

    A new file is written beside the old one, its images copied byte for byte, and renamed onto it.

    Args:
        path: The frames file.
        columns: New values of all rows: "detected_keypoints_px" and "true_keypoints_px" (N, 25, 3), "joints_m"
            (N, 17, 4).
        surface: New surface points, one element per row in the order of the file; taken one at a time.
        textures: New textures by name of the subject; they take the place of all textures. Taken one at a time.

    Raises:
        InputError: If the file is not a good frames file, or a value cannot be; it then stays as it was.
    """
    store = FrameStore(path)
    path = store.path
    replaced = dict(_checked_columns(store, columns or {}))
    # Not the spool of the frames file itself, which an interrupted conversion may have left there.
    spool = Spool(path.with_name(f"{path.name}.amended"), {}, (*(c.name for c in _STREAMED), TEXTURE_RGBA), False)
    try:
        texture_shape = None
        if surface is not None:
            _spool_surface(store, spool, surface)
        if textures is not None:
            texture_shape = _spool_textures(store, spool, textures)
        with whole_file(path) as temporary, h5py.File(path, "r") as old, h5py.File(temporary, "w") as new:
            new.attrs.update(old.attrs)
            for name, values in replaced.items():
                new[name] = values
            if surface is not None:
                for column in (*SURFACE_INDEX_COLUMNS, *SURFACE_COLUMNS):
                    copy_from_spool(spool, new, column.name, column.dtype, column.shape)
            if textures is not None:
                copy_from_spool(spool, new, TEXTURE_COLUMNS[0].name, TEXTURE_COLUMNS[0].dtype, ())
                copy_from_spool(spool, new, TEXTURE_RGBA, "|u1", texture_shape or (0, 4))
            _copy_the_rest(old, new)
    finally:
        spool.remove()


def _checked_columns(
    store: FrameStore, columns: Mapping[str, Float[ndarray, "..."]]
) -> Iterable[tuple[str, Float[ndarray, "..."]]]:
    known = {column.label: column for column in OPTIONAL_COLUMNS}
    for label, values in columns.items():
        if label not in known:
            raise InputError(f"{store.path}: {label!r} cannot be amended, only {', '.join(known)}")
        column, shape = known[label], (store.num_rows, *known[label].shape)
        if values.shape != shape:
            raise InputError(f"{store.path}: {label} has shape {values.shape}, expected was {shape}")
        bad = np.flatnonzero(column.bad_rows(values))
        if len(bad):
            problem = column.describe(values[bad[0]])
            raise InputError(f"{store.path}: row {bad[0]} ({store.row_id(int(bad[0]))}): {problem}")
        yield column.name, values.astype(column.dtype)


def _spool_surface(store: FrameStore, spool: Spool, surface: Iterable[SurfacePoints]) -> None:
    start = row = 0
    for row, points in enumerate(surface, start=1):
        if row > store.num_rows:
            break
        records = packed_surface(points, f"{store.path}: row {row - 1} ({store.row_id(row - 1)})")
        for column, value in zip(SURFACE_INDEX_COLUMNS, (start, len(points.triangle)), strict=True):
            records[column.name] = np.array(value, column.dtype).tobytes()
        for name, data in records.items():
            spool.append(name, data)
        start += len(points.triangle)
    if row != store.num_rows:
        more = "more" if row > store.num_rows else f"{row}"
        raise InputError(f"{store.path}: surface points for {more} rows, the file has {store.num_rows}")


def _spool_textures(
    store: FrameStore, spool: Spool, textures: Iterable[tuple[str, UInt8[ndarray, "..."]]]
) -> tuple[int, ...] | None:
    codes, seen = {name: code for code, name in enumerate(store.subjects)}, set[str]()
    shape: tuple[int, ...] | None = None
    for subject, rgba in textures:
        where = f"{store.path}: texture of {subject!r}"
        if subject not in codes or subject in seen:
            raise InputError(f"{where}: {'it was given twice' if subject in seen else 'no row is of this subject'}")
        check_texture_shape(rgba.shape, shape, where)
        shape = rgba.shape
        seen.add(subject)
        spool.append(TEXTURE_COLUMNS[0].name, np.array(codes[subject], "<i4").tobytes())
        spool.append(TEXTURE_RGBA, rgba.tobytes())
    return shape


def _copy_the_rest(old: Any, new: Any) -> None:
    for table in old:
        for label in old[table]:
            name = f"{table}/{label}"
            if name not in new:
                old.copy(old[name], new.require_group(table), label)
