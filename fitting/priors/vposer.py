"""VPoser, a variational autoencoder of body pose, as a prior on the pose itself.

    prior = VposerPrior.load("vposer_v1_0")          # or V02_05, or a snapshot in one of them
    prior.energy(body_pose)                          # (B, 69) axis-angle -> (B,)

SMPLify-X moves the latent z, poses the body by decode(z) with the hands at rest, and adds |z|^2. Here the fit moves the
rotations, as with every other prior, so that it starts exactly at the initial estimate and solvers need not know of
latents. The energy of a pose with rotations R_j is

    0.5 |z|^2 + 0.5 sum over joints (angle between R_j and decode(z)_j)^2 / s^2,   z = mean of encode(pose):

the autoencoder's negative evidence lower bound at the mean of the posterior, up to constants, with Gaussian noise of
s on the decoder. |z|^2 alone would not do: the encoder maps 63 numbers to 32, so half of all directions would be free.
As s goes to zero, poses are held to their own reconstructions; where the encoder inverts the decoder, that is
SMPLify-X's fit. Angles enter as chords, |R - R'| / sqrt(2), which is smooth everywhere and the angle to second order.
The decoder knows SMPL's joints 1 to 21; the hands 22 and 23 are decoded as unturned, as SMPLify-X has them with SMPL.
The encoder takes axis-angle, so the energy jumps where an angle passes pi, which no posture comes near.

The energy is a sum of squares, which is how Levenberg-Marquardt takes it (Gauss-Newton).

Sources: Pavlakos et al., "Expressive Body Capture", CVPR 2019, sections 3.2 and 3.3; nghorbani/human_body_prior
`train/vposer_smpl.py` on the branch cvpr19 for version 1, `models/vposer_model.py` and `tools/model_loader.py` for
version 2; vchoutas/smplify-x `fitting.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from bodies.errors import InputError
from fitting.priors.base import PoseQuadratic, gauss_newton
from fitting.priors.duals import Dual, cross, dot, joined, rotations, without_whole_turns
from fitting.priors.weight_files import Weights, norm_as_scale_and_shift

#: SMPL's joints 1 to 21, which the autoencoder knows, and what follows them in a body pose: the hands.
POSED_JOINTS: Final = 21
HANDS: Final = 2
#: Noise of the decoder. Not in the files, where it is hidden in how losses were weighed: a choice, of about what the
#: name of version 2's snapshots tells (3 cm mean distance of reconstructed vertices), as an angle of each joint.
RECONSTRUCTION_STD_RAD: Final = 0.1

_Linear = tuple[Tensor, Tensor]
#: For each layer: the batch norm before it, if any, and its linear maps.
_Names = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class _Version:
    """How one version names its layers."""

    sign: str
    """What names of its encoder begin with."""
    prefixes: tuple[str, ...]
    """What may come before all names."""
    encoder: _Names
    decoder: _Names
    slope: float
    """Of the leaky rectifiers."""


#: The encoders' other outputs, the logarithms of the posterior's variances, are not needed.
VERSIONS: Final = (
    _Version(
        "bodyprior_enc_",
        ("",),
        (
            ("bodyprior_enc_bn1", ("bodyprior_enc_fc1",)),
            ("bodyprior_enc_bn2", ("bodyprior_enc_fc2",)),
            ("", ("bodyprior_enc_mu",)),
        ),
        (("", ("bodyprior_dec_fc1",)), ("", ("bodyprior_dec_fc2",)), ("", ("bodyprior_dec_out",))),
        0.2,
    ),
    _Version(
        "encoder_net.",
        ("vp_model.", ""),
        (
            ("encoder_net.1", ("encoder_net.2",)),
            ("encoder_net.4", ("encoder_net.6", "encoder_net.7", "encoder_net.8.mu")),
        ),
        (("", ("decoder_net.0",)), ("", ("decoder_net.3",)), ("", ("decoder_net.5",))),
        0.01,
    ),
)


class _Layers(nn.Module):
    """Linear layers with leaky rectifiers in between. Their arrays are buffers that are not saved with a checkpoint."""

    def __init__(self, layers: Sequence[_Linear], slope: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.slope = slope
        self._count = len(layers)
        for index, (weight, bias) in enumerate(layers):
            self.register_buffer(f"weight_{index}", weight.to(dtype), persistent=False)
            self.register_buffer(f"bias_{index}", bias.to(dtype), persistent=False)

    def forward(self, values: Dual) -> Dual:
        """The last layer's output, not rectified."""
        for index in range(self._count):
            values = values if index == 0 else values.rectified(self.slope)
            values = values.affine(getattr(self, f"weight_{index}"), getattr(self, f"bias_{index}"))
        return values


