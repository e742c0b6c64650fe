"""3DPW as downloaded: `imageFiles/<sequence>/image_00000.jpg` and `sequenceFiles/<split>/<sequence>.pkl`.

What is easy to get wrong, and how it is read here:

* Poses are in the world and the camera moves: row i is seen by `cam_poses[i]`, world to camera. SMPL's root turns
  about the rest pelvis of the person's own gender and shape, so the translation needs the gendered body model.
* Image of row i is number i. `img_frame_ids` counts frames of the 60 Hz arrays, which are not used.
* `campose_valid` is per person and frame. `betas` may have 300 entries, of which the first 10 are used.
* `poses2d` is (N, 3, 18): rows x, y, confidence; columns in the order of OpenPose's COCO-18, which has no mid hip and
  no feet. Rows in which it is all zero have no box and are skipped, as published evaluations leave them out.
* The boxes are SPIN's: 1.2 times the larger extent of the keypoints with a confidence above zero.
* Image sizes are those of the JPEG headers (portrait and landscape); the JPEGs are stored as they are.

Sources: nkolot/SPIN `datasets/preprocess/pw3d.py`, open-mmlab/mmhuman3d `data_converters/pw3d.py`, mkocabas/VIBE
`lib/data_utils/threedpw_utils.py`. That `jointPositions` are the posed joints of the gendered SMPL is what the data
set's description says; here it is checked, loosely, against the body model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.camera import transform_to_camera
from bodies.errors import InputError
from bodies.model_files import Gender
from bodies.rest_joints import RestJoints
from datamodules.convert.complete import finished
from datamodules.convert.gendered import load_gendered
from datamodules.convert.openpose import BODY25_FROM_COCO18
from datamodules.convert.run import Conversion, Job, JobPlan, PlannedFrame, every_nth, in_order, run_conversion
from datamodules.convert.summary import RunOptions, Skipped, Split, Summary
from datamodules.convert.threedpw_files import Person, Recording, read_recording, sequence_files
from datamodules.crops import jpeg_size_px
from datamodules.store import FrameRow, StoredImage

DATASET: Final = "3dpw"
#: Number of person-samples that evaluations on the test split commonly state, and its number of sequences.
TEST_ROWS: Final = 35515
TEST_SEQUENCES: Final = 24
#: Side of the square box over the larger extent of the keypoints (SPIN).
BOX_MARGIN: Final = 1.2
#: How far joints of the file may lie from those of the body model before the two are held not to belong together.
#: Another gender's model is off by centimetres, wrong axes or units by far more.
MAX_JOINT_ERROR_M: Final = 0.1
#: How far the principal point may lie from the middle of the image, over its size: a turned image is off by 0.39.
MAX_OFF_CENTER: Final = 0.2
#: Images per job: about 30 MB.
_JOB_IMAGES: Final = 32
#: How far R'R may be from the identity.
_ORTHONORMAL: Final = 1e-3


@dataclass(frozen=True)
class SeenPerson:
    """What the camera sees of one person, over all frames of a sequence."""

    pose: Float64[ndarray, "frames 72"]
    """Axis-angle in radians, root in the camera frame."""
    transl: Float64[ndarray, "frames 3"]
    """Metres in the camera frame."""
    keypoints_px: Float32[ndarray, "frames 25 3"]
    """openpose25 as detected."""
    box_px: Float64[ndarray, "frames 3"]
    """Centre x, centre y and side."""
    problem: Shaped[ndarray, " frames"]
    """Why a frame cannot be used; empty if it can."""


def convert_threedpw(
    source: Path, out: Path, split: Split, body: Path, every: int = 1, options: RunOptions | None = None
) -> Summary:
    """Writes a split of 3DPW as a frames file.

    Args:
        source: The folder with `imageFiles` and `sequenceFiles`, or the one above it.
        out: The frames file.
        split: Which part.
        body: Folder with SMPL_MALE and SMPL_FEMALE, of which the rest pelvis is needed.
        every: Take every n-th frame of each sequence.
        options: How to do it.

    Raises:
        InputError: If a sequence file is damaged or not of this format, images or body models are missing, or the
            parameters do not fit the body models.
    """
    options = options or RunOptions()
    if complete := finished(out, DATASET, split, options):
        return complete
    every_nth(every)
    files = sequence_files(source, split)
    bodies = load_gendered(body, ("male", "female"))
    jobs: list[Job] = []
    skipped: list[Skipped] = []
    errors_m: list[float] = []
    root = files[0].parents[2]
    for recording in in_order(read_recording, files, options.workers):
        plan, more_errors_m = plan_recording(recording, bodies, _image_files(root, recording), every)
        skipped += plan.skipped
        errors_m += more_errors_m
        starts = range(0, len(plan.frames), _JOB_IMAGES)
        jobs += [_Images(root, recording, plan.frames[first : first + _JOB_IMAGES]) for first in starts]
    settings: dict[str, str | int] = {"source": str(source.resolve()), "every": every}
    summary = run_conversion(Conversion(DATASET, split, str(body), tuple(jobs), settings, tuple(skipped)), out, options)
    if errors_m:
        mean, worst = 1e3 * np.mean(errors_m), 1e3 * np.max(errors_m)
        summary = summary.with_note(f"joints of the files against {body}: {mean:.1f} mm, worst person {worst:.1f} mm")
    if split == "test" and every == 1 and len(files) == TEST_SEQUENCES:
        verdict = "as many as" if summary.rows == TEST_ROWS else f"{summary.rows - TEST_ROWS:+d} against"
        summary = summary.with_note(f"{summary.rows} rows, {verdict} the {TEST_ROWS} of published evaluations")
    return summary


def _image_files(root: Path, recording: Recording) -> set[str]:
    folder = root / "imageFiles" / recording.name
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of images, which {recording.path} is about")
    return {file.name for file in folder.iterdir()}


def plan_recording(
    recording: Recording, bodies: Mapping[Gender, RestJoints], images: set[str], every: int
) -> tuple[JobPlan, list[float]]:
    """The rows of a sequence, and each person's mean distance of the file's joints to the body model's, in metres.

    Args:
        recording: The sequence.
        bodies: Joints of the body models of the genders in it.
        images: Names of the files in its folder of images.
        every: Take every n-th frame.

    Raises:
        InputError: If the joints of a person lie more than `MAX_JOINT_ERROR_M` from those of the body model.
    """
    if not len(recording.world_to_camera) or not recording.people:
        return JobPlan((), (Skipped(f"{DATASET}/{recording.name}", "the sequence has no frames or people", 0),)), []
    errors_m = [_checked_joint_error_m(recording, number, bodies) for number in range(len(recording.people))]
    seen = [see_person(person, recording.world_to_camera, bodies[person.gender]) for person in recording.people]
    planned, skipped = [], []
    for frame in range(0, len(recording.world_to_camera), every):
        file, rows = f"image_{frame:05d}.jpg", []
        absent = "" if file in images else "there is no image file"
        for number, person in enumerate(seen):
            row = _row(recording, number, frame, person)
            if problem := person.problem[frame] or absent:
                skipped.append(Skipped(row.row_id, problem))
            else:
                rows.append(row)
        if rows:
            planned.append(PlannedFrame(f"imageFiles/{recording.name}/{file}", frame, tuple(rows)))
    return JobPlan(tuple(planned), tuple(skipped)), [error_m for error_m in errors_m if np.isfinite(error_m)]


def _checked_joint_error_m(recording: Recording, number: int, bodies: Mapping[Gender, RestJoints]) -> float:
    person = recording.people[number]
    error_m = joint_error_m(person, bodies[person.gender])
    if error_m > MAX_JOINT_ERROR_M:
        raise InputError(
            f"{recording.path}: jointPositions[{number}] lie {1e3 * error_m:.0f} mm from those of the {person.gender} "
            f"body {bodies[person.gender].name}, so it is not the SMPL of this data set"
        )
    return error_m


def joint_error_m(person: Person, body: RestJoints) -> float:
    """Mean distance of the file's joints to those of the body model, over at most 64 frames; NaN if none is usable."""
    numbers = np.concatenate([person.pose, person.transl, person.joints.reshape(-1, 72)], axis=1)
    finite = np.flatnonzero(np.isfinite(numbers).all(axis=1))
    if not len(finite):
        return float("nan")
    chosen = finite[:: -(-len(finite) // 64)]
    rotations = Rotation.from_rotvec(person.pose[chosen].reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
    rest = body.at_rest(person.betas[None])
    posed = body.posed(np.broadcast_to(rest, (len(chosen), 24, 3)), rotations)
    return float(np.linalg.norm(posed + person.transl[chosen, None] - person.joints[chosen], axis=-1).mean())


def see_person(person: Person, world_to_camera: Float64[ndarray, "frames 4 4"], body: RestJoints) -> SeenPerson:
    """Brings a person from the world into the frame of the moving camera."""
    problem = _problems(person, world_to_camera)
    # Frames that cannot be used get numbers that do no harm.
    good = problem == ""
    cameras = np.where(good[:, None, None], world_to_camera, np.eye(4))
    root = Rotation.from_rotvec(np.where(good[:, None], person.pose[:, :3], 0)).as_matrix()
    transl = np.where(good[:, None], person.transl, 0)
    pelvis = torch.tensor(body.pelvis(person.betas[None])).double()
    root_cam, transl_cam = transform_to_camera(
        torch.tensor(cameras), torch.tensor(root), pelvis.expand(len(cameras), 3), torch.tensor(transl)
    )
    root_rotvec = Rotation.from_matrix(root_cam.numpy()).as_rotvec()
    return SeenPerson(
        np.concatenate([root_rotvec, person.pose[:, 3:]], axis=1),
        transl_cam.numpy(),
        openpose25_from_coco18(person.detected),
        detection_boxes(person.detected),
        problem,
    )


def _problems(person: Person, world_to_camera: Float64[ndarray, "frames 4 4"]) -> Shaped[ndarray, " frames"]:
    """Why each frame cannot be used, empty if it can; the first cause of several."""
    rotation = world_to_camera[:, :3, :3]
    numbers = (person.pose, person.transl, person.detected.reshape(-1, 54), world_to_camera.reshape(-1, 16))
    with np.errstate(invalid="ignore"):
        proper = (np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)) < _ORTHONORMAL).all(axis=(1, 2))
        proper &= (np.linalg.det(rotation) > 0) & (world_to_camera[:, 3] == (0, 0, 0, 1)).all(axis=1)
    reasons = (
        ("its camera pose is marked as not valid", ~person.camera_valid),
        ("a number is not finite", ~np.isfinite(np.concatenate(numbers, axis=1)).all(axis=1)),
        ("its camera pose is not a rotation and a shift", ~proper),
        ("no keypoint was detected", ~(person.detected[:, 2] > 0).any(axis=1)),
    )
    problem = np.full(len(world_to_camera), "", object)
    for text, bad in reversed(reasons):
        problem[bad] = text
    return problem


def openpose25_from_coco18(detected: Float64[ndarray, "frames 3 18"]) -> Float32[ndarray, "frames 25 3"]:
    """Detections as BODY_25; those without confidence are zero, as are the mid hip and the feet."""
    keypoints = np.zeros((len(detected), 25, 3), np.float32)
    found = (detected[:, 2] > 0)[..., None]
    keypoints[:, BODY25_FROM_COCO18] = np.where(found, detected.transpose(0, 2, 1), 0)
    return keypoints


def detection_boxes(detected: Float64[ndarray, "frames 3 18"]) -> Float64[ndarray, "frames 3"]:
    """Square boxes (centre x, centre y, side) about the keypoints with a confidence above zero; zero without any."""
    found = (detected[:, 2] > 0)[:, None]
    low = np.where(found, detected[:, :2], np.inf).min(axis=2)
    high = np.where(found, detected[:, :2], -np.inf).max(axis=2)
    low, high = (np.where(found.any(axis=2), edge, 0) for edge in (low, high))
    return np.column_stack([(low + high) / 2, (high - low).max(axis=1) * BOX_MARGIN])


def _row(recording: Recording, number: int, frame: int, seen: SeenPerson) -> FrameRow:
    return FrameRow(
        row_id=f"{DATASET}/{recording.name}/{frame:05d}/{number}",
        image=-1,
        # Who it is is not told, and people change clothes between sequences.
        subject=f"{recording.name}/{number}",
        sequence=recording.name,
        frame=frame,
        gender=recording.people[number].gender,
        focal_px=recording.focal_px,
        center_px=recording.center_px,
        box_px=seen.box_px[frame],
        pose=seen.pose[frame],
        betas=recording.people[number].betas,
        transl=seen.transl[frame],
        detected_keypoints_px=seen.keypoints_px[frame],
    )


class _Images(Job):
    """Reads the JPEGs of some frames of a sequence."""

    def __init__(self, root: Path, recording: Recording, frames: tuple[PlannedFrame, ...]) -> None:
        self._root, self._file, self._center_px, self._frames = root, recording.path, recording.center_px, frames

    def plan(self) -> JobPlan:
        """The frames, which were planned before."""
        return JobPlan(self._frames)

    def images(self, frames: Sequence[PlannedFrame]) -> Iterator[StoredImage | str]:
        """The files as they are."""
        for frame in frames:
            path = self._root / frame.name
            try:
                jpeg = path.read_bytes()
                size_px = jpeg_size_px(jpeg)
            except OSError as error:
                raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
            except ValueError as error:
                yield f"its image is damaged: {error}"
                continue
            off = np.abs(self._center_px / size_px - 0.5).max()
            if not off <= MAX_OFF_CENTER:
                center = ", ".join(f"{number:.0f}" for number in self._center_px)
                raise InputError(
                    f"{path}: an image of {size_px[0]} x {size_px[1]} does not fit the principal point ({center}) in "
                    f"{self._file}; were the images turned or resized?"
                )
            yield StoredImage(frame.name, jpeg, size_px)
