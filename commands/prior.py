"""Bakes the pose prior that ships with the project."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from numpy import ndarray
from rich.console import Console
from rich.table import Table

from bodies.errors import InputError
from bodies.safe_write import whole_file
from datamodules.poses import PoseSamples, sample_poses
from datamodules.posture import mirrored_pose
from datamodules.posture_tables import KIND_SHARES
from fitting.priors.gmm import POSE_SIZE, STANDIN_PATH, GmmPrior

#: Added to the variance of each number, so that the mixture guides and does not wall in: about 4.6 degrees.
SMALLEST_STD_RAD = 0.08
#: Components for postures whose left thigh is in front; their mirror images make eight.
COMPONENTS_PER_SIDE = 4
#: Fewer leave a component short of the 69 samples that a full covariance needs.
FEWEST_SAMPLES = 1000
#: Samples on which the finished mixture is reported, drawn from the next seed.
REPORT_SAMPLES = 2000


def bake(out: Path = STANDIN_PATH, samples: int = 20_000, seed: int = 0) -> None:
    """Fits the stand-in pose prior, a mixture of eight Gaussians, to postures drawn by rules.

    Needs scikit-learn. The same numbers of samples and seed give the same file.

    Args:
        out: The .npz file to write (means, covars, weights); by default the one that ships with the project.
        samples: How many postures to fit.
        seed: Of the postures.

    Raises:
        InputError: If scikit-learn is missing, the samples are too few, or the file is no .npz.
    """
    if find_spec("sklearn") is None:
        raise InputError("prior bake needs scikit-learn: pip install 'snugfit[bake]'")
    if samples < FEWEST_SAMPLES or seed < 0:
        raise InputError(f"samples {samples}, seed {seed}: at least {FEWEST_SAMPLES} samples, and no negative seed")
    if out.suffix != ".npz":
        raise InputError(f"{out}: the prior is written as .npz")
    console = Console()
    with console.status(f"fitting {samples} postures"):
        means, covars, weights = _fit_symmetric_mixture(sample_poses(samples, seed).body_pose.astype(np.float64))
    provenance = f"snugfit prior bake --samples {samples} --seed {seed}"
    with whole_file(out) as temporary:
        np.savez_compressed(
            temporary,
            means=means.astype(np.float32),
            covars=covars.astype(np.float32),
            weights=weights.astype(np.float32),
            provenance=np.array(provenance),
        )
    console.print(_energy_table(GmmPrior.load(out), sample_poses(REPORT_SAMPLES, seed + 1)))
    console.print(f"wrote {out}")


def _fit_symmetric_mixture(
    poses: Float64[ndarray, "count 69"],
) -> tuple[Float64[ndarray, "eight 69"], Float64[ndarray, "eight 69 69"], Float64[ndarray, " eight"]]:
    """Means, covariances and weights of a mixture that is its own mirror image.

    Every posture is turned to the side on which the left thigh is in front; the fit of these and its mirror image, half
    each, make the mixture. So no energy prefers a side, and 2 x 4 components are fitted as surely as 4.
    """
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    # The x component of the hips: flexion turns them about -x.
    left_in_front = poses[:, 0] < poses[:, 3]
    one_sided = np.where(left_in_front[:, None], poses, _mirror(poses))
    mixture = GaussianMixture(COMPONENTS_PER_SIDE, reg_covar=SMALLEST_STD_RAD**2, max_iter=300, random_state=0)
    # One thread: the order of sums, and with it the last digits, would depend on how many there are.
    with threadpool_limits(1):
        mixture.fit(one_sided)
    reflection = _mirror(np.eye(POSE_SIZE))
    return (
        np.concatenate([mixture.means_, _mirror(mixture.means_)]),
        np.concatenate([mixture.covariances_, reflection.T @ mixture.covariances_ @ reflection]),
        np.concatenate([mixture.weights_, mixture.weights_]) / 2,
    )


def _mirror(poses: Float64[ndarray, "count 69"]) -> Float64[ndarray, "count 69"]:
    return mirrored_pose(poses.reshape(-1, 23, 3)).reshape(-1, POSE_SIZE)


def _energy_table(prior: GmmPrior, samples: PoseSamples) -> Table:
    """Mean energies of fresh postures, kind by kind, and of what should lie above and below them."""
    table = Table("postures", "mean energy", "highest", title="Energy of fresh samples")
    energies = prior.energy(torch.from_numpy(samples.body_pose)).numpy()
    for kind in KIND_SHARES:
        of_kind = energies[samples.kinds == kind]
        table.add_row(kind, f"{of_kind.mean():.1f}", f"{of_kind.max():.1f}")
    chance = np.random.default_rng(0)
    joints = chance.permuted(samples.body_pose.reshape(-1, 23, 3), axis=1).reshape(-1, POSE_SIZE)
    others = {"T-pose": np.zeros((1, POSE_SIZE), np.float32), "numbers of each sample shuffled": joints}
    for name, poses in others.items():
        values = prior.energy(torch.from_numpy(poses)).numpy()
        table.add_row(name, f"{values.mean():.1f}", f"{values.max():.1f}")
    return table
