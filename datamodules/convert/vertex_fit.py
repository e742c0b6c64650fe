"""Fits SMPL's pose, shape and place to points where chosen vertices should be, for a batch of bodies at once.

Least squares by Levenberg-Marquardt, per body: three unknowns for each joint (a small turn omega of the joint and all
that hangs on it, about the joint, in the axes of the points), then betas, then translation. For a vertex that bone k
carries to x_k with weight w_k, with descendants D(j) of joint j at p_j:

    d vertex / d omega_j = -[m_j]x,   m_j = sum over k in D(j) of w_k (x_k - p_j)

to which comes what the pose blend shapes change. Vertices and joints are linear in betas for fixed rotations.

Source of the model: Loper et al., "SMPL", 2015; of the damping: Marquardt, 1963.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import roma
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from bodies.body_model import BodyModel, BodyParameters, PosedJoints

#: Damping of the first step, relative to the diagonal; how it changes; and where a body is given up as settled.
_FIRST_DAMPING: Final = 1e-3
_DAMPING_FACTOR: Final = 10.0
_MAX_DAMPING: Final = 1e4
#: Smallest damping: what single precision needs to factorize the matrix.
_MIN_DAMPING: Final = 1e-7
#: A body is done when a step lowers its squared error by less than this share; single precision resolves no more.
_CONVERGED: Final = 1e-4
#: Squared error per point, in m^2, below which there is nothing to be gained: a third of a micrometre.
_NOTHING_M2: Final = 1e-13


@dataclass(frozen=True)
class BodyPoints:
    """Points that move with a body: vertices, or joints, which are points that their own bone carries."""

    template: Float[Tensor, "points 3"]
    """Where they are at rest, mean shape."""
    shape_directions: Float[Tensor, "points 3 betas"]
    """Displacement for a unit of each beta."""
    pose_directions: Float[Tensor, "points 3 pose_features"]
    """Pose blend shapes."""
    weights: Float[Tensor, "points joints"]
    """Of the bones."""

    def __len__(self) -> int:
        return len(self.template)

    @classmethod
    def of(cls, body: BodyModel, vertex_ids: Int64[Tensor, " chosen"], joints: Sequence[int] = ()) -> Self:
        """Vertices of a body, and after them joints."""
        chosen = list(joints)
        columns = body.pose_directions.shape[-1]
        return cls(
            torch.cat([body.template[vertex_ids], body.joint_template[chosen]]),
            torch.cat([body.shape_directions[vertex_ids], body.joint_shape_directions[chosen]]),
            torch.cat([body.pose_directions[vertex_ids], body.template.new_zeros(len(chosen), 3, columns)]),
            torch.cat([body.skin_weights[vertex_ids], torch.eye(body.num_joints).to(body.template)[chosen]]),
        )


@dataclass(frozen=True)
class FitSettings:
    """How a fit is done."""

    steps: int = 20
    """Steps tried at most."""
    stiffness_m2: float = 0.0
    """Weight of the squared angle of each joint but the root, per point: the squared metres that a radian costs."""


@dataclass(frozen=True)
class _Quadratic:
    """The squared error about some parameters."""

    value: Float64[Tensor, " batch"]
    gradient: Float64[Tensor, "batch unknowns"]
    hessian: Float64[Tensor, "batch unknowns unknowns"]
    world_rotations: Float[Tensor, "batch joints 3 3"]

    def where(self, condition: Bool[Tensor, " batch"], other: Self) -> Self:
        return type(self)(
            torch.where(condition, self.value, other.value),
            torch.where(condition[:, None], self.gradient, other.gradient),
            torch.where(condition[:, None, None], self.hessian, other.hessian),
            torch.where(condition[:, None, None, None], self.world_rotations, other.world_rotations),
        )


@dataclass(frozen=True)
class _Problem:
    """What is to be brought where."""

    body: BodyModel
    points: BodyPoints
    target: Float[Tensor, "batch points 3"]
    metric: Float[Tensor, "points 3 3"] | None
    settings: FitSettings

    @property
    def nothing(self) -> float:
        """A squared error that is as good as none."""
        return _NOTHING_M2 * len(self.points)


@torch.no_grad()
def fit_points(
    body: BodyModel,
    points: BodyPoints,
    target: Float[Tensor, "batch points 3"],
    initial: BodyParameters,
    metric: Float[Tensor, "points 3 3"] | None = None,
    settings: FitSettings | None = None,
) -> BodyParameters:
    """Lowers the squared distances of points of the body to their targets, from the initial parameters.

    Each body is fitted by itself: those beside it in the batch do not change the result.

    Args:
        body: The body model.
        points: Points of that model.
        target: Where they should be, in metres; best within a few metres of the origin (single precision).
        initial: Where to start, in the axes of the targets.
        metric: What each point's distance is multiplied by before it is squared; the identity by default.
        settings: How to do it.
    """
    problem = _Problem(body, points, target, metric, settings or FitSettings())
    current, model = initial, _linearize(problem, initial)
    damping = torch.full_like(model.value, _FIRST_DAMPING)
    running = model.value > problem.nothing
    for _ in range(problem.settings.steps):
        if not running.any():
            break
        candidate = _retract(body, current, model.world_rotations, _step(model, damping))
        there = _linearize(problem, candidate)
        accepted = running & (there.value < model.value)  # false for NaN
        settled = accepted & (model.value - there.value <= _CONVERGED * model.value)
        settled |= accepted & (there.value <= problem.nothing)
        current, model = candidate.where(accepted, current), there.where(accepted, model)
        damping = torch.where(accepted, damping / _DAMPING_FACTOR, damping * _DAMPING_FACTOR)
        running &= ~settled & (damping < _MAX_DAMPING)
        damping = damping.clamp(min=_MIN_DAMPING)
    return current


def _linearize(problem: _Problem, at: BodyParameters) -> _Quadratic:
    body, points, betas = problem.body, problem.points, at.betas.shape[1]
    rest_joints = body.shape_joints(at.betas)
    posed = body.pose(rest_joints, at.rotations)
    rest = points.template + torch.einsum("vcs,bs->bvc", points.shape_directions[..., :betas], at.betas)
    if points.pose_directions.shape[-1]:
        rest = rest + torch.einsum("vcp,bp->bvc", points.pose_directions, posed.pose_features)
    shifts = posed.joints - (posed.rotations @ rest_joints[..., None]).squeeze(-1)
    carried = torch.einsum("bkij,bvj->bvki", posed.rotations, rest) + shifts[:, None]
    carried *= points.weights[..., None]
    residual = problem.target - carried.sum(dim=2) - at.transl[:, None]
    turns = _turn_columns(body, points, carried, posed)
    if points.pose_directions.shape[-1]:
        turns[..., 3:] += _blend_columns(body, points, posed, at.rotations)
    moves = torch.eye(3).to(rest).expand(*residual.shape, 3)
    jacobian = torch.cat([turns, _shape_columns(body, points, betas, posed, at.rotations), moves], dim=-1)
    if problem.metric is not None:
        residual = (problem.metric @ residual[..., None]).squeeze(-1)
        jacobian = problem.metric @ jacobian
    flat = jacobian.flatten(1, 2)
    gradient = (flat.mT @ residual.flatten(1)[..., None]).squeeze(-1).double()
    hessian = (flat.mT @ flat).double()
    value = residual.double().square().sum(dim=(1, 2))
    if stiffness := problem.settings.stiffness_m2 * len(points):
        # Near the rest pose, where this is used, a joint's own axes are those of the points up to the root's turn.
        bent = roma.rotmat_to_rotvec(at.rotations[:, 1:]).flatten(1).double()
        place = slice(3, 3 + bent.shape[1])
        value = value + stiffness * bent.square().sum(dim=1)
        gradient[:, place] -= stiffness * bent
        hessian.diagonal(dim1=1, dim2=2)[:, place] += stiffness
    return _Quadratic(value, gradient, hessian, posed.rotations)


def _turn_columns(
    body: BodyModel, points: BodyPoints, carried: Float[Tensor, "batch points joints 3"], posed: PosedJoints
) -> Float[Tensor, "batch points 3 turns"]:
    """Derivatives of the points with respect to the joints' turns, from where each bone carries them, weighted."""
    below = body.descendants @ carried
    levers = below - (points.weights @ body.descendants.T)[..., None] * posed.joints[:, None]
    # omega x lever = -[lever]x omega; the axes become (batch, points, 3, joints, 3).
    return -_cross_matrix(levers).transpose(2, 3).flatten(3)


