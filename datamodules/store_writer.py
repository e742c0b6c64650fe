"""The one writer of store files: every row is checked and named, and nothing is lost when the process is killed.

Rows go to a spool beside the target (`datamodules.spool`). When all are there the HDF5 file is assembled from it and
renamed onto the target, so a file that was there before stays whole until then. Run again after an interruption, the
writer goes on behind the last flushed row and the file comes out byte for byte as if nothing had happened.
"""

import json
from collections import ChainMap
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from bodies.errors import InputError
from datamodules.spool import COPY_BYTES
from datamodules.store_file import checksum
from datamodules.store_layout import (
    FRAME_COLUMNS,
    FRAME_TEXTS,
    GENDERS,
    IMAGE_COLUMNS,
    JPEG_BYTES,
    OPTIONAL_COLUMNS,
    POSE_COLUMNS,
    ROW_COLUMNS,
    TEXTURE_RGBA,
    VALID_COLUMN,
    estimate_columns,
    fingerprint,
)
from datamodules.store_reader import FrameStore
from datamodules.store_records import FrameRow, StoredImage
from datamodules.store_writing import (
    SpooledWriter,
    check_texture_shape,
    copy_from_spool,
    name_lines,
    new_names,
    packed,
    packed_rows,
    packed_surfaces,
    text_line,
    text_lines,
    whole_piece_px,
)

#: Shapes of the textures, one JSON list a line; they decide the shape of `textures/rgba`.
_TEXTURE_SHAPES: Final = "textures/shape"
_SMALL_COLUMNS: Final = (*(column.name for column in FRAME_COLUMNS), *FRAME_TEXTS, _TEXTURE_SHAPES)
#: Which row each spooled estimate is for.
_ESTIMATE_ROW: Final = "rows/row"
#: What a row holds of a column that its source lacks.
_ABSENT: Final = {column.label: np.zeros(column.shape, np.float32) for column in OPTIONAL_COLUMNS}


