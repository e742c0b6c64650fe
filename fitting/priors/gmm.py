"""The Gaussian mixture prior of SMPLify on body pose, in its max-mixture form.

    prior = GmmPrior.load("standin")                 # or the path of a gmm_08.pkl
    prior.energy(body_pose)                          # (B, 69) axis-angle -> (B,)

The energy of a pose is that of the component that explains it best,

    min over k of 0.5 d' P_k d - log(w_k / ((2 pi)^(69/2) sqrt|C_k| / min_j sqrt|C_j|)),   d = pose - mean_k,

so near a pose it is a quadratic. Sources: Bogo et al., "Keep it SMPL", 2016, equation 4 and section 3.3; the
normalisation by the smallest determinant is that of vchoutas/smplify-x `smplifyx/prior.py` (`MaxMixturePrior`).
"""

import zipfile
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from torch import Tensor, nn

from bodies.errors import InputError
from bodies.safe_pickle import load_pickle
from fitting.priors.base import PoseQuadratic

#: Numbers of a body pose: SMPL's joints 1 to 23, axis-angle.
POSE_SIZE: Final = 69
#: The mixture that ships with the project, made by `snugfit prior bake`.
STANDIN_PATH: Final = Path(__file__).resolve().parent.parent / "data" / "standin_gmm.npz"
#: Files hold single precision at worst; what departs from symmetry, or from a total of one, by more than this (relative
#: to the largest entry) is not a rounding error.
ROUNDING_TOLERANCE: Final = 1e-4


