"""Colours, noise and printed patterns on the surface of a body, as functions of its points."""

import colorsys
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float, Float32
from numpy import ndarray
from scipy.ndimage import map_coordinates

PatternKind = Literal["plain", "stripes", "checks", "dots", "marble", "patches"]
PATTERNS: Final[tuple[PatternKind, ...]] = get_args(PatternKind)
#: How often each pattern is worn, in the order of `PATTERNS`.
_PATTERN_SHARES: Final = (0.36, 0.2, 0.14, 0.08, 0.1, 0.12)
#: Nodes of the noise lattice along an axis; the noise repeats after so many cells.
_LATTICE: Final = 24
#: Widths of stripes, checks and dots in metres.
_PATTERN_PERIOD_M: Final = (0.025, 0.14)

Values = Float[ndarray, " points"]
Color = Float[ndarray, "3"]


def smooth_noise(rng: np.random.Generator, position_m: Float[ndarray, "points 3"], cell_m: float) -> Values:
    """Noise of about -1 to 1 that changes over `cell_m`."""
    lattice = rng.uniform(-1, 1, (_LATTICE,) * 3).astype(np.float32)
    places = (position_m / cell_m + rng.uniform(0, _LATTICE, 3)).T
    return np.asarray(map_coordinates(lattice, places, order=1, mode="grid-wrap"), np.float32)


def draw_cloth_color(rng: np.random.Generator) -> Color:
    """Dark, light and grey cloth is as common as coloured cloth; of the latter, blue is the most common."""
    kind = rng.uniform()
    if kind < 0.38:
        base = rng.choice([rng.uniform(0.04, 0.2), rng.uniform(0.25, 0.65), rng.uniform(0.8, 0.97)], p=[0.5, 0.2, 0.3])
        return np.clip(base + rng.normal(scale=0.015, size=3), 0.02, 0.98)
    hue = rng.normal(0.6, 0.05) if kind < 0.55 else rng.uniform()
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.25, 0.95), rng.uniform(0.2, 0.95)))


def mix(under: Float[ndarray, "points 3"], color: ndarray, amount: Values) -> Float32[ndarray, "points 3"]:
    """Colours with one colour, or one for each point, laid over them."""
    return (under + (color - under) * amount[:, None]).astype(np.float32)


def step(values: Float[ndarray, " points"], edge: float, softness: float) -> Values:
    """0 below an edge and 1 above it, over a ramp of `softness`."""
    return np.clip((values - edge) / softness + 0.5, 0, 1).astype(np.float32)


def draw_pattern(
    rng: np.random.Generator,
    position_m: Float[ndarray, "points 3"],
    along_m: Values,
    around_m: Values,
    kind: PatternKind | None = None,
) -> Float32[ndarray, "points 3"]:
    """Cloth with a print.

    Args:
        rng: Source of chance.
        position_m: Points of the rest body.
        along_m: Their place along the limb they are on.
        around_m: Their place around it.
        kind: Which pattern; by default drawn.
    """
    kind = kind or PATTERNS[rng.choice(len(PATTERNS), p=_PATTERN_SHARES)]
    first, second = draw_cloth_color(rng), draw_cloth_color(rng)
    ground = np.broadcast_to(np.float32(first), position_m.shape)
    period_m, share = float(np.exp(rng.uniform(*np.log(_PATTERN_PERIOD_M)))), rng.uniform(0.25, 0.6)
    match kind:
        case "plain":
            return np.array(ground)
        case "stripes":
            across = along_m if rng.uniform() < 0.65 else around_m
            return mix(ground, second, _band(across, period_m, share))
        case "checks":
            crossed = (_band(along_m, period_m, share) + _band(around_m, period_m, share)) / 2
            return mix(ground, second, crossed.astype(np.float32))
        case "dots":
            offset = period_m / 2 * np.round(np.mod(along_m / period_m, 2) / 2)
            u, v = (np.mod(value / period_m, 1) - 0.5 for value in (along_m, around_m + offset))
            return mix(ground, second, step(share * 0.6 - np.hypot(u, v), 0.0, 0.1))
        case "marble":
            noise = smooth_noise(rng, position_m, period_m) + 0.5 * smooth_noise(rng, position_m, period_m / 2)
            return mix(ground, second, np.clip(0.5 + 0.5 * noise, 0, 1).astype(np.float32))
        case "patches":
            result = np.array(ground)
            for _ in range(rng.integers(1, 4)):
                spots = step(smooth_noise(rng, position_m, 1.6 * period_m), 0.15, 0.08)
                result = mix(result, draw_cloth_color(rng), spots)
            return result


def _band(values: Values, period_m: float, share: float) -> Values:
    """1 in the given share of each period, with soft edges."""
    phase = np.abs(np.mod(values / period_m, 1) - 0.5) * 2
    return step(share - phase, 0.0, 0.12)


def draw_logo(
    rng: np.random.Generator,
    cloth: Float[ndarray, "points 3"],
    across_m: Values,
    up_m: Values,
    size_m: float,
) -> Float32[ndarray, "points 3"]:
    """Prints a blotch of random squares about the origin of (across, up): letters, or a picture, from afar."""
    rows, columns = rng.integers(2, 7), rng.integers(3, 8)
    ink = rng.uniform(size=(rows, columns)) < rng.uniform(0.4, 0.85)
    column = np.floor((across_m / size_m + 0.5) * columns).astype(np.int64)
    row = np.floor((0.5 - up_m / size_m * columns / rows) * rows).astype(np.int64)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    printed = inside & ink[row.clip(0, rows - 1), column.clip(0, columns - 1)]
    return mix(cloth, draw_cloth_color(rng), printed.astype(np.float32))
