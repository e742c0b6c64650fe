"""DensePose points of a synthetic image: pixels of the person with what a detector would take them for.

The true point of the surface at each pixel is known from the rasterizer. A detector is off by a few centimetres, mostly
by the same amount at pixels near each other, and takes some pixels for something else. How far and how often is chosen
here, not measured on DensePose.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray
from scipy.ndimage import map_coordinates

from datamodules.store_records import NO_SURFACE_POINTS, SurfacePoints
from renderers import Fragments

#: Errors in sides of the person's box, some two metres: what neighbours have in common, along each axis, and the rest.
COMMON_ERROR: Final = 0.015
OWN_ERROR: Final = 0.01
#: The common error is drawn at so many places along each side of the image's person, and is smooth between them.
COMMON_PLACES: Final = 6
#: Share of the points that are taken for any other place of the person.
CONFUSED: Final = 0.03


def detect_surface(
    rng: np.random.Generator, seen: Fragments, visible: Bool[ndarray, "height width"], most: int
) -> SurfacePoints:
    """What a detector would report of one person, at most `most` points in the order of the image's rows.

    Args:
        rng: Source of chance.
        seen: Which triangle of the true body each pixel of the full image shows, a batch of one.
        visible: Pixels in which nothing hides the person.
        most: How many points to draw.
    """
    body = seen.mask[0].numpy()
    pixels = np.argwhere(body & visible)
    if not len(pixels) or most < 1:
        return NO_SURFACE_POINTS
    pixels = pixels[np.sort(rng.permutation(len(pixels))[:most])]
    low, high = pixels.min(axis=0), pixels.max(axis=0)
    side = float((high - low).max()) + 1
    error = side * (COMMON_ERROR * _common(rng, (pixels - low) / side) + OWN_ERROR * rng.normal(size=pixels.shape))
    taken = np.clip(np.rint(pixels + error).astype(np.int64), 0, np.array(body.shape) - 1)
    # What would be taken for the background is taken for what it is.
    taken = np.where(body[tuple(taken.T)][:, None], taken, pixels)
    confused = rng.uniform(size=len(pixels)) < CONFUSED
    taken[confused] = pixels[rng.integers(len(pixels), size=int(confused.sum()))]
    rows, columns = taken.T
    return SurfacePoints(
        (pixels[:, ::-1] + 0.5).astype(np.float32),
        seen.triangle_id[0].numpy()[rows, columns].astype(np.int32),
        seen.barycentric[0].numpy()[rows, columns].astype(np.float32),
    )


def _common(rng: np.random.Generator, places: Float64[ndarray, "points 2"]) -> Float64[ndarray, "points 2"]:
    """A smooth random field, about one in size, at places in 0..1."""
    drawn = rng.normal(size=(2, COMMON_PLACES, COMMON_PLACES))
    at = places.T * (COMMON_PLACES - 1)
    return np.stack([map_coordinates(field, at, order=1, mode="nearest") for field in drawn], axis=1)
