"""Levenberg-Marquardt with damping, acceptance and stopping for each sample by itself.

A step solves (H + lambda D) x = -g with D = diag(H), floored so that directions nobody constrains stay put; a step
is taken only if it lowers the objective. Damping follows Nielsen, "Damping parameter in Marquardt's method",
IMM-REP-1999-05, with the gain ratio of the quadratic model. Finished samples leave the batch, so nobody waits
for, or is changed by, a neighbour.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bodies import BodyParameters
from fitting.body_points import pose_bones
from fitting.problem import FitProblem, Stage, free_unknowns, retract
from fitting.solution import Solution
from fitting.terms import Quadratic

#: Damping is relative to this share of the largest diagonal entry where an unknown's own entry is smaller.
DIAGONAL_FLOOR = 1e-6
#: Beyond this damping a step is too short to matter; the sample stops.
MAX_DAMPING = 1e10


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Solver settings."""

    max_steps: int = 30
    """Steps tried for each sample and stage, accepted or not."""
    tolerance: float = 1e-3
    """A sample stops when its next step promises to lower the objective by less than this share."""
    initial_damping: float = 1e-2
    """lambda of the first step."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {self.max_steps}")
        if not self.tolerance >= 0 or not self.initial_damping > 0:
            raise ValueError("tolerance must not be negative and initial_damping must be positive")

    @torch.no_grad()
    def minimize(self, problem: FitProblem, initial: BodyParameters, stage: Stage) -> Solution:
        """Lowers each sample's objective from its initial value.

        Args:
            problem: One problem per sample.
            initial: Where to start.
            stage: Which unknowns move.
        """
        free = free_unknowns(problem.body.num_joints, initial.betas.shape[1], stage, initial.betas)
        best = initial
        bones = pose_bones(problem.body, initial)
        model = problem.linearize(initial, free, bones)
        value = model.value
        steps = torch.zeros(len(initial), dtype=torch.int64, device=value.device)
        converged = torch.zeros_like(steps, dtype=torch.bool)
        running = value.isfinite().nonzero().squeeze(-1)
        damping = torch.full_like(value, self.initial_damping)
        active = _Active(problem, initial, bones.rotations, model, damping, torch.full_like(value, 2.0)).select(running)
        for _ in range(self.max_steps):
            step, predicted = damped_step(active.model, active.damping, free)
            # A NaN prediction (the matrix was not positive definite) is not a sign of convergence.
            done = (predicted <= self.tolerance * active.model.value.abs()) | (active.damping > MAX_DAMPING)
            converged = converged.index_copy(0, running, done)
            going = (~done).nonzero().squeeze(-1)
            running = running[going]
            if not len(running):
                break
            active = active.select(going).advance(step[going], predicted[going], free)
            best = _scatter(best, running, active.parameters)
            value = value.index_copy(0, running, active.model.value)
            steps = steps.index_add(0, running, torch.ones_like(running))
        return Solution(best, value, steps, converged)


@dataclass(frozen=True)
class _Active:
    """The samples that still move, with the quadratic at where they are."""

    problem: FitProblem
    parameters: BodyParameters
    world_rotations: Float[Tensor, "batch joints 3 3"]
    model: Quadratic
    damping: Float[Tensor, " batch"]
    growth: Float[Tensor, " batch"]

    def select(self, index: Int64[Tensor, " kept"]) -> "_Active":
        """Some of them; all indices are in order, so as many as before means the same ones."""
        if len(index) == len(self.damping):
            return self
        return _Active(
            self.problem.select(index),
            self.parameters[index],
            self.world_rotations[index],
            self.model.select(index),
            self.damping[index],
            self.growth[index],
        )

    def advance(
        self,
        step: Float[Tensor, "batch unknowns"],
        predicted: Float[Tensor, " batch"],
        free: Bool[Tensor, " unknowns"],
    ) -> "_Active":
        """Tries the step and keeps it where the objective falls; adapts the damping either way.

        The candidate is linearized at once: nearly all steps are accepted, and the value comes with it.
        """
        candidate = retract(self.parameters, self.world_rotations, step)
        bones = pose_bones(self.problem.body, candidate)
        model = self.problem.linearize(candidate, free, bones)
        decrease = self.model.value - model.value
        accepted = decrease > 0  # a NaN or infinite candidate compares false
        gain = torch.where(accepted, decrease / predicted, 0).clamp(max=2)
        shrink = (1 - (2 * gain - 1) ** 3).clamp(min=1 / 3)
        return _Active(
            self.problem,
            candidate.where(accepted, self.parameters),
            torch.where(accepted[:, None, None, None], bones.rotations, self.world_rotations),
            model.where(accepted, self.model),
            torch.where(accepted, self.damping * shrink, self.damping * self.growth),
            torch.where(accepted, 2.0, self.growth * 2),
        )


def damped_step(
    model: Quadratic, damping: Float[Tensor, " batch"], free: Bool[Tensor, " unknowns"]
) -> tuple[Float[Tensor, "batch unknowns"], Float[Tensor, " batch"]]:
    """The step of the damped quadratic, and by how much the undamped one says it lowers the objective.

    Unknowns that are not free do not move. Where the damped matrix is not positive definite in this precision,
    the step is NaN and will not be accepted; the damping then grows.
    """
    diagonal = model.hessian.diagonal(dim1=1, dim2=2)
    floor = DIAGONAL_FLOOR * diagonal.amax(dim=1, keepdim=True)
    raised = damping[:, None] * torch.maximum(diagonal, floor)
    index = free.nonzero().squeeze(-1)
    everything = len(index) == len(free)
    # Advanced indexing copies; the copy that is needed for the raised diagonal is made either way.
    matrix = model.hessian.clone() if everything else model.hessian[:, index][:, :, index]
    gradient = model.gradient if everything else model.gradient[:, index]
    matrix.diagonal(dim1=1, dim2=2).add_(raised if everything else raised[:, index])
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solved = -torch.cholesky_solve(gradient[..., None], factor).squeeze(-1)
    solved = torch.where((failed > 0)[:, None], torch.full_like(solved, float("nan")), solved)
    step = solved if everything else torch.zeros_like(model.gradient).index_copy(1, index, solved)
    curvature = ((model.hessian @ step[..., None]).squeeze(-1) * step).sum(dim=1)
    predicted = -(model.gradient * step).sum(dim=1) - curvature / 2
    return step, predicted


def _scatter(into: BodyParameters, index: Tensor, values: BodyParameters) -> BodyParameters:
    return BodyParameters(
        into.rotations.index_copy(0, index, values.rotations),
        into.betas.index_copy(0, index, values.betas),
        into.transl.index_copy(0, index, values.transl),
    )
