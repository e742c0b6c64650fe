"""The rules of the hand-made postures, as tables of angle ranges in degrees.

A kind of posture has one or more variants. A variant says how the pelvis, spine, legs and feet are held and how often
each arm style goes with it. Legs are given as one sees them from the side: how far the thigh is forward of the
vertical, and how far the shank is (its top forward of the ankle), so that knee flexion = thigh + shank and hip
flexion = thigh + pelvis pitch; a flat foot then follows from the shank. Angles are drawn from their ranges with a
triangular density, independently unless the variant says that the two legs or the two arms do the same.

The gait tables are sagittal joint angles at every tenth of a cycle that starts with the foot's contact. They follow, to
a few degrees, the normal curves of Winter, "The Biomechanics and Motor Control of Human Gait", 1991, and for running
of Novacheck, "The biomechanics of running", Gait and Posture 7, 1998.
"""

from typing import Final, Literal, NamedTuple

PoseKind = Literal["stand", "walk", "run", "sit", "squat", "lunge", "bend", "reach", "kneel", "climb", "lie"]
ArmStyle = Literal[
    "hang", "pump", "gesture", "hips", "folded", "carry", "chin", "ear", "raised", "sideways",
    "forward", "behind", "rack", "press", "front_rack", "lap", "down", "prop", "pull",
]  # fmt: skip
FootStyle = Literal["flat", "tiptoe", "relaxed", "tucked", "pointed"]
ArmMix = dict[ArmStyle, float]
#: Lowest and highest angle.
Range = tuple[int | float, int | float]

#: How often each kind is drawn, relative to the others.
KIND_SHARES: Final[dict[PoseKind, float]] = {
    "stand": 20, "walk": 18, "run": 8, "sit": 13, "squat": 6, "lunge": 8, "bend": 7, "reach": 7, "kneel": 4,
    "climb": 4, "lie": 5,
}  # fmt: skip


class ArmRanges(NamedTuple):
    """One thing an arm does; the fields are those of `posture.Arm`."""

    flexion: Range
    abduction: Range
    rotation: Range
    elbow_flexion: Range
    pronation: Range
    wrist_flexion: Range
    hangs: bool = False
    """Whether gravity holds it: it swings with the steps and stays vertical when the trunk leans."""


ARM_RANGES: Final[dict[ArmStyle, ArmRanges]] = {
    "hang": ArmRanges((-14, 14), (6, 24), (-25, 12), (4, 40), (-10, 60), (-15, 20), hangs=True),
    "pump": ArmRanges((-20, 20), (8, 28), (-22, 4), (65, 120), (-10, 50), (-15, 15), hangs=True),
    "gesture": ArmRanges((0, 55), (8, 40), (-30, 28), (40, 120), (-50, 70), (-30, 30)),
    "hips": ArmRanges((-15, 8), (28, 45), (-75, -48), (60, 95), (-20, 50), (-20, 40)),
    "folded": ArmRanges((30, 50), (0, 14), (-78, -55), (75, 105), (0, 60), (-10, 20)),
    "carry": ArmRanges((14, 50), (4, 22), (-30, 0), (40, 100), (-60, 40), (-30, 20)),
    "chin": ArmRanges((38, 75), (-8, 18), (-55, -15), (110, 140), (-40, 60), (-20, 35)),
    "ear": ArmRanges((55, 120), (20, 55), (-55, 0), (118, 142), (-40, 40), (-20, 20)),
    "raised": ArmRanges((100, 168), (-4, 38), (-85, -15), (0, 70), (-40, 60), (-40, 30)),
    "sideways": ArmRanges((-20, 30), (55, 150), (-30, 60), (0, 70), (-50, 60), (-30, 30)),
    "forward": ArmRanges((45, 110), (-12, 35), (-55, 15), (0, 65), (-50, 80), (-45, 30)),
    "behind": ArmRanges((-40, -10), (5, 22), (-80, -50), (35, 90), (-40, 40), (-10, 50)),
    "rack": ArmRanges((-25, 15), (38, 75), (55, 90), (110, 145), (0, 70), (-45, 10)),
    "press": ArmRanges((-10, 25), (95, 165), (20, 85), (5, 95), (0, 70), (-45, 10)),
    "front_rack": ArmRanges((68, 95), (12, 32), (-60, -28), (118, 140), (-30, 60), (-60, 0)),
    "lap": ArmRanges((8, 44), (2, 24), (-55, -15), (28, 82), (10, 75), (-20, 30)),
    "down": ArmRanges((0, 45), (-6, 22), (-45, 5), (0, 45), (-30, 70), (-25, 25), hangs=True),
    "prop": ArmRanges((-45, -5), (12, 40), (-10, 50), (0, 40), (20, 80), (-65, -20)),
    "pull": ArmRanges((60, 155), (0, 60), (-75, 5), (10, 115), (-20, 80), (-40, 20)),
}

