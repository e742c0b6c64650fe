"""How a run fits: the choices of a config file, and the fit they make."""

from dataclasses import dataclass, field
from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from bodies import BodyModel
from bodies.joints import KeypointSet
from datamodules.sample import SurfaceSample
from fitting import Adam, KeypointTargets, LevenbergMarquardt, Smplify, SurfaceTargets, TermWeights, VertexTargets
from fitting.priors import PosePrior, load_prior
from fitting.targets import KEYPOINT_SIGMA_PX, SURFACE_SIGMA_PX, VERTEX_SIGMA_PX

#: What `FittingSettings.prior` says for a fit without a pose prior.
NO_PRIOR: Final = "none"


@dataclass(frozen=True)
class DisplacementTerm:
    """Weight of displacement targets in the fit; see `fitting.VertexTargets`."""

    factor: float = 100.0
    """What all vertices together count for, compared with one sure keypoint."""
    sigma_px: float = VERTEX_SIGMA_PX
    """Robustifier scale, for a person `fitting.terms.PERSON_PX` tall."""
    max_vertices: int = 600
    """At most so many vertices of each sample are used."""

    def targets(
        self, position_px: Float[Tensor, "batch verts 2"], weight: Float[Tensor, "batch verts"]
    ) -> VertexTargets:
        """Targets in full-image pixels; all vertices with any weight count the same, as in the paper."""
        return VertexTargets(position_px, (weight > 0).float(), self.factor, self.sigma_px, self.max_vertices)


@dataclass(frozen=True)
class KeypointTerm:
    """Weight of keypoint targets in the fit; see `fitting.KeypointTargets`."""

    factor: float = 1.0
    """Weight of the data term."""
    sigma_px: float = KEYPOINT_SIGMA_PX
    """Robustifier scale, for a person `fitting.terms.PERSON_PX` tall."""

    def targets(
        self, keypoints_px: Float[Tensor, "batch keypoints 3"], keypoint_set: KeypointSet = "openpose25"
    ) -> KeypointTargets:
        """Targets from x, y, confidence in full-image pixels."""
        return KeypointTargets(keypoints_px[..., :2], keypoints_px[..., 2], keypoint_set, self.factor, self.sigma_px)


@dataclass(frozen=True)
class SurfaceTerm:
    """Weight of DensePose points in the fit; see `fitting.SurfaceTargets`."""

    factor: float = 100.0
    """What `max_points` points together count for, compared with one sure keypoint."""
    sigma_px: float = SURFACE_SIGMA_PX
    """Robustifier scale, for a person `fitting.terms.PERSON_PX` tall."""
    max_points: int = 500
    """At most so many points of each sample are used."""

    def targets(self, surface: SurfaceSample) -> SurfaceTargets:
        """Targets in full-image pixels."""
        places = surface.position_px, surface.triangle, surface.barycentric
        return SurfaceTargets(*places, surface.weight, self.factor, self.sigma_px, self.max_points)


@dataclass(frozen=True)
class FittingSettings:
    """Prior, solver and weights of the fit."""

    prior: str = "standin"
    """Pose prior: standin, the path of a gmm_08.pkl, of VPoser's folder or snapshot, or none."""
    solver: LevenbergMarquardt | Adam = field(default_factory=LevenbergMarquardt)
    """How to minimise."""
    weights: TermWeights = field(default_factory=TermWeights)
    """Weights of the priors."""
    displacements: DisplacementTerm = field(default_factory=DisplacementTerm)
    """Weight of displacement targets."""
    keypoints: KeypointTerm = field(default_factory=KeypointTerm)
    """Weight of keypoint targets."""
    surface: SurfaceTerm = field(default_factory=SurfaceTerm)
    """Weight of DensePose points."""
    chunk_size: int = 64
    """Samples fitted at once."""

    def load_prior(self) -> PosePrior | None:
        """The pose prior on the CPU.

        Raises:
            InputError: If its file is missing or damaged.
        """
        return None if self.prior == NO_PRIOR else load_prior(self.prior)

    def fit(self, body: BodyModel, prior: PosePrior | None) -> Smplify:
        """The fit with `body`; the prior goes to the body's device."""
        if isinstance(prior, nn.Module):
            prior.to(body.device)
        return Smplify(body, prior, self.solver, self.weights, chunk_size=self.chunk_size)
