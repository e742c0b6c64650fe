"""How far estimates are from the true bodies: the numbers of `snugfit data info` on estimates files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from bodies import BodyMesh, BodyModel, BodyParameters, InputError, load_body_model
from datamodules.convert.detections import load_true_bodies
from datamodules.store import EstimateStore, FrameStore
from datamodules.store_layout import GENDERS, Gender
from lightning_modules.metrics import (
    EvaluationPoints,
    EvaluationProtocol,
    align_root,
    evaluation_points,
    mpjpe_mm,
    pa_mpjpe_mm,
    true_points,
)

#: Rows that are compared at once.
_CHUNK: Final = 32
#: More bodies than this show a progress bar.
_QUICK_BODIES: Final = 1000


class ErrorsMm(NamedTuple):
    """Errors of some rows, of each sample, in millimetres."""

    mpjpe: Float64[ndarray, "rows samples"]
    """Joints, pelvis aligned."""
    pa_mpjpe: Float64[ndarray, "rows samples"]
    """Joints, best similarity."""
    pve: Float64[ndarray, "rows samples"]
    """Vertices, pelvis aligned."""


@dataclass(frozen=True)
class Measure:
    """The bodies that are compared, and at which joints.

    Raises:
        InputError: If a body has another number of vertices than the estimates'.
    """

    body: BodyModel
    """Of the estimates."""
    true_bodies: Mapping[Gender, BodyModel]
    """Of the true bodies of each gender."""

    def __post_init__(self) -> None:
        for gender, body in self.true_bodies.items():
            if body.num_vertices != self.body.num_vertices:
                raise InputError(
                    f"the {gender} body model {body.name} has {body.num_vertices} vertices, "
                    f"{self.body.name} has {self.body.num_vertices}"
                )

    @property
    def protocol(self) -> EvaluationProtocol:
        """lsp14 where all models define it, else smpl24."""
        defined = all("lsp14" in body.keypoint_sets for body in (self.body, *self.true_bodies.values()))
        return "lsp14" if defined else "smpl24"


def load_measure(frames: FrameStore, body: str | None) -> Measure:
    """The bodies of a frames file and its estimates.

    Raises:
        InputError: If a model is missing or damaged.
    """
    return Measure(load_body_model(body or frames.body_model), load_true_bodies(frames, body))


def print_errors(
    console: Console, frames: FrameStore, stores: Sequence[EstimateStore], body: str | None, most_rows: int
) -> None:
    """Prints the table of errors, or why there is none: the rest of what is told needs no body model.

    Raises:
        InputError: If the body model that was asked for cannot be used.
    """
    try:
        measure = load_measure(frames, body)
    except InputError as error:
        if body is not None:
            raise
        console.print(f"errors are not measured (--body names another model): {error}", soft_wrap=True, markup=False)
        return
    console.print(errors_table(frames, stores, measure, most_rows))


def errors_table(frames: FrameStore, stores: Sequence[EstimateStore], measure: Measure, most_rows: int) -> Table:
    """Mean and median errors of each regressor; of one with several samples, those of the first and of the best.

    Args:
        frames: The true bodies.
        stores: Their estimates.
        measure: How to compare.
        most_rows: Compare so many rows at most, evenly spaced.
    """
    title = f"errors in mm at {measure.protocol}: mean / median"
    # Narrow enough for 80 columns: numbers that break over two lines cannot be compared.
    table = Table("", title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for name in ("rows", "missing", "MPJPE", "PA-MPJPE", "PVE"):
        table.add_column(name, no_wrap=True, justify="right")
    for store in stores:
        missing = int((~store.valid[frames.rows]).sum())
        indices = np.flatnonzero(store.valid[frames.rows])
        if not len(indices):
            table.add_row(store.regressor, "0", str(missing), "", "", "")
            continue
        chosen = np.unique(np.linspace(0, len(indices) - 1, min(most_rows, len(indices))).round().astype(int))
        errors = measure_errors(frames, store, indices[chosen], measure)
        kinds = {store.regressor: [e[:, 0] for e in errors]}
        if store.samples > 1:
            best = [e.min(axis=1) for e in errors]
            kinds = {f"{store.regressor}, mode": kinds[store.regressor], f"  best of {store.samples}": best}
        for name, values in kinds.items():
            cells = [_mean_and_median(value[np.isfinite(value)]) for value in values]
            table.add_row(name, str(len(chosen)), str(missing), *cells)
    return table


def _mean_and_median(values: Float64[ndarray, " rows"]) -> str:
    return f"{np.mean(values):.1f} / {np.median(values):.1f}" if len(values) else "-"


@torch.no_grad()
def measure_errors(
    frames: FrameStore, store: EstimateStore, indices: Int64[ndarray, " rows"], measure: Measure
) -> ErrorsMm:
    """The errors of some rows, which have estimates.

    As in `snugfit test` rows with measured joints are compared at these, if they are the ones that are scored; what a
    row without a body does not define is NaN.

    Args:
        frames: The true bodies.
        store: The estimates.
        indices: Which rows of `frames`.
        measure: How to compare.
    """
    chunks = [indices[first : first + _CHUNK] for first in range(0, len(indices), _CHUNK)]
    quick = len(indices) * store.samples < _QUICK_BODIES
    parts = []
    for chunk in track(chunks, f"comparing {store.regressor}", transient=True, disable=quick):
        truth = _true_points(frames, chunk, measure)
        parts.append(torch.stack([_errors_mm(points, truth) for points in _estimated(frames, store, chunk, measure)]))
    # Of a chunk: samples, errors, rows.
    return ErrorsMm(*torch.cat(parts, dim=2).permute(1, 2, 0).numpy())


def _errors_mm(points: EvaluationPoints, truth: EvaluationPoints) -> Float[Tensor, "errors rows"]:
    joints, vertices = ((getattr(points, name), getattr(truth, name)) for name in ("joints", "vertices"))
    pelvises = points.pelvis, truth.pelvis
    aligned_joints = [align_root(part, pelvis) for part, pelvis in zip(joints, pelvises, strict=True)]
    aligned_vertices = [align_root(part, pelvis) for part, pelvis in zip(vertices, pelvises, strict=True)]
    return torch.stack([mpjpe_mm(*aligned_joints), pa_mpjpe_mm(*joints), mpjpe_mm(*aligned_vertices)])


def _estimated(
    frames: FrameStore, store: EstimateStore, indices: Int64[ndarray, " rows"], measure: Measure
) -> Iterator[EvaluationPoints]:
    """The points of the rows' estimates, sample after sample."""
    for sample in range(store.samples):
        read = [store.read(int(row), sample) for row in frames.rows[indices]]
        numbers = (np.stack([getattr(one, name) for one in read]) for name in ("pose", "betas", "transl"))
        yield evaluation_points(measure.body, _mesh(measure.body, *numbers), measure.protocol)