class FrameWriter(SpooledWriter):
    """Writes a frames file, row by row.

        with FrameWriter(path, dataset="3dpw", split="test", body_model="smpl") as writer:
            for ... in source:
                if row_id not in writer:                    # a run before this one may have written it
                    image = writer.add_image(StoredImage(...))
                    writer.add_row(FrameRow(row_id, image, ...))

    Args:
        path: The file to be made.
        dataset: Name of the data set.
        split: Which part of it.
        body_model: Which body model the parameters refer to; the gender of a row selects one of its files.
        settings: Whatever else a run that goes on with this one has to have in common with it.
        resume: Go on with an interrupted run; otherwise begin anew.

    Raises:
        InputError: If an interrupted run was begun with other settings, or another process is writing.
    """

    def __init__(
        self,
        path: Path | str,
        dataset: str,
        split: str,
        body_model: str,
        settings: Mapping[str, str | int] | None = None,
        resume: bool = True,
    ) -> None:
        self._attributes = {"dataset": dataset, "split": split, "body_model": body_model}
        header, large = {**self._attributes, **(settings or {})}, (JPEG_BYTES, TEXTURE_RGBA)
        super().__init__(path, "frames", header, large, resume, _SMALL_COLUMNS)
        self._row_ids = set(self._texts("rows/row_id"))
        self._subjects = {name: code for code, name in enumerate(self._texts("subjects/name"))}
        self._sequences = {name: code for code, name in enumerate(self._texts("sequences/name"))}
        self._images = self._spooled_images()
        shapes = self._texts(_TEXTURE_SHAPES)
        self._texture_shape: tuple[int, ...] | None = tuple(json.loads(shapes[0])) if shapes else None
        self._textured = {int(code) for code in self._spool.array("textures/subject", "<i4", ())}

    def __len__(self) -> int:
        return len(self._row_ids)

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._row_ids

    def add_image(self, image: StoredImage) -> int:
        """Stores an image once, however often it is added, and returns what its rows refer to it by.

        Raises:
            InputError: If it is not a whole JPEG, lies outside of the full image, or was added with other bytes.
        """
        return self.add_images((image,))[0]

    def add_images(self, images: Sequence[StoredImage]) -> list[int]:
        """Stores images as `add_image` does, all of them or none; many at once take less time.

        Raises:
            InputError: If one of them cannot be stored.
        """
        new: dict[tuple[Any, ...], tuple[int, int]] = {}
        stored: list[tuple[StoredImage, tuple[int, int], int]] = []
        indices = []
        for image in images:
            where = f"{self.path}: image {image.name!r}"
            piece_px, crc32 = whole_piece_px(image, where), checksum(image.jpeg)
            key = (image.name, image.origin_px, piece_px, image.size_px)
            found = self._images.get(key) or new.get(key)
            if found is None:
                found = new[key] = (len(self._images) + len(new), crc32)
                stored.append((image, piece_px, crc32))
            if found[1] != crc32:
                raise InputError(f"{where}: it was added before, with other bytes")
            indices.append(found[0])
        self._store_images(stored)
        self._images |= new
        return indices

    def add_row(self, row: FrameRow) -> None:
        """Checks and stores one row.

        Raises:
            InputError: If a value cannot be; names the file, the row and the value.
        """
        self.add_rows((row,))

    def add_rows(self, rows: Sequence[FrameRow], images: Sequence[int] | None = None) -> None:
        """Checks and stores rows, all of them or none; of many at once each takes a tenth of the time.

        Args:
            rows: The rows.
            images: Image of each, in place of what the rows say.

        Raises:
            InputError: If a value of one of them cannot be; names the file, the row and the value.
        """
        wheres = [f"{self.path}: row {row.row_id!r}" for row in rows]
        images = [row.image for row in rows] if images is None else images
        row_ids: set[str] = set()
        for row, image, where in zip(rows, images, wheres, strict=True):
            if row.row_id in self._row_ids or row.row_id in row_ids:
                raise InputError(f"{where}: it is there already")
            if not 0 <= image < len(self._images):
                raise InputError(f"{where}: it refers to image {image} of {len(self._images)}")
            if row.gender not in GENDERS:
                raise InputError(f"{where}: the gender is {row.gender!r}, allowed are {', '.join(GENDERS)}")
            row_ids.add(row.row_id)
        subjects = new_names([row.subject for row in rows], self._subjects)
        sequences = new_names([row.sequence for row in rows], self._sequences)
        numbers = self._numbers(rows, ChainMap(subjects, self._subjects), ChainMap(sequences, self._sequences))
        numbers["image"] = list(images)
        records = {column.name: packed_rows(column, numbers[column.label], wheres) for column in ROW_COLUMNS}
        records |= packed_surfaces([row.surface for row in rows], wheres)
        records["rows/row_id"] = text_lines([row.row_id for row in rows], wheres)
        # In the order of their first rows; a name that cannot be is that row's fault.
        records["subjects/name"] = name_lines(subjects, [row.subject for row in rows], wheres)
        records["sequences/name"] = name_lines(sequences, [row.sequence for row in rows], wheres)
        self._append(records)
        self._row_ids |= row_ids
        self._subjects |= subjects
        self._sequences |= sequences
        self._count_rows(len(rows))

    def add_texture(self, subject: str, rgba: UInt8[ndarray, "..."]) -> None:
        """Stores the texture of a subject that has rows: (H, W, 4) in UV space or (V, 4) per vertex, alpha = coverage.

        Raises:
            InputError: If the subject is unknown or has one, or the shape differs from the first texture's.
        """
        where = f"{self.path}: texture of {subject!r}"
        code = self._subjects.get(subject)
        if code is None:
            raise InputError(f"{where}: no row is of this subject")
        if code in self._textured:
            raise InputError(f"{where}: it is there already")
        check_texture_shape(rgba.shape, self._texture_shape, where)
        self._texture_shape = rgba.shape
        records = {"textures/subject": np.array(code, "<i4").tobytes(), TEXTURE_RGBA: rgba.tobytes()}
        self._append({**records, _TEXTURE_SHAPES: text_line(json.dumps(rgba.shape), where)})
        self._textured.add(code)

    def has_texture(self, subject: str) -> bool:
        """Whether the texture of a subject was added, by this run or one before it."""
        return self._subjects.get(subject) in self._textured

    def _store_images(self, images: Sequence[tuple[StoredImage, tuple[int, int], int]]) -> None:
        """Appends images, each with the size of its piece and its checksum."""
        wheres = [f"{self.path}: image {image.name!r}" for image, _, _ in images]
        lengths = [len(image.jpeg) for image, _, _ in images]
        starts = list(accumulate(lengths, initial=self._spool.size(JPEG_BYTES)))[:-1]
        parts = ((crc32, image.size_px, image.origin_px, piece_px) for image, piece_px, crc32 in images)
        places = zip(*parts, strict=True)
        numbers = (starts, lengths, *map(list, places)) if images else ((),) * len(IMAGE_COLUMNS)
        records = {c.name: packed_rows(c, values, wheres) for c, values in zip(IMAGE_COLUMNS, numbers, strict=True)}
        records["images/name"] = text_lines([image.name for image, _, _ in images], wheres)
        self._append(records, {JPEG_BYTES: [image.jpeg for image, _, _ in images]})

    def _numbers(
        self, rows: Sequence[FrameRow], subjects: Mapping[str, int], sequences: Mapping[str, int]
    ) -> dict[str, Any]:
        """The rows' values of each column of `ROW_COLUMNS` but their images, by label."""
        counts = [len(row.surface.triangle) for row in rows]
        first = self._spool.size("surface/triangle") // 4
        numbers: dict[str, Any] = {
            "subject": [subjects[row.subject] for row in rows],
            "sequence": [sequences[row.sequence] for row in rows],
            "frame": [row.frame for row in rows],
            "gender": [GENDERS.index(row.gender) for row in rows],
            "surface_start": list(accumulate(counts, initial=first))[:-1],
            "surface_count": counts,
            **{column.label: [getattr(row, column.label) for row in rows] for column in POSE_COLUMNS},
        }
        for label, absent in _ABSENT.items():
            values = [absent if (value := getattr(row, label)) is None else value for row in rows]
            known = any(value is not absent for value in values)
            numbers[label] = values if known else np.zeros((len(rows), *absent.shape))
        return numbers

    def _assemble(self, file: Any) -> None:
        if not self._row_ids:
            raise InputError(f"{self.path}: there is not one row to be written")
        texts = {name: self._spool.read(name).split(b"\n")[:-1] for name in FRAME_TEXTS}
        file.attrs.update({**self._attributes, "row_fingerprint": fingerprint(texts["rows/row_id"])})
        for name, values in texts.items():
            file[name] = np.array(values, "S")
        for column in FRAME_COLUMNS:
            copy_from_spool(self._spool, file, column.name, column.dtype, column.shape)
        copy_from_spool(self._spool, file, JPEG_BYTES, "|u1", ())
        copy_from_spool(self._spool, file, TEXTURE_RGBA, "|u1", self._texture_shape or (0, 4))

    def _texts(self, name: str) -> list[str]:
        return self._spool.read(name).decode().split("\n")[:-1]

    def _spooled_images(self) -> dict[tuple[Any, ...], tuple[int, int]]:
        """Key, index and checksum of each image that a run before this one stored."""
        origin, piece, size = (
            map(tuple, self._spool.array(f"images/{label}", "<i4", (2,)).tolist())
            for label in ("origin_px", "piece_px", "size_px")
        )
        sums = self._spool.array("images/crc32", "<u4", ()).tolist()
        keys = zip(self._texts("images/name"), origin, piece, size, strict=True)
        return {key: (index, crc32) for index, (key, crc32) in enumerate(zip(keys, sums, strict=True))}


