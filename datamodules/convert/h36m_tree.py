"""Human3.6M as downloaded: `S9/MyPoseFeatures/D3_Positions_mono/Directions 1.60457274.cdf`, and its like for all else.

    S9/Videos/Directions 1.60457274.mp4                               or, extracted by SPIN's and mmhuman3d's scripts:
    images/S9_Directions_1.60457274_000001.jpg, S9/images/S9_Directions_1.60457274/S9_Directions_1.60457274_000001.jpg
    S9/MyPoseFeatures/D3_Positions_mono/Directions 1.60457274.cdf     32 joints in mm, camera frame; in its place
    S9/MyPoseFeatures/D3_Positions/Directions 1.cdf                   the same in the world
    S9/MySegmentsMat/ground_truth_bb/Directions 1.60457274.mat        optional: boxes as masks (ground_truth_bs too)
    mosh/S1/Directions 1_cam0_aligned.pkl  or  mosh/S1/Directions 1.pkl

Sources: nkolot/SPIN `datasets/preprocess/h36m.py`, `h36m_train.py`, open-mmlab/mmhuman3d `data_converters/h36m.py`,
akanazawa/hmr issue 50, zju3dv/GVHMR `hmr4d/dataset/h36m`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.errors import InputError, one_line
from bodies.safe_pickle import load_pickle
from datamodules.convert.cdf import read_cdf_variable
from datamodules.convert.h36m_cameras import CAMERA_IDS, Camera
from datamodules.convert.h36m_rows import Bodies, View, edge_boxes_px, no_bodies

#: Joints of the skeleton of 32 (some are twice in it) that are h36m17, in its order.
H36M17_FROM_32: Final = (11, 6, 7, 8, 1, 2, 3, 12, 24, 14, 15, 17, 18, 19, 25, 26, 27)
#: Side of the box over the larger extent of the mask, which is a generous rectangle (SPIN).
MASK_BOX_MARGIN: Final = 0.9
#: MoSh follows surface markers on a body under clothes; other axes are off by half a metre.
MAX_MOSH_ERROR_M: Final = 0.1
#: Frames of the video for each row of the camera's MoSh, and rows of the world's for each frame.
MOSH_CAMERA_STRIDE, MOSH_WORLD_RATE = 5, 4
MASK_FOLDERS: Final = ("ground_truth_bb", "ground_truth_bs")
_FEATURES: Final = "MyPoseFeatures"


class Recording(NamedTuple):
    """One trial as seen by one camera."""

    subject: int
    """Number of the person."""
    trial: str
    """Action with its number, as files have it: 'Directions 1', or 'Directions'."""
    camera: str
    """Name of the camera."""

    @property
    def name(self) -> str:
        """What SPIN's image files are called by, without their number."""
        return f"S{self.subject}_{self.trial.replace(' ', '_')}.{self.camera}"

    @property
    def file(self) -> str:
        """What the data set's files are called, without suffix."""
        return f"{self.trial}.{self.camera}"


@dataclass(frozen=True)
class Tree:
    """A downloaded tree."""

    root: Path
    """The folder with S1, S5, ..."""
    mosh: Path | None
    """The folder with the MoSh pickles of S1, S5, ..., if there is one."""

    def video(self, recording: Recording) -> Path:
        """Its video."""
        return self.root / f"S{recording.subject}" / "Videos" / f"{recording.file}.mp4"

    def image(self, recording: Recording, name: str) -> Path:
        """An extracted image, in the folder of SPIN's script or in that of mmhuman3d's."""
        apart = self.root / f"S{recording.subject}" / "images" / recording.name / name
        return apart if apart.is_file() else self.root / "images" / name


def is_tree(root: Path) -> bool:
    """Whether this is the folder with S1, S5, ..."""
    return any((folder / _FEATURES).is_dir() for folder in root.glob("S*"))


