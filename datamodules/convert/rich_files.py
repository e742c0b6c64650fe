"""Finds the recordings of RICH and reads their files: SMPL-X bodies, calibrations of the cameras, genders, image sizes.

Format: paulchhuang/rich_toolkit (`README.md`, `smplx2images.py`, `utils.py`, `resource/`); isarandi/posepile `ds/rich`
for the folders of the archives; zju3dv/GVHMR `hmr4d/dataset/rich` for real calibrations. What the numbers mean is in
`datamodules.convert.rich`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from bodies.errors import InputError, one_line
from bodies.model_files import Gender
from bodies.safe_pickle import load_pickle
from datamodules.convert.fields import Fields
from datamodules.convert.smplx_model import SmplxParameters
from datamodules.convert.summary import Split
from datamodules.crops import jpeg_size_px

FOLDERS: Final[Mapping[Split, str]] = {"train": "train", "validation": "val", "test": "test"}
#: Where the folders below lie below the one that the user names.
_ROOTS: Final = ("", "RICH", "rich", "data")
_BODY_FOLDERS: Final = ("bodies/{0}", "{0}_body", "bodies/{0}_body")
_IMAGE_FOLDERS: Final = ("images/{0}", "JPG_images/{0}", "{0}")
#: Formats of the images, whole ones before ones that lost something.
IMAGE_SUFFIXES: Final = (".png", ".bmp", ".jpeg", ".jpg")
#: Genders of the people, by number (the toolkit's `resource/gender.json`); a file of that name takes their place.
FEMALE_SUBJECTS: Final = frozenset({9, 10, 12, 13, 16, 17, 18, 19, 21})
MALE_SUBJECTS: Final = frozenset({*range(9), 11, 14, 15, 20})
_GENDER_FILES: Final = ("gender.json", "resource/gender.json", "rich_toolkit/resource/gender.json")
#: Widths of the arrays of a body file; the hands are principal components.
_BODY_ARRAYS: Final = {
    "global_orient": 3, "body_pose": 63, "jaw_pose": 3, "leye_pose": 3, "reye_pose": 3, "left_hand_pose": 12,
    "right_hand_pose": 12, "betas": 10, "expression": 10, "transl": 3,
}  # fmt: skip
#: Numbers of coefficients that OpenCV's lens models have, and two, of which the others are zero.
_DISTORTION_COUNTS: Final = (0, 2, 4, 5, 8, 12, 14)
_ORTHONORMAL: Final = 1e-3
#: As much of a BMP or PNG as its size needs.
_HEADER_BYTES: Final = 32


@dataclass(frozen=True)
class Recording:
    """One sequence: who is in it, and where its files are."""

    name: str
    """For example `ParkingLot2_009_burpeejump1`."""
    bodies: Path
    """Folder with one folder per frame."""
    images: Path | None
    """Folder with one folder per camera, if there is one."""

    @property
    def scene(self) -> str:
        """Name of the place, which has one calibration for all its recordings."""
        return self.name.split("_")[0]

    @property
    def subjects(self) -> tuple[int, ...]:
        """Numbers of the people: all parts of the name between the scene and the action.

        Raises:
            InputError: If the name has no such parts.
        """
        people = self.name.split("_")[1:-1]
        if not people or not all(part.isdecimal() for part in people):
            raise InputError(f"{self.bodies}: its name is not <scene>_<person>_<action>, with one or more persons")
        return tuple(int(part) for part in people)

    def body_file(self, frame: int, subject: int) -> Path:
        """Where the body of a person in a frame is, if there is one."""
        return self.bodies / f"{frame:05d}" / f"{subject:03d}.pkl"

    def frames(self) -> set[int]:
        """Frames for which there is a folder of bodies."""
        return {int(folder.name) for folder in self.bodies.iterdir() if folder.name.isdecimal() and folder.is_dir()}

    def cameras(self) -> dict[int, dict[int, Path]]:
        """For each camera that there are images of, the image of each frame."""
        folders = sorted(self.images.iterdir()) if self.images else []
        found = ((re.fullmatch(r"cam_(\d+)", folder.name), folder) for folder in folders)
        return {int(match[1]): _images(folder) for match, folder in found if match and folder.is_dir()}


@dataclass(frozen=True)
class Calibration:
    """One camera of a scene, for the full size of its images."""

    path: Path
    """The file."""
    focal_px: Float64[ndarray, "2"]
    """Focal lengths."""
    center_px: Float64[ndarray, "2"]
    """Principal point."""
    world_to_camera: Float64[ndarray, "4 4"]
    """From the frame of all cameras, which is that of camera 0, to this one."""
    distortion: Float64[ndarray, " coefficients"]
    """Lens distortion as OpenCV orders it, of 0 or at least 4 numbers."""


def _images(folder: Path) -> dict[int, Path]:
    """Images by frame: `<frame>_<camera>.<suffix>`."""
    found: dict[int, Path] = {}
    order = {suffix: place for place, suffix in enumerate(IMAGE_SUFFIXES)}
    files = (file for file in folder.iterdir() if file.suffix.lower() in order)
    for file in sorted(files, key=lambda file: (order[file.suffix.lower()], file.name)):
        if match := re.fullmatch(r"(\d+)(_\d+)?", file.stem):
            found.setdefault(int(match[1]), file)
    return found


def find_recordings(source: Path, split: Split) -> tuple[Path, tuple[Recording, ...]]:
    """The folder with the calibrations, and the recordings of a split by name.

    Raises:
        InputError: If there are no bodies, no images or no calibrations.
    """
    for root in (source / below for below in _ROOTS):
        bodies = next(_filled(root, _BODY_FOLDERS, split), None)
        if bodies is None:
            continue
        images = next(_filled(root, _IMAGE_FOLDERS, split), None)
        if images is None:
            raise InputError(f"{root}: it holds no images/{FOLDERS[split]} with a folder for each recording")
        if not (root / "scan_calibration").is_dir():
            raise InputError(f"{root / 'scan_calibration'}: there is no such folder; unpack scan_calibration.zip there")
        folders = sorted(folder for folder in bodies.iterdir() if folder.is_dir())
        return root, tuple(
            Recording(folder.name, folder, images / folder.name if (images / folder.name).is_dir() else None)
            for folder in folders
        )
    raise InputError(
        f"{source}: it holds no bodies/{FOLDERS[split]}/<recording>; unpack {FOLDERS[split]}_body.zip of RICH there"
    )


def _filled(root: Path, patterns: tuple[str, ...], split: Split) -> Iterator[Path]:
    folders = (root / pattern.format(FOLDERS[split]) for pattern in patterns)
    return (folder for folder in folders if folder.is_dir() and any(below.is_dir() for below in folder.iterdir()))


def read_genders(root: Path) -> Mapping[int, Gender]:
    """Genders of the people by number: those of `gender.json` if it is there, else those that the toolkit lists.

    Raises:
        InputError: If the file is not of its format.
    """
    file = next((root / name for name in _GENDER_FILES if (root / name).is_file()), None)
    if file is None:
        listed: dict[int, Gender] = dict.fromkeys(MALE_SUBJECTS, "male")
        return listed | dict.fromkeys(FEMALE_SUBJECTS, "female")
    try:
        content = json.loads(file.read_bytes())
        genders = {int(number): gender for number, gender in content.items()}
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{file}: not a list of genders by number ({one_line(error)})") from error
    if wrong := [gender for gender in genders.values() if gender not in ("male", "female")]:
        raise InputError(f"{file}: it says {wrong[0]!r}, expected 'male' or 'female'")
    return genders


def read_body(path: Path) -> SmplxParameters:
    """Reads one body, in the frame of all cameras.

    Raises:
        InputError: If it is damaged, lacks an array, or one has another size than this format's.
    """
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: it holds a {type(content).__name__} in place of a dict")
    fields = Fields(str(path), content)
    arrays = {
        name: fields.numbers(name, (1, width), (width,)).reshape(1, width) for name, width in _BODY_ARRAYS.items()
    }
    return SmplxParameters(**arrays)


def read_calibration(path: Path) -> Calibration:
    """Reads a calibration, an OpenCV FileStorage in XML.

    Raises:
        InputError: If it is damaged, lacks a part, or is not that of a pinhole camera.
    """
    try:
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise InputError(f"{path}: it declares entities, which a calibration does not need")
        tree = ElementTree.fromstring(text)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not a whole XML file ({one_line(error)})") from error
    extrinsics = _numbers(tree, "CameraMatrix", path, 12).reshape(3, 4)
    matrix = _numbers(tree, "Intrinsics", path, 9).reshape(3, 3)
    plain = np.array([[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]])
    if np.abs(matrix - plain).max() > 1e-6 or matrix.diagonal().min() <= 0:
        raise InputError(f"{path}: Intrinsics is not that of a pinhole camera without skew: {matrix.tolist()}")
    rotation = extrinsics[:, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > _ORTHONORMAL or np.linalg.det(rotation) < 0:
        raise InputError(f"{path}: CameraMatrix is not a rotation and a shift")
    distortion = _numbers(tree, "Distortion", path, None) if tree.find("Distortion") is not None else np.zeros(0)
    if len(distortion) not in _DISTORTION_COUNTS:
        raise InputError(f"{path}: Distortion holds {len(distortion)} numbers, as none of OpenCV's lens models does")
    padded = np.concatenate([distortion, np.zeros(2)]) if len(distortion) == 2 else distortion
    world_to_camera = np.concatenate([extrinsics, [[0.0, 0, 0, 1]]])
    return Calibration(path, matrix.diagonal()[:2].copy(), matrix[:2, 2].copy(), world_to_camera, padded)


def _numbers(tree: ElementTree.Element, name: str, path: Path, count: int | None) -> Float64[ndarray, " numbers"]:
    text = tree.findtext(f"{name}/data")
    if text is None:
        raise InputError(f"{path}: not a calibration of a camera, it lacks {name}")
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError as error:
        raise InputError(f"{path}: {name} holds something else than numbers ({one_line(error)})") from error
    if (count is not None and len(values) != count) or not np.isfinite(values).all():
        raise InputError(f"{path}: {name} is not {count or 'a row of'} finite numbers")
    return values


def image_size_px(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header; of a BMP or PNG nothing more is read.

    Raises:
        ValueError: If it has none.
        OSError: If it cannot be read.
    """
    if path.suffix.lower() not in (".bmp", ".png"):
        return jpeg_size_px(path.read_bytes())
    with path.open("rb") as file:
        return _header_size_px(path.suffix.lower(), file.read(_HEADER_BYTES))