CALM: Final[ArmMix] = {
    "hang": 46, "gesture": 16, "hips": 6, "folded": 5, "carry": 7, "chin": 3, "ear": 3, "raised": 3,
    "sideways": 4, "forward": 4, "behind": 3,
}  # fmt: skip
WALKING: Final[ArmMix] = {"hang": 78, "gesture": 7, "carry": 6, "ear": 3, "forward": 2, "sideways": 2, "pump": 2}
RUNNING: Final[ArmMix] = {"pump": 86, "hang": 6, "forward": 3, "raised": 3, "sideways": 2}
SEATED: Final[ArmMix] = {
    "lap": 40, "gesture": 18, "carry": 8, "chin": 7, "folded": 5, "forward": 8, "hang": 4, "ear": 4,
    "raised": 2, "sideways": 2, "prop": 2,
}  # fmt: skip
FLOOR: Final[ArmMix] = {"lap": 40, "prop": 28, "gesture": 12, "forward": 8, "carry": 6, "chin": 6}
STRAIN: Final[ArmMix] = {
    "hang": 17, "rack": 15, "press": 10, "front_rack": 6, "forward": 15, "carry": 12, "hips": 4, "sideways": 8,
    "gesture": 8, "raised": 5,
}  # fmt: skip
DOWN: Final[ArmMix] = {"down": 62, "hang": 12, "forward": 10, "lap": 8, "carry": 4, "hips": 4}
UPWARD: Final[ArmMix] = {
    "raised": 40, "forward": 20, "sideways": 12, "press": 6, "pull": 6, "hang": 12, "gesture": 4,
}  # fmt: skip
CLIMBING: Final[ArmMix] = {"pull": 52, "raised": 18, "forward": 14, "sideways": 6, "hang": 10}
LYING: Final[ArmMix] = {
    "hang": 34, "folded": 12, "carry": 8, "raised": 12, "sideways": 16, "pull": 8, "chin": 6, "ear": 4,
}  # fmt: skip
PRONE_ARMS: Final[ArmMix] = {"hang": 34, "raised": 22, "sideways": 26, "pull": 18}


class FootRanges(NamedTuple):
    """How an ankle is held; "hang" of a foot in the air, or what touches the ground."""

    follows_shank: float
    """Share of the shank's lean that the ankle takes up, so that the foot stays level."""
    dorsiflexion: Range
    toe_extension: Range


FOOT_RANGES: Final[dict[FootStyle, FootRanges]] = {
    "flat": FootRanges(1, (-6, 6), (-4, 6)),
    "tiptoe": FootRanges(1, (-65, -20), (5, 40)),
    "relaxed": FootRanges(0.1, (-30, 8), (-8, 8)),
    "tucked": FootRanges(0, (0, 25), (15, 45)),
    "pointed": FootRanges(0, (-50, -28), (-12, 5)),
}


class LegRanges(NamedTuple):
    """One leg seen from the side, and how far it opens."""

    thigh: Range
    """Forward of the vertical, below the hip."""
    shank: Range
    """Forward of the vertical, above the ankle."""
    spread: Range = (-2, 12)
    """Abduction at the hip."""
    turnout: Range = (-6, 18)
    """Outward rotation at the hip."""
    foot: FootStyle = "flat"


class GaitCycle(NamedTuple):
    """Sagittal angles at every tenth of a stride."""

    hip: tuple[float, ...]
    knee: tuple[float, ...]
    ankle: tuple[float, ...]
    arm_swing: Range
    """Forward and backward of the mean, at the shoulder."""


WALK: Final = GaitCycle(
    hip=(30, 24, 15, 5, -4, -10, -4, 13, 26, 32, 30),
    knee=(5, 17, 15, 8, 6, 17, 42, 60, 46, 14, 5),
    ankle=(0, -4, 3, 7, 10, 2, -17, -6, 1, 1, 0),
    arm_swing=(6, 32),
)
RUN: Final = GaitCycle(
    hip=(38, 32, 17, 0, -10, -4, 14, 34, 50, 48, 38),
    knee=(18, 38, 36, 24, 24, 55, 88, 102, 74, 34, 18),
    ankle=(6, 20, 18, 0, -24, -14, -2, 5, 6, 6, 6),
    arm_swing=(18, 50),
)


