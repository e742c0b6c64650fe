"""How a person looks: skin, hair, and an outfit, drawn at random for any body of SMPL's layout.

The result is a clean texture: colours of the points of a `TextureCanvas`. `datamodules.texture_damage` makes of it what
is left when a texture is projected back from a video.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from datamodules.body_regions import BodyRegions
from datamodules.texture_patterns import (
    Values,
    draw_cloth_color,
    draw_logo,
    draw_pattern,
    mix,
    smooth_noise,
    step,
)

#: Skin from light to dark, RGB.
_SKIN: Final = np.array(
    [[0.96, 0.82, 0.73], [0.88, 0.68, 0.55], [0.72, 0.50, 0.37], [0.50, 0.33, 0.23], [0.27, 0.17, 0.12]]
)
_HAIR: Final = np.array(
    [[0.06, 0.05, 0.04], [0.20, 0.12, 0.07], [0.42, 0.26, 0.13], [0.78, 0.62, 0.36], [0.62, 0.60, 0.58]]
)
_HAIR_SHARES: Final = (0.4, 0.27, 0.15, 0.1, 0.08)
#: Edges of cloth are soft over so much of a reach (`BodyRegions`), about a centimetre.
_EDGE: Final = 0.04

Colors = Float[ndarray, "points 3"]


@dataclass(frozen=True)
class _Cut:
    """Where the pieces of an outfit end, in the coordinates of `BodyRegions`."""

    sleeve: float
    """Arm reach at which the sleeves end."""
    hem: float
    """Torso height of the shirt's lower edge."""
    neckline: float
    """How far below the neck the shirt begins, as torso height."""
    waist: float
    """Torso height of the trousers' upper edge."""
    trouser: float
    """Leg reach at which trousers, shorts or skirt end."""
    sock: float
    """Leg reach at which socks begin; above 2 there are none."""
    barefoot: bool
    """No shoes."""


def draw_appearance(rng: np.random.Generator, regions: BodyRegions) -> Colors:
    """Draws a dressed person; RGB in 0..1."""
    cut = _draw_cut(rng)
    colors = _skin(rng, regions)
    colors = _face(rng, regions, colors)
    colors = _clothes(rng, regions, cut, colors)
    colors = _hair(rng, regions, colors)
    # Folds and wear: brightness that differs from place to place.
    folds = 0.09 * smooth_noise(rng, regions.position_m * (1, 0.6, 1), 0.07)
    folds += 0.05 * smooth_noise(rng, regions.position_m, 0.02)
    cloth = 1 - 0.6 * np.maximum(regions.head, step(regions.arm_reach, 2, _EDGE) * regions.arm)
    return np.clip(colors * (1 + folds * cloth)[:, None], 0.01, 0.99).astype(np.float32)


def _draw_cut(rng: np.random.Generator) -> _Cut:
    sleeve = rng.choice([-0.15, 0.1, 0.55, 1.1, 1.95], p=[0.1, 0.05, 0.4, 0.07, 0.38])
    trouser = rng.choice([0.08, 0.5, 0.9, 1.5, 1.96], p=[0.04, 0.15, 0.16, 0.1, 0.55])
    return _Cut(
        sleeve=sleeve + rng.normal(scale=0.04),
        hem=rng.choice([rng.uniform(-0.2, 0.08), rng.uniform(0.2, 0.5)], p=[0.93, 0.07]),
        neckline=rng.choice([rng.uniform(-0.1, 0.03), rng.uniform(0.05, 0.25)], p=[0.7, 0.3]),
        waist=rng.uniform(0.0, 0.25),
        trouser=trouser + rng.normal(scale=0.03),
        sock=rng.choice([2.5, 1.85, 1.3], p=[0.35, 0.45, 0.2]),
        barefoot=bool(rng.uniform() < 0.12),
    )


