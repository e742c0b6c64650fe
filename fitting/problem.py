"""The fit as one problem that any solver can take: an objective, its quadratic model, and how to step."""

from dataclasses import dataclass, replace
from typing import Literal

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyModel, BodyParameters, PinholeCamera
from fitting.body_points import Bones, pose_bones
from fitting.priors.base import ImagePrior, PosePrior
from fitting.terms import (
    PointEvidence,
    Quadratic,
    axis_angle_jacobian,
    bending_derivatives,
    bending_value,
    local_pose,
    reprojection_quadratic,
    reprojection_value,
    turned_gradient,
    turned_value,
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
    initial_pose: float = 0.0
    """Of the squared angles in radians by which the joints are turned from the initial estimate. Not in the paper."""
    initial_shape: float = 0.0
    """Of |beta - beta of the initial estimate|^2. Not in the paper."""


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
    initial: BodyParameters
    """The initial estimate, for the terms that hold the fit to it."""
    prior: PosePrior | ImagePrior | None
    """The pose prior, if any; one of images has an image for each sample."""
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
            initial=self.initial[index],
            prior=self.prior.select(index) if isinstance(self.prior, ImagePrior) else self.prior,
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
            first = self._first_joint
            pose = local_pose(parameters.rotations[:, first:]).flatten(1)
            if self._prior_weight:
                value = value + self._prior_weight * self._prior().energy(pose)
            if self.weights.bending:
                value = value + self.weights.bending * bending_value(pose[:, 3 - 3 * first :])
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
        value, weights = self._simple_terms(parameters), self.weights
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        shape_slice = slice(betas_at, depth_at - 2)
        from_initial = parameters.betas - self.initial.betas
        gradient[:, shape_slice] = 2 * (weights.shape_prior * parameters.betas + weights.initial_shape * from_initial)
        diagonal[:, shape_slice] = 2 * (weights.shape_prior + weights.initial_shape)
        gradient[:, depth_at] = 2 * weights.camera_depth * (parameters.transl[:, 2] - self.initial.transl[:, 2])
        diagonal[:, depth_at] = 2 * weights.camera_depth
        if weights.initial_pose:
            slope = turned_gradient(self.initial.rotations, parameters.rotations, bones.rotations)
            gradient[:, :betas_at] = weights.initial_pose * slope.flatten(1)
            diagonal[:, :betas_at] = 2 * weights.initial_pose
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

    @property
    def _first_joint(self) -> int:
        """The first joint of the terms on axis-angle: the root, or the one behind it."""
        return 0 if isinstance(self.prior, ImagePrior) else 1

    def _prior(self) -> PosePrior | ImagePrior:
        assert self.prior is not None
        return self.prior

    def _simple_terms(self, parameters: BodyParameters) -> Float[Tensor, " batch"]:
        weights, initial = self.weights, self.initial
        depth = parameters.transl[:, 2] - initial.transl[:, 2]
        value = weights.shape_prior * parameters.betas.square().sum(dim=1) + weights.camera_depth * depth.square()
        if weights.initial_shape:
            value = value + weights.initial_shape * (parameters.betas - initial.betas).square().sum(dim=1)
        if weights.initial_pose:
            value = value + weights.initial_pose * turned_value(initial.rotations, parameters.rotations)
        return value

    def _add_pose_terms(
        self, parameters: BodyParameters, world: Tensor, value: Tensor, gradient: Tensor, hessian: Tensor
    ) -> None:
        """Adds the terms on axis-angle, carried over to omega joint by joint."""
        first = self._first_joint
        pose = local_pose(parameters.rotations[:, first:])
        turn = axis_angle_jacobian(pose, world[:, first:])
        flat = pose.flatten(1)
        by_pose = torch.zeros_like(flat)
        curvature = flat.new_zeros(*flat.shape, flat.shape[1])
        if self._prior_weight:
            prior = self._prior().quadratic(flat)
            value += self._prior_weight * prior.energy
            by_pose += self._prior_weight * prior.gradient
            curvature += self._prior_weight * prior.hessian
        if self.weights.bending:
            behind_root = slice(3 - 3 * first, None)
            value += self.weights.bending * bending_value(flat[:, behind_root])
            slope, diagonal = bending_derivatives(flat[:, behind_root])
            by_pose[:, behind_root] += self.weights.bending * slope
            # Gauss-Newton of exp(a)^2: residual exp(a), derivative exp(a), so 2 exp(a)^2.
            curvature.diagonal(dim1=1, dim2=2)[:, behind_root] += self.weights.bending * diagonal
        batch, joints = pose.shape[:2]
        body = slice(3 * first, 3 * (first + joints))
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
