"""Postures from AMASS .npz files, turned upright.

Each file has `poses` (T, 156) for SMPL-H or (T, 72) for SMPL, axis-angle in radians: root, 21 body joints, then hands,
of which SMPL has none that these files know, so its last two joints stay at rest. The world is z-up; here it becomes
y-up. The rate is `mocap_framerate`, in later releases `mocap_frame_rate`. `trans` and `betas` are not used.

Source: nghorbani/amass `notebooks/01-AMASS_Visualization.ipynb`, `src/amass/data/prepare_data.py`.
"""

import zipfile
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from rich.progress import track
from scipy.spatial.transform import Rotation

from bodies.errors import InputError, one_line

#: Root and body joints.
BODY_NUMBERS: Final = 66
#: Consecutive frames of a recording are alike, so only so many a second are drawn from.
POSTURES_PER_SECOND: Final = 10.0
_DEFAULT_RATE: Final = 60.0
_RATE_KEYS: Final = ("mocap_framerate", "mocap_frame_rate")
#: AMASS keeps the subject's shape in files beside the recordings.
_NOT_RECORDINGS: Final = ("shape.npz", "neutral_stagei.npz", "male_stagei.npz", "female_stagei.npz")
#: Angles beyond this are no posture.
_MAX_POSE_RAD: Final = 4 * np.pi
_UPRIGHT: Final = Rotation.from_euler("x", -90, degrees=True)


class _Recording(NamedTuple):
    path: Path
    postures: int
    stride: int


def draw_amass_poses(source: Path, count: int, seed: int) -> Float32[ndarray, "count 72"]:
    """Draws postures from a file or from all files below a folder; posture i depends on the files, the seed and i.

    Args:
        source: An .npz file or a folder of such files.
        count: How many.
        seed: Of the set.

    Returns:
        Axis-angle in radians; the root is relative to an upright body that faces +z (y up).

    Raises:
        InputError: If the source has no recordings, or one of them is damaged; names the file.
    """
    recordings = [_measured(path) for path in _files(source)]
    ends = np.cumsum([recording.postures for recording in recordings])
    if ends[-1] == 0:
        raise InputError(f"{source}: its recordings have no frames")
    chosen = (np.random.default_rng(seed).random(count) * ends[-1]).astype(np.int64)
    of_recording = np.searchsorted(ends, chosen, side="right")
    poses = np.zeros((count, 72), np.float32)
    used = np.unique(of_recording)
    for number in track(used, "reading AMASS", transient=True, disable=len(used) < 100):
        recording = recordings[number]
        rows = np.flatnonzero(of_recording == number)
        first = ends[number] - recording.postures
        poses[rows, :BODY_NUMBERS] = _read(recording.path)[(chosen[rows] - first) * recording.stride]
    return upright(poses)


def upright(poses: Float32[ndarray, "count 72"]) -> Float32[ndarray, "count 72"]:
    """Postures of a z-up world in a y-up world."""
    result = poses.copy()
    result[:, :3] = (_UPRIGHT * Rotation.from_rotvec(poses[:, :3].astype(np.float64))).as_rotvec()
    return result


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: there is no such file or folder of AMASS recordings")
    files = sorted(path for path in source.rglob("*.npz") if path.name not in _NOT_RECORDINGS)
    if not files:
        raise InputError(f"{source}: no .npz files in it")
    return files


def _measured(path: Path) -> _Recording:
    """Length and rate, without unpacking the poses."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("poses.npy") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = header(stream)
        with np.load(path, allow_pickle=False) as arrays:
            rates = [float(arrays[key]) for key in _RATE_KEYS if key in arrays.files]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not an AMASS recording, its poses cannot be read ({one_line(error)})") from error
    if len(shape) != 2 or shape[1] < BODY_NUMBERS:
        raise InputError(f"{path}: poses have shape {shape}, expected was (T, 156) or (T, 72)")
    rate = rates[0] if rates and np.isfinite(rates[0]) and rates[0] > 0 else _DEFAULT_RATE
    stride = max(1, round(rate / POSTURES_PER_SECOND))
    return _Recording(path, -(-shape[0] // stride), stride)


def _read(path: Path) -> Float32[ndarray, "frames 66"]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            poses = np.asarray(arrays["poses"])[:, :BODY_NUMBERS].astype(np.float32)
    except Exception as error:  # numpy lets through what zipfile and zlib raise
        raise InputError(f"{path}: its poses cannot be read ({one_line(error)})") from error
    if not np.all(np.abs(poses) <= _MAX_POSE_RAD):
        raise InputError(f"{path}: poses are not finite, or not axis-angle in radians")
    return poses
