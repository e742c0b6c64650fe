"""Takes a regressor's predictions into an estimates file: matches, places, checks, writes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from rich.progress import track

from bodies import BodyModel, BodyParameters, InputError, PinholeCamera
from bodies.camera import square_box
from datamodules.convert.match import MIN_OVERLAP, Matches, find_images, find_rows, match_persons, match_rows
from datamodules.convert.plausibility import COMPARED_ROWS, Agreement, compare
from datamodules.convert.predictions import (
    CropCameras,
    FocalChoice,
    FullCameras,
    PlacedBodies,
    Predictions,
    joined,
    place,
    scaled_boxes,
)
from datamodules.store import EstimateWriter, FrameStore

#: Joints lie inside the body; a box about them is enlarged by this to be like a detector's.
_JOINT_BOX_MARGIN = 1.2
#: Bodies that are placed at a time, some 100 MB on the way.
_BLOCK_BODIES = 8192
#: More bodies than this show a progress bar.
_QUICK_BODIES = 20_000


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
    with _about(source):
        matches = _match(predictions, frames, body)
        # Where nobody is where they should be, pairs by name alone tell why.
        loose = matches if len(matches.rows) else _match(predictions, frames, body, 0.0)
        if not len(loose.rows):
            first = (matches.unmatched_predictions or ("there are none",))[0]
            raise InputError(f"none of {len(predictions)} predictions belongs to a row of {frames.path} ({first})")
        blocks = _Blocks(source, predictions, frames, loose, focal)
    agreement = _agreement(blocks, body)
    if agreement.cause is not None or not len(matches.rows):
        cause = agreement.cause or "nobody is where the predictions' boxes are"
        raise InputError(f"{source}: this cannot be an estimate of {frames.path}: {cause}")
    skipped = _write(None if dry_run else out, blocks, regressor)
    rows, samples = len(loose.rows) - len(skipped), predictions.samples
    return ImportReport(rows, samples, agreement, matches.unmatched_rows, matches.unmatched_predictions, skipped)


@contextmanager
def _about(source: Path) -> Iterator[None]:
    """Names the source in whatever is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


@dataclass(frozen=True)
class _Blocks:
    """The pairs of rows and predictions, to be placed in the frames some at a time: memory is for those alone."""

    source: Path
    predictions: Predictions
    frames: FrameStore
    pairs: Matches
    focal: FocalChoice

    @property
    def size(self) -> int:
        """Pairs to a block."""
        return max(1, _BLOCK_BODIES // self.predictions.samples)

    def place(self, chosen: Int64[ndarray, " chosen"]) -> tuple[Int64[ndarray, " good"], PlacedBodies, dict[int, str]]:
        """Rows and bodies of those of the chosen pairs that can be used, and why the others cannot, by pair."""
        rows = self.pairs.rows[chosen]
        cameras = self._cameras[torch.as_tensor(rows)]
        with _about(self.source):
            bodies = place(take(self.predictions, self.pairs.predictions[chosen]), cameras, self.focal)
        problems = bodies.problems()
        good = np.setdiff1d(np.arange(len(chosen)), list(problems))
        return rows[good], bodies.take(good), {int(chosen[one]): reason for one, reason in problems.items()}

    @cached_property
    def _cameras(self) -> PinholeCamera:
        return self.frames.cameras()


def _agreement(blocks: _Blocks, body: BodyModel) -> Agreement:
    """How the bodies compare with the ground truth, by pairs that are evenly spaced over all.

    Raises:
        InputError: If none of these pairs can be used.
    """
    count = len(blocks.pairs.rows)
    chosen = np.unique(np.linspace(0, count - 1, min(COMPARED_ROWS, count)).round().astype(int))
    parts, problems = [], dict[int, str]()
    for first in range(0, len(chosen), blocks.size):
        rows, bodies, more = blocks.place(chosen[first : first + blocks.size])
        parts.append((rows, bodies.first_sample()))
        problems |= more
    rows = np.concatenate([rows for rows, _ in parts])
    if not len(rows):
        raise InputError(f"{blocks.source}: no prediction can be used, the first because {problems[0]}")
    crop_cameras = isinstance(blocks.predictions.camera, CropCameras)
    return compare(blocks.frames, rows, joined([bodies for _, bodies in parts]), body, crop_cameras)


def _write(out: Path | None, blocks: _Blocks, regressor: str) -> tuple[str, ...]:
    """Writes the estimates file block by block, or only looks at all of them; returns what is left out, and why."""
    frames, samples, count = blocks.frames, blocks.predictions.samples, len(blocks.pairs.rows)
    skipped: list[str] = []
    with ExitStack() as stack:
        writer = None
        if out is not None:
            writer = stack.enter_context(EstimateWriter(out, frames, regressor, samples, resume=False))
        starts = range(0, count, blocks.size)
        for first in track(starts, "placing the bodies", transient=True, disable=count * samples < _QUICK_BODIES):
            rows, bodies, problems = blocks.place(np.arange(first, min(first + blocks.size, count)))
            named = ((frames.row_id(int(blocks.pairs.rows[pair])), reason) for pair, reason in sorted(problems.items()))
            skipped += [f"{row_id}: {reason}" for row_id, reason in named]
            for one, row in enumerate(rows.tolist() if writer is not None else ()):
                assert writer is not None
                focal_px = float(bodies.focal_px[one])
                writer.add(row, bodies.pose[one], bodies.betas[one], bodies.transl_m[one], focal_px)
    return tuple(skipped)


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
        some = take(predictions, found)  # a pose that is not read yet stays so
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
