"""Pose priors: what makes a body pose plausible, as an energy."""

from fitting.priors.base import ImagePrior, PosePrior, PoseQuadratic
from fitting.priors.flow import FlowPrior, ImageFlow
from fitting.priors.gmm import GmmPrior
from fitting.priors.load import load_prior
from fitting.priors.vposer import VposerPrior

__all__ = [
    "FlowPrior",
    "GmmPrior",
    "ImageFlow",
    "ImagePrior",
    "PosePrior",
    "PoseQuadratic",
    "VposerPrior",
    "load_prior",
]
