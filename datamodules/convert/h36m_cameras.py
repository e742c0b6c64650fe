"""The four cameras of Human3.6M, out of any of the three files in which they are published.

* `camera-parameters.json` (karfly/human36m-camera-parameters): intrinsics with distortion, extrinsics by subject.
* `metadata.xml` (the data set's own): in `w0`, a list of numbers, for each camera and subject three angles and the
  camera's place in millimetres, then for each camera f, c, k1, k2, k3, p1, p2.
* `Human36M_subject1_camera.json` (I2L-MeshNet, Pose2Mesh): R, t, f and c by the camera's number; no distortion.

Everywhere x_cam = R x_world + t with t in millimetres; the world's z is up, the camera's axes are OpenCV's. In
metadata.xml the angles are those of R = Rx(a) Ry(b) Rz(c), and t = -R place. The numbers of the files are taken as they
are; what is not a rotation, or not in millimetres, is refused.

Sources: karfly/human36m-camera-parameters `generate.py`, open-mmlab/mmhuman3d `data_converters/h36m.py`,
mks0601/I2L-MeshNet_RELEASE `data/Human36M/Human36M.py`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Float64
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.errors import InputError, one_line

#: By index: what files call camera 0 to 3, or 1 to 4.
CAMERA_IDS: Final = ("54138969", "55011271", "58860488", "60457274")
#: The one that protocol 2 is tested on.
FRONTAL_ID: Final = "60457274"
#: Width and height of each camera's images.
IMAGE_SIZE_PX: Final[Mapping[str, tuple[int, int]]] = {
    "54138969": (1000, 1002), "55011271": (1000, 1000), "58860488": (1000, 1000), "60457274": (1000, 1002),
}  # fmt: skip
SUBJECTS: Final = tuple(range(1, 12))
#: Numbers of `w0` before the intrinsics.
_EXTRINSIC_NUMBERS: Final = 6 * len(CAMERA_IDS) * len(SUBJECTS)
_INTRINSIC_NUMBERS: Final = 9
#: How far R'R may be from the identity.
_ORTHONORMAL: Final = 1e-3
#: How far from the world's origin, in the middle of the room, a camera may stand.
_DISTANCE_M: Final = (1.0, 20.0)


@dataclass(frozen=True)
class Camera:
    """One camera as it sees one subject."""

    name: str
    """One of `CAMERA_IDS`."""
    rotation: Float64[ndarray, "3 3"]
    """World to camera."""
    shift_m: Float64[ndarray, "3"]
    """World to camera: x_cam = rotation x_world + shift."""
    focal_px: Float64[ndarray, "2"]
    """Focal lengths."""
    center_px: Float64[ndarray, "2"]
    """Principal point."""
    distortion: Float64[ndarray, "5"]
    """k1, k2, p1, p2, k3 as OpenCV has them; zero where the file has none."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of its images."""
        return IMAGE_SIZE_PX[self.name]

    @property
    def distorts(self) -> bool:
        """Whether its images are not those of a pinhole camera."""
        return bool(self.distortion.any())

    @property
    def world_to_camera(self) -> Float64[ndarray, "4 4"]:
        """Both parts in one matrix."""
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = self.rotation, self.shift_m
        return matrix

    def without_distortion(self) -> "Camera":
        """The pinhole camera of undistorted images, or that a distorting one is taken for."""
        return replace(self, distortion=np.zeros(5))

    def project(self, points_m: Float64[ndarray, "*batch 3"]) -> Float64[ndarray, "*batch 2"]:
        """Camera-frame points to pixels, without distortion."""
        # Where a point is in or behind the camera the row is refused later.
        depth = np.where(points_m[..., 2:] > 0, points_m[..., 2:], np.inf)
        return points_m[..., :2] / depth * self.focal_px + self.center_px

    def undistort_px(self, position_px: Float64[ndarray, "points 2"]) -> Float64[ndarray, "points 2"]:
        """Where positions of the distorting camera's image lie in the pinhole camera's."""
        if not self.distorts or not len(position_px):
            return position_px
        matrix = self.matrix()
        undone = cv2.undistortPoints(position_px[:, None], matrix, self.distortion, R=np.eye(3), P=matrix)
        result: ndarray = np.asarray(undone, np.float64).reshape(-1, 2)
        return result

    def matrix(self, shift_px: float = 0.0) -> Float64[ndarray, "3 3"]:
        """The intrinsic matrix; `shift_px` is added to the principal point."""
        (fx, fy), (cx, cy) = self.focal_px, self.center_px + shift_px
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


#: By subject's number and camera's name.
Cameras = Mapping[tuple[int, str], Camera]


def find_cameras(folders: tuple[Path, ...], subjects: tuple[int, ...]) -> tuple[Cameras, Path]:
    """The cameras of these subjects, from the first file that is there, and which file that is.

    Files with distortion come before those without.

    Args:
        folders: Where to look; I2L's files are also looked for in `annotations` below.
        subjects: Whose are needed.

    Raises:
        InputError: If there is none, it is damaged, or it lacks a camera.
    """
    for file, read in (("camera-parameters.json", _read_karfly), ("metadata.xml", _read_metadata)):
        for path in (folder / file for folder in folders):
            if path.is_file():
                return read(path, subjects), path
    for place in (below for folder in folders for below in (folder, folder / "annotations")):
        first = place / camera_file(subjects[0])
        if first.is_file():
            found = {key: camera for subject in subjects for key, camera in _read_i2l(place, subject)}
            return found, first
    raise InputError(
        f"{folders[0]}: there is no file of cameras; put camera-parameters.json (github.com/karfly/"
        "human36m-camera-parameters) or the data set's metadata.xml there"
    )


