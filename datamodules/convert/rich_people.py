"""The people of a RICH recording: SMPL fitted to their SMPL-X bodies once, and seen by each of the cameras."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64
from numpy import ndarray
from torch import Tensor

from bodies.body_model import BodyParameters
from bodies.camera import NEAR_PLANE_M, transform_to_camera
from bodies.errors import InputError
from bodies.model_files import Gender
from datamodules.convert.rich_files import Calibration, Recording, read_body
from datamodules.convert.smplx_model import SmplxParameters
from datamodules.convert.smplx_to_smpl import SmplxToSmpl
from datamodules.store import FrameRow

DATASET: Final = "rich"
#: Width and height for which cameras that do not stand upright are calibrated.
FULL_SIZE_PX: Final = (4112, 3008)
#: Side of the square box over the larger extent of the joints, as far as they are in the image; as for SURREAL.
BOX_MARGIN: Final = 1.3
#: Mean error of the vertices beyond which SMPL is held not to fit: more than fingers and faces explain.
MAX_FIT_ERROR_M: Final = 0.03
#: How far the principal point may lie from the middle of the image, over its size; a turned image is off by 0.18.
_MAX_OFF_CENTER: Final = 0.12

#: By frame and person.
Key = tuple[int, int]


@dataclass(frozen=True)
class Fitted:
    """People of some frames as SMPL, in the frame of all cameras."""

    keys: tuple[Key, ...]
    """Frame and person of each body."""
    genders: tuple[Gender, ...]
    """Of each body."""
    parameters: BodyParameters
    """SMPL's."""
    rest_pelvis: Float[Tensor, "bodies 3"]
    """What SMPL's root turns about."""
    joints: Float64[ndarray, "bodies 24 3"]
    """Posed joints in metres."""
    errors_m: Float64[ndarray, " bodies"]
    """Mean distance of SMPL's vertices to the mesh of SMPL-X."""


class Bodies:
    """The bodies of some frames of a recording, fitted when they are first asked for.

    Args:
        recording: The recording.
        frames: Which frames.
        shown: Frames of which there is an image; the bodies of others are not read.
        converters: Gender and conversion of each person.
    """

    def __init__(
        self,
        recording: Recording,
        frames: Sequence[int],
        shown: set[int],
        converters: Mapping[int, tuple[Gender, SmplxToSmpl]],
    ) -> None:
        self.recording, self.frames = recording, tuple(frames)
        self._shown, self._converters = shown, converters
        self._lock = threading.Lock()
        self._result: tuple[Fitted | None, dict[Key, str]] | None = None

    def fitted(self) -> tuple[Fitted | None, dict[Key, str]]:
        """The bodies, None if there are none, and why others could not be used. Done once, whichever thread asks."""
        with self._lock:
            if self._result is None:
                self._result = self._fit()
            return self._result

    def errors_m(self) -> Float64[ndarray, " bodies"]:
        """Errors of the bodies that were fitted; none if nobody has asked for them."""
        fitted = self._result[0] if self._result else None
        return fitted.errors_m[np.isfinite(fitted.errors_m)] if fitted else np.zeros(0)

    def _fit(self) -> tuple[Fitted | None, dict[Key, str]]:
        read: dict[Gender, dict[Key, SmplxParameters]] = {}
        problems: dict[Key, str] = {}
        for key in ((frame, subject) for frame in self.frames for subject in self.recording.subjects):
            body = self._read(*key)
            if isinstance(body, str):
                problems[key] = body
            else:
                read.setdefault(self._converters[key[1]][0], {})[key] = body
        groups = [self._fit_group(gender, bodies) for gender, bodies in read.items()]
        return (_joined(groups) if groups else None), problems

    def _read(self, frame: int, subject: int) -> SmplxParameters | str:
        """A body, or why it cannot be used: one of tens of thousands of files must not end the conversion."""
        path = self.recording.body_file(frame, subject)
        if frame not in self._shown:
            return "there is no image file"
        if not path.is_file():
            return "there is no body file"
        try:
            body = read_body(path)
        except InputError as error:
            return f"its body file is damaged: {str(error).removeprefix(f'{path}: ')}"
        return body if body.sound() else "a number is not finite or out of range"

    def _fit_group(self, gender: Gender, bodies: Mapping[Key, SmplxParameters]) -> Fitted:
        converter = next(converter for other, converter in self._converters.values() if other == gender)
        fits = converter.convert(SmplxParameters.stack(list(bodies.values())))
        pelvis = converter.smpl.shape_joints(fits.parameters.betas)[:, 0]
        joints, errors_m = fits.joints.astype(np.float64), fits.error_m.astype(np.float64)
        return Fitted(tuple(bodies), (gender,) * len(bodies), fits.parameters, pelvis, joints, errors_m)


def _joined(groups: Sequence[Fitted]) -> Fitted:
    parts = [group.parameters for group in groups]
    return Fitted(
        tuple(key for group in groups for key in group.keys),
        tuple(gender for group in groups for gender in group.genders),
        BodyParameters(
            torch.cat([part.rotations for part in parts]),
            torch.cat([part.betas for part in parts]),
            torch.cat([part.transl for part in parts]),
        ),
        torch.cat([group.rest_pelvis for group in groups]),
        np.concatenate([group.joints for group in groups]),
        np.concatenate([group.errors_m for group in groups]),
    )


