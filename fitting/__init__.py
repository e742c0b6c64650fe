"""Fitting bodies to what was seen: one problem, several solvers, several priors."""

from fitting.adam import Adam
from fitting.from_rest import FromRest, fit_from_rest, place, rest_posture
from fitting.levenberg_marquardt import LevenbergMarquardt
from fitting.placement import solve_translation
from fitting.priors import FlowPrior, GmmPrior, VposerPrior
from fitting.problem import SPIN_WEIGHTS, FitProblem, TermWeights
from fitting.smplify import FROM_REST_SCHEDULE, REFINE_SCHEDULE, FitResult, FitStage, FitStatus, Smplify
from fitting.targets import KeypointTargets, SurfaceTargets, VertexTargets

__all__ = [
    "FROM_REST_SCHEDULE",
    "REFINE_SCHEDULE",
    "SPIN_WEIGHTS",
    "Adam",
    "FitProblem",
    "FitResult",
    "FitStage",
    "FitStatus",
    "FlowPrior",
    "FromRest",
    "GmmPrior",
    "KeypointTargets",
    "LevenbergMarquardt",
    "Smplify",
    "SurfaceTargets",
    "TermWeights",
    "VertexTargets",
    "VposerPrior",
    "fit_from_rest",
    "place",
    "rest_posture",
    "solve_translation",
]
