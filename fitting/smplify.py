"""SMPLify: fits bodies to 2D evidence, all in full-image pixels, and never returns a worse body silently.

Wehrbein et al. 2023, section 3.3, with SPIN's SMPLify as the special case `SPIN_WEIGHTS` + `Adam`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyModel, BodyParameters, PinholeCamera
from fitting.levenberg_marquardt import LevenbergMarquardt
from fitting.priors.base import ImagePrior, PosePrior
from fitting.problem import FitProblem, Stage, TermWeights
from fitting.solution import Solver
from fitting.targets import Targets, person_size_px
from fitting.terms import PERSON_PX, reprojection_residual


class FitStatus(Enum):
    """How the fit of one sample ended; the value is the message to print."""

    CONVERGED = "converged"
    STEPS_USED = "stopped at the step limit; the best body so far is returned"
    NO_EVIDENCE = "not fitted: no point of the body with a positive weight; the initial estimate is returned"
    INITIAL_NOT_FINITE = "not fitted: the initial estimate or its camera holds non-finite numbers"
    BEHIND_CAMERA = "not fitted: seen points of the initial estimate are behind the camera"
    REJECTED_WORSE = "rejected: the objective rose; the initial estimate is returned"
    REJECTED_NOT_FINITE = "rejected: the fit ended with non-finite numbers; the initial estimate is returned"

    @property
    def accepted(self) -> bool:
        """Whether the returned body is a fitted one."""
        return self in (FitStatus.CONVERGED, FitStatus.STEPS_USED)


@dataclass(frozen=True)
class FitStage:
    """One run of the solver within a fit."""

    unknowns: Stage
    """What moves."""
    prior_scale: float = 1.0
    """Factor on the pose and shape prior during this stage; large ones keep early steps plausible."""


#: From an estimate that is already near: place the camera, then everything.
REFINE_SCHEDULE: Final = (FitStage("camera"), FitStage("all"))
#: From a rest posture: priors are relaxed in steps, as SMPLify does (Bogo et al. 2016, section 3.3).
FROM_REST_SCHEDULE: Final = (FitStage("camera"), FitStage("all", 30.0), FitStage("all", 5.0), FitStage("all"))


@dataclass(frozen=True)
class FitResult:
    """Fitted bodies with what happened to each of them."""

    parameters: BodyParameters
    """The fitted body where the fit was accepted, the initial estimate elsewhere."""
    status: tuple[FitStatus, ...]
    """How the fit of each sample ended."""
    initial_error_px: Float[Tensor, " batch"]
    """Weighted mean distance of the seen points from their targets, at the initial estimate; NaN without evidence."""
    final_error_px: Float[Tensor, " batch"]
    """The same for `parameters`."""
    initial_objective: Float[Tensor, " batch"]
    """Objective of the initial estimate, final weights."""
    final_objective: Float[Tensor, " batch"]
    """Objective of `parameters`, same weights."""

    def __getitem__(self, index: Tensor) -> "FitResult":
        return FitResult(
            self.parameters[index],
            tuple(self.status[i] for i in index.tolist()),
            self.initial_error_px[index],
            self.final_error_px[index],
            self.initial_objective[index],
            self.final_objective[index],
        )

    @property
    def accepted(self) -> Bool[Tensor, " batch"]:
        """Where the returned body is a fitted one."""
        flags = [status.accepted for status in self.status]
        return torch.tensor(flags, dtype=torch.bool, device=self.initial_objective.device)


class Smplify:
    """Batched fitting of bodies to keypoints, vertices, points of the surface, or several of these.

    Args:
        body: The body model.
        prior: Energy of the body pose, or of the whole pose given the image of each sample; none for data terms and
            shape prior alone.
        solver: `LevenbergMarquardt` or `Adam`.
        weights: Weights of the priors.
        schedule: Stages, run one after the other.
        chunk_size: Samples fitted at once. Chunks bound the memory and change no result.
    """

    def __init__(
        self,
        body: BodyModel,
        prior: PosePrior | ImagePrior | None = None,
        solver: Solver | None = None,
        weights: TermWeights | None = None,
        schedule: Sequence[FitStage] = REFINE_SCHEDULE,
        chunk_size: int = 64,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        if prior is not None and not isinstance(prior, PosePrior | ImagePrior):
            raise ValueError("the prior has no energy; a FlowPrior has one when it is conditioned_on images")
        if not schedule:
            raise ValueError("the schedule needs at least one stage")
        self.body = body
        self.prior = prior
        self.solver: Solver = solver if solver is not None else LevenbergMarquardt()
        self.weights = weights if weights is not None else TermWeights()
        self.schedule = tuple(schedule)
        self.chunk_size = chunk_size

    def with_schedule(self, schedule: Sequence[FitStage]) -> "Smplify":
        """The same fit with other stages."""
        return Smplify(self.body, self.prior, self.solver, self.weights, schedule, self.chunk_size)

    def with_weights(self, weights: TermWeights) -> "Smplify":
        """The same fit with other weights."""
        return Smplify(self.body, self.prior, self.solver, weights, self.schedule, self.chunk_size)

    def select(self, index: slice | Tensor) -> "Smplify":
        """The fit of some samples: of a prior that knows the samples' images, the part that is theirs."""
        if not isinstance(self.prior, ImagePrior):
            return self
        return Smplify(self.body, self.prior.select(index), self.solver, self.weights, self.schedule, self.chunk_size)

    def __call__(
        self, initial: BodyParameters, camera: PinholeCamera, targets: Targets | Sequence[Targets]
    ) -> FitResult:
        """Fits each sample from its initial estimate.

        Args:
            initial: Where to start, in the camera frame.
            camera: The full-image camera of each sample.
            targets: One or several data terms, in full-image pixels.
        """
        terms = tuple(targets) if isinstance(targets, Sequence) else (targets,)
        if not terms:
            raise ValueError("a fit needs at least one data term")
        if isinstance(self.prior, ImagePrior) and len(self.prior) != len(initial):
            raise ValueError(f"the prior has {len(self.prior)} images, the initial estimate {len(initial)} samples")
        results = []
        for start in range(0, max(len(initial), 1), self.chunk_size):  # an empty batch has an empty result
            chunk = slice(start, start + self.chunk_size)
            results.append(self.select(chunk)._fit_chunk(initial[chunk], camera[chunk], [t[chunk] for t in terms]))
        return _concatenate(results)

    @torch.no_grad()
    def _fit_chunk(self, initial: BodyParameters, camera: PinholeCamera, terms: Sequence[Targets]) -> FitResult:
        finite = _finite(initial) & _finite_camera(camera)
        # Samples that cannot be fitted take part with a harmless body and no evidence; they end as they began.
        start = initial.where(finite, _harmless(self.body, initial))
        problem = self.problem(start, camera, terms)
        seen = torch.stack([e.weight.sum(dim=1) for e in problem.evidence]).sum(dim=0) > 0
        initial_objective = problem.objective(start)
        parameters, converged = start, torch.zeros_like(finite)
        for stage in self.schedule:
            staged = problem.reweighted(_scaled(self.weights, stage.prior_scale))
            solution = self.solver.minimize(staged, parameters, stage.unknowns)
            parameters, converged = solution.parameters, solution.converged
        final_objective = problem.objective(parameters)
        status = _judge(finite, seen, initial_objective, final_objective, _finite(parameters), converged)
        accepted = torch.tensor([s.accepted for s in status], dtype=torch.bool, device=finite.device)
        parameters = parameters.where(accepted, initial)
        nothing = torch.full_like(initial_objective, float("nan"))
        error = torch.where(finite & seen, mean_error_px(problem, start), nothing)
        return FitResult(
            parameters=parameters,
            status=status,
            initial_error_px=error,
            final_error_px=torch.where(accepted, mean_error_px(problem, parameters.where(accepted, start)), error),
            initial_objective=torch.where(finite, initial_objective, nothing),
            final_objective=torch.where(accepted, final_objective, torch.where(finite, initial_objective, nothing)),
        )

    def problem(self, initial: BodyParameters, camera: PinholeCamera, terms: Sequence[Targets]) -> FitProblem:
        """The least-squares problem of these targets, residuals scaled by each person's size in the image."""
        evidence = tuple(term.evidence(self.body) for term in terms)
        targets = torch.cat([e.target_px for e in evidence], dim=1)
        size = person_size_px(targets, torch.cat([e.weight for e in evidence], dim=1))
        return FitProblem(
            body=self.body,
            camera=camera,
            evidence=evidence,
            scale=PERSON_PX / size,
            initial=initial,
            prior=self.prior,
            weights=self.weights,
        )


