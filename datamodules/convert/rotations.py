"""Rotations as regressors write them, turned into SMPL's axis-angle.

Six numbers mean the first two columns a, b of a rotation matrix, in one of two orders that look alike:

* "interleaved", a 3 x 2 matrix row by row: a0 b0 a1 b1 a2 b2 (HMR, SPIN, PARE, CLIFF, mmhuman3d, VPoser).
* "columns", a then b: a0 a1 a2 b0 b1 b2 (ProHMR).

Sources: nkolot/SPIN `utils/geometry.py` and nkolot/ProHMR `prohmr/utils/geometry.py`, `rot6d_to_rotmat`; Zhou et al.,
"On the continuity of rotation representations in neural networks", CVPR 2019, section 4.2.
"""

from typing import Final, Literal, assert_never

import numpy as np
import roma
import torch
from jaxtyping import Bool, Float, Float32, Float64
from numpy import ndarray
from rich.progress import track
from torch import Tensor

SixNumbers = Literal["interleaved", "columns"]

#: What should be 0 or 1 in a basis may be off by this much in a network's float32 (or float16) output.
ORTHONORMAL_TOLERANCE: Final = 1e-2
#: Bodies converted at a time, some 28 MB of matrices.
_BLOCK: Final = 16384
#: More bodies than this show a progress bar.
_QUICK_BODIES: Final = 100_000
#: Columns shorter than this have no direction.
_NO_LENGTH: Final = 1e-8


def matrices_from_6d(values: Float[ndarray, "*batch 6"], layout: SixNumbers) -> Float[ndarray, "*batch 3 3"]:
    """Rotation matrices by Gram-Schmidt; NaN where the two columns do not span a plane."""
    match layout:
        case "interleaved":
            columns = values.reshape(*values.shape[:-1], 3, 2)
            first, second = columns[..., 0], columns[..., 1]
        case "columns":
            first, second = values[..., :3], values[..., 3:]
        case _:
            assert_never(layout)
    first = _unit(first)
    second = _unit(second - (first * second).sum(axis=-1, keepdims=True) * first)
    return np.stack([first, second, np.cross(first, second)], axis=-1)


def matrices_to_pose(
    rotations: Float[ndarray, "rows samples 24 3 3"],
) -> tuple[Float32[ndarray, "rows samples 72"], Bool[ndarray, " rows"]]:
    """Axis-angle in radians, and which rows hold nothing but rotations; the other rows are NaN."""
    rows, samples = rotations.shape[:2]
    pose = np.full((rows, samples, 72), np.nan, np.float32)
    good = np.zeros(rows, bool)
    step = max(1, _BLOCK // samples)
    quick = rows * samples < _QUICK_BODIES
    for first in track(range(0, rows, step), "converting rotations", transient=True, disable=quick):
        block = torch.tensor(rotations[first : first + step], dtype=torch.float64)
        block_good = _are_rotations(block)
        vectors = roma.rotmat_to_rotvec(block[block_good]).flatten(2).float().numpy()
        good[first : first + step] = block_good.numpy()
        pose[first : first + step][good[first : first + step]] = vectors
    return pose, good


def _are_rotations(rotations: Float64[Tensor, "rows samples 24 3 3"]) -> Bool[Tensor, " rows"]:
    """A right-handed orthonormal basis: unit columns a and b at right angles, and a x b the third."""
    first, second, third = rotations.unbind(-1)
    errors = (
        (first * first).sum(-1) - 1,
        (second * second).sum(-1) - 1,
        (first * second).sum(-1),
        (torch.linalg.cross(first, second) - third).abs().amax(-1),
    )
    # Written so that NaN fails.
    return torch.stack([(error.abs() <= ORTHONORMAL_TOLERANCE).all(dim=2).all(dim=1) for error in errors]).all(dim=0)


def _unit(vectors: Float[ndarray, "*batch 3"]) -> Float[ndarray, "*batch 3"]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.full_like(vectors, np.nan), where=length > _NO_LENGTH)
