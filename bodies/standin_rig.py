"""SMPL's skeleton inside an Anny body: which bones make a joint, where it sits, and how the rest pose is reached.

Frame: x to the body's left, y up, z forward, metres. Anny stands in an A-pose with bent elbows; SMPL in a T-pose.
Everything is done for a batch of persons at once, in float64, left and right alike.
"""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.joints import SMPL24, SMPL24_PARENTS, mirrored

#: SMPL's rest offset of each joint from its parent, mean shape. Real SMPL poses are relative to these directions.
SMPL_REST_OFFSETS_M: Final[dict[str, tuple[float, float, float]]] = {
    "left_hip": (0.0695, -0.0914, -0.0068),
    "right_hip": (-0.0677, -0.0905, -0.0043),
    "spine1": (-0.0025, 0.1090, -0.0267),
    "left_knee": (0.0343, -0.3752, -0.0045),
    "right_knee": (-0.0383, -0.3826, -0.0089),
    "spine2": (0.0055, 0.1352, 0.0011),
    "left_ankle": (-0.0136, -0.3980, -0.0437),
    "right_ankle": (0.0158, -0.3984, -0.0423),
    "spine3": (0.0015, 0.0529, 0.0254),
    "left_foot": (0.0264, -0.0558, 0.1193),
    "right_foot": (-0.0254, -0.0481, 0.1233),
    "neck": (-0.0028, 0.2139, -0.0429),
    "left_collar": (0.0788, 0.1217, -0.0341),
    "right_collar": (-0.0818, 0.1188, -0.0386),
    "head": (0.0052, 0.0650, 0.0513),
    "left_shoulder": (0.0910, 0.0305, -0.0089),
    "right_shoulder": (-0.0960, 0.0326, -0.0091),
    "left_elbow": (0.2596, -0.0128, -0.0275),
    "right_elbow": (-0.2537, -0.0133, -0.0214),
    "left_wrist": (0.2492, 0.0090, -0.0012),
    "right_wrist": (-0.2553, 0.0078, -0.0056),
    "left_hand": (0.0840, -0.0082, -0.0149),
    "right_hand": (-0.0846, -0.0061, -0.0103),
}

#: Anny bones (without side) that start a joint's group; every other bone belongs to its nearest ancestor's joint.
#: The thumb stays with the wrist, as a hand that closes about the knuckles should not drag it along.
_GROUP_STARTS: Final[dict[str, str]] = {
    "root": "pelvis",
    "upperleg01": "hip",
    "lowerleg01": "knee",
    "foot": "ankle",
    **{f"toe{toe}-1": "foot" for toe in range(1, 6)},
    "spine04": "spine1",
    "spine02": "spine2",
    "spine01": "spine3",
    "neck01": "neck",
    "head": "head",
    "clavicle": "collar",
    "upperarm01": "shoulder",
    "lowerarm01": "elbow",
    "wrist": "wrist",
    **{f"finger{finger}-1": "hand" for finger in range(2, 6)},
}


class _Anchor(NamedTuple):
    """A joint as a weighted mean of Anny's bone heads, plus an offset that grows with the trunk.

    Some bone heads do not keep their place under the skin as the phenotype changes: the knee's is 3 cm too high in
    short persons and at its place in tall ones. Such a joint is where the bones of the mean person have it, and moves
    from person to person by `skin_share` with the ring of skin that bends at it, otherwise with the bones.
    """

    bones: tuple[tuple[str, float], ...]
    offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    skin_share: float = 0.0


#: Limb joints sit at Anny's own bone heads. SMPL's hips are lower and closer together than the anatomical ones, its
#: spine runs through the middle of the trunk rather than the vertebrae, and its collars lie in the upper chest; the
#: offsets (measured on the mean body in Anny's pose) put these joints where SMPL has them relative to the surface.
_ANCHORS: Final[dict[str, _Anchor]] = {
    "pelvis": _Anchor((("root", 1.0),), (0.0, 0.025, 0.011)),
    "spine1": _Anchor((("spine04", 0.5), ("spine03", 0.5)), (0.0, 0.012, 0.015), skin_share=0.6),
    "spine2": _Anchor((("spine02", 0.75), ("spine01", 0.25)), (0.0, -0.012, 0.018), skin_share=0.75),
    "spine3": _Anchor((("spine02", 0.5), ("spine01", 0.5)), (0.0, 0.006, 0.049), skin_share=0.75),
    "neck": _Anchor((("neck01", 1.0),), skin_share=0.3),
    "head": _Anchor((("neck03", 0.5), ("head", 0.5)), (0.0, -0.010, 0.026)),
    "hip": _Anchor((("upperleg01", 1.0),), (-0.034, -0.044, 0.006), skin_share=0.5),
    "knee": _Anchor((("lowerleg01", 1.0),), (0.0, -0.015, 0.0), skin_share=1.0),
    "ankle": _Anchor((("foot", 1.0),)),
    "foot": _Anchor((("toe2-1", 1.0),), (0.0, -0.012, 0.0)),
    "collar": _Anchor((("clavicle", 0.5), ("shoulder01", 0.5)), (0.013, -0.044, -0.004), skin_share=0.3),
    "shoulder": _Anchor((("upperarm01", 1.0),), skin_share=0.5),
    "elbow": _Anchor((("lowerarm01", 1.0),), skin_share=0.5),
    "wrist": _Anchor((("wrist", 1.0),)),
    "hand": _Anchor((("finger2-1", 0.5), ("finger4-1", 0.5))),
}

