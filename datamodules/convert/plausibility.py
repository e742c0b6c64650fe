"""Whether imported estimates are about these bodies at all, and if not, what was most likely misread.

A regressor errs by some 50 to 150 mm. Beyond 400 mm something else is wrong: the axes, left and right, the order of the
numbers. Joints are compared with the roots aligned; a misread camera does not show in that, so the size and the place
in the image are compared too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from roma import rotvec_to_rotmat
from scipy.spatial.transform import Rotation
from torch import Tensor

from bodies import BodyModel
from bodies.joints import SMPL24, mirrored
from datamodules.convert.measured import measured_chain_m
from datamodules.convert.predictions import PlacedBodies
from datamodules.store import FrameStore

#: Mean error beyond which a file is refused.
ABSURD_ERROR_MM: Final = 400.0
#: A body may seem this much too large or too small; heights of people differ by far less.
ABSURD_SIZE_RATIO: Final = 2.0
#: Median offset of the pelvis, in sides of the person's box, beyond which a file is refused.
ABSURD_OFFSET: Final = 0.75
#: A change that leaves less than this part of the error is the cause.
_EXPLAINS: Final = 0.6
#: Rows that are worth looking at, evenly spaced.
COMPARED_ROWS: Final = 2000


@dataclass(frozen=True)
class Agreement:
    """How sample 0 of the imported rows compares with the ground truth."""

    error_mm: float
    """Mean distance of the 24 joints, roots aligned."""
    size_ratio: float
    """Median of the true size in the image by the imported one."""
    offset: float
    """Median offset of the pelvis in the image, in sides of the person's box."""
    cause: str | None
    """What is most likely wrong, if something is; the import fails then."""
    hint: str | None
    """What would lower the error much although it is not absurd."""


def compare(frames: FrameStore, rows: ndarray, bodies: PlacedBodies, body: BodyModel, crop_cameras: bool) -> Agreement:
    """Compares imported bodies with the true ones of the given rows, or, where there is none, with measured joints."""
    pose, betas, transl = (torch.tensor(values[:, 0]) for values in (bodies.pose, bodies.betas, bodies.transl_m))
    true_pose, true_betas, true_transl = (torch.tensor(frames.column(n)[rows]) for n in ("pose", "betas", "transl"))
    true_joints = _joints(body, true_pose, true_betas)
    bodiless = np.flatnonzero(~frames.has_body[rows])
    # In the frame of the other joints, which lack the translation.
    measured = torch.from_numpy(measured_chain_m(frames, rows[bodiless])) - true_transl[bodiless, None]
    true_joints[bodiless] = measured
    joints = _joints(body, pose, betas)
    error_mm = _error_mm(joints, true_joints)
    explanation = _explanation(body, pose, betas, true_joints, error_mm)
    cameras = frames.cameras()[torch.as_tensor(rows)]
    focal_px = torch.tensor(bodies.focal_px)
    pelvis, true_pelvis = joints[:, 0] + transl, true_joints[:, 0] + true_transl
    size_ratio = float(((pelvis[:, 2] / focal_px) / (true_pelvis[:, 2] / cameras.focal_px.mean(dim=1))).median())
    place = pelvis[:, :2] / pelvis[:, 2:] * focal_px[:, None] + cameras.center_px
    distance_px = torch.linalg.vector_norm(place - cameras.project(true_pelvis[:, None])[:, 0], dim=1)
    offset = float((distance_px / torch.tensor(frames.column("box_px")[rows, 2])).median())
    if not error_mm <= ABSURD_ERROR_MM:
        why = explanation or "no simple change of axes explains it: wrong images or persons, or another order of joints"
        return Agreement(error_mm, size_ratio, offset, f"mean joint error {error_mm:.0f} mm: {why}", None)
    cause = _camera_cause(size_ratio, offset, float(focal_px.median()), crop_cameras)
    hint = f"mean joint error {error_mm:.0f} mm, but {explanation}" if explanation else None
    return Agreement(error_mm, size_ratio, offset, cause, hint)


