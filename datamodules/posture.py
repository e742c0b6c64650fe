"""Human joints by their anatomical angles, and the way from these to SMPL's 24 x 3 axis-angle numbers.

A `Posture` says what an anatomist would: hip flexion, elbow flexion, pronation. `joint_rotations` turns it into SMPL's
relative joint rotations, whose rest pose is a T: x to the body's left, y up, z forward, palms down, thumbs forward.
Each joint is an intrinsic Euler triple; `JOINTS` lists order and limits. Signs are those of the body's left side;
the right side is its mirror image (y and z of the axis-angle vector change sign).

Limits follow the usual range-of-motion norms, rounded (American Academy of Orthopaedic Surgeons, "Joint Motion: Method
of Measuring and Recording", 1965; Norkin and White, "Measurement of Joint Motion"), with weight-bearing values for
the ankle; those of spine and neck are divided among their joints.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.joints import SMPL24, mirrored

#: SMPL's joints other than the root.
BODY_JOINTS: Final = SMPL24[1:]
#: Shoulder girdle: the share of arm elevation above and below the horizontal that the collar joint takes.
COLLAR_ELEVATION_SHARE: Final = 0.2
#: How far the collar comes forward when the arm points straight forward, in degrees.
COLLAR_PROTRACTION_DEG: Final = 15.0
#: Share of a forearm's pronation that the elbow joint takes; SMPL's wrist takes the rest.
ELBOW_PRONATION_SHARE: Final = 0.3

Degrees = Float64[ndarray, " count"]
Triples = dict[str, tuple[Degrees, Degrees, Degrees]]


class Joint(NamedTuple):
    """How one joint (of the left side) turns: R = R_a(first) R_b(second) R_c(third) with a, b, c = `order`."""

    order: str
    """Axes of the intrinsic rotations, in SMPL's frame of the rest pose."""
    limits_deg: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    """Lowest and highest angle about each axis, in that order."""
    jitter_deg: tuple[float, float, float]
    """Standard deviation of what differs from person to person and is in no rule, in that order."""


#: "shoulder" is the whole arm relative to the upper spine (collar and shoulder together), because this is what norms
#: measure: flexion about x, abduction minus 90 degrees about z, rotation about the humerus.
JOINTS: Final[dict[str, Joint]] = {
    "hip": Joint("XZY", ((-135, 30), (-30, 55), (-45, 50)), (2, 2, 3)),
    "knee": Joint("XYZ", ((0, 150), (-12, 12), (-6, 6)), (2, 4, 2)),
    "ankle": Joint("XYZ", ((-40, 55), (-15, 20), (-30, 15)), (3, 4, 4)),
    "foot": Joint("XYZ", ((-50, 30), (-6, 6), (-6, 6)), (2, 2, 2)),
    "spine1": Joint("YXZ", ((-15, 15), (-15, 35), (-15, 15)), (2, 3, 2)),
    "spine2": Joint("YXZ", ((-15, 15), (-12, 30), (-12, 12)), (2, 3, 2)),
    "spine3": Joint("YXZ", ((-20, 20), (-12, 25), (-12, 12)), (2, 3, 2)),
    "neck": Joint("YXZ", ((-40, 40), (-35, 35), (-25, 25)), (4, 4, 3)),
    "head": Joint("YXZ", ((-40, 40), (-30, 30), (-22, 22)), (4, 4, 3)),
    "collar": Joint("ZYX", ((-30, 35), (-30, 25), (-10, 10)), (3, 3, 2)),
    "shoulder": Joint("XZX", ((-170, 60), (-135, 90), (-90, 90)), (2, 2, 3)),
    "elbow": Joint("YXZ", ((-150, 0), (-35, 35), (-6, 6)), (2, 4, 2)),
    "wrist": Joint("XZY", ((-70, 70), (-80, 70), (-30, 30)), (6, 6, 5)),
    "hand": Joint("ZYX", ((-60, 20), (-10, 10), (-10, 10)), (6, 3, 3)),
}


@dataclass(frozen=True)
class Trunk:
    """Pelvis, spine and head, in degrees."""

    pitch: Degrees
    """Pelvis forward from upright."""
    roll: Degrees
    """Pelvis to the left, after pitch."""
    yaw: Degrees
    """Pelvis turned to the left, before pitch."""
    flexion: Degrees
    """Spine forward."""
    bend: Degrees
    """Spine to the left."""
    turn: Degrees
    """Spine turned to the left."""
    head_flexion: Degrees
    """Chin down."""
    head_bend: Degrees
    """Ear to the left shoulder."""
    head_turn: Degrees
    """Face to the left."""


@dataclass(frozen=True)
class Leg:
    """One leg relative to the pelvis, in degrees."""

    hip_flexion: Degrees
    """Thigh forward."""
    hip_abduction: Degrees
    """Thigh away from the midline, before it is flexed."""
    hip_rotation: Degrees
    """Knee and toes outward."""
    knee_flexion: Degrees
    """Heel to the buttocks."""
    ankle_dorsiflexion: Degrees
    """Foot up."""
    toe_extension: Degrees
    """Toes up."""