#: SMPL's trunk leans back a little over its legs: rotation about x of the joints that carry it; the head stays upright.
_TRUNK_LEAN_DEG: Final[dict[str, float]] = {"spine1": -1.0, "spine2": -2.0, "spine3": -3.0, "neck": -1.5}

#: Bones turned to SMPL's directions, parents first: the joint that turns, the joint that its bone ends in.
_LIMBS: Final = (
    ("hip", "knee"), ("knee", "ankle"), ("ankle", "foot"), ("collar", "shoulder"), ("shoulder", "elbow"),
    ("elbow", "wrist"), ("wrist", "hand"),
)  # fmt: skip

#: Newton's method is at rounding error after six to eight.
_NEWTON_STEPS: Final = 20
MIRROR: Final = np.array([-1.0, 1.0, 1.0])
MIRRORED_JOINTS: Final = mirrored(SMPL24)
_PARENTS: Final = np.array(SMPL24_PARENTS)
_LEFT_RIGHT: Final = (("left_", ".L", np.ones(3)), ("right_", ".R", MIRROR))


def smpl_bone_directions() -> Float64[ndarray, "joints 3"]:
    """Unit vectors from parent to joint in SMPL's rest pose, made symmetric; zero for the root."""
    offsets = np.array([SMPL_REST_OFFSETS_M.get(name, (0.0, 0.0, 0.0)) for name in SMPL24])
    offsets = (offsets + MIRROR * offsets[list(MIRRORED_JOINTS)]) / 2
    lengths = np.linalg.norm(offsets, axis=-1, keepdims=True)
    return offsets / np.where(lengths > 0, lengths, 1.0)


def merge_bones(labels: list[str], parents: list[int]) -> Int64[ndarray, " bones"]:
    """The joint that each Anny bone belongs to."""
    joints: list[int] = []
    for label, parent in zip(labels, parents, strict=True):
        base, _, side = label.partition(".")
        if base in _GROUP_STARTS:
            prefix = {"": "", "L": "left_", "R": "right_"}[side]
            joints.append(SMPL24.index(prefix + _GROUP_STARTS[base]))
        else:
            assert 0 <= parent < len(joints), f"bone {label} comes before its parent"
            joints.append(joints[parent])
    return np.array(joints, dtype=np.int64)


def place_joints(
    heads: Float64[ndarray, "batch bones 3"],
    labels: list[str],
    vertices: Float64[ndarray, "batch vertices 3"],
    weights: Float64[ndarray, "vertices joints"],
    areas: Float64[ndarray, " vertices"],
) -> Float64[ndarray, "batch joints 3"]:
    """SMPL's joints in Anny's rest pose.

    Args:
        heads: Where Anny's bones start.
        labels: Their names.
        vertices: The same persons' surface.
        weights: Skin weights of SMPL's joints.
        areas: How much of the surface each vertex stands for.
    """
    at = {label: heads[:, index] for index, label in enumerate(labels)}
    trunk = np.linalg.norm(at["neck01"] - at["root"], axis=-1, keepdims=True)
    scale = trunk / trunk.mean()
    joints = np.zeros((len(heads), len(SMPL24), 3))
    for name, anchor in _ANCHORS.items():
        for prefix, suffix, side in (("", "", np.ones(3)),) if name in SMPL24 else _LEFT_RIGHT:
            joint = SMPL24.index(prefix + name)
            bones = np.sum([share * at[bone + suffix] for bone, share in anchor.bones], axis=0)
            joints[:, joint] = bones + scale * (np.array(anchor.offset_m) * side)
            if anchor.skin_share:
                bend = areas * weights[:, joint] * weights[:, SMPL24_PARENTS[joint]]
                ring = _centred_weights(bend, vertices.mean(axis=0), joints[:, joint].mean(axis=0))
                skin_place = np.einsum("v,bvc->bc", ring, vertices)
                joints[:, joint] += anchor.skin_share * (skin_place - joints[:, joint])
    return (joints + MIRROR * joints[:, list(MIRRORED_JOINTS)]) / 2


