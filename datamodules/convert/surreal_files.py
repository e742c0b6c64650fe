"""Finds the clips of SURREAL and reads their info files, MATLAB 5 files of arrays whose last axis counts frames.

Format: gulvarol/surreal `README.md`, `datageneration/main_part1.py`, and real info files. What the numbers mean is in
`datamodules.convert.surreal`.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.io
from jaxtyping import Float64
from numpy import ndarray

from bodies.errors import InputError, one_line
from bodies.model_files import Gender
from datamodules.convert.summary import Split

VIDEO_SUFFIX: Final = ".mp4"
INFO_SUFFIX: Final = "_info.mat"
FOLDERS: Final[Mapping[Split, str]] = {"train": "train", "validation": "val", "test": "test"}
_READ: Final = ("gender", "pose", "shape", "zrot", "joints3D", "joints2D", "camLoc")
#: By the file's code.
GENDERS: Final[tuple[Gender, Gender]] = ("female", "male")


@dataclass(frozen=True)
class Clip:
    """One info file."""

    gender: Gender
    """Which SMPL the parameters refer to."""
    pose: Float64[ndarray, "frames 72"]
    """Axis-angle in radians, root in the world of the MoCap."""
    betas: Float64[ndarray, "frames 10"]
    """Shape coefficients, the same in all frames."""
    turn_rad: Float64[ndarray, " frames"]
    """Turn of the MoCap's world about its vertical."""
    joints_m: Float64[ndarray, "frames 24 3"]
    """Joints of SMPL's chain in the world."""
    joints_px: Float64[ndarray, "frames 24 2"]
    """Where the stored, mirrored image shows them, rounded."""
    camera_m: Float64[ndarray, "3"]
    """Place of the camera in the world."""


def find_clips(source: Path, split: Split) -> tuple[Path, tuple[Path, ...]]:
    """The folder `cmu`, and the clips of a split by name: paths of videos and info files without their suffixes.

    Raises:
        InputError: If there are none.
    """
    for root in (source / below for below in ("", "cmu", "data/cmu", "SURREAL/data/cmu")):
        files = (root / FOLDERS[split]).glob("run*/*/*")
        # Either file may be missing; the clip is then named among what was skipped.
        clips = {
            file.with_name(file.name.removesuffix(suffix))
            for file in files
            for suffix in (VIDEO_SUFFIX, INFO_SUFFIX)
            if file.name.endswith(suffix)
        }
        if clips:
            return root, tuple(sorted(clips))
    raise InputError(
        f"{source}: there are no clips {FOLDERS[split]}/run0/<sequence>/<clip>{VIDEO_SUFFIX} here or in cmu; unpack "
        "SURREAL_v1.tar.gz there"
    )


def read_clip(path: Path) -> Clip:
    """Reads and checks one info file.

    Raises:
        InputError: If it is damaged, lacks a key, or an array has another size than this format's.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    try:
        # The texts, two for each frame, take twice as long as all the numbers.
        content = scipy.io.loadmat(io.BytesIO(data), variable_names=_READ)
    except Exception as error:  # scipy lets through what zlib, struct and numpy raise
        raise InputError(f"{path}: not a whole MATLAB file ({one_line(error)})") from error
    gender = _numbers(content, "gender", (), path)
    frames = len(gender)
    if not frames:
        raise InputError(f"{path}: it has no frames")
    if not (gender == gender[0]).all() or gender[0] not in (0, 1):
        raise InputError(f"{path}: gender holds {sorted(set(gender.tolist()))}, expected all 0 or all 1")
    return Clip(
        GENDERS[int(gender[0])],
        _numbers(content, "pose", (72,), path, frames),
        _numbers(content, "shape", (10,), path, frames),
        _numbers(content, "zrot", (), path, frames),
        _numbers(content, "joints3D", (3, 24), path, frames).transpose(0, 2, 1),
        _numbers(content, "joints2D", (2, 24), path, frames).transpose(0, 2, 1),
        _numbers(content, "camLoc", (3,), path, 1)[0],
    )


def _numbers(
    content: Mapping[str, Any], key: str, shape: tuple[int, ...], path: Path, frames: int | None = None
) -> Float64[ndarray, "frames ..."]:
    """An array whose last axis counts frames, with that axis first; MATLAB has no such axis for a single frame."""
    if key not in content:
        raise InputError(f"{path}: not an info file of SURREAL, it lacks {key}")
    array = np.asarray(content[key])
    count = array.size // int(np.prod(shape, dtype=int)) if frames is None else frames
    # (T, 1) of the scalars is (T,), and a single frame may lack its axis.
    fits = array.shape in ((*shape, count), (count, 1), (1, count)) if not shape else array.shape == (*shape, count)
    if array.dtype.kind not in "iuf" or not (fits or (count == 1 and array.shape == shape)):
        raise InputError(f"{path}: {key} is {array.dtype} of shape {array.shape}, expected was {(*shape, count)}")
    axes = range(len(shape))
    return array.reshape(*shape, count).astype(np.float64).transpose(len(shape), *axes)
