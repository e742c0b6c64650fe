"""Adds a folder of OpenPose's JSON files to a frames file, as the column `detected_keypoints_px`.

What is easy to get wrong, and how it is read here:

* A file is named after its image, `<stem>_keypoints.json`, or after a video and its frame, counted from 0 with twelve
  digits. The folders above it tell images of one name apart.
* `people` may be empty, and is in no particular order: who is who is decided by where the true bodies project
  (`datamodules.convert.detections`).
* An undetected keypoint is (0, 0, 0): its place means nothing, so it stays zero.
* 25 keypoints are BODY_25, 18 are COCO-18, which has no mid hip and no feet. Other models are refused.
* Positions are pixels of the image that was given, unless `--keypoint_scale` or a smaller copy of the image says
  otherwise: then nobody is where they should be, and the likely cause is named.
* SURREAL's videos are mirror images of the stored frames; keypoints found in them are mirrored with `mirrored`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from rich.progress import track

from bodies.errors import InputError
from bodies.joints import OPENPOSE25, SMPL24
from bodies.joints import mirrored as counterparts
from datamodules.convert.complete import refuse_detected
from datamodules.convert.detections import (
    MIN_FIT,
    Bodies,
    Candidates,
    DetectionReport,
    Fit,
    assign,
    candidates,
    find_seen_images,
    fit_of,
    true_joints_px,
)
from datamodules.convert.match import Matches
from datamodules.convert.openpose import FoundPeople, read_people
from datamodules.convert.run import in_order
from datamodules.store import FrameStore, amend_frames

SUFFIX: Final = "_keypoints.json"
COLUMN: Final = "detected_keypoints_px"
#: Keypoints of BODY_25 that lie where a joint of SMPL's chain does; nose and head are a hand's breadth apart.
_SAME_JOINTS: Final = {
    **{name: name for name in OPENPOSE25 if name in SMPL24},
    "mid_hip": "pelvis",
    "nose": "head",
}
_OPENPOSE: Final = tuple(OPENPOSE25.index(name) for name in _SAME_JOINTS)
_CHAIN: Final = tuple(SMPL24.index(name) for name in _SAME_JOINTS.values())
_COUNTERPARTS: Final = counterparts(OPENPOSE25)
#: If the keypoints fit this much better the other way round, they were found in mirror images.
_OTHER_WAY: Final = 1.2
#: Beyond this ratio of sizes the image was another one.
_OTHER_SIZE: Final = 1.15
#: Joints that are no farther apart are in one place.
_NO_SPREAD_PX: Final = 1e-6
#: More files than this show a progress bar.
_QUICK_FILES: Final = 500


@dataclass(frozen=True)
class Found:
    """Everybody that was found, in all images."""

    names: tuple[str, ...]
    """Path of each one's file below the folder, without the suffix."""
    keypoints_px: Float32[ndarray, "people 25 3"]
    """BODY_25."""
    skipped: tuple[str, ...]
    """Files and people that cannot be used, with the reason."""


