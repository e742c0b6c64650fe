"""ProHMR's normalizing flow, a density of whole poses given an image, as a prior.

    flow = FlowPrior.load("checkpoint.pt")           # of ProHMR
    prior = flow.conditioned_on(features)            # (B, 2048): ProHMR's `conditioning_feats` of B images
    Smplify(body, prior)(initial, camera, targets)   # of the same B people, in the same order

The flow maps the first two columns of the 24 rotations, x (144 numbers), to z with density

    log p(x | image) = log N(z; 0, I) + log |dz/dx|.

It is a conditional Glow whose couplings are additive, so |dz/dx| comes from its scales and triangular matrices alone:
one number for all poses and all images. Up to this constant the negative log density is 0.5 |z|^2, which is the energy
here; `log_prob` is the whole. Levenberg-Marquardt takes it as it is, a sum of squares, so no term is left out and
both solvers minimise the same. The constant stays out of the energy because solvers stop by relative changes, which
it would distort. Among rotations, which is where the fit stays, no further
volume factor is needed: their first two columns are a surface on which every rotation looks like every other.

ProHMR itself moves z and orthonormalises what the flow makes of it (section 3.6: its prior, too, is |z|^2). Here the
fit moves the rotations, as with every other prior, so that it starts exactly at the initial estimate.

The density includes the root's orientation, in the camera frame of ProHMR's crop, which like ProHMR's own fit to full
images this takes for that of the full image. A store of samples has no image features: the prior is for Python.

Sources: Kolotouros et al., "Probabilistic Modeling for Human Mesh Recovery", ICCV 2021; nkolot/ProHMR
`prohmr/models/heads/smpl_flow.py`, `prohmr/models/prohmr.py`; nkolot/nflows `flows/glow.py`,
`transforms/{normalization,lu,coupling}.py`, `nn/nets/resnet.py`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from bodies.errors import InputError
from fitting.priors.base import PoseQuadratic, gauss_newton
from fitting.priors.duals import Dual, right_jacobian, rotations
from fitting.priors.weight_files import Weights, norm_as_scale_and_shift

#: Numbers of a pose: two columns of the rotations of SMPL's 24 joints.
FLOW_SIZE: Final = 144
#: Where ProHMR keeps its flow.
PREFIX: Final = "flow.flow._transform._transforms."
#: Added to the diagonal of the triangular matrices (nflows `LULinear`).
_DIAGONAL_FLOOR: Final = 1e-3


class _Block(nn.Module):
    """x + second(relu(first(relu(x * scale + shift)))): a residual block, its second norm merged into `first`."""

    def __init__(self, weights: Weights, name: str, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        scale, shift = norm_as_scale_and_shift(weights, f"{name}.batch_norm_layers.0", hidden)
        first, first_bias = _linear(weights, f"{name}.linear_layers.0", hidden, hidden)
        inner, inner_shift = norm_as_scale_and_shift(weights, f"{name}.batch_norm_layers.1", hidden)
        second, second_bias = _linear(weights, f"{name}.linear_layers.1", hidden, hidden)
        buffers = {
            "scale": scale,
            "shift": shift,
            "first": first * inner[:, None],
            "first_bias": first_bias * inner + inner_shift,
            "second": second,
            "second_bias": second_bias,
        }
        for key, value in buffers.items():
            self.register_buffer(key, value.to(dtype), persistent=False)

    scale: Tensor
    shift: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor

    def forward(self, values: Dual) -> Dual:
        """The block's output."""
        inner = values.scaled(self.scale, self.shift).rectified().affine(self.first, self.first_bias)
        return values + inner.rectified().affine(self.second, self.second_bias)