def _skin(rng: np.random.Generator, regions: BodyRegions) -> Colors:
    tone = rng.uniform(0, len(_SKIN) - 1)
    base = np.array([np.interp(tone, range(len(_SKIN)), channel) for channel in _SKIN.T])
    base *= 1 + rng.normal(scale=0.03, size=3)
    blotches = smooth_noise(rng, regions.position_m, 0.05)
    colors = np.float32(base) * (1 + 0.05 * blotches[:, None])
    # Hands and cheeks are redder than arms.
    flush = 0.1 * step(regions.arm_reach, 2.2, 0.3) * regions.arm
    return mix(colors.astype(np.float32), base * (1.05, 0.8, 0.78), flush.astype(np.float32))


def _face(rng: np.random.Generator, regions: BodyRegions, colors: Colors) -> Colors:
    """Eyes, brows and mouth: small, but they say where a head looks."""
    skin = colors.mean(axis=0)
    front = step(regions.head_depth, 0.55, 0.1) * regions.head
    left, right = regions.eyes_m
    between = float(np.linalg.norm(left - right))
    for eye in (left, right):
        across, up = (regions.position_m - eye).T[:2] / max(between, 1e-3)
        for height, width, tall, color, strength in (
            (0.0, 0.30, 0.18, np.full(3, 0.85), 0.7),
            (0.0, 0.14, 0.14, np.array([0.12, 0.09, 0.07]), 0.95),
            (0.33, 0.38, 0.08, skin * 0.35, 0.7),
        ):
            blob = step(1 - np.hypot(across / width, (up - height) / tall), 0.2, 0.4)
            colors = mix(colors, color, blob * front * np.float32(strength))
    across, up = (regions.position_m - (left + right) / 2).T[:2] / max(between, 1e-3)
    mouth = step(1 - np.hypot(across / 0.42, (up + 1.15) / 0.13), 0.2, 0.4)
    return mix(colors, skin * rng.uniform((0.8, 0.45, 0.45), (1.05, 0.75, 0.75)), mouth * front * np.float32(0.8))


def _hair(rng: np.random.Generator, regions: BodyRegions, colors: Colors) -> Colors:
    style = rng.choice(["bald", "short", "long", "hat"], p=[0.07, 0.53, 0.28, 0.12])
    shade = np.array(_HAIR[rng.choice(len(_HAIR), p=_HAIR_SHARES)]) * rng.uniform(0.8, 1.2)
    strands = smooth_noise(rng, regions.position_m * (1, 0.3, 1), 0.012)
    hair = np.float32(shade) * (1 + 0.25 * strands[:, None])
    head, wobble = regions.head, 0.02 * smooth_noise(rng, regions.position_m, 0.03)
    # The hairline falls from the forehead to the nape.
    fringe, nape = rng.uniform(0.78, 0.88), {"short": 0.42, "long": 0.12}.get(style, 0.4)
    line = np.interp(regions.head_depth + wobble, [0.2, 0.55, 0.8], [nape, nape + 0.12, fringe])
    cover = step(regions.head_height - line, 0.0, 0.05) * step(head, 0.4, 0.2)
    if style == "bald":
        return mix(colors, hair, cover * step(0.75 - regions.head_height, 0.0, 0.08) * np.float32(0.6))
    if style == "hat":
        hat = step(regions.head_height, rng.uniform(0.74, 0.82), 0.03) * step(head, 0.4, 0.2)
        return mix(mix(colors, hair, cover), draw_cloth_color(rng), hat)
    colors = mix(colors, hair, cover)
    if style == "long":
        length, half_width = rng.uniform(0.75, 0.98), 0.1
        back = step(-regions.normal[:, 2], 0.0, 0.3) * step(regions.torso_height, length, 0.03)
        near = step(half_width - np.abs(regions.position_m[:, 0]), 0.0, 0.02)
        colors = mix(colors, hair, back * near * (1 - regions.arm))
    elif rng.uniform() < 0.3:
        low = step(0.36 - regions.head_height, 0.0, 0.05) * step(regions.head_height, 0.16, 0.05)
        colors = mix(colors, hair, low * step(regions.head_depth, 0.45, 0.05) * head * np.float32(0.85))
    return colors


