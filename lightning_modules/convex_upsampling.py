"""Upsampling a displacement map along the edges of the rendering.

A cell of the features can show an arm and the chest behind it, which are displaced differently; bilinear upsampling
blurs across that edge. Here each pixel is a weighted mean of the nine cells around it, with weights the network learns
from its features and from the rendering, which has the edge in full resolution. Not in the paper, whose features have
the resolution of the crop.

Source: Teed and Deng, "RAFT: recurrent all-pairs field transforms for optical flow", ECCV 2020, section 3.3 (the convex
combination of the 3x3 neighbours; the rendering as a guide is ours).
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_NEIGHBOURS: Final = 9
#: Least weight of a neighbour at the start: with none, its logit would be beyond the reach of training.
_LEAST_WEIGHT: Final = 3e-3


class ConvexUpsampling(nn.Module):
    """Upsamples maps by weights of the 3x3 cells around each pixel; starts as bilinear upsampling, nearly.

    Args:
        features: Channels of the features.
        guides: Channels of the guide.
        stride: Pixels per cell, a power of two.
        hidden: Channels between the two convolutions that make the weights.
    """

    def __init__(self, features: int, guides: int, stride: int, hidden: int) -> None:
        super().__init__()
        self.stride = stride
        self.weights = nn.Sequential(
            nn.Conv2d(features + guides * stride**2, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, _NEIGHBOURS * stride**2, 1),
        )

    def start_bilinear(self) -> None:
        """Makes the weights those of bilinear upsampling, whatever the input, but for a thousandth here and there."""
        last = self.weights[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_((bilinear_weights(self.stride) + _LEAST_WEIGHT).log().flatten())

    def forward(
        self,
        maps: Float[Tensor, "batch channels rows columns"],
        features: Float[Tensor, "batch features rows columns"],
        guide: Float[Tensor, "batch guides height width"],
    ) -> Float[Tensor, "batch channels height width"]:
        """The maps at the guide's size, in the maps' dtype; cells beyond the border repeat the last ones."""
        batch, channels, rows, columns = maps.shape
        cells = functional.pixel_unshuffle(guide, self.stride)
        logits = self.weights(torch.cat([features, cells.to(features.dtype)], dim=1))
        weights = logits.to(maps.dtype).view(batch, 1, _NEIGHBOURS, self.stride**2, rows, columns).softmax(dim=2)
        around = functional.unfold(functional.pad(maps, (1, 1, 1, 1), mode="replicate"), 3)
        around = around.view(batch, channels, _NEIGHBOURS, 1, rows, columns)
        pixels = (weights * around).sum(dim=2).flatten(1, 2)
        return functional.pixel_shuffle(pixels, self.stride)


def bilinear_weights(stride: int) -> Float[Tensor, "9 pixels"]:
    """Weights of the 3x3 neighbours, row by row, in bilinear upsampling, for each pixel of a cell."""
    offset = (torch.arange(stride) + 0.5) / stride - 0.5
    along = torch.stack([(-offset).clamp(min=0), 1 - offset.abs(), offset.clamp(min=0)])
    return torch.einsum("ai,bj->abij", along, along).reshape(_NEIGHBOURS, stride**2)
