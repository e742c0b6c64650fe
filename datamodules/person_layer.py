"""Draws a lit, textured body into an image, with smooth edges."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from bodies.camera import PinholeCamera
from datamodules.crops import ImageCamera
from datamodules.lighting import EnvironmentLight
from datamodules.texture_canvas import ColorLattice
from datamodules.viewpoints import project
from renderers import make_rasterizer

#: Samples per pixel along each axis.
SUPERSAMPLING: Final = 2
#: Colours are those of a display, light is linear.
DISPLAY_GAMMA: Final = 2.2
#: Interpolated normals shorter than this point nowhere in particular.
_SHORTEST_NORMAL: Final = 1e-6

Image = UInt8[ndarray, "height width 3"]


@dataclass(frozen=True)
class LitBody:
    """A posed body and how it looks."""

    vertices_m: Float32[ndarray, "vertices 3"]
    """Camera frame."""
    normals: Float32[ndarray, "vertices 3"]
    """Unit normals in the camera frame."""
    faces: Int64[Tensor, "faces 3"]
    """Triangles."""
    lattice: ColorLattice
    """Where the colours lie."""
    colors: UInt8[ndarray, "points 3"]
    """Colours of the lattice's points under white light."""
    light: EnvironmentLight
    """What it is lit by."""


def body_box_px(vertices_m: Float32[ndarray, "vertices 3"], camera: ImageCamera) -> Float64[ndarray, "4"]:
    """Left, top, right, bottom of the body's projection, cut off at the image's borders."""
    position_px = project(vertices_m.astype(np.float64), camera)
    low, high = position_px.min(axis=0), position_px.max(axis=0)
    return np.concatenate([np.clip(low, 0, camera.size_px), np.clip(high, 0, camera.size_px)])


def draw_body(background: Image, body: LitBody, camera: ImageCamera) -> tuple[Image, Bool[ndarray, "height width"]]:
    """The image with the body in front of it, and the pixels that show more body than background."""
    image, person = background.copy(), np.zeros(background.shape[:2], bool)
    left, top, right, bottom = (int(edge) for edge in _whole_pixels(body_box_px(body.vertices_m, camera)))
    if right <= left or bottom <= top:
        return image, person
    layer = _layer(body, camera, (left, top, right - left, bottom - top))
    coverage = layer[..., 3:]
    under = image[top:bottom, left:right]
    image[top:bottom, left:right] = np.rint(under * (1 - coverage) + layer[..., :3]).astype(np.uint8)
    person[top:bottom, left:right] = coverage[..., 0] > 0.5
    return image, person


def _layer(body: LitBody, camera: ImageCamera, box: tuple[int, int, int, int]) -> Float32[ndarray, "height width 4"]:
    """Colour times coverage, 0..255, and coverage of the pixels of a box (left, top, width, height)."""
    left, top, width, height = box
    size = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    close_up = PinholeCamera(
        torch.tensor(camera.focal_px * SUPERSAMPLING)[None],
        torch.tensor((camera.center_px - np.array((left, top), np.float32)) * SUPERSAMPLING)[None],
        torch.tensor([size], dtype=torch.float32),
    )
    vertices = torch.from_numpy(body.vertices_m)[None]
    fragments = make_rasterizer("cpu")(vertices, body.faces, close_up, size[1], size[0])
    mask = fragments.mask[0].numpy()
    triangle, weights = fragments.triangle_id[0].numpy()[mask], fragments.barycentric[0].numpy()[mask]
    corners = body.faces.numpy()[triangle]
    normals = sum(body.normals[corners[:, k]] * weights[:, k, None] for k in range(3))
    normals = normals / np.linalg.norm(normals, axis=1, keepdims=True).clip(_SHORTEST_NORMAL)
    shade = body.light.irradiance(normals.astype(np.float32))
    cv2.pow(shade, 1 / DISPLAY_GAMMA, shade)
    colors = body.lattice.sample(body.colors, triangle, weights) * shade
    samples = np.zeros((size[1], size[0], 4), np.float32)
    samples[mask] = np.concatenate([np.minimum(colors, 1) * 255, np.ones_like(colors[:, :1])], axis=1)
    layer: ndarray = cv2.resize(samples, (width, height), interpolation=cv2.INTER_AREA)
    return layer


def _whole_pixels(box_px: Float64[ndarray, "4"]) -> Float64[ndarray, "4"]:
    return np.concatenate([np.floor(box_px[:2]), np.ceil(box_px[2:])])