def mean_error_px(problem: FitProblem, parameters: BodyParameters) -> Float[Tensor, " batch"]:
    """Weighted mean distance of the seen points from their targets, in full-image pixels."""
    total = torch.zeros_like(problem.scale)
    weight = torch.zeros_like(problem.scale)
    for evidence, points in zip(problem.evidence, problem.points(parameters), strict=True):
        residual = reprojection_residual(evidence, points, problem.camera, torch.ones_like(problem.scale))
        total = total + (evidence.weight * torch.linalg.vector_norm(residual, dim=-1)).sum(dim=1)
        weight = weight + evidence.weight.sum(dim=1)
    return total / weight


def _judge(
    finite: Tensor, seen: Tensor, before: Tensor, after: Tensor, finite_after: Tensor, converged: Tensor
) -> tuple[FitStatus, ...]:
    """The status of each sample, from the first thing that went wrong."""
    table = torch.stack([finite, seen, before.isfinite(), after.isfinite() & finite_after, after <= before, converged])
    failures = (
        FitStatus.INITIAL_NOT_FINITE,
        FitStatus.NO_EVIDENCE,
        FitStatus.BEHIND_CAMERA,
        FitStatus.REJECTED_NOT_FINITE,
        FitStatus.REJECTED_WORSE,
        FitStatus.STEPS_USED,
    )
    statuses = []
    for column in table.T.tolist():
        failed = next((status for good, status in zip(column, failures, strict=True) if not good), None)
        statuses.append(failed if failed is not None else FitStatus.CONVERGED)
    return tuple(statuses)


