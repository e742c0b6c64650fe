"""Things in front of the person of a synthetic image."""

from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

from datamodules.backgrounds import fractal_noise
from datamodules.texture_patterns import draw_cloth_color

#: How often there are none, one, two or three.
_COUNT_SHARES: Final = (0.55, 0.27, 0.12, 0.06)
#: Occluders that would leave less of the person than this are not drawn.
LEAST_VISIBLE: Final = 0.5
#: Fractional bits of the coordinates given to OpenCV.
_SHIFT: Final = 4


def draw_occluders(
    rng: np.random.Generator,
    image: UInt8[ndarray, "height width 3"],
    person: Bool[ndarray, "height width"],
    box_px: Float[ndarray, "4"],
) -> tuple[UInt8[ndarray, "height width 3"], Bool[ndarray, "height width"]]:
    """Draws textured boxes, ellipses and polygons over parts of the person.

    Args:
        rng: Source of chance.
        image: The image so far.
        person: Pixels that show the person.
        box_px: Left, top, right, bottom of the person in the image.

    Returns:
        A new image, and the pixels that still show the person.
    """
    height, width = person.shape
    total = max(1, int(person.sum()))
    image, visible = image.copy(), person.copy()
    for _ in range(rng.choice(len(_COUNT_SHARES), p=_COUNT_SHARES)):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [_outline(rng, box_px)], 255, cv2.LINE_AA, _SHIFT)
        remaining = visible & (mask < 128)
        base = draw_cloth_color(rng) * 255
        grain = fractal_noise(rng, width, height)[..., None] * rng.uniform(4, 50)
        if remaining.sum() < LEAST_VISIBLE * total:
            continue
        alpha = mask[..., None] * np.float32(1 / 255)
        image = (image * (1 - alpha) + np.clip(base + grain, 0, 255) * alpha).astype(np.uint8)
        visible = remaining
    return image, visible


def _outline(rng: np.random.Generator, box_px: Float[ndarray, "4"]) -> ndarray:
    """A closed outline somewhere about the person, in OpenCV's fixed-point coordinates."""
    low, high = box_px[:2], box_px[2:]
    centre = rng.uniform(low, np.maximum(high, low + 1))
    size = np.exp(rng.uniform(np.log(0.08), np.log(0.45))) * float(max(high - low))
    match int(rng.integers(3)):
        case 0:  # a box, sometimes a long one, upright or lying
            half = size * rng.uniform(0.25, 0.6, 2) * rng.choice([(1, 1), (4, 0.5), (0.5, 4)], p=[0.6, 0.2, 0.2])
            corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
            tilt = rng.normal(scale=0.15)
        case 1:  # an ellipse
            angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * size * rng.uniform(0.2, 0.6, 2)
            tilt = rng.uniform(0, np.pi)
        case _:  # a polygon
            angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
            corners = (
                np.stack([np.cos(angles), np.sin(angles)], axis=1) * size * rng.uniform(0.3, 0.7, (len(angles), 1))
            )
            tilt = 0.0
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    return np.rint(np.clip(centre + corners @ turn.T, -1e4, 1e4) * (1 << _SHIFT)).astype(np.int32)
