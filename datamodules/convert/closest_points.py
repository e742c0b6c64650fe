"""Closest points of a triangle mesh, as a sparse matrix that finds them again on the mesh in any other posture."""

from typing import Final

import numpy as np
import trimesh
from jaxtyping import Float64, Int64
from numpy import ndarray
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

#: Faces at this many of the nearest vertices are looked at: on a mesh of even triangles the closest face is among
#: those of the nearest few.
_NEAREST: Final = 8
#: Least cosine between the normal of a point and that of a face that may hold its closest point: fingers and thighs
#: lie close to each other, but face each other.
_LEAST_AGREEMENT: Final = 0.3
#: Faces of less area, in m^2, have no normal.
_LEAST_AREA_M2: Final = 1e-12


def vertex_normals(
    vertices: Float64[ndarray, "vertices 3"], faces: Int64[ndarray, "faces 3"]
) -> Float64[ndarray, "vertices 3"]:
    """Unit normals, means over the faces at a vertex by area; zero for a vertex without faces."""
    normals = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], _face_normals(vertices[faces]))
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.divide(normals, length, out=np.zeros_like(normals), where=length > 0)


def closest_points(
    points: Float64[ndarray, "points 3"],
    normals: Float64[ndarray, "points 3"],
    vertices: Float64[ndarray, "vertices 3"],
    faces: Int64[ndarray, "faces 3"],
) -> csr_matrix:
    """Barycentric weights (points, vertices) of the closest point of the mesh that faces the same way.

    Args:
        points: Where to look from.
        normals: Unit normals there; points whose neighbourhood faces another way altogether get the closest point.
        vertices: Of the mesh.
        faces: Of the mesh; those without area are ignored.
    """
    faces = faces[np.linalg.norm(_face_normals(vertices[faces]), axis=1) > 2 * _LEAST_AREA_M2]
    table = _faces_at(faces, len(vertices))
    used = np.unique(faces)
    _, nearest = cKDTree(vertices[used]).query(points, min(_NEAREST, len(used)))
    candidates = table[used[nearest.reshape(len(points), -1)]].reshape(len(points), -1)
    triangles = vertices[faces[candidates]].reshape(-1, 3, 3)
    there = trimesh.triangles.closest_point(triangles, np.repeat(points, candidates.shape[1], axis=0))
    distance = np.linalg.norm(there.reshape(*candidates.shape, 3) - points[:, None], axis=-1)
    unit = _face_normals(triangles)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    agrees = np.einsum("pfc,pc->pf", unit.reshape(*candidates.shape, 3), normals) >= _LEAST_AGREEMENT
    # A face that looks the other way is taken only if all do.
    best = np.where(agrees, distance, distance + 1e3).argmin(axis=1)
    row = np.arange(len(points))
    chosen = row * candidates.shape[1] + best
    weights = trimesh.triangles.points_to_barycentric(triangles[chosen], there[chosen]).clip(0)
    weights /= weights.sum(axis=1, keepdims=True)
    corners = faces[candidates[row, best]]
    return csr_matrix((weights.ravel(), (np.repeat(row, 3), corners.ravel())), shape=(len(points), len(vertices)))


def _face_normals(triangles: Float64[ndarray, "faces 3 3"]) -> Float64[ndarray, "faces 3"]:
    """Twice the area long."""
    return np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])


def _faces_at(faces: Int64[ndarray, "faces 3"], vertices: int) -> Int64[ndarray, "vertices most"]:
    """Faces at each vertex, the first of them repeated to fill the row."""
    order = np.argsort(faces.ravel(), kind="stable")
    count = np.bincount(faces.ravel(), minlength=vertices)
    start = np.concatenate([[0], np.cumsum(count)[:-1]])
    slot = np.arange(count.max())
    within = np.where(slot < count[:, None], slot, 0)
    return order[np.minimum(start[:, None] + within, len(order) - 1)] // 3
