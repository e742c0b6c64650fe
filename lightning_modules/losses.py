"""The training loss (eq. 3) and the end-point error of displacement maps, over the pixels that were rendered.

Displacements are in pixels of the crop, x then y. A map's error is the mean over the rendered pixels of its own
sample, and a batch's loss is the mean over its samples, so a sample counts the same whatever its size in the crop and
whoever its batch mates are.
"""

from typing import Final, Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

DisplacementNorm = Literal["l1", "l2", "charbonnier"]
"""How the error (dx, dy) of a pixel is measured: |dx| + |dy|, dx^2 + dy^2, or the smoothed length."""

#: Charbonnier's error is quadratic below this length and linear above. A tenth of a pixel is less than what averaging
#: pixels into vertices leaves, so finer errors need no sharper pull.
CHARBONNIER_PX: Final = 0.1


def displacement_loss(
    predicted: Float[Tensor, "batch stacks 2 height width"],
    target: Float[Tensor, "batch 2 height width"],
    mask: Bool[Tensor, "batch height width"],
    norm: DisplacementNorm = "l1",
) -> Float[Tensor, " stacks"]:
    """Equation 3 for each stack: the distance between predicted and true displacement, none on the background.

    The training loss is the sum over stacks. A sample without a rendered pixel adds zero, and its gradient is zero.
    What the background holds, non-finite numbers included, changes neither value nor gradient.

    Args:
        predicted: Displacement maps in pixels.
        target: True displacement in pixels.
        mask: Which pixels were rendered.
        norm: "l1": |dx| + |dy|. "l2": dx^2 + dy^2. "charbonnier": sqrt(dx^2 + dy^2 + e^2) - e with e = 0.1 px
            (Charbonnier et al., "Two deterministic half-quadratic regularization algorithms", ICIP 1994). The norm of
            the paper is not known.

    Returns:
        The loss of each stack, in float32 at least.
    """
    error = _masked_error(predicted, target, mask)
    match norm:
        case "l1":
            distance = error.abs().sum(dim=2)
        case "l2":
            distance = error.square().sum(dim=2)
        case "charbonnier":
            distance = (error.square().sum(dim=2) + CHARBONNIER_PX**2).sqrt() - CHARBONNIER_PX
        case _:
            assert_never(norm)
    rendered = mask.sum(dim=(1, 2)).clamp(min=1)
    return (distance.sum(dim=(2, 3)) / rendered[:, None]).mean(dim=0)


def surface_loss(
    predicted: Float[Tensor, "batch stacks 4 height width"],
    mask: Bool[Tensor, "batch height width"],
    colors: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, " stacks"]:
    """How badly each stack says where the person is and which point of the body a pixel shows. Not in the paper.

    Args:
        predicted: The logit of the person's presence, then the three unique vertex colours.
        mask: Which pixels show the true body, occluders aside.
        colors: Its unique vertex colours there; the background counts for nothing.

    Returns:
        Binary cross entropy, mean over the pixels, plus the summed absolute error of the three colours, mean over the
        pixels of the body; of each stack, averaged over the samples.
    """
    presence = mask[:, None].to(predicted.dtype).expand(-1, predicted.shape[1], -1, -1)
    entropy = functional.binary_cross_entropy_with_logits(predicted[:, :, 0], presence, reduction="none")
    error = (predicted[:, :, 1:] - colors[:, None]).abs().sum(dim=2).where(mask[:, None], 0.0)
    shown = mask.sum(dim=(1, 2)).clamp(min=1)[:, None]
    return (entropy.mean(dim=(2, 3)) + error.sum(dim=(2, 3)) / shown).mean(dim=0)


def end_point_error_px(
    predicted: Float[Tensor, "batch stacks 2 height width"],
    target: Float[Tensor, "batch 2 height width"],
    mask: Bool[Tensor, "batch height width"],
) -> Float[Tensor, "batch stacks"]:
    """End-point error: the mean length of the displacement's error over the rendered pixels, in pixels.

    A sample without a rendered pixel has no end-point error: NaN. Not meant for gradients.
    """
    error = _masked_error(predicted.detach(), target, mask)
    # On a CPU, `vector_norm` along this dimension takes a hundred times as long, a tenth of a training step.
    length = (error[:, :, 0].square() + error[:, :, 1].square()).sqrt()
    return length.sum(dim=(2, 3)) / mask.sum(dim=(1, 2))[:, None]


def _masked_error(predicted: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Predicted minus true displacement, zero on the background, in float32 at least.

    The background is replaced before any norm: a zero factor after it would leave NaN where the background is NaN.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    error = predicted.to(dtype) - target[:, None].to(dtype)
    return torch.where(mask[:, None, None], error, torch.zeros((), dtype=dtype, device=error.device))
