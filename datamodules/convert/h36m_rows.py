"""From what a source of Human3.6M says of a recording to rows: bodies brought into the camera, and held against joints.

The joints were measured by motion capture, the bodies were fitted later by others; where both are there they must
agree, or the fit is left out. A fit without translation (MoSh in the camera's frame) is moved to where its joints are
nearest to the measured ones.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64, Shaped
from numpy import ndarray
from scipy.spatial.transform import Rotation

from bodies.body_model import BodyModel, BodyParameters
from bodies.camera import transform_to_camera
from bodies.joints import LSP14_FROM_H36M17
from datamodules.convert.h36m_cameras import Camera
from datamodules.convert.run import JobPlan, PlannedFrame
from datamodules.convert.summary import Skipped
from datamodules.store import FrameRow

DATASET: Final = "h36m"
#: Side of the square box over the larger extent of the projected joints, where the source has no boxes.
JOINT_BOX_MARGIN: Final = 1.2
#: How far a fit's own translation may move it from the measured joints; another unit or frame moves it by metres.
MAX_BESIDE_M: Final = 0.25
#: Bodies posed at a time.
_BATCH: Final = 256


@dataclass(frozen=True)
class Bodies:
    """SMPL parameters of the neutral model for the frames of a view."""

    pose: Float64[ndarray, "frames 72"]
    """Axis-angle in radians, root in the world or the camera."""
    betas: Float64[ndarray, "frames 10"]
    """Shape coefficients."""
    transl_m: Float64[ndarray, "frames 3"] | None
    """Translation, in the frame of the root; None if it is to be found from the joints."""
    in_world: bool
    """Whether root and translation are in the world."""
    lacking: Shaped[ndarray, " frames"]
    """Why a frame has no parameters; empty if it has."""
    max_error_m: float
    """Mean distance from the measured joints, the centres aligned, beyond which a fit is left out."""


@dataclass(frozen=True)
class View:
    """Frames of a recording by one camera, with all that is known of them."""

    sequence: str
    """Name of the recording and camera."""
    subject: str
    """S1 to S11."""
    camera: Camera
    """The camera of the stored images, without distortion."""
    frames: Int64[ndarray, " frames"]
    """Numbers at 50 Hz, from 0."""
    image_names: tuple[str, ...]
    """Name of each frame's image in the data set."""
    joints_m: Float64[ndarray, "frames 17 3"]
    """h36m17 as measured, in the camera frame."""
    box_px: Float64[ndarray, "frames 3"] | None
    """Boxes in the stored images, NaN where there is none; None if they are to be drawn about the joints."""
    bodies: Bodies
    """The fits."""


@dataclass(frozen=True)
class Placed:
    """Bodies in the camera frame."""

    pose: Float64[ndarray, "frames 72"]
    """Axis-angle."""
    transl_m: Float64[ndarray, "frames 3"]
    """Translation."""
    error_m: Float64[ndarray, " frames"]
    """Mean distance from the measured joints, the centres aligned."""
    beside_m: Float64[ndarray, " frames"]
    """Distance of the centres; zero if the translation was found from them."""


def no_bodies(frames: int, reason: str) -> Bodies:
    """What a recording without fits has."""
    zeros = np.zeros((frames, 72))
    return Bodies(zeros, zeros[:, :10], zeros[:, :3], False, np.full(frames, reason, object), 0.0)


def view_rows(view: View, body: BodyModel, joints_only: bool) -> JobPlan:
    """The rows of a view.

    Args:
        view: The frames.
        body: The neutral body model, with the regressor of h36m17.
        joints_only: Keep frames without a fit, as `convert_h36m` says.
    """
    measured = np.isfinite(view.joints_m).all(axis=(1, 2)) & (view.joints_m != 0).any(axis=(1, 2))
    box_px = joint_boxes_px(view) if view.box_px is None else view.box_px
    fitted = measured & (view.bodies.lacking == "")
    finite = np.isfinite(np.concatenate([view.bodies.pose, view.bodies.betas], axis=1)).all(axis=1)
    if view.bodies.transl_m is not None:
        finite &= np.isfinite(view.bodies.transl_m).all(axis=1)
    placed = place(view, fitted & finite, body)
    lacking = view.bodies.lacking.copy()
    lacking[fitted & (placed.error_m > view.bodies.max_error_m)] = "its SMPL fit is far from the measured joints"
    lacking[fitted & (placed.beside_m > MAX_BESIDE_M)] = "its SMPL fit is beside the measured joints"
    lacking[fitted & ~finite] = "a number of its SMPL fit is not finite"
    problem = np.where(joints_only, "", lacking).astype(object)
    problem[~np.isfinite(box_px).all(axis=1)] = "it has no box"
    problem[~measured] = "its measured joints are missing or not finite"
    rest_pelvis_m = body.shape_joints(torch.zeros(1, body.num_betas))[0, 0].double().numpy()
    planned, skipped = [], []
    for index, (frame, name) in enumerate(zip(view.frames.tolist(), view.image_names, strict=True)):
        row_id = f"{DATASET}/{view.sequence}/{frame:06d}/0"
        if problem[index]:
            skipped.append(Skipped(row_id, problem[index]))
            continue
        without = bool(lacking[index])
        row = FrameRow(
            row_id=row_id,
            image=-1,
            subject=view.subject,
            sequence=view.sequence,
            frame=frame,
            gender="neutral",
            focal_px=view.camera.focal_px,
            center_px=view.camera.center_px,
            box_px=box_px[index],
            pose=np.zeros(72) if without else placed.pose[index],
            betas=np.zeros(10) if without else view.bodies.betas[index],
            transl=view.joints_m[index, 0] - rest_pelvis_m if without else placed.transl_m[index],
            joints_m=np.column_stack([view.joints_m[index], np.ones(17)]),
        )
        planned.append(PlannedFrame(name, frame, (row,)))
    return JobPlan(tuple(planned), tuple(skipped))


