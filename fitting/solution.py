"""What a solver returns."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bodies import BodyParameters
from fitting.problem import FitProblem, Stage


@dataclass(frozen=True)
class Solution:
    """Where a solver ended, for each sample."""

    parameters: BodyParameters
    """The best point found."""
    value: Float[Tensor, " batch"]
    """Objective there."""
    steps: Int64[Tensor, " batch"]
    """Steps tried."""
    converged: Bool[Tensor, " batch"]
    """Whether the solver stopped by itself, rather than for want of steps."""


@runtime_checkable
class Solver(Protocol):
    """Lowers the objective of each sample; a sample's result does not depend on its batch mates."""

    def minimize(self, problem: FitProblem, initial: BodyParameters, stage: Stage) -> Solution:
        """Starts at `initial` and moves the unknowns of `stage`."""
        ...
