"""Turns SMPL-X bodies into SMPL bodies: SMPL's vertices on the SMPL-X mesh, and SMPL's parameters fitted to them.

Where SMPL's vertices lie on the mesh of SMPL-X is told by a matrix (SMPL's vertices, vertices of SMPL-X):

* the official one, if its file is there: `smplx2smpl_deftrafo_setup.pkl` of SMPL-X's `transfer_data`, key `mtx`, twice
  as wide as the mesh because its second half is for normals, which are not used here; or `smplx2smpl.pkl`, key
  `matrix`, of the mesh's own width;
* otherwise our own: the two models are brought to agree in their rest poses, which both are the same T, by a few rounds
  of moving SMPL to the closest points of SMPL-X that face the same way, along the normals rather than across, while
  the 22 common joints and the stiffness of the rest pose keep it from sliding; then the closest points of SMPL's
  vertices are the matrix. In the rest pose limbs are apart and not twisted against each other, so closest points are
  homologous ones as nearly as the surfaces tell: within about 3 mm on made models, whose vertices differ throughout.

Matrices are applied relative to the pelvis, so rows that sum to one only nearly do no harm far from the origin. The fit
starts from SMPL-X's rotations, whose first 22 joints are SMPL's; it is needed because the joints and the shape space
are others. SMPL's hands are rigid, its face is at rest: what fingers and faces do stays in the error.

Source: vchoutas/smplx `transfer_model/`, `def_transfer.py`; WHAM's and BEDLAM's evaluation code for `matrix`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray
from scipy.sparse import csr_matrix, issparse
from torch import Tensor

from bodies.body_model import BodyModel, BodyParameters
from bodies.errors import InputError
from bodies.safe_pickle import load_pickle
from datamodules.convert.closest_points import closest_points, vertex_normals
from datamodules.convert.smplx_model import BODY_JOINTS, SmplxModel, SmplxParameters
from datamodules.convert.vertex_fit import BodyPoints, FitSettings, fit_points

TRANSFER_FILES: Final = ("smplx2smpl_deftrafo_setup.pkl", "smplx2smpl.pkl")
_SUBFOLDERS: Final = ("", "transfer_data", "smplx", "smplx/transfer_data", "models/transfer_data")
#: Evenly spread vertices to which SMPL is fitted, for its 85 unknowns.
FIT_VERTICES: Final = 1000
#: How far the rows of a transfer matrix may sum from one.
_MAX_SUM_ERROR: Final = 0.02
#: How our own correspondence is found: rounds of closest points, what holds SMPL's joints at rest meanwhile, what a
#: distance along the surface weighs against one along its normal, and what all joints weigh against all vertices. With
#: other stiffness or no sliding, made models of unlike shape and slightly unlike rest poses come out worse.
_ROUNDS: Final = 12
_REST: Final = FitSettings(steps=4, stiffness_m2=1e-4)
_TANGENTIAL: Final = 0.1
_JOINT_SHARE: Final = 0.01
#: Mean distance between the two surfaces at rest beyond which they are not the same kind of body.
_MAX_REST_ERROR_M: Final = 0.02


@dataclass(frozen=True)
class SmplFits:
    """SMPL bodies that were fitted, in the frame of the SMPL-X bodies."""

    parameters: BodyParameters
    """Rotations, betas and translation of SMPL."""
    joints: Float32[ndarray, "batch joints 3"]
    """SMPL's posed joints in metres."""
    error_m: Float32[ndarray, " batch"]
    """Mean distance of all of SMPL's vertices to where the matrix wants them."""

    def __len__(self) -> int:
        return len(self.error_m)


@dataclass(frozen=True)
class SmplxToSmpl:
    """The conversion for bodies of one gender."""

    smplx: SmplxModel
    """The model that the parameters are of."""
    smpl: BodyModel
    """The model to be fitted."""
    matrix: csr_matrix
    """SMPL's vertices from those of SMPL-X."""

    def convert(self, parameters: SmplxParameters) -> SmplFits:
        """Fits SMPL to each body; bodies do not influence each other."""
        mesh = self.smplx.mesh(parameters)
        pelvis = mesh.joints[:, :1]
        centred = (mesh.vertices - pelvis).numpy()
        target = torch.from_numpy(np.stack([self.matrix @ body for body in centred]).astype(np.float32))
        rotations = torch.eye(3).repeat(len(parameters), self.smpl.num_joints, 1, 1)
        rotations[:, :BODY_JOINTS] = self.smplx.rotations(parameters)[:, :BODY_JOINTS]
        betas = torch.zeros(len(parameters), self.smpl.num_betas)
        initial = BodyParameters(rotations, betas, -self.smpl.shape_joints(betas)[:, 0])
        chosen = self.smpl.surface_order[:FIT_VERTICES]
        fitted = fit_points(self.smpl, BodyPoints.of(self.smpl, chosen), target[:, chosen], initial)
        with torch.no_grad():
            mesh_smpl = self.smpl(fitted)
        error_m = torch.linalg.vector_norm(mesh_smpl.vertices - target, dim=-1).mean(dim=1)
        there = BodyParameters(fitted.rotations, fitted.betas, fitted.transl + pelvis[:, 0])
        return SmplFits(there, (mesh_smpl.joints + pelvis).numpy(), error_m.numpy())


