"""Square crops of images, and the camera that sees them.

Conventions are those of `bodies.camera`: pixel (row r, column c) covers [c, c+1) x [r, r+1). A crop is stated as an
affine map of continuous full-image positions to continuous crop positions; OpenCV counts from pixel centres, so its
matrices differ by the half pixel that `_warp_matrix` puts in. Positions outside the image are black.

JPEG decoding is most of the cost of a crop, and a crop that shows k or more image pixels in each of its own does not
need them all: for k = 2, 4, 8 libjpeg decodes straight to the smaller image, whose pixel i is the mean of the pixels
k i to k i + k - 1, so positions divide by k and nothing shifts.
"""

from typing import Final, Literal, NamedTuple, Self

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from numpy import ndarray

from bodies.camera import PinholeCamera

Reduction = Literal[1, 2, 4, 8]

#: The orientation tag is ignored: cameras and boxes are stated on the pixels as they are stored.
_DECODE_FLAGS: Final[dict[Reduction, int]] = {
    1: cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    2: cv2.IMREAD_REDUCED_COLOR_2 | cv2.IMREAD_IGNORE_ORIENTATION,
    4: cv2.IMREAD_REDUCED_COLOR_4 | cv2.IMREAD_IGNORE_ORIENTATION,
    8: cv2.IMREAD_REDUCED_COLOR_8 | cv2.IMREAD_IGNORE_ORIENTATION,
}
_START_OF_IMAGE: Final = b"\xff\xd8\xff"
_END_OF_IMAGE: Final = b"\xff\xd9"
#: Frame headers SOF0 to SOF15; C4, C8 and CC are tables and an extension (ITU-T T.81, table B.1).
_FRAME_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


class ImageCamera(NamedTuple):
    """The pinhole camera of one image, on the CPU; `bodies.PinholeCamera` is its batched form."""

    focal_px: Float32[ndarray, "2"]
    """Focal lengths along x and y."""
    center_px: Float32[ndarray, "2"]
    """Principal point (x, y)."""
    size_px: Float32[ndarray, "2"]
    """Image width and height."""

    def batched(self) -> PinholeCamera:
        """A batch of this one camera."""
        # Copied, because what a store returns is read-only.
        return PinholeCamera(*(torch.tensor(part)[None] for part in self))

    def crop(self, box_center_px: ndarray, box_side_px: float, crop_px: int) -> Self:
        """The camera of an unrotated square crop; `bodies.camera.crop_to_square_box` for one image."""
        scale = crop_px / box_side_px
        corner = np.asarray(box_center_px, np.float64) - box_side_px / 2
        return type(self)(
            (self.focal_px * scale).astype(np.float32),
            ((self.center_px - corner) * scale).astype(np.float32),
            np.full(2, crop_px, np.float32),
        )


class Crop(NamedTuple):
    """A square crop and its camera."""

    image: UInt8[ndarray, "crop crop 3"]
    """RGB; black outside the image."""
    camera: ImageCamera
    """The full-image camera, changed to the crop."""


def square_crop_affine(
    box_center_px: ndarray, box_side_px: float, angle_rad: float, crop_px: int
) -> Float64[ndarray, "2 3"]:
    """The map from full-image positions to those of a square crop.

    Args:
        box_center_px: Centre of the box, which becomes the centre of the crop.
        box_side_px: Side of the box in the full image.
        angle_rad: How far the content turns in the crop, from x towards y (clockwise as seen).
        crop_px: Side of the crop.
    """
    scale = crop_px / box_side_px
    cos, sin = np.cos(angle_rad) * scale, np.sin(angle_rad) * scale
    linear = np.array([[cos, -sin], [sin, cos]])
    shift = crop_px / 2 - linear @ np.asarray(box_center_px, np.float64)
    return np.column_stack([linear, shift])


def warp_crop(
    image: UInt8[ndarray, "height width 3"],
    box_center_px: ndarray,
    box_side_px: float,
    angle_rad: float,
    crop_px: int,
) -> UInt8[ndarray, "crop crop 3"]:
    """A turned square crop of a whole image in memory; bilinear, shrunk by area means first if it is much smaller."""
    affine = square_crop_affine(box_center_px, box_side_px, angle_rad, crop_px)
    return warp_affine(image, affine, crop_px)


