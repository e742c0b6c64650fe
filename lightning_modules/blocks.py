"""The blocks of the displacement network: a residual encoder at full resolution, and the hourglass.

Sources: He et al., "Deep residual learning for image recognition", CVPR 2016, table 1 (the encoder's blocks); Newell et
al., "Stacked hourglass networks for human pose estimation", ECCV 2016, section 3 (the hourglass and its residuals).
"""

from typing import Final, Literal, assert_never

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

NormKind = Literal["batch", "group"]
"""Batch norm as in the paper, or group norm, which does not depend on the other samples of the batch."""

NORM_GROUPS: Final = 8
"""Groups of a group norm; it divides every number of channels."""


class Bottleneck(nn.Module):
    """ResNet's bottleneck block at stride 1: 1x1, 3x3, 1x1, each with norm, ReLU after the sum."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int, norm: NormKind) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, mid_channels, 1, bias=False),
            make_norm(norm, mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, mid_channels, 3, padding=1, bias=False),
            make_norm(norm, mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, 1, bias=False),
            make_norm(norm, out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut = nn.Sequential(projection, make_norm(norm, out_channels))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Same size, `out_channels` channels."""
        return functional.relu(self.residual(x) + self.shortcut(x))


class Encoder(nn.Sequential):
    """The first stage of ResNet-50 without max pooling: 7x7 convolution, norm, ReLU, then bottlenecks.

    Args:
        in_channels: Channels of the input.
        stem_width: Channels of the 7x7 convolution and inside the bottlenecks; 64 in ResNet-50.
        width: Channels of the output; 256 in ResNet-50.
        blocks: Number of bottlenecks; 3 in ResNet-50.
        stride: Stride of the 7x7 convolution.
        norm: Kind of normalisation.
    """

    def __init__(self, in_channels: int, stem_width: int, width: int, blocks: int, stride: int, norm: NormKind) -> None:
        inputs = [stem_width] + [width] * (blocks - 1)
        super().__init__(
            nn.Conv2d(in_channels, stem_width, 7, stride=stride, padding=3, bias=False),
            make_norm(norm, stem_width),
            nn.ReLU(inplace=True),
            *(Bottleneck(channels, stem_width, width, norm) for channels in inputs),
        )


class ResidualModule(nn.Module):
    """The hourglass paper's residual module: a bottleneck with norm and ReLU before each convolution."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormKind) -> None:
        super().__init__()
        mid_channels = out_channels // 2
        # A ReLU can be in place here: the norm before it made a new tensor, so the shortcut keeps its input.
        self.residual = nn.Sequential(
            make_norm(norm, in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, mid_channels, 1, bias=False),
            make_norm(norm, mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, mid_channels, 3, padding=1, bias=False),
            make_norm(norm, mid_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, out_channels, 1),
        )
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch out height width"]:
        """Same size, `out_channels` channels."""
        return self.residual(x) + self.shortcut(x)


class Hourglass(nn.Module):
    """One hourglass: residual modules at `depth` halvings of the resolution and back, with a skip at each level.

    Args:
        width: Channels of input and output.
        depth: How often the resolution is halved.
        blocks: Residual modules in a row wherever the paper has one.
        norm: Kind of normalisation.
        most_width: The channels double with each halving until there are this many; by default, as in the paper, they
            stay the same.
    """

    def __init__(self, width: int, depth: int, blocks: int, norm: NormKind, most_width: int | None = None) -> None:
        super().__init__()
        low = width if most_width is None else min(2 * width, most_width)
        self.skip = residuals(width, width, blocks, norm)
        self.down = residuals(width, low, blocks, norm)
        self.inner: nn.Module
        if depth > 1:
            self.inner = Hourglass(low, depth - 1, blocks, norm, most_width)
        else:
            self.inner = residuals(low, low, blocks, norm)
        self.up = residuals(low, width, blocks, norm)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """Same size and channels."""
        low = self.up(self.inner(self.down(functional.max_pool2d(x, 2))))
        return self.skip(x) + functional.interpolate(low, scale_factor=2.0, mode="nearest")


def residuals(in_channels: int, out_channels: int, count: int, norm: NormKind) -> nn.Sequential:
    """Residual modules in a row, the first of which changes the number of channels."""
    inputs = [in_channels] + [out_channels] * (count - 1)
    return nn.Sequential(*(ResidualModule(channels, out_channels, norm) for channels in inputs))


def make_norm(kind: NormKind, channels: int) -> nn.Module:
    """A normalisation layer."""
    match kind:
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(NORM_GROUPS, channels)
        case _:
            assert_never(kind)
