"""What lies where in the two kinds of HDF5 file: the columns, their types, and the range each value must keep.

A *frames file* holds one split of a dataset: images, cameras, bodies, keypoints, textures. An *estimates file* holds
the initial estimates of one regressor for the rows of one frames file, to which it is tied by `row_fingerprint`.

Every column is a little-endian, contiguous, unfiltered dataset named `table/column`; row i of a table is element i of
each of its columns. So a reader can take a row by position in the file, which costs a third of what the HDF5 library
needs (41 us against 119 us for 15 columns, 8 us against 115 us for a JPEG kept as a variable-length element) and
leaves nothing in a process that a fork could break. Text columns are fixed-length UTF-8, padded with NUL.

    frames file                                 estimates file (N rows of the frames file, S samples each)
    images/*          one per stored image      rows/pose (N,S,72) betas (N,S,10) transl (N,S,3)
    images/jpeg       their bytes, end to end   rows/focal_px (N)  valid (N)
    rows/*            one per person in a frame
    surface/*         DensePose points of all rows, end to end
    subjects/name  sequences/name               what rows/subject and rows/sequence count
    textures/subject  textures/rgba             (T,H,W,4) in UV space or (T,V,4) per vertex
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray

FileKind = Literal["frames", "estimates"]
Gender = Literal["neutral", "male", "female"]
TextureKind = Literal["uv", "vertices"]

#: Written into every file. A reader refuses a newer layout, which it cannot know.
LAYOUT_VERSION: Final = 1
#: The order is the code kept in `rows/gender`.
GENDERS: Final[tuple[Gender, ...]] = get_args(Gender)

#: Bounds that no honest value crosses; they catch degrees for radians, millimetres for metres, and damaged bytes.
MAX_POSE_RAD: Final = 8 * np.pi
MAX_BETA: Final = 20.0
MAX_DISTANCE_M: Final = 1e4
MIN_DEPTH_M: Final = 1e-3
MAX_PIXEL: Final = 1e6
MIN_FOCAL_PX: Final = 1.0
MIN_BOX_PX: Final = 1e-3
MAX_IMAGE_PX: Final = 65535
#: OpenPose's confidences overshoot 1 a little.
MAX_CONFIDENCE: Final = 2.0
#: Barycentric coordinates may leave 0..1 by rounding.
BARYCENTRIC_SLACK: Final = 1e-3

Bound = float | tuple[float, ...]
#: For counts and codes; the type's own greatest value is the bound then.
_UNBOUNDED: Final = float(2**62)


@dataclass(frozen=True)
class Column:
    """One dataset of numbers and what its values may be."""

    name: str
    """`table/column`."""
    dtype: str
    """Little-endian numpy dtype."""
    shape: tuple[int, ...] = ()
    """Shape of one row."""
    low: Bound = 0.0
    """Least value allowed, for all of a row or along its last axis."""
    high: Bound = _UNBOUNDED
    """Greatest value allowed, likewise."""

    @property
    def table(self) -> str:
        """The group the column is in."""
        return self.name.partition("/")[0]

    @cached_property
    def label(self) -> str:
        """The column's own name, as messages say it."""
        return self.name.partition("/")[2]

    @cached_property
    def _bounds(self) -> tuple[ndarray, ndarray]:
        kind = np.dtype(self.dtype)
        if kind.kind == "f":
            return np.asarray(self.low, kind), np.asarray(self.high, kind)
        greatest = min(np.iinfo(kind).max, int(_UNBOUNDED))
        return np.asarray(self.low, np.int64), np.asarray(np.minimum(self.high, greatest), np.int64)

    def bad_rows(self, values: Shaped[ndarray, "rows ..."]) -> Bool[ndarray, " rows"]:
        """Rows with a value that is not finite or outside the bounds."""
        low, high = self._bounds
        # Written so that NaN, for which every comparison is false, is bad.
        good = np.logical_and(np.greater_equal(values, low), np.less_equal(values, high))
        return np.asarray(~good.all(axis=tuple(range(1, good.ndim))))

    def describe(self, row: Shaped[ndarray, "..."]) -> str:
        """What is wrong with a bad row."""
        low, high = (np.broadcast_to(bound, row.shape) for bound in self._bounds)
        place = np.unravel_index(int(np.argmax(~((row >= low) & (row <= high)))), row.shape)
        value = row[place]
        if not np.isfinite(value):
            return f"{self.label} is not finite ({value})"
        allowed = f"{low[place]:g} or more" if self.high == _UNBOUNDED else f"{low[place]:g} to {high[place]:g}"
        return f"{self.label} holds {value:g}, allowed is {allowed}"


_KEYPOINT_LOW = (-MAX_PIXEL, -MAX_PIXEL, 0.0)
_KEYPOINT_HIGH = (MAX_PIXEL, MAX_PIXEL, MAX_CONFIDENCE)
_TRANSL_LOW = (-MAX_DISTANCE_M, -MAX_DISTANCE_M, MIN_DEPTH_M)

