"""How an initial estimate comes about: the true body plus noise, or what a regressor said about the row.

Which of the ways a sample goes is drawn in the loader's worker (`choose_initial`), by the probabilities of a tuple of
`InitialDraw`, renormalised over the estimates files that a data set has. What the way needs travels in the sample;
the noise itself is added on the device (`draw_initial`), for a whole batch at once, each sample from its own seed by
`datamodules.seeded_noise`: neither batch mates nor workers nor the device change it.

Noise, all of it Gaussian (the paper gives no scales; ours are calibrated, see `NoiseScale`):

* rotations: each joint's is multiplied from the right by exp of a rotation vector;
* betas: added;
* camera: the focal length is multiplied by exp(n). The pelvis's depth is multiplied by the same factor, so the person
  keeps their size in the image whatever the focal length: that is how a regressor errs, which sees the size but not
  the focal length. The depth's own error is a further factor exp(n), which does change the size. Through both, the
  pelvis stays on its line of sight; it is then shifted sideways.

The initial body is projected by the camera with the initial focal length, the true one by the true camera (eq. 1 of
Wehrbein et al., arXiv 2403.11634).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import roma
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from bodies.body_model import BodyModel, BodyParameters
from bodies.camera import PinholeCamera
from bodies.errors import InputError
from datamodules.sample import INITIAL_KINDS, BodySample, InitialKind
from datamodules.seeded_noise import standard_normal, uniform
from datamodules.store_reader import EstimateStore, FrameStore
from datamodules.store_records import StoredEstimate

#: Streams of a sample's seed.
_SEVERITY, _ROTATIONS, _BETAS, _PLACE = range(4)
#: Joints between pelvis and head: an error there swings all of the upper body.
SPINE_JOINTS: Final = (3, 6, 9, 12)


@dataclass(frozen=True)
class NoiseScale:
    """Standard deviations of the noise on the true body, at severity 1. None of them is given in the paper.

    The defaults are calibrated to err like PARE on 3DPW (74.5 mm MPJPE, 46.6 mm PA-MPJPE, 88.6 mm PVE): on the stand-in
    body in the postures of `datamodules.poses` they amount to 84, 49 and 93 mm, or 107 mm PVE with the vertices of the
    full stand-in. `datamodules.initial_errors` prints what they amount to on any data.

    Raises:
        InputError: If one is negative or not finite, or the severities are in the wrong order.
    """

    root_deg: float = 5.0
    """Global orientation, about each axis."""
    spine_deg: float = 2.8
    """Spine and neck, about each axis."""
    limb_deg: float = 6.2
    """All other joints, about each axis."""
    betas: float = 1.0
    """Each shape coefficient."""
    shift_m: float = 0.03
    """Sideways, in x and y."""
    depth: float = 0.04
    """Relative depth."""
    focal: float = 0.1
    """Relative focal length."""
    least_severity: float = 0.4
    """Each sample's noise is multiplied by a number drawn uniformly from here ..."""
    greatest_severity: float = 1.6
    """... to here, for some initial estimates are good and some are not."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise InputError(f"noise: {field.name} must be 0 or more and finite, got {getattr(self, field.name)}")
        if self.least_severity > self.greatest_severity:
            raise InputError(
                f"noise: least_severity {self.least_severity} is above greatest_severity {self.greatest_severity}"
            )


@dataclass(frozen=True)
class InitialDraw:
    """One way to an initial estimate, and how often it is taken.

    Raises:
        InputError: If the weight is not positive, or a regressor is named for noise or none for anything else.
    """

    kind: InitialKind
    """`noise`: the true body plus noise; `estimate`: the regressor's as it is; `true_pose`: the true pose with the
    regressor's shape and camera."""
    regressor: str = ""
    """Name of the regressor, as its estimates file says it: pare, prohmr, hmr_plus; none for `noise`."""
    weight: float = 1.0
    """Probability, up to a common factor."""
    sample: int | None = None
    """Which of the regressor's samples; drawn uniformly by default."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise InputError(f"initial estimate {self}: the weight must be positive and finite, got {self.weight}")
        if (self.kind == "noise") == bool(self.regressor):
            need = "names no regressor" if self.kind == "noise" else "needs the name of a regressor"
            raise InputError(f"initial estimate {self.kind!r} {need}, got {self.regressor!r}")

    def __str__(self) -> str:
        return f"{self.regressor} {self.kind}".strip()


#: The four ways of the paper; that they are equally frequent is not given in it.
TRAINING_DRAWS: Final = (
    InitialDraw("noise"),
    InitialDraw("estimate", "pare"),
    InitialDraw("estimate", "prohmr"),
    InitialDraw("true_pose", "pare"),
)


def usable_rows(
    draws: Sequence[InitialDraw], estimates: Mapping[str, EstimateStore], frames: FrameStore
) -> Bool[ndarray, " rows"]:
    """Which rows have an initial estimate in at least one of the ways; only `estimate` is open to those without a body.

    Args:
        draws: The ways.
        estimates: The data set's estimates files by name of the regressor.
        frames: The rows.
    """
    usable = np.zeros(len(frames), bool)
    for draw in draws:
        open_to = np.ones(len(frames), bool) if draw.kind == "estimate" else frames.has_body
        if draw.kind == "noise":
            usable |= open_to
        elif draw.regressor in estimates:
            usable |= open_to & estimates[draw.regressor].valid[frames.rows]
    return usable


def choose_initial(
    draws: Sequence[InitialDraw],
    estimates: Mapping[str, EstimateStore],
    row: int,
    rng: np.random.Generator,
    has_body: bool = True,
) -> tuple[InitialDraw, StoredEstimate | None]:
    """Which way one row goes, and the regressor's estimate if that is of any use to it.

    Ways whose regressor has no file here are as if they were not there. If the row has no estimate in the way that was
    drawn, the next one in `draws` that it has is taken, the first one following the last.

    Args:
        draws: The ways; at least one must be open to the row (`usable_rows`).
        estimates: The data set's estimates files by name of the regressor.
        row: Row in the frames file.
        rng: Decides.
        has_body: Whether the row has a true body, which noise and the true pose need.
    """
    ways = [draw for draw in draws if draw.kind == "estimate" or has_body]
    here = [draw for draw in ways if draw.kind == "noise" or draw.regressor in estimates]
    weights = np.array([draw.weight for draw in here])
    first = int(rng.choice(len(here), p=weights / weights.sum()))
    for draw in (*here[first:], *here[:first]):
        if draw.kind == "noise":
            return draw, None
        store = estimates[draw.regressor]
        if store.valid[row]:
            sample = int(rng.integers(store.samples)) if draw.sample is None else draw.sample
            return draw, store.read(row, sample)
    raise AssertionError(f"row {row} has no initial estimate; it should have been left out")


@dataclass(frozen=True)
class InitialEstimate:
    """The initial estimates of a batch, on its device, in single precision."""

    parameters: BodyParameters
    """The bodies, in the camera frame."""
    camera: PinholeCamera
    """The full-image cameras that go with them: the true ones but for the focal length."""
    crop_camera: PinholeCamera
    """The same cameras, changed to the crop."""


def draw_initial(
    samples: BodySample,
    scale: NoiseScale,
    body: BodyModel,
    true_pelvis_m: Float[Tensor, "batch 3"] | None = None,
) -> InitialEstimate:
    """The initial estimates of a collated batch.

    Args:
        samples: The batch.
        scale: How much noise.
        body: The model that the initial bodies are of.
        true_pelvis_m: Where the true bodies' pelvises are, in the camera frame, if these are of another model than
            `body`, such as a gendered one; then the initial pelvis is still where the true one is but for noise.
    """
    camera, crop_camera = samples.camera.camera(), samples.crop_camera.camera()
    truth, given = samples.body.parameters(), samples.initial
    noisy, noisy_focal_px = add_noise(truth, camera.focal_px, samples.seed, scale, body, true_pelvis_m)
    is_noise = given.kind == INITIAL_KINDS.index("noise")
    is_true_pose = given.kind == INITIAL_KINDS.index("true_pose")
    rotations = torch.where(is_true_pose[:, None, None, None], truth.rotations, given.body.rotations)
    estimate = BodyParameters(rotations, given.body.betas, given.body.transl)
    focal_px = torch.where(is_noise[:, None], noisy_focal_px, given.focal_px[:, None])
    return InitialEstimate(
        noisy.where(is_noise, estimate),
        PinholeCamera(focal_px, camera.center_px, camera.size_px),
        # Crop pixels per image pixel are the same for either focal length.
        PinholeCamera(crop_camera.focal_px / camera.focal_px * focal_px, crop_camera.center_px, crop_camera.size_px),
    )


def add_noise(
    truth: BodyParameters,
    focal_px: Float[Tensor, "batch 2"],
    seed: Int64[Tensor, " batch"],
    scale: NoiseScale,
    body: BodyModel,
    true_pelvis_m: Float[Tensor, "batch 3"] | None = None,
) -> tuple[BodyParameters, Float[Tensor, "batch 2"]]:
    """Bodies and focal lengths with noise; arguments as for `draw_initial`, one seed per body."""
    batch, joints = truth.rotations.shape[:2]
    spread = scale.greatest_severity - scale.least_severity
    severity = (scale.least_severity + spread * uniform(seed, 1, _SEVERITY)).float()
    turns_rad = standard_normal(seed, 3 * joints, _ROTATIONS).view(batch, joints, 3) * severity[..., None]
    turns_rad = turns_rad * _joint_scale_rad(scale, joints, seed.device)[:, None]
    rotations = truth.rotations @ roma.rotvec_to_rotmat(turns_rad)
    betas = truth.betas + scale.betas * severity * standard_normal(seed, truth.betas.shape[1], _BETAS)
    focal, depth, *shift = (standard_normal(seed, 4, _PLACE) * severity).unbind(1)
    focal_factor, depth_factor = (scale.focal * focal).exp(), (scale.depth * depth).exp()
    pelvis = body.shape_joints(truth.betas)[:, 0] + truth.transl if true_pelvis_m is None else true_pelvis_m
    # On the line of sight x / z stays; with the focal length longer by its factor, so does x f / z at z times it.
    sideways = pelvis[:, :2] * depth_factor[:, None] + scale.shift_m * torch.stack(shift, dim=1)
    noisy_pelvis = torch.cat([sideways, (pelvis[:, 2] * depth_factor * focal_factor)[:, None]], dim=1)
    transl = noisy_pelvis - body.shape_joints(betas)[:, 0]
    return BodyParameters(rotations, betas, transl), focal_px * focal_factor[:, None]


def _joint_scale_rad(scale: NoiseScale, joints: int, device: torch.device) -> Float[Tensor, " joints"]:
    degrees = [scale.limb_deg] * joints
    degrees[0] = scale.root_deg
    for joint in SPINE_JOINTS:
        degrees[joint] = scale.spine_deg
    return torch.deg2rad(torch.tensor(degrees, device=device))
