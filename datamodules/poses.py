"""Plausible human postures in SMPL's pose parameters, drawn by hand-made rules.

    samples = sample_poses(1000, seed=0)               # the usual mix of kinds
    samples = sample_poses(10, seed=0, kinds=["sit"])
    samples.body_pose, samples.root_orientation, samples.kinds

The rules are the tables of `posture_tables`, the joints and their limits those of `posture`. Nothing here comes from
motion capture: the postures stand in for it where no licensed data may ship, in the prior and in synthetic images.

Sample i depends on the seed, the kinds asked for and i alone, so a set may be drawn in pieces.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64, Shaped
from numpy import ndarray
from scipy.spatial.transform import Rotation
from scipy.special import ndtr, ndtri

from datamodules.posture import Arm, Degrees, Leg, Posture, Trunk, joint_rotations, mirrored_pose, root_rotation
from datamodules.posture_tables import (
    ARM_RANGES,
    FOOT_RANGES,
    KIND_SHARES,
    VARIANTS,
    ArmMix,
    GaitCycle,
    LegRanges,
    PoseKind,
    Range,
    Variant,
)

__all__ = ["PoseKind", "PoseSamples", "sample_poses"]

#: Uniform numbers that a sample may use, jitter included; every sample has its own row of them.
DRAWS_PER_SAMPLE: Final = 160
#: Normal draws are cut at this many standard deviations: nobody stands at five sigma.
NORMAL_CUT: Final = 2.5
#: Share of the trunk's lean that the neck makes up for, to keep the gaze level.
GAZE_SHARE: Final = 0.45
_JITTER_DRAWS: Final = 69


class PoseSamples(NamedTuple):
    """Postures of one set, sample after sample."""

    body_pose: Float32[ndarray, "count 69"]
    """Axis-angle of SMPL's joints 1 to 23 in radians."""
    root_orientation: Float32[ndarray, "count 3"]
    """Axis-angle of joint 0 in radians, relative to an upright body that faces +z (y up). Lying bodies have their
    back, front or side towards -y."""
    kinds: Shaped[ndarray, " count"]
    """The kind of each, a `PoseKind`."""


class Draws:
    """Numbers for a group of samples, one row of uniform numbers each, taken column by column."""

    def __init__(self, uniforms: Float64[ndarray, "count draws"]) -> None:
        self._columns = iter(uniforms.T)
        self.count = uniforms.shape[0]

    def unit(self) -> Float64[ndarray, " count"]:
        """Uniform in 0..1."""
        return next(self._columns)

    def normal(self, std: float | Degrees, mean: float | Degrees = 0.0) -> Degrees:
        """Normal, cut at `NORMAL_CUT` standard deviations."""
        return mean + std * _cut_normal(self.unit())

    def within(self, bounds: Range) -> Degrees:
        """Triangular over a range, its peak in the middle."""
        return _place(bounds, _triangular(self.unit()))

    def index(self, shares: Sequence[float]) -> Int64[ndarray, " count"]:
        """Index of a choice, drawn in proportion to its share."""
        bounds = np.cumsum(shares) / np.sum(shares)
        return np.searchsorted(bounds[:-1], self.unit(), side="right")


def sample_poses(count: int, seed: int, kinds: Sequence[PoseKind] | None = None, first: int = 0) -> PoseSamples:
    """Draws postures; each is mirrored with probability one half.

    Args:
        count: How many.
        seed: Of the whole set.
        kinds: Which kinds, in proportion to `posture_tables.KIND_SHARES`; all by default.
        first: Index of the first sample: samples 5 to 9 are `sample_poses(5, seed, first=5)`.

    Raises:
        ValueError: If the count is negative, a kind is unknown or there is none.
    """
    chosen = tuple(KIND_SHARES if kinds is None else kinds)
    unknown = [kind for kind in chosen if kind not in KIND_SHARES]
    if count < 0 or first < 0 or unknown or not chosen:
        raise ValueError(f"count {count}, first {first}, kinds {chosen}: kinds are {', '.join(KIND_SHARES)}")
    uniforms = _uniform_rows(count, seed, first)
    selector = Draws(uniforms[:, :3])
    variants = [variant for variant in VARIANTS if variant.kind in chosen]
    variant_index = selector.index(_variant_shares(variants))
    body_pose, root = np.zeros((count, 23, 3), np.float32), np.zeros((count, 3), np.float32)
    for index, variant in enumerate(variants):
        rows = np.flatnonzero(variant_index == index)
        if rows.size:
            body_pose[rows], root[rows] = _draw_variant(variant, uniforms[rows, 3:])
    flipped = selector.unit() < 0.5
    body_pose[flipped] = mirrored_pose(body_pose[flipped])
    root[flipped] *= np.array([1, -1, -1], np.float32)
    labels = np.array([variant.kind for variant in variants])[variant_index]
    return PoseSamples(body_pose.reshape(count, 69), root, labels)


