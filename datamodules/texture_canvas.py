"""Points on the surface of a rest body that colours are made for, so that a texture is made on the body.

There are two sets of them. A `ColorLattice` covers each triangle with points a few millimetres apart, whatever the
mesh: it holds the colours that a synthetic image shows. A `TextureCanvas` has the points of a texture as the store
keeps it: one per vertex, or the pixels of an image in the body's UV layout.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, Shaped, UInt8
from numpy import ndarray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from bodies.body_model import BodyModel
from bodies.camera import PinholeCamera
from bodies.model_data import TextureLayout
from renderers import Fragments, make_rasterizer, vertex_normals

#: Joints whose skin weights make each part of SMPL's body.
PARTS: Final = {
    "torso": (0, 3, 6, 9, 13, 14),
    "head": (12, 15),
    "arm": (16, 17, 18, 19, 20, 21, 22, 23),
    "leg": (1, 2, 4, 5, 7, 8, 10, 11),
}
#: Distance of the points of a lattice that is aimed at, and most of them along the edge of a triangle.
LATTICE_SPACING_M: Final = 0.006
MAX_SUBDIVISIONS: Final = 8


@dataclass(frozen=True)
class BodyPoints:
    """Points of the rest body of mean shape."""

    position_m: Float32[ndarray, "points 3"]
    """x to the body's left, y up, z forward."""
    normal: Float32[ndarray, "points 3"]
    """Outward unit normals; zero at vertices without a triangle."""
    part_weights: Float32[ndarray, "points 4"]
    """How much of each of `PARTS` a point is; rows sum to one."""

    def __len__(self) -> int:
        return len(self.position_m)

    def nearest(self, position_m: Float32[ndarray, "queries 3"]) -> Int64[ndarray, " queries"]:
        """The point nearest to each position."""
        return np.asarray(self._tree.query(position_m)[1], np.int64)

    @cached_property
    def spacing_m(self) -> float:
        """Mean distance of a point's nearest neighbour, of a few hundred points."""
        some = self.position_m[:: max(1, len(self) // 300)]
        return float(self._tree.query(some, k=2)[0][:, 1].mean())

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.position_m)


@dataclass(frozen=True)
class ColorLattice:
    """Each triangle's edges cut into equal parts, and the points at which the cuts meet.

    With n subdivisions, the point with the weights (i, j, k) / n of a triangle's corners is number m (m + 1) / 2 + k of
    the triangle's points, m = n - i; triangles follow each other.
    """

    points: BodyPoints
    """All points, those of the first triangle first."""
    subdivisions: int
    """Into how many parts an edge is cut."""
    weights: Float32[ndarray, "lattice 3"]
    """Barycentric coordinates of one triangle's points."""

    def sample(
        self,
        colors: UInt8[ndarray, "points 3"],
        triangle: Int64[ndarray, " pixels"],
        barycentric: Float32[ndarray, "pixels 3"],
    ) -> Float32[ndarray, "pixels 3"]:
        """Colours at points of the surface, linear between the three points of the lattice about each; 0..1."""
        # The lattice as a square grid, sheared: rows count from the first corner, columns from the second to the third.
        row_place = (1 - barycentric[:, 0]) * np.float32(self.subdivisions)
        column_place = barycentric[:, 2] * np.float32(self.subdivisions)
        row = np.clip(row_place.astype(np.int64), 0, self.subdivisions - 1)
        column = np.clip(column_place.astype(np.int64), 0, row)
        down, right = row_place - row, column_place - column
        # A cell of the grid is two triangles; which one it is decides the third corner.
        first = triangle * len(self.weights) + row * (row + 1) // 2 + column
        last = first + row + 2
        third = np.where(right <= down, last - 1, first + 1)
        total = colors[first] * (1 - np.maximum(down, right))[:, None]
        total += colors[third] * np.abs(down - right)[:, None]
        total += colors[last] * np.minimum(down, right)[:, None]
        total *= np.float32(1 / 255)
        return np.asarray(total, np.float32)

    def uv(self, layout: TextureLayout) -> Float32[ndarray, "points 2"]:
        """Texture coordinates of the points."""
        corners = layout.coordinates[layout.faces]
        return np.einsum("lk,fkc->flc", self.weights, corners).reshape(-1, 2).astype(np.float32)


@dataclass(frozen=True)
class TextureCanvas:
    """The points of a texture in the store."""

    shape: tuple[int, ...]
    """(V,) for a value per vertex, (H, W) for an image in UV space."""
    points: BodyPoints
    """Vertices, or the pixels that lie on a chart of the UV layout."""
    point_of_texel: Int64[ndarray, " texels"]
    """For each value of the flattened texture the point it shows; beside the charts of a UV layout the nearest one."""
    on_body: Bool[ndarray, " texels"]
    """False beside the charts of a UV layout."""

    def paint(self, values: Shaped[ndarray, "points channels"]) -> Shaped[ndarray, "*shape channels"]:
        """Values of the points as a texture; beside the charts they continue, so that sampling sees no edge."""
        return values[self.point_of_texel].reshape(*self.shape, values.shape[-1])


def make_lattice(body: BodyModel) -> ColorLattice:
    """The lattice of a body, as fine as `LATTICE_SPACING_M` asks for."""
    corners = _vertex_attributes(body)[body.faces.cpu().numpy()]
    edges = np.linalg.norm(corners[:, [1, 2, 0], :3] - corners[..., :3], axis=-1)
    parts = int(np.clip(round(float(np.mean(edges)) / LATTICE_SPACING_M), 1, MAX_SUBDIVISIONS))
    weights = _lattice_weights(parts)
    attributes = np.einsum("lk,fkc->flc", weights, corners).reshape(-1, corners.shape[-1])
    return ColorLattice(_body_points(attributes.astype(np.float32)), parts, weights)


def make_canvas(body: BodyModel, texture_px: int) -> TextureCanvas:
    """The canvas of a body: an image of `texture_px` x `texture_px` if it has a UV layout, else its vertices."""
    attributes = _vertex_attributes(body)
    if body.texture is None:
        texels = np.arange(body.num_vertices)
        return TextureCanvas((body.num_vertices,), _body_points(attributes), texels, np.ones(body.num_vertices, bool))
    fragments = layout_fragments(body.texture, texture_px)
    mask = fragments.mask[0].numpy()
    corners = body.faces.cpu().numpy()[fragments.triangle_id[0].numpy()[mask]]
    weights = fragments.barycentric[0].numpy()[mask]
    points = np.einsum("pk,pkc->pc", weights, attributes[corners]).astype(np.float32)
    number = np.zeros(mask.shape, np.int64)
    number[mask] = np.arange(len(points))
    rows, columns = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return TextureCanvas(mask.shape, _body_points(points), number[rows, columns].ravel(), mask.ravel())


def layout_fragments(layout: TextureLayout, texture_px: int) -> Fragments:
    """Which triangle each texel of a square texture is on, and where on it; a batch of one."""
    # The UV layout is rasterized as a flat mesh one metre in front of a camera whose image it fills.
    coordinates = torch.from_numpy(layout.coordinates)
    flat = torch.stack([coordinates[:, 0], 1 - coordinates[:, 1], torch.ones(len(coordinates))], dim=1)
    size = torch.full((1, 2), float(texture_px))
    camera = PinholeCamera(size, torch.zeros(1, 2), size)
    return make_rasterizer("cpu")(flat[None], torch.from_numpy(layout.faces), camera, texture_px, texture_px)


def sample_image(
    image: UInt8[ndarray, "height width 3"], uv: Float32[ndarray, "points 2"]
) -> UInt8[ndarray, "points 3"]:
    """Bilinear samples of a texture image at texture coordinates (u right, v up)."""
    height, width = image.shape[:2]
    # OpenCV counts from pixel centres, and its maps may not be longer than 2^15.
    columns, rows = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    blocks = [
        cv2.remap(image, x[None], y[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]
        for x, y in zip(*(np.array_split(part, -(-len(uv) // 30_000)) for part in (columns, rows)), strict=True)
    ]
    return np.concatenate(blocks)


def _vertex_attributes(body: BodyModel) -> Float32[ndarray, "vertices 10"]:
    """Position, normal and part weights."""
    vertices = body.template.cpu()
    normals = vertex_normals(vertices[None], body.faces.cpu())[0]
    parts = torch.stack([body.skin_weights[:, list(joints)].sum(dim=1) for joints in PARTS.values()], dim=1).cpu()
    return np.asarray(torch.cat([vertices, normals, parts], dim=1).numpy())


def _lattice_weights(parts: int) -> Float32[ndarray, "lattice 3"]:
    """Points in rows from the first corner to the opposite edge, each row from the second corner to the third."""
    rows = [(parts - below, below - k, k) for below in range(parts + 1) for k in range(below + 1)]
    return np.array(rows, np.float32) / np.float32(parts)


def _body_points(attributes: Float32[ndarray, "points 10"]) -> BodyPoints:
    position, normal, parts = np.split(attributes, (3, 6), axis=1)
    # An interpolated normal is shorter than the ones it lies between.
    normal = normal / np.linalg.norm(normal, axis=1, keepdims=True).clip(1e-6)
    return BodyPoints(np.ascontiguousarray(position), normal, parts)