@dataclass(frozen=True)
class Arm:
    """One arm relative to the upper spine, in degrees; all zero is an arm hanging straight down, palm to the thigh."""

    flexion: Degrees
    """Upper arm forward and up."""
    abduction: Degrees
    """Upper arm away from the side, before it is flexed."""
    rotation: Degrees
    """Upper arm about itself, outward."""
    elbow_flexion: Degrees
    """Hand to the shoulder."""
    pronation: Degrees
    """Palm down when the elbow is bent."""
    wrist_flexion: Degrees
    """Palm to the forearm."""
    hand_flexion: Degrees
    """Fingers curled."""


@dataclass(frozen=True)
class Posture:
    """Whole bodies."""

    trunk: Trunk
    left_leg: Leg
    right_leg: Leg
    left_arm: Arm
    right_arm: Arm


def joint_rotations(posture: Posture, jitter: Float64[ndarray, "count 23 3"]) -> Float32[ndarray, "count 23 3"]:
    """SMPL's axis-angle vectors in radians of joints 1 to 23.

    Args:
        posture: What the bodies do.
        jitter: Standard normal numbers; times `Joint.jitter_deg` they are added to the angles before the limits hold.
    """
    triples = (
        _trunk_triples(posture.trunk)
        | _sided("left", _leg_triples(posture.left_leg) | _arm_triples(posture.left_arm))
        | _sided("right", _leg_triples(posture.right_leg) | _arm_triples(posture.right_arm))
    )
    turned = {name: _rotation(name, triples[name], jitter[:, index]) for index, name in enumerate(BODY_JOINTS)}
    for side in ("left", "right"):
        turned[f"{side}_shoulder"] = turned[f"{side}_collar"].inv() * turned[f"{side}_shoulder"]
    vectors = np.stack([turned[name].as_rotvec() for name in BODY_JOINTS], axis=1)
    vectors[:, [name.startswith("right") for name in BODY_JOINTS], 1:] *= -1
    return vectors.astype(np.float32)


def root_rotation(trunk: Trunk) -> Rotation:
    """Pelvis relative to an upright body that faces +z."""
    return Rotation.from_euler("YXZ", np.stack([trunk.yaw, trunk.pitch, -trunk.roll], axis=1), degrees=True)


def mirrored_pose(pose: Float[ndarray, "count joints 3"]) -> Float[ndarray, "count joints 3"]:
    """Mirror image of SMPL axis-angle vectors, of all 24 joints or of joints 1 to 23."""
    order = np.array(mirrored(SMPL24 if pose.shape[1] == len(SMPL24) else BODY_JOINTS))
    return pose[:, order] * np.array([1, -1, -1], dtype=pose.dtype)


def joint_kind(name: str) -> str:
    """The key of `JOINTS` of one of SMPL's joints: its name without the side."""
    return name.removeprefix("left_").removeprefix("right_")


def _rotation(name: str, triple: tuple[Degrees, Degrees, Degrees], jitter: Float64[ndarray, "count 3"]) -> Rotation:
    joint = JOINTS[joint_kind(name)]
    low, high = np.transpose(joint.limits_deg)
    angles = np.clip(np.stack(triple, axis=1) + jitter * joint.jitter_deg, low, high)
    return Rotation.from_euler(joint.order, angles, degrees=True)


def _sided(side: str, triples: Triples) -> Triples:
    return {f"{side}_{name}": triple for name, triple in triples.items()}


def _trunk_triples(trunk: Trunk) -> Triples:
    # The lower spine flexes most, the upper spine turns most.
    triples: Triples = {
        f"spine{level}": (turn * trunk.turn, flex * trunk.flexion, -trunk.bend / 3)
        for level, turn, flex in ((1, 0.2, 0.4), (2, 0.35, 0.35), (3, 0.45, 0.25))
    }
    half = (trunk.head_turn / 2, trunk.head_flexion / 2, -trunk.head_bend / 2)
    return triples | {"neck": half, "head": half}


def _leg_triples(leg: Leg) -> Triples:
    none = np.zeros_like(leg.hip_flexion)
    return {
        "hip": (-leg.hip_flexion, leg.hip_abduction, leg.hip_rotation),
        "knee": (leg.knee_flexion, none, none),
        "ankle": (-leg.ankle_dorsiflexion, none, none),
        "foot": (-leg.toe_extension, none, none),
    }


def _arm_triples(arm: Arm) -> Triples:
    none = np.zeros_like(arm.flexion)
    flexion, abduction = np.deg2rad(arm.flexion), np.deg2rad(arm.abduction)
    elevation = np.rad2deg(np.arccos(np.clip(np.cos(flexion) * np.cos(abduction), -1, 1)))
    forward = np.sin(flexion) * np.cos(abduction)
    elbow_twist = ELBOW_PRONATION_SHARE * arm.pronation
    return {
        "collar": (COLLAR_ELEVATION_SHARE * (elevation - 90), -COLLAR_PROTRACTION_DEG * forward, none),
        "shoulder": (-arm.flexion, arm.abduction - 90, -arm.rotation),
        "elbow": (-arm.elbow_flexion, elbow_twist, none),
        "wrist": (arm.pronation - elbow_twist, -arm.wrist_flexion, none),
        "hand": (-arm.hand_flexion, none, none),
    }
