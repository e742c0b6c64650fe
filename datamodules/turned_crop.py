"""Crops that are turned, scaled and shifted, and what has to follow: box, keypoints, body, camera.

Turning the content of an image by an angle about its principal point is what turning the scene about the optical axis
does, so the body turns and the camera stays: with x' = R x, project(x') = c + F R F^-1 (project(x) - c), where F holds
the two focal lengths. For fx = fy the map of the image is that rotation; for fx != fy it has a slight shear, which the
crop is resampled with, so that pixels and projected vertices agree in either case. The turned image is the full image
from then on (it has the same camera), and the crop is an unturned one of it. Angles count from x towards y: clockwise
as seen.

A body's root turns about its rest pelvis (`bodies.body_model`), so with the root rotation goes the translation:
transl' = R (J0 + transl) - J0.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Float32, Float64
from numpy import ndarray
from torch import Tensor

from bodies.body_model import BodyModel
from datamodules.crops import ImageCamera, square_crop_affine
from datamodules.sample import BodyFields


class RestPelvis(NamedTuple):
    """The rest pelvis of a body model, linear in the betas; all that a worker needs of the model."""

    template_m: Float32[Tensor, "3"]
    """Of the mean shape."""
    directions_m: Float32[Tensor, "3 betas"]
    """Its change with each beta."""

    @classmethod
    def of(cls, body: BodyModel) -> Self:
        """From a body model."""
        return cls(body.joint_template[0].cpu().clone(), body.joint_shape_directions[0].cpu().clone())

    def at(self, betas: Float32[Tensor, " betas"]) -> Float32[Tensor, "3"]:
        """In metres, for one person."""
        return self.template_m + self.directions_m[:, : len(betas)] @ betas


@dataclass(frozen=True)
class CropChange:
    """How a crop differs from that of the person's box."""

    angle_rad: float = 0.0
    """How far the content turns about the principal point."""
    scale: float = 1.0
    """Side of the crop's box over that of the person's, margin included."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Centre of the crop's box off the person's, in sides of the person's box, along x and y."""


class TurnedCrop(NamedTuple):
    """A crop of a turned image."""

    box_px: Float32[ndarray, "3"]
    """The person's box (centre x, centre y, side) in the turned image: its centre turns, its side stays."""
    camera: ImageCamera
    """The camera of the crop; that of the turned image is the one of the image."""
    full_to_turned: Float64[ndarray, "2 3"]
    """Map of positions in the image to positions in the turned image."""
    full_to_crop: Float64[ndarray, "2 3"]
    """Map of positions in the image to positions in the crop."""


def turned_crop(
    camera: ImageCamera, box_px: Float32[ndarray, "3"], change: CropChange, margin: float, crop_px: int
) -> TurnedCrop:
    """The crop of a person's box after a change.

    Args:
        camera: The full-image camera.
        box_px: Centre x, centre y and side of the person's box in the full image.
        change: How the crop is turned, scaled and shifted.
        margin: Side of an unchanged crop's box over that of the person's.
        crop_px: Side of the crop in its own pixels.
    """
    full_to_turned = turn_of_image(camera, change.angle_rad)
    side_px = float(box_px[2])
    center_px = apply_affine(full_to_turned, box_px[None, :2])[0]
    crop_center_px = center_px + side_px * np.array(change.shift)
    crop_side_px = side_px * margin * change.scale
    turned_to_crop = square_crop_affine(crop_center_px, crop_side_px, 0.0, crop_px)
    return TurnedCrop(
        np.array([*center_px, side_px], np.float32),
        camera.crop(crop_center_px, crop_side_px, crop_px),
        full_to_turned,
        _compose(turned_to_crop, full_to_turned),
    )


def turn_of_image(camera: ImageCamera, angle_rad: float) -> Float64[ndarray, "2 3"]:
    """Where the positions of an image go when the scene turns about the camera's optical axis."""
    focal_px, center_px = (part.astype(np.float64) for part in camera[:2])
    linear = _turn(angle_rad)[:2, :2] * focal_px[:, None] / focal_px
    return np.column_stack([linear, center_px - linear @ center_px])


def turn_body(body: BodyFields, rest_pelvis: Float32[Tensor, "3"], angle_rad: float) -> BodyFields:
    """A body of one sample, after the scene has turned about the optical axis."""
    if angle_rad == 0:
        return body
    turn = torch.from_numpy(_turn(angle_rad)).to(body.rotations.dtype)
    rotations = torch.cat([turn @ body.rotations[:1], body.rotations[1:]])
    return BodyFields(rotations, body.betas, turn @ (rest_pelvis + body.transl) - rest_pelvis)


def turn_joints(joints_m: Float32[ndarray, "joints 4"], angle_rad: float) -> Float32[ndarray, "joints 4"]:
    """Measured joints (x, y, z, validity), after the scene has turned about the optical axis."""
    turned = joints_m[:, :3] @ _turn(angle_rad).T
    return np.column_stack([turned, joints_m[:, 3]]).astype(np.float32)


def move_keypoints(
    keypoints_px: Float32[ndarray, "keypoints 3"], affine: Float64[ndarray, "2 3"]
) -> Float32[ndarray, "keypoints 3"]:
    """Keypoints (x, y, confidence) through an affine map; absent ones, of confidence 0, stay zeros."""
    moved = apply_affine(affine, keypoints_px[:, :2])
    return np.column_stack([np.where(keypoints_px[:, 2:] > 0, moved, 0), keypoints_px[:, 2]]).astype(np.float32)


def apply_affine(affine: Float64[ndarray, "2 3"], position_px: ndarray) -> Float64[ndarray, "points 2"]:
    """Positions (N, 2) through an affine map."""
    moved: ndarray = position_px.astype(np.float64) @ affine[:, :2].T + affine[:, 2]
    return moved


def _compose(outer: ndarray, inner: ndarray) -> Float64[ndarray, "2 3"]:
    """The affine map that applies `inner` first."""
    return np.column_stack([outer[:, :2] @ inner[:, :2], outer[:, :2] @ inner[:, 2] + outer[:, 2]])


def _turn(angle_rad: float) -> Float64[ndarray, "3 3"]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
