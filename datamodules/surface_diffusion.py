"""Fills in what was never seen of a surface: the smoothest continuation of what was, over the mesh.

Values of unknown vertices solve the discrete Laplace equation: each is the mean of its neighbours', weighted by the
inverse length of the edge to them, the known ones kept. So no filled value exceeds the known values about it (the
maximum principle, which cotangent weights lose at obtuse triangles).
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy import ndarray
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

#: Edges count as at least this long, in metres, so that vertices that coincide have finite weights.
SHORTEST_EDGE_M: Final = 1e-4


def diffuse(
    vertices_m: Float32[ndarray, "vertices 3"],
    faces: Int64[ndarray, "faces 3"],
    values: Float32[ndarray, "vertices channels"],
    known: Bool[ndarray, " vertices"],
) -> Float32[ndarray, "vertices channels"]:
    """Values of all vertices, those of known ones as they are.

    Pieces of the mesh without any known vertex get the mean of the known ones; if none is known, all values are zero.

    Args:
        vertices_m: Positions, for example of the rest body.
        faces: Triangles.
        values: Values; those of unknown vertices are not read.
        known: Which ones are known.
    """
    if not known.any():
        return np.zeros_like(values)
    result = np.where(known[:, None], values, values[known].mean(axis=0)).astype(np.float32)
    links = _links(vertices_m, faces)
    piece = connected_components(links, directed=False)[1]
    solved = np.flatnonzero(~known & np.isin(piece, np.unique(piece[known])))
    if len(solved):
        result[solved] = _solve(links, values.astype(np.float64), known, solved)
    return result


def _solve(
    links: csr_matrix, values: Float64[ndarray, "vertices channels"], known: ndarray, solved: ndarray
) -> Float64[ndarray, "solved channels"]:
    laplacian = diags(np.asarray(links.sum(axis=1)).ravel()) - links
    rows = laplacian.tocsr()[solved]
    sources = np.flatnonzero(known)
    right = -(rows[:, sources] @ values[sources])
    # Every piece that is solved touches a known vertex, so the matrix is positive definite.
    solution: ndarray = splu(rows[:, solved].tocsc(), permc_spec="MMD_AT_PLUS_A").solve(np.asarray(right))
    return solution


def _links(vertices_m: ndarray, faces: ndarray) -> csr_matrix:
    """Symmetric weights between the ends of each edge."""
    edges = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    length = np.linalg.norm((vertices_m[edges[:, 0]] - vertices_m[edges[:, 1]]).astype(np.float64), axis=1)
    weight = 1 / np.maximum(length, SHORTEST_EDGE_M)
    both = (np.concatenate([edges[:, 0], edges[:, 1]]), np.concatenate([edges[:, 1], edges[:, 0]]))
    count = len(vertices_m)
    return coo_matrix((np.concatenate([weight, weight]), both), shape=(count, count)).tocsr()
