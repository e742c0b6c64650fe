"""A regressor's results as read from its dump, before they meet the frames, and their bodies placed in the full image.

A crop camera (s, tx, ty) refers to the square box that was resized to the network's input. It says how large the
person is in the image, not how far away: the depth follows from the focal length that one puts in (FocalChoice). With
the side b of the box, every margin included, the size of the network's input cancels out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, assert_never

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from bodies.camera import PinholeCamera, diagonal_focal_px, weak_perspective_to_translation
from bodies.errors import InputError
from datamodules.convert.lazy_pose import LazyPose
from datamodules.store_layout import MAX_BETA, MAX_DISTANCE_M, MAX_POSE_RAD, MIN_DEPTH_M

FocalChoice = Literal["frames", "diagonal"] | float
"""Which focal length a crop camera becomes a translation with: the frames' own (geometric mean of the two), the image
diagonal (CLIFF's and the paper's choice for unknown cameras), or a number of pixels."""

#: A regressor's image may differ in aspect from the frame's by rounding to whole pixels.
_ASPECT_TOLERANCE = 0.01


@dataclass(frozen=True)
class CropCameras:
    """Weak-perspective cameras of crops."""

    weak_camera: Float32[ndarray, "rows samples 3"]
    """Scale s and translation tx, ty."""
    box_px: Float32[ndarray, "rows 3"]
    """Centre x, y and side of the square box that was resized to the network's input, in the regressor's image."""


@dataclass(frozen=True)
class FullCameras:
    """Translations in the frame of a full-image pinhole camera."""

    transl_m: Float32[ndarray, "rows samples 3"]
    """Metres, added after the root turned about the rest pelvis."""
    focal_px: Float32[ndarray, " rows"]
    """Focal length they were made with, in the regressor's image; 0 if it is the frame's own."""
    center_px: Float32[ndarray, "rows 2"] | None
    """Principal point they were made with; None for the middle of the image."""


@dataclass(frozen=True)
class Predictions:
    """N persons, S samples of each."""

    names: tuple[str, ...]
    """What they are about: image names, or row ids if `named_by_row`."""
    named_by_row: bool
    """Whether the names are row ids of the frames file."""
    pose: Float32[ndarray, "rows samples 72"] | LazyPose
    """Axis-angle in radians, root in the camera frame, or what becomes that. NaN where it could not be read."""
    betas: Float32[ndarray, "rows samples 10"]
    """Shape coefficients."""
    camera: CropCameras | FullCameras
    """Where the bodies are."""
    box_px: Float32[ndarray, "rows 3"] | None
    """Centre x, y and side of a box about each person, to tell persons apart; None if there is none."""
    image_size_px: Float32[ndarray, "rows 2"] | None
    """Width and height of the image that the regressor saw, if it may differ from the frame's."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def samples(self) -> int:
        """Samples of each person."""
        return self.pose.shape[1]


@dataclass(frozen=True)
class PlacedBodies:
    """Bodies as an estimates file holds them."""

    pose: Float32[ndarray, "rows samples 72"]
    """Axis-angle in radians."""
    betas: Float32[ndarray, "rows samples 10"]
    """Shape coefficients."""
    transl_m: Float32[ndarray, "rows samples 3"]
    """As seen by the full-image camera with `focal_px` and the frame's principal point."""
    focal_px: Float32[ndarray, " rows"]
    """Focal length along both axes."""

    def take(self, rows: Int64[ndarray, " chosen"]) -> "PlacedBodies":
        """Some of them."""
        return PlacedBodies(self.pose[rows], self.betas[rows], self.transl_m[rows], self.focal_px[rows])

    def first_sample(self) -> "PlacedBodies":
        """Sample 0 alone, without holding on to the others."""
        pose, betas, transl_m = (values[:, :1].copy() for values in (self.pose, self.betas, self.transl_m))
        return PlacedBodies(pose, betas, transl_m, self.focal_px)

    def problems(self) -> dict[int, str]:
        """Rows whose numbers cannot be, each with the reason."""
        checks = (
            (np.isfinite(self.pose).all(axis=(1, 2)), "its pose is not finite or holds matrices that are no rotations"),
            (np.isfinite(self.betas).all(axis=(1, 2)), "its betas are not finite"),
            (np.isfinite(self.transl_m).all(axis=(1, 2)), "its camera is not finite"),
            ((np.abs(self.pose) <= MAX_POSE_RAD).all(axis=(1, 2)), "its pose is not in radians (degrees?)"),
            ((np.abs(self.betas) <= MAX_BETA).all(axis=(1, 2)), f"betas are beyond {MAX_BETA:g}"),
            (
                (self.transl_m[..., 2] >= MIN_DEPTH_M).all(axis=1),
                "the body is behind the camera: a crop camera is (s, tx, ty) with s > 0, not a translation",
            ),
            (
                (np.abs(self.transl_m) <= MAX_DISTANCE_M).all(axis=(1, 2)),
                "the body is more than 10 km away (millimetres?)",
            ),
        )
        problems: dict[int, str] = {}
        for good, reason in checks:
            problems = {**{int(row): reason for row in np.flatnonzero(~good)}, **problems}
        return problems


