"""Reads SMPL-X model files (.npz or .pkl) and poses them, hands and expression included.

SMPL-X is SMPL with more joints and one more set of shape coefficients, so the arrays go into a `BodyModel` of 55 joints
whose betas are the shape's and then the expression's. What is easy to get wrong, and how it is read here:

* `shapedirs` has 400 columns, 300 of shape and 100 of expression, or in version 1.0 10 and 10. The expression begins
  at column 300 or 10, whatever number of coefficients is used.
* Hand poses are coefficients of principal components (rows of `hands_componentsl` and `hands_componentsr`) and are
  added to the mean hand, which is not flat (smplx's `num_pca_comps`, `flat_hand_mean=False`).
* Joints are in the order body (22), jaw, left eye, right eye, left hand (15), right hand (15).
* The root turns about the rest pelvis, which is elsewhere than SMPL's.

A .pkl is read through `bodies.safe_pickle`, so neither chumpy nor trust in the file is needed; of an .npz only the
arrays that are needed are read. Source: vchoutas/smplx `body_models.py` (class SMPLX).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import roma
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from scipy.sparse import csr_matrix, issparse
from torch import Tensor

from bodies.body_model import BodyMesh, BodyModel, BodyParameters
from bodies.errors import InputError
from bodies.joints import SMPL24_PARENTS
from bodies.model_data import BodyModelData
from bodies.model_files import WEIGHT_SUM_TOLERANCE, Gender
from bodies.safe_pickle import load_pickle
from datamodules.convert.archives import read_npz
from datamodules.convert.fields import Fields

#: Joints that SMPL has as well, in the same order: all of its body but the two hands.
BODY_JOINTS: Final = 22
HAND_JOINTS: Final = 15
#: Three joints to a finger: index, middle, little, ring and thumb.
_LEFT_HAND: Final = (20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38)
_RIGHT_HAND: Final = (21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53)
#: Jaw and eyes hang on the head.
SMPLX_PARENTS: Final = (*SMPL24_PARENTS[:BODY_JOINTS], 15, 15, 15, *_LEFT_HAND, *_RIGHT_HAND)
#: Where the expression begins among the columns of `shapedirs`, if there are at least that many columns.
_EXPRESSION_STARTS: Final = ((400, 300), (20, 10))
_NO_PARENT: Final = 2**32 - 1
#: Larger numbers are damage, and single precision would not survive them.
MAX_PARAMETER: Final = 1e4
_HANDS: Final = ("l", "r")
_NEEDED: Final = (
    "v_template", "shapedirs", "posedirs", "weights", "J_regressor", "kintree_table", "f",
    *(f"hands_{part}{side}" for part in ("mean", "components") for side in _HANDS),
)  # fmt: skip
#: Where models lie below the folder that a user names.
_SUBFOLDERS: Final = ("", "smplx", "models/smplx", "models", "body_models/smplx")


@dataclass(frozen=True)
class SmplxParameters:
    """Bodies as SMPL-X is told about them; angles are axis-angle in radians, frames are whatever the file says."""

    global_orient: Float32[ndarray, "batch 3"]
    """Rotation of the root, about the rest pelvis."""
    body_pose: Float32[ndarray, "batch 63"]
    """Joints 1 to 21."""
    jaw_pose: Float32[ndarray, "batch 3"]
    """Joint 22."""
    leye_pose: Float32[ndarray, "batch 3"]
    """Joint 23."""
    reye_pose: Float32[ndarray, "batch 3"]
    """Joint 24."""
    left_hand_pose: Float32[ndarray, "batch components"]
    """Coefficients of the hand's principal components."""
    right_hand_pose: Float32[ndarray, "batch components"]
    """The same of the other hand."""
    betas: Float32[ndarray, "batch betas"]
    """Shape coefficients."""
    expression: Float32[ndarray, "batch expressions"]
    """Expression coefficients."""
    transl: Float32[ndarray, "batch 3"]
    """Metres, added last."""

    def __len__(self) -> int:
        return len(self.transl)

    @classmethod
    def stack(cls, bodies: "list[Self]") -> Self:
        """All of them as one batch."""
        return cls(**{name: np.concatenate([getattr(body, name) for body in bodies]) for name in cls.__annotations__})

    def sound(self) -> bool:
        """Whether all numbers are finite and none is beyond what radians, coefficients and metres can be."""
        # NaN compares false.
        return all(bool((np.abs(getattr(self, name)) <= MAX_PARAMETER).all()) for name in self.__annotations__)