class Variant(NamedTuple):
    """One way to take up a kind of posture. The leading leg is the left one; half of all samples are mirrored."""

    kind: PoseKind
    share: float
    """How often, relative to the kind's other variants."""
    pitch: Range
    """Pelvis forward."""
    flexion: Range
    """Spine forward."""
    legs: tuple[LegRanges, LegRanges] | GaitCycle
    """Leading and other leg, or a point of a cycle."""
    arms: ArmMix
    arms_alike: float = 0.45
    """How often both arms do the same."""
    legs_alike: float = 0.0
    """Correlation between the draws of the two legs; 1 means the same place in their ranges."""
    unsteady: float = 1.0
    """Factor on sideways bend and turn of the spine."""
    recline: tuple[float, float] = (0, 0)
    """Whole body laid down: about x (90 on the face, -90 on the back), then about its long axis."""


def _both(ranges: LegRanges) -> tuple[LegRanges, LegRanges]:
    return ranges, ranges


_UPRIGHT: Final = LegRanges((-2, 10), (-4, 8), (0, 14), (-6, 20))
_RESTING: Final = LegRanges((0, 26), (0, 12), (2, 20), (0, 25))
_LIFTED: Final = LegRanges((25, 95), (-55, 45), (-5, 35), (-8, 35), "relaxed")
_ASTRIDE: Final = _both(_UPRIGHT._replace(spread=(10, 30)))
_STRETCHING: Final = (_UPRIGHT, _UPRIGHT._replace(foot="tiptoe"))
_REACHING: Final = (_RESTING, LegRanges((-15, 12), (2, 22)))

_CHAIR: Final = _both(LegRanges((72, 98), (-25, 28), (-2, 24), (-14, 14)))
_LEGS_CROSSED: Final = (
    LegRanges((85, 108), (-25, 15), (-20, -6), (-5, 25), "relaxed"),
    LegRanges((74, 92), (-12, 20), (-6, 6)),
)
_LEGS_OUT: Final = _both(LegRanges((78, 98), (-88, -45), (0, 25), (0, 25), "relaxed"))
_TAILOR: Final = _both(LegRanges((68, 92), (30, 62), (25, 48), (25, 48), "relaxed"))
_KNEES_UP: Final = _both(LegRanges((112, 138), (-38, -5), (0, 18), (-8, 15)))

_HALF_SQUAT: Final = _both(LegRanges((45, 100), (12, 36), (8, 34), (-8, 12)))
_DEEP_SQUAT: Final = _both(LegRanges((92, 122), (18, 38), (8, 32), (-8, 12)))
_DEEP_LUNGE: Final = (
    LegRanges((45, 92), (-10, 28), (-4, 14), (-6, 18)),
    LegRanges((-28, 8), (22, 92), (-4, 12), (-8, 14), "tiptoe"),
)
_LONG_LUNGE: Final = (
    LegRanges((30, 75), (0, 30), (-2, 18), (-4, 22)),
    LegRanges((-34, -8), (14, 45), (-2, 14), (0, 25), "tiptoe"),
)
_SIDE_LUNGE: Final = (LegRanges((35, 85), (8, 32), (8, 32), (5, 35)), LegRanges((0, 22), (-15, 6), (28, 52), (0, 25)))
_STOOP: Final = _both(LegRanges((0, 28), (-14, 18), (0, 16), (-6, 18)))
_SPLIT_STOOP: Final = (
    LegRanges((10, 50), (-5, 25), (0, 20), (-6, 22)),
    LegRanges((-5, 30), (5, 35), (0, 20), (-6, 22)),
)

_HALF_KNEEL: Final = (
    LegRanges((84, 108), (-8, 25), (-2, 24), (-6, 20)),
    LegRanges((-12, 14), (86, 104), (-2, 16), (-8, 14), "tucked"),
)
_TALL_KNEEL: Final = _both(LegRanges((-6, 24), (82, 98), (0, 18), (-10, 15), "pointed"))
_HEEL_SIT: Final = _both(LegRanges((48, 66), (78, 92), (2, 20), (-10, 12), "pointed"))
_HIGH_STEP: Final = (
    LegRanges((45, 112), (-5, 35), (0, 32), (-4, 28)),
    LegRanges((-12, 22), (-2, 35), (0, 16), (-4, 20), "tiptoe"),
)
_STAIR: Final = (
    LegRanges((35, 85), (0, 28), (0, 14), (-4, 14)),
    LegRanges((-12, 12), (5, 30), (0, 12), (-4, 14), "tiptoe"),
)

