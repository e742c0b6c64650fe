"""What a pose prior offers the fit."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class PoseQuadratic:
    """A prior's energy near a pose, as a quadratic in axis-angle."""

    energy: Float[Tensor, " batch"]
    """The energy itself."""
    gradient: Float[Tensor, "batch body_pose"]
    """Its derivative."""
    hessian: Float[Tensor, "batch body_pose body_pose"]
    """A positive semi-definite approximation of its second derivative."""


@runtime_checkable
class PosePrior(Protocol):
    """An energy of the 23 body joints, low for plausible poses."""

    def energy(self, body_pose: Float[Tensor, "batch body_pose"]) -> Float[Tensor, " batch"]:
        """Energy of each pose, (B, 69) axis-angle in radians; differentiable."""
        ...

    def quadratic(self, body_pose: Float[Tensor, "batch body_pose"]) -> PoseQuadratic:
        """The energy with its first and (approximate) second derivative."""
        ...
