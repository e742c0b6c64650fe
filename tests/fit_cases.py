"""Bodies in front of cameras, for the tests of the fit."""

from collections.abc import Callable

import torch
from tiny import body_model

from bodies import BodyModel, BodyParameters, PinholeCamera
from fitting import (
    Adam,
    FitStage,
    FitStatus,
    KeypointTargets,
    LevenbergMarquardt,
    Smplify,
    SurfaceTargets,
    TermWeights,
)
from fitting.priors.base import ImagePrior, PosePrior, PoseQuadratic
from fitting.targets import Targets


class GaussianPrior:
    """A single Gaussian about the rest pose: the simplest prior, with everything known in closed form."""

    def __init__(self, precision: float = 4.0) -> None:
        mixing = torch.randn(69, 69, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 69**0.5
        self.precision = precision * (torch.eye(69, dtype=torch.float64) + 0.2 * mixing @ mixing.T)

    def energy(self, body_pose):
        return self.quadratic(body_pose).energy

    def quadratic(self, body_pose):
        precision = self.precision.to(body_pose)
        slope = body_pose @ precision
        return PoseQuadratic((slope * body_pose).sum(1) / 2, slope, precision.expand(len(body_pose), 69, 69))


def tiny_body(*, blend_shapes: bool = True, dtype: torch.dtype = torch.float64, vertices: int = 240) -> BodyModel:
    return body_model(vertices, pose_blend_shapes=blend_shapes).to(dtype)


def people(
    batch: int, seed: int = 0, dtype: torch.dtype = torch.float64, spread: float = 0.3
) -> tuple[BodyParameters, PinholeCamera]:
    """Upright people about four metres away, seen by different cameras."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    pose = spread * noise(batch, 72)
    pose[:, 0] += torch.pi  # SMPL's y is up, the camera's is down
    transl = torch.tensor([0.0, 0.0, 4.0], dtype=torch.float64) + 0.3 * noise(batch, 3)
    parameters = BodyParameters.from_axis_angle(pose, 0.7 * noise(batch, 10), transl)
    size = torch.tensor([640.0, 480.0], dtype=torch.float64).expand(batch, 2)
    focal = 700 + 60 * noise(batch, 2)
    return parameters.to(dtype), PinholeCamera(focal, size / 2 + 8 * noise(batch, 2), size).to(dtype)


def disturbed(parameters: BodyParameters, seed: int = 1, radians: float = 0.15, metres: float = 0.05) -> BodyParameters:
    """The same people, somewhat wrong."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(parameters)
    pose = parameters.pose + radians * torch.randn(batch, 72, generator=generator, dtype=torch.float64).to(
        parameters.betas
    )
    shift = metres * torch.randn(batch, 3, generator=generator, dtype=torch.float64).to(parameters.betas)
    return BodyParameters.from_axis_angle(pose, torch.zeros_like(parameters.betas), parameters.transl + shift)


def keypoints_of(body: BodyModel, parameters: BodyParameters, camera: PinholeCamera, **options) -> KeypointTargets:
    """What a perfect detector would see."""
    points = body.keypoints(body(parameters), "openpose25")
    return KeypointTargets(camera.project(points), torch.ones_like(points[..., 0]), **options)


def surface_of(
    body: BodyModel, parameters: BodyParameters, camera: PinholeCamera, points: int = 200, **options
) -> SurfaceTargets:
    """Where points drawn all over the surface, other ones for each body, are seen."""
    generator = torch.Generator().manual_seed(9)
    batch, vertices = len(parameters), body(parameters).vertices
    triangle = torch.randint(len(body.faces), (batch, points), generator=generator)
    shares = torch.rand(batch, points, 3, generator=generator, dtype=torch.float64).to(vertices)
    shares = shares / shares.sum(dim=-1, keepdim=True)
    corners = torch.stack([vertices[b, body.faces[triangle[b]]] for b in range(batch)])
    position_px = camera.project((corners * shares[..., None]).sum(dim=2))
    return SurfaceTargets(position_px, triangle, shares, torch.ones_like(position_px[..., 0]), **options)


def check_bodies_come_back(prior: PosePrior | None, targets_of: Callable[..., Targets]) -> None:
    """Exact targets all over the body bring disturbed bodies back; `targets_of` makes them of bodies and cameras."""
    body = tiny_body()
    truth, camera = people(4)
    weights = TermWeights(pose_prior=0.0, shape_prior=1e-3)
    fit = Smplify(body, prior, LevenbergMarquardt(max_steps=60, tolerance=1e-9), weights)
    result = fit(disturbed(truth), camera, targets_of(body, truth, camera))
    assert result.accepted.all()
    assert (result.initial_error_px > 5).all()
    assert (result.final_error_px < 0.01).all()
    error = torch.linalg.vector_norm(body(result.parameters).vertices - body(truth).vertices, dim=-1).mean(dim=1)
    # Depth is weakly seen from 2D: a few millimetres along the ray at four metres are a hundredth of a pixel.
    assert (error < 0.01).all()


def check_solvers_agree(
    prior: PosePrior | ImagePrior | None, targets_of: Callable[..., Targets] = keypoints_of
) -> None:
    """Where Levenberg-Marquardt ends, the objective that Adam differentiates is flat, and Adam finds nothing lower.

    The prior, if it is one of images, has two; the robustifier is so wide that there is one minimum. `targets_of` makes
    the targets of bodies and cameras.
    """
    body = tiny_body()
    truth, camera = people(2, spread=0.1)
    initial, targets = disturbed(truth, radians=0.05), targets_of(body, truth, camera, sigma_px=1e3)
    whole = (FitStage("all"),)
    fit = Smplify(body, prior, LevenbergMarquardt(max_steps=600, tolerance=1e-13), schedule=whole)
    best = fit(initial, camera, targets)
    assert all(status is FitStatus.CONVERGED for status in best.status)
    assert (best.final_objective < 0.1 * best.initial_objective).all()
    problem = fit.problem(initial, camera, [targets])

    def slope(parameters: BodyParameters) -> torch.Tensor:
        moving = [t.clone().requires_grad_() for t in (parameters.pose, parameters.betas, parameters.transl)]
        value = problem.objective(BodyParameters.from_axis_angle(*moving)).sum()
        return torch.cat(torch.autograd.grad(value, moving), dim=1).norm(dim=1)

    # A value within 1e-13 of the minimum leaves about its root of the slope.
    assert (slope(best.parameters) < 1e-5 * slope(initial)).all()
    further = Smplify(body, prior, Adam(steps=25, learning_rate=1e-3), schedule=whole)
    again = further(best.parameters, camera, targets)
    assert (again.final_objective > best.final_objective * (1 - 1e-9)).all()
    # From a little beside it, Adam comes back.
    beside = disturbed(best.parameters, radians=0.01, metres=0.003)
    beside = BodyParameters(beside.rotations, best.parameters.betas, beside.transl)
    back = further(beside, camera, targets)
    assert ((back.final_objective - best.final_objective) < 0.3 * (back.initial_objective - best.final_objective)).all()