def add_openpose(
    source: Path,
    frames: FrameStore,
    bodies: Bodies,
    *,
    mirrored: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> DetectionReport:
    """Replaces the detected keypoints of a frames file; rows without a detection get zeros.

    Args:
        source: Folder with the JSON files, in it or below.
        frames: The frames, opened without `skip_bad_rows`.
        bodies: Models of the true bodies, see `load_true_bodies`.
        mirrored: The images that were searched are mirror images of the stored ones.
        workers: Threads that read; by default one per core.
        overwrite: Replace detections that are there.
        dry_run: Match, but write nothing.

    Raises:
        InputError: If there are detections already, no file can be used, or nobody is where they were found; names the
            file and the cause. The frames file stays as it was.
    """
    if not overwrite and not dry_run:
        refuse_detected(frames.path, "openpose")
    found = read_folder(source, workers)
    images = find_seen_images(frames, source.resolve().name, found.names)
    pairs = candidates(frames, images)
    if not len(pairs):
        raise InputError(f"{source}: no image of {frames.path} has the name of a file ({found.names[0]} ...)")
    # One row of an image tells the width of all.
    width_px = np.zeros(len(images), np.float32)
    width_px[pairs.detections] = frames.cameras().size_px.numpy()[pairs.rows, 0]
    other_px = turned_over(found.keypoints_px, width_px)
    keypoints_px, other_px = (other_px, found.keypoints_px) if mirrored else (found.keypoints_px, other_px)
    scene = _Scene(true_joints_px(frames, bodies)[:, _CHAIN], frames.column("box_px")[:, 2], pairs)
    fit, other_fit = scene.fit(keypoints_px), scene.fit(other_px)
    matches = assign(frames, found.names, images, pairs, fit)
    if other_fit.mean.max() >= MIN_FIT and other_fit.total.sum() > _OTHER_WAY * fit.total.sum():
        cause = "the images are not mirror images" if mirrored else "the images were mirror images; give --mirrored"
        raise InputError(f"{source}: hardly anybody of {frames.path} is where the keypoints are: {cause}")
    if not len(matches.rows):
        cause = _cause(found.keypoints_px, scene)
        raise InputError(f"{source}: nobody of {frames.path} is where the keypoints are: {cause}")
    if not dry_run:
        values = np.zeros((frames.num_rows, len(OPENPOSE25), 3), np.float32)
        values[matches.rows] = keypoints_px[matches.predictions]
        amend_frames(frames.path, columns={COLUMN: values})
    return scene.report(matches, keypoints_px, found.skipped)


@dataclass(frozen=True)
class _Scene:
    """Where the true bodies are, and who may be whom."""

    joints_px: Float32[ndarray, "rows shared 2"]
    """Joints that OpenPose has too."""
    side_px: Float32[ndarray, " rows"]
    """Sides of the boxes."""
    pairs: Candidates
    """Rows and detections of the same images."""

    def fit(self, keypoints_px: Float32[ndarray, "people 25 3"]) -> Fit:
        """How well each person that was found fits each row of the image."""
        found = keypoints_px[self.pairs.detections][:, _OPENPOSE]
        apart_px = (found[..., :2] - self.joints_px[self.pairs.rows]).astype(np.float64)
        return fit_of(np.linalg.norm(apart_px, axis=-1), found[..., 2], self.side_px[self.pairs.rows])

    def size_ratio(self, keypoints_px: Float32[ndarray, "people 25 3"]) -> float:
        """Median of how much farther apart the keypoints are than the joints; 1 if that cannot be told."""
        found, true = keypoints_px[self.pairs.detections][:, _OPENPOSE], self.joints_px[self.pairs.rows]
        ratios = [
            _spread_px(one[one[:, 2] > 0, :2]) / max(_spread_px(other[one[:, 2] > 0]), _NO_SPREAD_PX)
            for one, other in zip(found, true, strict=True)
            if (one[:, 2] > 0).sum() > 1
        ]
        finite = [ratio for ratio in ratios if np.isfinite(ratio) and ratio > 0]
        return float(np.median(finite)) if finite else 1.0

    def report(
        self, matches: Matches, keypoints_px: Float32[ndarray, "people 25 3"], skipped: tuple[str, ...]
    ) -> DetectionReport:
        """What came of it."""
        rows, chosen = matches.rows, keypoints_px[matches.predictions][:, _OPENPOSE]
        distance_px = np.linalg.norm(chosen[..., :2] - self.joints_px[rows], axis=-1)
        seen = (chosen[..., 2] > 0) & np.isfinite(distance_px)
        relative = distance_px / self.side_px[rows, None]
        medians = float(np.median(distance_px[seen])), float(np.median(relative[seen]))
        return DetectionReport(len(rows), *medians, matches.unmatched_rows, matches.unmatched_predictions, skipped)


def read_folder(source: Path, workers: int | None = None) -> Found:
    """Everybody in the files of a folder and the folders below it.

    Raises:
        InputError: If there is no file, or none can be used.
    """
    files = sorted(source.rglob(f"*{SUFFIX}")) if source.is_dir() else []
    if not files:
        raise InputError(f"{source}: there is no file *{SUFFIX} in it; it has to be the folder of --write_json")
    read = in_order(_read, files, workers)
    names, keypoints_px, skipped = list[str](), [np.zeros((0, len(OPENPOSE25), 3), np.float32)], list[str]()
    progress = track(read, "reading keypoints", len(files), transient=True, disable=len(files) < _QUICK_FILES)
    for file, people in zip(files, progress, strict=True):
        name = file.relative_to(source).as_posix().removesuffix(SUFFIX)
        if isinstance(people, str):
            skipped.append(people)
            continue
        skipped += [f"{file}: {reason}" for reason in people.skipped]
        names += [name] * len(people.keypoints_px)
        keypoints_px.append(people.keypoints_px)
    if not names:
        reason = skipped[0] if skipped else "nobody was detected"
        raise InputError(f"{source}: none of {len(files)} files holds usable keypoints ({reason})")
    return Found(tuple(names), np.concatenate(keypoints_px), tuple(skipped))


def _read(file: Path) -> FoundPeople | str:
    try:
        return read_people(file)
    except InputError as error:
        return str(error)


def turned_over(
    keypoints_px: Float32[ndarray, "people 25 3"], width_px: Float32[ndarray, " people"]
) -> Float32[ndarray, "people 25 3"]:
    """Keypoints found in a mirror image: left is right, and x runs the other way."""
    swapped = keypoints_px[:, _COUNTERPARTS].copy()
    swapped[..., 0] = np.where(swapped[..., 2] > 0, width_px[:, None] - swapped[..., 0], 0)
    return swapped


def _cause(keypoints_px: Float32[ndarray, "people 25 3"], scene: _Scene) -> str:
    """What is most likely wrong with keypoints of which none is where a body is."""
    if np.abs(keypoints_px[..., :2]).max() <= 1:
        return "they are fractions of the image (--keypoint_scale 3 or 4); OpenPose's --keypoint_scale has to be 0"
    ratio = scene.size_ratio(keypoints_px)
    resized = keypoints_px * np.array([1 / ratio, 1 / ratio, 1], np.float32)
    if not 1 / _OTHER_SIZE < ratio < _OTHER_SIZE and (scene.fit(resized).mean >= MIN_FIT).any():
        return (
            f"they would fit images of {ratio:.2f} times the size (resized before, or --keypoint_scale 1 or 2); run "
            "OpenPose on the images as they are stored, with --keypoint_scale 0"
        )
    return "they belong to other images"


def _spread_px(points_px: Float32[ndarray, "points 2"]) -> float:
    return float(np.linalg.norm(np.std(points_px, axis=0)))
