"""The fit as one problem that any solver can take: an objective, its quadratic model, and how to step."""

from dataclasses import dataclass, replace
from typing import Literal

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyModel, BodyParameters, PinholeCamera
from fitting.body_points import Bones, pose_bones
from fitting.priors.base import PosePrior
from fitting.terms import (
    PointEvidence,
    Quadratic,
    axis_angle_jacobian,
    bending_derivatives,
    bending_value,
    local_pose,
    reprojection_quadratic,
    reprojection_value,
)

#: Which unknowns move: the root's orientation and the translation, or all of them.
Stage = Literal["camera", "all"]


@dataclass(frozen=True)
class TermWeights:
    """Weights of the terms that are not reprojection. Zero switches a term off.

    The defaults were chosen on synthetic training data; `SPIN_WEIGHTS` holds those of the SPIN baseline.
    """

    pose_prior: float = 4.0
    """Of the pose prior's energy."""
    shape_prior: float = 10.0
    """Of |beta|^2."""
    bending: float = 0.0
    """Of the exponential penalty on elbows and knees that bend backwards."""
    camera_depth: float = 0.0
    """Of the squared depth change in metres from the initial estimate."""


#: SPIN's `smplify.py`: pose prior 4.78^2, shape 5^2, angles 15.2^2, depth 100^2.
SPIN_WEIGHTS = TermWeights(pose_prior=4.78**2, shape_prior=25.0, bending=15.2**2, camera_depth=1e4)


