"""The displacement network and its cost, on sizes of a few channels."""

import math

import jaxtyping
import pytest
import torch
from torch import nn

from bodies.errors import InputError
from lightning_modules.blocks import Bottleneck, Encoder, Hourglass
from lightning_modules.hourglass import DisplacementNetwork
from lightning_modules.network_cost import network_cost
from renderers.maps import NUM_MAP_CHANNELS


def _tiny(**changes):
    sizes = {"width": 16, "stacks": 2, "depth": 2, "feature_stride": 2, "encoder_blocks": 1}
    return DisplacementNetwork(**(sizes | changes))


def _inputs(batch=2, height=16, width=24, channels=3):
    return torch.rand(batch, channels, height, width), torch.rand(batch, NUM_MAP_CHANNELS, height, width)


def _parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_encoder_has_the_size_of_resnet50s_first_stage():
    # torchvision's resnet50: conv1 9408, bn1 128, layer1 215808.
    assert _parameters(Encoder(3, 64, 256, blocks=3, stride=1, norm="batch")) == 9408 + 128 + 215808
    # Ten input channels change the first convolution alone.
    assert _parameters(Encoder(10, 64, 256, blocks=3, stride=1, norm="batch")) == 64 * 10 * 49 + 128 + 215808


def test_the_encoders_features_keep_the_image_size():
    assert Encoder(3, 4, 16, blocks=2, stride=1, norm="batch")(torch.rand(1, 3, 13, 21)).shape == (1, 16, 13, 21)


def test_a_bottleneck_whose_residual_is_zero_is_a_relu():
    block = Bottleneck(8, 4, 8, "batch")
    nn.init.zeros_(block.residual[-1].weight)
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


def test_blocks_do_not_change_their_input():
    for module in (Bottleneck(8, 4, 8, "batch"), Hourglass(8, 2, 1, "batch")):
        x = torch.randn(2, 8, 8, 8)
        before = x.clone()
        module(x)
        assert torch.equal(x, before)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_predictions_have_the_size_of_the_crop(stride):
    assert _tiny(feature_stride=stride, stacks=3)(*_inputs(height=16, width=32)).shape == (2, 3, 2, 16, 32)


@pytest.mark.parametrize("stride", [1, 2])
def test_it_starts_from_zero_displacement_unless_told_otherwise(stride):
    assert not _tiny(feature_stride=stride)(*_inputs()).any()
    assert _tiny(feature_stride=stride, zero_init_outputs=False)(*_inputs()).abs().mean() > 1e-3


def test_displacements_are_in_pixels_of_the_crop_whatever_the_stride():
    for stride in (1, 2, 4):
        network = _tiny(feature_stride=stride, output_scale_px=3.0)
        with torch.no_grad():
            network.outputs[1].bias.copy_(torch.tensor([1.0, -2.0]))
        displacement = network(*_inputs(height=16, width=16))[:, 1]
        torch.testing.assert_close(displacement[:, 0], torch.full((2, 16, 16), 3.0))
        torch.testing.assert_close(displacement[:, 1], torch.full((2, 16, 16), -6.0))


@pytest.mark.parametrize("stride", [2, 4])
def test_upsampling_keeps_pixel_centres(stride):
    """A feature pixel's centre is the centre of the image pixels it covers: a ramp over x stays that ramp."""
    network = _tiny(feature_stride=stride)
    centres = (torch.arange(8) + 0.5) * stride
    unused = torch.zeros(0)
    ramp = network._to_pixels([centres.expand(1, 2, 8, 8)], unused, unused)[0, 0, 0]
    inside = slice(stride, -stride)  # beyond the outermost feature centres bilinear interpolation holds the last value
    # 1e-5 px: some roundings of numbers up to 32 in float32.
    pixels = torch.arange(8.0 * stride)[inside] + 0.5
    torch.testing.assert_close(ramp[:, inside], pixels.expand(8 * stride, -1), atol=1e-5, rtol=0.0)


