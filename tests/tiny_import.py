"""A frames file of known bodies and what a perfect regressor would write about them, by code of its own."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from bodies import BodyModel, BodyParameters, load_body_model
from datamodules.convert.importing import ImportReport, import_predictions
from datamodules.convert.predictions import FocalChoice, Predictions
from datamodules.store import EstimateStore, FrameRow, FrameStore, FrameWriter, StoredImage

WIDTH, HEIGHT, FOCAL_PX = 640, 480, 600.0
CENTER_PX = np.array([310.0, 250.0])
#: Image of each row; images 0 and 1 show two persons.
IMAGE_OF_ROW = (0, 0, 1, 1, 2, 3, 4)
ROWS = len(IMAGE_OF_ROW)
IMAGE_NAMES = (
    "imageFiles/walk_00/image_00000.jpg",
    "imageFiles/walk_00/image_00001.jpg",
    "imageFiles/walk_00/image_00002.jpg",
    "imageFiles/run_01/image_00000.jpg",
    "imageFiles/run_01/image_00001.jpg",
)
SEQUENCES = ("walk_00", "walk_00", "walk_00", "run_01", "run_01")


@dataclass(frozen=True)
class Truth:
    """The bodies, and boxes about them."""

    pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    box_px: np.ndarray

    @property
    def rotations(self) -> np.ndarray:
        """(N, 24, 3, 3)."""
        return Rotation.from_rotvec(self.pose.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)

    @property
    def names(self) -> np.ndarray:
        """Image name of each row."""
        return np.array([IMAGE_NAMES[image] for image in IMAGE_OF_ROW])

    def crop_camera(self, box_px: np.ndarray | None = None) -> np.ndarray:
        """(N, 3) s, tx, ty for which the crop's weak perspective agrees with the true camera at the body's origin."""
        box = self.box_px if box_px is None else box_px
        x, y, z = self.transl.T
        s = 2 * FOCAL_PX / (box[:, 2] * z)
        u, v = FOCAL_PX * x / z + CENTER_PX[0], FOCAL_PX * y / z + CENTER_PX[1]
        # In the crop, [-1, 1] wide, the origin lies at s t.
        half = box[:, 2] / 2
        return np.stack([s, (u - box[:, 0]) / half / s, (v - box[:, 1]) / half / s], axis=1)


def body() -> BodyModel:
    return load_body_model("standin-tiny")


def truth(seed: int = 0) -> Truth:
    """Upright people with arms and legs anywhere, left and right in their image."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(scale=0.35, size=(ROWS, 72))
    upright = Rotation.from_euler("x", np.pi)  # SMPL's y is up, the camera's is down
    heading = Rotation.from_euler("y", rng.uniform(-1, 1, (ROWS, 1)))
    lean = Rotation.from_euler("z", np.full((ROWS, 1), 0.5))
    pose[:, :3] = (upright * lean * heading).as_rotvec()
    sideways = np.array([-1.0, 0.9, -0.8, 1.0, 0.1, -0.2, 0.3])
    transl = np.stack([sideways, rng.normal(0, 0.1, ROWS), rng.uniform(4, 5, ROWS)], axis=1)
    betas = rng.normal(size=(ROWS, 10))
    position = project(vertices(pose, betas, transl), FOCAL_PX)
    low, high = position.min(axis=1), position.max(axis=1)
    box = np.concatenate([(low + high) / 2, 1.2 * (high - low).max(axis=1, keepdims=True)], axis=1)
    return Truth(*(array.astype(np.float32) for array in (pose, betas, transl, box)))


def vertices(pose: np.ndarray, betas: np.ndarray, transl: np.ndarray) -> np.ndarray:
    import torch

    parts = (torch.tensor(np.asarray(part), dtype=torch.float32) for part in (pose, betas, transl))
    return body()(BodyParameters.from_axis_angle(*parts)).vertices.numpy()


def project(points: np.ndarray, focal_px: float | np.ndarray) -> np.ndarray:
    focal = np.broadcast_to(focal_px, len(points))[:, None, None]
    return points[..., :2] / points[..., 2:] * focal + CENTER_PX


def write_frames(path: Path, true: Truth) -> FrameStore:
    jpeg = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with FrameWriter(path, dataset="tiny", split="test", body_model="standin-tiny") as writer:
        for row, image in enumerate(IMAGE_OF_ROW):
            if row == 0 or IMAGE_OF_ROW[row - 1] != image:
                number = writer.add_image(StoredImage(IMAGE_NAMES[image], jpeg, (WIDTH, HEIGHT)))
            sequence = SEQUENCES[image]
            writer.add_row(
                FrameRow(
                    row_id=f"tiny/{sequence}/{image}/{row}",
                    image=number,
                    subject="someone",
                    sequence=sequence,
                    frame=image if sequence == "walk_00" else image - 3,
                    gender="neutral",
                    focal_px=np.full(2, FOCAL_PX, np.float32),
                    center_px=CENTER_PX.astype(np.float32),
                    box_px=true.box_px[row],
                    pose=true.pose[row],
                    betas=true.betas[row],
                    transl=true.transl[row],
                )
            )
    return FrameStore(path)


def run_import(
    tmp_path: Path, predictions: Predictions, frames: FrameStore, focal: FocalChoice = "frames", dry_run: bool = False
) -> ImportReport:
    return import_predictions(
        tmp_path / "dump", predictions, frames, tmp_path / "out.h5", "some", body=body(), focal=focal, dry_run=dry_run
    )


def assert_is_truth(
    tmp_path: Path, frames: FrameStore, true: Truth, rows: list[int] | None = None, sample: int = 0
) -> None:
    """Parameters to 1e-4 and every vertex within 0.5 px, whichever way the rotations are written."""
    store = EstimateStore(tmp_path / "out.h5", frames)
    rows = list(range(ROWS)) if rows is None else rows
    assert np.flatnonzero(store.valid).tolist() == rows
    got = [store.read(row, sample) for row in rows]
    pose, betas, transl = (np.stack([getattr(one, part) for one in got]) for part in ("pose", "betas", "transl"))
    turned = Rotation.from_rotvec(pose.reshape(-1, 3)).inv() * Rotation.from_rotvec(true.pose[rows].reshape(-1, 3))
    assert turned.magnitude().max() < 1e-4
    assert np.abs(betas - true.betas[rows]).max() < 1e-4
    assert np.abs(transl - true.transl[rows]).max() < 1e-4
    position_px = project(vertices(pose, betas, transl), np.array([one.focal_px for one in got]))
    true_px = project(vertices(true.pose[rows], true.betas[rows], true.transl[rows]), FOCAL_PX)
    assert np.abs(position_px - true_px).max() < 0.5