def _uniform_rows(count: int, seed: int, first: int) -> Float64[ndarray, "count draws"]:
    # One 64-bit step of the generator per number, so that the rows before `first` can be jumped over.
    bits = np.random.PCG64(seed)
    bits.advance(first * DRAWS_PER_SAMPLE)
    return np.random.Generator(bits).random((count, DRAWS_PER_SAMPLE))


def _variant_shares(variants: Sequence[Variant]) -> list[float]:
    totals: dict[str, float] = {}
    for variant in variants:
        totals[variant.kind] = totals.get(variant.kind, 0.0) + variant.share
    return [KIND_SHARES[variant.kind] * variant.share / totals[variant.kind] for variant in variants]


def _draw_variant(
    variant: Variant, uniforms: Float64[ndarray, "count draws"]
) -> tuple[Float32[ndarray, "count 23 3"], Float32[ndarray, "count 3"]]:
    """Body pose and root orientation of one variant's samples, before any mirroring."""
    draws = Draws(uniforms[:, :-_JITTER_DRAWS])
    jitter = _cut_normal(uniforms[:, -_JITTER_DRAWS:]).reshape(-1, 23, 3)
    trunk = _draw_trunk(variant, draws)
    stride = np.zeros(draws.count)
    if isinstance(variant.legs, GaitCycle):
        left_leg, right_leg, stride = _draw_gait(variant.legs, trunk, draws)
        # The left leg is in front: pelvis to the right, chest to the left.
        trunk = replace(trunk, yaw=trunk.yaw - 4 * stride, turn=trunk.turn + 7 * stride)
        stride = stride * draws.within(variant.legs.arm_swing)
    else:
        left_leg, right_leg = _draw_legs(variant.legs, variant.legs_alike, trunk, draws)
    left_arm, right_arm = _draw_arms(variant, trunk.pitch + trunk.flexion, stride, draws)
    posture = Posture(trunk, left_leg, right_leg, left_arm, right_arm)
    down, around = variant.recline
    ground = Rotation.from_euler("XY", [down, around], degrees=True)
    return joint_rotations(posture, jitter), (ground * root_rotation(trunk)).as_rotvec().astype(np.float32)


def _draw_trunk(variant: Variant, draws: Draws) -> Trunk:
    pitch, flexion = draws.within(variant.pitch), draws.within(variant.flexion)
    return Trunk(
        pitch=pitch,
        roll=draws.normal(2.0 * variant.unsteady),
        yaw=draws.normal(2.0 * variant.unsteady),
        flexion=flexion,
        bend=draws.normal(5.0 * variant.unsteady),
        turn=draws.normal(8.0 * variant.unsteady),
        head_flexion=draws.normal(12.0, mean=6 - GAZE_SHARE * (pitch + flexion)),
        head_bend=draws.normal(7.0),
        head_turn=draws.normal(20.0),
    )