def test_each_prediction_is_fed_to_the_next_stack():
    network = _tiny(zero_init_outputs=False).eval()
    inputs = _inputs()
    with torch.no_grad():
        before = network(*inputs)
        network.outputs[0].bias += 1.0
        change = (network(*inputs) - before).abs().amax(dim=(0, 2, 3, 4))
    assert change[0] == pytest.approx(1.0, abs=1e-4)
    assert change[1] > 1e-3


@pytest.mark.parametrize(
    ("choice", "used", "unused"),
    [
        ("all", slice(0, 10), slice(0, 0)),
        ("no_texture", slice(3, 10), slice(0, 3)),
        ("texture_only", slice(0, 3), slice(3, 10)),
    ],
)
def test_it_looks_at_the_chosen_renderings_alone(choice, used, unused):
    network = _tiny(render_inputs=choice, zero_init_outputs=False)
    image, renderings = _inputs()
    renderings.requires_grad_()
    network(image, renderings).square().sum().backward()
    seen = renderings.grad.abs().amax(dim=(0, 2, 3)) > 0
    assert seen[used].all()
    assert not seen[unused].any()


def test_an_hourglass_doubles_its_channels_down_to_the_most():
    widths = [block[0].residual[-1].out_channels for block in _downs(Hourglass(8, 3, 2, "batch", most_width=24))]
    assert widths == [16, 24, 24]
    assert [block[0].residual[-1].out_channels for block in _downs(Hourglass(8, 3, 2, "batch"))] == [8, 8, 8]
    x = torch.randn(2, 8, 16, 8)
    assert Hourglass(8, 3, 2, "batch", most_width=24)(x).shape == x.shape


def _downs(hourglass):
    inner = hourglass.inner
    return [hourglass.down, *(_downs(inner) if isinstance(inner, Hourglass) else [])]


def test_equal_widths_are_the_network_without_a_most():
    """So that the checkpoints of such networks are the same whether it was named or not."""
    assert _tiny(most_width=16).state_dict().keys() == _tiny().state_dict().keys()


def test_surface_outputs_have_the_size_of_the_features():
    output = _tiny(surface_outputs=True, stacks=3).predict(*_inputs(height=16, width=24))
    assert output.displacement_px.shape == (2, 3, 2, 16, 24)
    assert output.surface.shape == (2, 3, 4, 8, 12)
    assert _tiny().predict(*_inputs()).surface is None


def test_each_surface_is_fed_to_the_next_stack():
    network = _tiny(surface_outputs=True, zero_init_outputs=False).eval()
    inputs = _inputs()
    with torch.no_grad():
        network.merge_surfaces[0].weight.normal_()
        before = network.predict(*inputs)
        network.surface_outputs[0].bias += 1.0
        after = network.predict(*inputs)
    change = (after.displacement_px - before.displacement_px).abs().amax(dim=(0, 2, 3, 4))
    assert change[0] == 0
    assert change[1] > 1e-3
    torch.testing.assert_close(after.surface[:, 0], before.surface[:, 0] + 1.0)