def _scaled(weights: TermWeights, prior_scale: float) -> TermWeights:
    return replace(weights, pose_prior=weights.pose_prior * prior_scale, shape_prior=weights.shape_prior * prior_scale)


def _finite(parameters: BodyParameters) -> Bool[Tensor, " batch"]:
    parts = (parameters.rotations.flatten(1), parameters.betas, parameters.transl)
    return torch.stack([part.isfinite().all(dim=1) for part in parts]).all(dim=0)


def _finite_camera(camera: PinholeCamera) -> Bool[Tensor, " batch"]:
    return (camera.focal_px.isfinite() & (camera.focal_px > 0) & camera.center_px.isfinite()).all(dim=1)


def _harmless(body: BodyModel, like: BodyParameters) -> BodyParameters:
    rest = body.rest_parameters(len(like))
    betas = torch.zeros_like(like.betas)
    return BodyParameters(rest.rotations.to(like.rotations), betas, torch.ones_like(like.transl))


def _concatenate(results: Sequence[FitResult]) -> FitResult:
    if len(results) == 1:
        return results[0]

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(result, name) for result in results])

    return FitResult(
        parameters=BodyParameters(
            torch.cat([r.parameters.rotations for r in results]),
            torch.cat([r.parameters.betas for r in results]),
            torch.cat([r.parameters.transl for r in results]),
        ),
        status=tuple(status for result in results for status in result.status),
        initial_error_px=joined("initial_error_px"),
        final_error_px=joined("final_error_px"),
        initial_objective=joined("initial_objective"),
        final_objective=joined("final_objective"),
    )
