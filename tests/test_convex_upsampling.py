"""Convex upsampling: it starts as bilinear upsampling, keeps within its neighbours, and learns an edge."""

import pytest
import torch
from torch.nn import functional

from bodies import InputError
from lightning_modules.convex_upsampling import ConvexUpsampling, bilinear_weights
from lightning_modules.hourglass import DisplacementNetwork


def _upsampling(stride=4, seed=0):
    torch.manual_seed(seed)
    layer = ConvexUpsampling(features=6, guides=3, stride=stride, hidden=16)
    layer.start_bilinear()
    return layer


def _inputs(stride=4, rows=5, columns=7):
    generator = torch.Generator().manual_seed(1)
    maps = 10 * torch.randn(2, 2, rows, columns, generator=generator)
    features = torch.randn(2, 6, rows, columns, generator=generator)
    guide = torch.rand(2, 3, rows * stride, columns * stride, generator=generator)
    return maps, features, guide


@pytest.mark.parametrize("stride", [2, 4])
def test_bilinear_weights_are_those_of_torch(stride):
    maps = _inputs()[0]
    padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    around = functional.unfold(padded, 3).view(2, 2, 9, *maps.shape[-2:])
    pixels = torch.einsum("bcnhw,np->bcphw", around, bilinear_weights(stride)).flatten(1, 2)
    expected = functional.interpolate(maps, scale_factor=float(stride), mode="bilinear")
    torch.testing.assert_close(functional.pixel_shuffle(pixels, stride), expected)


@pytest.mark.parametrize("stride", [2, 4])
def test_it_starts_nearly_bilinear_whatever_features_and_guide(stride):
    maps, features, guide = _inputs(stride)
    expected = functional.interpolate(maps, scale_factor=float(stride), mode="bilinear")
    with torch.no_grad():
        got = _upsampling(stride)(maps, features, guide)
    assert float((got - expected).abs().max()) < 0.03 * float(maps.max() - maps.min())


def test_pixels_stay_within_their_neighbours():
    maps, features, guide = _inputs()
    layer = _upsampling()
    torch.nn.init.normal_(layer.weights[-1].weight, std=3.0)
    with torch.no_grad():
        got = layer(maps, features, guide)
    padded = functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    highest = functional.interpolate(functional.max_pool2d(padded, 3, stride=1), scale_factor=4.0)
    lowest = -functional.interpolate(functional.max_pool2d(-padded, 3, stride=1), scale_factor=4.0)
    assert bool((got <= highest + 1e-4).all())
    assert bool((got >= lowest - 1e-4).all())


def test_it_learns_an_edge_that_only_the_guide_shows():
    """Two surfaces meet within the cells, at a place that differs from image to image."""
    layer = _upsampling()
    generator = torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    errors = []
    for _ in range(150):
        edge = torch.randint(8, 24, (8, 1, 1, 1), generator=generator)
        left = (torch.arange(32) < edge).expand(8, 1, 32, 32).float()
        truth = (6 * left - 3).expand(-1, 2, -1, -1)
        maps = functional.avg_pool2d(truth, 4)
        guide = torch.cat([left, torch.zeros(8, 2, 32, 32)], dim=1)
        error = (layer(maps, torch.zeros(8, 6, 8, 8), guide) - truth).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.4 * errors[0]


def test_only_the_last_stack_of_the_network_is_upsampled_so():
    sizes = {"width": 16, "stem_width": 8, "stacks": 2, "depth": 1, "feature_stride": 2, "encoder_blocks": 1}
    torch.manual_seed(0)
    network = DisplacementNetwork(**sizes, zero_init_outputs=False, convex_upsampling=True).eval()
    image, renderings = torch.rand(1, 3, 16, 16), torch.rand(1, 10, 16, 16)
    with torch.no_grad():
        before = network(image, renderings)
        torch.nn.init.normal_(network.upsampling.weights[-1].weight, std=3.0)
        after = network(image, renderings)
    torch.testing.assert_close(after[:, 0], before[:, 0], atol=0, rtol=0)
    assert not torch.allclose(after[:, 1], before[:, 1])


def test_features_as_large_as_the_crop_are_refused():
    with pytest.raises(InputError, match="convex_upsampling"):
        DisplacementNetwork(width=16, stacks=1, depth=1, convex_upsampling=True)
