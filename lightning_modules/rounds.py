"""What happened in a round of refinement; apart from what carries it out, so that reading it loads no network."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyParameters
from fitting import FitResult


@dataclass(frozen=True)
class PredictedDisplacement:
    """What the network says of bodies in a photo."""

    box_px: Float[Tensor, "people 3"]
    """Centre x, centre y and side of the crops in the photo."""
    displacement_px: Float[Tensor, "people 2 crop crop"]
    """From where each rendered point is to where the person is, in pixels of the photo."""
    mask: Bool[Tensor, "people crop crop"]
    """Where a body was rendered; elsewhere the displacement means nothing."""
    position_px: Float[Tensor, "people verts 2"]
    """Where each vertex should be in the photo."""
    weight: Float[Tensor, "people verts"]
    """Above 0 for vertices that were seen."""

    def mean_length_px(self) -> Float[Tensor, " people"]:
        """Mean length of the displacement over each rendered body; NaN where nothing was rendered."""
        length = torch.linalg.vector_norm(self.displacement_px, dim=1)
        return (length * self.mask).sum(dim=(1, 2)) / self.mask.sum(dim=(1, 2))


@dataclass(frozen=True)
class Round:
    """One round for all people of a photo."""

    start: BodyParameters
    """The bodies that were rendered."""
    predicted: PredictedDisplacement
    """What the network said of them."""
    fit: FitResult
    """The fit to that; where it was rejected, its bodies are those of the start."""
