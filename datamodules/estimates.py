"""Estimates of bodies in one .npz: what `snugfit refine` takes as a start and writes as its result.

For N people in the camera frame of one image (see `bodies.camera` for axes and pixels):

    poses | pose            (N, 72)          axis-angle in radians, root first
    rotations | rotmats     (N, 24, 3, 3)    instead of poses: rotation matrices
    betas | shape           (N, S) or (S,)   shape coefficients
    trans | transl          (N, 3)           translation in metres, added after the root turned about the rest pelvis
    focal_px | focal        () or (2,)       focal length in pixels, optional
    center_px               (2,)             principal point in pixels, optional (the image's middle)
    intrinsics | K          (3, 3)           instead of focal and centre

A single person may leave out the first axis. `poses`, `betas`, `trans` and `gender` are AMASS's names, so its readers
take our results; note that AMASS's world is z up while this is a camera frame.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bodies import BodyParameters, InputError, PinholeCamera
from bodies.errors import one_line
from bodies.safe_write import whole_file

#: R^T R may differ from the identity by this much in a float32 rotation that went through a file.
ORTHONORMAL_TOLERANCE = 1e-3
NAMES = {
    "pose": ("poses", "pose"),
    "rotations": ("rotations", "rotmats"),
    "betas": ("betas", "shape"),
    "transl": ("trans", "transl"),
    "focal": ("focal_px", "focal"),
    "center": ("center_px",),
    "intrinsics": ("intrinsics", "K"),
}


@dataclass(frozen=True)
class Estimate:
    """People in one image, with as much of its camera as is known."""

    parameters: BodyParameters
    """The bodies, in the camera frame."""
    focal_px: Float[Tensor, " 2"] | None
    """Focal lengths, if known."""
    center_px: Float[Tensor, " 2"] | None
    """Principal point, if known."""


def read_estimate(path: Path) -> Estimate:
    """Reads an estimate.

    Raises:
        InputError: If the file is no .npz, a part is missing or has the wrong shape, a number is not finite, a matrix
            is no rotation, or a focal length is not positive.
    """
    arrays = _read_arrays(path)
    betas, transl = _part(path, arrays, "betas"), _part(path, arrays, "transl")
    transl = _shaped(path, "transl", np.atleast_2d(transl), (None, 3))
    people = len(transl)
    betas = np.atleast_2d(betas)
    betas = np.broadcast_to(betas, (people, betas.shape[1])) if len(betas) == 1 else betas
    betas = _shaped(path, "betas", betas, (people, None))
    if _given(arrays, "rotations"):
        rotations = _part(path, arrays, "rotations")
        rotations = (
            _shaped(path, "rotations", rotations.reshape(-1, 24, 3, 3), (people, 24, 3, 3))
            if (rotations.size % 216 == 0)
            else _shaped(path, "rotations", rotations, (people, 24, 3, 3))
        )
        _check_rotations(path, rotations)
        parameters = BodyParameters(*(torch.from_numpy(a.copy()) for a in (rotations, betas, transl)))
    else:
        pose = _shaped(path, "poses", np.atleast_2d(_part(path, arrays, "pose")), (people, 72))
        parameters = BodyParameters.from_axis_angle(*(torch.from_numpy(a.copy()) for a in (pose, betas, transl)))
    focal, center = _camera(path, arrays)
    return Estimate(parameters, focal, center)


def write_estimate(path: Path, parameters: BodyParameters, camera: PinholeCamera, body_name: str) -> None:
    """Writes people of one image so that `read_estimate` and AMASS's readers take them."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            poses=parameters.pose.cpu().numpy(),
            betas=parameters.betas.cpu().numpy(),
            trans=parameters.transl.cpu().numpy(),
            gender=np.array("neutral"),
            focal_px=camera.focal_px[0].cpu().numpy(),
            center_px=camera.center_px[0].cpu().numpy(),
            image_size_px=camera.size_px[0].cpu().numpy(),
            body_model=np.array(body_name),
        )


def _read_arrays(path: Path) -> Mapping[str, np.ndarray]:
    known = [name for names in NAMES.values() for name in names]
    try:
        # Opened here, so that it is closed even where numpy fails half-way.
        with path.open("rb") as stream:
            if not is_zipfile(stream):
                raise InputError(f"{path}: is not an .npz of named arrays")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in known if name in file.files}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, BadZipFile, EOFError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not an .npz of plain arrays: {one_line(error)}") from error


def _given(arrays: Mapping[str, np.ndarray], part: str) -> str | None:
    return next((name for name in NAMES[part] if name in arrays), None)


def _part(path: Path, arrays: Mapping[str, np.ndarray], part: str) -> np.ndarray:
    name = _given(arrays, part)
    if name is None:
        instead = " (or rotations)" if part == "pose" else ""
        raise InputError(f"{path}: has no '{NAMES[part][0]}'{instead}; it needs poses, betas and trans")
    array = arrays[name]
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path}: '{name}' does not hold numbers")
    if not np.isfinite(array).all():
        raise InputError(f"{path}: '{name}' holds numbers that are not finite")
    return array.astype(np.float32)


def _shaped(path: Path, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or 0 in array.shape:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise InputError(f"{path}: '{name}' has shape {array.shape}, expected ({wanted})")
    return array


def _check_rotations(path: Path, rotations: np.ndarray) -> None:
    product = np.swapaxes(rotations, -1, -2) @ rotations
    if np.abs(product - np.eye(3)).max() > ORTHONORMAL_TOLERANCE or (np.linalg.det(rotations) < 0).any():
        raise InputError(f"{path}: 'rotations' holds matrices that are no rotations")


def _camera(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[Tensor | None, Tensor | None]:
    focal: np.ndarray | None = None
    center: np.ndarray | None = None
    if _given(arrays, "intrinsics"):
        matrix = _shaped(path, "intrinsics", _part(path, arrays, "intrinsics"), (3, 3))
        focal, center = matrix[[0, 1], [0, 1]], matrix[:2, 2]
    else:
        if _given(arrays, "focal"):
            focal = _part(path, arrays, "focal").reshape(-1)
            focal = _shaped(path, "focal_px", np.repeat(focal, 2) if len(focal) == 1 else focal, (2,))
        if _given(arrays, "center"):
            center = _shaped(path, "center_px", _part(path, arrays, "center"), (2,))
    if focal is not None and (focal <= 0).any():
        raise InputError(f"{path}: the focal length must be positive, got {focal.tolist()}")
    return (
        None if focal is None else torch.from_numpy(focal.copy()),
        None if center is None else torch.from_numpy(center.copy()),
    )
