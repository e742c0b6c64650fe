"""Any regressor's results through one .npz; docs/importers.md says how to write it from the well-known ones.

    image_name | imgname | image_path   (N,) text            what each row is about; or row_id, the frames file's own
    pose | poses                        (N,72)               axis-angle in radians, SMPL's 24 joints, root first
    rotations | rotmats                 (N,24,3,3)           instead of pose
    global_orient with body_pose        (N,3) with (N,69)    instead of pose; or (N,1,3,3) with (N,23,3,3)
    betas | shape                       (N,10)
  and a full-image camera
    transl | trans | global_t | cam_t   (N,3) metres         added after the root turned about the rest pelvis
    focal_px | focal | focal_l          () or (N,)           left out: the frames' own
    center_px                           (2,) or (N,2)        principal point; left out: the middle of the image
    intrinsics | K | cam_int            (3,3) or (N,3,3)     instead of focal and centre
  or a crop camera with its box
    camera | pred_cam                   (N,3)                scale s, tx, ty
    box_px                              (N,3)                centre x, y and side of the box that was resized
    center with scale                   (N,2) with (N,)      instead of box_px; scale = side or side / 200
  and, if the regressor saw a resized image,
    image_size_px                       (2,) or (N,2)        its width and height

Poses, betas, transl and camera may have an axis of S samples behind the first one. A full-image camera may come with a
box, which then only tells persons apart.
"""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from bodies.errors import InputError
from datamodules.convert.archives import read_npz
from datamodules.convert.fields import Fields, box_of, checked_pose, pose_of, samples_of
from datamodules.convert.predictions import CropCameras, FullCameras, Predictions

_IMAGE: Final = ("image_name", "imgname", "image_path")
_POSE: Final = ("pose", "poses")
_ROTATIONS: Final = ("rotations", "rotmats")
_BETAS: Final = ("betas", "shape")
_TRANSL: Final = ("transl", "trans", "global_t", "cam_t")
_FOCAL: Final = ("focal_px", "focal", "focal_l")
_INTRINSICS: Final = ("intrinsics", "K", "cam_int")
_CROP: Final = ("camera", "pred_cam")
_OTHERS: Final = ("row_id", "global_orient", "body_pose", "center_px", "box_px", "center", "scale", "image_size_px")
_KNOWN: Final = (*_IMAGE, *_POSE, *_ROTATIONS, *_BETAS, *_TRANSL, *_FOCAL, *_INTRINSICS, *_CROP, *_OTHERS)


def read_generic(path: Path) -> Predictions:
    """Reads the layout above.

    Raises:
        InputError: If a part is missing, ambiguous or of another shape; names the file and the part.
    """
    fields = Fields(str(path), read_npz(path, _KNOWN))
    name = fields.need("row_id", *_IMAGE)
    names = fields.texts(name)
    if not names:
        raise InputError(f"{path}: holds no rows")
    pose = _pose(fields, len(names))
    samples = pose.shape[1]
    betas = samples_of(fields, fields.need(*_BETAS), len(names), samples, 10)
    return Predictions(
        names,
        name == "row_id",
        pose,
        betas,
        _camera(fields, len(names), samples),
        box_of(fields, len(names)),
        _image_size(fields, len(names)),
    )


def _image_size(fields: Fields, rows: int) -> Float32[ndarray, "rows 2"] | None:
    if fields.name("image_size_px") is None:
        return None
    size_px = _per_row(fields, "image_size_px", rows, (2,))
    if not (size_px > 0).all():
        raise InputError(f"{fields.where}: an 'image_size_px' is not positive")
    return size_px


def _pose(fields: Fields, rows: int) -> Float32[ndarray, "rows samples 72"]:
    name = fields.name(*_ROTATIONS, *_POSE)
    if name is not None:
        return pose_of(fields, name, rows)
    if fields.name("global_orient") is None or fields.name("body_pose") is None:
        raise InputError(f"{fields.where}: has no 'pose', no 'rotations', and no 'global_orient' with 'body_pose'")
    return split_pose(fields, rows)


