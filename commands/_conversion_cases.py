"""Small data sets in the formats of 3DPW, SURREAL and Human3.6M: what the benchmark converts.

Layouts, keys and sizes are those of the real sets (`datamodules.convert`); people stand before the camera in postures
of the sampler; images are made scenes under sensor noise, so that they cost what photos cost to decode and encode.
"""

import json
import pickle
import struct
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
import scipy.io
import torch
from jaxtyping import Float64, UInt8
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies import BodyModel, BodyParameters, InputError
from commands._fit_cases import draw_people
from datamodules.backgrounds import made_background
from datamodules.convert.h36m_cameras import CAMERA_IDS, IMAGE_SIZE_PX
from datamodules.convert.h36m_tree import H36M17_FROM_32

THREEDPW_SIZE_PX: Final = (1920, 1080)
SURREAL_SIZE_PX: Final = (320, 240)
#: The two cameras of Human3.6M whose images are 1000 x 1002, so that one video does for both.
H36M_CAMERAS: Final = tuple(name for name in CAMERA_IDS if IMAGE_SIZE_PX[name] == (1000, 1002))
H36M_SUBJECTS: Final = (1, 5)
#: Frames of the video for each that is used.
H36M_EVERY: Final = 5
#: k1, k2, p1, p2, k3 of the size that the real lenses have.
H36M_DISTORTION: Final = (-0.2, 0.22, -0.002, -0.0006, -0.009)
CLIP_FRAMES: Final = 100
#: Standard deviation of the noise of a pixel; with it a photo of 1920 x 1080 at quality 90 has about 0.5 MB.
_NOISE: Final = 4.0
#: SURREAL's world to the camera of its mirrored images, and from the world of the MoCap.
_SURREAL_TO_CAMERA: Final = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
_MOCAP_TO_WORLD: Final = Rotation.from_euler("x", 90, degrees=True)


class People(NamedTuple):
    """Bodies of one shape in the camera frame."""

    pose: Float64[ndarray, "frames 72"]
    """Axis-angle in radians."""
    betas: Float64[ndarray, "10"]
    """Shape coefficients."""
    transl_m: Float64[ndarray, "frames 3"]
    """Translation."""
    joints_m: Float64[ndarray, "frames 24 3"]
    """Joints of the chain."""
    h36m17_m: Float64[ndarray, "frames 17 3"]
    """Joints of Human3.6M."""


@torch.no_grad()
def make_people(body: BodyModel, frames: int, seed: int, depth_m: float) -> People:
    """One person in as many postures, upright and about `depth_m` away."""
    drawn = draw_people(frames, seed)
    transl = drawn.transl + torch.tensor([0.0, 0.0, depth_m - 4.0])
    people = BodyParameters(drawn.rotations, drawn.betas[:1].expand(frames, -1), transl)
    mesh = body(people)
    rotvec = Rotation.from_matrix(people.rotations.double().numpy().reshape(-1, 3, 3)).as_rotvec()
    h36m17 = body.keypoints(mesh, "h36m17")
    positions = (part.double().numpy() for part in (people.betas[0], transl, mesh.joints, h36m17))
    return People(rotvec.reshape(frames, 72), *positions)


def moving_scene(seed: int, size_px: tuple[int, int], frames: int) -> Iterator[UInt8[ndarray, "height width 3"]]:
    """A made scene that passes by, with noise that is new in each frame."""
    rng = np.random.default_rng(seed)
    width, height = size_px
    scene = made_background(rng, width + 64, height)
    # A few fields of noise, turned over and about, are as good as one for each frame, and drawn in no time.
    noise = rng.normal(scale=_NOISE, size=(4, height, width, 3)).round().astype(np.int16)
    for frame in range(frames):
        left, flips = frame % 64, slice(None, None, -1 if frame & 4 else 1)
        shown = scene[:, left : left + width].astype(np.int16) + noise[frame % 4, flips]
        yield np.clip(shown, 0, 255).astype(np.uint8)


