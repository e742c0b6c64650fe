"""What is left of a texture when it is projected back from a video: blurred, tinted, noisy, and full of holes.

The causes are imitated one by one on the surface of the body: bodies that do not quite lie on the images move colours
along the surface (a smooth displacement) and blur them (the mean of displaced looks), the light of the video stays in
the texture, and what the person never showed to the camera is missing. A missing part has coverage 0 and holds either
plain grey or the colours of its surroundings, smeared, as an inpainting leaves them.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray
from scipy.spatial import cKDTree

from datamodules.lighting import draw_light
from datamodules.texture_canvas import BodyPoints, TextureCanvas
from datamodules.texture_patterns import smooth_noise

#: Displaced looks whose mean is the blurred colour: at least and at most, and as many as make so many look-ups.
_LOOKS: Final = (4, 24)
_LOOK_BUDGET: Final = 50_000
#: A coarse texture averages what lies between its points.
_BLUR_PER_SPACING: Final = 0.35
#: Looks about for the colour of an unseen point.
_FILLING_LOOKS: Final = 3
#: Standard deviations, in metres, that blur and displacement are drawn between.
BLUR_M: Final = (0.004, 0.014)
SHIFT_M: Final = (0.004, 0.02)
NOISE: Final = (0.005, 0.035)
#: Grey of parts that were never seen and not inpainted.
GREY: Final = 0.5
#: How often the video shows a person from all sides, and the arc of headings that it shows otherwise.
_ALL_SIDES_SHARE: Final = 0.5
_ARC_RAD: Final = (np.pi * 0.6, np.pi * 1.5)
#: A surface is seen where its normal is within this of a direction to the camera (cosine of about 70 degrees).
_SEEN_COSINE: Final = 0.35

Colors = Float32[ndarray, "points 3"]


def damaged_texture(
    rng: np.random.Generator, canvas: TextureCanvas, source: BodyPoints, clean: UInt8[ndarray, "source 3"]
) -> UInt8[ndarray, "*shape 4"]:
    """A texture as back-projection leaves it, with its coverage as fourth channel.

    Args:
        rng: Source of chance.
        canvas: Where the values of the result lie.
        source: Points of the same body that are closer together than those of the canvas.
        clean: Their true colours.
    """
    points = canvas.points
    colors = _displaced(rng, points, source, clean)
    # The mean light of a video in which the person turns: much weaker than the light of one image.
    light = draw_light(rng).irradiance(points.normal) ** np.float32(0.5 * rng.uniform(0.2, 0.7))
    colors = colors * light / np.float32(light.mean()) * np.float32(rng.uniform(0.8, 1.15))
    colors += rng.normal(scale=rng.uniform(*NOISE), size=colors.shape).astype(np.float32)
    colors += np.float32(0.03) * smooth_noise(rng, points.position_m, 0.1)[:, None]
    seen = _seen(rng, points)
    colors = np.where(seen[:, None], colors, _filling(rng, points, colors, seen))
    rgba = np.concatenate([np.clip(colors, 0, 1), seen[:, None]], axis=1)
    texture = canvas.paint(np.rint(rgba * 255).astype(np.uint8))
    texture[..., 3] *= canvas.on_body.reshape(canvas.shape)
    return texture


def _displaced(
    rng: np.random.Generator, points: BodyPoints, source: BodyPoints, clean: UInt8[ndarray, "source 3"]
) -> Colors:
    """Means of clean colours about each point, which is moved a little along the surface."""
    blur_m, shift_m = max(rng.uniform(*BLUR_M), _BLUR_PER_SPACING * points.spacing_m), rng.uniform(*SHIFT_M)
    # Noise of a lattice has about half its amplitude as standard deviation.
    shift = np.stack([2 * shift_m * smooth_noise(rng, points.position_m, 0.15) for _ in range(3)], axis=1)
    looks = int(np.clip(_LOOK_BUDGET // len(points), *_LOOKS))
    total = np.zeros((len(points), 3), np.float32)
    for _ in range(looks):
        look = points.position_m + shift + rng.normal(scale=blur_m, size=shift.shape)
        total += clean[source.nearest(look.astype(np.float32))]
    return total / np.float32(255 * looks)


def _seen(rng: np.random.Generator, points: BodyPoints) -> Bool[ndarray, " points"]:
    """Points that a camera saw which went around the standing person, or half around."""
    arc = 2 * np.pi if rng.uniform() < _ALL_SIDES_SHARE else rng.uniform(*_ARC_RAD)
    headings = rng.uniform(0, 2 * np.pi) + np.linspace(0, arc, 9)
    elevations = rng.uniform(-0.2, 0.5, len(headings))
    directions = np.stack(
        [np.sin(headings) * np.cos(elevations), np.sin(elevations), np.cos(headings) * np.cos(elevations)], axis=1
    )
    # Limbs turn in a video, so the rest normals of arms and legs say less than those of the trunk.
    wander = np.stack([0.5 * smooth_noise(rng, points.position_m, 0.25) for _ in range(3)], axis=1)
    facing = np.einsum("pc,dc->pd", points.normal + wander, directions.astype(np.float32)).max(axis=1)
    holes = smooth_noise(rng, points.position_m, 0.06) + 0.5 * smooth_noise(rng, points.position_m, 0.025)
    return (facing > _SEEN_COSINE) & (holes < rng.uniform(0.55, 1.3))


def _filling(rng: np.random.Generator, points: BodyPoints, colors: Colors, seen: Bool[ndarray, " points"]) -> Colors:
    """Colours for what was not seen."""
    if rng.uniform() < 0.5 or not seen.any():
        return np.full_like(colors, GREY)
    looks = points.position_m + rng.normal(scale=0.02, size=(_FILLING_LOOKS, *points.position_m.shape))
    sources = np.flatnonzero(seen)
    tree = cKDTree(points.position_m[sources])
    return np.mean([colors[sources[tree.query(look)[1]]] for look in looks], axis=0).astype(np.float32)
