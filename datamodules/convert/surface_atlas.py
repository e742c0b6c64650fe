"""DensePose's charts: from a body part and its U, V to a point of SMPL's surface.

The charts are those of `UV_Processed.mat`, which DensePose offers as `densepose_uv_data.tar.gz`: 7829 chart vertices,
each a copy of one of SMPL's 6890 (a vertex on the border of parts has several), 13774 triangles of them, and for each
triangle its part, 1 to 24. That is two triangles fewer than SMPL has. A point that lies in no triangle of its part goes
to the part's nearest chart vertex, as in DensePose's own code.

Source: facebookresearch/DensePose `detectron/utils/densepose_methods.py` (`IUV2FBC`, `FBC2PointOnSurface`).
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import scipy.io
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray

from bodies.errors import InputError, one_line

FILE: Final = "UV_Processed.mat"
PARTS: Final = 24
#: A triangle of less area in the chart has no inside.
_NO_AREA: Final = 1e-12
#: How far outside a triangle a point may be by rounding.
_INSIDE: Final = 1e-6
#: Part of the chart's triangles that may be missing in the body's; more, and the body is not SMPL.
_MISSING: Final = 0.01


@dataclass(frozen=True)
class SurfaceAtlas:
    """The charts, tied to the faces of a body model. `triangles` are those of the charts."""

    part: Int64[ndarray, " triangles"]
    """1 to 24."""
    corner_uv: Float64[ndarray, "triangles 3 2"]
    """U and V of the corners."""
    weights_of_uv: Float64[ndarray, "triangles 3 3"]
    """The barycentric coordinates of (U, V) are this times (U, V, 1); NaN for a triangle without an inside."""
    corners: Int64[ndarray, "triangles 3"]
    """Vertices of the body."""
    face: Int64[ndarray, " triangles"]
    """Row of the body's faces that has these corners, in any order; -1 if none has."""
    face_of_vertex: Int64[ndarray, " verts"]
    """Any face that each vertex of the body is a corner of, -1 if none."""
    faces: Int64[ndarray, "faces 3"]
    """Of the body."""

    def locate(
        self, part: Int64[ndarray, " points"], uv: Float64[ndarray, "points 2"]
    ) -> tuple[Int64[ndarray, " points"], Float32[ndarray, "points 3"]]:
        """Rows of the body's faces and barycentric coordinates, in the order of the face's corners."""
        triangle, weights = np.zeros(len(part), np.int64), np.zeros((len(part), 3))
        for number in np.unique(part):
            points = np.flatnonzero(part == number)
            triangle[points], weights[points] = self._locate(np.flatnonzero(self.part == number), uv[points])
        return self._on_body(triangle, weights)

    def _locate(
        self, triangles: Int64[ndarray, " chosen"], uv: Float64[ndarray, "points 2"]
    ) -> tuple[Int64[ndarray, " points"], Float64[ndarray, "points 3"]]:
        """Which of the triangles each point lies in, and its coordinates there."""
        places = np.arange(len(uv))
        weights = np.einsum("tkc,pc->ptk", self.weights_of_uv[triangles], np.column_stack([uv, np.ones(len(uv))]))
        least = np.nan_to_num(weights.min(axis=2), nan=-np.inf)
        best = least.argmax(axis=1)
        inside = least[places, best] >= -_INSIDE
        chosen = np.clip(weights[places, best], 0, None)
        outside = np.flatnonzero(~inside)
        distance = np.linalg.norm(self.corner_uv[triangles].reshape(1, -1, 2) - uv[outside, None], axis=2)
        best[outside], corner = np.divmod(distance.argmin(axis=1), 3)
        chosen[outside] = np.eye(3)[corner]
        return triangles[best], chosen / chosen.sum(axis=1, keepdims=True)

    def _on_body(
        self, triangle: Int64[ndarray, " points"], weights: Float64[ndarray, "points 3"]
    ) -> tuple[Int64[ndarray, " points"], Float32[ndarray, "points 3"]]:
        corners, face = self.corners[triangle].copy(), self.face[triangle].copy()
        # Where the body has no such face, the nearest corner stands for the point.
        lost = np.flatnonzero(face < 0)
        corners[lost] = corners[lost, weights[lost].argmax(axis=1), None]
        face[lost] = self.face_of_vertex[corners[lost, 0]]
        weights = weights.copy()
        weights[lost] = 1 / 3  # all three are the same vertex
        # [point, corner of the face, corner of the chart]
        same = self.faces[face][:, :, None] == corners[:, None]
        return face, (same * weights[:, None]).sum(axis=2).astype(np.float32)