def write_video(path: Path, size_px: tuple[int, int], frames: int, seed: int) -> None:
    """An H.264 video of quality 23, as SURREAL's are.

    Raises:
        InputError: If PyAV is not installed, which only tests and benchmarks need.
    """
    try:
        import av
    except ImportError as error:
        raise InputError("the videos of this benchmark are made with PyAV: pip install 'snugfit[dev]'") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size_px, "yuv420p"
        for pixels in moving_scene(seed, size_px, frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode())


# 3DPW


def write_threedpw(root: Path, body: BodyModel, frames: int) -> None:
    """One sequence of the training split with one person."""
    people = make_people(body, frames, seed=21, depth_m=4.0)
    width, height = THREEDPW_SIZE_PX
    matrix = np.array([[1962.0, 0, width / 2], [0, 1962.0, height / 2], [0, 0, 1]])
    seen = people.joints_m[:, :18] @ matrix.T
    detected = np.concatenate([seen[..., :2] / seen[..., 2:], np.full((frames, 18, 1), 0.8)], axis=2)
    content = {
        "sequence": "bench_00",
        "genders": ["m"],
        "betas": [people.betas],
        "poses": [people.pose],
        "trans": [people.transl_m],
        "jointPositions": [people.joints_m.reshape(frames, 72)],
        "poses2d": [detected.transpose(0, 2, 1)],
        "cam_poses": np.tile(np.eye(4), (frames, 1, 1)),
        "campose_valid": [np.ones(frames, np.int64)],
        "cam_intrinsics": matrix,
    }
    _pickle(root / "sequenceFiles" / "train" / "bench_00.pkl", content)
    folder = root / "imageFiles" / "bench_00"
    folder.mkdir(parents=True)
    for frame, pixels in enumerate(moving_scene(22, THREEDPW_SIZE_PX, frames)):
        cv2.imwrite(str(folder / f"image_{frame:05d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


# SURREAL


def write_surreal(root: Path, body: BodyModel, frames: int) -> None:
    """Clips of up to 100 frames of the training split."""
    for number, first in enumerate(range(0, frames, CLIP_FRAMES)):
        count, name = min(CLIP_FRAMES, frames - first), f"01_01_c{number + 1:04d}"
        path = root / "cmu" / "train" / "run0" / "01_01" / name
        write_video(path.with_name(f"{name}.mp4"), SURREAL_SIZE_PX, count, seed=number)
        content = _surreal_info(make_people(body, count, seed=30 + number, depth_m=7.0), name)
        scipy.io.savemat(path.with_name(f"{name}_info.mat"), content, do_compression=True)


def _surreal_info(people: People, name: str) -> dict[str, ndarray]:
    """What an info file holds; the last axis counts frames."""
    frames, turn, camera_m = len(people.pose), 1.1, np.array([6.75, -0.98, -1.93])
    to_camera = Rotation.from_matrix(_SURREAL_TO_CAMERA)
    mocap = to_camera * _MOCAP_TO_WORLD * Rotation.from_rotvec((0, 0, turn))
    root = (mocap.inv() * Rotation.from_rotvec(people.pose[:, :3])).as_rotvec()
    width, height = SURREAL_SIZE_PX
    shown = people.joints_m[..., :2] / people.joints_m[..., 2:] * 600 + (width / 2, height / 2)
    stored = np.stack([width - shown[..., 0], shown[..., 1]], axis=-1).round()
    paths = np.array([f"nongrey_male_{number:04d}.jpg" for number in range(frames)], object)[None]
    numbers = {
        "gender": np.ones((frames, 1), np.uint8),
        "joints2D": stored.transpose(2, 1, 0).astype(np.float32),
        "joints3D": (people.joints_m @ _SURREAL_TO_CAMERA + camera_m).transpose(2, 1, 0).astype(np.float32),
        "pose": np.concatenate([root, people.pose[:, 3:]], axis=1).T.astype(np.float32),
        "shape": np.tile(people.betas[:, None], frames).astype(np.float32),
        "zrot": np.full((frames, 1), turn, np.float32),
        "light": np.zeros((9, frames), np.float32),
        "camLoc": camera_m[:, None].astype(np.float32),
    }
    if frames == 1:
        numbers |= {key: numbers[key][..., 0] for key in ("joints2D", "joints3D")}
    return {"sequence": np.array([name]), "cloth": paths, "bg": paths, **numbers}


# Human3.6M


def write_h36m(root: Path, body: BodyModel, frames: int) -> None:
    """The raw tree: as many used frames in all, of two subjects by two cameras, with MoSh's pickles.

    One video is linked to from all four places.
    """
    shots = [(subject, camera) for subject in H36M_SUBJECTS for camera in H36M_CAMERAS]
    used = -(-frames // len(shots))
    people = make_people(body, used, seed=41, depth_m=4.5)
    length = H36M_EVERY * (used - 1) + 1
    video = root / "video.mp4"
    write_video(video, IMAGE_SIZE_PX[H36M_CAMERAS[0]], length, seed=42)
    joints_mm = np.zeros((length, 32, 3))
    joints_mm[::H36M_EVERY, list(H36M17_FROM_32)] = 1e3 * people.h36m17_m
    # MoSh's root is stored upside down.
    root_rotvec = (Rotation.from_rotvec(people.pose[:, :3]) * Rotation.from_rotvec((-np.pi, 0, 0))).as_rotvec()
    mosh = {"new_poses": np.concatenate([root_rotvec, people.pose[:, 3:]], axis=1), "betas": people.betas}
    for subject, camera in shots:
        folder = root / f"S{subject}"
        write_cdf(folder / "MyPoseFeatures" / "D3_Positions_mono" / f"Walking.{camera}.cdf", joints_mm)
        link = folder / "Videos" / f"Walking.{camera}.mp4"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(video)
        _pickle(root / "mosh" / f"S{subject}" / f"Walking_cam{CAMERA_IDS.index(camera)}_aligned.pkl", mosh)
    (root / "camera-parameters.json").write_text(json.dumps(_h36m_cameras()))


def _h36m_cameras() -> Mapping[str, Mapping[str, object]]:
    """As karfly/human36m-camera-parameters has them, all alike."""
    inner = {
        "calibration_matrix": [[1145.0, 0, 512.5], [0, 1144.0, 508.0], [0, 0, 1]],
        "distortion": list(H36M_DISTORTION),
    }
    outer = {"R": np.eye(3).tolist(), "t": [[0.0], [0.0], [4500.0]]}
    subjects = {f"S{subject}": dict.fromkeys(CAMERA_IDS, outer) for subject in range(1, 12)}
    return {"intrinsics": dict.fromkeys(CAMERA_IDS, inner), "extrinsics": subjects}


def write_cdf(path: Path, joints_mm: Float64[ndarray, "frames 32 3"]) -> None:
    """A CDF file of version 3 with one variable, `Pose`, of one record (NASA, "CDF Internal Format Description")."""
    pose = joints_mm.reshape(-1, 96)
    body = bytearray(struct.pack(">II", 0xCDF30001, 0x0000FFFF))

    def record(kind: int, form: str, *numbers: int, tail: bytes = b"") -> int:
        packed, place = struct.pack(f">{form}", *numbers) + tail, len(body)
        body.extend(struct.pack(">qi", len(packed) + 12, kind) + packed)
        return place

    # Descriptor, globals, values, their index, and the variable, which the globals point to.
    descriptor_bytes, globals_place = 12 + 44 + 256, 8 + 12 + 44 + 256
    assert record(1, "q9i", globals_place, 3, 7, 6, 2, 0, 0, 0, 0, 0, tail=bytes(256)) + descriptor_bytes == len(body)
    record(2, "4q5iq3i", 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1)
    # Columns first: the frames run fastest.
    values = record(7, "", tail=pose.T.astype("<f8").tobytes())
    index = record(6, "q6i2q", 0, 2, 1, 0, -1, 0, -1, values, -1)
    name = b"Pose".ljust(256, b"\0")
    shape = struct.pack(">5i", 2, *pose.shape, -1, -1)
    variable = record(8, "qiiqq7iqi", 0, 45, 0, index, index, 1, 0, 0, -1, -1, 1, 0, -1, 0, tail=name + shape)
    struct.pack_into(">qq", body, globals_place + 12, variable, variable)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(body))


def _pickle(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))