class GmmPrior(nn.Module):
    """A mixture of Gaussians over body pose. Its arrays are buffers that are not saved with a checkpoint.

    Args:
        means: Of the components, axis-angle in radians.
        covars: Their full covariances.
        weights: Their shares, all positive, with sum one.
        name: What messages call the mixture.
        dtype: Of the buffers; what they hold is computed in double precision.

    Raises:
        InputError: If shapes do not fit, a number is not finite, the weights are no shares, or a covariance is not
            symmetric and positive definite.
    """

    means: Tensor
    """(components, 69) axis-angle in radians."""
    precisions: Tensor
    """(components, 69, 69) inverse covariances."""
    factors: Tensor
    """(components, 69, 69) lower triangular L with precision L L'."""
    constants: Tensor
    """(components,) what each component's energy is at its mean."""

    def __init__(
        self,
        means: ndarray,
        covars: ndarray,
        weights: ndarray,
        name: str = "mixture",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        weights = _checked_weights(weights, name)
        means = _checked_array(means, "means", (len(weights), POSE_SIZE), name)
        covars = _symmetric(_checked_array(covars, "covars", (len(weights), POSE_SIZE, POSE_SIZE), name), name)
        half_log_determinants = np.log(_cholesky(covars, name).diagonal(axis1=1, axis2=2)).sum(axis=1)
        constants = half_log_determinants - half_log_determinants.min() + POSE_SIZE / 2 * np.log(2 * np.pi)
        precisions = np.linalg.inv(covars)
        precisions = (precisions + precisions.transpose(0, 2, 1)) / 2
        buffers = {
            "means": means,
            "precisions": precisions,
            "factors": _cholesky(precisions, name),
            "constants": constants - np.log(weights),
        }
        for key, array in buffers.items():
            self.register_buffer(key, torch.as_tensor(array, dtype=dtype), persistent=False)

    @classmethod
    def load(cls, source: str | Path, dtype: torch.dtype = torch.float32) -> Self:
        """Reads a mixture.

        Args:
            source: "standin" for the one that ships with the project, the path of SMPLify's gmm_08.pkl (a dict with
                means, covars and weights), or of an .npz with these three arrays.
            dtype: Of the buffers.

        Raises:
            InputError: If the file is missing, damaged, holds anything but arrays, or no valid mixture.
        """
        path = STANDIN_PATH if source == "standin" else Path(source)
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; gmm_08.pkl comes with SMPLify (https://smplify.is.tue.mpg.de), "
                f'and the prior "standin" works without it'
            )
        arrays = _read_npz(path) if path.suffix == ".npz" else load_pickle(path)
        missing = {"means", "covars", "weights"} - (arrays.keys() if isinstance(arrays, dict) else set())
        if missing:
            raise InputError(f"{path}: not a pose mixture, it has no {', '.join(sorted(missing))}")
        return cls(arrays["means"], arrays["covars"], arrays["weights"], str(path), dtype)

    @property
    def num_components(self) -> int:
        """Number of Gaussians."""
        return self.means.shape[0]

    def component_energies(self, body_pose: Float[Tensor, "batch 69"]) -> Float[Tensor, "batch components"]:
        """The energy of each pose under each component alone."""
        deviations = body_pose - self.means[:, None]
        whitened = deviations @ self.factors
        return 0.5 * whitened.square().sum(dim=-1).T + self.constants

    def energy(self, body_pose: Float[Tensor, "batch 69"]) -> Float[Tensor, " batch"]:
        """Energy of each pose, the smallest over the components; axis-angle in radians; differentiable."""
        return self.component_energies(body_pose).min(dim=1).values

    forward = energy

    def components(self, body_pose: Float[Tensor, "batch 69"]) -> Int64[Tensor, " batch"]:
        """Index of the component that gives each pose its energy."""
        return self.component_energies(body_pose).argmin(dim=1)

    def quadratic(self, body_pose: Float[Tensor, "batch 69"]) -> PoseQuadratic:
        """The energy with its derivatives; exact as long as the best component stays the same."""
        energy, component = self.component_energies(body_pose).min(dim=1)
        hessian = self.precisions[component]
        gradient = (hessian @ (body_pose - self.means[component])[..., None]).squeeze(-1)
        return PoseQuadratic(energy, gradient, hessian)


def _read_npz(path: Path) -> dict[str, ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an .npz file of plain arrays ({error})") from error


def _checked_array(value: object, key: str, shape: tuple[int, ...], name: str) -> Float64[ndarray, "..."]:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name}: {key} does not hold numbers but {array.dtype}")
    if array.shape != shape:
        raise InputError(f"{name}: {key} has shape {array.shape}, expected {shape} for SMPL's 23 body joints")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: {key} holds numbers that are not finite")
    return array.astype(np.float64)


def _checked_weights(value: object, name: str) -> Float64[ndarray, " components"]:
    shape = np.asarray(value).shape
    if len(shape) != 1 or shape[0] == 0:
        raise InputError(f"{name}: weights has shape {shape}, expected one number per component")
    weights = _checked_array(value, "weights", shape, name)
    if weights.min() <= 0 or abs(weights.sum() - 1) > ROUNDING_TOLERANCE:
        raise InputError(f"{name}: weights must be positive and sum to 1, got {weights.tolist()}")
    return weights


def _symmetric(covars: Float64[ndarray, "components 69 69"], name: str) -> Float64[ndarray, "components 69 69"]:
    flipped = covars.transpose(0, 2, 1)
    uneven = np.abs(covars - flipped).max(axis=(1, 2)) > ROUNDING_TOLERANCE * np.abs(covars).max(axis=(1, 2))
    if uneven.any():
        raise InputError(f"{name}: the covariance of component {int(uneven.argmax())} is not symmetric")
    return (covars + flipped) / 2


def _cholesky(matrices: Float64[ndarray, "components 69 69"], name: str) -> Float64[ndarray, "components 69 69"]:
    factors = np.empty_like(matrices)
    for index, matrix in enumerate(matrices):
        try:
            factors[index] = np.linalg.cholesky(matrix)
        except np.linalg.LinAlgError as error:
            raise InputError(f"{name}: the covariance of component {index} is not positive definite") from error
    return factors
