"""Convex regressors from vertices to joints, by non-negative least squares, and posed bodies to fit them on."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from scipy.optimize import nnls
from scipy.sparse import csr_matrix
from scipy.spatial.transform import Rotation

from bodies.joints import SMPL24, SMPL24_PARENTS
from bodies.standin_rig import MIRRORED_JOINTS, skin

#: How many of the vertices nearest to a joint may be used: this fraction of the mesh, and at least that many. With
#: fewer, no combination follows a joint that lies deep in the trunk.
_CANDIDATE_FRACTION: Final = 0.1
_FEWEST_CANDIDATES: Final = 160
#: Weight of the equations weight x distance = 0, which keep a combination near its joint and spread over many vertices.
_LOCALITY: Final = 0.015
#: Weight in metres of the equation that a row sums to one: far above any residual.
_SUM_WEIGHT: Final = 100.0
#: Values are multiples of 1 / _ROW_STEPS, which float32 holds exactly.
_ROW_STEPS: Final = 1 << 16

#: Standard deviation in radians of random poses, per axis; where nothing is said it is the first number.
_POSE_SPREAD: Final = {"": 0.2, "hip": 0.6, "shoulder": 0.7, "wrist": 0.4, "ankle": 0.3}
#: Joints that bend about one axis only, from stretched to `_LARGEST_BEND_RAD`: its place in axis-angle, and the sign.
_HINGES: Final = {"left_knee": (0, 1), "right_knee": (0, 1), "left_elbow": (1, -1), "right_elbow": (1, 1)}
_LARGEST_BEND_RAD: Final = 2.2


def round_rows(rows: Float64[ndarray, "rows columns"], steps: int) -> Float64[ndarray, "rows columns"]:
    """Scales non-negative rows to sum to one and rounds them to multiples of 1 / steps, by the largest remainder.

    The rounded rows sum to exactly one.
    """
    scaled = rows / rows.sum(axis=-1, keepdims=True) * steps
    # What is a whole number but for rounding errors stays one: the result must not depend on the machine.
    whole = np.floor(scaled + 1e-6)
    missing = np.rint(steps - whole.sum(axis=-1)).astype(int)
    assert (missing >= 0).all()
    remainders = np.round(scaled - whole, 6)
    ranks = np.argsort(np.argsort(-remainders, axis=-1, kind="stable"), axis=-1, kind="stable")
    return (whole + (ranks < missing[:, None])) / steps


def convex_regressor(
    vertices: Float64[ndarray, "equations vertices 3"],
    joints: Float64[ndarray, "equations joints 3"],
    mirror: Int64[ndarray, " vertices"],
    allowed: Bool[ndarray, " vertices"],
) -> csr_matrix:
    """Convex combinations of nearby vertices that reproduce joints.

    Args:
        vertices: The rest template first, then whatever else must come out right: further bodies, or displacements.
        joints: Those of each body, or their displacements.
        mirror: The vertex on the other side of the body.
        allowed: Vertices that may be used.

    Returns:
        (joints, vertices), symmetric, rows sum to exactly one.
    """
    count = max(_FEWEST_CANDIDATES, int(_CANDIDATE_FRACTION * vertices.shape[1]))
    dense = np.zeros((joints.shape[1], vertices.shape[1]))
    for joint in range(joints.shape[1]):
        distance = np.linalg.norm(vertices[0] - joints[0, joint], axis=-1)
        near = np.sort(np.argsort(np.where(allowed, distance, np.inf), kind="stable")[:count])
        system = np.concatenate(
            [
                vertices[:, near].transpose(0, 2, 1).reshape(-1, count),
                np.full((1, count), _SUM_WEIGHT),
                np.diag(_LOCALITY * distance[near]),
            ]
        )
        wanted = np.concatenate([joints[:, joint].ravel(), [_SUM_WEIGHT], np.zeros(count)])
        dense[joint, near] = nnls(system, wanted)[0]
    return csr_matrix(round_rows((dense + dense[list(MIRRORED_JOINTS)][:, mirror]) / 2, _ROW_STEPS))


def pose_bodies(
    rest: Float64[ndarray, "batch vertices 3"],
    joint_regressor: csr_matrix,
    weights: Float64[ndarray, "vertices joints"],
    rng: np.random.Generator,
) -> tuple[Float64[ndarray, "batch vertices 3"], Float64[ndarray, "batch joints 3"]]:
    """Puts each body into a random pose; the root stays in place.

    Returns:
        Vertices, and joints of the kinematic chain.
    """
    joints = np.stack([joint_regressor @ body for body in rest])
    world = _random_rotations(len(rest), rng)
    # A joint is carried by its own bone as a vertex with that weight alone would be.
    carried = np.concatenate([weights, np.eye(weights.shape[1])])
    posed = skin(np.concatenate([rest, joints], axis=1), joints, carried, world)
    return posed[:, : rest.shape[1]], posed[:, rest.shape[1] :]


def _random_rotations(batch: int, rng: np.random.Generator) -> Float64[ndarray, "batch joints 3 3"]:
    """World rotations of upright bodies whose knees and elbows bend as hinges and whose other joints turn freely."""
    spread = np.array([_POSE_SPREAD.get(name.partition("_")[2], _POSE_SPREAD[""]) for name in SMPL24])
    spread[0] = 0.0
    turns = rng.normal(size=(batch, len(SMPL24), 3)) * spread[:, None]
    for name, (axis, sign) in _HINGES.items():
        turns[:, SMPL24.index(name)] = 0.0
        turns[:, SMPL24.index(name), axis] = sign * rng.uniform(0.0, _LARGEST_BEND_RAD, size=batch)
    local = Rotation.from_rotvec(turns.reshape(-1, 3)).as_matrix().reshape(*turns.shape[:2], 3, 3)
    world = local.copy()
    for joint, parent in enumerate(SMPL24_PARENTS):
        if parent >= 0:
            world[:, joint] = world[:, parent] @ local[:, joint]
    return world
