"""What one image says of a person's texture: which points of the surface it shows, in what colour, how reliably.

A point is seen where the rasterized depth at its pixel is its own. A look is worth

    cos(angle)^2 * ramp,    angle between the surface normal and the direction to the camera,

where the ramp rises from 0 at a silhouette, of the body or of one part of it before another, to 1 at `EDGE_M` from it:
a body that is a little off shows the background there. Surfaces at a grazing angle are not looked at, their colours are
those of a neighbourhood.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor
from torch.nn import functional

from bodies import BodyModel, PinholeCamera
from bodies.camera import NEAR_PLANE_M
from datamodules.texture_canvas import TextureCanvas, layout_fragments, make_canvas
from renderers import Rasterizer, vertex_normals

#: Cosine of the largest angle at which a surface is looked at, about 75 degrees.
MIN_COSINE: Final = 0.26
#: How far from a silhouette a look is worth all it can be.
EDGE_M: Final = 0.02
#: Difference of the depths of neighbouring pixels that makes a silhouette: this, and so many pixels' width on the body.
EDGE_STEP_M: Final = 0.02
EDGE_STEP_PIXELS: Final = 4.0
#: How much deeper than the rasterized surface a point may lie to be on it, beside half a pixel of slope.
DEPTH_SLACK_M: Final = 0.01
#: Stands for the depth of the background.
_FAR_M: Final = 1e6


@dataclass(frozen=True)
class TexturePoints:
    """The points whose colours are looked for, as places on the mesh."""

    canvas: TextureCanvas
    """How they make up a texture."""
    corners: Int64[Tensor, "points 3"]
    """Vertices of the triangle that each point is on."""
    weights: Float32[Tensor, "points 3"]
    """Their barycentric coordinates; a vertex is a corner with weight one."""

    def __len__(self) -> int:
        return len(self.corners)

    def interpolate(self, values: Float[Tensor, "vertices channels"]) -> Float[Tensor, "points channels"]:
        """Values of the vertices at the points."""
        first, second, third = (values.index_select(0, self.corners[:, k]) * self.weights[:, k, None] for k in range(3))
        return first + second + third


class Look(NamedTuple):
    """What one image shows."""

    points: Int64[Tensor, " seen"]
    """Which points."""
    rgb: UInt8[Tensor, "seen 3"]
    """Their colours."""
    weight: Float32[Tensor, " seen"]
    """What each is worth, above 0 and at most 1."""


@dataclass(frozen=True)
class Scene:
    """One image, the body in it, and what else stands in it."""

    pixels: UInt8[Tensor, "height width 3"]
    """RGB."""
    camera: PinholeCamera
    """The camera of these pixels, a batch of one."""
    vertices: Float32[Tensor, "vertices 3"]
    """The body, camera frame, metres."""
    others: Float32[Tensor, "bodies vertices 3"]
    """Other bodies that may hide it; none if nothing is known of any."""


def texture_points(body: BodyModel, texture_px: int, device: torch.device | str) -> TexturePoints:
    """The texels of a body with a UV layout, `texture_px` on a side; else its vertices."""
    canvas = make_canvas(body, texture_px)
    if body.texture is None:
        corners = torch.arange(body.num_vertices)[:, None].expand(-1, 3)
        weights = torch.tensor([1.0, 0.0, 0.0]).expand(body.num_vertices, 3)
    else:
        fragments = layout_fragments(body.texture, texture_px)
        corners = body.faces.cpu()[fragments.triangle_id[fragments.mask]]
        weights = fragments.barycentric[fragments.mask]
    return TexturePoints(canvas, corners.to(device), weights.to(device))


def look(points: TexturePoints, faces: Int64[Tensor, "faces 3"], scene: Scene, rasterizer: Rasterizer) -> Look:
    """Colours of the points that a scene shows, with what they are worth. Everything is on one device."""
    depth, hidden = _depths(faces, scene, rasterizer)
    position = points.interpolate(scene.vertices)
    normal = functional.normalize(points.interpolate(vertex_normals(scene.vertices[None], faces)[0]), dim=-1)
    cosine = -(normal * functional.normalize(position, dim=-1)).sum(dim=-1)
    place = scene.camera.project(position[None])[0]
    inside = (position[:, 2] >= NEAR_PLANE_M) & (place >= 0).all(dim=-1) & (place < _size(scene)).all(dim=-1)
    chosen = (inside & (cosine >= MIN_COSINE)).nonzero().squeeze(1)
    place, cosine, z = place[chosen], cosine[chosen], position[chosen, 2]
    column, row = place.long().unbind(dim=-1)
    surface, pixel_m = depth[row, column], z / scene.camera.focal_px.mean()
    slope = (1 - cosine.square()).clamp(min=0).sqrt() / cosine
    on_surface = (surface < _FAR_M) & (z <= surface + DEPTH_SLACK_M + pixel_m * slope)
    weight = cosine.square() * _from_silhouette(depth, hidden, scene.camera)[row, column]
    seen = on_surface & (weight > 0)
    rgb = _sample(scene.pixels, place[seen])
    return Look(chosen[seen], rgb, weight[seen])


def _size(scene: Scene) -> Tensor:
    height, width, _ = scene.pixels.shape
    return torch.tensor([width, height], device=scene.pixels.device)


def _depths(
    faces: Tensor, scene: Scene, rasterizer: Rasterizer
) -> tuple[Float32[Tensor, "height width"], Bool[Tensor, "height width"]]:
    """Depth of the body, far away beside it, and where another body is before it."""
    meshes = torch.cat([scene.vertices[None], scene.others])
    height, width, _ = scene.pixels.shape
    fragments = rasterizer(meshes, faces, scene.camera.expand(len(meshes)), height, width)
    depth = fragments.depth.where(fragments.mask, torch.full_like(fragments.depth, _FAR_M))
    own = depth[0]
    hidden = (depth[1:] < own).any(dim=0) & fragments.mask[0]
    return own, hidden


def _from_silhouette(
    depth: Float32[Tensor, "height width"], hidden: Bool[Tensor, "height width"], camera: PinholeCamera
) -> Float32[Tensor, "height width"]:
    """0 at silhouettes and where another body is in front, rising to 1 at `EDGE_M` from them (at least two pixels)."""
    shown = depth < _FAR_M
    if not bool(shown.any()):
        return torch.zeros_like(depth)
    pixel_m = float(depth[shown].mean() / camera.focal_px.mean())
    # OpenCV's filters take a millisecond each; an exact distance in torch operations would be hundreds of poolings.
    z, square = depth.cpu().numpy(), np.ones((3, 3), np.uint8)
    step = cv2.dilate(z, square) - cv2.erode(z, square)
    other = cv2.dilate(hidden.cpu().numpy().astype(np.uint8), square)
    inner = (step <= EDGE_STEP_M + EDGE_STEP_PIXELS * pixel_m) & (other == 0)
    distance_px = cv2.distanceTransform(inner.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return torch.from_numpy(distance_px / np.float32(max(EDGE_M / pixel_m, 2.0))).clamp(max=1).to(depth.device)


def _sample(pixels: UInt8[Tensor, "height width 3"], place_px: Float[Tensor, "points 2"]) -> UInt8[Tensor, "points 3"]:
    """Bilinear samples; outermost pixels continue beyond their centres."""
    height, width, _ = pixels.shape
    size = torch.tensor([width, height], device=pixels.device)
    low = (place_px - 0.5).floor()
    share = place_px - 0.5 - low
    total = torch.zeros((len(place_px), 3), device=pixels.device)
    for right in (0, 1):
        for below in (0, 1):
            step = torch.tensor([right, below], device=pixels.device)
            column, row = torch.minimum((low + step).clamp(min=0), size - 1).long().unbind(dim=-1)
            weight = torch.where(step.bool(), share, 1 - share).prod(dim=-1)
            total += pixels[row, column] * weight[:, None]
    return total.round().clamp(0, 255).to(torch.uint8)
