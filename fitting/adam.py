"""First-order solver: Adam on axis-angle, shape and translation, as SPIN's SMPLify runs it.

The baseline of the benchmarks, and the solver for priors that offer no second derivative. Adam treats every
coordinate by itself and the objectives are summed over the batch, so batch mates do not interact.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bodies import BodyParameters
from fitting.problem import FitProblem, Stage
from fitting.solution import Solution


@dataclass(frozen=True)
class Adam:
    """Solver settings; the defaults are SPIN's (`smplify.py`: 100 steps a stage, rate 1e-2)."""

    steps: int = 100
    """Steps of each stage."""
    learning_rate: float = 1e-2
    """Adam's step size."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.learning_rate > 0:
            raise ValueError(f"steps and learning_rate must be positive, got {self.steps} and {self.learning_rate}")

    @torch.enable_grad()
    def minimize(self, problem: FitProblem, initial: BodyParameters, stage: Stage) -> Solution:
        """Runs the fixed number of steps and returns the best point met on the way, for each sample."""
        pose, betas = initial.pose.clone(), initial.betas.clone()
        transl = initial.transl.clone()
        root, rest = pose[:, :3].clone(), pose[:, 3:].clone()
        moving = [root, transl] if stage == "camera" else [root, rest, betas, transl]
        for tensor in moving:
            tensor.requires_grad_(True)
        optimizer = torch.optim.Adam(moving, lr=self.learning_rate, betas=(0.9, 0.999))
        best, best_value = initial, problem.objective(initial).detach()
        for _ in range(self.steps):
            optimizer.zero_grad(set_to_none=True)
            value = problem.objective(BodyParameters.from_axis_angle(torch.cat([root, rest], dim=1), betas, transl))
            # Samples that left the valid region must not poison the sum's gradient with infinities.
            torch.where(value.isfinite(), value, 0).sum().backward()
            best, best_value = _keep_best(best, best_value, root, rest, betas, transl, value)
            _drop_non_finite_gradients(moving)
            optimizer.step()
        with torch.no_grad():
            last = BodyParameters.from_axis_angle(torch.cat([root, rest], dim=1), betas, transl)
            best, best_value = _keep_best(best, best_value, root, rest, betas, transl, problem.objective(last))
        steps = torch.full((len(initial),), self.steps, dtype=torch.int64, device=best_value.device)
        return Solution(best, best_value, steps, torch.zeros_like(steps, dtype=torch.bool))


def _keep_best(
    best: BodyParameters, best_value: Tensor, root: Tensor, rest: Tensor, betas: Tensor, transl: Tensor, value: Tensor
) -> tuple[BodyParameters, Tensor]:
    better = value.detach() < best_value
    if not better.any():
        return best, best_value
    pose = torch.cat([root, rest], dim=1).detach()
    here = BodyParameters.from_axis_angle(pose, betas.detach(), transl.detach())
    return here.where(better, best), torch.where(better, value.detach(), best_value)


def _drop_non_finite_gradients(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        if tensor.grad is not None:
            tensor.grad.nan_to_num_(0.0, 0.0, 0.0)
