"""What goes into a store and what comes out of it, one record at a time.

Shapes on the way in are checked by the writer, which can name the file and the row; the annotations here ask only for
floats. Poses, betas and translations are those of `BodyParameters`, in the camera frame; the pose is axis-angle.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy import ndarray

from datamodules.crops import ImageCamera
from datamodules.store_layout import Gender, TextureKind


class SurfacePoints(NamedTuple):
    """Pixels of an image with the point of the body surface that each one shows (DensePose)."""

    position_px: Float[ndarray, "points 2"]
    """Full-image positions."""
    triangle: Int[ndarray, " points"]
    """Rows of the body model's faces."""
    barycentric: Float[ndarray, "points 3"]
    """Weights of the triangle's corners; they sum to one. A vertex is a corner with weight one."""


NO_SURFACE_POINTS = SurfacePoints(np.zeros((0, 2), np.float32), np.zeros(0, np.int32), np.zeros((0, 3), np.float32))


@dataclass(frozen=True)
class StoredImage:
    """An image to be stored: all of it, or a generous piece around the person."""

    name: str
    """Name of the image in its dataset."""
    jpeg: bytes
    """The encoded piece."""
    size_px: tuple[int, int]
    """Width and height of the full image, to which cameras and boxes refer."""
    origin_px: tuple[int, int] = (0, 0)
    """Corner (x, y) of the piece in the full image; (0, 0) if all of it is stored."""


@dataclass(frozen=True)
class FrameRow:
    """One person in one image, to be stored. What a source lacks stays None and is read back as zeros."""

    row_id: str
    """Unique in the file: dataset/sequence/frame/person."""
    image: int
    """What `FrameWriter.add_image` returned."""
    subject: str
    """Who it is; rows of one subject share a texture."""
    sequence: str
    """The recording."""
    frame: int
    """Number of the frame in the recording."""
    gender: Gender
    """Which of the body model's files the parameters refer to."""
    focal_px: Float[ndarray, "..."]
    """(2,) focal lengths of the full-image camera."""
    center_px: Float[ndarray, "..."]
    """(2,) its principal point."""
    box_px: Float[ndarray, "..."]
    """(3,) centre x, centre y and side of the square box about the person, in full-image pixels."""
    pose: Float[ndarray, "..."]
    """(72,) axis-angle in radians, joint after joint; joint 0 is the root in the camera frame."""
    betas: Float[ndarray, "..."]
    """(10,) shape coefficients."""
    transl: Float[ndarray, "..."]
    """(3,) metres in the camera frame."""
    detected_keypoints_px: Float[ndarray, "..."] | None = None
    """(25, 3) openpose25 as a detector found them: x, y in the full image, confidence."""
    true_keypoints_px: Float[ndarray, "..."] | None = None
    """(25, 3) openpose25 as annotated: x, y in the full image, 1 if there is one."""
    joints_m: Float[ndarray, "..."] | None = None
    """(17, 4) measured joints in the order of h36m17: x, y, z in the camera frame in metres, 1 if there is one.
    lsp14 is a selection of h36m17 (`bodies.joints.LSP14_FROM_H36M17`), so it fits in."""
    surface: SurfacePoints = NO_SURFACE_POINTS
    """DensePose points."""


def has_true_body(
    pose: Float[ndarray, "rows pose"], betas: Float[ndarray, "rows betas"], joints_m: Float[ndarray, "rows joints 4"]
) -> Bool[ndarray, " rows"]:
    """Which rows have a true body.

    A row has none if its pose and its shape are all exactly zero and joints were measured (`joints_m`): motion capture
    to which no body was fitted, as Human3.6M's test set. A real body's root is never exactly zero: that one would be
    upside down, for SMPL's y is up and the camera's is down.
    """
    return np.asarray(pose.any(axis=1) | betas.any(axis=1) | ~(joints_m[..., 3] > 0).any(axis=1))


class StoredFrame(NamedTuple):
    """One row of a frames file without its pixels. The arrays are read-only."""

    row: int
    """Row in the file; with `skip_bad_rows` not the index it was asked for by."""
    row_id: str
    """Unique name of the row."""
    image: int
    """Row of the image table; rows that share an image share this."""
    image_name: str
    """Name of the image in its dataset."""
    subject: int
    """Index into `FrameStore.subjects`."""
    sequence: int
    """Index into `FrameStore.sequences`."""
    frame: int
    """Number of the frame in its sequence."""
    gender: Gender
    """Which of the body model's files the parameters refer to."""
    camera: ImageCamera
    """The full-image camera."""
    box_px: Float32[ndarray, "3"]
    """Centre x, centre y and side of the square box about the person."""
    pose: Float32[ndarray, "72"]
    """Axis-angle in radians, root in the camera frame; zero, as are the betas, of a row without a true body."""
    betas: Float32[ndarray, "10"]
    """Shape coefficients."""
    transl: Float32[ndarray, "3"]
    """Metres in the camera frame."""
    detected_keypoints_px: Float32[ndarray, "25 3"]
    """openpose25: x, y, confidence; 0 where nothing was detected."""
    true_keypoints_px: Float32[ndarray, "25 3"]
    """openpose25: x, y, 1; all 0 where there is no annotation."""
    joints_m: Float32[ndarray, "17 4"]
    """h36m17 measured in the camera frame: x, y, z, 1; all 0 where there is none."""
    surface_range: tuple[int, int]
    """Where its DensePose points lie; `FrameStore.read_surface` reads them."""


class StoredPiece(NamedTuple):
    """A decoded image as it is stored."""

    pixels: UInt8[ndarray, "height width 3"]
    """RGB."""
    origin_px: tuple[int, int]
    """Corner (x, y) of the piece in the full image."""
    size_px: tuple[int, int]
    """Width and height of the full image."""


class StoredTexture(NamedTuple):
    """The texture of one subject, of either kind."""

    kind: TextureKind
    """`uv`: an image in the body model's texture layout; `vertices`: one colour per vertex."""
    rgba: UInt8[ndarray, "*texels 4"]
    """Colour and coverage, (H, W, 4) or (V, 4); coverage 0 is where the colour was never seen."""


class StoredEstimate(NamedTuple):
    """One initial estimate of one row. The arrays are read-only."""

    valid: bool
    """False if the regressor has none for this row; the rest is then zero."""
    pose: Float32[ndarray, "72"]
    """Axis-angle in radians, root in the camera frame."""
    betas: Float32[ndarray, "10"]
    """Shape coefficients."""
    transl: Float32[ndarray, "3"]
    """Metres, as seen by the full-image camera with `focal_px` and the frame's own principal point."""
    focal_px: float
    """The focal length the estimate was made with."""
