"""Pose priors: what makes a body pose plausible, as an energy."""

from fitting.priors.base import PosePrior, PoseQuadratic
from fitting.priors.gmm import GmmPrior

__all__ = ["GmmPrior", "PosePrior", "PoseQuadratic"]
