"""The one writer of store files: every row is checked and named, and nothing is lost when the process is killed.

Rows go to a spool beside the target (`datamodules.spool`). When all are there the HDF5 file is assembled from it and
renamed onto the target, so a file that was there before stays whole until then. Run again after an interruption, the
writer goes on behind the last flushed row and the file comes out byte for byte as if nothing had happened.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray

from bodies.errors import InputError
from datamodules.crops import jpeg_size_px
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
    packed,
    packed_surface,
    text_line,
)

#: Shapes of the textures, one JSON list a line; they decide the shape of `textures/rgba`.
_TEXTURE_SHAPES: Final = "textures/shape"
#: Which row each spooled estimate is for.
_ESTIMATE_ROW: Final = "rows/row"


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
        names = (*(c.name for c in FRAME_COLUMNS), *FRAME_TEXTS, JPEG_BYTES, TEXTURE_RGBA, _TEXTURE_SHAPES)
        super().__init__(path, "frames", {**self._attributes, **(settings or {})}, names, resume)
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
        where = f"{self.path}: image {image.name!r}"
        try:
            piece_px = jpeg_size_px(image.jpeg)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
        key, crc32 = (image.name, image.origin_px, piece_px, image.size_px), checksum(image.jpeg)
        if key not in self._images:
            self._store_image(image, piece_px, crc32, where)
            self._images[key] = (len(self._images), crc32)
        index, known_crc32 = self._images[key]
        if known_crc32 != crc32:
            raise InputError(f"{where}: it was added before, with other bytes")
        return index

    def add_row(self, row: FrameRow) -> None:
        """Checks and stores one row.

        Raises:
            InputError: If a value cannot be; names the file, the row and the value.
        """
        where = f"{self.path}: row {row.row_id!r}"
        if row.row_id in self._row_ids:
            raise InputError(f"{where}: it is there already")
        if not 0 <= row.image < len(self._images):
            raise InputError(f"{where}: it refers to image {row.image} of {len(self._images)}")
        if row.gender not in GENDERS:
            raise InputError(f"{where}: the gender is {row.gender!r}, allowed are {', '.join(GENDERS)}")
        numbers = self._numbers(row)
        records = {column.name: packed(column, numbers[column.label], where) for column in ROW_COLUMNS}
        records |= packed_surface(row.surface, where)
        records["rows/row_id"] = text_line(row.row_id, where)
        for name, text, codes in (
            ("subjects/name", row.subject, self._subjects),
            ("sequences/name", row.sequence, self._sequences),
        ):
            line = text_line(text, where)
            if text not in codes:
                records[name] = line
        self._append(records)
        self._row_ids.add(row.row_id)
        self._subjects.setdefault(row.subject, len(self._subjects))
        self._sequences.setdefault(row.sequence, len(self._sequences))
        self._count_row()

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

    def _store_image(self, image: StoredImage, piece_px: tuple[int, int], crc32: int, where: str) -> None:
        for corner, piece, size in zip(image.origin_px, piece_px, image.size_px, strict=True):
            if corner < 0 or corner + piece > size:
                raise InputError(
                    f"{where}: a JPEG of {piece_px} at {image.origin_px} lies outside of the image of {image.size_px}"
                )
        numbers = (self._spool.size(JPEG_BYTES), len(image.jpeg), crc32, image.size_px, image.origin_px, piece_px)
        records = {c.name: packed(c, number, where) for c, number in zip(IMAGE_COLUMNS, numbers, strict=True)}
        self._append({**records, "images/name": text_line(image.name, where), JPEG_BYTES: image.jpeg})

    def _numbers(self, row: FrameRow) -> dict[str, Any]:
        """The row's value of each column of `ROW_COLUMNS`, by label."""
        numbers: dict[str, Any] = {
            "image": row.image,
            "subject": self._subjects.get(row.subject, len(self._subjects)),
            "sequence": self._sequences.get(row.sequence, len(self._sequences)),
            "frame": row.frame,
            "gender": GENDERS.index(row.gender),
            "surface_start": self._spool.size("surface/triangle") // 4,
            "surface_count": len(row.surface.triangle),
            **{column.label: getattr(row, column.label) for column in POSE_COLUMNS},
        }
        for column in OPTIONAL_COLUMNS:
            value = getattr(row, column.label)
            numbers[column.label] = np.zeros(column.shape, np.float32) if value is None else value
        return numbers

    def _assemble(self, file: Any) -> None:
        if not self._row_ids:
            raise InputError(f"{self.path}: there is not one row to be written")
        texts = {name: [text.encode() for text in self._texts(name)] for name in FRAME_TEXTS}
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
        self._count_row()

    def _assemble(self, file: Any) -> None:
        if not self._rows:
            raise InputError(f"{self.path}: there is not one estimate to be written")
        file.attrs.update(self._attributes)
        count = self._frames.num_rows
        spooled = self._spool.array(_ESTIMATE_ROW, "<i8", ())
        order = np.argsort(spooled)
        valid = np.zeros(count, VALID_COLUMN.dtype)
        valid[spooled] = 1
        file[VALID_COLUMN.name] = valid
        for column in self._columns:
            values = self._spool.array(column.name, column.dtype, column.shape)
            dataset = file.create_dataset(column.name, (count, *column.shape), column.dtype)
            step = max(1, COPY_BYTES // (values[0].nbytes))
            for first in range(0, count, step):
                block = np.zeros((min(step, count - first), *column.shape), column.dtype)
                chosen = order[slice(*np.searchsorted(spooled[order], (first, first + len(block))))]
                block[spooled[chosen] - first] = values[chosen]
                dataset[first : first + len(block)] = block
