"""The displacement network: an image encoder, a rendering encoder and a stacked hourglass.

It reads the photo crop and the 10-channel renderings of the initial body in it, and predicts for each pixel the
displacement (x right, y down, in pixels of the crop) from where the initial body is to where the person is. Only the
pixels that were rendered mean anything.

Sources: Wehrbein et al., "Personalized 3D Human Pose and Shape Refinement", ICCVW 2023, section 3 (two encoders, each
the first stage of ResNet-50 at stride 1, then four hourglasses, from scratch); He et al., "Deep residual learning for
image recognition", CVPR 2016, table 1 (the encoder's blocks); Newell et al., "Stacked hourglass networks for human
pose estimation", ECCV 2016, section 3 (the hourglass, and each prediction fed back to the next stack).
"""

import math
from typing import Final, Literal, NamedTuple, assert_never

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bodies.errors import InputError
from lightning_modules.blocks import NORM_GROUPS, Encoder, Hourglass, NormKind, ResidualModule, make_norm, residuals
from lightning_modules.convex_upsampling import ConvexUpsampling
from renderers.maps import MAP_CHANNELS, NUM_MAP_CHANNELS

RenderInputs = Literal["all", "no_texture", "texture_only"]
"""Which renderings the network looks at: all, all but the person's texture, or the texture alone."""

NUM_SURFACE_CHANNELS: Final = 4
"""Channels of a surface output: the person's logit and the three coordinates of `unique_vertex_colors`."""


class NetworkOutput(NamedTuple):
    """What the network says of a batch."""

    displacement_px: Float[Tensor, "batch stacks 2 height width"]
    """The displacement map of each stack in pixels of the input, x then y; the last stack's is the prediction."""
    surface: Float[Tensor, "batch stacks 4 feature_height feature_width"] | None
    """Where each stack sees the person, as a logit, and which point of the body, as `unique_vertex_colors` has it."""


