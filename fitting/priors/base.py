"""What a pose prior offers the fit, and what priors have in common."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from fitting.priors.duals import Dual


@dataclass(frozen=True)
class PoseQuadratic:
    """A prior's energy near a pose, as a quadratic in axis-angle."""

    energy: Float[Tensor, " batch"]
    """The energy itself."""
    gradient: Float[Tensor, "batch pose"]
    """Its derivative."""
    hessian: Float[Tensor, "batch pose pose"]
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


@runtime_checkable
class ImagePrior(Protocol):
    """An energy of all 24 joints, the root included, that each sample has from its own image.

    Poses, and with them the samples of a fit, are in the order of the images.
    """

    def __len__(self) -> int:
        """Number of images."""
        ...

    def select(self, index: slice | Tensor) -> "ImagePrior":
        """The priors of some images."""
        ...

    def energy(self, pose: Float[Tensor, "batch pose"]) -> Float[Tensor, " batch"]:
        """Energy of each pose, (B, 72) axis-angle in radians, the root's in the camera frame; differentiable."""
        ...

    def quadratic(self, pose: Float[Tensor, "batch pose"]) -> PoseQuadratic:
        """The energy with its first and (approximate) second derivative."""
        ...


def gauss_newton(residuals: Dual) -> PoseQuadratic:
    """The quadratic of half the sum of squared residuals (batch, residuals): gradient J'r, curvature J'J."""
    assert residuals.tangent is not None
    gradient = (residuals.tangent @ residuals.value[..., None]).squeeze(-1)
    curvature = residuals.tangent @ residuals.tangent.mT
    return PoseQuadratic(residuals.value.square().sum(dim=1) / 2, gradient, curvature)
