"""The renderings that the network sees beside the photo: 10 channels (Wehrbein et al., arXiv 2403.11634).

    texture  3   the person's appearance, values as given (0..1)
    depth    1   z minus the mean z of the mesh's vertices, in metres, positive behind it
    normals  3   unit normal of the surface in the camera frame: x right, y down, z forward, so it is (0, 0, -1) on a
                 surface that faces the camera
    colors   3   unique vertex colour: where on the body the point is, 0..1, see `unique_vertex_colors`

The depth is relative because its absolute value is set by the focal length, which says nothing about the body.
Background pixels hold zeros in all channels. All of it is computed in float32, also under autocast.
"""

from dataclasses import dataclass
from typing import Final, Literal, Self

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from bodies import TextureLayout
from renderers.correspondence import vertex_to_pixel
from renderers.rasterize import Fragments

MapName = Literal["texture", "depth", "normals", "colors"]

#: Where each map is among the channels.
MAP_CHANNELS: Final[dict[MapName, slice]] = {
    "texture": slice(0, 3),
    "depth": slice(3, 4),
    "normals": slice(4, 7),
    "colors": slice(7, 10),
}
NUM_MAP_CHANNELS: Final = 10
#: Sums of face normals shorter than this, in square metres, count as zero; a body's smallest triangle has 1e-8.
SHORTEST_NORMAL: Final = 1e-15
#: Interpolated unit normals shorter than this point nowhere in particular: opposite ones meet there.
SHORTEST_INTERPOLATED: Final = 1e-6


@dataclass(frozen=True)
class VertexColors:
    """An appearance given at the vertices."""

    rgb: Float[Tensor, "batch vertices 3"]
    """Colour of each vertex."""


@dataclass(frozen=True)
class UvTexture:
    """An appearance given as an image in the mesh's UV layout. It is sampled bilinearly, without mipmaps."""

    image: Float[Tensor, "batch 3 texture_height texture_width"]
    """Colours; u runs along the columns, v up the rows."""
    coordinates: Float[Tensor, "texture_vertices 2"]
    """u and v in 0..1."""
    faces: Int64[Tensor, "faces 3"]
    """For each triangle of the mesh, the rows of `coordinates` at its corners."""

    @classmethod
    def from_layout(cls, image: Float[Tensor, "batch 3 texture_height texture_width"], layout: TextureLayout) -> Self:
        """With the layout of a body model. Copies it to the image's device: keep the result, not the layout."""
        return cls(
            image,
            torch.from_numpy(layout.coordinates).to(image.device),
            torch.from_numpy(layout.faces).to(image.device),
        )


Texture = VertexColors | UvTexture


def render_maps(
    fragments: Fragments,
    vertices: Float[Tensor, "batch vertices 3"],
    faces: Int64[Tensor, "faces 3"],
    texture: Texture,
    unique_colors: Float[Tensor, "vertices 3"],
) -> Float32[Tensor, "batch 10 height width"]:
    """All channels of a rendered mesh (see the module's text), in the order of `MAP_CHANNELS`.

    Args:
        fragments: What each pixel sees of the mesh.
        vertices: The mesh, camera-frame metres.
        faces: Its triangles.
        texture: The person's appearance.
        unique_colors: The result of `unique_vertex_colors` for the body.
    """
    with torch.autocast(vertices.device.type, enabled=False):
        vertices = vertices.float()
        unique = unique_colors.float().expand(len(vertices), -1, -1)
        at_vertices = torch.cat([vertex_normals(vertices, faces), unique], dim=-1)
        normals, colors = _channels_first(vertex_to_pixel(fragments, faces, at_vertices)).split(3, dim=1)
        # An interpolated normal is shorter than the ones it lies between.
        normals = _unit(normals, dim=1, shortest=SHORTEST_INTERPOLATED)
        depth = (fragments.depth - vertices[..., 2].mean(dim=1)[:, None, None]) * fragments.mask
        return torch.cat([_texture_map(fragments, faces, texture), depth[:, None], normals, colors], dim=1)


def unique_vertex_colors(template: Float[Tensor, "vertices 3"]) -> Float[Tensor, "vertices 3"]:
    """The colour that tells each point of the body from all others: its place in the zero-pose mean-shape body.

    Args:
        template: Vertices of that body, for example `BodyModel.template`.

    Returns:
        The position in the bounding box of the body, 0..1 along each axis.
    """
    low, high = template.amin(dim=0), template.amax(dim=0)
    return (template - low) / (high - low)


def vertex_normals(
    vertices: Float[Tensor, "batch vertices 3"], faces: Int64[Tensor, "faces 3"]
) -> Float[Tensor, "batch vertices 3"]:
    """Unit normals: the mean over the triangles at each vertex, weighted by their areas.

    They point outwards if triangles are counter-clockwise seen from outside. Zero where a vertex has no triangle, or
    only degenerate ones.
    """
    batch, num_vertices, _ = vertices.shape
    rows, flat = (faces + _first_rows(batch, num_vertices, faces.device)).flatten(0, 1), vertices.flatten(0, 1)
    first, second, third = (flat.index_select(0, rows[:, corner]) for corner in range(3))
    # Twice the triangle's area long, which makes the sum the weighted mean.
    normals = torch.linalg.cross(second - first, third - first)
    total = torch.zeros_like(flat)
    for corner in range(3):
        total = total.index_add(0, rows[:, corner], normals)
    return _unit(total, dim=-1, shortest=SHORTEST_NORMAL).view_as(vertices)


def _texture_map(
    fragments: Fragments, faces: Int64[Tensor, "faces 3"], texture: Texture
) -> Float32[Tensor, "batch 3 height width"]:
    match texture:
        case VertexColors(rgb):
            return _channels_first(vertex_to_pixel(fragments, faces, rgb.float()))
        case UvTexture(image, coordinates, texture_faces):
            # The UV layout is a mesh of its own with the same triangles, so its fragments are the body's.
            batch = len(fragments.triangle_id)
            uv = vertex_to_pixel(fragments, texture_faces, coordinates.float().expand(batch, -1, -1))
            # v = 1 is the first row: (1 - v) h in pixels is 1 - 2 v in grid_sample's range of -1 (top) to 1.
            grid = torch.stack([2 * uv[..., 0] - 1, 1 - 2 * uv[..., 1]], dim=-1)
            sampled = functional.grid_sample(image.float(), grid, padding_mode="border", align_corners=False)
            return sampled * fragments.mask[:, None]


def _channels_first(
    image: Float[Tensor, "batch height width channels"],
) -> Float[Tensor, "batch channels height width"]:
    return image.permute(0, 3, 1, 2).contiguous()


def _first_rows(batch: int, num_vertices: int, device: torch.device) -> Int64[Tensor, "batch 1 1"]:
    """Where each mesh begins when the vertices of the batch are stacked."""
    return (torch.arange(batch, device=device) * num_vertices)[:, None, None]


def _unit(vectors: Tensor, dim: int, shortest: float) -> Tensor:
    """Vectors of length one; those shorter than `shortest` keep their direction but not length one, zero stays zero.

    Clamped before the root, so that the gradient at zero is finite. (On a CPU torch's `normalize` along a leading axis
    takes fifty times as long.)
    """
    return vectors / vectors.square().sum(dim=dim, keepdim=True).clamp(min=shortest**2).sqrt()
