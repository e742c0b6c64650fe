"""Where the camera of a synthetic image stands: focal length, pitch, heading, distance, and the place of the person."""

from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray
from scipy.spatial.transform import Rotation

from datamodules.crops import ImageCamera

#: Half of the cameras have about the focal length that is assumed of unknown ones, the image's diagonal (53 degrees
#: along it); the others lie between these multiples of it (80 to 23 degrees).
FOCAL_PER_DIAGONAL: Final = (0.6, 2.5)
#: Part of the image that the person's box takes up, along the axis on which it takes up more.
USUAL_SHARE: Final = (0.4, 0.98)
#: How often a person is too near to be seen whole, and the part of the image its box would then take up.
NEAR_PROBABILITY: Final = 0.15
NEAR_SHARE: Final = (1.0, 1.8)
#: Camera pitch (positive looks down) and roll in degrees: mean, standard deviation, and the limits of the pitch.
PITCH_DEG: Final = (8.0, 13.0)
PITCH_LIMITS_DEG: Final = (-25.0, 50.0)
ROLL_DEG: Final = 3.0
#: Nothing of the body is nearer to the camera than this.
CLEARANCE_M: Final = 0.5
#: Least part of the vertices that lies in the image.
LEAST_INSIDE: Final = 0.45
#: From the y-up world to camera axes: who faces +z looks into a camera that is level.
_TO_CAMERA: Final = np.diag([1.0, -1.0, -1.0])


class View(NamedTuple):
    """A camera and the person in front of it."""

    camera: ImageCamera
    """The full-image camera."""
    rotation: Float64[ndarray, "3 3"]
    """From the y-up world to the camera frame."""
    pelvis_m: Float64[ndarray, "3"]
    """Where the pelvis is in the camera frame."""


def draw_view(
    rng: np.random.Generator, from_pelvis_m: Float32[ndarray, "vertices 3"], size_px: tuple[int, int]
) -> View:
    """Draws a camera and puts a posed body in front of it, seen from any side.

    Args:
        rng: Source of chance.
        from_pelvis_m: Vertices of the body, upright in a y-up world, relative to the pelvis.
        size_px: Image width and height.
    """
    size = np.array(size_px, np.float64)
    rotation = _draw_rotation(rng)
    vertices = from_pelvis_m @ rotation.T
    focal_px = _draw_focal(rng, float(np.hypot(*size)))
    center_px = size / 2 + rng.normal(scale=0.01, size=2).clip(-0.03, 0.03) * size
    camera = ImageCamera(*(part.astype(np.float32) for part in (np.full(2, focal_px), center_px, size)))
    near = rng.uniform() < NEAR_PROBABILITY
    share = np.exp(rng.uniform(*np.log(NEAR_SHARE if near else USUAL_SHARE)))
    # Where the middle of the box is: anywhere that keeps it inside, and a little beyond.
    slack = np.maximum(0.5 - share / 2 + 0.08, 0.15)
    place_px = size * (0.5 + rng.uniform(-slack, slack, 2))
    pelvis = _placed(vertices, camera, share, place_px)
    if _share_inside(vertices + pelvis, camera) < LEAST_INSIDE:
        pelvis = _placed(vertices, camera, min(share, 1.0), size / 2)
    return View(camera, rotation, pelvis)


def project(points_m: Float64[ndarray, "points 3"], camera: ImageCamera) -> Float64[ndarray, "points 2"]:
    """Camera-frame points to pixels."""
    return points_m[:, :2] / points_m[:, 2:] * camera.focal_px + camera.center_px


def _draw_rotation(rng: np.random.Generator) -> Float64[ndarray, "3 3"]:
    heading, roll = rng.uniform(-180, 180), rng.normal(scale=ROLL_DEG)
    pitch = np.clip(rng.normal(*PITCH_DEG), *PITCH_LIMITS_DEG)
    tilt = Rotation.from_euler("ZX", [roll, pitch], degrees=True)
    return np.asarray(tilt.as_matrix() @ _TO_CAMERA @ Rotation.from_euler("y", heading, degrees=True).as_matrix())


def _draw_focal(rng: np.random.Generator, diagonal_px: float) -> float:
    if rng.uniform() < 0.5:
        return diagonal_px * float(np.exp(rng.normal(scale=0.08)))
    return diagonal_px * float(np.exp(rng.uniform(*np.log(FOCAL_PER_DIAGONAL))))


def _placed(
    vertices: Float64[ndarray, "vertices 3"], camera: ImageCamera, share: float, place_px: Float64[ndarray, "2"]
) -> Float64[ndarray, "3"]:
    """Position of the pelvis for which the box has that size and place, up to perspective."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    depth = float(np.max((high - low)[:2] * camera.focal_px / camera.size_px)) / share
    # Of a body that is deep, the near part looks larger; measured from the middle of its depth.
    middle = (low + high) / 2
    depth = max(depth, CLEARANCE_M + middle[2] - low[2])
    offset = (place_px - camera.center_px) / camera.focal_px * depth
    return np.array([*offset, depth]) - middle


def _share_inside(points_m: Float64[ndarray, "points 3"], camera: ImageCamera) -> float:
    position_px = project(points_m, camera)
    return float(np.mean(((position_px >= 0) & (position_px < camera.size_px)).all(axis=1)))