class VposerPrior(nn.Module):
    """VPoser as an energy of body pose. Its arrays are buffers that are not saved with a checkpoint.

    Args:
        weights: Of version 1 or 2, whichever their names say.
        reconstruction_std_rad: How far from what the decoder says a joint may turn: s of the module's description.
        dtype: Of the buffers; what they hold is computed in double precision.

    Raises:
        InputError: If a weight is missing, has another shape, or is not finite.
    """

    def __init__(
        self,
        weights: Weights,
        reconstruction_std_rad: float = RECONSTRUCTION_STD_RAD,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if not reconstruction_std_rad > 0:
            raise ValueError(f"reconstruction_std_rad must be positive, got {reconstruction_std_rad}")
        self.reconstruction_std_rad = reconstruction_std_rad
        version, encoder, decoder = _read_layers(weights)
        self.encoder = _Layers(encoder, version.slope, dtype)
        self.decoder = _Layers(decoder, version.slope, dtype)

    @classmethod
    def load(
        cls,
        source: str | Path,
        dtype: torch.dtype = torch.float32,
        reconstruction_std_rad: float = RECONSTRUCTION_STD_RAD,
    ) -> Self:
        """Reads an autoencoder; of the folder, only the snapshot is opened.

        Args:
            source: The folder of version 1 (vposer_v1_0) or 2 (V02_05), or a snapshot: a .pt or .ckpt of the folder
                `snapshots`. Of several snapshots the one last changed is taken, as human_body_prior does.
            dtype: Of the buffers.
            reconstruction_std_rad: See the class.

        Raises:
            InputError: If the file is missing, damaged, names classes that weights do not need, or is no VPoser.
        """
        return cls(Weights.read(snapshot(Path(source))), reconstruction_std_rad, dtype)

    def encode(self, body_pose: Float[Tensor, "batch 69"]) -> Float[Tensor, "batch latent"]:
        """The posterior's mean; axis-angle in radians, whole turns do not count."""
        return self._encode(body_pose, derive=False).value

    def decode(self, latent: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch 23 3 3"]:
        """Rotations of the 23 body joints, hands unturned."""
        return self._decode(Dual(latent)).value

    def residuals(self, body_pose: Float[Tensor, "batch 69"]) -> Float[Tensor, "batch residuals"]:
        """What the energy is half the squared length of: the latent, and 9 numbers for each joint."""
        return self._residuals(body_pose, derive=False).value

    def energy(self, body_pose: Float[Tensor, "batch 69"]) -> Float[Tensor, " batch"]:
        """Energy of each pose; axis-angle in radians; differentiable."""
        return self.residuals(body_pose).square().sum(dim=-1) / 2

    forward = energy

    def quadratic(self, body_pose: Float[Tensor, "batch 69"]) -> PoseQuadratic:
        """The energy with its derivative and its Gauss-Newton curvature."""
        return gauss_newton(self._residuals(body_pose, derive=True))

    def _residuals(self, body_pose: Tensor, *, derive: bool) -> Dual:
        latent = self._encode(body_pose, derive=derive)
        chords = rotations(body_pose.unflatten(1, (-1, 3)), derive=derive) - self._decode(latent)
        scale = 2**0.5 * self.reconstruction_std_rad
        return joined([latent, chords.mapped(lambda chord: chord.flatten(-3) / scale)])

    def _encode(self, body_pose: Tensor, *, derive: bool) -> Dual:
        joints = without_whole_turns(body_pose.unflatten(1, (-1, 3)), derive=derive)
        latent: Dual = self.encoder(joints.mapped(lambda pose: pose[..., :POSED_JOINTS, :].flatten(-2)))
        return latent

    def _decode(self, latent: Dual) -> Dual:
        # Rows of a 3x2 matrix, whose columns are made orthonormal (Zhou et al., CVPR 2019, section 4.1).
        columns: Dual = self.decoder(latent).mapped(lambda six: six.unflatten(-1, (POSED_JOINTS, 3, 2)))
        first = columns.mapped(lambda pair: pair[..., 0]).normalized()
        second = columns.mapped(lambda pair: pair[..., 1])
        second = (second - first.times(first.times(second, dot))).normalized()
        third = first.times(second, cross)
        matrices = joined([column.mapped(lambda vector: vector[..., None]) for column in (first, second, third)])
        unturned = torch.eye(3, dtype=latent.value.dtype, device=latent.value.device)
        tangent = None if matrices.tangent is None else functional.pad(matrices.tangent, (0, 0, 0, 0, 0, HANDS))
        hands = unturned.expand(len(latent.value), HANDS, 3, 3)
        return Dual(torch.cat([matrices.value, hands], dim=1), tangent)


def snapshot(source: Path) -> Path:
    """The file of weights that a path means; see `VposerPrior.load`.

    Raises:
        InputError: If there is none.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder; VPoser comes with SMPL-X (https://smpl-x.is.tue.mpg.de), "
            f'and the prior "standin" works without it'
        )
    if source.is_file():
        return source
    found = [path for path in source.glob("snapshots/*") if path.suffix in (".pt", ".ckpt")]
    if not found:
        raise InputError(f"{source}: has no snapshot of VPoser (snapshots/*.pt of version 1, snapshots/*.ckpt of 2)")
    return max(found, key=lambda path: (path.stat().st_mtime, path.name))


def _read_layers(weights: Weights) -> tuple[_Version, list[_Linear], list[_Linear]]:
    """Version, and the layers of encoder and decoder."""
    names = weights.tensors.keys()
    for version in VERSIONS:
        for prefix in version.prefixes:
            if any(name.startswith(prefix + version.sign) for name in names):
                encoder = _merged(weights, prefix, version.encoder, 3 * POSED_JOINTS, None)
                latents = len(encoder[-1][1])
                return version, encoder, _merged(weights, prefix, version.decoder, latents, 6 * POSED_JOINTS)
    raise InputError(f"{weights.name}: not VPoser, it has neither bodyprior_enc_* nor encoder_net.*")


def _merged(weights: Weights, prefix: str, layers: _Names, inputs: int, outputs: int | None) -> list[_Linear]:
    """A layer for each entry: the norm before it and its linear maps, which no rectifier parts, in one."""
    result = []
    for index, (norm, linears) in enumerate(layers):
        scale, shift = torch.ones(inputs, dtype=torch.float64), torch.zeros(inputs, dtype=torch.float64)
        if norm:
            scale, shift = norm_as_scale_and_shift(weights, prefix + norm, inputs)
        weight, bias = torch.diag(scale), shift
        for name in linears:
            last = index == len(layers) - 1 and name == linears[-1]
            further = weights.take(f"{prefix}{name}.weight", outputs if last else None, inputs)
            inputs = len(further)
            weight, bias = further @ weight, further @ bias + weights.take(f"{prefix}{name}.bias", inputs)
        result.append((weight, bias))
    return result
