"""Pose and shape errors in millimetres: functions of points, and one record of all errors per batch.

Points are in metres, errors in millimetres, one number per sample. The truth is the true body, or measured joints where
a data set has them (`true_points`). The alignment is in the name:

* mpjpe_mm, pve_mm: both bodies moved so that their pelvis is at the origin.
* n_mpjpe_mm, n_pve_mm: then the prediction scaled as fits best (Rhodin et al., "Unsupervised geometry-aware
  representation for 3D human pose estimation", ECCV 2018, "N-MPJPE").
* pa_mpjpe_mm, pa_pve_mm: the prediction rotated, scaled and shifted as fits best, never reflected (Umeyama, "Least-
  squares estimation of transformation parameters between two point patterns", TPAMI 1991).

The vertex errors use the same functions with vertices in place of joints. Everything is computed in float64, under
autocast too. A sample with a number that is not finite has NaN for its errors.
"""

from dataclasses import dataclass, fields
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies.body_model import BodyMesh, BodyModel
from bodies.joints import LSP14_FROM_H36M17

EvaluationProtocol = Literal["lsp14", "smpl24"]
"""Which joints are scored and where both bodies are aligned.

* "lsp14" (Human3.6M, 3DPW; SPIN `eval.py`): 14 joints chosen from those that the H36M regressor takes from the
  vertices; pelvis = that regressor's row 0. The truth is taken from the true vertices in the same way (3DPW), but from
  the measured joints of the samples that have them (Human3.6M), as published numbers are.
* "smpl24" (RICH in BEDLAM's and WHAM's evaluation): the 24 joints of the chain; pelvis = midpoint of the hips. They are
  those of a body and cannot be measured.
"""

_MM_PER_M = 1000.0
#: Spread (m^2) below which points count as one point: a cloud of a nanometre. Dividing by less is rounding noise.
_NO_SPREAD_M2 = 1e-18


def align_root(
    points: Float[Tensor, "batch points 3"], root: Float[Tensor, "batch 3"]
) -> Float[Tensor, "batch points 3"]:
    """The points seen from the root."""
    return points - root[:, None]


def mpjpe_mm(
    predicted: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]
) -> Float[Tensor, " batch"]:
    """Mean distance of corresponding points, as they are: align the roots first (`align_root`).

    Args:
        predicted: Points in metres.
        target: True points in metres.

    Returns:
        Errors in millimetres, float64.
    """
    distance = torch.linalg.vector_norm(predicted.double() - target.double(), dim=-1).mean(dim=-1)
    # A difference of infinities is NaN, but that of one infinity is not.
    return torch.where(distance.isfinite(), distance, torch.nan) * _MM_PER_M


def n_mpjpe_mm(
    predicted: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]
) -> Float[Tensor, " batch"]:
    """Mean distance after the prediction was scaled about the origin by the least-squares factor.

    Align the roots first (`align_root`). The factor is not negative: that would be a reflection. If all predicted
    points are at the origin no factor changes them.

    Args:
        predicted: Root-aligned points in metres.
        target: True root-aligned points in metres.

    Returns:
        Errors in millimetres, float64.
    """
    predicted, target = predicted.double(), target.double()
    scale = _divided((predicted * target).sum(dim=(1, 2)), predicted.square().sum(dim=(1, 2))).clamp(min=0.0)
    return mpjpe_mm(scale[:, None, None] * predicted, target)


def pa_mpjpe_mm(
    predicted: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]
) -> Float[Tensor, " batch"]:
    """Mean distance after the best similarity transform of the prediction (Procrustes), see `procrustes_align`.

    Args:
        predicted: Points in metres.
        target: True points in metres.

    Returns:
        Errors in millimetres, float64.
    """
    return mpjpe_mm(procrustes_align(predicted, target), target)


def procrustes_align(
    predicted: Float[Tensor, "batch points 3"], target: Float[Tensor, "batch points 3"]
) -> Float[Tensor, "batch points 3"]:
    """The prediction rotated, scaled and shifted to the least squared distance from the target; no reflection.

    Defined for every finite input: points on a line leave the turn about that line open, which moves none of them;
    points in one place go to the target's centre. A sample that is not finite becomes NaN and leaves the others alone.

    Source: Umeyama 1991, equations 39 to 43.
    """
    predicted, target = predicted.double(), target.double()
    finite = (predicted.isfinite() & target.isfinite()).all(dim=2).all(dim=1)[:, None, None]
    # One sample that is not finite would make the SVD refuse the whole batch.
    predicted, target = predicted.where(finite, 0.0), target.where(finite, 0.0)
    centre = target.mean(dim=1, keepdim=True)
    source = predicted - predicted.mean(dim=1, keepdim=True)
    left, singular, right = torch.linalg.svd(source.mT @ (target - centre))
    handedness = torch.linalg.det(left @ right).sign()
    signs = torch.stack([torch.ones_like(handedness), torch.ones_like(handedness), handedness], dim=1)
    scale = _divided((singular * signs).sum(dim=1), source.square().sum(dim=(1, 2)))
    # Rows are points: source @ (left diag(signs) right) turns them.
    aligned = scale[:, None, None] * source @ (left * signs[:, None]) @ right + centre
    return aligned.where(finite, torch.nan)


def _divided(numerator: Tensor, spread_m2: Tensor) -> Tensor:
    """The quotient, or zero where the points have no spread."""
    has_spread = spread_m2 > _NO_SPREAD_M2
    return torch.where(has_spread, numerator / torch.where(has_spread, spread_m2, 1.0), 0.0)