def _draw_gait(cycle: GaitCycle, trunk: Trunk, draws: Draws) -> tuple[Leg, Leg, Degrees]:
    """Both legs at one moment of a stride, and how far the left one is in front of the right, about -1 to 1."""
    phase, vigour = draws.unit(), draws.normal(0.15, mean=0.95)
    tenths = np.linspace(0, 1, len(cycle.hip))
    legs = []
    for lag in (0.0, 0.5):
        hip, knee, ankle = (
            np.interp((phase + lag) % 1, tenths, angles) * vigour for angles in (cycle.hip, cycle.knee, cycle.ankle)
        )
        legs.append(
            Leg(
                hip_flexion=hip + draws.normal(4.0, mean=0.5 * trunk.pitch),
                hip_abduction=draws.normal(4.0, mean=2.0),
                hip_rotation=draws.normal(6.0, mean=4.0),
                knee_flexion=knee + draws.normal(5.0, mean=3.0),
                ankle_dorsiflexion=ankle + draws.normal(4.0),
                # The toes stay on the ground while the heel leaves it.
                toe_extension=draws.normal(3.0) + np.clip(-ankle, 0, 30) * 0.6,
            )
        )
    return legs[0], legs[1], (legs[0].hip_flexion - legs[1].hip_flexion) / np.ptp(cycle.hip)


def _draw_legs(ranges: tuple[LegRanges, LegRanges], alike: float, trunk: Trunk, draws: Draws) -> tuple[Leg, Leg]:
    lead = np.stack([draws.normal(1.0) for _ in range(6)], axis=1)
    other = np.stack([draws.normal(1.0) for _ in range(6)], axis=1)
    other = alike * lead + np.sqrt(1 - alike**2) * other
    return _leg(ranges[0], lead, trunk), _leg(ranges[1], other, trunk)


def _leg(ranges: LegRanges, normals: Float64[ndarray, "count 6"], trunk: Trunk) -> Leg:
    foot = FOOT_RANGES[ranges.foot]
    bounds = (ranges.thigh, ranges.shank, ranges.spread, ranges.turnout, foot.dorsiflexion, foot.toe_extension)
    thigh, shank, spread, turnout, ankle, toes = (
        _place(bound, _triangular(ndtr(column))) for bound, column in zip(bounds, normals.T, strict=True)
    )
    return Leg(thigh + trunk.pitch, spread, turnout, thigh + shank, ankle + foot.follows_shank * shank, toes)


def _draw_arms(variant: Variant, lean: Degrees, stride: Degrees, draws: Draws) -> tuple[Arm, Arm]:
    """Left and right arm; a hanging one is vertical under a leaning trunk and swings against its side's leg."""
    mix = variant.arms
    alike = draws.unit() < variant.arms_alike
    left_style, right_style = draws.index(list(mix.values())), draws.index(list(mix.values()))
    right_style = np.where(alike, left_style, right_style)
    left = np.stack([draws.normal(1.0) for _ in range(7)], axis=1)
    right = np.stack([draws.normal(1.0) for _ in range(7)], axis=1)
    right = np.where(alike[:, None], 0.8 * left + 0.6 * right, right)
    droop = lean * draws.within((0.5, 1.1))
    return _arm(mix, left_style, left, droop - stride), _arm(mix, right_style, right, droop + stride)


def _arm(mix: ArmMix, style: Int64[ndarray, " count"], normals: Float64[ndarray, "count 7"], droop: Degrees) -> Arm:
    rows = [ARM_RANGES[name] for name in mix]
    hangs = np.array([row.hangs for row in rows])[style]
    bounds = np.array([row[:6] for row in rows], np.float64)[style]
    angles = _place((bounds[..., 0], bounds[..., 1]), _triangular(ndtr(normals[:, :6])))
    flexion, abduction, rotation, elbow, pronation, wrist = angles.T
    return Arm(flexion + hangs * droop, abduction, rotation, elbow, pronation, wrist, 14 + 8 * normals[:, 6])


def _place(
    bounds: Range | tuple[Float64[ndarray, "..."], Float64[ndarray, "..."]], unit: Float64[ndarray, "..."]
) -> Float64[ndarray, "..."]:
    low, high = bounds
    return low + (high - low) * unit


def _triangular(unit: Float64[ndarray, "..."]) -> Float64[ndarray, "..."]:
    """Quantile function of the symmetric triangular density on 0..1."""
    return np.where(unit < 0.5, np.sqrt(unit / 2), 1 - np.sqrt((1 - unit) / 2))


def _cut_normal(unit: Float64[ndarray, "..."]) -> Float64[ndarray, "..."]:
    """Quantile function of the standard normal cut at +-`NORMAL_CUT`."""
    outside = ndtr(-NORMAL_CUT)
    return ndtri(outside + unit * (1 - 2 * outside))
