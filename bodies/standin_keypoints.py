"""The stand-in's keypoint sets as regressors on posed vertices.

A keypoint is a mix of joints of the posed chain and of landmarks on the surface. Joints are read off the surface by a
convex regressor fitted on bodies in random poses, so that nothing but vertices is needed; landmarks are points of
triangles.

BODY_25's shoulders and hips are those of COCO, the hips wider and higher than SMPL's: the mixes below are within 1 cm
of Anny's own regressor of COCO's keypoints (anny: data/keypoints/coco.pth). Its neck and its mid-hip are the middles
between them. Human3.6M's hips lie further out still, and its neck ("thorax") between the shoulders and the base of
the neck. Human3.6M's other joints, LSP's and MPII's are known from SMPL's regressors alone; here their places are ours.
"""

from typing import Final

import numpy as np
import trimesh
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import csr_matrix, vstack

from bodies.joints import EXTRA9, H36M17, OPENPOSE25, SMPL24
from bodies.standin_regressors import round_rows
from bodies.standin_rig import MIRROR

Mix = dict[str, float]

#: Central keypoints and left ones, as mixes of smpl24, landmarks, and mixes further up. Right ones are mirrored.
_MIXES: Final[dict[str, Mix]] = {
    "left_shoulder_op": {"left_shoulder": 1.0, "neck": 0.2, "left_collar": -0.2},
    "left_hip_op": {"left_hip": 0.98, "right_hip": -0.28, "pelvis": 0.3},
    "mid_shoulders": {"left_shoulder_op": 0.5, "right_shoulder_op": 0.5},
    "mid_hip": {"left_hip_op": 0.5, "right_hip_op": 0.5},
    "left_hip_h36m": {"left_hip": 1.05, "right_hip": -0.5, "pelvis": 0.45},
    "pelvis_h36m": {"left_hip_h36m": 0.5, "right_hip_h36m": 0.5},
    "thorax": {"mid_shoulders": 0.5, "neck": 0.5},
    "spine_h36m": {"pelvis_h36m": 0.5, "thorax": 0.5},
    "jaw": {"head": 0.7, "nose": 0.3},
    "head_h36m": {"head_top": 0.85, "head": 0.15},
}
_OPENPOSE25_SOURCES: Final = {
    "neck": "mid_shoulders", "left_shoulder": "left_shoulder_op", "right_shoulder": "right_shoulder_op",
    "left_hip": "left_hip_op", "right_hip": "right_hip_op",
}  # fmt: skip
_H36M17_SOURCES: Final = {
    "pelvis": "pelvis_h36m", "left_hip": "left_hip_h36m", "right_hip": "right_hip_h36m", "spine": "spine_h36m",
    "neck": "thorax", "head": "jaw",
}  # fmt: skip
_EXTRA9_SOURCES: Final = {
    "left_hip": "left_hip_op", "right_hip": "right_hip_op", "pelvis_mpii": "mid_hip", "thorax_mpii": "thorax",
    "jaw_h36m": "jaw",
}  # fmt: skip
_SETS: Final = {
    "openpose25": (OPENPOSE25, _OPENPOSE25_SOURCES),
    "h36m17": (H36M17, _H36M17_SOURCES),
    "extra9": (EXTRA9, _EXTRA9_SOURCES),
}

#: From the middle of the left eyeball to the pupil, and to the middle of the left ear.
_EYE_TO_PUPIL_M: Final = np.array([0.0, 0.0, 0.013])
_EYE_TO_EAR_M: Final = np.array([0.05, -0.02, -0.08])
#: From the last joints of the big and the small toe to their tips.
_BIG_TOE_M: Final = 0.03
_SMALL_TOE_M: Final = 0.015
#: Barycentric coordinates of landmarks are multiples of 1 / _POINT_STEPS.
_POINT_STEPS: Final = 1 << 14


def landmark_points(
    template: Float64[ndarray, "vertices 3"],
    weights: Float64[ndarray, "vertices joints"],
    heads: dict[str, Float64[ndarray, "3"]],
) -> dict[str, Float64[ndarray, "3"]]:
    """Where landmarks of the face and the feet are, on or near the surface of the rest template.

    Args:
        template: Rest vertices.
        weights: Their skin weights.
        heads: Where Anny's bones start in the rest template, by name.
    """
    head = template[weights[:, SMPL24.index("head")] > 0.9]
    eye = heads["eye.L"]
    face = head[(np.abs(head[:, 0]) < 0.02) & (head[:, 1] < eye[1])]
    ankle = heads["foot.L"]
    toe, small_toe = heads["toe1-2.L"], heads["toe5-3.L"]
    points = {
        "nose": face[face[:, 2].argmax()] * [0.0, 1.0, 1.0],
        "head_top": head[head[:, 1].argmax()] * [0.0, 1.0, 1.0],
        "left_eye": eye + _EYE_TO_PUPIL_M,
        "left_ear": eye + _EYE_TO_EAR_M,
        "left_big_toe": toe + _BIG_TOE_M * _unit(toe - heads["toe1-1.L"]),
        "left_small_toe": small_toe + _SMALL_TOE_M * _unit(small_toe - heads["toe5-1.L"]),
        # Far behind and a little above the sole: the nearest point of the surface is the back of the heel.
        "left_heel": np.array([ankle[0], template[:, 1].min() + 0.02, ankle[2] - 0.3]),
    }
    mirrored = {f"right_{n.removeprefix('left_')}": p * MIRROR for n, p in points.items() if n.startswith("left_")}
    return points | mirrored


def surface_points(
    points: Float64[ndarray, "points 3"],
    template: Float64[ndarray, "vertices 3"],
    faces: Int64[ndarray, "faces 3"],
) -> csr_matrix:
    """Regressor to the points of the surface that are nearest to given ones: three vertices each."""
    triangles = template[faces]
    regressor = np.zeros((len(points), len(template)))
    for row, point in enumerate(points):
        nearest = trimesh.triangles.closest_point(triangles, np.broadcast_to(point, (len(faces), 3)))
        best = np.linalg.norm(nearest - point, axis=-1).argmin()
        corners = trimesh.triangles.points_to_barycentric(triangles[best][None], nearest[best][None])[0]
        regressor[row, faces[best]] = round_rows(corners[None].clip(0), _POINT_STEPS)[0]
    return csr_matrix(regressor)


def mix_keypoints(chain: csr_matrix, landmarks: csr_matrix, landmark_names: tuple[str, ...]) -> dict[str, csr_matrix]:
    """Regressors of openpose25, h36m17 and extra9.

    Args:
        chain: From posed vertices to the joints of smpl24.
        landmarks: From vertices to landmarks.
        landmark_names: Names of the latter.
    """
    # A later name hides an earlier one: none of the landmarks is called like a joint.
    names = (*SMPL24, *landmark_names)
    stacked = vstack([chain, landmarks], format="csr")
    rows = {name: stacked[index] for index, name in enumerate(names)}
    for name, mix in _MIXES.items():
        rows[name] = sum(share * rows[part] for part, share in mix.items())
        if name.startswith("left_"):
            rows[_other_side(name)] = sum(share * rows[_other_side(part)] for part, share in mix.items())
    return {
        set_name: vstack([rows[sources.get(name, name)] for name in names_of_set], format="csr")
        for set_name, (names_of_set, sources) in _SETS.items()
    }


def _other_side(name: str) -> str:
    side, _, rest = name.partition("_")
    return {"left": f"right_{rest}", "right": f"left_{rest}"}.get(side, name)


def _unit(vector: Float64[ndarray, "3"]) -> Float64[ndarray, "3"]:
    return vector / np.linalg.norm(vector)
