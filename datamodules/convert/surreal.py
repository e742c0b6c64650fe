"""SURREAL as downloaded: `cmu/{train,val,test}/run{0,1,2}/<sequence>/<clip>.mp4` with `<clip>_info.mat`.

What is easy to get wrong, and how it is read here:

* The stored video is a mirror image of its world: with camLoc = (cx, cy, cz), X_cam = (cz - z, y - cy, cx - x), whose
  determinant is -1. So every frame is mirrored left to right, and the camera with it; then the camera is a proper one,
  the body's left stays its left, and neither poses nor keypoints are swapped.
* Blender's view is symmetric, so the principal point is the middle of the image, (160, 120) where pixel c covers
  [c, c + 1), and mirroring leaves it there. The focal length is 600 px (60 mm lens, 32 mm sensor, 320 px).
* `pose` is that of the MoCap, before the clip's turn `zrot` about the vertical and before the world's axes: the root in
  the world is Rx(90 deg) Rz(zrot) R(pose[:3]). The translation is not stored: the pelvis is joint 0 of `joints3D`.
* `gender` is 0 for female, 1 for male. `joints2D` are rounded and may lie outside of the image. Clips of one frame have
  arrays without the last axis. In a few frames the joints are zero; they are skipped.
* Each clip is checked: its joints in 3D against the gendered body, those in 2D against the camera. A clip that fails is
  skipped by name, as is one whose video is damaged or has another number of frames.

Videos are decoded by OpenCV; frames are stored as JPEGs of quality 95.

Sources: gulvarol/surreal `datageneration/main_part1.py`, `main_part2.py`, `README.md`; isarandi/posepile `ds/surreal`
for mirroring the image. The formulas were measured on real info files.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float64, Shaped
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.errors import InputError
from bodies.model_files import Gender
from bodies.rest_joints import RestJoints
from datamodules.convert.complete import finished
from datamodules.convert.gendered import load_gendered
from datamodules.convert.run import Conversion, Job, JobPlan, PlannedFrame, every_nth, run_conversion
from datamodules.convert.summary import RunOptions, Skipped, Split, Summary
from datamodules.convert.surreal_files import INFO_SUFFIX, VIDEO_SUFFIX, Clip, find_clips, read_clip
from datamodules.store import FrameRow, StoredImage

DATASET: Final = "surreal"
WIDTH, HEIGHT = 320, 240
FOCAL_PX: Final = 600.0
#: Side of the square box over the larger extent of the joints, as far as they are in the image. The joints of the
#: chain end at the ankles' feet, the hands and the head's base, so this is more than for detected keypoints.
BOX_MARGIN: Final = 1.3
JPEG_QUALITY: Final = 95
#: Mean error of a clip's joints beyond which it does not fit the body model, or the camera; rounding is 0.4 px.
MAX_JOINT_ERROR_M: Final = 0.05
MAX_JOINT_ERROR_PX: Final = 2.0
#: Frames of a clip, evenly spaced, whose joints are held against the body.
CHECKED_FRAMES: Final = 8

#: World to the camera of the mirrored image, without the shift.
_WORLD_TO_CAMERA: Final = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
_TURN_TO_CAMERA: Final = Rotation.from_matrix(_WORLD_TO_CAMERA)
#: From the world of the MoCap, z up, to that of the clips.
_UPRIGHT: Final = Rotation.from_euler("x", 90, degrees=True)


def convert_surreal(
    source: Path, out: Path, split: Split, body: Path, every: int = 1, options: RunOptions | None = None
) -> Summary:
    """Writes a split of SURREAL as a frames file.

    Args:
        source: The folder with `train`, `val` and `test`, or one above it (`cmu`, `data/cmu`, `SURREAL/data/cmu`).
        out: The frames file.
        split: Which part.
        body: Folder with SMPL_MALE and SMPL_FEMALE, of which the rest pelvis is needed.
        every: Take every n-th frame of each clip, from the first.
        options: How to do it.

    Raises:
        InputError: If there are no clips, the body models are missing, or nothing is left of the clips.
    """
    options = options or RunOptions()
    if complete := finished(out, DATASET, split, options):
        return complete
    every_nth(every)
    root, clips = find_clips(source, split)
    bodies = load_gendered(body, ("male", "female"))
    jobs = tuple(_ClipJob(clip, clip.relative_to(root).as_posix(), bodies, every) for clip in clips)
    settings: dict[str, str | int] = {"source": str(source.resolve()), "every": every}
    return run_conversion(Conversion(DATASET, split, str(body), jobs, settings), out, options)


class _ClipJob(Job):
    """Reads one clip."""

    def __init__(self, path: Path, name: str, bodies: Mapping[Gender, RestJoints], every: int) -> None:
        self._video = path.with_name(f"{path.name}{VIDEO_SUFFIX}")
        self._info = path.with_name(f"{path.name}{INFO_SUFFIX}")
        self._name, self._bodies, self._every = name, bodies, every
        self._frames = 0

    def plan(self) -> JobPlan:
        """Rows from the info file; a clip that is damaged is left out by name."""
        for kind, path in (("video", self._video), ("info file", self._info)):
            if not path.is_file():
                return self._left_out(f"the clip has no {kind}")
        try:
            clip = read_clip(self._info)
            plan = plan_clip(clip, self._name, self._bodies[clip.gender], self._every)
        except InputError as error:
            # One of tens of thousands of clips must not end the conversion. The path is in the clip's name.
            return self._left_out(str(error).removeprefix(f"{self._info}: "))
        self._frames = len(clip.pose)
        return plan

    def images(self, frames: Sequence[PlannedFrame]) -> Iterator[StoredImage | str]:
        """The wanted frames of the video, mirrored."""
        found, count = mirrored_jpegs(self._video, {frame.frame for frame in frames})
        for frame in frames:
            if count != self._frames:
                yield "the video has another number of frames than the info file"
            elif frame.frame not in found:
                yield f"the video is damaged or not {WIDTH} x {HEIGHT}"
            else:
                yield StoredImage(frame.name, found[frame.frame], (WIDTH, HEIGHT))

    def _left_out(self, reason: str) -> JobPlan:
        return JobPlan((), (Skipped(f"{DATASET}/{self._name}", reason, 0),))


def mirrored_jpegs(video: Path, wanted: set[int]) -> tuple[dict[int, bytes], int]:
    """The wanted frames, mirrored and encoded, and how many frames there are."""
    capture = cv2.VideoCapture(str(video), cv2.CAP_FFMPEG)
    found: dict[int, bytes] = {}
    count = 0
    try:
        while capture.grab():
            if count in wanted:
                whole, pixels = capture.retrieve()
                if whole and pixels.shape == (HEIGHT, WIDTH, 3):
                    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                    found[count] = cv2.imencode(".jpg", cv2.flip(pixels, 1), quality)[1].tobytes()
            count += 1
    finally:
        capture.release()
    return found, count


def plan_clip(clip: Clip, name: str, body: RestJoints, every: int) -> JobPlan:
    """The rows of a clip.

    Args:
        clip: The info file.
        name: Path of the clip below `cmu`, without suffix.
        body: Joints of the body model of its gender.
        every: Take every n-th frame.

    Raises:
        InputError: If the joints of the file do not fit the body or the camera.
    """
    problem = _problems(clip)
    good = problem == ""
    pose, transl, joints_cam = _in_camera(clip, good, body)
    depth = np.where(good[:, None], joints_cam[..., 2], 1)[..., None]
    joints_px = joints_cam[..., :2] / depth * FOCAL_PX + (WIDTH / 2, HEIGHT / 2)
    _check_joints(clip, good, joints_px)
    boxes, inside = _boxes(joints_px)
    problem[good & ~inside] = "no joint is in the image"
    focal_px, center_px = np.full(2, FOCAL_PX), np.array([WIDTH / 2, HEIGHT / 2])
    planned, skipped = [], []
    problems = problem.tolist()
    for frame in range(0, len(pose), every):
        row_id = f"{DATASET}/{name}/{frame:03d}/0"
        if problems[frame]:
            skipped.append(Skipped(row_id, problems[frame]))
            continue
        row = FrameRow(
            row_id=row_id,
            image=-1,
            # Each clip has a texture and a shape of its own.
            subject=name,
            sequence=name,
            frame=frame,
            gender=clip.gender,
            focal_px=focal_px,
            center_px=center_px,
            box_px=boxes[frame],
            pose=pose[frame],
            betas=clip.betas[frame],
            transl=transl[frame],
        )
        planned.append(PlannedFrame(f"{name}{VIDEO_SUFFIX}/{frame:03d}", frame, (row,)))
    return JobPlan(tuple(planned), tuple(skipped))


def _problems(clip: Clip) -> Shaped[ndarray, " frames"]:
    """Why each frame cannot be used, empty if it can."""
    numbers = (clip.pose, clip.betas, clip.turn_rad[:, None], clip.joints_m.reshape(-1, 72))
    finite = np.isfinite(np.concatenate(numbers, axis=1)).all(axis=1) & np.isfinite(clip.joints_px).all(axis=(1, 2))
    # An honest joint is at the origin of the world by chance alone; in the image one may be at (0, 0), but not all.
    zero = (clip.joints_m == 0).all(axis=2).any(axis=1) | (clip.joints_px == 0).all(axis=(1, 2))
    problem = np.full(len(clip.pose), "", object)
    problem[zero] = "its joints are zero"
    problem[~finite | ~np.isfinite(clip.camera_m).all()] = "a number is not finite"
    return problem


def _in_camera(
    clip: Clip, good: Bool[ndarray, " frames"], body: RestJoints
) -> tuple[Float64[ndarray, "frames 72"], Float64[ndarray, "frames 3"], Float64[ndarray, "frames 24 3"]]:
    """Pose, translation, and the joints of the file, as the camera of the mirrored image sees them.

    Raises:
        InputError: If the joints of the file are not those of the body.
    """
    # Frames that cannot be used get numbers that do no harm.
    pose = np.where(good[:, None], clip.pose, 0)
    camera_m = np.nan_to_num(clip.camera_m)
    root_world = _UPRIGHT * Rotation.from_rotvec(np.outer(np.where(good, clip.turn_rad, 0), (0, 0, 1)))
    root = _TURN_TO_CAMERA * root_world * Rotation.from_rotvec(pose[:, :3])
    pose = np.concatenate([root.as_rotvec(), pose[:, 3:]], axis=1)
    joints_cam = (np.where(good[:, None, None], clip.joints_m, camera_m) - camera_m) @ _WORLD_TO_CAMERA.T
    rest = body.at_rest(np.where(good[:, None], clip.betas, 0))
    # The root turns about the rest pelvis, so this brings the pelvis to where the file has it.
    transl = joints_cam[:, 0] - rest[:, 0]
    chosen = np.flatnonzero(good)
    chosen = chosen[:: 1 + len(chosen) // CHECKED_FRAMES]
    if len(chosen):
        rotations = Rotation.from_rotvec(pose[chosen].reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
        posed = body.posed(rest[chosen], rotations)
        error_m = np.linalg.norm(posed + transl[chosen, None] - joints_cam[chosen], axis=-1)
        if error_m.mean() > MAX_JOINT_ERROR_M:
            raise InputError("joints3D do not fit the pose of the gendered body")
    return pose, transl, joints_cam


def _check_joints(clip: Clip, good: Bool[ndarray, " frames"], joints_px: Float64[ndarray, "frames 24 2"]) -> None:
    """The file's joints in the image are where the camera sees those in 3D.

    Raises:
        InputError: Otherwise.
    """
    stored_px = np.stack([WIDTH - clip.joints_px[..., 0], clip.joints_px[..., 1]], axis=-1)
    error_px = np.linalg.norm(stored_px - joints_px, axis=-1)[good]
    if error_px.size and not np.median(error_px) <= MAX_JOINT_ERROR_PX:
        raise InputError("joints2D do not fit joints3D and the camera")


def _boxes(
    joints_px: Float64[ndarray, "frames 24 2"],
) -> tuple[Float64[ndarray, "frames 3"], Bool[ndarray, " frames"]]:
    """Square boxes about what the image shows of the joints, and whether it shows any."""
    # Joints last: numpy goes over a long last axis many times faster than over one of two.
    joints_px = np.ascontiguousarray(joints_px.transpose(0, 2, 1))
    shown = np.minimum(np.maximum(joints_px, 0), np.array([[WIDTH], [HEIGHT]]))
    unmoved = shown == joints_px
    low, high = shown.min(axis=2), shown.max(axis=2)
    boxes = np.column_stack([(low + high) / 2, (high - low).max(axis=1) * BOX_MARGIN])
    return boxes, (unmoved[:, 0] & unmoved[:, 1]).any(axis=1)