def find_recordings(root: Path, subject: int, cameras: tuple[str, ...]) -> tuple[list[Recording], list[str]]:
    """The recordings of a subject that have measured joints, by name, and the names of videos that have none."""
    folder = root / f"S{subject}" / _FEATURES
    trials = {(path.stem, name) for path in (folder / "D3_Positions").glob("*.cdf") for name in CAMERA_IDS}
    trials |= {_parts(path) for path in (folder / "D3_Positions_mono").glob("*.cdf")}
    videos = {_parts(path) for path in (root / f"S{subject}" / "Videos").glob("*.mp4")}
    # '_ALL' is a recording of everything in a row.
    known = sorted(Recording(subject, *trial) for trial in trials if trial[1] in cameras and "_ALL" not in trial[0])
    alone = sorted(videos - trials)
    return known, [Recording(subject, *trial).name for trial in alone if trial[1] in cameras and "_ALL" not in trial[0]]


def _parts(path: Path) -> tuple[str, str]:
    trial, _, camera = path.stem.rpartition(".")
    return trial, camera


def read_view(tree: Tree, recording: Recording, camera: Camera, every: int) -> View:
    """Every n-th frame of a recording.

    Args:
        tree: The files.
        recording: Which.
        camera: Its camera, with the distortion that is taken out of the images.
        every: The stride.

    Raises:
        InputError: If a file of it is damaged, or the recording has no frames.
    """
    joints_m = read_joints_m(tree.root, recording, camera)
    frames = np.arange(0, len(joints_m), every)
    if not len(frames):
        raise InputError("the recording has no frames")
    return View(
        sequence=recording.name,
        subject=f"S{recording.subject}",
        camera=camera.without_distortion(),
        frames=frames,
        image_names=tuple(f"{recording.name}_{frame + 1:06d}.jpg" for frame in frames.tolist()),
        joints_m=joints_m[frames],
        box_px=_mask_boxes_px(tree.root, recording, camera, frames),
        bodies=_mosh(tree.mosh, recording, frames),
    )


def read_joints_m(root: Path, recording: Recording, camera: Camera) -> Float64[ndarray, "frames 17 3"]:
    """h36m17 in the camera frame, in metres.

    Raises:
        InputError: If the file is damaged or of another shape.
    """
    folder = root / f"S{recording.subject}" / _FEATURES
    seen = folder / "D3_Positions_mono" / f"{recording.file}.cdf"
    path = seen if seen.is_file() else folder / "D3_Positions" / f"{recording.trial}.cdf"
    pose = read_cdf_variable(path, "Pose")
    if pose.ndim not in (2, 3) or pose.shape[-1] != 96 or (pose.ndim == 3 and len(pose) != 1):
        raise InputError(f"{path}: Pose has shape {pose.shape}, expected was (1, frames, 96)")
    joints_m: ndarray = pose.reshape(-1, 32, 3)[:, list(H36M17_FROM_32)] / 1000
    return joints_m if path == seen else joints_m @ camera.rotation.T + camera.shift_m


def _mask_boxes_px(
    root: Path, recording: Recording, camera: Camera, frames: Int64[ndarray, " frames"]
) -> Float64[ndarray, "frames 3"] | None:
    """SPIN's boxes out of the masks, where the undistorted images have them; NaN for frames without one."""
    folder = root / f"S{recording.subject}" / "MySegmentsMat"
    files = (folder / kind / f"{recording.file}.mat" for kind in MASK_FOLDERS)
    path = next((path for path in files if path.is_file()), None)
    if path is None:
        return None
    try:
        with h5py.File(path) as file:
            edges = np.array([_mask_edges_px(file, frame) for frame in frames.tolist()])
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: not a whole MATLAB 7.3 file of masks ({one_line(error)})") from error
    return edge_boxes_px(camera, edges, MASK_BOX_MARGIN)


def _mask_edges_px(file: Any, frame: int) -> Float64[ndarray, "2 2"]:
    """Upper left and lower right corner of what is set in a mask, which MATLAB stores column by column."""
    references = file["Masks"]
    if frame >= len(references):
        return np.full((2, 2), np.nan)
    mask = np.asarray(file[references[frame, 0]])
    columns, rows = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return np.full((2, 2), np.nan)
    return np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], np.float64)


