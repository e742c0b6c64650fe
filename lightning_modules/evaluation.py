"""Refines a batch in each of the ways that a result table compares, and scores the bodies before and after.

Each way is a row of the table (`RefinementRow`) and starts from the same initial estimates; the fit is in full-image
pixels by the initial estimate's camera. The numbers of a row are columns called `<row>/<number>`.

A sample is held against its measured joints where it has them and the protocol scores such (`metrics.true_points`).
Where it has no true body besides (Human3.6M's test set), the errors of vertices, pixels and maps are undefined, and
so is everything about the fit to the true displacements. The fit to DensePose points is undefined where nobody of the
data set has any; somebody who has none in a data set with such points keeps the initial estimate, as everybody does
whose keypoints were not detected.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyMesh, BodyModel, BodyParameters, InputError
from datamodules.sample import RefinementBatch
from fitting import FitResult, FitStatus, Smplify
from fitting.targets import Targets
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.losses import end_point_error_px
from lightning_modules.metrics import (
    POSE_ERROR_NAMES,
    EvaluationPoints,
    EvaluationProtocol,
    evaluation_points,
    has_measured_joints,
    pose_errors,
    true_points,
)
from renderers import vertex_targets

RefinementRow = Literal[
    "initial",
    "keypoints_detected",
    "keypoints_true",
    "densepose",
    "displacements",
    "displacements_and_keypoints",
    "displacements_true",
]
"""The initial estimate as it is, or fitted to: OpenPose keypoints as detected (noisy); as annotated; DensePose points
as detected; the network's displacements; these and the detected keypoints; the true displacements."""

#: What every row has, and what those have that were fitted.
ROW_NUMBERS: Final = (*POSE_ERROR_NAMES, "pixel_error_px")
FIT_NUMBERS: Final = ("target_error_px", "accepted")
#: Those for which measured joints are enough.
_OF_JOINTS: Final = ("mpjpe_mm", "pa_mpjpe_mm", "n_mpjpe_mm")
#: How fits end that never began: they have no distance from their targets.
_NOT_FITTED: Final = (FitStatus.NO_EVIDENCE, FitStatus.INITIAL_NOT_FINITE)


@dataclass(frozen=True)
class EvaluationSettings:
    """What is compared, and how it is scored."""

    validation_rows: tuple[RefinementRow, ...] = ("initial", "displacements")
    """Rows of each validation."""
    test_rows: tuple[RefinementRow, ...] = (
        "initial",
        "keypoints_detected",
        "keypoints_true",
        "displacements",
        "displacements_true",
    )
    """Rows of a test."""
    predict_row: RefinementRow = "displacements"
    """What `predict` writes."""
    protocol: EvaluationProtocol = "lsp14"
    """Joints that are scored: lsp14 (Human3.6M, 3DPW), by measured joints where a sample has them, or smpl24 (RICH)."""


@dataclass(frozen=True)
class Scores:
    """One number per sample and column."""

    values: Float[Tensor, "batch columns"]
    """The numbers, float64."""
    defined: Bool[Tensor, "batch columns"]
    """Which of them the sample can have."""


def row_columns(row: RefinementRow) -> tuple[str, ...]:
    """Names of the numbers of a row."""
    numbers = ROW_NUMBERS if row == "initial" else ROW_NUMBERS + FIT_NUMBERS
    return tuple(f"{row}/{number}" for number in numbers)


def displacement_columns(stacks: int) -> tuple[str, ...]:
    """Names of the end-point errors, in pixels of the crop: of zero displacement, and of each stack."""
    return ("zero/epe_px", *(f"stack_{stack}/epe_px" for stack in range(1, stacks + 1)))


def columns(rows: Sequence[RefinementRow], stacks: int) -> tuple[str, ...]:
    """Names of all numbers of an evaluation, in the order in which `score` has them."""
    return (*displacement_columns(stacks), *(column for row in rows for column in row_columns(row)))


def row_targets(
    row: RefinementRow,
    batch: RefinementBatch,
    displacement_px: Float[Tensor, "batch 2 crop crop"],
    body: BodyModel,
    settings: FittingSettings,
) -> tuple[Targets, ...]:
    """What the fit of a row aims at; nothing for the initial estimate.

    Raises:
        InputError: If it aims at DensePose points and samples have no room for them.
    """
    match row:
        case "initial":
            return ()
        case "keypoints_detected":
            return (settings.keypoints.targets(batch.detected_keypoints_px),)
        case "keypoints_true":
            return (settings.keypoints.targets(batch.true_keypoints_px),)
        case "densepose":
            if not batch.surface.weight.shape[1]:
                raise InputError(
                    "the row densepose needs DensePose points: set data.loading.surface_points, say to 500"
                )
            return (settings.surface.targets(batch.surface),)
        case "displacements":
            return (displacement_targets(batch, displacement_px, body, settings),)
        case "displacements_and_keypoints":
            keypoints = settings.keypoints.targets(batch.detected_keypoints_px)
            return (displacement_targets(batch, displacement_px, body, settings), keypoints)
        case "displacements_true":
            # Without a true body there is no evidence, and the fit says so.
            return (displacement_targets(batch, batch.displacement_px, body, settings, batch.has_body),)
        case _:
            assert_never(row)


