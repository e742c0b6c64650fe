"""SMPL-X models made from SMPL models, so that what a body of one is in the other is known.

The body's 22 joints and the shape coefficients are SMPL's; SMPL's hands become the first joints of the index fingers;
expression coefficient k does half of what shape coefficient k does; the whole stands elsewhere (`SHIFT`), so the rest
pelvis is another one. All that SMPL does not know (jaw, eyes, other fingers) moves nothing.
"""

from pathlib import Path

import numpy as np
import scipy.sparse
from scipy.spatial.transform import Rotation

#: Written out here, independently of the reader's table: vchoutas/smplx, `kintree_table` of SMPLX_NEUTRAL.npz.
PARENTS = (
    -1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15,
    20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38,
    21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53,
)  # fmt: skip
JOINTS = 55
LEFT_INDEX, RIGHT_INDEX = 25, 40
#: SMPL's joints in SMPL-X.
FROM_SMPL = (*range(22), LEFT_INDEX, RIGHT_INDEX)
#: Where SMPL-X's origin is, seen from SMPL's.
SHIFT = np.array([0.004, -0.12, -0.01])
EXPRESSION_SHARE = 0.5


def dense(matrix) -> np.ndarray:
    return matrix.toarray() if scipy.sparse.issparse(matrix) else np.asarray(matrix)


def model_arrays(smpl: dict, *, columns: int = 400, seed: int = 0, subdivide: bool = True) -> dict[str, object]:
    """An SMPL-X model of the same body as an SMPL model, under the keys of an official SMPLX_*.npz.

    Args:
        smpl: Arrays of an SMPL model.
        columns: Of `shapedirs`: 400, or 20 as in version 1.0.
        seed: Of the hands' components and of what must not be used.
        subdivide: Put a vertex in the middle of each face, in front of SMPL's own vertices.
    """
    rng = np.random.default_rng(seed)
    old, faces = np.asarray(smpl["v_template"], float), np.asarray(smpl["f"]).astype(int)
    middles = len(faces) if subdivide else 0
    # The new vertices from the old ones: the middles come first, so no number is the same in both models.
    spread = scipy.sparse.identity(len(old), format="csr")
    if subdivide:
        thirds = (np.full(3 * middles, 1 / 3), (np.repeat(np.arange(middles), 3), faces.ravel()))
        spread = scipy.sparse.vstack([scipy.sparse.csr_matrix(thirds, shape=(middles, len(old))), spread]).tocsr()
    shape = np.asarray(smpl["shapedirs"], float)[..., :10]
    count = spread.shape[0]
    directions = rng.normal(size=(count, 3, columns))  # garbage where nothing may be read
    start = 300 if columns >= 400 else 10
    directions[..., :10] = (spread @ shape.reshape(len(old), -1)).reshape(count, 3, -1)
    directions[..., start : start + 10] = EXPRESSION_SHARE * directions[..., :10]
    weights = np.zeros((count, JOINTS))
    weights[:, FROM_SMPL] = spread @ np.asarray(smpl["weights"], float)
    regressor = np.zeros((JOINTS, count))
    rows = [FROM_SMPL.index(joint) if joint in FROM_SMPL else 0 for joint in range(JOINTS)]
    regressor[:, middles:] = dense(smpl["J_regressor"])[rows]
    bends = np.zeros((count, 3, 54, 9), np.float32 if "posedirs" in smpl else np.float16)
    if "posedirs" in smpl:
        given = (spread @ np.asarray(smpl["posedirs"], float).reshape(len(old), -1)).reshape(count, 3, 23, 9)
        bends[:, :, [joint - 1 for joint in FROM_SMPL[1:]]] = given
    a, b, c = (faces[:, corner] + middles for corner in range(3))
    m = np.arange(len(faces))
    split = np.concatenate([np.stack(part, axis=1) for part in ((a, b, m), (b, c, m), (c, a, m))])
    return {
        "v_template": spread @ old + SHIFT,
        "shapedirs": directions,
        "posedirs": bends.reshape(count, 3, 486),
        "weights": weights,
        "J_regressor": regressor,
        "kintree_table": np.array([PARENTS, range(JOINTS)]).astype(np.uint32),
        "f": (split if subdivide else faces).astype(np.uint32),
        **{f"hands_mean{side}": rng.normal(scale=0.3, size=45) for side in "lr"},
        **{f"hands_components{side}": rng.normal(scale=0.3, size=(45, 45)) for side in "lr"},
        "joint2num": np.array({"Pelvis": 0}, object),  # an object, as the official file has; never read
    }


def write_model(path: Path, arrays: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def transfer_matrix(smplx: dict, smpl: dict) -> scipy.sparse.csr_matrix:
    """SMPL's vertices are the last ones of SMPL-X."""
    old, new = len(smpl["v_template"]), len(smplx["v_template"])
    return scipy.sparse.csr_matrix((np.ones(old), (np.arange(old), np.arange(new - old, new))), shape=(old, new))


def random_parameters(rng: np.random.Generator, bend: float = 0.3) -> dict[str, np.ndarray]:
    """One body under the keys and in the shapes of a body file of RICH."""
    sizes = {
        "body_pose": 63, "jaw_pose": 3, "leye_pose": 3, "reye_pose": 3, "left_hand_pose": 12, "right_hand_pose": 12,
        "global_orient": 3,
    }  # fmt: skip
    parameters = {key: rng.normal(scale=bend, size=(1, size)).astype(np.float32) for key, size in sizes.items()}
    for key in ("betas", "expression"):
        parameters[key] = rng.normal(scale=0.8, size=(1, 10)).astype(np.float32)
    return {**parameters, "transl": rng.normal(size=(1, 3)).astype(np.float32)}


def in_smpl(parameters: dict[str, np.ndarray], smplx: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose (72,), betas (10,) and translation of the same body in SMPL."""
    given = {key: np.asarray(value, float).reshape(-1) for key, value in parameters.items()}
    fingers = [
        (smplx[f"hands_mean{side}"] + given[f"{hand}_hand_pose"] @ smplx[f"hands_components{side}"][:12])[:3]
        for side, hand in (("l", "left"), ("r", "right"))
    ]
    pose = np.concatenate([given["global_orient"], given["body_pose"], *fingers])
    # Angles beyond half a turn are the same rotation by another name.
    pose = Rotation.from_rotvec(pose.reshape(24, 3)).as_rotvec().reshape(72)
    return pose, given["betas"] + EXPRESSION_SHARE * given["expression"], given["transl"] + SHIFT