@dataclass(frozen=True)
class SmplxModel:
    """One SMPL-X model file."""

    body: BodyModel
    """Its 55 joints; betas are those of the shape, then those of the expression."""
    shape_betas: int
    """How many of them are of the shape."""
    hand_means: Float32[ndarray, "2 45"]
    """Pose of the mean hand, left and right."""
    hand_components: Float32[ndarray, "2 components 45"]
    """Principal components of the hand's pose, the first matters most."""

    def rotations(self, parameters: SmplxParameters) -> Float[Tensor, "batch 55 3 3"]:
        """Rotation of each joint relative to its parent."""
        hands = [
            mean + given @ components[: given.shape[1]]
            for mean, components, given in zip(
                self.hand_means,
                self.hand_components,
                (parameters.left_hand_pose, parameters.right_hand_pose),
                strict=True,
            )
        ]
        face = (parameters.jaw_pose, parameters.leye_pose, parameters.reye_pose)
        pose = np.concatenate([parameters.global_orient, parameters.body_pose, *face, *hands], axis=1)
        turned: Tensor = roma.rotvec_to_rotmat(torch.from_numpy(pose.reshape(-1, len(SMPLX_PARENTS), 3)))
        return turned

    def mesh(self, parameters: SmplxParameters) -> BodyMesh:
        """Posed vertices and joints in metres."""
        given = parameters.betas.shape[1]
        assert given <= self.shape_betas, "the model was read with fewer shape coefficients"
        unused = np.zeros((len(parameters), self.shape_betas - given), np.float32)
        betas = torch.from_numpy(np.concatenate([parameters.betas, unused, parameters.expression], axis=1))
        with torch.no_grad():
            return self.body(
                BodyParameters(self.rotations(parameters), betas, torch.from_numpy(parameters.transl.copy()))
            )


def find_smplx_model(folder: Path, gender: Gender) -> Path:
    """The file SMPLX_NEUTRAL, SMPLX_MALE or SMPLX_FEMALE (.npz or .pkl) in a folder or in `smplx` below it.

    Raises:
        InputError: If there is none; the message says what to download.
    """
    for place in (folder / below for below in _SUBFOLDERS):
        if place.is_dir():
            for file in sorted(place.iterdir()):  # .npz before .pkl: the same arrays, read faster
                if re.fullmatch(rf"smplx_{gender}\.(npz|pkl)", file.name.lower()) and file.is_file():
                    return file
    raise InputError(
        f"{folder / f'SMPLX_{gender.upper()}.npz'}: no such SMPL-X model; download SMPL-X (models_smplx_v1_1.zip) from "
        "https://smpl-x.is.tue.mpg.de (after registration) and name the folder that holds it"
    )


