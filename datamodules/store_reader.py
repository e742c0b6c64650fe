"""The one reader of store files: everything is checked at the door, then rows are read by position."""

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float64, Shaped, UInt8
from numpy import ndarray

from bodies.camera import PinholeCamera
from bodies.errors import InputError
from datamodules.crops import (
    Crop,
    ImageCamera,
    Reduction,
    decode_jpeg,
    reduction_for,
    square_crop_affine,
    warp_affine,
)
from datamodules.store_checks import (
    Problems,
    check_row_ids,
    check_textures,
    checksum_problems,
    column_problems,
    damaged_image,
    frame_problems,
    good_rows,
    skip_or_refuse,
)
from datamodules.store_file import ColumnFile, checksum, estimates_file, frames_file
from datamodules.store_layout import (
    FRAME_ATTRIBUTES,
    GENDERS,
    JPEG_BYTES,
    SURFACE_COLUMNS,
    TEXTURE_RGBA,
    VALID_COLUMN,
)
from datamodules.store_records import (
    StoredEstimate,
    StoredFrame,
    StoredPiece,
    StoredTexture,
    SurfacePoints,
    has_true_body,
)


class FrameStore:
    """A frames file, checked and read-only. It pickles, and serves forked and spawned workers and threads alike.

    Numbers are checked here, the bytes of an image when it is read. With `skip_bad_rows` the images are checked here
    too, which reads the whole file once, so that `len` and the meaning of an index are settled from the start.

    Args:
        path: The file.
        skip_bad_rows: Leave out rows with damaged images or values that cannot be, instead of refusing the file.

    Raises:
        InputError: If the file is missing, damaged, of another kind or version, or has a bad row.
    """

    def __init__(self, path: Path | str, skip_bad_rows: bool = False) -> None:
        self.path = Path(path)
        self._file = frames_file(self.path)
        self.dataset, self.split, self.body_model, self.fingerprint = (
            str(self._file.attributes[name]) for name in FRAME_ATTRIBUTES
        )
        check_row_ids(self._file)
        check_textures(self._file)
        problems = frame_problems(self._file)
        if skip_bad_rows:
            problems = {**checksum_problems(self._file), **problems}
        self.num_rows = self._file.rows("rows")
        self.skipped = skip_or_refuse(self.path, problems, skip_bad_rows, self.num_rows, self.row_id)
        self.rows = good_rows(self.num_rows, problems)
        self.subjects = _names(self._file, "subjects/name")
        self.sequences = _names(self._file, "sequences/name")

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"FrameStore({str(self.path)!r}, {len(self)} rows)"

    @property
    def row_ids(self) -> tuple[str, ...]:
        """Names of the rows, read anew at each call."""
        row_ids = self._file.texts("rows/row_id")
        return tuple(row_ids[row].decode() for row in self.rows)

    def row_id(self, row: int) -> str:
        """Name of a row, by its place in the file (`StoredFrame.row`)."""
        return self._file.text("rows/row_id", row)

    def column(self, label: str) -> Shaped[ndarray, "rows ..."]:
        """A whole column of `rows/`, for statistics: "pose", "focal_px", "sequence" ..."""
        values = self._file.column(f"rows/{label}")
        return values if len(self) == self.num_rows else values[self.rows]

    @cached_property
    def has_body(self) -> Bool[ndarray, " rows"]:
        """Which rows have a true body, in the order of `column`; the others have measured joints alone."""
        betas = self.column("betas")
        answer = np.ones(len(self), bool)
        # The wide columns are read where it takes them: nearly every file has a shape in each row.
        if len(candidates := np.flatnonzero(~betas.any(axis=1))):
            pose, joints_m = (self.column(label)[candidates] for label in ("pose", "joints_m"))
            answer[candidates] = has_true_body(pose, betas[candidates], joints_m)
        answer.flags.writeable = False
        return answer

    @property
    def image_names(self) -> tuple[str, ...]:
        """Names of the stored images, to be looked up by `StoredFrame.image` or `column("image")`; read anew."""
        return _names(self._file, "images/name")

    def cameras(self) -> PinholeCamera:
        """The full-image cameras of all rows."""
        size_px = self._file.column("images/size_px")[self.column("image")]
        parts = (self.column("focal_px"), self.column("center_px"), size_px)
        return PinholeCamera(*(torch.tensor(part, dtype=torch.float32) for part in parts))

    def read(self, index: int) -> StoredFrame:
        """One row without its pixels.

        Raises:
            IndexError: If there is no such row.
            InputError: If the file was replaced or cannot be read any more.
        """
        row = self._row(index)
        image, subject, sequence, frame, gender, start, count = (
            int(self._file.row(f"rows/{label}", row))
            for label in ("image", "subject", "sequence", "frame", "gender", "surface_start", "surface_count")
        )
        return StoredFrame(
            row,
            self._file.text("rows/row_id", row),
            image,
            self._file.text("images/name", image),
            subject,
            sequence,
            frame,
            GENDERS[gender],
            self._camera(row, image),
            self._file.row("rows/box_px", row),
            self._file.row("rows/pose", row),
            self._file.row("rows/betas", row),
            self._file.row("rows/transl", row),
            self._file.row("rows/detected_keypoints_px", row),
            self._file.row("rows/true_keypoints_px", row),
            self._file.row("rows/joints_m", row),
            (start, start + count),
        )

    def read_surface(self, frame: StoredFrame) -> SurfacePoints:
        """The DensePose points of a row that was read."""
        return SurfacePoints(*(self._file.block(column.name, *frame.surface_range) for column in SURFACE_COLUMNS))

    def read_jpeg(self, index: int) -> bytes:
        """The encoded image of a row, as it was stored.

        Raises:
            InputError: If it is damaged; names the file and the row.
        """
        row = self._row(index)
        return self._jpeg(row, int(self._file.row("rows/image", row)))

    def read_image(self, index: int) -> StoredPiece:
        """The whole stored piece of a row's image, and where it lies in the full image.

        Raises:
            InputError: If the image is damaged; names the file and the row.
        """
        row = self._row(index)
        pixels, origin_px, image = self._pixels(row, 1)
        width, height = (int(n) for n in self._file.row("images/size_px", image))
        return StoredPiece(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), origin_px, (width, height))

    def read_crop(self, index: int, box_center_px: ndarray, box_side_px: float, crop_px: int) -> Crop:
        """A square crop of a row's image, decoded no finer than it shows, with its camera.

        Args:
            index: Which row.
            box_center_px: Centre of the box in the full image.
            box_side_px: Its side.
            crop_px: Side of the crop.

        Raises:
            InputError: If the image is damaged; names the file and the row.
        """
        row = self._row(index)
        affine = square_crop_affine(box_center_px, box_side_px, 0.0, crop_px)
        camera = self._camera(row, int(self._file.row("rows/image", row)))
        return Crop(self.read_warped(index, affine, crop_px), camera.crop(box_center_px, box_side_px, crop_px))

    def read_warped(
        self, index: int, full_to_crop: Float64[ndarray, "2 3"], crop_px: int
    ) -> UInt8[ndarray, "crop crop 3"]:
        """A row's image seen through any affine map of full-image positions to crop positions, RGB.

        Raises:
            InputError: If the image is damaged; names the file and the row.
        """
        reduction = reduction_for(full_to_crop)
        pixels, origin_px, _ = self._pixels(self._row(index), reduction)
        crop = warp_affine(pixels, full_to_crop, crop_px, origin_px, reduction)
        rgb: ndarray = cv2.cvtColor(crop, cv2.COLOR_BGR2RGB)
        return rgb

    def read_texture(self, subject: int) -> StoredTexture | None:
        """The texture of a subject, or None if the file has none."""
        if subject not in self._textures:
            return None
        rgba = self._file.row(TEXTURE_RGBA, self._textures[subject])
        return StoredTexture("uv" if rgba.ndim == 3 else "vertices", rgba)

    @cached_property
    def _textures(self) -> dict[int, int]:
        return {int(subject): texture for texture, subject in enumerate(self._file.column("textures/subject"))}

    def _row(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path} has {len(self)} rows, asked for was {index}")
        return int(self.rows[index])

    def _camera(self, row: int, image: int) -> ImageCamera:
        size_px = self._file.row("images/size_px", image).astype(np.float32)
        return ImageCamera(self._file.row("rows/focal_px", row), self._file.row("rows/center_px", row), size_px)

    def _jpeg(self, row: int, image: int) -> bytes:
        start, length = (int(self._file.row(f"images/{label}", image)) for label in ("start", "length"))
        data = self._file.slice_bytes(JPEG_BYTES, start, length)
        if checksum(data) != int(self._file.row("images/crc32", image)):
            raise InputError(f"{self.path}: row {row} ({self.row_id(row)}): {damaged_image(self._file, image)}")
        return data

    def _pixels(self, row: int, reduction: Reduction) -> tuple[ndarray, tuple[int, int], int]:
        """BGR pixels of a row's piece, its corner in the full image, and which image it is."""
        image = int(self._file.row("rows/image", row))
        pixels = decode_jpeg(self._jpeg(row, image), reduction)
        width, height = (-(-int(n) // reduction) for n in self._file.row("images/piece_px", image))
        if pixels is None or pixels.shape[:2] != (height, width):
            name = self._file.text("images/name", image)
            raise InputError(f"{self.path}: row {row} ({self.row_id(row)}): its image {name!r} cannot be decoded")
        x, y = (int(n) for n in self._file.row("images/origin_px", image))
        return pixels, (x, y), image


class EstimateStore:
    """An estimates file, checked, read-only, and tied to its frames; it pickles as `FrameStore` does.

    Args:
        path: The file.
        frames: The rows that it has to be about.
        skip_bad_rows: Treat rows whose values cannot be as rows without an estimate, instead of refusing the file.

    Raises:
        InputError: If the file is missing, damaged, of another kind or version, made for other rows, or has a bad row.
    """

    def __init__(self, path: Path | str, frames: FrameStore, skip_bad_rows: bool = False) -> None:
        self.path = Path(path)
        self._file = estimates_file(self.path)
        attributes = self._file.attributes
        self.regressor, self.samples = str(attributes["regressor"]), int(attributes["samples"])
        if attributes["row_fingerprint"] != frames.fingerprint or self._file.rows("rows") != frames.num_rows:
            made_for = attributes["frames"]
            raise InputError(f"{self.path}: its estimates are not for the rows of {frames.path} (made for {made_for})")
        valid = self._file.column(VALID_COLUMN.name) == 1
        problems: Problems = {}
        for column in self._file.columns:
            known = None if column is VALID_COLUMN else valid
            problems = {**column_problems(self._file, column, known), **problems}
        self.skipped = skip_or_refuse(self.path, problems, skip_bad_rows, len(valid), frames.row_id)
        valid[list(problems)] = False
        valid.flags.writeable = False
        self.valid = valid

    def __len__(self) -> int:
        return len(self.valid)

    def __repr__(self) -> str:
        return f"EstimateStore({str(self.path)!r}, {self.regressor}, {self.samples} samples)"

    def read(self, row: int, sample: int = 0) -> StoredEstimate:
        """One estimate of one row, by the row's place in the frames file (`StoredFrame.row`).

        Raises:
            IndexError: If there is no such row or sample.
        """
        if not (0 <= row < len(self) and 0 <= sample < self.samples):
            raise IndexError(f"{self.path} has {len(self)} rows of {self.samples}, asked for was {row}, {sample}")
        if not self.valid[row]:
            return StoredEstimate(
                False, np.zeros(72, np.float32), np.zeros(10, np.float32), np.zeros(3, np.float32), 0.0
            )
        pose, betas, transl = (self._file.element(f"rows/{name}", row, sample) for name in ("pose", "betas", "transl"))
        focal_px = float(self._file.row("rows/focal_px", row))
        return StoredEstimate(True, pose, betas, transl, focal_px)

    def column(self, label: str) -> Shaped[ndarray, "rows ..."]:
        """A whole column for statistics: "pose" (N,S,72), "betas" (N,S,10), "transl" (N,S,3) or "focal_px" (N,)."""
        return self._file.column(f"rows/{label}")


def _names(file: ColumnFile, name: str) -> tuple[str, ...]:
    return tuple(text.decode(errors="replace") for text in file.texts(name))
