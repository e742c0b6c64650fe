"""Joint sets by name: their order, their left-right pairs, the bones to draw, and where SMPL has them.

* smpl24: joints of SMPL's kinematic chain.
* openpose25: OpenPose BODY_25.
* h36m17: the regressor J_regressor_h36m.npy, in the row order of SPIN's copy (left leg in rows 1 to 3).
* lsp14: the 14 joints on which 3DPW and Human3.6M are scored, a selection of h36m17 (SPIN `constants.py`, H36M_TO_J14).
* spin24: SPIN's 24 "ground truth" joints, which need J_regressor_extra.npy.
"""

from typing import Final, Literal

KeypointSet = Literal["smpl24", "openpose25", "h36m17", "lsp14", "spin24"]

SMPL24: Final = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle",
    "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hand", "right_hand",
)  # fmt: skip
SMPL24_PARENTS: Final = (
    -1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21,
)  # fmt: skip

OPENPOSE25: Final = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye",
    "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe",
    "right_small_toe", "right_heel",
)  # fmt: skip
OPENPOSE25_BONES: Final = (
    (0, 1), (1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (10, 11), (8, 12), (12, 13),
    (13, 14), (0, 15), (0, 16), (15, 17), (16, 18), (14, 19), (19, 20), (14, 21), (11, 22), (22, 23), (11, 24),
)  # fmt: skip

H36M17: Final = (
    "pelvis", "left_hip", "left_knee", "left_ankle", "right_hip", "right_knee", "right_ankle", "spine", "neck",
    "head", "head_top", "left_shoulder", "left_elbow", "left_wrist", "right_shoulder", "right_elbow",
    "right_wrist",
)  # fmt: skip

H36M17_BONES: Final = (
    (0, 1), (1, 2), (2, 3), (0, 4), (4, 5), (5, 6), (0, 7), (7, 8), (8, 9), (9, 10), (8, 11), (11, 12), (12, 13),
    (8, 14), (14, 15), (15, 16),
)  # fmt: skip

LSP14: Final = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
)  # fmt: skip
#: Rows of h36m17 that make lsp14; 8 and 10 are neck and head top.
LSP14_FROM_H36M17: Final = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
#: Rows of the copy J_regressor_h36m_correct.npy (Pose2Mesh, I2L-MeshNet), right leg first, that make h36m17.
H36M17_FROM_RIGHT_LEG_FIRST: Final = (0, 4, 5, 6, 1, 2, 3, *range(7, 17))

#: Rows of J_regressor_extra.npy (SPIN). Hips and neck are those of LSP, not SMPL's.
EXTRA9: Final = (
    "right_hip", "left_hip", "neck", "head_top", "pelvis_mpii", "thorax_mpii", "spine_h36m", "jaw_h36m", "head_h36m",
)  # fmt: skip

SPIN24: Final = (
    *LSP14, "pelvis_mpii", "thorax_mpii", "spine_h36m", "jaw_h36m", "head_h36m", "nose", "left_eye", "right_eye",
    "left_ear", "right_ear",
)  # fmt: skip

#: Number of vertices of the real SMPL.
SMPL_VERTICES: Final = 6890
#: The vertices among them that stand for keypoints of openpose25 (vchoutas/smplx `vertex_ids.py`, not SMPL-X's).
SMPL_VERTEX_IDS: Final[dict[str, int]] = {
    "nose": 332, "right_eye": 6260, "left_eye": 2800, "right_ear": 4071, "left_ear": 583, "left_big_toe": 3216,
    "left_small_toe": 3226, "left_heel": 3387, "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
}  # fmt: skip
#: The one keypoint of openpose25 that is a joint of SMPL's chain by another name.
OPENPOSE25_CHAIN_ALIAS: Final = {"mid_hip": "pelvis"}

KEYPOINT_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "smpl24": SMPL24,
    "openpose25": OPENPOSE25,
    "h36m17": H36M17,
    "lsp14": LSP14,
    "spin24": SPIN24,
}


def mirrored(names: tuple[str, ...]) -> tuple[int, ...]:
    """For each keypoint the index of its counterpart on the other side of the body, itself if it has none."""
    swap = {"left": "right", "right": "left"}
    place = {name: index for index, name in enumerate(names)}
    result = []
    for name in names:
        side, _, rest = name.partition("_")
        result.append(place[f"{swap[side]}_{rest}"] if side in swap else place[name])
    return tuple(result)