def displacement_targets(
    batch: RefinementBatch,
    displacement_px: Float[Tensor, "batch 2 crop crop"],
    body: BodyModel,
    settings: FittingSettings,
    known: Bool[Tensor, " batch"] | None = None,
) -> Targets:
    """Equations 5 and 6: a displacement map of the crop as targets of the vertices in the full image.

    Args:
        batch: The batch.
        displacement_px: The map of each sample.
        body: The body model of the estimates.
        settings: How targets are weighted.
        known: Samples that have a map; the others get targets without weight. All by default.
    """
    vertices = body(batch.initial).vertices
    cameras = batch.initial_crop_camera, batch.initial_camera
    position_px, weight = vertex_targets(batch.fragments, body.faces, displacement_px, vertices, *cameras)
    if known is not None:
        weight = weight.where(known[:, None], 0.0)
    return settings.displacements.targets(position_px, weight)


def refine(
    rows: Sequence[RefinementRow],
    batch: RefinementBatch,
    displacement_px: Float[Tensor, "batch 2 crop crop"],
    fit: Smplify,
    settings: FittingSettings,
) -> dict[RefinementRow, FitResult]:
    """Fits the batch's initial estimates in each of the ways; the initial one has no fit."""
    results = {}
    for row in rows:
        targets = row_targets(row, batch, displacement_px, fit.body, settings)
        if targets:
            results[row] = fit(batch.initial, batch.initial_camera, targets)
    return results


def score(
    rows: Sequence[RefinementRow],
    batch: RefinementBatch,
    stacks_px: Float[Tensor, "batch stacks 2 crop crop"],
    fits: dict[RefinementRow, FitResult],
    true_mesh: BodyMesh,
    body: BodyModel,
    protocol: EvaluationProtocol,
) -> Scores:
    """All numbers of a batch.

    Args:
        rows: Which ways to score.
        batch: The batch.
        stacks_px: Displacement of each stack of the network.
        fits: Result of `refine`.
        true_mesh: The true bodies, of the samples that have one.
        body: The body model of the estimates.
        protocol: Which joints are scored.

    Returns:
        The columns of `columns`.
    """
    parts = [_displacement_errors(batch, stacks_px)]
    truth = true_points(body, true_mesh, batch.has_body, batch.joints_m, protocol)
    for row in rows:
        estimate = fits[row].parameters if row in fits else batch.initial
        numbers = [_body_errors(estimate, batch, truth, body, protocol)]
        if row in fits:
            numbers.append(_fit_numbers(fits[row]))
        parts += [_among(each, _who_can_have(row, batch)) for each in numbers]
    return Scores(torch.cat([p.values for p in parts], dim=1), torch.cat([p.defined for p in parts], dim=1))


def map_errors_px(
    batch: RefinementBatch, stacks_px: Float[Tensor, "batch stacks 2 crop crop"]
) -> Float[Tensor, "batch columns"]:
    """End-point errors of `displacement_columns`: what is left to beat, and what each stack leaves."""
    maps = torch.cat([torch.zeros_like(stacks_px[:, :1]), stacks_px.detach()], dim=1)
    return end_point_error_px(maps, batch.displacement_px, batch.mask)


def _displacement_errors(batch: RefinementBatch, stacks_px: Float[Tensor, "batch stacks 2 crop crop"]) -> Scores:
    errors = map_errors_px(batch, stacks_px).double()
    rendered = batch.mask.flatten(1).any(dim=1)
    return Scores(errors, (rendered & batch.has_body)[:, None].expand_as(errors))


def _body_errors(
    estimate: BodyParameters,
    batch: RefinementBatch,
    truth: EvaluationPoints,
    body: BodyModel,
    protocol: EvaluationProtocol,
) -> Scores:
    mesh = body(estimate)
    errors = pose_errors(evaluation_points(body, mesh, protocol), truth)
    apart = batch.initial_camera.project(mesh.vertices) - batch.camera.project(truth.vertices)
    pixels = torch.linalg.vector_norm(apart.double(), dim=-1).mean(dim=1)
    has_joints = batch.has_body | has_measured_joints(batch.joints_m, protocol)
    defined = [has_joints if name in _OF_JOINTS else batch.has_body for name in ROW_NUMBERS]
    return Scores(torch.cat([errors.stack(), pixels[:, None]], dim=1), torch.stack(defined, dim=1))


def _who_can_have(row: RefinementRow, batch: RefinementBatch) -> Bool[Tensor, " batch"]:
    match row:
        case "displacements_true":
            return batch.has_body
        case "densepose":
            return batch.surface.sought
        case _:
            return torch.ones_like(batch.has_body)


def _among(scores: Scores, samples: Bool[Tensor, " batch"]) -> Scores:
    """The same numbers, but for none but these samples."""
    return Scores(scores.values, scores.defined & samples[:, None])


def _fit_numbers(fit: FitResult) -> Scores:
    fitted = [status not in _NOT_FITTED for status in fit.status]
    values = torch.stack([fit.final_error_px.double(), fit.accepted.double()], dim=1)
    defined = torch.ones_like(values, dtype=torch.bool)
    defined[:, 0] = torch.tensor(fitted, device=values.device)
    return Scores(values, defined)