def _joints(body: BodyModel, pose: Tensor, betas: Tensor) -> Float[Tensor, "rows joints 3"]:
    rotations = rotvec_to_rotmat(pose.view(len(pose), -1, 3))
    return body.pose(body.shape_joints(betas[:, : body.num_betas]), rotations).joints


def _error_mm(joints: Tensor, true_joints: Tensor) -> float:
    difference = (joints - joints[:, :1]) - (true_joints - true_joints[:, :1])
    return float(torch.linalg.vector_norm(difference, dim=-1).nanmean()) * 1000


def _explanation(body: BodyModel, pose: Tensor, betas: Tensor, true_joints: Tensor, error_mm: float) -> str | None:
    """The change of the poses that lowers the error most, if it lowers it much."""
    changes: dict[str, Callable[[ndarray], ndarray]] = {
        "the axes differ: it would be less turned half about x (OpenGL's axes, not OpenCV's)": (
            lambda p: _root_turned(p, (np.pi, 0, 0))
        ),
        "the axes differ: it would be less turned by 90 degrees about x (z is up)": (
            lambda p: _root_turned(p, (np.pi / 2, 0, 0))
        ),
        "the axes differ: it would be less turned by -90 degrees about x (a world frame, not the camera's?)": (
            lambda p: _root_turned(p, (-np.pi / 2, 0, 0))
        ),
        "the axes differ: it would be less turned half about y (seen from behind)": (
            lambda p: _root_turned(p, (0, np.pi, 0))
        ),
        "the axes differ: it would be less turned half about z (image upside down)": (
            lambda p: _root_turned(p, (0, 0, np.pi))
        ),
        "left and right are swapped: it would be less mirrored": _mirrored,
        "the rotations are inverted: it would be less with transposed matrices (row or column vectors, or 6 numbers in "
        "the other order)": np.negative,
    }
    errors = {
        text: _error_mm(_joints(body, torch.tensor(change(pose.numpy()), dtype=pose.dtype), betas), true_joints)
        for text, change in changes.items()
    }
    best = min(errors, key=errors.__getitem__)
    return f"{best}, {errors[best]:.0f} mm" if errors[best] < _EXPLAINS * error_mm else None


def _root_turned(pose: ndarray, turn: tuple[float, float, float]) -> ndarray:
    root = (Rotation.from_rotvec(turn) * Rotation.from_rotvec(pose[:, :3])).as_rotvec()
    return np.concatenate([root, pose[:, 3:]], axis=1)


def _mirrored(pose: ndarray) -> ndarray:
    """The pose seen in a mirror: joints swap sides, y and z of each vector change sign (SPIN `constants.py`)."""
    swapped = pose.reshape(-1, 24, 3)[:, list(mirrored(SMPL24))] * np.array([1, -1, -1])
    result: ndarray = swapped.reshape(len(pose), 72)
    return result


def _camera_cause(size_ratio: float, offset: float, focal_px: float, crop_cameras: bool) -> str | None:
    if not 1 / ABSURD_SIZE_RATIO <= size_ratio <= ABSURD_SIZE_RATIO:
        text = f"the bodies are {size_ratio:.3g} times too far away for their focal length {focal_px:.0f} px: "
        crop_causes = (
            (200.0, "the box's side is given divided by 200 (SPIN's 'scale')"),
            (1 / 200.0, "the box's side is multiplied by 200 once too often"),
        )
        full_causes = (
            (1000.0, "the translations are in millimetres"),
            (0.001, "the translations are in metres divided by 1000"),
        )
        for factor, cause in crop_causes if crop_cameras else full_causes:
            if 1 / ABSURD_SIZE_RATIO < size_ratio / factor < ABSURD_SIZE_RATIO:
                return text + cause
        if crop_cameras:
            return text + "the box is not the one that was resized to the network's input"
        return text + f"the translations were made with a focal length of about {focal_px * size_ratio:.0f} px"
    if not offset <= ABSURD_OFFSET:
        return (
            f"the bodies are beside the persons by {offset:.2g} sides of their boxes: the box, the principal point "
            "or the translation belongs to another image (the crop instead of the full image, or a resized one)"
        )
    return None
