"""People seen by a camera, with an initial estimate of known error: what the benchmark fits."""

import math
from dataclasses import dataclass

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from bodies import BodyModel, BodyParameters, PinholeCamera, PosedJoints
from datamodules.poses import sample_poses
from fitting import VertexTargets
from fitting.body_points import Bones, VertexPoints
from renderers import make_rasterizer, pixel_to_vertex

IMAGE_PX = 256
#: Disturbance of the initial estimate: about the error of the regressors of the paper (80 to 100 mm per vertex).
POSE_NOISE_RAD = 0.13
BETAS_NOISE = 0.7
TRANSL_NOISE_M = (0.03, 0.03, 0.15)


@dataclass(frozen=True)
class FitCases:
    """A batch of fits with known answers."""

    truth: BodyParameters
    """The people."""
    initial: BodyParameters
    """The estimates to start from."""
    camera: PinholeCamera
    """Their cameras."""
    targets: VertexTargets
    """True positions of the vertices that the initial body shows to the camera (ground-truth displacements)."""


@dataclass(frozen=True)
class WholeMeshPoints:
    """Chosen vertices taken from the whole mesh, which SPIN's SMPLify evaluates in each of its steps.

    Everything but the positions is that of the vertices alone; see `fitting.body_points.BodyPoints`.
    """

    body: BodyModel
    """The body model."""
    chosen: VertexPoints
    """The vertices."""

    @property
    def masses(self) -> Float[Tensor, "batch points joints"]:
        """See `BodyPoints`."""
        return self.chosen.masses

    def select(self, index: Tensor) -> "WholeMeshPoints":
        """See `BodyPoints`."""
        return WholeMeshPoints(self.body, self.chosen.select(index))

    def contributions(self, bones: Bones, betas: Tensor) -> Float[Tensor, "batch points 3 joints"]:
        """See `BodyPoints`."""
        return self.chosen.contributions(bones, betas)

    def positions(self, bones: Bones, betas: Tensor) -> Float[Tensor, "batch points 3"]:
        """See `BodyPoints`."""
        posed = PosedJoints(bones.rotations, bones.joints, bones.pose_features)
        vertices = self.body.skin(self.body.shape(betas), posed)
        return vertices.gather(1, self.chosen.vertex_ids[..., None].expand(-1, -1, 3))

    def shape_rows(self, bones: Bones, rows: Tensor, num_betas: int) -> Float[Tensor, "batch points 2 betas"]:
        """See `BodyPoints`."""
        return self.chosen.shape_rows(bones, rows, num_betas)

    def feature_rows(self, bones: Bones, rows: Tensor) -> Float[Tensor, "batch points 2 pose_features"]:
        """See `BodyPoints`."""
        return self.chosen.feature_rows(bones, rows)


def make_fit_cases(body: BodyModel, count: int, seed: int, max_vertices: int) -> FitCases:
    """Postures of the sampler, upright in front of the camera at any heading, and disturbed copies of them.

    Args:
        body: The body model.
        count: How many people.
        seed: Of everything random.
        max_vertices: Vertices to fit of each.
    """
    truth = draw_people(count, seed)
    size = torch.full((count, 2), float(IMAGE_PX))
    camera = PinholeCamera.from_image_size(size)
    initial = disturb(truth, seed + 1)
    initial_mesh, true_mesh = body(initial), body(truth)
    fragments = make_rasterizer("cpu")(initial_mesh.vertices, body.faces, camera, IMAGE_PX, IMAGE_PX)
    ones = torch.ones(count, IMAGE_PX, IMAGE_PX, 1)
    _, weight = pixel_to_vertex(fragments, body.faces, ones, body.num_vertices)
    targets = VertexTargets(camera.project(true_mesh.vertices), (weight > 0).float(), max_vertices=max_vertices)
    return FitCases(truth, initial, camera, targets)


def draw_people(count: int, seed: int) -> BodyParameters:
    """People in front of a camera, at headings and distances drawn at random."""
    samples = sample_poses(count, seed)
    generator = torch.Generator().manual_seed(seed)
    heading = torch.rand(count, generator=generator) * 2 * math.pi
    turn = roma.rotvec_to_rotmat(torch.stack([torch.zeros(count), heading, torch.zeros(count)], dim=-1))
    upright = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    root = upright @ turn @ roma.rotvec_to_rotmat(torch.from_numpy(samples.root_orientation))
    joints = roma.rotvec_to_rotmat(torch.from_numpy(samples.body_pose).view(count, -1, 3))
    transl = torch.tensor([0.0, 0.1, 4.0]) + torch.randn(count, 3, generator=generator) * torch.tensor([0.2, 0.1, 0.4])
    betas = torch.randn(count, 10, generator=generator) * 0.8
    return BodyParameters(torch.cat([root[:, None], joints], dim=1), betas, transl)


def disturb(truth: BodyParameters, seed: int) -> BodyParameters:
    """The same people as a regressor might see them."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Float[Tensor, "..."]:
        return torch.randn(like.shape, generator=generator)

    turn = roma.rotvec_to_rotmat(POSE_NOISE_RAD * noise(truth.rotations[..., 0]))
    return BodyParameters(
        truth.rotations @ turn,
        truth.betas + BETAS_NOISE * noise(truth.betas),
        truth.transl + torch.tensor(TRANSL_NOISE_M) * noise(truth.transl),
    )
