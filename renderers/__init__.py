"""Mesh to pixels and back: rasterizers, the maps a network sees, correspondence; `renderers.drawing` makes pictures."""

from renderers.correspondence import (
    DisplacementSupervision,
    displacement_supervision,
    pixel_to_vertex,
    vertex_displacement,
    vertex_targets,
    vertex_to_pixel,
)
from renderers.maps import (
    MAP_CHANNELS,
    NUM_MAP_CHANNELS,
    UvTexture,
    VertexColors,
    render_maps,
    unique_vertex_colors,
    vertex_normals,
)
from renderers.rasterize import Fragments, Rasterizer, RasterizerName, make_rasterizer

__all__ = [
    "MAP_CHANNELS",
    "NUM_MAP_CHANNELS",
    "DisplacementSupervision",
    "Fragments",
    "Rasterizer",
    "RasterizerName",
    "UvTexture",
    "VertexColors",
    "displacement_supervision",
    "make_rasterizer",
    "pixel_to_vertex",
    "render_maps",
    "unique_vertex_colors",
    "vertex_displacement",
    "vertex_normals",
    "vertex_targets",
    "vertex_to_pixel",
]