def _mosh(folder: Path | None, recording: Recording, frames: Int64[ndarray, " frames"]) -> Bodies:
    """The MoSh fits of these frames: of the camera, else of the world."""
    if folder is None:
        return no_bodies(len(frames), "there are no MoSh files")
    below = folder / f"S{recording.subject}"
    seen = below / f"{recording.trial}_cam{CAMERA_IDS.index(recording.camera)}_aligned.pkl"
    if seen.is_file():
        return read_camera_mosh(seen, frames)
    world = below / f"{recording.trial}.pkl"
    return read_world_mosh(world, frames) if world.is_file() else no_bodies(len(frames), "it has no MoSh file")


def read_camera_mosh(path: Path, frames: Int64[ndarray, " frames"]) -> Bodies:
    """`..._cam0_aligned.pkl`: 10 Hz, in the camera's frame, stored upside down, without translation.

    Raises:
        InputError: If it is damaged, lacks a key or an array has another shape.
    """
    content = _pickle(path, ("new_poses", "betas"))
    stored, betas = _array(content, "new_poses", path, 2, 72), _array(content, "betas", path, 1, 10)
    rows, beyond = _rows(frames // MOSH_CAMERA_STRIDE, len(stored))
    lacking = np.where(beyond, "its MoSh file ends before", "").astype(object)
    lacking[frames % MOSH_CAMERA_STRIDE != 0] = f"MoSh has every {MOSH_CAMERA_STRIDE}th frame alone"
    pose = stored[rows] if len(stored) else np.zeros((len(frames), 72))
    # Numbers that are not finite are found later, row by row.
    turned = Rotation.from_rotvec(np.nan_to_num(pose[:, :3])) * Rotation.from_rotvec((np.pi, 0, 0))
    root = np.where(np.isfinite(pose[:, :3]), turned.as_rotvec(), np.nan)
    pose = np.concatenate([root, pose[:, 3:]], axis=1)
    return Bodies(pose, np.tile(betas, (len(frames), 1)), None, False, lacking, MAX_MOSH_ERROR_M)


def read_world_mosh(path: Path, frames: Int64[ndarray, " frames"]) -> Bodies:
    """`Posing 1.pkl`: 200 Hz, in the world, with a translation in metres.

    Raises:
        InputError: If it is damaged, lacks a key or an array has another shape.
    """
    content = _pickle(path, ("poses", "betas", "trans"))
    stored, betas = _array(content, "poses", path, 2, 72), _array(content, "betas", path, 1, 10)
    trans_m = _array(content, "trans", path, 2, 3)
    if len(trans_m) != len(stored):
        raise InputError(f"{path}: it has {len(stored)} poses and {len(trans_m)} translations")
    rows, beyond = _rows(frames * MOSH_WORLD_RATE, len(stored))
    if not len(stored):
        return no_bodies(len(frames), "its MoSh file ends before")
    lacking = np.where(beyond, "its MoSh file ends before", "").astype(object)
    return Bodies(stored[rows], np.tile(betas, (len(frames), 1)), trans_m[rows], True, lacking, MAX_MOSH_ERROR_M)


def _rows(wanted: Int64[ndarray, " frames"], count: int) -> tuple[ndarray, ndarray]:
    """Rows that there are, and where the wanted ones lie beyond the last."""
    return np.minimum(wanted, max(count - 1, 0)), wanted >= count


def _pickle(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: it holds a {type(content).__name__}, a MoSh file holds a dict")
    if missing := [key for key in keys if key not in content]:
        raise InputError(f"{path}: not a MoSh file of this kind, it lacks {', '.join(missing)}")
    return content


def _array(content: dict[str, Any], key: str, path: Path, axes: int, width: int) -> Float64[ndarray, "..."]:
    try:
        array = np.asarray(content[key], np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {key} is not an array of numbers") from error
    if axes == 1:
        array = array.reshape(-1) if array.size == width else array
    if array.ndim != axes or array.shape[-1] != width:
        expected = f"({width})" if axes == 1 else f"(any, {width})"
        raise InputError(f"{path}: {key} has shape {array.shape}, expected was {expected}")
    return array


def without_path(error: InputError) -> str:
    """What is wrong with a recording's file, in the same words for all: its folder stands for its name."""
    return re.sub(r"^.*[/\\]([^/\\]+)[/\\][^/\\]*\.(cdf|mat|pkl): ", r"\1: ", str(error))
