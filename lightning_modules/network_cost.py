"""How large a displacement network is and how much it computes, without running it."""

import copy
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules.hourglass import DisplacementNetwork
from renderers.maps import NUM_MAP_CHANNELS


@dataclass(frozen=True)
class NetworkCost:
    """Size and work of a network."""

    parameters: int
    """Trainable parameters."""
    macs: int
    """Multiply-accumulates of the convolutions for one crop, forward."""

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} M parameters, {self.macs / 1e9:.2f} G multiply-accumulates per crop"


def network_cost(network: DisplacementNetwork, height: int, width: int) -> NetworkCost:
    """Counts parameters and multiply-accumulates for one crop of the given size.

    Nothing is computed: a copy on the meta device goes through the layers with shapes alone.

    Raises:
        InputError: If the network does not take that size.
    """
    shapes_only = copy.deepcopy(network).to("meta").eval()
    image = torch.empty(1, network.image_channels, height, width, device="meta")
    renderings = torch.empty(1, NUM_MAP_CHANNELS, height, width, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes_only(image, renderings)
    parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return NetworkCost(parameters, counter.get_total_flops() // 2)