def _blend_columns(
    body: BodyModel, points: BodyPoints, posed: PosedJoints, rotations: Float[Tensor, "batch joints 3 3"]
) -> Float[Tensor, "batch points 3 turns"]:
    """What the joints' turns, but for the root's, change by way of the pose blend shapes."""
    # In its parent's axes joint j turns about R_p' omega, so its rotation changes by [R_p' omega]x R_j.
    axes = posed.rotations[:, body.parent_ids].mT
    crossed = torch.stack([_cross_matrix(axes[..., axis]) for axis in range(3)], dim=-3)
    changes = (crossed @ rotations[:, 1:, None]).flatten(3)
    directions = points.pose_directions.unflatten(2, (-1, 9))
    blended = (points.weights @ posed.rotations.flatten(2)).unflatten(-1, (3, 3))
    moved = torch.einsum("vcjf,bjaf->bvcja", directions, changes).flatten(3)
    return blended @ moved


def _cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _shape_columns(
    body: BodyModel,
    points: BodyPoints,
    betas: int,
    posed: PosedJoints,
    rotations: Float[Tensor, "batch joints 3 3"],
) -> Float[Tensor, "batch points 3 betas"]:
    """Derivatives of the points with respect to the betas."""
    joint_directions = body.joint_shape_directions[..., :betas]
    batch, joints = posed.joints.shape[:2]
    # Posed joints are linear in rest joints, so the chain carries their derivatives as it carries them.
    stacked = joint_directions.permute(2, 0, 1).expand(batch, betas, joints, 3).flatten(0, 1)
    moved = body.pose(stacked, rotations.repeat_interleave(betas, dim=0)).joints.unflatten(0, (batch, betas))
    shifts = moved.permute(0, 2, 3, 1) - posed.rotations @ joint_directions
    blended = (points.weights @ posed.rotations.flatten(2)).unflatten(-1, (3, 3))
    through_joints = (points.weights @ shifts.flatten(2)).unflatten(-1, (3, betas))
    return blended @ points.shape_directions[..., :betas] + through_joints