def split_pose(fields: Fields, rows: int) -> Float32[ndarray, "rows samples 72"]:
    """The pose from `global_orient` and `body_pose`, each as matrices or as axis-angle.

    Raises:
        InputError: If their shapes are others; SMPL-X's 21 body joints are named as such.
    """
    body = np.asarray(fields.arrays["body_pose"])
    if body.shape[1:] in ((63,), (21, 3), (21, 3, 3)):
        raise InputError(f"{fields.where}: 'body_pose' has SMPL-X's 21 joints; convert the bodies to SMPL first")
    if body.ndim >= 4:
        body = fields.numbers("body_pose", (rows, 23, 3, 3), (rows, None, 23, 3, 3)).reshape(rows, -1, 23, 3, 3)
        root = fields.numbers("global_orient", (rows, 3, 3), (rows, 1, 3, 3), (rows, None, 1, 3, 3))
        root = _with_samples(fields, root.reshape(rows, -1, 1, 3, 3), body)
        return checked_pose(fields, "body_pose", np.concatenate([root, body], axis=2))
    body = fields.numbers("body_pose", (rows, 69), (rows, None, 69), (rows, 23, 3)).reshape(rows, -1, 69)
    root = fields.numbers("global_orient", (rows, 3), (rows, None, 3)).reshape(rows, -1, 3)
    return np.concatenate([_with_samples(fields, root, body), body], axis=2)


def _with_samples(fields: Fields, root: ndarray, body: ndarray) -> ndarray:
    if root.shape[1] not in (1, body.shape[1]):
        raise InputError(f"{fields.where}: {root.shape[1]} samples of 'global_orient', {body.shape[1]} of 'body_pose'")
    return np.broadcast_to(root, (*body.shape[:2], *root.shape[2:]))


def _camera(fields: Fields, rows: int, samples: int) -> CropCameras | FullCameras:
    transl, crop = fields.name(*_TRANSL), fields.name(*_CROP)
    if transl is None and crop is None:
        raise InputError(f"{fields.where}: has neither a full-image 'transl' nor a crop 'camera' with its box")
    if transl is not None and crop is not None:
        raise InputError(f"{fields.where}: has '{transl}' and '{crop}'; leave out the one that does not count")
    if crop is not None:
        box = box_of(fields, rows)
        if box is None:
            raise InputError(f"{fields.where}: the crop camera '{crop}' needs its box: box_px, or center and scale")
        weak_camera = samples_of(fields, crop, rows, samples, 3)
        if not (weak_camera[..., 0] > 0).any():
            raise InputError(
                f"{fields.where}: '{crop}' has no positive scale: (s, tx, ty) is needed, not a translation"
            )
        return CropCameras(weak_camera, box)
    assert transl is not None
    focal_px, center_px = _pinhole(fields, rows)
    return FullCameras(samples_of(fields, transl, rows, samples, 3), focal_px, center_px)


def _pinhole(fields: Fields, rows: int) -> tuple[Float32[ndarray, " rows"], Float32[ndarray, "rows 2"] | None]:
    """Focal length, 0 if it is not given, and principal point."""
    center = _per_row(fields, "center_px", rows, (2,)) if fields.name("center_px") else None
    if (matrix := fields.name(*_INTRINSICS)) is not None:
        intrinsics = _per_row(fields, matrix, rows, (3, 3))
        focal = np.sqrt(np.abs(intrinsics[:, 0, 0] * intrinsics[:, 1, 1]))
        center = intrinsics[:, :2, 2] if center is None else center
    elif (name := fields.name(*_FOCAL)) is not None:
        focal = np.broadcast_to(fields.numbers(name, (), (1,), (rows,), (rows, 1)).reshape(-1), (rows,))
    else:
        return np.zeros(rows, np.float32), center
    if not (focal > 0).all():
        raise InputError(f"{fields.where}: a focal length is not positive")
    return focal, center


def _per_row(fields: Fields, name: str, rows: int, shape: tuple[int, ...]) -> Float32[ndarray, "..."]:
    return np.broadcast_to(fields.numbers(name, shape, (rows, *shape)), (rows, *shape))
