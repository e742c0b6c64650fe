"""Where on a rest body the points of a texture are, in words that clothing is cut by: sleeves, hems, hairlines.

All is measured from the rest joints of the body, which stands as a T, so it fits any body of SMPL's layout.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from bodies.body_model import BodyModel, BodyParameters
from bodies.joints import OPENPOSE25, SMPL24
from datamodules.texture_canvas import PARTS, BodyPoints

#: A part of the body with fewer points than this has no size to speak of.
_FEWEST_POINTS: Final = 4
#: Eyes, relative to the head's bounding box, of bodies without openpose25: left of the middle, up, both 0..1.
_EYE_PLACE: Final = (0.2, 0.5)

Values = Float32[ndarray, " points"]


@dataclass(frozen=True)
class BodyRegions:
    """Coordinates of the points that follow the body's parts. Each is meaningful on its part alone."""

    position_m: Float32[ndarray, "points 3"]
    """x to the body's left, y up, z forward."""
    normal: Float32[ndarray, "points 3"]
    """Outward."""
    torso: Values
    """Share of the skin weights on the torso's bones; likewise the next three."""
    head: Values
    """Head and neck."""
    arm: Values
    """Arms with hands."""
    leg: Values
    """Legs with feet."""
    arm_reach: Values
    """0 at the shoulder, 1 at the elbow, 2 at the wrist, more on the hand, below 0 on the torso."""
    leg_reach: Values
    """0 at the hip, 1 at the knee, 2 at the ankle, more on the foot, below 0 on the torso."""
    torso_height: Values
    """0 at the pelvis, 1 at the neck."""
    head_height: Values
    """0 at the lowest, 1 at the highest point of the head."""
    head_depth: Values
    """0 at its back, 1 at its front."""
    along_m: Values
    """Along the limb or the trunk."""
    around_m: Values
    """Around it."""
    sole_m: Values
    """Height above the lowest point of the feet."""
    eyes_m: Float32[ndarray, "2 3"]
    """Left and right eye."""
    chest_m: Float32[ndarray, "3"]
    """The joint in the middle of the chest."""


def body_regions(body: BodyModel, points: BodyPoints) -> BodyRegions:
    """The coordinates of points of a body."""
    joints = dict(zip(SMPL24, body.joint_template.cpu().numpy(), strict=True))
    x, y, z = points.position_m.T
    parts = dict(zip(PARTS, points.part_weights.T, strict=True))
    pelvis, neck = joints["pelvis"], joints["neck"]
    out = np.abs(x - pelvis[0])
    sleeve = [float(joints[f"left_{name}"][0] - pelvis[0]) for name in ("shoulder", "elbow", "wrist", "hand")]
    trouser = [float(pelvis[1] - joints[f"left_{name}"][1]) for name in ("hip", "knee", "ankle", "foot")]
    head = points.position_m[parts["head"] > 0.5]
    low, high = (head.min(axis=0), head.max(axis=0)) if len(head) >= _FEWEST_POINTS else (neck, neck + 0.2)
    on_arm = parts["arm"] > 0.5
    axis_z = np.where(on_arm, joints["left_elbow"][2], pelvis[2])
    arm_angle = np.arctan2(z - axis_z, y - joints["left_elbow"][1])
    trunk_angle = np.arctan2(np.where(parts["leg"] > 0.5, out - abs(joints["left_knee"][0]), x - pelvis[0]), z - axis_z)
    # Angles become lengths through usual radii of 5 cm for arms and 12 cm for trunk and thighs.
    around = np.where(on_arm, 0.05 * arm_angle, 0.12 * trunk_angle)
    values = {
        "arm_reach": _reach(out, sleeve),
        "leg_reach": _reach(pelvis[1] - y, trouser),
        "torso_height": (y - pelvis[1]) / max(neck[1] - pelvis[1], 1e-3),
        "head_height": (y - low[1]) / max(high[1] - low[1], 1e-3),
        "head_depth": (z - low[2]) / max(high[2] - low[2], 1e-3),
        "along_m": np.where(on_arm, out, y),
        "around_m": around,
        "sole_m": y - y.min(),
    }
    return BodyRegions(
        position_m=points.position_m,
        normal=points.normal,
        **parts,
        **{name: np.asarray(value, np.float32) for name, value in values.items()},
        eyes_m=_eyes(body, low, high),
        chest_m=joints["spine3"],
    )


def _reach(distance: ndarray, stations: list[float]) -> ndarray:
    """Piecewise linear: 0, 1, 2, 3 at the stations, and on at the first and last slope beyond them."""
    places = np.maximum.accumulate(np.array(stations) + 1e-4 * np.arange(len(stations)))
    reach = np.interp(distance, places, np.arange(len(places)))
    before = np.minimum(distance - places[0], 0) / (places[1] - places[0])
    return reach + before


def _eyes(body: BodyModel, low: Float32[ndarray, "3"], high: Float32[ndarray, "3"]) -> Float32[ndarray, "2 3"]:
    if "openpose25" in body.keypoint_sets:
        rest = BodyParameters.from_axis_angle(
            body.template.new_zeros(1, 72), body.template.new_zeros(1, 1), body.template.new_zeros(1, 3)
        )
        points = body.keypoints(body(rest), "openpose25")[0].cpu().numpy()
        return points[[OPENPOSE25.index("left_eye"), OPENPOSE25.index("right_eye")]]
    aside, up = _EYE_PLACE
    middle = (low + high) / 2
    eye = [aside * (high[0] - low[0]), low[1] + up * (high[1] - low[1]), high[2]]
    return np.array([[middle[0] + eye[0], *eye[1:]], [middle[0] - eye[0], *eye[1:]]], np.float32)