def read_atlas(path: Path, faces: Int64[ndarray, "faces 3"], vertices: int) -> SurfaceAtlas:
    """Reads the charts for a body model.

    Args:
        path: `UV_Processed.mat`, or a folder that holds it, also in `UV_data`.
        faces: Of the body model.
        vertices: How many it has.

    Raises:
        InputError: If the file is missing, damaged or of another format, or the body is not the one of the charts.
    """
    if path.is_dir():
        places = (path / FILE, path / "UV_data" / FILE)
        path = next((place for place in places if place.is_file()), places[0])
    content = _content(path)
    chart_faces = _numbers(path, content, "All_Faces", (None, 3)).astype(np.int64) - 1
    part = _numbers(path, content, "All_FaceIndices", (len(chart_faces),)).astype(np.int64)
    body_vertex = _numbers(path, content, "All_vertices", (None,)).astype(np.int64) - 1
    uv = np.stack([_numbers(path, content, f"All_{axis}_norm", (len(body_vertex),)) for axis in "UV"], axis=1)
    for name, values, count in (
        ("All_Faces", chart_faces, len(body_vertex)),
        ("All_FaceIndices", part - 1, PARTS),
        ("All_vertices", body_vertex, None),
    ):
        if values.min() < 0 or (count is not None and values.max() >= count):
            raise InputError(f"{path}: {name} points at {values.min() + 1} to {values.max() + 1}, which do not exist")
    if body_vertex.max() >= vertices:
        raise InputError(f"{path}: is about {body_vertex.max() + 1} vertices, the body model has {vertices}: not SMPL")
    corners = body_vertex[chart_faces]
    face = _faces_of(corners, faces)
    if (face < 0).mean() > _MISSING:
        raise InputError(
            f"{path}: {(face < 0).sum()} of its {len(face)} triangles are none of the body model's: it is not SMPL"
        )
    corner_uv = uv[chart_faces]
    face_of_vertex = np.full(vertices, -1)
    face_of_vertex[faces.ravel()] = np.repeat(np.arange(len(faces)), 3)
    return SurfaceAtlas(part, corner_uv, _weights_of_uv(corner_uv), corners, face, face_of_vertex, faces)


def _content(path: Path) -> Mapping[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); it is in densepose_uv_data.tar.gz of DensePose"
        ) from error
    try:
        content: Mapping[str, Any] = scipy.io.loadmat(io.BytesIO(data))
    except Exception as error:  # scipy lets through what zlib, struct and numpy raise
        raise InputError(f"{path}: not a whole MATLAB file ({one_line(error)})") from error
    return content


def _numbers(
    path: Path, content: Mapping[str, Any], key: str, shape: tuple[int | None, ...]
) -> Float64[ndarray, "..."]:
    """An array of numbers, with a row or a column of MATLAB's as one axis."""
    if key not in content:
        raise InputError(f"{path}: not DensePose's {FILE}, it lacks {key}")
    array = np.asarray(content[key])
    flat = array.reshape(-1) if len(shape) == 1 and sum(n != 1 for n in array.shape) <= 1 else array
    fits = flat.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, flat.shape, strict=True))
    if array.dtype.kind not in "iuf" or not fits or not flat.size or not np.isfinite(flat).all():
        raise InputError(f"{path}: {key} is {array.dtype} of shape {array.shape}, expected were finite numbers {shape}")
    return flat.astype(np.float64)


def _faces_of(corners: Int64[ndarray, "triangles 3"], faces: Int64[ndarray, "faces 3"]) -> Int64[ndarray, " triangles"]:
    """The body's face with the same corners, whatever their order; -1 if there is none."""
    known = {tuple(face): row for row, face in enumerate(np.sort(faces, axis=1).tolist())}
    return np.array([known.get(tuple(triangle), -1) for triangle in np.sort(corners, axis=1).tolist()])


def _weights_of_uv(corner_uv: Float64[ndarray, "triangles 3 2"]) -> Float64[ndarray, "triangles 3 3"]:
    """Inverse of the matrices with the corners' (U, V, 1) as columns."""
    matrices = np.concatenate([corner_uv, np.ones((*corner_uv.shape[:2], 1))], axis=2).transpose(0, 2, 1)
    flat = np.abs(np.linalg.det(matrices)) < _NO_AREA
    inverse = np.linalg.inv(np.where(flat[:, None, None], np.eye(3), matrices))
    return np.where(flat[:, None, None], np.nan, inverse)