def camera_file(subject: int) -> str:
    """Name of I2L-MeshNet's file of a subject's cameras."""
    return f"Human36M_subject{subject}_camera.json"


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        InputError: If it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror or one_line(error)})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a whole JSON file ({one_line(error)})") from error


def _read_karfly(path: Path, subjects: tuple[int, ...]) -> Cameras:
    content = read_json(path)
    cameras = {}
    for subject in subjects:
        for name in CAMERA_IDS:
            inner = _entry(content, ("intrinsics", name), path)
            outer = _entry(content, ("extrinsics", f"S{subject}", name), path)
            matrix = _numbers(inner, "calibration_matrix", (3, 3), path)
            (fx, skew, cx), (zero, fy, cy), last = matrix.tolist()
            if skew or zero or last != [0, 0, 1]:
                raise InputError(f"{path}: calibration_matrix of {name} is not that of a camera without skew")
            focal_px, center_px = np.array([fx, fy]), np.array([cx, cy])
            rotation, shift_mm = _numbers(outer, "R", (3, 3), path), _numbers(outer, "t", (3,), path)
            distortion = _numbers(inner, "distortion", (5,), path)
            cameras[subject, name] = _checked(path, name, rotation, shift_mm, focal_px, center_px, distortion)
    return cameras


def _read_metadata(path: Path, subjects: tuple[int, ...]) -> Cameras:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror or one_line(error)})") from error
    found = re.search(r"<w0>\s*\[([^<\]]*)\]?\s*</w0>", text)
    expected = _EXTRINSIC_NUMBERS + _INTRINSIC_NUMBERS * len(CAMERA_IDS)
    try:
        numbers = np.array(found[1].replace(",", " ").split() if found else (), np.float64)
    except ValueError as error:
        raise InputError(f"{path}: w0 does not hold numbers ({one_line(error)})") from error
    if len(numbers) != expected:
        raise InputError(f"{path}: w0 holds {len(numbers)} numbers, expected were {expected}")
    outer = numbers[:_EXTRINSIC_NUMBERS].reshape(len(CAMERA_IDS), len(SUBJECTS), 6)
    inner = numbers[_EXTRINSIC_NUMBERS:].reshape(len(CAMERA_IDS), _INTRINSIC_NUMBERS)
    cameras = {}
    for index, name in enumerate(CAMERA_IDS):
        focal_px, center_px, (k1, k2, k3, p1, p2) = inner[index, :2], inner[index, 2:4], inner[index, 4:]
        for subject in subjects:
            angles, place_mm = outer[index, subject - 1, :3], outer[index, subject - 1, 3:]
            rotation = Rotation.from_euler("XYZ", angles).as_matrix()
            distortion = np.array([k1, k2, p1, p2, k3])
            shift_mm = -rotation @ place_mm
            cameras[subject, name] = _checked(path, name, rotation, shift_mm, focal_px, center_px, distortion)
    return cameras


def _read_i2l(folder: Path, subject: int) -> Iterator[tuple[tuple[int, str], Camera]]:
    path = folder / camera_file(subject)
    content = read_json(path)
    for index, name in enumerate(CAMERA_IDS):
        entry = _entry(content, (str(index + 1),), path)
        rotation, shift_mm = _numbers(entry, "R", (3, 3), path), _numbers(entry, "t", (3,), path)
        focal_px, center_px = _numbers(entry, "f", (2,), path), _numbers(entry, "c", (2,), path)
        yield (subject, name), _checked(path, name, rotation, shift_mm, focal_px, center_px, np.zeros(5))


def _entry(content: Any, keys: tuple[str, ...], path: Path) -> Any:
    for depth, key in enumerate(keys):
        if not isinstance(content, dict) or key not in content:
            raise InputError(f"{path}: it has no {' / '.join(keys[: depth + 1])}")
        content = content[key]
    return content


def _numbers(entry: Any, key: str, shape: tuple[int, ...], path: Path) -> ndarray:
    value = _entry(entry, (key,), path)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {key} is not an array of numbers") from error
    if array.shape != shape and array.shape != (*shape, 1):  # t is a column in one of the files
        raise InputError(f"{path}: {key} has shape {array.shape}, expected was {shape}")
    return array.reshape(shape)


def _checked(
    path: Path,
    name: str,
    rotation: ndarray,
    shift_mm: ndarray,
    focal_px: ndarray,
    center_px: ndarray,
    distortion: ndarray,
) -> Camera:
    camera = Camera(name, rotation, shift_mm / 1000, focal_px.copy(), center_px.copy(), distortion)
    where = f"{path}: camera {name}"
    proper = np.abs(rotation @ rotation.T - np.eye(3)).max() < _ORTHONORMAL and np.linalg.det(rotation) > 0
    if not proper:
        raise InputError(f"{where}: R is not a rotation")
    distance_m = np.linalg.norm(camera.shift_m)
    if not _DISTANCE_M[0] < distance_m < _DISTANCE_M[1]:
        raise InputError(f"{where}: t is {1e3 * distance_m:.4g} long, which is no distance in millimetres")
    if not (np.isfinite(focal_px).all() and (focal_px > 1).all() and np.isfinite(center_px).all()):
        raise InputError(f"{where}: its focal lengths and principal point are {focal_px}, {center_px}")
    if not np.isfinite(distortion).all():
        raise InputError(f"{where}: its distortion is not finite")
    return camera
