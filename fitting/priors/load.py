"""The prior that a name or a path means."""

from pathlib import Path
from typing import Final

from bodies.errors import InputError
from fitting.priors.flow import PREFIX
from fitting.priors.gmm import GmmPrior
from fitting.priors.vposer import VposerPrior, snapshot
from fitting.priors.weight_files import Weights

#: What files of mixtures are called, and what files of torch.save are.
_MIXTURES: Final = (".pkl", ".npz")
_SNAPSHOTS: Final = (".pt", ".pth", ".ckpt")


def load_prior(source: str | Path) -> GmmPrior | VposerPrior:
    """Reads a pose prior, of the kind that the path tells.

    Args:
        source: "standin", or the path of SMPLify's gmm_08.pkl or of an .npz, for the mixture of Gaussians; VPoser's
            folder, or its snapshot (.pt, .ckpt).

    Raises:
        InputError: If the file is missing, damaged, or no such prior; of ProHMR's checkpoint, that its flow needs an
            image's features, which only Python can give it.
    """
    path = Path(source)
    if source == "standin" or path.suffix in _MIXTURES or (path.is_file() and path.suffix not in _SNAPSHOTS):
        return GmmPrior.load(source)
    weights = Weights.read(snapshot(path))
    if any(name.startswith(PREFIX) for name in weights.tensors):
        raise InputError(f"{path}: ProHMR's flow needs features of each image, which only Python's FlowPrior takes")
    return VposerPrior(weights)
