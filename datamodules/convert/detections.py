"""Which row of a frames file a detection is about: the image by its name, the person by where the true body projects.

A detection says where some points of a body are seen. A point agrees with a row by exp(-d^2 / (2 (k b)^2)), with d the
distance to where the true body has it, b the side of the person's box and k = `TOLERANCE`; COCO's keypoint similarity
has this form. Detections of which the mean point agrees by less than `MIN_FIT` are of somebody else: a neighbour does
not take the place of a person who was not detected. Of the others, those are taken of which the points agree most in
sum, over all people of an image: a whole person comes before a fragment of two well-placed keypoints.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, Shaped
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from bodies import BodyModel, BodyParameters, load_body_model
from bodies.joints import SMPL24
from datamodules.convert.match import Matches, find_images, pairs_and_rest
from datamodules.convert.measured import measured_chain_m
from datamodules.store import FrameStore
from datamodules.store_layout import GENDERS, Gender

#: Distance, in sides of the person's box, at which a point agrees by 0.6.
TOLERANCE: Final = 0.1
#: Mean agreement below which a detection is of somebody else, or of nobody.
MIN_FIT: Final = 0.2
#: Videos count their frames with twelve digits from 0 (OpenPose's `--write_json`).
_VIDEO_FRAME: Final = re.compile(r"(.+)_(\d{12})")
#: Bodies that are posed at once.
_CHUNK: Final = 256

Bodies = Mapping[Gender, BodyModel]


@dataclass(frozen=True)
class DetectionReport:
    """What came of adding detections to a frames file."""

    rows: int
    """Rows that got one."""
    distance_px: float
    """Median distance of what was detected from where the true body has it."""
    distance: float
    """The same in sides of the person's box."""
    unmatched_rows: tuple[str, ...]
    """Rows without a detection."""
    unmatched_detections: tuple[str, ...]
    """Detections without a row, with the reason."""
    skipped: tuple[str, ...]
    """Files and people that cannot be used, with the reason."""


@dataclass(frozen=True)
class Candidates:
    """Every row with every detection of its image, image by image."""

    rows: Int64[ndarray, " pairs"]
    """Rows of the frames file."""
    detections: Int64[ndarray, " pairs"]
    """Detections."""
    blocks: tuple[tuple[int, int], ...]
    """Of each image, the numbers of rows and detections; the detection changes fastest."""

    def __len__(self) -> int:
        return len(self.rows)


def find_seen_images(frames: FrameStore, folder: str, names: Sequence[str]) -> Int64[ndarray, " names"]:
    """The stored image that each name means: its index, -1 if there is none, -2 if there are several.

    A name may also be that of a video, which is a sequence of the frames file, with the number of the frame in twelve
    digits.

    Args:
        frames: The frames.
        folder: Name of the folder that the names are relative to; it may be that of a sequence.
        names: What the detections call their images.
    """
    below = [f"{folder}/{name}" for name in names]
    images = _first_found(find_images(frames.image_names, names), find_images(frames.image_names, below))
    videos = {place: match for place, name in enumerate(names) if (match := _VIDEO_FRAME.fullmatch(name))}
    if not videos:
        return images
    stems = [match[1] for match in videos.values()]
    recordings = _first_found(
        find_images(frames.sequences, stems), find_images(frames.sequences, [f"{folder}/{stem}" for stem in stems])
    )
    keys = zip(frames.column("sequence").tolist(), frames.column("frame").tolist(), strict=True)
    image_of = dict(zip(keys, frames.column("image").tolist(), strict=True))
    for (place, match), recording in zip(videos.items(), recordings.tolist(), strict=True):
        if images[place] < 0:
            images[place] = image_of.get((recording, int(match[2])), -1) if recording >= 0 else recording
    return images


def _first_found(first: Int64[ndarray, " names"], second: Int64[ndarray, " names"]) -> Int64[ndarray, " names"]:
    return np.where((first < 0) & (second >= 0), second, first)


def candidates(frames: FrameStore, images: Int64[ndarray, " detections"]) -> Candidates:
    """All pairs that share an image."""
    detected: defaultdict[int, list[int]] = defaultdict(list)
    for detection, image in enumerate(images.tolist()):
        detected[image].append(detection)
    present: defaultdict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(frames.column("image").tolist()):
        if image in detected:
            present[image].append(row)
    none = np.zeros(0, np.int64)
    of_rows = [np.repeat(rows, len(detected[image])) for image, rows in present.items()]
    of_detections = [np.tile(detected[image], len(rows)) for image, rows in present.items()]
    blocks = tuple((len(rows), len(detected[image])) for image, rows in present.items())
    return Candidates(np.concatenate([none, *of_rows]), np.concatenate([none, *of_detections]), blocks)


class Fit(NamedTuple):
    """How well each of some detections agrees with a row."""

    mean: Float64[ndarray, " pairs"]
    """0 to 1, of the mean point; 0 where there is none."""
    total: Float64[ndarray, " pairs"]
    """Sum over the points."""


