"""Light of synthetic images: the irradiance of a distant environment as spherical harmonics of order 2.

Directions are those of the camera frame (x right, y down, z forward), so "from above" is -y. The order and the
constants of the nine basis functions, and the factors that turn radiance into irradiance, are those of Ramamoorthi and
Hanrahan, "An Efficient Representation for Irradiance Environment Maps", 2001, equations 3 and 8.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray

#: What the convolution with the clamped cosine leaves of the orders 0, 1 and 2, divided by pi: a white Lambertian
#: surface under radiance one everywhere then has the colour one.
_COSINE_LOBE: Final = np.array([1.0] + [2 / 3] * 3 + [1 / 4] * 5, np.float32)
#: Order 2 rings below zero opposite to a lamp; the darkest shade is this.
DARKEST: Final = 0.02
#: Mean irradiance of surfaces that can be seen, after exposure.
EXPOSURES: Final = (0.5, 1.1)
#: RGB of lamps from candle-like to sky-like.
WARM: Final = np.array([1.25, 1.0, 0.68], np.float32)
COOL: Final = np.array([0.80, 0.97, 1.25], np.float32)


@dataclass(frozen=True)
class EnvironmentLight:
    """Light from all around, the same everywhere in the scene."""

    radiance: Float32[ndarray, "9 3"]
    """Coefficients of the basis functions for red, green and blue."""

    def irradiance(self, normals: Float32[ndarray, "points 3"]) -> Float32[ndarray, "points 3"]:
        """What a surface with these unit normals receives, over pi: the factor on its colour in linear light."""
        # No matrix product: its library would start threads of its own in each of many processes.
        lit = np.einsum("pk,kc->pc", harmonics(normals), self.radiance * _COSINE_LOBE[:, None])
        return np.maximum(lit, np.float32(DARKEST), dtype=np.float32)


def harmonics(directions: Float32[ndarray, "points 3"]) -> Float32[ndarray, "points 9"]:
    """The real spherical harmonics up to order 2 at unit directions."""
    x, y, z = directions.T
    result = np.empty((len(directions), 9), np.float32)
    result[:, 0] = 0.282095
    result[:, 1:4] = 0.488603 * directions[:, [1, 2, 0]]
    result[:, 4] = 1.092548 * x * y
    result[:, 5] = 1.092548 * y * z
    result[:, 6] = 0.315392 * (3 * z * z - 1)
    result[:, 7] = 1.092548 * x * z
    result[:, 8] = 0.546274 * (x * x - y * y)
    return result


def draw_light(rng: np.random.Generator, surroundings: Float[ndarray, "3"] | None = None) -> EnvironmentLight:
    """Draws an environment: ambient light, a sky, and one to three lamps, exposed for what the camera can see.

    Args:
        rng: Source of chance.
        surroundings: Mean RGB (0..1) of the background, which tints the ambient light a little.
    """
    ambient = np.ones(3) if surroundings is None else 0.7 + 0.3 * surroundings / max(float(np.mean(surroundings)), 1e-3)
    radiance = np.zeros((9, 3))
    radiance[0] = rng.uniform(0.25, 1.2) * ambient / 0.282095
    # A sky: radiance that grows towards -y.
    radiance[1] = -rng.uniform(0.0, 0.5) * ambient / 0.488603
    for strength in rng.uniform(0.4, 2.5, rng.integers(1, 4)):
        direction = rng.normal(size=3) * (1.0, 0.6, 1.0) + (0.0, -0.7, -0.5)
        direction /= max(float(np.linalg.norm(direction)), 1e-6)
        warmth = rng.uniform()
        lamp = strength * (warmth * WARM + (1 - warmth) * COOL)
        # Radiance of a distant lamp that alone would light a surface facing it with `lamp`.
        radiance += np.pi * harmonics(direction[None].astype(np.float32)).T * lamp
    light = EnvironmentLight(radiance.astype(np.float32))
    facing = rng.normal(size=(64, 3)).astype(np.float32)
    facing[:, 2] = -np.abs(facing[:, 2])
    facing /= np.linalg.norm(facing, axis=1, keepdims=True)
    exposure = rng.uniform(*EXPOSURES) / float(light.irradiance(facing).mean())
    return EnvironmentLight(light.radiance * np.float32(exposure))
