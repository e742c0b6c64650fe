"""Writes small sets in 3DPW's format by code that shares nothing with its converter."""

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import body_oracle
import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from bodies.joints import SMPL24

COCO18 = (
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
    "right_ear", "left_ear",
)  # fmt: skip
PORTRAIT, LANDSCAPE = (1080, 1920), (1920, 1080)


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2's cPickle writes with protocol 2: every text and every array's bytes as a byte string."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_text(self, text):
        data = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_text


def write_python2(path: Path, content: object) -> None:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue().replace(b"numpy._core.", b"numpy.core."))


@dataclass(frozen=True)
class Truth:
    """Where everything really is: by (sequence, frame, person)."""

    vertices_px: dict
    root_and_transl: dict


def camera_at(frame: int) -> np.ndarray:
    """World to camera: y up in the world, y down in the camera; the camera turns and moves with every frame."""
    matrix = np.eye(4)
    if frame:
        matrix[:3, :3] = Rotation.from_euler("xyz", [165 + 3 * frame, 20 * frame, -4 * frame], degrees=True).as_matrix()
        matrix[:3, 3] = (0.4 * frame, -0.3, 0.8)
    return matrix


def upright(rng: np.random.Generator, frames: int) -> np.ndarray:
    """People on their feet, y up, who face anywhere."""
    poses = rng.normal(scale=0.2, size=(frames, 72))
    poses[:, :3] = Rotation.from_euler("y", rng.uniform(-3, 3, (frames, 1))).as_rotvec()
    return poses


def seen_keypoints(joints_px: np.ndarray) -> np.ndarray:
    """(3, 18): the joints that COCO-18 has, with eyes and ears undetected."""
    chain = ["head" if name == "nose" else name for name in COCO18[:14]]
    return np.concatenate(
        [np.stack([*joints_px[[SMPL24.index(name) for name in chain]].T, np.full(14, 0.8)]), np.zeros((3, 4))], axis=1
    )


def write_sequence(
    root: Path,
    name: str,
    split: str,
    genders: str,
    frames: int,
    size: tuple,
    truth: Truth,
    model: Callable[[str], dict] = body_oracle.model,
    lifelike: bool = False,
) -> dict:
    """Writes images and pickle of a sequence, and returns what the pickle holds.

    Args:
        root: The folder 3DPW.
        name: Of the sequence.
        split: Which part.
        genders: A letter for each person.
        frames: How many.
        size: Width and height of the images.
        truth: Takes where everything really is.
        model: Arrays of the body of a gender.
        lifelike: People stand, where the camera sees them upright, detections are where they are, and images are not
            blank; otherwise poses and detections are numbers that no mistake leaves as they are.
    """
    rng = np.random.default_rng(len(name))
    size_px = np.array(size)
    matrix = np.array([[1962.0, 0, size_px[0] / 2 + 3], [0, 1969.0, size_px[1] / 2 - 5], [0, 0, 1]])
    cameras = np.stack([camera_at(0 if lifelike else frame) for frame in range(frames)])
    if lifelike:
        cameras[:, :3, :3] = Rotation.from_euler("x", 180, degrees=True).as_matrix()
    keys = ("betas", "poses", "trans", "poses_60Hz", "trans_60Hz", "jointPositions", "poses2d", "campose_valid")
    content = {key: [] for key in (*keys, "betas_clothed", "v_template_clothed", "texture_maps")}
    for person, letter in enumerate(genders):
        arrays = model({"m": "male", "f": "female"}[letter])
        betas = rng.normal(size=10 if person == 0 else 300)
        poses = upright(rng, frames) if lifelike else rng.normal(scale=0.4, size=(frames, 72))
        rest_pelvis = body_oracle.rest_joints(arrays, betas[:10])[0]
        joint_positions, detections, trans = [], [], []
        for frame, camera in enumerate(cameras):
            pelvis_cam = np.array([(1.2 if lifelike else 0.6) * person - 0.2, 0.1, 5 + 0.3 * frame])
            trans.append(camera[:3, :3].T @ (pelvis_cam - camera[:3, 3]) - rest_pelvis)
            vertices, joints = body_oracle.posed(arrays, poses[frame], betas[:10], trans[-1])
            seen = (vertices @ camera[:3, :3].T + camera[:3, 3]) @ matrix.T
            truth.vertices_px[name, frame, person] = seen[:, :2] / seen[:, 2:]
            turned = camera[:3, :3] @ Rotation.from_rotvec(poses[frame, :3]).as_matrix()
            truth.root_and_transl[name, frame, person] = turned, pelvis_cam - rest_pelvis
            joint_positions.append(joints.ravel())
            keypoints = np.stack([300 + 20 * np.arange(18), 200.5 + 7 * frame + np.arange(18) ** 2, np.full(18, 0.75)])
            keypoints[:, 4] = 0
            joints_cam = (joints @ camera[:3, :3].T + camera[:3, 3]) @ matrix.T
            detections.append(seen_keypoints(joints_cam[:, :2] / joints_cam[:, 2:]) if lifelike else keypoints)
        content["betas"].append(betas)
        content["poses"].append(poses)
        content["trans"].append(np.array(trans))
        content["poses_60Hz"].append(rng.normal(size=(2 * frames + 1, 72)))
        content["trans_60Hz"].append(rng.normal(size=(2 * frames + 1, 3)))
        content["jointPositions"].append(np.array(joint_positions))
        content["poses2d"].append(np.array(detections))
        content["campose_valid"].append(np.ones(frames, np.int64))
    content |= {
        "sequence": name,
        "genders": list(genders),
        "cam_poses": cameras,
        "cam_intrinsics": matrix,
        "img_frame_ids": 2 * np.arange(frames) + 1,
    }
    write_python2(root / "sequenceFiles" / split / f"{name}.pkl", content)
    folder = root / "imageFiles" / name
    folder.mkdir(parents=True)
    for frame in range(frames):
        image = np.full((size[1], size[0], 3), 20 * frame, np.uint8)
        if lifelike:
            image = cv2.resize(rng.integers(0, 255, (9, 16, 3), dtype=np.uint8), size, interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"image_{frame:05d}.jpg"), image)
    return content