def whole_image_size_px(suffix: str, data: bytes) -> tuple[int, int]:
    """Width and height of an image that is not cut off; what OpenCV cannot decode it leaves grey, and says nothing.

    Args:
        suffix: Of the file's name.
        data: The whole file.

    Raises:
        ValueError: If the file is not one of this format from beginning to end.
    """
    if suffix.lower() not in (".bmp", ".png"):
        return jpeg_size_px(data)
    width, height = _header_size_px(suffix.lower(), data[:_HEADER_BYTES])
    if suffix.lower() == ".png":
        whole = b"IEND" in data[-16:]
    else:
        bits, start = int.from_bytes(data[28:30], "little"), int.from_bytes(data[10:14], "little")
        whole = len(data) >= start + (width * bits + 31) // 32 * 4 * height  # rows are padded to four bytes
    if not whole:
        raise ValueError("the file is cut off")
    return width, height


def _header_size_px(suffix: str, header: bytes) -> tuple[int, int]:
    if len(header) < _HEADER_BYTES or not header.startswith(b"BM" if suffix == ".bmp" else b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"it does not begin as a {suffix[1:].upper()} does")
    if suffix == ".png":
        return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])
    # A negative height says that rows run downwards.
    width, height = (int.from_bytes(header[at : at + 4], "little", signed=True) for at in (18, 22))
    return width, abs(height)