def warp_affine(
    image: UInt8[ndarray, "height width 3"],
    full_to_crop: Float64[ndarray, "2 3"],
    crop_px: int,
    origin_px: tuple[int, int] = (0, 0),
    reduction: int = 1,
) -> UInt8[ndarray, "crop crop 3"]:
    """Resamples an image, or a reduced piece of one, through an affine map.

    Args:
        image: Pixels; one of them stands for `reduction` x `reduction` pixels of the full image.
        full_to_crop: Map of full-image positions to crop positions.
        crop_px: Side of the result.
        origin_px: Where the piece begins in the full image, (x, y) in full-image pixels.
        reduction: Full-image pixels per pixel of `image`, along an axis.
    """
    # Bilinear sampling sees 2 x 2 pixels, so beyond a factor of 2 it would skip some.
    shrink = int(source_pixels_per_crop_pixel(full_to_crop) / reduction)
    if shrink >= 2:
        image, reduction = _shrink_by_area(image, shrink), reduction * shrink
    matrix = _warp_matrix(full_to_crop, origin_px, reduction)
    warped: ndarray = cv2.warpAffine(image, matrix, (crop_px, crop_px), flags=cv2.INTER_LINEAR)
    return warped


def _shrink_by_area(image: ndarray, factor: int) -> ndarray:
    """Means of `factor` x `factor` pixels; the last row and column of blocks repeat the edge."""
    height, width = image.shape[:2]
    below, right = -height % factor, -width % factor
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = (padded.shape[1] // factor, padded.shape[0] // factor)
    shrunk: ndarray = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
    return shrunk


def _warp_matrix(full_to_crop: ndarray, origin_px: tuple[int, int], reduction: int) -> ndarray:
    """OpenCV's matrix: indices i of the reduced piece (position k (i + 0.5) + origin) to indices of the crop."""
    linear, shift = full_to_crop[:, :2], full_to_crop[:, 2]
    at_index_zero = linear @ (np.asarray(origin_px, np.float64) + reduction / 2) + shift - 0.5
    return np.column_stack([linear * reduction, at_index_zero])


def source_pixels_per_crop_pixel(full_to_crop: Float64[ndarray, "2 3"]) -> float:
    """How many pixels of the full image lie along one pixel of the crop."""
    return float(abs(np.linalg.det(full_to_crop[:, :2])) ** -0.5)


def reduction_for(full_to_crop: Float64[ndarray, "2 3"]) -> Reduction:
    """The strongest reduction that leaves the crop at least as coarse as the decoded image."""
    # The slack keeps a factor of exactly 2, 4 or 8 from being lost to rounding.
    pixels = source_pixels_per_crop_pixel(full_to_crop) * (1 + 1e-9)
    if pixels >= 8:
        return 8
    if pixels >= 4:
        return 4
    return 2 if pixels >= 2 else 1


def decode_jpeg(data: bytes, reduction: Reduction = 1) -> UInt8[ndarray, "height width 3"] | None:
    """Decodes to BGR pixels, OpenCV's order, or None if there is nothing to decode.

    Swapping channels on the crop, which is smaller, is left to the caller. OpenCV fills what it cannot decode with
    grey and says so only on standard error, so damage is found by checksum, not here.
    """
    try:
        pixels: ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), _DECODE_FLAGS[reduction])
    except cv2.error:
        return None
    return pixels


def jpeg_size_px(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG from its header.

    Raises:
        ValueError: If the bytes are not a JPEG from its first marker to its last.
    """
    if not data.startswith(_START_OF_IMAGE):
        raise ValueError("it does not begin as a JPEG does")
    # Some cameras pad the file with zeros.
    if not data.rstrip(b"\x00").endswith(_END_OF_IMAGE):
        raise ValueError("the JPEG is cut off")
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(data[place + k : place + k + 2], "big") for k in (5, 7))
            return width, height
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    raise ValueError("the JPEG has no frame header")