def _centred_weights(
    weights: Float64[ndarray, " points"], points: Float64[ndarray, "points 3"], center: Float64[ndarray, "3"]
) -> Float64[ndarray, " points"]:
    """The positive weights nearest to given ones (in relative entropy) whose weighted mean is `center`.

    They are w exp(slope . x) up to scale; Newton's method on the convex dual log sum w exp(slope . (x - center)).
    """
    used = weights > 0
    offsets, slope = points[used] - center, np.zeros(3)
    for _ in range(_NEWTON_STEPS):
        exponent = offsets @ slope
        tilted = weights[used] * np.exp(exponent - exponent.max())
        tilted /= tilted.sum()
        mean = tilted @ offsets
        slope -= np.linalg.solve((offsets * tilted[:, None]).T @ offsets - np.outer(mean, mean), mean)
    assert np.linalg.norm(mean) < 1e-9, "the joint lies outside its ring of skin"
    result = np.zeros_like(weights)
    result[used] = tilted
    return result


def rest_rotations(joints: Float64[ndarray, "batch joints 3"]) -> Float64[ndarray, "batch joints 3 3"]:
    """World rotations of the joints that take Anny's rest pose to SMPL's.

    Each limb bone swings by the smallest rotation from where its parent carries it, so the elbow stretches in its own
    hinge plane; the foot swings from where Anny has it, so its sole stays level.
    """
    directions = smpl_bone_directions()
    world = np.broadcast_to(np.eye(3), (*joints.shape[:2], 3, 3)).copy()
    for name, degrees in _TRUNK_LEAN_DEG.items():
        world[:, SMPL24.index(name)] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    for prefix in ("left_", "right_"):
        for start, end in _LIMBS:
            joint, child = SMPL24.index(prefix + start), SMPL24.index(prefix + end)
            carried = np.eye(3) if start == "ankle" else world[:, _PARENTS[joint]]
            bone = (carried @ (joints[:, child] - joints[:, joint])[..., None])[..., 0]
            world[:, joint] = _swing(bone, directions[child]) @ carried
            world[:, child] = world[:, joint]
    return world


def pose_joints(
    joints: Float64[ndarray, "batch joints 3"], world: Float64[ndarray, "batch joints 3 3"]
) -> Float64[ndarray, "batch joints 3"]:
    """Where the joints go when each turns by its world rotation and the root stays in place."""
    posed = joints.copy()
    for joint, parent in enumerate(SMPL24_PARENTS):
        if parent >= 0:
            bone = joints[:, joint] - joints[:, parent]
            posed[:, joint] = posed[:, parent] + (world[:, parent] @ bone[..., None])[..., 0]
    return posed


def skin(
    vertices: Float64[ndarray, "batch vertices 3"],
    joints: Float64[ndarray, "batch joints 3"],
    weights: Float64[ndarray, "vertices joints"],
    world: Float64[ndarray, "batch joints 3 3"],
) -> Float64[ndarray, "batch vertices 3"]:
    """Linear blend skinning with world rotations; the root stays in place."""
    shifts = pose_joints(joints, world) - (world @ joints[..., None])[..., 0]
    bones = np.concatenate([world, shifts[..., None]], axis=-1).reshape(len(world), -1, 12)
    posed = np.empty_like(vertices)
    for index, person in enumerate(vertices):
        blended = (weights @ bones[index]).reshape(-1, 3, 4)
        posed[index] = (blended[..., :3] @ person[..., None])[..., 0] + blended[..., 3]
    return posed


def _swing(vectors: Float64[ndarray, "batch 3"], direction: Float64[ndarray, "3"]) -> Float64[ndarray, "batch 3 3"]:
    """The smallest rotation that turns each vector along a unit direction, none of them opposite to it."""
    axis = np.cross(vectors, direction)
    sine = np.linalg.norm(axis, axis=-1)
    angle = np.arctan2(sine, vectors @ direction)
    # A vector that already points there has no axis; its angle is zero, so any denominator will do.
    return Rotation.from_rotvec(axis * (angle / np.where(sine > 0, sine, 1.0))[:, None]).as_matrix()
