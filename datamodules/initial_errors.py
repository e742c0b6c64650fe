"""How far initial estimates are from the truth: printed when training starts, and used to calibrate `NoiseScale`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import roma
import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from bodies.body_model import BodyMesh, BodyModel, BodyParameters
from bodies.camera import PinholeCamera
from bodies.joints import KeypointSet
from datamodules.initial import NoiseScale, add_noise
from datamodules.store_layout import GENDERS, Gender
from datamodules.store_reader import EstimateStore, FrameStore

#: Any seed would do; this one makes the summary the same in every run.
_SEED: Final = 20_230_000
_MM_PER_M: Final = 1000.0


@dataclass(frozen=True)
class InitialErrors:
    """Mean errors of one source of initial estimates."""

    source: str
    """Noise, or the name of a regressor."""
    rows: int
    """How many rows they are of."""
    mpjpe_mm: float
    """Mean joint error with the pelvises aligned: lsp14 where the model defines it, else smpl24."""
    pa_mpjpe_mm: float
    """The same after a similarity that aligns the joints (Procrustes)."""
    pve_mm: float
    """Mean vertex error with the pelvises aligned."""
    displacement_percent: float
    """Mean distance in the image between where a vertex is and where it is drawn, in percent of the box's side."""

    def __str__(self) -> str:
        return (
            f"{self.source}: MPJPE {self.mpjpe_mm:.1f} mm, PA-MPJPE {self.pa_mpjpe_mm:.1f} mm, "
            f"PVE {self.pve_mm:.1f} mm, displacement {self.displacement_percent:.1f} % of the box ({self.rows} rows)"
        )


@torch.no_grad()
def initial_error_summary(
    frames: FrameStore,
    body: BodyModel,
    noise: NoiseScale,
    estimates: Sequence[EstimateStore] = (),
    true_bodies: Mapping[Gender, BodyModel] | None = None,
    most_rows: int = 128,
) -> tuple[InitialErrors, ...]:
    """Errors of the noise and of each regressor on rows spread evenly over a frames file.

    Of a regressor with several samples the first is taken, and of its rows those that have an estimate.

    Args:
        frames: The rows.
        body: The model that the initial bodies are of.
        noise: How much noise.
        estimates: Estimates files of these rows.
        true_bodies: Models that the true bodies of some gender are of; `body` for the others.
        most_rows: How many rows to take at most.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, most_rows).round().astype(int))
    truth, cameras = _true_parameters(frames, chosen), frames.cameras()[torch.from_numpy(chosen)]
    box_side_px = torch.from_numpy(frames.column("box_px")[chosen, 2])
    true_mesh = _true_mesh(truth, frames.column("gender")[chosen], body, true_bodies or {})
    seed = _SEED + torch.arange(len(chosen))
    noisy, focal_px = add_noise(truth, cameras.focal_px, seed, noise, body, true_mesh.joints[:, 0])
    noisy_cameras = PinholeCamera(focal_px, cameras.center_px, cameras.size_px)
    summary = [_errors("noise", true_mesh, cameras, noisy, noisy_cameras, body, box_side_px)]
    for store in estimates:
        rows = frames.rows[chosen]
        kept = torch.from_numpy(np.flatnonzero(store.valid[rows]))
        if len(kept):
            estimate, its_focal_px = _estimates(store, rows[kept.numpy()])
            its_cameras = PinholeCamera(its_focal_px, cameras.center_px[kept], cameras.size_px[kept])
            mesh = BodyMesh(true_mesh.vertices[kept], true_mesh.joints[kept])
            summary.append(
                _errors(store.regressor, mesh, cameras[kept], estimate, its_cameras, body, box_side_px[kept])
            )
    return tuple(summary)


def _true_parameters(frames: FrameStore, chosen: ndarray) -> BodyParameters:
    columns = (torch.tensor(frames.column(label)[chosen]) for label in ("pose", "betas", "transl"))
    return BodyParameters.from_axis_angle(*columns)


def _estimates(store: EstimateStore, rows: ndarray) -> tuple[BodyParameters, Float[Tensor, "batch 2"]]:
    columns = (torch.tensor(store.column(label)[rows, 0]) for label in ("pose", "betas", "transl"))
    focal_px = torch.tensor(store.column("focal_px")[rows])[:, None].expand(-1, 2)
    return BodyParameters.from_axis_angle(*columns), focal_px


def _true_mesh(
    truth: BodyParameters, genders: ndarray, body: BodyModel, true_bodies: Mapping[Gender, BodyModel]
) -> BodyMesh:
    mesh = body(truth)
    vertices, joints = mesh.vertices, mesh.joints
    for gender, other in true_bodies.items():
        of_gender: Int64[Tensor, " rows"] = torch.from_numpy(np.flatnonzero(genders == GENDERS.index(gender)))
        its_mesh = other(truth[of_gender])
        vertices[of_gender], joints[of_gender] = its_mesh.vertices, its_mesh.joints
    return BodyMesh(vertices, joints)


def _errors(
    source: str,
    true_mesh: BodyMesh,
    cameras: PinholeCamera,
    initial: BodyParameters,
    initial_cameras: PinholeCamera,
    body: BodyModel,
    box_side_px: Float[Tensor, " rows"],
) -> InitialErrors:
    mesh = body(initial)
    keypoints: KeypointSet = "lsp14" if "lsp14" in body.keypoint_sets else "smpl24"
    true_joints, joints = (body.keypoints(m, keypoints) - m.joints[:, :1] for m in (true_mesh, mesh))
    rotation, shift, scale = roma.rigid_points_registration(joints, true_joints, compute_scaling=True)
    aligned = scale[:, None, None] * joints @ rotation.mT + shift[:, None]
    true_vertices, vertices = (m.vertices - m.joints[:, :1] for m in (true_mesh, mesh))
    moved_px = initial_cameras.project(mesh.vertices) - cameras.project(true_mesh.vertices)
    return InitialErrors(
        source,
        len(initial),
        _mean_distance(joints - true_joints) * _MM_PER_M,
        _mean_distance(aligned - true_joints) * _MM_PER_M,
        _mean_distance(vertices - true_vertices) * _MM_PER_M,
        _mean_distance(moved_px / box_side_px[:, None, None]) * 100,
    )


def _mean_distance(difference: Float[Tensor, "rows points axes"]) -> float:
    return float(torch.linalg.vector_norm(difference, dim=-1).mean())