_FLAT_OUT: Final = _both(LegRanges((-8, 25), (-22, 20), (0, 22), (-10, 28), "relaxed"))
_KNEE_DRAWN: Final = (
    LegRanges((20, 65), (10, 60), (0, 25), (-5, 25), "relaxed"),
    LegRanges((0, 60), (0, 50), (0, 25), (-5, 25), "relaxed"),
)
_PRONE: Final = (_FLAT_OUT[0], LegRanges((-8, 40), (-20, 45), (0, 35), (0, 35), "relaxed"))
_CURLED: Final = (
    LegRanges((25, 85), (0, 55), (-12, 6), (-12, 8), "relaxed"),
    LegRanges((5, 75), (0, 60), (-5, 10), (-8, 10), "relaxed"),
)

VARIANTS: Final[tuple[Variant, ...]] = (
    Variant("stand", 60, (-4, 6), (-6, 12), _both(_UPRIGHT), CALM, legs_alike=0.6),
    Variant("stand", 30, (-4, 8), (-6, 14), (_RESTING, _UPRIGHT), CALM, unsteady=1.3),
    Variant("stand", 10, (-4, 8), (-6, 12), _ASTRIDE, CALM, legs_alike=0.8),
    Variant("stand", 7, (-12, 10), (-8, 16), (_LIFTED, _UPRIGHT), CALM, unsteady=1.8),
    Variant("walk", 1, (-1, 9), (-4, 12), WALK, WALKING, arms_alike=0.8),
    Variant("run", 1, (4, 18), (-2, 16), RUN, RUNNING, arms_alike=0.9),
    Variant("sit", 55, (-25, 12), (0, 30), _CHAIR, SEATED, legs_alike=0.6),
    Variant("sit", 12, (-25, 8), (0, 28), _LEGS_CROSSED, SEATED),
    Variant("sit", 11, (-28, 10), (5, 40), _LEGS_OUT, FLOOR, legs_alike=0.5),
    Variant("sit", 11, (-18, 12), (5, 38), _TAILOR, FLOOR, legs_alike=0.8),
    Variant("sit", 11, (-28, 2), (8, 40), _KNEES_UP, FLOOR, legs_alike=0.6),
    Variant("squat", 70, (8, 45), (-8, 22), _HALF_SQUAT, STRAIN, arms_alike=0.8, legs_alike=0.9),
    Variant("squat", 30, (0, 35), (5, 35), _DEEP_SQUAT, STRAIN, arms_alike=0.7, legs_alike=0.9),
    Variant("lunge", 50, (-8, 20), (-10, 14), _DEEP_LUNGE, STRAIN, arms_alike=0.7),
    Variant("lunge", 25, (-5, 30), (-8, 18), _LONG_LUNGE, STRAIN, arms_alike=0.5, unsteady=1.6),
    Variant("lunge", 25, (5, 35), (-6, 18), _SIDE_LUNGE, STRAIN, arms_alike=0.6),
    Variant("bend", 60, (18, 75), (12, 55), _STOOP, DOWN, arms_alike=0.7, legs_alike=0.8),
    Variant("bend", 40, (15, 60), (8, 50), _SPLIT_STOOP, DOWN, arms_alike=0.5, unsteady=1.6),
    Variant("reach", 60, (-8, 10), (-15, 10), _STRETCHING, UPWARD, legs_alike=0.5, unsteady=1.8),
    Variant("reach", 40, (-4, 25), (-10, 25), _REACHING, UPWARD, unsteady=2.0),
    Variant("kneel", 45, (-5, 22), (-4, 28), _HALF_KNEEL, SEATED),
    Variant("kneel", 30, (-5, 25), (-2, 28), _TALL_KNEEL, SEATED, legs_alike=0.8),
    Variant("kneel", 25, (-5, 18), (0, 35), _HEEL_SIT, SEATED, arms_alike=0.6, legs_alike=0.9),
    Variant("climb", 65, (0, 28), (-8, 28), _HIGH_STEP, CLIMBING, unsteady=1.5),
    Variant("climb", 35, (0, 25), (-8, 20), _STAIR, WALKING, arms_alike=0.6),
    Variant("lie", 30, (-6, 6), (-6, 15), _FLAT_OUT, LYING, arms_alike=0.6, legs_alike=0.5, recline=(-90, 0)),
    Variant("lie", 15, (-8, 4), (-6, 20), _KNEE_DRAWN, LYING, arms_alike=0.6, recline=(-90, 0)),
    Variant("lie", 25, (-6, 6), (-12, 10), _PRONE, PRONE_ARMS, arms_alike=0.6, recline=(90, 0)),
    Variant("lie", 30, (-8, 8), (5, 40), _CURLED, LYING, recline=(-90, 90)),
)
