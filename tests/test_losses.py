"""The loss of eq. 3 and the end-point error against numpy, by hand, and on samples without a rendered pixel."""

import math

import numpy as np
import pytest
import torch

from lightning_modules.losses import CHARBONNIER_PX, displacement_loss, end_point_error_px, surface_loss

NORMS = ["l1", "l2", "charbonnier"]


def _maps(batch=3, stacks=2, height=4, width=5, dtype=torch.float32):
    predicted = torch.randn(batch, stacks, 2, height, width, dtype=dtype) * 3
    target = torch.randn(batch, 2, height, width, dtype=dtype) * 3
    return predicted, target, torch.rand(batch, height, width) < 0.6


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("l1", 7.0), ("l2", 25.0), ("charbonnier", math.sqrt(25 + CHARBONNIER_PX**2) - CHARBONNIER_PX)],
)
def test_a_constant_error_has_the_known_loss(norm, expected):
    predicted = torch.tensor([3.0, -4.0])[None, None, :, None, None].expand(2, 3, 2, 4, 4)
    loss = displacement_loss(predicted, torch.zeros(2, 2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool), norm)
    torch.testing.assert_close(loss, torch.full((3,), expected))


def _distance(error, norm):
    dx, dy = (float(e) for e in error)
    if norm == "l1":
        return abs(dx) + abs(dy)
    if norm == "l2":
        return dx * dx + dy * dy
    return math.hypot(dx, dy, CHARBONNIER_PX) - CHARBONNIER_PX


@pytest.mark.parametrize("norm", NORMS)
def test_the_loss_is_the_mean_over_samples_of_the_mean_over_rendered_pixels(norm):
    predicted, target, mask = _maps(dtype=torch.float64)
    loss = displacement_loss(predicted, target, mask, norm)
    for stack in range(2):
        error = (predicted[:, stack] - target).numpy().transpose(0, 2, 3, 1)
        samples = [np.mean([_distance(e, norm) for e in error[b][mask[b].numpy()]]) for b in range(3)]
        assert float(loss[stack]) == pytest.approx(np.mean(samples), rel=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_weighs_the_same_whatever_its_mates(norm):
    """The gradient of a sample in a batch is that of the sample alone over the batch size."""
    predicted, target, mask = _maps()
    mask[1] = False
    mask[1, 0, 0] = True  # a mate with one rendered pixel
    predicted.requires_grad_()
    displacement_loss(predicted, target, mask, norm).sum().backward()
    alone = predicted[:1].detach().clone().requires_grad_()
    displacement_loss(alone, target[:1], mask[:1], norm).sum().backward()
    torch.testing.assert_close(predicted.grad[:1] * 3, alone.grad)


@pytest.mark.parametrize("norm", NORMS)
def test_the_background_does_not_count_whatever_it_holds(norm):
    predicted, target, mask = _maps()
    reference = displacement_loss(predicted, target, mask, norm)
    background = ~mask[:, None].expand_as(target)
    target = target.masked_fill(background, math.nan)
    predicted = predicted.masked_fill(background[:, None], math.inf).requires_grad_()
    loss = displacement_loss(predicted, target, mask, norm)
    loss.sum().backward()
    torch.testing.assert_close(loss, reference)
    assert predicted.grad.isfinite().all()
    assert not predicted.grad.masked_select(background[:, None]).any()


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_rendered_is_zero_loss_with_zero_gradient(norm):
    predicted, target, mask = _maps()
    predicted.requires_grad_()
    loss = displacement_loss(predicted, target, torch.zeros_like(mask), norm)
    loss.sum().backward()
    assert not loss.any()
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


@pytest.mark.parametrize("norm", NORMS)
def test_the_gradient_at_the_target_is_finite_and_zero(norm):
    _, target, mask = _maps()
    predicted = target[:, None].repeat(1, 2, 1, 1, 1).requires_grad_()
    displacement_loss(predicted, target, mask, norm).sum().backward()
    assert torch.equal(predicted.grad, torch.zeros_like(predicted))


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_match_finite_differences(norm):
    predicted, target, mask = _maps(batch=2, height=2, width=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: displacement_loss(p, target, mask, norm), predicted.requires_grad_())


@pytest.mark.parametrize("norm", NORMS)
def test_low_precision_maps_are_compared_in_float32(norm):
    predicted, target, mask = _maps()
    predicted, target = predicted.bfloat16(), target.bfloat16()
    loss = displacement_loss(predicted, target, mask, norm)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, displacement_loss(predicted.float(), target.float(), mask, norm))


def test_the_end_point_error_is_the_mean_length_per_sample_and_stack():
    predicted, target, mask = _maps()
    errors = end_point_error_px(predicted, target, mask)
    for b in range(3):
        for s in range(2):
            length = np.hypot(*(predicted[b, s] - target[b]).numpy().astype(np.float64))
            # Float32 means of a dozen numbers of order ten.
            assert float(errors[b, s]) == pytest.approx(length[mask[b].numpy()].mean(), rel=1e-5)


def test_without_a_rendered_pixel_there_is_no_end_point_error():
    predicted, target, mask = _maps()
    mask[1] = False
    errors = end_point_error_px(predicted, target, mask)
    assert errors.isnan().tolist() == [[False, False], [True, True], [False, False]]


def _surfaces(batch=3, stacks=2, height=4, width=5):
    predicted = torch.randn(batch, stacks, 4, height, width, dtype=torch.float64)
    return predicted, torch.rand(batch, height, width) < 0.6, torch.rand(batch, 3, height, width, dtype=torch.float64)


def test_the_surface_loss_is_cross_entropy_and_the_error_of_the_colours():
    predicted, mask, colors = _surfaces()
    loss = surface_loss(predicted, mask, colors)
    for stack in range(2):
        samples = []
        for guess, shown, color in zip(predicted[:, stack].numpy(), mask.numpy(), colors.numpy(), strict=True):
            chance = 1 / (1 + np.exp(-guess[0]))
            entropy = -np.where(shown, np.log(chance), np.log(1 - chance)).mean()
            samples.append(entropy + np.abs(guess[1:] - color).sum(axis=0)[shown].mean())
        assert float(loss[stack]) == pytest.approx(np.mean(samples), rel=1e-9)


def test_a_certain_and_right_surface_has_no_loss_whatever_the_background_holds():
    predicted, mask, colors = _surfaces()
    predicted[:, :, 0] = torch.where(mask, 100.0, -100.0)[:, None]
    predicted[:, :, 1:] = colors[:, None]
    colors = colors.where(mask[:, None], torch.nan)
    predicted = predicted.requires_grad_()
    loss = surface_loss(predicted, mask, colors)
    torch.testing.assert_close(loss, torch.zeros_like(loss))
    loss.sum().backward()
    assert predicted.grad.isfinite().all()


def test_a_sample_without_a_body_adds_its_cross_entropy_alone():
    predicted, mask, colors = _surfaces(batch=1)
    loss = surface_loss(predicted, torch.zeros_like(mask), colors)
    torch.testing.assert_close(loss, predicted[:, :, 0].exp().log1p().mean(dim=(0, 2, 3)))