def read_smplx_model(path: Path, num_betas: int = 10, num_expression: int = 10) -> SmplxModel:
    """Reads and checks a model file of SMPL-X's layout, with any number of vertices.

    Args:
        path: A .npz or .pkl file.
        num_betas: How many shape coefficients to keep.
        num_expression: How many expression coefficients to keep.

    Raises:
        InputError: If the file is missing, damaged, or not SMPL-X's layout.
    """
    fields = Fields(str(path), _read(path))
    template = _finite(fields, "v_template", (None, 3))
    vertices, joints = len(template), len(SMPLX_PARENTS)
    directions = _finite(fields, "shapedirs", (vertices, 3, None))
    columns = directions.shape[2]
    start = next((start for least, start in _EXPRESSION_STARTS if columns >= least), None)
    if start is None or num_betas > start or num_expression > columns - start:
        raise InputError(
            f"{path}: 'shapedirs' has {columns} columns, too few for {num_betas} coefficients of the shape and "
            f"{num_expression} of the expression"
        )
    kept = np.concatenate([directions[..., :num_betas], directions[..., start : start + num_expression]], axis=2)
    _check_tree(fields)
    weights = _finite(fields, "weights", (vertices, joints))
    if not (np.abs(weights.sum(axis=1) - 1) <= WEIGHT_SUM_TOLERANCE).all():
        raise InputError(f"{path}: 'weights' of a vertex do not sum to one")
    data = BodyModelData(
        name=path.name,
        template=template,
        shape_directions=np.ascontiguousarray(kept),
        pose_directions=_finite(fields, "posedirs", (vertices, 3, 9 * (joints - 1))),
        joint_regressor=_regressor(fields, (joints, vertices)),
        skin_weights=weights,
        parents=np.array(SMPLX_PARENTS, np.int64),
        faces=_faces(fields, vertices),
    )
    hands = {
        part: np.stack([_finite(fields, f"hands_{part}{side}", shape) for side in _HANDS])
        for part, shape in (("mean", (3 * HAND_JOINTS,)), ("components", (3 * HAND_JOINTS, 3 * HAND_JOINTS)))
    }
    return SmplxModel(BodyModel(data), num_betas, hands["mean"], hands["components"])


def _read(path: Path) -> Mapping[str, Any]:
    match path.suffix.lower():
        case ".npz":
            content = read_npz(path, _NEEDED)
        case ".pkl":
            content = load_pickle(path)
            if not isinstance(content, dict):
                raise InputError(f"{path}: not a body model, it holds a {type(content).__name__} in place of a dict")
        case suffix:
            raise InputError(f"{path}: an SMPL-X model is a .npz or .pkl file, not {suffix or 'one without suffix'}")
    if missing := [name for name in _NEEDED if content.get(name) is None]:
        raise InputError(f"{path}: not a body model in SMPL-X's layout, it lacks {', '.join(missing)}")
    return content


def _finite(fields: Fields, name: str, shape: tuple[int | None, ...]) -> Float32[ndarray, "..."]:
    array = fields.numbers(name, shape)
    if not np.isfinite(array).all():
        raise InputError(f"{fields.where}: '{name}' has entries that are not finite")
    return array


def _check_tree(fields: Fields) -> None:
    """Poses are meaningful for SMPL-X's own tree alone, so no other is accepted."""
    table = np.asarray(fields.arrays["kintree_table"])
    if table.dtype.kind in "iuf" and table.shape == (2, len(SMPLX_PARENTS)):
        parents = np.where(table[0].astype(np.int64) == _NO_PARENT, -1, table[0].astype(np.int64))
        if np.array_equal(parents, SMPLX_PARENTS):
            return
    raise InputError(f"{fields.where}: 'kintree_table' is not SMPL-X's tree of {len(SMPLX_PARENTS)} joints")


def _regressor(fields: Fields, shape: tuple[int, int]) -> csr_matrix:
    stored = fields.arrays["J_regressor"]
    if not issparse(stored):
        return csr_matrix(_finite(fields, "J_regressor", shape))
    if stored.shape != shape or not np.isfinite(stored.data).all():
        raise InputError(f"{fields.where}: 'J_regressor' is not finite numbers of shape {shape}")
    return csr_matrix(stored).astype(np.float32)


def _faces(fields: Fields, vertices: int) -> Int64[ndarray, "faces 3"]:
    faces = np.asarray(fields.arrays["f"])
    if faces.dtype.kind not in "iu" or faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
        raise InputError(
            f"{fields.where}: 'f' is {faces.dtype} of shape {faces.shape}, expected whole numbers (any, 3)"
        )
    faces = faces.astype(np.int64)
    if faces.min() < 0 or faces.max() >= vertices:
        raise InputError(f"{fields.where}: 'f' points at vertices that are not there")
    return faces