@dataclass(frozen=True)
class View:
    """What one camera sees of some frames."""

    size_px: tuple[int, int]
    """Width and height of its images."""
    rows: Mapping[Key, FrameRow | str]
    """For each frame and person the row, or why there is none."""
    lens_px: float
    """How far lens distortion, which is left out, would move a joint inside the image, at most."""


def see(bodies: Bodies, calibration: Calibration, camera: int, size_px: tuple[int, int]) -> View:
    """The rows of a camera.

    Args:
        bodies: Who is there.
        calibration: The camera, for the full size of its images.
        camera: Its number.
        size_px: Size of its images as they are.

    Raises:
        InputError: If images of that size are not of this camera.
    """
    fitted, problems = bodies.fitted()
    rows: dict[Key, FrameRow | str] = dict(problems)
    if fitted is None:
        return View(size_px, rows, 0.0)
    scale = _scale(calibration, size_px)
    focal_px, center_px = calibration.focal_px * scale, calibration.center_px * scale
    pose, transl = _in_camera(fitted, calibration.world_to_camera)
    joints_cam = fitted.joints @ calibration.world_to_camera[:3, :3].T + calibration.world_to_camera[:3, 3]
    boxes, inside = _boxes(joints_cam, focal_px, center_px, size_px)
    sequence = f"{bodies.recording.name}/cam_{camera:02d}"
    for place, (frame, subject) in enumerate(fitted.keys):
        if not fitted.errors_m[place] <= MAX_FIT_ERROR_M:  # NaN compares false
            rows[frame, subject] = "SMPL does not fit its SMPL-X body"
        elif not inside[place].any():
            rows[frame, subject] = "the camera does not see the person"
        else:
            rows[frame, subject] = FrameRow(
                row_id=f"{DATASET}/{sequence}/{frame:05d}/{subject:03d}",
                image=-1,
                # People wear other clothes in other recordings.
                subject=f"{bodies.recording.name}/{subject:03d}",
                sequence=sequence,
                frame=frame,
                gender=fitted.genders[place],
                focal_px=focal_px,
                center_px=center_px,
                box_px=boxes[place],
                pose=pose[place],
                betas=fitted.parameters.betas[place].numpy(),
                transl=transl[place],
            )
    return View(size_px, rows, _lens_px(calibration, joints_cam[inside], scale))


def _in_camera(
    fitted: Fitted, world_to_camera: Float64[ndarray, "4 4"]
) -> tuple[Float32[ndarray, "bodies 72"], Float32[ndarray, "bodies 3"]]:
    """Pose and translation as the camera sees them."""
    parameters = fitted.parameters
    root, transl = transform_to_camera(
        torch.tensor(world_to_camera, dtype=torch.float32).expand(len(parameters), 4, 4),
        parameters.rotations[:, 0],
        fitted.rest_pelvis,
        parameters.transl,
    )
    rotations = torch.cat([root[:, None], parameters.rotations[:, 1:]], dim=1)
    return BodyParameters(rotations, parameters.betas, transl).pose.numpy(), transl.numpy()


def _boxes(
    joints_cam: Float64[ndarray, "bodies 24 3"],
    focal_px: Float64[ndarray, "2"],
    center_px: Float64[ndarray, "2"],
    size_px: tuple[int, int],
) -> tuple[Float64[ndarray, "bodies 3"], Bool[ndarray, "bodies 24"]]:
    """Square boxes about what the image shows of the joints, and which of them it shows."""
    depth = joints_cam[..., 2:]
    joints_px = joints_cam[..., :2] / np.maximum(depth, NEAR_PLANE_M) * focal_px + center_px
    shown = np.clip(joints_px, 0, size_px)
    # Of a person with a joint behind the camera the image shows nothing that could be compared.
    inside = np.asarray((shown == joints_px).all(axis=2)) & (depth.min(axis=1) > NEAR_PLANE_M)
    low, high = shown.min(axis=1), shown.max(axis=1)
    return np.column_stack([(low + high) / 2, (high - low).max(axis=1) * BOX_MARGIN]), inside


def _scale(calibration: Calibration, size_px: tuple[int, int]) -> Float64[ndarray, "2"]:
    """Pixels of the image per pixel of the calibration, along x and y.

    Raises:
        InputError: If the image is not of the calibration's shape, or the principal point is not near its middle.
    """
    x, y = calibration.center_px
    full = np.array(FULL_SIZE_PX if x >= y else FULL_SIZE_PX[::-1], np.float64)
    scale = np.array(size_px) / full
    # A scaled side is rounded to whole pixels.
    fits = np.abs(scale[::-1] * full - size_px).max() <= 1
    if not fits or np.abs(calibration.center_px / full - 0.5).max() > _MAX_OFF_CENTER:
        raise InputError(
            f"{calibration.path}: images of {size_px[0]} x {size_px[1]} do not fit the principal point ({x:.0f}, "
            f"{y:.0f}) of a camera of {full[0]:.0f} x {full[1]:.0f} px; were the images turned or cut?"
        )
    return scale


def _lens_px(calibration: Calibration, joints_cam: Float64[ndarray, "joints 3"], scale: Float64[ndarray, "2"]) -> float:
    if not len(joints_cam) or not calibration.distortion.any():
        return 0.0
    (fx, fy), (cx, cy) = calibration.focal_px, calibration.center_px
    matrix, still = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), np.zeros(3)
    distorted, plain = (
        cv2.projectPoints(joints_cam, still, still, matrix, coefficients)[0].reshape(-1, 2) * scale
        for coefficients in (calibration.distortion, None)
    )
    return float(np.linalg.norm(distorted - plain, axis=1).max())