def joint_boxes_px(view: View) -> Float64[ndarray, "frames 3"]:
    """Square boxes about where the camera sees the joints."""
    joints_px = view.camera.project(view.joints_m)
    low, high = joints_px.min(axis=1), joints_px.max(axis=1)
    return np.column_stack([(low + high) / 2, (high - low).max(axis=1) * JOINT_BOX_MARGIN])


def edge_boxes_px(
    camera: Camera, edges_px: Float64[ndarray, "frames 2 2"], margin: float
) -> Float64[ndarray, "frames 3"]:
    """Square boxes about rectangles of the camera's own images, where undistorted images have them.

    Args:
        camera: The camera, with the distortion that is taken out of the images.
        edges_px: Upper left and lower right corner.
        margin: Side of the box over the larger side of the rectangle.
    """
    edges_px = camera.undistort_px(edges_px.reshape(-1, 2)).reshape(-1, 2, 2)
    side_px = margin * (edges_px[:, 1] - edges_px[:, 0]).max(axis=1)
    return np.column_stack([edges_px.mean(axis=1), side_px])


def place(view: View, good: Bool[ndarray, " frames"], body: BodyModel) -> Placed:
    """Brings the fits of the good frames into the camera; the others get numbers that do no harm."""
    bodies = view.bodies
    pose, betas = np.where(good[:, None], bodies.pose, 0), np.where(good[:, None], bodies.betas, 0)
    transl = np.zeros((len(pose), 3)) if bodies.transl_m is None else np.where(good[:, None], bodies.transl_m, 0)
    if bodies.in_world:
        matrix = torch.tensor(view.camera.world_to_camera).expand(len(pose), 4, 4)
        root = torch.tensor(Rotation.from_rotvec(pose[:, :3]).as_matrix())
        pelvis = body.shape_joints(torch.tensor(betas, dtype=torch.float32))[:, 0].double()
        root, moved = transform_to_camera(matrix, root, pelvis, torch.tensor(transl))
        pose = np.concatenate([Rotation.from_matrix(root.numpy()).as_rotvec(), pose[:, 3:]], axis=1)
        transl = moved.numpy()
    error, beside = np.zeros(len(pose)), np.zeros(len(pose))
    chosen = np.flatnonzero(good)
    offset = view.joints_m[chosen] - body_joints_m(body, pose[chosen], betas[chosen])
    error[chosen] = np.linalg.norm(offset - offset.mean(axis=1, keepdims=True), axis=2).mean(axis=1)
    if bodies.transl_m is None:
        transl[chosen] = offset[:, list(LSP14_FROM_H36M17)].mean(axis=1)
    else:
        beside[chosen] = np.linalg.norm(offset.mean(axis=1) - transl[chosen], axis=1)
    return Placed(pose, transl, error, beside)


@torch.no_grad()
def body_joints_m(
    body: BodyModel, pose: Float64[ndarray, "frames 72"], betas: Float64[ndarray, "frames 10"]
) -> Float64[ndarray, "frames 17 3"]:
    """h36m17 of bodies without translation; only the vertices that its regressor uses are posed."""
    regressor = body.keypoint_regressor("h36m17")
    used = regressor[:, : body.num_vertices].any(dim=0).nonzero()[:, 0]
    columns = torch.cat([regressor[:, used], regressor[:, body.num_vertices :]], dim=1)
    parts = [np.zeros((0, 17, 3))]
    for first in range(0, len(pose), _BATCH):
        chosen = slice(first, first + _BATCH)
        angles, shape = (torch.tensor(numbers[chosen], dtype=torch.float32) for numbers in (pose, betas))
        mesh = body(BodyParameters.from_axis_angle(angles, shape, torch.zeros(len(angles), 3)), used)
        parts.append((columns @ torch.cat([mesh.vertices, mesh.joints], dim=1)).double().numpy())
    return np.concatenate(parts)