class _Layer(nn.Module):
    """One layer of the flow, towards the noise: a scale per feature, a matrix L U, a coupling that adds.

    The scale and the matrix are one affine map. The part of the coupling that sees the image is computed beforehand.
    """

    matrix: Tensor
    offset: Tensor
    from_features: Tensor
    from_features_bias: Tensor
    from_kept: Tensor
    last: Tensor
    last_bias: Tensor
    kept: Tensor
    moved: Tensor

    def __init__(self, weights: Weights, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        norm, linear, coupling = (f"{PREFIX}{3 * index + part}" for part in range(3))
        log_scale = weights.take(f"{norm}.log_scale", FLOW_SIZE)
        matrix, log_diagonal = _lower_times_upper(weights, linear)
        kept, moved = _split(weights, coupling)
        net = f"{coupling}.transform_net"
        initial, initial_bias = _linear(weights, f"{net}.initial_layer", None, None)
        if initial.shape[1] <= len(kept):
            raise InputError(f"{weights.name}: {net}.initial_layer.weight has no place for an image's features")
        hidden = len(initial)
        last, last_bias = _linear(weights, f"{net}.final_layer", len(moved), hidden)
        blocks = _count(weights, f"{net}.blocks.")
        self.blocks = nn.ModuleList(_Block(weights, f"{net}.blocks.{b}", hidden, dtype) for b in range(blocks))
        buffers = {
            "matrix": matrix * log_scale.exp(),
            "offset": matrix @ weights.take(f"{norm}.shift", FLOW_SIZE) + weights.take(f"{linear}.bias", FLOW_SIZE),
            "from_kept": initial[:, : len(kept)],
            "from_features": initial[:, len(kept) :],
            "from_features_bias": initial_bias,
            "last": last,
            "last_bias": last_bias,
        }
        for key, value in buffers.items():
            self.register_buffer(key, value.to(dtype).contiguous(), persistent=False)
        self.register_buffer("kept", kept, persistent=False)
        self.register_buffer("moved", moved, persistent=False)
        #: Logarithm of how much the layer stretches volumes.
        self.log_volume = float(log_scale.sum() + log_diagonal.sum())

    def seen(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch hidden"]:
        """What the coupling's net has of the image."""
        return functional.linear(features.to(self.matrix), self.from_features, self.from_features_bias)

    def forward(self, values: Dual, seen: Float[Tensor, "batch hidden"]) -> Dual:
        """The layer's output."""
        values = values.affine(self.matrix, self.offset)
        from_kept = values.mapped(lambda features: features[..., self.kept]).affine(self.from_kept, None)
        hidden = Dual(from_kept.value + seen, from_kept.tangent)
        for block in self.blocks:
            hidden = block(hidden)
        shift = hidden.affine(self.last, self.last_bias)
        moved = shift.mapped(lambda some: some.new_zeros(*some.shape[:-1], FLOW_SIZE).index_copy(-1, self.moved, some))
        return values + moved


class FlowPrior(nn.Module):
    """ProHMR's flow. Its arrays are buffers that are not saved with a checkpoint.

    Args:
        weights: Of ProHMR.
        dtype: Of the buffers; what they hold is computed in double precision.

    Raises:
        InputError: If a weight is missing, has another shape, or is not finite.
    """

    def __init__(self, weights: Weights, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weights = weights.below(PREFIX)
        count = _count(weights, PREFIX)
        if count == 0 or count % 3:
            raise InputError(f"{weights.name}: not ProHMR, it has {count} parts of a flow ({PREFIX}*), not 3 a layer")
        layers = [_Layer(weights, index, dtype) for index in range(count // 3)]
        if len({layer.from_features.shape for layer in layers}) > 1:
            raise InputError(f"{weights.name}: layers of the flow differ in size")
        #: Numbers of an image's features; 2048 in ProHMR.
        self.num_features = layers[0].from_features.shape[1]
        #: Logarithm of |dz/dx|, the same for all poses and images.
        self.log_volume = sum(layer.log_volume for layer in layers)
        self.layers = nn.ModuleList(layers)

    @classmethod
    def load(cls, path: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Reads the flow out of ProHMR's checkpoint.

        Args:
            path: ProHMR's data/checkpoint.pt, or a checkpoint of its training.
            dtype: Of the buffers.

        Raises:
            InputError: If the file is missing, damaged, names classes that weights do not need, or is no ProHMR.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; data/checkpoint.pt comes with github.com/nkolot/ProHMR")
        return cls(Weights.read(Path(path)), dtype)

    def conditioned_on(self, features: Float[Tensor, "batch features"]) -> "ImageFlow":
        """The prior of each image.

        Args:
            features: ProHMR's `conditioning_feats` of the crops, its ResNet-50's output before the heads.

        Raises:
            InputError: If they are of another size or not finite.
        """
        if features.shape[1] != self.num_features:
            raise InputError(f"image features have {features.shape[1]} numbers, the flow takes {self.num_features}")
        if not bool(features.isfinite().all()):
            raise InputError("image features hold numbers that are not finite")
        return ImageFlow(self, torch.stack([layer.seen(features.detach()) for layer in self._layers()], dim=1))

    def push(self, values: Dual, seen: Float[Tensor, "batch layers hidden"]) -> Dual:
        """Maps poses to noise, given what the layers have of the images."""
        for layer, of_layer in zip(self._layers(), seen.unbind(1), strict=True):
            values = layer(values, of_layer)
        return values

    def _layers(self) -> Iterator[_Layer]:
        for layer in self.layers:
            assert isinstance(layer, _Layer)
            yield layer


@dataclass(frozen=True)
class ImageFlow:
    """The flow given some images: an `ImagePrior`. Made by `FlowPrior.conditioned_on`."""

    flow: FlowPrior
    """The flow; move it to the fit's device before the images are given."""
    seen: Float[Tensor, "batch layers hidden"]
    """What its layers have of the images."""

    def __len__(self) -> int:
        return len(self.seen)

    def select(self, index: slice | Tensor) -> "ImageFlow":
        """The priors of some images."""
        return ImageFlow(self.flow, self.seen[index])

    def latent(self, pose: Float[Tensor, "batch 72"]) -> Float[Tensor, "batch 144"]:
        """Where the flow maps each pose, a standard normal for poses of the image; axis-angle in radians."""
        return self._latent(pose, derive=False).value

    def energy(self, pose: Float[Tensor, "batch 72"]) -> Float[Tensor, " batch"]:
        """0.5 |z|^2: how much less likely each pose is than z = 0; axis-angle in radians; differentiable."""
        return self.latent(pose).square().sum(dim=-1) / 2

    def log_prob(self, pose: Float[Tensor, "batch 72"]) -> Float[Tensor, " batch"]:
        """Logarithm of the density of the 144 numbers, as ProHMR's `log_prob`; minus the energy, plus a constant."""
        return self.flow.log_volume - FLOW_SIZE / 2 * math.log(2 * math.pi) - self.energy(pose)

    def quadratic(self, pose: Float[Tensor, "batch 72"]) -> PoseQuadratic:
        """The energy with its derivative and its curvature: J'J, and what the rotations' own curvature adds to it.

        z is linear in x but for the kinks of the rectifiers, x is not linear in the pose. With g the energy's
        derivative by x, the second derivative is therefore J'J + sum over x_k of g_k times the second derivative of
        x_k, a block of 3x3 for each joint. What of a block is negative is left out. As x has twice as many numbers as
        the pose, z stays well away from zero, and J'J alone would be a poor model.
        """
        model = gauss_newton(self._latent(pose, derive=True))
        joints = pose.unflatten(1, (-1, 3))
        turn = right_jacobian(joints)
        blocks = turn.mT @ _positive_part(self._bending(rotations(joints, derive=False).value)) @ turn
        hessian = model.hessian.unflatten(2, (-1, 3)).unflatten(1, (-1, 3))
        hessian.diagonal(dim1=1, dim2=3).add_(blocks.movedim(1, -1))
        return model

    def _bending(self, matrices: Float[Tensor, "batch 24 3 3"]) -> Float[Tensor, "batch 24 3 3"]:
        """Second derivative of the energy by R exp([d]x) at d = 0 that is due to exp([d]x) = I + [d]x + [d]x^2 / 2.

        [d]x^2 = d d' - |d|^2 I: with M = R' g, g's columns under those of R, it is (M + M') / 2 - trace(M) I.
        """
        with torch.enable_grad():
            values = matrices[..., :2].mT.flatten(1).detach().requires_grad_()
            energy = self.flow.push(Dual(values), self.seen).value.square().sum() / 2
            (by_values,) = torch.autograd.grad(energy, values)
        by_columns = functional.pad(by_values.unflatten(1, (-1, 2, 3)).mT, (0, 1))
        moment = matrices.mT @ by_columns
        trace = moment.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
        return (moment + moment.mT) / 2 - trace * torch.eye(3, dtype=trace.dtype, device=trace.device)

    def _latent(self, pose: Tensor, *, derive: bool) -> Dual:
        turned = rotations(pose.unflatten(1, (-1, 3)), derive=derive)
        # Column after column, unlike most networks' 6D.
        return self.flow.push(turned.mapped(lambda matrices: matrices[..., :2].mT.flatten(-3)), self.seen)


def _positive_part(symmetric: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    # A step of Levenberg-Marquardt may lead to NaN; eigh would refuse the whole batch for it.
    values, vectors = torch.linalg.eigh(symmetric.nan_to_num(0, 0, 0))
    return vectors * values.clamp(min=0).unsqueeze(-2) @ vectors.mT


def _count(weights: Weights, prefix: str) -> int:
    """How many numbered parts follow a prefix."""
    found = {key.removeprefix(prefix).partition(".")[0] for key in weights.tensors if key.startswith(prefix)}
    return max((int(number) + 1 for number in found if number.isdecimal()), default=0)


def _linear(weights: Weights, name: str, outputs: int | None, inputs: int | None) -> tuple[Tensor, Tensor]:
    weight = weights.take(f"{name}.weight", outputs, inputs)
    return weight, weights.take(f"{name}.bias", len(weight))


def _lower_times_upper(weights: Weights, name: str) -> tuple[Float[Tensor, "144 144"], Float[Tensor, " 144"]]:
    """L U, and the logarithms of U's diagonal; entries go row by row, L has ones on its diagonal."""
    entries = FLOW_SIZE * (FLOW_SIZE - 1) // 2
    diagonal = functional.softplus(weights.take(f"{name}.unconstrained_upper_diag", FLOW_SIZE)) + _DIAGONAL_FLOOR
    lower, upper = torch.eye(FLOW_SIZE, dtype=torch.float64), torch.diag(diagonal)
    below, above = (torch.tril_indices(FLOW_SIZE, FLOW_SIZE, -1), torch.triu_indices(FLOW_SIZE, FLOW_SIZE, 1))
    lower[below[0], below[1]] = weights.take(f"{name}.lower_entries", entries)
    upper[above[0], above[1]] = weights.take(f"{name}.upper_entries", entries)
    return lower @ upper, diagonal.log()


def _split(weights: Weights, name: str) -> tuple[Int64[Tensor, " kept"], Int64[Tensor, " moved"]]:
    """Which features a coupling keeps, and which it moves."""
    kept = weights.take_integers(f"{name}.identity_features", None)
    moved = weights.take_integers(f"{name}.transform_features", None)
    if torch.cat([kept, moved]).sort().values.tolist() != list(range(FLOW_SIZE)):
        raise InputError(f"{weights.name}: {name} does not part the {FLOW_SIZE} features into kept and moved ones")
    return kept, moved