def _step(model: _Quadratic, damping: Float64[Tensor, " batch"]) -> Float64[Tensor, "batch unknowns"]:
    """The step of the damped quadratic; none, which is not accepted, where the matrix cannot be factorized."""
    diagonal = model.hessian.diagonal(dim1=1, dim2=2)
    # Unknowns that no point depends on have a diagonal of zero and stay where they are.
    floor = _MIN_DAMPING * diagonal.amax(dim=1, keepdim=True)
    matrix = model.hessian + torch.diag_embed(damping[:, None] * diagonal.clamp(min=0) + floor)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    step = torch.cholesky_solve(model.gradient[..., None], factor).squeeze(-1)
    solved = (failed == 0) & step.isfinite().all(dim=1)
    return torch.where(solved[:, None], step, 0)


def _retract(
    body: BodyModel,
    at: BodyParameters,
    world_rotations: Float[Tensor, "batch joints 3 3"],
    step: Float64[Tensor, "batch unknowns"],
) -> BodyParameters:
    """The parameters after a step; each joint turns in the axes of the points, before its parents do."""
    batch, joints = world_rotations.shape[:2]
    step = step.to(at.betas.dtype)
    turn = roma.rotvec_to_rotmat(step[:, : 3 * joints].reshape(batch, joints, 3))
    parents = world_rotations[:, body.parent_ids]
    rotations = torch.cat(
        [turn[:, :1] @ at.rotations[:, :1], parents.mT @ turn[:, 1:] @ parents @ at.rotations[:, 1:]], 1
    )
    betas = at.betas + step[:, 3 * joints : 3 * joints + at.betas.shape[1]]
    return BodyParameters(roma.special_procrustes(rotations), betas, at.transl + step[:, -3:])
