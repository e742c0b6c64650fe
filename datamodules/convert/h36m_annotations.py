"""Human3.6M as I2L-MeshNet and Pose2Mesh publish it: annotations in JSON, images as files.

    annotations/Human36M_subject1_data.json                     COCO: images[] and annotations[] with a box
    annotations/Human36M_subject1_camera.json                   see `h36m_cameras`
    annotations/Human36M_subject1_joint_3d.json                 [action][subaction][frame]: 17 joints in mm, world
    annotations/Human36M_subject1_SMPL_NeuralAnnot.json         [action][subaction][frame]: pose, shape, trans in m
    annotations/Human36M_subject1_smpl_param.json               the same by SMPLify-X, read if the former is not there
    images/<file_name>

The keys of actions, subactions and frames are text. The right leg comes first among the joints. Fits further than
25 mm from the joints are left out, as I2L-MeshNet's reader does; where |beta| > 3 that reader replaces the shape as a
target of its network, but not in the mesh that it compares with, so here such a shape stays as it was fitted.

Sources: mks0601/I2L-MeshNet_RELEASE `data/Human36M/Human36M.py`, hongsukchoi/Pose2Mesh_RELEASE
`data/Human36M/dataset.py`, mks0601/NeuralAnnot_RELEASE README.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from bodies.errors import InputError
from bodies.joints import H36M17_FROM_RIGHT_LEG_FIRST
from datamodules.convert.h36m_cameras import CAMERA_IDS, Camera, Cameras, read_json
from datamodules.convert.h36m_rows import Bodies, View, edge_boxes_px

#: Side of the square box over the larger side of the annotated one (I2L-MeshNet).
ANNOTATED_BOX_MARGIN: Final = 1.25
#: Mean distance of the fit's joints from the measured ones beyond which I2L-MeshNet's reader drops it.
MAX_FIT_ERROR_M: Final = 0.025
_FITS: Final = ("SMPL_NeuralAnnot", "smpl_param")
_IMAGE_KEYS: Final = ("id", "file_name", "action_idx", "subaction_idx", "cam_idx", "frame_idx")


class _Annotated(NamedTuple):
    frame: int
    name: str
    box: Any


class _Trial(NamedTuple):
    action: int
    subaction: int
    camera: int


def is_annotated(root: Path) -> bool:
    """Whether this is the folder with `annotations` and `images`."""
    return any((root / "annotations").glob("Human36M_subject*_data.json"))


def read_views(
    root: Path, fits: Path, subject: int, cameras: Cameras, names: tuple[str, ...], every: int
) -> Iterator[tuple[View, Camera]]:
    """The frames of a subject, recording by recording, each with its camera with distortion.

    Args:
        root: The folder with `annotations` and `images`.
        fits: The folder with the SMPL parameters.
        subject: Number of the person.
        cameras: All cameras of the subject.
        names: Names of those that are wanted.
        every: Take the frames whose number it divides.

    Raises:
        InputError: If a file is missing or damaged.
    """
    path = root / "annotations" / f"Human36M_subject{subject}_data.json"
    joints_path = path.with_name(f"Human36M_subject{subject}_joint_3d.json")
    files = [fits / f"Human36M_subject{subject}_{kind}.json" for kind in _FITS]
    fit_path = next((file for file in files if file.is_file()), None)
    trials = _trials(path, names, every)
    joints, smpl = _table(joints_path), _table(fit_path) if fit_path else {}
    for trial, images in sorted(trials.items()):
        camera = cameras[subject, CAMERA_IDS[trial.camera - 1]]
        images.sort(key=lambda image: image.frame)
        by_frame = _entries(joints, trial)
        joints_m = np.array([_joints_m(by_frame.get(str(image.frame)), image, joints_path) for image in images])
        view = View(
            sequence=f"S{subject}_act_{trial.action:02d}_subact_{trial.subaction:02d}.{camera.name}",
            subject=f"S{subject}",
            camera=camera.without_distortion(),
            frames=np.array([image.frame for image in images]),
            image_names=tuple(image.name for image in images),
            joints_m=joints_m @ camera.rotation.T + camera.shift_m,
            box_px=edge_boxes_px(camera, _edges_px(images, path), ANNOTATED_BOX_MARGIN),
            bodies=_bodies(_entries(smpl, trial), images, fit_path),
        )
        yield view, camera


def _trials(path: Path, names: tuple[str, ...], every: int) -> Mapping[_Trial, list[_Annotated]]:
    """The wanted images with their boxes, by recording."""
    content = _table(path)
    wanted: dict[Any, tuple[_Trial, int, str]] = {}
    for image in _list(content, "images", path):
        if missing := [key for key in _IMAGE_KEYS if key not in image]:
            raise InputError(f"{path}: an image has no {', '.join(missing)}")
        try:
            trial = _Trial(*(int(image[key]) for key in ("action_idx", "subaction_idx", "cam_idx")))
            frame = int(image["frame_idx"])
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: image {image['id']!r}: an index is not a number") from error
        if not 1 <= trial.camera <= len(CAMERA_IDS):
            raise InputError(f"{path}: image {image['id']!r}: cam_idx is {trial.camera}, expected was 1 to 4")
        if CAMERA_IDS[trial.camera - 1] in names and frame % every == 0:
            wanted[image["id"]] = trial, frame, str(image["file_name"])
    trials: defaultdict[_Trial, list[_Annotated]] = defaultdict(list)
    for annotation in _list(content, "annotations", path):
        if annotation.get("image_id") in wanted:
            trial, frame, name = wanted.pop(annotation["image_id"])
            trials[trial].append(_Annotated(frame, name, annotation.get("bbox")))
    return trials


def _edges_px(images: list[_Annotated], path: Path) -> Float64[ndarray, "frames 2 2"]:
    try:
        corner_size = np.array([image.box for image in images], np.float64).reshape(len(images), 4)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a bbox is not four numbers") from error
    return np.stack([corner_size[:, :2], corner_size[:, :2] + corner_size[:, 2:]], axis=1)


def _joints_m(entry: Any, image: _Annotated, path: Path) -> Float64[ndarray, "17 3"]:
    """h36m17 in the world, NaN if there are none."""
    if entry is None:
        return np.full((17, 3), np.nan)
    return _numbers(entry, (17, 3), f"{path}: frame {image.frame}")[list(H36M17_FROM_RIGHT_LEG_FIRST)] / 1000


def _bodies(by_frame: Mapping[str, Any], images: list[_Annotated], path: Path | None) -> Bodies:
    numbers = np.zeros((len(images), 85))
    reason = "it has no SMPL parameters" if path else "there is no file of SMPL parameters"
    lacking = np.full(len(images), reason, object)
    for row, image in enumerate(images):
        entry = by_frame.get(str(image.frame))
        if entry is None:
            continue
        where = f"{path}: frame {image.frame}"
        if not isinstance(entry, dict) or not {"pose", "shape", "trans"} <= entry.keys():
            raise InputError(f"{where}: it lacks pose, shape or trans")
        parts = (("pose", 72), ("shape", 10), ("trans", 3))
        numbers[row] = np.concatenate([_numbers(entry[key], (width,), f"{where}, {key}") for key, width in parts])
        lacking[row] = ""
    pose, betas, trans_m = np.split(numbers, (72, 82), axis=1)
    return Bodies(pose, betas, trans_m, True, lacking, MAX_FIT_ERROR_M)


def _numbers(entry: Any, shape: tuple[int, ...], where: str) -> ndarray:
    try:
        array = np.asarray(entry, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: not an array of numbers") from error
    if array.size != np.prod(shape):
        raise InputError(f"{where}: it has shape {array.shape}, expected was {shape}")
    return array.reshape(shape)


def _table(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: it holds a {type(content).__name__}, expected was an object")
    return content


def _list(content: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: it has no list {key}")
    return entries


def _entries(table: Mapping[str, Any], trial: _Trial) -> Mapping[str, Any]:
    """What a file has of a recording by its frame's number, which is text as all keys are."""
    entries: Any = table
    for key in (trial.action, trial.subaction):
        entries = entries.get(str(key), {}) if isinstance(entries, dict) else {}
    return entries if isinstance(entries, dict) else {}