def joined(parts: Sequence[PlacedBodies]) -> PlacedBodies:
    """Bodies one after the other."""
    names = (field.name for field in fields(PlacedBodies))
    return PlacedBodies(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def scaled_boxes(predictions: Predictions, size_px: Float64[ndarray, "rows 2"]) -> Float32[ndarray, "rows 3"] | None:
    """The boxes for matching in pixels of the frames' images, whose sizes are given."""
    if predictions.box_px is None:
        return None
    return (predictions.box_px * _image_ratio(predictions, size_px)[:, None]).astype(np.float32)


def place(predictions: Predictions, cameras: PinholeCamera, focal: FocalChoice) -> PlacedBodies:
    """Bodies in the full images of the frames that they were matched with.

    Args:
        predictions: Results, row by row.
        cameras: The full-image camera of each row.
        focal: Focal length for crop cameras; full-image cameras keep their own.

    Raises:
        InputError: If the focal length is not positive, or the regressor saw an image of another shape.
    """
    ratio = _image_ratio(predictions, cameras.size_px.double().numpy())
    camera = predictions.camera
    if isinstance(camera, CropCameras):
        seen_by = _one_focal(cameras, focal)
        transl_m = _from_crops(camera, ratio, seen_by)
    else:
        own = cameras.focal_px.prod(dim=1).sqrt().numpy()
        focal_px = np.where(camera.focal_px > 0, camera.focal_px * ratio, own)
        seen_by = PinholeCamera(
            torch.tensor(focal_px, dtype=torch.float64)[:, None].expand(-1, 2), cameras.center_px, cameras.size_px
        )
        transl_m = _recentred(camera, ratio, seen_by)
    focal_px = seen_by.focal_px[:, 0].float().numpy()
    pose = predictions.pose.read() if isinstance(predictions.pose, LazyPose) else predictions.pose
    return PlacedBodies(pose, predictions.betas, transl_m.astype(np.float32), focal_px)


def _image_ratio(predictions: Predictions, size_px: Float64[ndarray, "rows 2"]) -> Float64[ndarray, " rows"]:
    """Pixels of the frame's image per pixel of the image that the regressor saw."""
    if predictions.image_size_px is None:
        return np.ones(len(predictions))
    ratio = size_px / predictions.image_size_px
    # NaN, from a row that cannot be used anyway, is no difference.
    other = np.flatnonzero(np.abs(ratio[:, 0] / ratio[:, 1] - 1) > _ASPECT_TOLERANCE)
    if len(other):
        seen, stored = (tuple(np.round(s[other[0]]).astype(int).tolist()) for s in (predictions.image_size_px, size_px))
        raise InputError(
            f"{predictions.names[other[0]]}: the regressor saw an image of {seen} pixels, the frame has {stored}: "
            "it was cropped or turned, not only resized"
        )
    result: ndarray = ratio.mean(axis=1)
    return result


def _one_focal(cameras: PinholeCamera, focal: FocalChoice) -> PinholeCamera:
    match focal:
        case "frames":
            focal_px = cameras.focal_px.double().prod(dim=1).sqrt()
        case "diagonal":
            focal_px = diagonal_focal_px(cameras.size_px).double()
        case float() | int():
            if not 0 < focal < float("inf"):
                raise InputError(f"the focal length must be positive and finite, got {focal}")
            focal_px = torch.full((len(cameras),), float(focal), dtype=torch.float64)
        case _:
            assert_never(focal)
    return PinholeCamera(focal_px[:, None].expand(-1, 2), cameras.center_px.double(), cameras.size_px.double())


def _from_crops(camera: CropCameras, ratio: ndarray, seen_by: PinholeCamera) -> Float64[ndarray, "rows samples 3"]:
    rows, samples = camera.weak_camera.shape[:2]
    box = torch.tensor(camera.box_px * ratio[:, None], dtype=torch.float64).repeat_interleave(samples, dim=0)
    each = torch.arange(rows).repeat_interleave(samples)
    weak = torch.tensor(camera.weak_camera, dtype=torch.float64).flatten(0, 1)
    transl = weak_perspective_to_translation(weak, box[:, :2], box[:, 2], seen_by[each])
    result: ndarray = transl.view(rows, samples, 3).numpy()
    return result


def _recentred(camera: FullCameras, ratio: ndarray, seen_by: PinholeCamera) -> Float64[ndarray, "rows samples 3"]:
    """Translations for the frame's principal point: the body's origin keeps its pixel and its depth."""
    middle = seen_by.size_px.double().numpy() / 2
    made_with = middle if camera.center_px is None else camera.center_px.astype(np.float64) * ratio[:, None]
    shift = (made_with - seen_by.center_px.double().numpy()) / seen_by.focal_px.numpy()
    transl = camera.transl_m.astype(np.float64)
    transl[..., :2] += shift[:, None] * transl[..., 2:]
    return transl
