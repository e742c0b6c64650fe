"""Writes small sets in SURREAL's format by code that shares nothing with its converter."""

from collections.abc import Callable
from pathlib import Path

import body_oracle
import cv2
import numpy as np
import scipy.io
from scipy.spatial.transform import Rotation

#: The joint that the videos show as a white disc; it is the left wrist, so a left-right swap would move it.
MARKED = 20


def stored_px(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    """Where the stored image shows points of the world; it is a mirror image (FORMATS of the data set, measured)."""
    x, y, z = np.moveaxis(points, -1, 0)
    depth = camera[0] - x
    return np.stack([600 * (camera[2] - z) / depth + 160, 600 * (y - camera[1]) / depth + 120], axis=-1)


def axis_turn(axis: int, angle: float) -> np.ndarray:
    """A turn about x (0) or z (2), written out."""
    cos, sin = np.cos(angle), np.sin(angle)
    if axis == 0:
        return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


def write_clip(
    root: Path, clip: str, gender: str, frames: int, model: Callable[[str], dict] = body_oracle.model
) -> dict:
    """Writes video and info file of one clip, and returns what the info file holds and the joints really are."""
    rng = np.random.default_rng(frames)
    arrays, betas, turn = model(gender), rng.normal(size=10), 1.1
    camera = np.array([6.75, -0.98, -1.93])
    pose = rng.normal(scale=0.3, size=(frames, 72))
    # The MoCap is z up, SMPL y up.
    pose[:, :3] = [
        Rotation.from_matrix(axis_turn(2, 0.05 * k) @ axis_turn(0, np.pi / 2)).as_rotvec() for k in range(frames)
    ]
    vertices, joints = [], []
    for frame, numbers in enumerate(pose):
        world = axis_turn(0, np.pi / 2) @ axis_turn(2, turn) @ Rotation.from_rotvec(numbers[:3]).as_matrix()
        turned = np.concatenate([Rotation.from_matrix(world).as_rotvec(), numbers[3:]])
        transl = np.array([0.02 * frame, -0.8, -1.8]) - body_oracle.rest_joints(arrays, betas)[0]
        shown, chain = body_oracle.posed(arrays, turned, betas, transl)
        vertices.append(shown)
        joints.append(chain)
    joints = np.array(joints)
    joints_px = stored_px(joints, camera)
    texts = np.empty((1, frames), object)
    texts[0, :] = [f"nongrey_{gender}_0346.jpg"] * frames
    content = {
        "sequence": np.array([Path(clip).name]),
        "clipNo": np.uint8([[1]]),
        "source": np.array(["cmu"]),
        "cloth": texts,
        "bg": texts,
        "gender": np.full((frames, 1), {"female": 0, "male": 1}[gender], np.uint8),
        "light": np.zeros((9, frames), np.float32),
        "stride": np.uint8([[50]]),
        "camDist": np.float32([[7.69]]),
        "camLoc": camera[:, None].astype(np.float32),
        "joints2D": np.round(joints_px).transpose(2, 1, 0).astype(np.float32),
        "joints3D": joints.transpose(2, 1, 0).astype(np.float32),
        "pose": pose.T.astype(np.float32),
        "shape": np.tile(betas[:, None], frames).astype(np.float32),
        "zrot": np.full((frames, 1), turn, np.float32),
    }
    if frames == 1:
        content |= {key: content[key][..., 0] for key in ("joints2D", "joints3D")}
    write_info(root, clip, content)
    write_video(root / f"{clip}.mp4", [draw(position) for position in joints_px[:, MARKED]])
    return {**content, "vertices": np.array(vertices), "true_joints": joints, "camera": camera}


def write_info(root: Path, clip: str, content: dict) -> None:
    path = root / f"{clip}_info.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, content, do_compression=True)


def draw(position_px: np.ndarray) -> np.ndarray:
    """A frame of the stored video: a white disc, which OpenCV places by the index of a pixel's centre."""
    image = np.full((240, 320, 3), 30, np.uint8)
    x, y = (round(float(part - 0.5) * 16) for part in position_px)
    return cv2.circle(image, (x, y), 5 * 16, (255, 255, 255), -1, cv2.LINE_AA, shift=4)


def write_video(path: Path, images: list[np.ndarray], size: tuple[int, int] = (320, 240)) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, size)
    assert writer.isOpened()
    for image in images:
        writer.write(cv2.resize(image, size))
    writer.release()