def _clothes(rng: np.random.Generator, regions: BodyRegions, cut: _Cut, colors: Colors) -> Colors:
    def cloth() -> Colors:
        return draw_pattern(rng, regions.position_m, regions.along_m, regions.around_m)

    wobble = 0.02 * smooth_noise(rng, regions.position_m, 0.05)
    leg_reach = regions.leg_reach + wobble
    if not cut.barefoot:
        foot = step(leg_reach, 1.95 if rng.uniform() < 0.7 else 1.8, _EDGE) * step(regions.leg, 0.6, 0.3)
        socks = step(leg_reach, cut.sock, _EDGE) * step(regions.leg, 0.6, 0.3)
        colors = mix(colors, draw_cloth_color(rng), socks)
        shoes = np.array(np.broadcast_to(np.float32(draw_cloth_color(rng)), colors.shape))
        shoes = mix(shoes, draw_cloth_color(rng), step(0.022 - regions.sole_m, 0.0, 0.01))
        colors = mix(colors, shoes, foot)
    lower = step(cut.trouser - leg_reach, 0.0, _EDGE)
    lower *= step(cut.waist - regions.torso_height, 0.0, _EDGE) * (1 - regions.arm)
    trousers = cloth()
    colors = mix(colors, trousers, lower)
    upper = _shirt_cover(regions, cut, wobble)
    shirt = trousers if rng.uniform() < 0.12 else cloth()
    return mix(colors, _printed(rng, regions, shirt), upper)


def _shirt_cover(regions: BodyRegions, cut: _Cut, wobble: Values) -> Values:
    """1 on the points that the shirt covers."""
    trunk = step(regions.torso_height + wobble, cut.hem, _EDGE)
    trunk *= 1 - step(regions.head, 0.5, 0.12)
    throat = step(regions.torso_height, 1 - cut.neckline, _EDGE) * step(
        regions.position_m[:, 2], float(regions.chest_m[2]), 0.05
    )
    near = step(0.1 - np.abs(regions.position_m[:, 0]), 0.0, 0.03)
    sleeve = step(cut.sleeve - regions.arm_reach - wobble, 0.0, _EDGE)
    return (trunk * (1 - throat * near) * np.where(regions.arm > 0.5, sleeve, 1)).astype(np.float32)


def _printed(rng: np.random.Generator, regions: BodyRegions, shirt: Colors) -> Colors:
    """A shirt with sleeves, front or print of its own."""
    across, up, depth = (regions.position_m - regions.chest_m).T
    is_front = depth > 0
    if rng.uniform() < 0.2:  # sleeves of another colour
        shirt = mix(shirt, draw_cloth_color(rng), step(regions.arm_reach, -0.2, _EDGE) * regions.arm)
    if rng.uniform() < 0.15:  # an open jacket, or a zip
        half_width = rng.uniform(0.006, 0.09)
        gap = step(half_width - np.abs(across), 0.0, 0.01) * is_front * (1 - regions.arm)
        shirt = mix(shirt, draw_cloth_color(rng), gap.astype(np.float32))
    if rng.uniform() < 0.15:  # a band across the chest, all around
        band = step(rng.uniform(0.03, 0.1) - np.abs(up - rng.uniform(-0.15, 0.1)), 0.0, 0.01)
        shirt = mix(shirt, draw_cloth_color(rng), band * (1 - regions.arm))
    for side, share in ((is_front, 0.45), (~is_front, 0.3)):
        if rng.uniform() < share:
            moved = rng.uniform((-0.04, -0.1), (0.04, 0.05)).astype(np.float32)
            logo = draw_logo(rng, shirt, across - moved[0], up - moved[1], rng.uniform(0.08, 0.26))
            shirt = np.where((side & (regions.arm < 0.5))[:, None], logo, shirt)
    return shirt