def fit_of(
    distance_px: Float64[ndarray, "pairs points"],
    weight: Shaped[ndarray, "pairs points"],
    side_px: Float32[ndarray, " pairs"],
) -> Fit:
    """How well each detection fits its row; see the module's description.

    Args:
        distance_px: Between what was detected and where the true body has it.
        weight: Above zero for the points that were detected.
        side_px: Side of the row's box.
    """
    share = np.exp(-0.5 * (distance_px / (TOLERANCE * side_px[:, None])) ** 2)
    counts = (weight > 0) & np.isfinite(share)
    count = counts.sum(axis=1)
    total = np.where(counts, share, 0).sum(axis=1)
    return Fit(np.divide(total, count, out=np.zeros(len(total)), where=count > 0), total)


def assign(
    frames: FrameStore,
    names: Sequence[str],
    images: Int64[ndarray, " detections"],
    pairs: Candidates,
    fit: Fit,
) -> Matches:
    """The pairs of each image that fit and whose points agree most in sum, and what is left over."""
    gain = np.where(fit.mean >= MIN_FIT, fit.total, 0)
    chosen, start = [], 0
    for rows, detections in pairs.blocks:
        block = gain[start : start + rows * detections].reshape(rows, detections)
        for row, detection in zip(*linear_sum_assignment(block, maximize=True), strict=True):
            if block[row, detection] > 0:
                chosen.append(start + row * detections + detection)
        start += rows * detections
    order = np.array(chosen, np.int64)
    order = order[np.argsort(pairs.rows[order], kind="stable")]
    reasons = np.select(
        [images == -1, images == -2],
        ["no image of this name", "several images end with this name"],
        "no person of the frames is there, or another detection fits better",
    )
    return pairs_and_rest(frames, names, pairs.rows[order], pairs.detections[order], reasons)


def load_true_bodies(frames: FrameStore, body: str | None = None) -> Bodies:
    """The body models of the genders in a frames file.

    Args:
        frames: The frames.
        body: Name, file or folder; by default what the frames file says.

    Raises:
        InputError: If one is missing or damaged.
    """
    genders = [GENDERS[code] for code in np.unique(frames.column("gender")).tolist()]
    name = body or frames.body_model
    # A file of any name stands for the neutral body.
    return {gender: load_body_model(name, None if gender == "neutral" else gender) for gender in genders}


def true_joints_px(frames: FrameStore, bodies: Bodies) -> Float32[ndarray, "rows joints 2"]:
    """Where the 24 joints of each row's true body are seen.

    Of a row without a body, those of its measured joints that have the same names are taken; the others are NaN.
    """
    joints_m = np.zeros((len(frames), len(SMPL24), 3), np.float32)
    for places, body, parameters in _true_parameters(frames, bodies, np.arange(len(frames))):
        posed = body.pose(body.shape_joints(parameters.betas), parameters.rotations)
        joints_m[places] = (posed.joints + parameters.transl[:, None]).numpy()
    bodiless = np.flatnonzero(~frames.has_body)
    joints_m[bodiless] = measured_chain_m(frames, bodiless)
    return _projected(frames, np.arange(len(frames)), joints_m)


def true_surface_px(
    frames: FrameStore,
    bodies: Bodies,
    rows: Int64[ndarray, " pairs"],
    corners: Int64[ndarray, "pairs points 3"],
    barycentric: Float32[ndarray, "pairs points 3"],
) -> Float32[ndarray, "pairs points 2"]:
    """Where points of the surface of rows' true bodies are seen, whether or not something hides them.

    Args:
        frames: The frames.
        bodies: Their body models.
        rows: The row of each pair.
        corners: Vertices of the triangles that the points lie in.
        barycentric: Weights of these.
    """
    points_m = np.zeros(corners.shape, np.float32)
    for places, body, parameters in _true_parameters(frames, bodies, rows):
        vertices = body(parameters).vertices.numpy()
        chosen = vertices[np.arange(len(places))[:, None, None], corners[places]]
        points_m[places] = (chosen * barycentric[places, ..., None]).sum(axis=2)
    return _projected(frames, rows, points_m)


def _true_parameters(
    frames: FrameStore, bodies: Bodies, rows: Int64[ndarray, " rows"]
) -> Iterator[tuple[Int64[ndarray, " places"], BodyModel, BodyParameters]]:
    """The true bodies of some rows in lots of one gender, each with its places in `rows`."""
    pose, betas, transl, genders = (frames.column(name)[rows] for name in ("pose", "betas", "transl", "gender"))
    for gender, body in bodies.items():
        of_gender = np.flatnonzero(genders == GENDERS.index(gender))
        for first in range(0, len(of_gender), _CHUNK):
            places = of_gender[first : first + _CHUNK]
            parts = (pose[places], betas[places, : body.num_betas], transl[places])
            with torch.no_grad():
                yield places, body, BodyParameters.from_axis_angle(*(torch.tensor(part) for part in parts))


def _projected(
    frames: FrameStore, rows: Int64[ndarray, " rows"], points_m: Float32[ndarray, "rows points 3"]
) -> Float32[ndarray, "rows points 2"]:
    cameras = frames.cameras()[torch.as_tensor(rows)]
    position_px = cameras.project(torch.from_numpy(points_m))
    # What is behind the camera is seen nowhere.
    return np.where(points_m[..., 2:] > 0, position_px.numpy(), np.nan).astype(np.float32)
