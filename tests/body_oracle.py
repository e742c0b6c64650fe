"""SMPL written anew in numpy, one joint and one vertex at a time, as the oracle of the converters' tests."""

from pathlib import Path

import numpy as np
import tiny
from scipy.spatial.transform import Rotation

from bodies.joints import SMPL24_PARENTS

#: By SURREAL's code of the gender and by 3DPW's letter.
SEEDS = {"female": 11, "male": 12}


def model(gender: str) -> dict[str, object]:
    """The arrays of the small body of a gender; the rest pelvis of one is not that of the other."""
    arrays = tiny.model_arrays(60, seed=SEEDS[gender])
    shift = {"female": 0.0, "male": 0.03}[gender]
    return {**arrays, "v_template": arrays["v_template"] + shift}


def write_models(folder: Path) -> Path:
    """Both models as the official downloads name them."""
    folder.mkdir(parents=True)
    for gender in SEEDS:
        tiny.write_pkl(folder / f"basicModel_{gender[0]}_lbs_10_207_0_v1.0.0.pkl", model(gender))
    return folder


def rest_joints(arrays: dict[str, object], betas: np.ndarray) -> np.ndarray:
    return arrays["J_regressor"].toarray() @ (arrays["v_template"] + arrays["shapedirs"] @ betas)


def posed(arrays: dict[str, object], pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> tuple:
    """Vertices and joints of one body: pose (72,), betas (10,), transl (3,)."""
    local = Rotation.from_rotvec(pose.reshape(24, 3)).as_matrix()
    rest = arrays["v_template"] + arrays["shapedirs"] @ betas
    joints = arrays["J_regressor"].toarray() @ rest
    bent = rest + arrays["posedirs"] @ (local[1:] - np.eye(3)).ravel()
    world = []
    for joint, parent in enumerate(SMPL24_PARENTS):
        step = np.eye(4)
        step[:3, :3] = local[joint]
        step[:3, 3] = joints[joint] - (joints[parent] if joint else 0)
        world.append(world[parent] @ step if joint else step)
    vertices = np.zeros_like(bent)
    for vertex, weights in enumerate(arrays["weights"]):
        for joint, weight in enumerate(weights):
            point = world[joint][:3, :3] @ (bent[vertex] - joints[joint]) + world[joint][:3, 3]
            vertices[vertex] += weight * point
    return vertices + transl, np.array([matrix[:3, 3] for matrix in world]) + transl
