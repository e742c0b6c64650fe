"""Human3.6M as SPIN's scripts write it: `h36m_train.npz`, `h36m_valid_protocol2.npz` and images beside it.

    imgname (N) 'images/S9_Directions_1.60457274_000001.jpg'       subject, trial, camera, frame + 1
    center (N, 2), scale (N)                                       box; its side is 200 scale
    S (N, 24, 4)                                                   joints in m, camera frame, pelvis at 0; confidence
    part (N, 24, 3)                                                train: the same joints in pixels
    pose (N, 72), shape (N, 10), has_smpl (N)                      optional: neutral SMPL, root in the camera frame

Where the person is, the file does not say. It is found from `part` (the place whose joints the camera sees there), or
read from the joints of the data set (`S9/MyPoseFeatures/D3_Positions_mono`) if they are beside the file.

The script for the test set drops one frame of each video before it begins: its image of frame i is that of frame i + 1,
20 ms later. Images are taken as they are; convert from the videos to be exact.

Source: nkolot/SPIN `datasets/preprocess/h36m.py`, `h36m_train.py`, `datasets/base_dataset.py`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from numpy import ndarray

from bodies.errors import InputError
from datamodules.convert.archives import read_npz
from datamodules.convert.fields import Fields, box_of
from datamodules.convert.h36m_cameras import CAMERA_IDS, Camera, Cameras
from datamodules.convert.h36m_rows import Bodies, View, edge_boxes_px
from datamodules.convert.h36m_tree import MAX_MOSH_ERROR_M, Recording, read_joints_m

#: Where SPIN's 24 joints hold those of h36m17.
H36M17_SLOTS: Final = (14, 3, 4, 5, 2, 1, 0, 16, 12, 17, 18, 9, 10, 11, 8, 7, 6)
#: How far the joints of the file may lie from those of the data set.
MAX_JOINT_DIFFERENCE_M: Final = 0.002
_KEYS: Final = ("imgname", "center", "scale", "S", "part", "pose", "shape", "has_smpl")
_NAME: Final = re.compile(r"(?:.*/)?S(\d+)_([^/]+)\.(\d{8})_(\d{6})\.(?:jpg|jpeg|png)")


class _Row(NamedTuple):
    recording: Recording
    frame: int
    place: int


def read_views(
    path: Path, subjects: tuple[int, ...], cameras: Cameras, names: tuple[str, ...], every: int
) -> Iterator[tuple[View, Camera]]:
    """The frames of these subjects, recording by recording, each with its camera with distortion.

    Args:
        path: The .npz.
        subjects: Whose are wanted.
        cameras: All cameras of these subjects.
        names: Names of those that are wanted.
        every: Take the frames whose number it divides.

    Raises:
        InputError: If the file is damaged, lacks an array, or where the people are cannot be found.
    """
    fields = Fields(str(path), read_npz(path, _KEYS))
    images = fields.texts(fields.need("imgname"))
    fields.need("center")
    fields.need("scale")
    joints = fields.numbers("S", (len(images), 24, 4)).astype(np.float64)[:, list(H36M17_SLOTS)]
    boxes = box_of(fields, len(images))
    assert boxes is not None
    bodies = _bodies(fields, len(images))
    groups = _recordings(images, path, subjects, names, every)
    for recording, rows in sorted(groups.items()):
        index = np.array([row.place for row in rows])
        frames = np.array([row.frame for row in rows])
        camera = cameras[recording.subject, recording.camera]
        relative_m = np.where(joints[index, :, 3:] > 0, joints[index, :, :3], np.nan)
        box = boxes[index].astype(np.float64)
        half = box[:, 2:] / 2
        view = View(
            sequence=recording.name,
            subject=f"S{recording.subject}",
            camera=camera.without_distortion(),
            frames=frames,
            image_names=tuple(images[number] for number in index),
            joints_m=_absolute_m(fields, path, recording, camera, (index, frames), relative_m),
            box_px=edge_boxes_px(camera, np.stack([box[:, :2] - half, box[:, :2] + half], axis=1), 1.0),
            bodies=_of_rows(bodies, index),
        )
        yield view, camera


def _recordings(
    images: tuple[str, ...], path: Path, subjects: tuple[int, ...], names: tuple[str, ...], every: int
) -> Mapping[Recording, list[_Row]]:
    groups: defaultdict[Recording, list[_Row]] = defaultdict(list)
    for index, image in enumerate(images):
        parts = _NAME.fullmatch(image)
        if not parts or parts[3] not in CAMERA_IDS:
            raise InputError(f"{path}: {image!r} is not how SPIN calls an image of this data set")
        frame = int(parts[4]) - 1
        recording = Recording(int(parts[1]), parts[2].replace("_", " "), parts[3])
        if recording.subject in subjects and recording.camera in names and frame >= 0 and frame % every == 0:
            groups[recording].append(_Row(recording, frame, index))
    return groups


def _bodies(fields: Fields, rows: int) -> Bodies:
    lacking: Shaped[ndarray, " frames"] = np.full(rows, "", object)
    if not fields.name("pose"):
        lacking[:] = "the file has no SMPL parameters"
        return Bodies(np.zeros((rows, 72)), np.zeros((rows, 10)), None, False, lacking, MAX_MOSH_ERROR_M)
    pose, betas = fields.numbers("pose", (rows, 72)), fields.numbers("shape", (rows, 10))
    if fields.name("has_smpl"):
        lacking[fields.numbers("has_smpl", (rows,), (rows, 1)).reshape(rows) == 0] = "it has no SMPL parameters"
    return Bodies(pose.astype(np.float64), betas.astype(np.float64), None, False, lacking, MAX_MOSH_ERROR_M)


def _of_rows(bodies: Bodies, rows: Int64[ndarray, " frames"]) -> Bodies:
    return Bodies(bodies.pose[rows], bodies.betas[rows], None, False, bodies.lacking[rows], bodies.max_error_m)


def _absolute_m(
    fields: Fields,
    path: Path,
    recording: Recording,
    camera: Camera,
    rows: tuple[Int64[ndarray, " frames"], Int64[ndarray, " frames"]],
    relative_m: Float64[ndarray, "frames 17 3"],
) -> Float64[ndarray, "frames 17 3"]:
    """The joints where the person is.

    Raises:
        InputError: If that cannot be known, or the data set's joints are others.
    """
    index, frames = rows
    features = path.parent / f"S{recording.subject}" / "MyPoseFeatures"
    if features.is_dir():
        measured_m = read_joints_m(path.parent, recording, camera)
        known = frames < len(measured_m)
        result = np.where(known[:, None, None], measured_m[np.where(known, frames, 0)], np.nan)
        difference = np.abs(result - result[:, :1] - relative_m)
        if (difference > MAX_JOINT_DIFFERENCE_M).any():
            worst_mm = 1e3 * np.nanmax(difference)
            raise InputError(f"{path}: joints of {recording.name} differ from those in {features} by {worst_mm:.0f} mm")
        return result
    if not fields.name("part"):
        raise InputError(
            f"{path}: where people are cannot be known, for it has no 'part' and {features} is not there; put the file "
            "into the folder with S1, S5, ..."
        )
    part = fields.numbers("part", (len(fields.arrays["S"]), 24, 3))[index][:, list(H36M17_SLOTS)].astype(np.float64)
    seen_px = camera.undistort_px(part[..., :2].reshape(-1, 2)).reshape(-1, 17, 2)
    return relative_m + place_joints_m(relative_m, seen_px, part[..., 2] > 0, camera)[:, None]


def place_joints_m(
    relative_m: Float64[ndarray, "frames 17 3"],
    seen_px: Float64[ndarray, "frames 17 2"],
    valid: Any,
    camera: Camera,
) -> Float64[ndarray, "frames 3"]:
    """The shift after which the camera sees joints where they are in the image, in the least squares of the rays.

    With rays (u, v, 1): x + t_x - u (z + t_z) = 0 and y + t_y - v (z + t_z) = 0, which is linear in t. NaN where fewer
    than two joints are known.
    """
    ray = (seen_px - camera.center_px) / camera.focal_px
    valid = valid & np.isfinite(relative_m).all(axis=2) & np.isfinite(ray).all(axis=2)
    enough = valid.sum(axis=1) >= 2
    ray = np.where(valid[..., None], ray, 0)
    weight = valid[..., None].astype(np.float64)
    rows = np.zeros((*ray.shape, 3))
    rows[..., 0, 0] = rows[..., 1, 1] = valid
    rows[..., 2] = -ray
    points = np.where(valid[..., None], relative_m, 0)
    target = (ray * points[..., 2:] - points[..., :2]) * weight
    normal = np.einsum("njai,njak->nik", rows, rows)
    normal[~enough] = np.eye(3)
    shift = np.linalg.solve(normal, np.einsum("njai,nja->ni", rows, target)[..., None])[..., 0]
    return np.where(enough[:, None], shift, np.nan)