class EstimateWriter(SpooledWriter):
    """Writes an estimates file; rows may come in any order, and those that never come are marked as missing.

    Args:
        path: The file to be made.
        frames: The frames file that the estimates are for, opened without `skip_bad_rows`.
        regressor: Name of the regressor.
        samples: Estimates per row.
        resume: Go on with an interrupted run; otherwise begin anew.

    Raises:
        InputError: If an interrupted run was begun with other settings, or another process is writing.
    """

    def __init__(
        self, path: Path | str, frames: FrameStore, regressor: str, samples: int = 1, resume: bool = True
    ) -> None:
        if samples < 1:
            raise InputError(f"{path}: a row needs at least one estimate, got {samples} samples")
        self._attributes: dict[str, str | int] = {
            "regressor": regressor,
            "samples": samples,
            "frames": frames.path.name,
            "row_fingerprint": frames.fingerprint,
        }
        self._columns = estimate_columns(samples)
        names = (_ESTIMATE_ROW, *(column.name for column in self._columns))
        super().__init__(path, "estimates", self._attributes, names, resume)
        self._frames = frames
        self._rows = {int(row) for row in self._spool.array(_ESTIMATE_ROW, "<i8", ())}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: int) -> bool:
        return row in self._rows

    def add(
        self,
        row: int,
        pose: Float[ndarray, "..."],
        betas: Float[ndarray, "..."],
        transl: Float[ndarray, "..."],
        focal_px: float,
    ) -> None:
        """Checks and stores the estimates of one row.

        Args:
            row: Row of the frames file (`StoredFrame.row`).
            pose: (S, 72) axis-angle in radians, root in the camera frame.
            betas: (S, 10).
            transl: (S, 3) metres, as seen by the full-image camera with `focal_px` and the row's principal point.
            focal_px: The focal length they were made with.

        Raises:
            InputError: If a value cannot be; names the file, the row and the value.
        """
        if not 0 <= row < self._frames.num_rows:
            raise InputError(f"{self.path}: row {row}: {self._frames.path} has {self._frames.num_rows} rows")
        where = f"{self.path}: row {row} ({self._frames.row_id(row)})"
        if row in self._rows:
            raise InputError(f"{where}: it is there already")
        values = {"pose": pose, "betas": betas, "transl": transl, "focal_px": focal_px}
        records = {column.name: packed(column, values[column.label], where) for column in self._columns}
        self._append({**records, _ESTIMATE_ROW: np.array(row, "<i8").tobytes()})
        self._rows.add(row)
        self._count_rows(1)

    def _assemble(self, file: Any) -> None:
        if not self._rows:
            raise InputError(f"{self.path}: there is not one estimate to be written")
        file.attrs.update(self._attributes)
        count = self._frames.num_rows
        spooled = self._spool.array(_ESTIMATE_ROW, "<i8", ())
        order = np.argsort(spooled)
        file[VALID_COLUMN.name] = np.isin(np.arange(count), spooled).astype(VALID_COLUMN.dtype)
        for column in self._columns:
            values = self._spool.array(column.name, column.dtype, column.shape)
            dataset = file.create_dataset(column.name, (count, *column.shape), column.dtype)
            step = max(1, COPY_BYTES // (values[0].nbytes))
            for first in range(0, count, step):
                block = np.zeros((min(step, count - first), *column.shape), column.dtype)
                chosen = order[slice(*np.searchsorted(spooled[order], (first, first + len(block))))]
                block[spooled[chosen] - first] = values[chosen]
                dataset[first : first + len(block)] = block