@dataclass(frozen=True)
class EvaluationPoints:
    """The points of each body that are scored, in metres, in any one frame."""

    joints: Float[Tensor, "batch joints 3"]
    """The protocol's joints; NaN where there are no true ones."""
    vertices: Float[Tensor, "batch verts 3"]
    """All vertices; NaN where there is no true mesh (motion capture without a body), which makes the vertex errors
    NaN."""
    pelvis: Float[Tensor, "batch 3"]
    """The point that is moved to the origin."""


@dataclass(frozen=True)
class PoseErrors:
    """The six errors of each sample, in millimetres; the alignment is in the name (see the module's docstring)."""

    mpjpe_mm: Float[Tensor, " batch"]
    """Joints, pelvis aligned."""
    pa_mpjpe_mm: Float[Tensor, " batch"]
    """Joints, best similarity."""
    n_mpjpe_mm: Float[Tensor, " batch"]
    """Joints, pelvis aligned, best scale."""
    pve_mm: Float[Tensor, " batch"]
    """Vertices, pelvis aligned."""
    pa_pve_mm: Float[Tensor, " batch"]
    """Vertices, best similarity."""
    n_pve_mm: Float[Tensor, " batch"]
    """Vertices, pelvis aligned, best scale."""

    def stack(self) -> Float[Tensor, "batch errors"]:
        """One column per error, in the order of `POSE_ERROR_NAMES`."""
        return torch.stack([getattr(self, name) for name in POSE_ERROR_NAMES], dim=1)


#: Names of the six errors in the order of the fields of `PoseErrors`.
POSE_ERROR_NAMES: tuple[str, ...] = tuple(field.name for field in fields(PoseErrors))


def evaluation_points(body: BodyModel, mesh: BodyMesh, protocol: EvaluationProtocol = "lsp14") -> EvaluationPoints:
    """The points of posed bodies that a protocol scores. Any common translation of a body drops out later.

    Raises:
        ValueError: If the body model has no regressor for the protocol's joints.
    """
    match protocol:
        case "lsp14":
            pelvis = body.keypoints(mesh, "h36m17")[:, 0]
            return EvaluationPoints(body.keypoints(mesh, "lsp14"), mesh.vertices, pelvis)
        case "smpl24":
            joints = body.keypoints(mesh, "smpl24")
            return EvaluationPoints(joints, mesh.vertices, joints[:, 1:3].mean(dim=1))
        case _:
            assert_never(protocol)


def has_measured_joints(joints_m: Float[Tensor, "batch 17 4"], protocol: EvaluationProtocol) -> Bool[Tensor, " batch"]:
    """Which samples a protocol scores by measured joints: "lsp14" those of which its 14 and the pelvis were measured.

    Args:
        joints_m: h36m17 as measured: x, y, z in metres, and 1 where there is one.
        protocol: Which joints are scored.
    """
    match protocol:
        case "lsp14":
            return (joints_m[:, (0, *LSP14_FROM_H36M17), 3] > 0).all(dim=1)
        case "smpl24":
            return torch.zeros_like(joints_m[:, 0, 3], dtype=torch.bool)
        case _:
            assert_never(protocol)


def true_points(
    body: BodyModel,
    mesh: BodyMesh,
    has_body: Bool[Tensor, " batch"],
    joints_m: Float[Tensor, "batch 17 4"],
    protocol: EvaluationProtocol = "lsp14",
) -> EvaluationPoints:
    """The points that estimates are held against.

    Joints are the measured ones where the protocol has them (`has_measured_joints`), else those of the true body.
    Vertices are always those of the true body. The measured joints are moved so that their pelvis is the body's, since
    vertices and joints are aligned each to their own truth. What a sample has not is NaN.

    Args:
        body: The body model, for its regressors.
        mesh: The true bodies.
        has_body: Which of them mean anything.
        joints_m: h36m17 as measured, in any frame that is turned as that of the bodies.
        protocol: Which joints are scored.

    Raises:
        ValueError: If the body model has no regressor for the protocol's joints.
    """
    points = evaluation_points(body, mesh, protocol)
    with_body = has_body[:, None, None]
    joints, vertices = points.joints.where(with_body, torch.nan), points.vertices.where(with_body, torch.nan)
    measured = has_measured_joints(joints_m, protocol)[:, None, None]
    if protocol == "lsp14":
        from_pelvis = align_root(joints_m[:, LSP14_FROM_H36M17, :3], joints_m[:, 0, :3])
        joints = torch.where(measured, from_pelvis + points.pelvis[:, None], joints)
    return EvaluationPoints(joints, vertices, points.pelvis)


def pose_errors(predicted: EvaluationPoints, target: EvaluationPoints) -> PoseErrors:
    """All six errors of a batch of bodies, joints and vertices aligned at the same pelvis."""
    joints = align_root(predicted.joints, predicted.pelvis), align_root(target.joints, target.pelvis)
    vertices = align_root(predicted.vertices, predicted.pelvis), align_root(target.vertices, target.pelvis)
    return PoseErrors(
        mpjpe_mm=mpjpe_mm(*joints),
        pa_mpjpe_mm=pa_mpjpe_mm(*joints),
        n_mpjpe_mm=n_mpjpe_mm(*joints),
        pve_mm=mpjpe_mm(*vertices),
        pa_pve_mm=pa_mpjpe_mm(*vertices),
        n_pve_mm=n_mpjpe_mm(*vertices),
    )