@dataclass(frozen=True)
class FitProblem:
    """One independent least-squares problem per sample.

    The unknowns are the body's rotations, shape coefficients and translation; the camera is given.
    """

    body: BodyModel
    """The body model."""
    camera: PinholeCamera
    """The full-image camera of each sample."""
    evidence: tuple[PointEvidence, ...]
    """What was seen; every entry covers the whole batch."""
    scale: Float[Tensor, " batch"]
    """`PERSON_PX` over the person's size in the image."""
    reference_depth: Float[Tensor, " batch"]
    """Depth of the initial estimate in metres, for the camera depth term."""
    prior: PosePrior | None
    """The pose prior, if any."""
    weights: TermWeights
    """How the terms are weighed."""

    def reweighted(self, weights: TermWeights) -> "FitProblem":
        """The same problem with other weights."""
        return replace(self, weights=weights)

    def select(self, index: Tensor) -> "FitProblem":
        """The problems of some samples."""
        return replace(
            self,
            camera=self.camera[index],
            evidence=tuple(e.select(index) for e in self.evidence),
            scale=self.scale[index],
            reference_depth=self.reference_depth[index],
        )

    def points(self, parameters: BodyParameters) -> tuple[Float[Tensor, "batch _ 3"], ...]:
        """The points of each entry of `evidence` in the camera frame, in metres."""
        bones = pose_bones(self.body, parameters)
        shift = parameters.transl[:, None]
        return tuple(e.points.positions(bones, parameters.betas) + shift for e in self.evidence)

    def objective(self, parameters: BodyParameters) -> Float[Tensor, " batch"]:
        """Value per sample, differentiable; infinite where a seen point is behind the camera."""
        value = self._simple_terms(parameters)
        if self._prior_weight or self.weights.bending:
            body_pose = local_pose(parameters.rotations[:, 1:]).flatten(1)
            if self._prior_weight:
                value = value + self._prior_weight * self._prior().energy(body_pose)
            if self.weights.bending:
                value = value + self.weights.bending * bending_value(body_pose)
        for evidence, points in zip(self.evidence, self.points(parameters), strict=True):
            value = value + reprojection_value(evidence, points, self.camera, self.scale)
        return value

    def linearize(
        self, parameters: BodyParameters, free: Bool[Tensor, " unknowns"], bones: Bones | None = None
    ) -> Quadratic:
        """Value, gradient and Gauss-Newton Hessian by the unknowns (omega, betas, transl).

        Args:
            parameters: Where.
            free: Which unknowns move; gradient and Hessian need to be right in their block alone.
            bones: `pose_bones` of the parameters, if they are at hand.
        """
        bones = pose_bones(self.body, parameters) if bones is None else bones
        batch, joints = parameters.rotations.shape[:2]
        betas_at = 3 * joints
        depth_at = betas_at + parameters.betas.shape[1] + 2
        gradient = parameters.betas.new_zeros(batch, depth_at + 1)
        hessian = gradient.new_zeros(batch, depth_at + 1, depth_at + 1)
        value = self._simple_terms(parameters)
        shape_slice = slice(betas_at, depth_at - 2)
        gradient[:, shape_slice] = 2 * self.weights.shape_prior * parameters.betas
        gradient[:, depth_at] = 2 * self.weights.camera_depth * (parameters.transl[:, 2] - self.reference_depth)
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        diagonal[:, shape_slice] = 2 * self.weights.shape_prior
        diagonal[:, depth_at] = 2 * self.weights.camera_depth
        if self._prior_weight or self.weights.bending:
            self._add_pose_terms(parameters, bones.rotations, value, gradient, hessian)
        for evidence in self.evidence:
            term = reprojection_quadratic(evidence, self.body, bones, parameters, self.camera, self.scale, free)
            value += term.value
            gradient += term.gradient
            hessian += term.hessian
        return Quadratic(value, gradient, hessian)

    @property
    def _prior_weight(self) -> float:
        return self.weights.pose_prior if self.prior is not None else 0.0

    def _prior(self) -> PosePrior:
        assert self.prior is not None
        return self.prior

    def _simple_terms(self, parameters: BodyParameters) -> Float[Tensor, " batch"]:
        depth = parameters.transl[:, 2] - self.reference_depth
        shape = parameters.betas.square().sum(dim=1)
        return self.weights.shape_prior * shape + self.weights.camera_depth * depth.square()

    def _add_pose_terms(
        self, parameters: BodyParameters, world: Tensor, value: Tensor, gradient: Tensor, hessian: Tensor
    ) -> None:
        """Adds the terms on axis-angle, carried over to omega joint by joint."""
        pose = local_pose(parameters.rotations[:, 1:])
        turn = axis_angle_jacobian(pose, world[:, 1:])
        flat = pose.flatten(1)
        by_pose = torch.zeros_like(flat)
        curvature = flat.new_zeros(*flat.shape, flat.shape[1])
        if self._prior_weight:
            prior = self._prior().quadratic(flat)
            value += self._prior_weight * prior.energy
            by_pose += self._prior_weight * prior.gradient
            curvature += self._prior_weight * prior.hessian
        if self.weights.bending:
            value += self.weights.bending * bending_value(flat)
            slope, diagonal = bending_derivatives(flat)
            by_pose += self.weights.bending * slope
            # Gauss-Newton of exp(a)^2: residual exp(a), derivative exp(a), so 2 exp(a)^2.
            curvature.diagonal(dim1=1, dim2=2).add_(self.weights.bending * diagonal)
        batch, joints = pose.shape[:2]
        body = slice(3, 3 + 3 * joints)
        gradient[:, body] += torch.einsum("bjc,bjca->bja", by_pose.unflatten(1, (joints, 3)), turn).flatten(1)
        blocks = curvature.view(batch, joints, 3, joints, 3)
        carried = torch.einsum("bica,bicjd,bjde->biaje", turn, blocks, turn)
        hessian[:, body, body] += carried.reshape(batch, 3 * joints, 3 * joints)


def retract(
    parameters: BodyParameters,
    world_rotations: Float[Tensor, "batch joints 3 3"],
    step: Float[Tensor, "batch unknowns"],
) -> BodyParameters:
    """Moves the parameters by a step in the unknowns of `FitProblem.linearize`.

    Args:
        parameters: Where the step starts.
        world_rotations: `Bones.rotations` there; the world-frame omega of joint j becomes the local right perturbation
            delta = G_j^T omega.
        step: Omega of each joint, betas, translation.
    """
    joints = parameters.rotations.shape[1]
    omega = step[:, : 3 * joints].unflatten(1, (joints, 3))
    delta = (world_rotations.transpose(-1, -2) @ omega[..., None]).squeeze(-1)
    betas = parameters.betas + step[:, 3 * joints : -3]
    return BodyParameters(parameters.rotations @ roma.rotvec_to_rotmat(delta), betas, parameters.transl + step[:, -3:])


def free_unknowns(num_joints: int, num_betas: int, stage: Stage, like: Tensor) -> Bool[Tensor, " unknowns"]:
    """Which unknowns a stage moves: the root's orientation and the translation, or all."""
    free = torch.ones(3 * num_joints + num_betas + 3, dtype=torch.bool, device=like.device)
    if stage == "camera":
        free[3:-3] = False
    return free