IMAGE_COLUMNS: Final = (
    Column("images/start", "<i8"),
    Column("images/length", "<i4", low=4),
    Column("images/crc32", "<u4"),
    Column("images/size_px", "<i4", (2,), 1, MAX_IMAGE_PX),
    Column("images/origin_px", "<i4", (2,), 0, MAX_IMAGE_PX),
    Column("images/piece_px", "<i4", (2,), 1, MAX_IMAGE_PX),
)
#: Columns of numbers of which a row holds one value each, given by the caller of the writer.
POSE_COLUMNS: Final = (
    Column("rows/focal_px", "<f4", (2,), MIN_FOCAL_PX, MAX_PIXEL),
    Column("rows/center_px", "<f4", (2,), -MAX_PIXEL, MAX_PIXEL),
    Column("rows/box_px", "<f4", (3,), (-MAX_PIXEL, -MAX_PIXEL, MIN_BOX_PX), MAX_PIXEL),
    Column("rows/pose", "<f4", (72,), -MAX_POSE_RAD, MAX_POSE_RAD),
    Column("rows/betas", "<f4", (10,), -MAX_BETA, MAX_BETA),
    Column("rows/transl", "<f4", (3,), _TRANSL_LOW, MAX_DISTANCE_M),
)
#: What a source may lack; a row without it holds zeros, that is confidence or validity 0.
OPTIONAL_COLUMNS: Final = (
    Column("rows/detected_keypoints_px", "<f4", (25, 3), _KEYPOINT_LOW, _KEYPOINT_HIGH),
    Column("rows/true_keypoints_px", "<f4", (25, 3), _KEYPOINT_LOW, _KEYPOINT_HIGH),
    Column("rows/joints_m", "<f4", (17, 4), (*(-MAX_DISTANCE_M,) * 3, 0.0), (*(MAX_DISTANCE_M,) * 3, 1.0)),
)
INDEX_COLUMNS: Final = (
    Column("rows/image", "<i4"),
    Column("rows/subject", "<i4"),
    Column("rows/sequence", "<i4"),
    Column("rows/frame", "<i8"),
    Column("rows/gender", "<u1", high=len(GENDERS) - 1),
)
SURFACE_INDEX_COLUMNS: Final = (Column("rows/surface_start", "<i8"), Column("rows/surface_count", "<i4"))
SURFACE_COLUMNS: Final = (
    Column("surface/position_px", "<f4", (2,), -MAX_PIXEL, MAX_PIXEL),
    Column("surface/triangle", "<i4"),
    Column("surface/barycentric", "<f4", (3,), -BARYCENTRIC_SLACK, 1 + BARYCENTRIC_SLACK),
)
TEXTURE_COLUMNS: Final = (Column("textures/subject", "<i4"),)
#: Bytes without a row structure, or with one that the file decides.
JPEG_BYTES: Final = "images/jpeg"
TEXTURE_RGBA: Final = "textures/rgba"

ROW_COLUMNS: Final = (*INDEX_COLUMNS, *SURFACE_INDEX_COLUMNS, *POSE_COLUMNS, *OPTIONAL_COLUMNS)
FRAME_COLUMNS: Final = (*IMAGE_COLUMNS, *ROW_COLUMNS, *SURFACE_COLUMNS, *TEXTURE_COLUMNS)
FRAME_TEXTS: Final = ("images/name", "rows/row_id", "subjects/name", "sequences/name")
FRAME_BYTES: Final = (JPEG_BYTES, TEXTURE_RGBA)
FRAME_ATTRIBUTES: Final = ("dataset", "split", "body_model", "row_fingerprint")
ESTIMATE_ATTRIBUTES: Final = ("regressor", "samples", "frames", "row_fingerprint")


def estimate_columns(samples: int) -> tuple[Column, ...]:
    """Columns of an estimates file with `samples` estimates of each row."""
    return (
        Column("rows/focal_px", "<f4", (), MIN_FOCAL_PX, MAX_PIXEL),
        Column("rows/pose", "<f4", (samples, 72), -MAX_POSE_RAD, MAX_POSE_RAD),
        Column("rows/betas", "<f4", (samples, 10), -MAX_BETA, MAX_BETA),
        Column("rows/transl", "<f4", (samples, 3), _TRANSL_LOW, MAX_DISTANCE_M),
    )


#: 1 where the regressor has an estimate for the row; elsewhere the other columns hold zeros.
VALID_COLUMN: Final = Column("rows/valid", "<u1", high=1)


def fingerprint(row_ids: Iterable[bytes]) -> str:
    """SHA-256 of the row ids in order: what ties an estimates file to its frames file."""
    return hashlib.sha256(b"\n".join(row_ids)).hexdigest()
