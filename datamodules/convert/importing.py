"""Takes a regressor's predictions into an estimates file: matches, places, checks, writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from rich.progress import track

from bodies import BodyModel, BodyParameters, InputError, PinholeCamera
from bodies.camera import square_box
from datamodules.convert.match import MIN_OVERLAP, Matches, find_images, find_rows, match_persons, match_rows
from datamodules.convert.plausibility import Agreement, compare
from datamodules.convert.predictions import (
    CropCameras,
    FocalChoice,
    FullCameras,
    PlacedBodies,
    Predictions,
    place,
    scaled_boxes,
)
from datamodules.store import EstimateStore, EstimateWriter, FrameStore

#: Joints lie inside the body; a box about them is enlarged by this to be like a detector's.
_JOINT_BOX_MARGIN = 1.2
#: More rows than this show a progress bar.
_QUICK_ROWS = 2000


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    rows: int
    """Rows that got estimates."""
    samples: int
    """Estimates of each."""
    agreement: Agreement
    """How they compare with the ground truth."""
    unmatched_rows: tuple[str, ...]
    """Rows without a prediction."""
    unmatched_predictions: tuple[str, ...]
    """Predictions without a row, with the reason."""
    skipped: tuple[str, ...]
    """Rows whose prediction cannot be used, with the reason."""


def import_predictions(
    source: Path,
    predictions: Predictions,
    frames: FrameStore,
    out: Path,
    regressor: str,
    *,
    body: BodyModel,
    focal: FocalChoice = "frames",
    dry_run: bool = False,
) -> ImportReport:
    """Writes the estimates file of a regressor.

    Args:
        source: Where the predictions come from, for messages.
        predictions: The results.
        frames: The rows that they are for, opened without `skip_bad_rows`.
        out: The estimates file.
        regressor: Its name.
        body: Used to compare with the ground truth and to find persons for which no box is given.
        focal: Focal length with which crop cameras become translations.
        dry_run: Write nothing.

    Raises:
        InputError: If nothing matches, no matched prediction can be used, or they are absurd; names the source and the
            likely cause.
    """
    try:
        matches = _match(predictions, frames, body)
        # Where nobody is where they should be, pairs by name alone tell why.
        loose = matches if len(matches.rows) else _match(predictions, frames, body, 0.0)
        if not len(loose.rows):
            first = (matches.unmatched_predictions or ("there are none",))[0]
            raise InputError(f"none of {len(predictions)} predictions belongs to a row of {frames.path} ({first})")
        bodies = place(take(predictions, loose.predictions), frames.cameras()[torch.as_tensor(loose.rows)], focal)
        problems = bodies.problems()
        good = np.setdiff1d(np.arange(len(loose.rows)), list(problems))
        if not len(good):
            raise InputError(f"no prediction can be used, the first because {problems[0]}")
        rows, bodies = loose.rows[good], bodies.take(good)
        agreement = compare(frames, rows, bodies, body, isinstance(predictions.camera, CropCameras))
        if agreement.cause is not None or not len(matches.rows):
            cause = agreement.cause or "nobody is where the predictions' boxes are"
            raise InputError(f"this cannot be an estimate of {frames.path}: {cause}")
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if not dry_run:
        _write(out, frames, regressor, rows, bodies)
    skipped = tuple(f"{frames.row_id(int(matches.rows[one]))}: {reason}" for one, reason in sorted(problems.items()))
    samples = bodies.pose.shape[1]
    return ImportReport(len(rows), samples, agreement, matches.unmatched_rows, matches.unmatched_predictions, skipped)


def _write(out: Path, frames: FrameStore, regressor: str, rows: Int64[ndarray, " rows"], bodies: PlacedBodies) -> None:
    with EstimateWriter(out, frames, regressor, bodies.pose.shape[1], resume=False) as writer:
        for one in track(range(len(rows)), "writing estimates", transient=True, disable=len(rows) < _QUICK_ROWS):
            pose, betas, transl = bodies.pose[one], bodies.betas[one], bodies.transl_m[one]
            writer.add(int(rows[one]), pose, betas, transl, float(bodies.focal_px[one]))


def is_complete(out: Path, frames: FrameStore, regressor: str) -> bool:
    """Whether the file is there and holds this regressor's estimates for these frames."""
    if not out.is_file():
        return False
    try:
        return EstimateStore(out, frames).regressor == regressor
    except InputError:
        return False


def take(predictions: Predictions, chosen: Int64[ndarray, " chosen"] | Sequence[int]) -> Predictions:
    """Some of the predictions, in the order given."""
    chosen = np.asarray(chosen, np.int64)
    camera = predictions.camera
    picked: CropCameras | FullCameras
    if isinstance(camera, CropCameras):
        picked = CropCameras(camera.weak_camera[chosen], camera.box_px[chosen])
    else:
        center = None if camera.center_px is None else camera.center_px[chosen]
        picked = FullCameras(camera.transl_m[chosen], camera.focal_px[chosen], center)
    return Predictions(
        tuple(predictions.names[one] for one in chosen),
        predictions.named_by_row,
        predictions.pose[chosen],
        predictions.betas[chosen],
        picked,
        None if predictions.box_px is None else predictions.box_px[chosen],
        None if predictions.image_size_px is None else predictions.image_size_px[chosen],
    )


def _match(predictions: Predictions, frames: FrameStore, body: BodyModel, min_overlap: float = MIN_OVERLAP) -> Matches:
    if predictions.named_by_row:
        return match_rows(frames, predictions.names, find_rows(frames, predictions.names))
    images = find_images(frames.image_names, predictions.names)
    box_px = np.zeros((len(predictions), 3), np.float32)
    found = np.flatnonzero(images >= 0)
    if len(found):
        # Any row of the image tells its camera.
        image_of_row = frames.column("image")
        row_of_image = np.zeros(int(image_of_row.max()) + 1, np.int64)
        row_of_image[image_of_row] = np.arange(len(image_of_row))
        cameras = frames.cameras()[torch.as_tensor(row_of_image[images[found]])]
        some = take(predictions, found)
        boxes = scaled_boxes(some, cameras.size_px.double().numpy())
        box_px[found] = _boxes_of_bodies(some, cameras, body) if boxes is None else boxes
    return match_persons(frames, predictions.names, images, box_px, min_overlap)


def _boxes_of_bodies(predictions: Predictions, cameras: PinholeCamera, body: BodyModel) -> Float32[ndarray, "rows 3"]:
    """Boxes about the projected joints, for results that come without any."""
    placed = place(predictions, cameras, "frames")
    pose, betas, transl = (torch.tensor(part[:, 0]) for part in (placed.pose, placed.betas, placed.transl_m))
    parameters = BodyParameters.from_axis_angle(pose, betas[:, : body.num_betas], transl)
    joints = body.pose(body.shape_joints(parameters.betas), parameters.rotations).joints + transl[:, None]
    focal_px = torch.tensor(placed.focal_px)[:, None].expand(-1, 2)
    position_px = PinholeCamera(focal_px, cameras.center_px, cameras.size_px).project(joints)
    center, side = square_box(position_px, torch.ones(position_px.shape[:2]), _JOINT_BOX_MARGIN)
    return torch.cat([center, side[:, None]], dim=1).numpy()
