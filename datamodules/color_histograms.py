"""Weighted medians of colours that arrive one by one, in memory that does not depend on how many there are.

For each point and channel the weights are summed in bins of equal width; the median is the middle of the bin in which
the running sum reaches half of the total. So it differs from the exact weighted median (the lower one, where half of
the weight lies exactly between two colours) by at most `MAX_ERROR`, 2 of the 255 steps of a colour, which is less
than the noise of a photo. Channels are independent.
"""

from typing import Final

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

#: Values of a channel that share a bin; a power of two.
BIN_VALUES: Final = 4
BINS: Final = 256 // BIN_VALUES
#: Largest distance of a reported median from the exact one, in steps of 1/255.
MAX_ERROR: Final = BIN_VALUES // 2
#: Points whose medians are found at a time: the running sums of this many take 13 MB.
_BLOCK_POINTS: Final = 1 << 14


class ColorHistograms:
    """The colours that a fixed number of points were seen in.

    Takes 772 bytes for each point. The result does not depend on the order of the colours but for rounding of the
    summed weights in float32.

    Args:
        num_points: How many points.
        device: Where to count.
    """

    def __init__(self, num_points: int, device: torch.device | str = "cpu") -> None:
        self._weights = torch.zeros(num_points * 3 * BINS, device=device)
        self._total = torch.zeros(num_points, device=device)

    def add(
        self, points: Int64[Tensor, " seen"], rgb: UInt8[Tensor, "seen 3"], weight: Float32[Tensor, " seen"]
    ) -> None:
        """Counts one look at some of the points.

        Args:
            points: Which points; each at most once, so that sums on a GPU do not depend on chance.
            rgb: Their colours.
            weight: How much each look is worth, not negative.
        """
        channel = points[:, None] * 3 + torch.arange(3, device=points.device)
        place = channel * BINS + (rgb // BIN_VALUES).long()
        self._weights.index_add_(0, place.flatten(), weight.repeat_interleave(3))
        self._total.index_add_(0, points, weight)

    @property
    def total_weight(self) -> Float32[Tensor, " points"]:
        """Summed weight of each point."""
        return self._total

    def median(self) -> UInt8[Tensor, "points 3"]:
        """Weighted median of each channel; zero for points of which nothing was counted."""
        blocks = self._weights.view(-1, 3, BINS).split(_BLOCK_POINTS)
        return torch.cat([_block_median(block) for block in blocks])


def _block_median(weights: Float32[Tensor, "points 3 bins"]) -> UInt8[Tensor, "points 3"]:
    # The half is taken of the running sum's own last value, which rounding may keep from being the exact total.
    running = weights.double().cumsum(dim=-1)
    bin_number = (running < running[..., -1:] / 2).sum(dim=-1)
    value = bin_number * BIN_VALUES + BIN_VALUES // 2
    return value.where(running[..., -1] > 0, 0).to(torch.uint8)