def find_transfer(folders: Iterable[Path]) -> Path | None:
    """The official matrix from SMPL-X to SMPL in one of the folders or in `transfer_data` below it, if it is there."""
    places = (folder / below / name for folder in folders for below in _SUBFOLDERS for name in TRANSFER_FILES)
    return next((file for file in places if file.is_file()), None)


def read_transfer(path: Path, smpl_vertices: int, smplx_vertices: int) -> csr_matrix:
    """Reads the official matrix; of a matrix for vertices and normals, the half for vertices.

    Args:
        path: The pickle.
        smpl_vertices: Rows that it has to have.
        smplx_vertices: Columns that it has to have, or half of them.

    Raises:
        InputError: If it is damaged, or not a matrix between these two meshes.
    """
    content = load_pickle(path)
    stored: Any = None
    if isinstance(content, dict):
        stored = content["mtx"] if content.get("mtx") is not None else content.get("matrix")
    if stored is None:
        raise InputError(f"{path}: not a transfer matrix, it holds no 'mtx' and no 'matrix'")
    if not issparse(stored):
        stored = np.asarray(stored)
    if stored.dtype.kind != "f" or stored.shape not in (
        (smpl_vertices, smplx_vertices),
        (smpl_vertices, 2 * smplx_vertices),
    ):
        raise InputError(
            f"{path}: the matrix is {stored.dtype} of shape {stored.shape}, expected was ({smpl_vertices}, "
            f"{smplx_vertices}) or twice as wide; is it one from SMPL-X to SMPL?"
        )
    matrix = csr_matrix(stored)[:, :smplx_vertices]
    # NaN compares false.
    if not (np.abs(np.asarray(matrix.sum(axis=1)) - 1) <= _MAX_SUM_ERROR).all():
        raise InputError(f"{path}: rows of the matrix do not sum to one")
    return matrix.astype(np.float32)


def rest_correspondence(smplx: SmplxModel, smpl: BodyModel) -> csr_matrix:
    """Our own matrix from SMPL-X to SMPL, by the mean bodies of the two models in their rest poses.

    Raises:
        InputError: If the surfaces of the two cannot be brought together.
    """
    surface, faces = smplx.body.template.double().numpy(), smplx.body.faces.numpy()
    joints = smplx.body.joint_template[:BODY_JOINTS]
    at = smpl.rest_parameters()
    at = BodyParameters(at.rotations, at.betas, (joints - smpl.joint_template[:BODY_JOINTS]).mean(dim=0)[None])
    chosen, corners = smpl.surface_order[:FIT_VERTICES], smpl.faces.numpy()
    points = BodyPoints.of(smpl, chosen, range(BODY_JOINTS))
    for _ in range(_ROUNDS):
        vertices = _vertices(smpl, at)
        normals = vertex_normals(vertices, corners)[chosen]
        near = closest_points(vertices[chosen], normals, surface, faces) @ surface
        target = torch.cat([torch.from_numpy(near.astype(np.float32)), joints])
        at = fit_points(smpl, points, target[None], at, _metric(normals), _REST)
    vertices = _vertices(smpl, at)
    matrix = closest_points(vertices, vertex_normals(vertices, corners), surface, faces)
    error_m = np.linalg.norm(matrix @ surface - vertices, axis=1).mean()
    if not error_m <= _MAX_REST_ERROR_M:
        raise InputError(
            f"{smplx.body.name} and {smpl.name}: at rest their surfaces are {1e3 * error_m:.0f} mm apart, so they are "
            "not two models of the same body"
        )
    return matrix.astype(np.float32)


def _metric(normals: Float64[ndarray, "points 3"]) -> Float32[Tensor, "both 3 3"]:
    """What distances weigh: of surface points mostly those along the normal, for surfaces may slide; of joints all."""
    along = normals[:, :, None] * normals[:, None]
    surface = _TANGENTIAL * np.eye(3) + (1 - _TANGENTIAL) * along
    joints = np.sqrt(_JOINT_SHARE * len(normals) / BODY_JOINTS) * np.eye(3)
    both = np.concatenate([surface, np.broadcast_to(joints, (BODY_JOINTS, 3, 3))])
    return torch.from_numpy(both.astype(np.float32))


def _vertices(smpl: BodyModel, at: BodyParameters) -> ndarray:
    with torch.no_grad():
        vertices: Tensor = smpl(at).vertices
    return vertices[0].double().numpy()