def _true_points(frames: FrameStore, indices: Int64[ndarray, " rows"], measure: Measure) -> EvaluationPoints:
    rows = [frames.read(int(index)) for index in indices]
    genders = np.array([GENDERS.index(row.gender) for row in rows])
    parts, places = [], []
    for gender, body in measure.true_bodies.items():
        (of_gender,) = np.nonzero(genders == GENDERS.index(gender))
        if len(of_gender):
            numbers = (np.stack([getattr(rows[k], name) for k in of_gender]) for name in ("pose", "betas", "transl"))
            has_body = torch.tensor(frames.has_body[indices[of_gender]])
            joints_m = torch.tensor(np.stack([rows[k].joints_m for k in of_gender]))
            parts.append(true_points(body, _mesh(body, *numbers), has_body, joints_m, measure.protocol))
            places.append(of_gender)
    order = torch.tensor(np.concatenate(places)).argsort()
    joints, vertices, pelvis = (
        torch.cat([getattr(part, name) for part in parts])[order] for name in ("joints", "vertices", "pelvis")
    )
    return EvaluationPoints(joints, vertices, pelvis)


def _mesh(body: BodyModel, pose: ndarray, betas: ndarray, transl: ndarray) -> BodyMesh:
    numbers = (torch.tensor(part) for part in (pose, betas[:, : body.num_betas], transl))
    return body(BodyParameters.from_axis_angle(*numbers))
