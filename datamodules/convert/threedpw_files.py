"""Reads the sequence files of 3DPW: `sequenceFiles/<split>/<sequence>.pkl`, Python 2 pickles of a dict of arrays.

Format: nkolot/SPIN `datasets/preprocess/pw3d.py`, open-mmlab/mmhuman3d `data_converters/pw3d.py`, and the data set's
own description. What the numbers mean is in `datamodules.convert.threedpw`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64
from numpy import ndarray

from bodies.errors import InputError
from bodies.model_files import Gender
from bodies.safe_pickle import load_pickle
from datamodules.convert.summary import Split

_GENDERS: Final[Mapping[str, Gender]] = {"m": "male", "f": "female", "male": "male", "female": "female"}
_REQUIRED: Final = (
    "betas", "poses", "trans", "jointPositions", "poses2d", "cam_poses", "campose_valid", "cam_intrinsics", "genders",
)  # fmt: skip


@dataclass(frozen=True)
class Person:
    """One person of a sequence; positions are in the world, in metres."""

    gender: Gender
    """Which SMPL the parameters refer to."""
    betas: Float64[ndarray, "10"]
    """Shape coefficients."""
    pose: Float64[ndarray, "frames 72"]
    """Axis-angle in radians, root in the world."""
    transl: Float64[ndarray, "frames 3"]
    """Translation of SMPL."""
    joints: Float64[ndarray, "frames 24 3"]
    """Joints of SMPL's chain as the file has them."""
    detected: Float64[ndarray, "frames 3 18"]
    """x, y, confidence of COCO-18 in pixels."""
    camera_valid: Bool[ndarray, " frames"]
    """Where the camera's pose fits this person."""


@dataclass(frozen=True)
class Recording:
    """One sequence file."""

    path: Path
    """The file."""
    focal_px: Float64[ndarray, "2"]
    """Of all frames."""
    center_px: Float64[ndarray, "2"]
    """Principal point."""
    world_to_camera: Float64[ndarray, "frames 4 4"]
    """The moving camera."""
    people: tuple[Person, ...]
    """One or two."""

    @property
    def name(self) -> str:
        """Name of the sequence, also that of its folder of images."""
        return self.path.stem


def sequence_files(source: Path, split: Split) -> tuple[Path, ...]:
    """The sequence files of a split, by name.

    Raises:
        InputError: If there are none.
    """
    for folder in (source, source / "3DPW"):
        if (folder / "sequenceFiles").is_dir():
            files = tuple(sorted((folder / "sequenceFiles" / split).glob("*.pkl")))
            if not files:
                raise InputError(f"{folder / 'sequenceFiles' / split}: there are no sequence files (*.pkl)")
            return files
    raise InputError(f"{source}: it holds no sequenceFiles; unpack sequenceFiles.zip and imageFiles.zip of 3DPW there")


def read_recording(path: Path) -> Recording:
    """Reads and checks one sequence file.

    Raises:
        InputError: If it is damaged, lacks a key, or an array has another shape than this format's.
    """
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: it holds a {type(content).__name__}, a sequence file holds a dict")
    if missing := [key for key in _REQUIRED if key not in content]:
        raise InputError(f"{path}: not a sequence file of 3DPW, it lacks {', '.join(missing)}")
    cameras = _array(content, "cam_poses", (None, 4, 4), path)
    focal_px, center_px = _intrinsics(_array(content, "cam_intrinsics", (3, 3), path), path)
    genders = content["genders"]
    if not isinstance(genders, list | tuple):
        raise InputError(f"{path}: genders is a {type(genders).__name__}, expected a list of one per person")
    people = tuple(_person(content, number, len(genders), len(cameras), path) for number in range(len(genders)))
    return Recording(path, focal_px, center_px, cameras, people)


def _intrinsics(matrix: Float64[ndarray, "3 3"], path: Path) -> tuple[Float64[ndarray, "2"], Float64[ndarray, "2"]]:
    plain = np.array([[matrix[0, 0], 0, matrix[0, 2]], [0, matrix[1, 1], matrix[1, 2]], [0, 0, 1]])
    # NaN compares false.
    if not (np.abs(matrix - plain) < 1e-6).all() or not (matrix.diagonal() > 0).all():
        raise InputError(f"{path}: cam_intrinsics is not that of a pinhole camera without skew: {matrix.tolist()}")
    return matrix.diagonal()[:2].copy(), matrix[:2, 2].copy()


def _person(content: Mapping[str, Any], number: int, people: int, frames: int, path: Path) -> Person:
    def of_person(key: str, *shape: int | None) -> ndarray:
        if not isinstance(content[key], list | tuple | ndarray) or len(content[key]) != people:
            raise InputError(f"{path}: {key} is not a list of one entry for each of the {people} people")
        return _array({f"{key}[{number}]": content[key][number]}, f"{key}[{number}]", shape, path)

    gender = content["genders"][number]
    if gender not in _GENDERS:
        raise InputError(f"{path}: genders[{number}] is {gender!r}, expected 'm' or 'f'")
    betas = of_person("betas", None)
    if len(betas) < 10 or not np.isfinite(betas[:10]).all():
        raise InputError(f"{path}: betas[{number}] holds {len(betas)} numbers, expected were 10 or 300 finite ones")
    return Person(
        _GENDERS[gender],
        betas[:10].copy(),
        of_person("poses", frames, 72),
        of_person("trans", frames, 3),
        of_person("jointPositions", frames, 72).reshape(frames, 24, 3),
        of_person("poses2d", frames, 3, 18),
        of_person("campose_valid", frames) > 0,
    )


def _array(content: Mapping[str, Any], key: str, shape: tuple[int | None, ...], path: Path) -> Float64[ndarray, "..."]:
    """An array of numbers of the expected shape, where None stands for any length."""
    try:
        array = np.asarray(content[key], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {key} is not an array of numbers") from error
    if array.ndim != len(shape) or any(want not in (None, have) for have, want in zip(array.shape, shape, strict=True)):
        expected = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(f"{path}: {key} has shape {array.shape}, expected was ({expected})")
    return array
