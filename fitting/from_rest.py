"""Fitting without an initial estimate: from a rest posture at several headings, the best one kept."""

import math
from dataclasses import dataclass, replace

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from bodies import BodyModel, BodyParameters, PinholeCamera
from fitting.placement import solve_translation
from fitting.smplify import FitResult, Smplify
from fitting.targets import KeypointTargets

#: Depth of a placement that the keypoints put behind the camera, before the first stage mends it.
FALLBACK_DEPTH_M = 3.0
#: Arms of the rest posture hang this far below the T-pose, as people's arms mostly do.
ARM_DROP_RAD = math.radians(55)
LEFT_SHOULDER, RIGHT_SHOULDER = 16, 17


@dataclass(frozen=True)
class FromRest:
    """The best fit of each person, and the posture it started from."""

    initial: BodyParameters
    """The rest posture at the heading that led to the best fit."""
    fit: FitResult
    """The fit itself."""


def rest_posture(body: BodyModel, headings: int) -> BodyParameters:
    """Standing bodies of mean shape in camera axes, arms lowered, at equally spaced headings.

    The first one faces the camera; the others turn about the vertical.
    """
    parameters = body.rest_parameters(headings)
    pose = torch.zeros(headings, body.num_joints, 3, device=body.device)
    pose[:, LEFT_SHOULDER, 2], pose[:, RIGHT_SHOULDER, 2] = -ARM_DROP_RAD, ARM_DROP_RAD
    rotations = roma.rotvec_to_rotmat(pose)
    angles = torch.arange(headings, device=body.device) * (2 * math.pi / headings)
    turn = roma.rotvec_to_rotmat(torch.stack([0 * angles, angles, 0 * angles], dim=-1))
    # SMPL's y points up, the camera's down: half a turn about x.
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0], device=body.device))
    rotations[:, 0] = upright @ turn
    return BodyParameters(rotations, parameters.betas, parameters.transl)


def place(body: BodyModel, postures: BodyParameters, camera: PinholeCamera, targets: KeypointTargets) -> BodyParameters:
    """Moves bodies to where their keypoints were seen, in closed form."""
    points = body.keypoints(body(postures), targets.keypoint_set) - postures.transl[:, None]
    transl = solve_translation(points, torch.nan_to_num(targets.position_px), targets.weights(), camera)
    # Turned far from the truth, the linear solution may lie behind the camera; keep its direction in the image.
    depth = transl[:, 2:]
    centre = _weighted_centre(targets)
    ray = (centre - camera.center_px) / camera.focal_px
    fallback = torch.cat([ray * FALLBACK_DEPTH_M, torch.full_like(depth, FALLBACK_DEPTH_M)], dim=1)
    nearest = points[..., 2].amin(dim=1, keepdim=True) + depth
    return BodyParameters(postures.rotations, postures.betas, torch.where(nearest > 0.1, transl, fallback))


def fit_from_rest(fit: Smplify, camera: PinholeCamera, targets: KeypointTargets, headings: int = 8) -> FromRest:
    """Fits every person from every heading in one batch and keeps the fit with the lowest objective.

    Args:
        fit: How to fit; `FROM_REST_SCHEDULE` suits.
        camera: The full-image camera of each person.
        targets: Their keypoints.
        headings: How many directions to try.
    """
    batch = len(targets.confidence)
    person = torch.arange(batch, device=camera.focal_px.device).repeat_interleave(headings)
    postures = rest_posture(fit.body, headings)[torch.arange(headings).repeat(batch)]
    starts = place(fit.body, postures, camera[person], targets[person])
    # The rest posture is a place to start from, not an estimate to keep to.
    fit = fit.with_weights(replace(fit.weights, initial_pose=0.0, initial_shape=0.0))
    result = fit.select(person)(starts, camera[person], targets[person])
    objective = torch.nan_to_num(result.final_objective, nan=float("inf")).view(batch, headings)
    best = torch.arange(batch, device=objective.device) * headings + objective.argmin(dim=1)
    return FromRest(starts[best], result[best])


def _weighted_centre(targets: KeypointTargets) -> Float[Tensor, "batch 2"]:
    weight = targets.weights()[..., None]
    return (torch.nan_to_num(targets.position_px) * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