def test_every_parameter_learns_once_the_outputs_are_not_zero():
    choices = {"hourglass_blocks": 2, "encoder_blocks": 2, "norm": "group", "stem_width": 8, "most_width": 32}
    network = _tiny(**choices, surface_outputs=True, zero_init_outputs=False)
    output = network.predict(*_inputs())
    (output.displacement_px.square().sum() + output.surface.square().sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not still


def test_it_learns_from_zero_initialised_outputs():
    """A flow that is constant over the image but differs between samples: the smallest task with an answer."""
    network = _tiny(output_scale_px=4.0)
    image, renderings = _inputs(batch=4, height=16, width=16)
    target = torch.randn(4, 1, 2, 1, 1) * 3
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    losses = []
    for _ in range(30):
        loss = (network(image, renderings) - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_bfloat16_autocast_gives_float32_near_the_full_precision():
    network = _tiny(zero_init_outputs=False).eval()
    inputs = _inputs()
    with torch.no_grad():
        exact = network(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = network(*inputs)
    assert rounded.dtype == torch.float32
    # bfloat16 has 8 bits; some thirty convolutions in a row lose a few per cent.
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_bfloat16_autocast_trains():
    network = _tiny(zero_init_outputs=False)
    with torch.autocast("cpu", torch.bfloat16):
        displacement = network(*_inputs())
    displacement.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_channels_last_agrees_with_the_default_layout():
    # In float64, where 1e-9 is far above the rounding of a few dozen layers.
    network = _tiny(zero_init_outputs=False).double().eval()
    inputs = [x.double() for x in _inputs()]
    with torch.no_grad():
        reference = network(*inputs)
        network.to(memory_format=torch.channels_last)
        result = network(*(x.contiguous(memory_format=torch.channels_last) for x in inputs))
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, reference, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("norm", "training"), [("batch", False), ("group", False), ("group", True)])
def test_batch_mates_do_not_matter(norm, training):
    network = _tiny(norm=norm, stem_width=8, zero_init_outputs=False).double().train(training)
    image, renderings = (x.double() for x in _inputs(batch=3))
    with torch.no_grad():
        together = network(image, renderings)
        alone = torch.cat([network(image[i : i + 1], renderings[i : i + 1]) for i in range(3)])
    # The order of summation in a convolution may depend on the batch size; float64 leaves it at 1e-9.
    torch.testing.assert_close(together, alone, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(12, 16), (16, 20), (0, 16), (15, 15)])
def test_a_size_that_cannot_be_halved_is_refused(height, width):
    with pytest.raises(InputError, match=f"multiples of 8 .feature stride 2 x 2.depth., got {height} x {width}"):
        _tiny()(*_inputs(height=height, width=width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stacks": 0}, "stacks must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"encoder_blocks": 0}, "encoder_blocks must be"),
        ({"hourglass_blocks": -1}, "hourglass_blocks must be"),
        ({"image_channels": 0}, "image_channels must be"),
        ({"width": 15}, "width must be a positive multiple of 2 with batch norm, got 15"),
        ({"width": 24, "norm": "group"}, "width must be a positive multiple of 16 with group norm"),
        ({"stem_width": 12, "norm": "group"}, "stem_width must be a positive multiple of 8 with group norm"),
        ({"stem_width": 0}, "stem_width must be"),
        ({"most_width": 14}, "most_width must be a multiple of 2, at least width 16, got 14"),
        ({"most_width": 24, "norm": "group"}, "most_width must be a multiple of 16"),
        ({"output_scale_px": 0.0}, "output_scale_px must be positive"),
        ({"output_scale_px": math.nan}, "output_scale_px must be positive"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        _tiny(**changes)


def test_wrong_channels_are_refused():
    image, renderings = _inputs()
    with pytest.raises(jaxtyping.TypeCheckError):
        _tiny()(image, renderings[:, :9])
    with pytest.raises(jaxtyping.TypeCheckError):
        _tiny(image_channels=1)(image, renderings)


def _counted_macs(network, height, width):
    """By hand, from the shapes that each convolution really sees."""
    macs = []

    def count(module, _, output):
        macs.append(output[0].numel() * module.in_channels * math.prod(module.kernel_size))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network.eval()(*_inputs(1, height, width))
    return sum(macs)


def test_the_cost_is_what_the_convolutions_do():
    network = _tiny(feature_stride=1)
    cost = network_cost(network, 16, 24)
    assert cost.parameters == _parameters(network)
    assert cost.macs == _counted_macs(network, 16, 24)


def test_counting_the_cost_leaves_the_network_alone():
    network = _tiny()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network_cost(network, 16, 16)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    with pytest.raises(InputError, match="multiples of 8"):
        network_cost(network, 16, 20)


def test_the_papers_network_has_a_plausible_cost():
    """26.4 ms on an RTX 4090 (82.6 TFLOP/s in fp32) is between a tenth and all of its peak."""
    with torch.device("meta"):
        network = DisplacementNetwork()
    cost = network_cost(network, 256, 256)
    assert 0.1 < 2 * cost.macs / 26.4e-3 / 82.6e12 < 1.0
    assert str(cost) == "13.32 M parameters, 252.87 G multiply-accumulates per crop"
