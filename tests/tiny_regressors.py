"""What PARE, ProHMR, HMR+, OpenPose and DensePose would write about the rows of a frames file, in their own formats."""

import json
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from bodies import BodyModel, BodyParameters
from bodies.joints import SMPL24
from datamodules.store import FrameStore, StoredFrame

#: BODY_25 by number, with the joint of SMPL's chain that is there.
BODY25 = {
    0: "head", 1: "neck", 2: "right_shoulder", 3: "right_elbow", 4: "right_wrist", 5: "left_shoulder", 6: "left_elbow",
    7: "left_wrist", 8: "pelvis", 9: "right_hip", 10: "right_knee", 11: "right_ankle", 12: "left_hip", 13: "left_knee",
    14: "left_ankle",
}  # fmt: skip


#: Pose, betas and translation of rows of which the frames file knows only joints, by image.
BODILESS: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}


def rows_of(frames: FrameStore) -> list[StoredFrame]:
    rows = [frames.read(index) for index in range(len(frames))]
    names = StoredFrame._fields[StoredFrame._fields.index("pose") :][:3]
    return [
        row if row.pose.any() else row._replace(**dict(zip(names, BODILESS[row.image_name], strict=True)))
        for row in rows
    ]


def noisy_rotations(row: StoredFrame, seed: int, scale: float) -> np.ndarray:
    """(24, 3, 3): the true rotations, each turned a little."""
    noise = np.random.default_rng((seed, row.row)).normal(scale=scale, size=(24, 3))
    return (Rotation.from_rotvec(row.pose.reshape(24, 3)) * Rotation.from_rotvec(noise)).as_matrix()


def crop_camera(row: StoredFrame) -> np.ndarray:
    """(s, tx, ty) by which the crop shows the body's origin where the full image shows it."""
    center, side, (x, y, z) = row.box_px[:2], row.box_px[2], row.transl
    focal = np.sqrt(row.camera.focal_px.prod())
    scale = 2 * focal / (side * z)
    place = np.array([x, y]) / z * focal + row.camera.center_px
    return np.array([scale, *((place - center) / (side / 2) / scale)])


def image_groups(frames: FrameStore) -> dict[str, list[StoredFrame]]:
    groups: dict[str, list[StoredFrame]] = {}
    for row in rows_of(frames):
        groups.setdefault(row.image_name, []).append(row)
    return groups


def write_pare(folder: Path, frames: FrameStore, scale: float = 0.12) -> None:
    """The image demo, run once per folder of images: `<folder of images>/pare_results/<stem>.pkl`."""
    for name, rows in image_groups(frames).items():
        boxes = np.array([row.box_px[[0, 1, 2, 2]] for row in rows])
        content = {
            "pred_pose": np.array([noisy_rotations(row, 1, scale) for row in rows], np.float32),
            "pred_shape": np.array([row.betas for row in rows]),
            "pred_cam": np.array([crop_camera(row) for row in rows], np.float32),
            "pred_cam_t": np.zeros((len(rows), 3), np.float32),
            "bboxes": boxes,
            "smpl_vertices": np.zeros((len(rows), 6890, 3), np.float32),
        }
        image = Path(name)
        stem = image.stem if image.suffix in (".jpg", ".png", ".jpeg") else image.name
        path = folder.joinpath(*image.parts[1:-1], "pare_results", f"{stem}.pkl")
        path.parent.mkdir(parents=True, exist_ok=True)
        joblib.dump(content, path)


def write_prohmr(path: Path, frames: FrameStore, samples: int = 4) -> None:
    """The dump of docs/importers.md: sample 0 the mode, the others drawn wider."""
    rows = rows_of(frames)
    rotations = [[noisy_rotations(row, k, 0.1 if k == 0 else 0.15) for k in range(samples)] for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        imgname=np.array([row.image_name for row in rows]),
        center=np.array([row.box_px[:2] for row in rows]),
        scale=np.array([row.box_px[2] for row in rows]),
        rotmats=np.array(rotations, np.float32),
        betas=np.array([[row.betas] * samples for row in rows]),
        pred_cam=np.array([[crop_camera(row)] * samples for row in rows], np.float32),
        log_prob=np.array([[300.0, *range(samples - 1)]] * len(rows)),
    )


def write_hmr_plus(path: Path, frames: FrameStore) -> None:
    """mmhuman3d's demo: corners of boxes that become the crops when they are enlarged by 1.25."""
    rows = rows_of(frames)
    pose = [Rotation.from_matrix(noisy_rotations(row, 9, 0.12)).as_rotvec() for row in rows]
    half = np.array([row.box_px[2] / 1.25 / 2 for row in rows])[:, None]
    center = np.array([row.box_px[:2] for row in rows])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        smpl={
            "body_pose": np.array(pose)[:, 1:],
            "global_orient": np.array(pose)[:, 0],
            "betas": np.array([row.betas for row in rows]),
        },
        pred_cams=np.array([crop_camera(row) for row in rows]),
        bboxes_xyxy=np.concatenate([center - half, center + half, np.ones_like(half)], axis=1),
        image_path=[row.image_name for row in rows],
        person_id=np.arange(len(rows)),
        frame_id=np.arange(len(rows)),
    )


def write_openpose(folder: Path, frames: FrameStore, body: Callable[[str], BodyModel]) -> None:
    """A file for each image, named after it, in the folder of its sequence."""
    for name, rows in image_groups(frames).items():
        people = []
        for row in rows:
            keypoints = np.zeros((25, 3))
            parts = (torch.tensor(part)[None] for part in (row.pose, row.betas, row.transl))
            joints = body(row.gender)(BodyParameters.from_axis_angle(*parts)).joints
            positions = row.camera.batched().project(joints)[0].numpy()
            for number, joint in BODY25.items():
                keypoints[number] = (*positions[SMPL24.index(joint)], 0.9)
            people.append({"person_id": [-1], "pose_keypoints_2d": keypoints.ravel().tolist()})
        image = Path(name)
        path = folder / image.parent.name / f"{image.stem}_keypoints.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": 1.3, "people": people}))