class DisplacementNetwork(nn.Module):
    """Predicts the displacement from the rendered initial body to the person in the photo.

    The defaults are the paper's network. Inputs of any size that `size_multiple` divides are taken.

    Args:
        width: Channels of each encoder's output and of the hourglasses.
        stem_width: Channels of the encoders' first convolution and inside their bottlenecks; a quarter of `width` if
            not given, as in ResNet-50.
        stacks: Number of hourglasses, each with a prediction of its own.
        depth: How often each hourglass halves the resolution.
        feature_stride: Features have the size of the crop divided by this; predictions are upsampled to the crop.
        encoder_blocks: Bottlenecks in each encoder.
        hourglass_blocks: Residual modules in a row in the hourglasses and before each prediction.
        render_inputs: Which of the 10 rendering channels are used. All 10 are given in any case.
        image_channels: Channels of the image.
        norm: Kind of normalisation. "batch" is the paper's; across processes it needs Lightning's `sync_batchnorm`.
        output_scale_px: The last layers predict displacements in units of this many pixels.
        most_width: Within an hourglass the channels double with each halving of the resolution until there are this
            many; `width` by default, which is the paper's: the same channels everywhere.
        surface_outputs: Each stack also says which pixels show the person, and which point of the body, and hands that
            to the next one. Not in the paper: a network that trains for hours and not for weeks learns faster with it
            (`RefinementModule`'s `surface_weight`).
        convex_upsampling: The last stack's prediction is upsampled along the edges of the rendering, see
            `ConvexUpsampling`, the others' bilinearly. Not in the paper, where the features are as large as the crop.
        zero_init_outputs: Start from zero displacement. Networks of the size that a CPU can train learn from the
            first hundreds of steps with this, and not for long without.
    """

    def __init__(
        self,
        width: int = 256,
        stem_width: int | None = None,
        stacks: int = 4,
        depth: int = 4,
        feature_stride: Literal[1, 2, 4] = 1,
        encoder_blocks: int = 3,
        hourglass_blocks: int = 1,
        render_inputs: RenderInputs = "all",
        image_channels: int = 3,
        norm: NormKind = "batch",
        output_scale_px: float = 1.0,
        most_width: int | None = None,
        surface_outputs: bool = False,
        convex_upsampling: bool = False,
        zero_init_outputs: bool = True,
    ) -> None:
        super().__init__()
        stem_width = width // 4 if stem_width is None else stem_width
        counts = {"stacks": stacks, "depth": depth, "image_channels": image_channels}
        blocks = {"encoder_blocks": encoder_blocks, "hourglass_blocks": hourglass_blocks}
        _check_sizes(width, stem_width, width if most_width is None else most_width, norm, **counts, **blocks)
        if not (math.isfinite(output_scale_px) and output_scale_px > 0):
            raise InputError(f"output_scale_px must be positive, got {output_scale_px}")
        if convex_upsampling and feature_stride == 1:
            raise InputError("convex_upsampling has nothing to upsample where feature_stride is 1")
        self.image_channels = image_channels
        self.stacks = stacks
        self.feature_stride = feature_stride
        self.size_multiple = feature_stride * 2**depth
        self.output_scale_px = output_scale_px
        self._render_slice = _render_slice(render_inputs)
        used = len(range(*self._render_slice.indices(NUM_MAP_CHANNELS)))
        self.image_encoder = Encoder(image_channels, stem_width, width, encoder_blocks, feature_stride, norm)
        self.render_encoder = Encoder(used, stem_width, width, encoder_blocks, feature_stride, norm)
        self.fuse = ResidualModule(2 * width, width, norm)
        self.hourglasses = nn.ModuleList(
            nn.Sequential(
                Hourglass(width, depth, hourglass_blocks, norm, most_width),
                residuals(width, width, hourglass_blocks, norm),
                nn.Conv2d(width, width, 1, bias=False),
                make_norm(norm, width),
                nn.ReLU(inplace=True),
            )
            for _ in range(stacks)
        )
        self.outputs = nn.ModuleList(nn.Conv2d(width, 2, 1) for _ in range(stacks))
        # What a stack hands to the next one: its features and its prediction, each through a 1x1 convolution.
        self.merge_features = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(stacks - 1))
        self.merge_predictions = nn.ModuleList(nn.Conv2d(2, width, 1) for _ in range(stacks - 1))
        surfaces = stacks if surface_outputs else 0
        self.surface_outputs = nn.ModuleList(nn.Conv2d(width, NUM_SURFACE_CHANNELS, 1) for _ in range(surfaces))
        self.merge_surfaces = nn.ModuleList(nn.Conv2d(NUM_SURFACE_CHANNELS, width, 1) for _ in range(surfaces - 1))
        self.upsampling = ConvexUpsampling(width, used, feature_stride, hidden=width) if convex_upsampling else None
        self._initialise(zero_init_outputs)
        # Channels last in memory halves the time of a step in bfloat16 on a CPU, and is what tensor cores read.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        image: Float[Tensor, "batch {self.image_channels} height width"],
        renderings: Float[Tensor, "batch 10 height width"],
    ) -> Float[Tensor, "batch {self.stacks} 2 height width"]:
        """The displacement map of each stack in pixels of the input, x then y; the last stack's is the prediction.

        Args:
            image: The photo crop.
            renderings: The initial body in that crop, all channels of `renderers.maps`.

        Returns:
            Displacements of the full input size, in float32 under autocast too.

        Raises:
            InputError: If the input's size cannot be halved as often as the network needs.
        """
        return self.predict(image, renderings).displacement_px

    def predict(
        self,
        image: Float[Tensor, "batch {self.image_channels} height width"],
        renderings: Float[Tensor, "batch 10 height width"],
    ) -> NetworkOutput:
        """All that the network says; `forward` gives the displacements alone."""
        self.check_size(image.shape[-2], image.shape[-1])
        assert renderings.shape[1] == NUM_MAP_CHANNELS, f"{renderings.shape[1]} rendering channels"
        image = image.contiguous(memory_format=torch.channels_last)
        renderings = renderings[:, self._render_slice].contiguous(memory_format=torch.channels_last)
        features = [self.image_encoder(image), self.render_encoder(renderings)]
        x = self.fuse(torch.cat(features, dim=1))
        predictions, surfaces = [], []
        for stack, (hourglass, output) in enumerate(zip(self.hourglasses, self.outputs, strict=True)):
            refined = hourglass(x)
            predictions.append(output(refined))
            surfaces += [self.surface_outputs[stack](refined)] if self.surface_outputs else []
            if stack + 1 < self.stacks:
                x = x + self.merge_features[stack](refined) + self.merge_predictions[stack](predictions[-1])
                x = x + self.merge_surfaces[stack](surfaces[-1]) if surfaces else x
        surface = torch.stack(surfaces, dim=1).float() if surfaces else None
        return NetworkOutput(self._to_pixels(predictions, refined, renderings), surface)

    def check_size(self, height: int, width: int) -> None:
        """Refuses an input size that the network cannot halve as often as it needs.

        Raises:
            InputError: If `size_multiple` does not divide both.
        """
        multiple = self.size_multiple
        if height % multiple or width % multiple or not (height and width):
            raise InputError(
                f"the displacement network needs crops whose height and width are multiples of {multiple} "
                f"(feature stride {self.feature_stride} x 2^depth), got {height} x {width}"
            )

    def _to_pixels(self, predictions: list[Tensor], features: Tensor, renderings: Tensor) -> Tensor:
        """Scales to pixels and upsamples, in float32 so that no rounding is added to the network's own."""
        dtype = torch.promote_types(predictions[0].dtype, torch.float32)
        maps = [prediction.to(dtype) * self.output_scale_px for prediction in predictions]
        if self.feature_stride == 1:
            return torch.stack(maps, dim=1)
        last = [self.upsampling(maps.pop(), features, renderings)] if self.upsampling else []
        larger = [
            functional.interpolate(small, scale_factor=float(self.feature_stride), mode="bilinear") for small in maps
        ]
        return torch.stack(larger + last, dim=1)

    def _initialise(self, zero_init_outputs: bool) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d) and not name.startswith("outputs."):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.upsampling:
            self.upsampling.start_bilinear()
        # A network that has learned without surfaces starts from what it knows, see `warm_start`.
        for parameter in self.merge_surfaces.parameters():
            nn.init.zeros_(parameter)
        if zero_init_outputs:
            for parameter in self.outputs.parameters():
                nn.init.zeros_(parameter)


def _render_slice(render_inputs: RenderInputs) -> slice:
    match render_inputs:
        case "all":
            return slice(0, NUM_MAP_CHANNELS)
        case "no_texture":
            return slice(MAP_CHANNELS["texture"].stop, NUM_MAP_CHANNELS)
        case "texture_only":
            return MAP_CHANNELS["texture"]
        case _:
            assert_never(render_inputs)


def _check_sizes(width: int, stem_width: int, most_width: int, norm: NormKind, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name} must be at least 1, got {count}")
    # Residual modules work inside at half the width.
    multiple = 2 if norm == "batch" else 2 * NORM_GROUPS
    if width < multiple or width % multiple:
        raise InputError(f"width must be a positive multiple of {multiple} with {norm} norm, got {width}")
    if most_width < width or most_width % multiple:
        raise InputError(f"most_width must be a multiple of {multiple}, at least width {width}, got {most_width}")
    if stem_width < 1 or (norm == "group" and stem_width % NORM_GROUPS):
        raise InputError(
            f"stem_width must be a positive multiple of {multiple // 2} with {norm} norm, got {stem_width}"
        )
