"""The CPU rasterizer: a z-buffer in homogeneous coordinates, compiled by numba.

For a pixel's ray r = ((c + 0.5 - cx) / fx, (r + 0.5 - cy) / fy, 1) and a triangle with corners v0, v1, v2 let

    e0 = r . (v1 x v2),   e1 = r . (v2 x v0),   e2 = r . (v0 x v1),   det = v0 . (v1 x v2).

The ray meets the triangle's plane at depth z = det / (e0 + e1 + e2), with barycentric coordinates e_k / (e0 + e1 + e2);
it meets the triangle in front of the camera where all e_k have the sign of det. Nothing is divided by a corner's depth,
so corners behind the camera need no clipping (Olano and Greer, "Triangle Scan Conversion Using 2D Homogeneous
Coordinates", 1997). Three properties rest on how this is computed:

* Shared edges are covered once. The components of v_i x v_j come from products of float32 numbers, exact in float64,
  so the two triangles at an edge evaluate the same number with opposite signs. Where it is zero, the triangle for which
  the edge is a left or a top edge takes the pixel.
* Ties are decided. Triangles are drawn in order and replace only what is strictly farther: at equal depth the lowest
  triangle id wins.
* The number of threads changes nothing. Threads share out whole images, or bands of rows when there are fewer images
  than threads, and each pixel sees every triangle in order.
"""

from dataclasses import dataclass
from itertools import product
from typing import Final, no_type_check

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bodies.camera import NEAR_PLANE_M, PinholeCamera
from bodies.compiled import compiled, run_jobs, split
from renderers.rasterize import Fragments, check_meshes

#: Added to the edge functions that include their zero, to tell "not below zero" and "above zero" by one comparison.
#: Smaller than any edge function that is not zero: those of float32 input are at least 1e-180 apart.
INCLUSIVE: Final = 1e-300
#: Triangles that cover less than this in the image are seen edge-on, and rounding decides their depth: not drawn.
MIN_AREA_PX: Final = 1e-6
#: Bounding boxes are widened by this, so that rounding in a corner's projection loses no pixel.
BOX_MARGIN_PX: Final = 1e-4
#: Bands of fewer rows than this cost more in repeated triangle setup than another thread saves.
MIN_BAND_ROWS: Final = 16

# What the projection of a vertex says about it; combined by "or" over the corners of a triangle.
_IN_FRONT: Final = 0
_BEHIND: Final = 1
_UNUSABLE: Final = 2


# no_type_check keeps the annotation checker of the test run from wrapping functions that numba must read.
@compiled
@no_type_check
def _project(vertices, intrinsics, columns_rows, states):
    """Vertices to continuous (column, row), counted from the first pixel's centre, and their state."""
    fx, fy, cx, cy = intrinsics
    for vertex in range(vertices.shape[0]):
        x, y, z = np.float64(vertices[vertex, 0]), np.float64(vertices[vertex, 1]), np.float64(vertices[vertex, 2])
        if z >= NEAR_PLANE_M:
            column, row = x / z * fx + cx - 0.5, y / z * fy + cy - 0.5
            columns_rows[vertex, 0], columns_rows[vertex, 1] = column, row
            states[vertex] = _IN_FRONT if np.isfinite(column + row) and z < np.inf else _UNUSABLE
        else:
            states[vertex] = _BEHIND if np.isfinite(x + y + z) else _UNUSABLE


@compiled
@no_type_check
def _crossing_box(vertices, corners, intrinsics):
    """Box of the part of a triangle beyond the near plane: lowest and highest column, lowest and highest row.

    Infinite, and the lowest above the highest, if there is no such part.
    """
    fx, fy, cx, cy = intrinsics
    low_c, high_c, low_r, high_r = np.inf, -np.inf, np.inf, -np.inf
    for k in range(3):
        a, b = corners[k], corners[(k + 1) % 3]
        z_a, z_b = np.float64(vertices[a, 2]), np.float64(vertices[b, 2])
        for end in range(2):
            # Each edge contributes its start, and the point where it crosses the near plane.
            if (end == 0 and z_a < NEAR_PLANE_M) or (end == 1 and (z_a < NEAR_PLANE_M) == (z_b < NEAR_PLANE_M)):
                continue
            along = 0.0 if end == 0 else (NEAR_PLANE_M - z_a) / (z_b - z_a)
            z = z_a if end == 0 else NEAR_PLANE_M
            column = (vertices[a, 0] + along * (np.float64(vertices[b, 0]) - vertices[a, 0])) / z * fx + cx - 0.5
            row = (vertices[a, 1] + along * (np.float64(vertices[b, 1]) - vertices[a, 1])) / z * fy + cy - 0.5
            low_c, high_c = min(low_c, column), max(high_c, column)
            low_r, high_r = min(low_r, row), max(high_r, row)
    return low_c, high_c, low_r, high_r


@compiled
@no_type_check
def _edge(vertices, i, j):
    """v_i x v_j, exactly opposite to v_j x v_i."""
    x_i, y_i, z_i = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
    x_j, y_j, z_j = np.float64(vertices[j, 0]), np.float64(vertices[j, 1]), np.float64(vertices[j, 2])
    return y_i * z_j - z_i * y_j, z_i * x_j - x_i * z_j, x_i * y_j - y_i * x_j


@compiled
@no_type_check
def _tie(a, b):
    """What to add to an edge function with this gradient: left edges and top edges include their zero."""
    return INCLUSIVE if a > 0.0 or (a == 0.0 and b > 0.0) else 0.0


@compiled
@no_type_check
def _draw(vertices, face_id, corners, box, rays_x, rays_y, buffer, first_row, triangle_id, barycentric, depth):
    """Draws one triangle into the pixels of its box (columns from, to; rows from, to; both inclusive)."""
    i, j, k = corners
    (a0, b0, c0), (a1, b1, c1), (a2, b2, c2) = _edge(vertices, j, k), _edge(vertices, k, i), _edge(vertices, i, j)
    z0, z1, z2 = np.float64(vertices[i, 2]), np.float64(vertices[j, 2]), np.float64(vertices[k, 2])
    det = vertices[i, 0] * a0 + vertices[i, 1] * b0 + z0 * c0
    # |det| is twice the area on the plane z = 1 times the three depths.
    if not abs(det) > 2.0 * MIN_AREA_PX * (rays_x[1] - rays_x[0]) * (rays_y[1] - rays_y[0]) * abs(z0 * z1 * z2):
        return
    if det < 0.0:
        det = -det
        a0, b0, c0, a1, b1, c1, a2, b2, c2 = -a0, -b0, -c0, -a1, -b1, -c1, -a2, -b2, -c2
    tie0, tie1, tie2 = _tie(a0, b0), _tie(a1, b1), _tie(a2, b2)
    inverse_det = 1.0 / det
    for row in range(box[2], box[3] + 1):
        d0, d1, d2 = b0 * rays_y[row] + c0, b1 * rays_y[row] + c1, b2 * rays_y[row] + c2
        for column in range(box[0], box[1] + 1):
            e0 = a0 * rays_x[column] + d0 + tie0
            e1 = a1 * rays_x[column] + d1 + tie1
            e2 = a2 * rays_x[column] + d2 + tie2
            total = e0 + e1 + e2
            inverse_z = total * inverse_det
            # One branch for "inside and nearer": the processor cannot guess these, and pays for each.
            if min(min(e0, e1), min(e2, inverse_z - buffer[row - first_row, column])) > 0.0:
                if inverse_z > 1.0 / NEAR_PLANE_M:
                    continue
                buffer[row - first_row, column] = inverse_z
                triangle_id[row, column] = face_id
                depth[row, column] = 1.0 / inverse_z
                barycentric[row, column, 0] = e0 / total
                barycentric[row, column, 1] = e1 / total
                barycentric[row, column, 2] = e2 / total


@compiled
@no_type_check
def _rasterize_rows(vertices, faces, intrinsics, first_row, last_row, triangle_id, barycentric, depth):
    """Draws one mesh into the rows from `first_row` up to `last_row` (not included) of its image."""
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    rays_x = (np.arange(width + 1) + 0.5 - cx) / fx
    rays_y = (np.arange(height + 1) + 0.5 - cy) / fy
    triangle_id[first_row:last_row], barycentric[first_row:last_row], depth[first_row:last_row] = -1, 0.0, 0.0
    buffer = np.zeros((last_row - first_row, width))
    columns_rows = np.empty((vertices.shape[0], 2))
    states = np.empty(vertices.shape[0], np.uint8)
    _project(vertices, intrinsics, columns_rows, states)
    for face_id in range(faces.shape[0]):
        i, j, k = faces[face_id, 0], faces[face_id, 1], faces[face_id, 2]
        state = states[i] | states[j] | states[k]
        if state == _IN_FRONT:
            c0, c1, c2 = columns_rows[i, 0], columns_rows[j, 0], columns_rows[k, 0]
            r0, r1, r2 = columns_rows[i, 1], columns_rows[j, 1], columns_rows[k, 1]
            low_c, high_c, low_r, high_r = min(c0, c1, c2), max(c0, c1, c2), min(r0, r1, r2), max(r0, r1, r2)
        elif state == _BEHIND:
            low_c, high_c, low_r, high_r = _crossing_box(vertices, (i, j, k), intrinsics)
        else:
            continue
        # Clamped before they become integers: they may be as large as floating point goes.
        low_c, low_r = np.ceil(max(low_c - BOX_MARGIN_PX, 0.0)), np.ceil(max(low_r - BOX_MARGIN_PX, first_row))
        high_c, high_r = min(high_c + BOX_MARGIN_PX, width - 1.0), min(high_r + BOX_MARGIN_PX, last_row - 1.0)
        if low_c <= high_c and low_r <= high_r:
            box = (int(low_c), int(high_c), int(low_r), int(high_r))
            _draw(
                vertices, face_id, (i, j, k), box, rays_x, rays_y, buffer, first_row, triangle_id, barycentric, depth
            )  # fmt: skip


@dataclass(frozen=True)
class CpuRasterizer:
    """The numba rasterizer. Compiling takes some seconds at the first call on a machine."""

    threads: int | None = None
    """How many threads to use; torch's count by default."""

    def __call__(
        self,
        vertices: Float[Tensor, "batch vertices 3"],
        faces: Int64[Tensor, "faces 3"],
        camera: PinholeCamera,
        height: int,
        width: int,
    ) -> Fragments:
        """See `renderers.rasterize.Rasterizer`. Positions are rounded to float32.

        Raises:
            ValueError: Also if a face names a vertex that is not there.
        """
        check_meshes(vertices, faces, camera, height, width)
        if len(faces) and not 0 <= faces.min() <= faces.max() < vertices.shape[1]:
            raise ValueError(f"faces name vertices outside 0..{vertices.shape[1] - 1}")
        meshes = vertices.detach().to("cpu", torch.float32).contiguous().numpy()
        corners = faces.cpu().contiguous().numpy()
        intrinsics = torch.cat([camera.focal_px, camera.center_px], dim=1).detach().to("cpu", torch.float64).tolist()
        shape = (len(meshes), height, width)
        images = np.empty(shape, np.int64), np.empty((*shape, 3), np.float32), np.empty(shape, np.float32)
        threads = self.threads or torch.get_num_threads()

        def draw(job: tuple[int, tuple[int, int]]) -> None:
            sample, rows = job
            image = (array[sample] for array in images)
            _rasterize_rows(meshes[sample], corners, tuple(intrinsics[sample]), *rows, *image)

        # Images are shared out whole, or in bands of rows when there are fewer images than threads.
        bands = split(height, max(1, min(-(-threads // max(len(meshes), 1)), height // MIN_BAND_ROWS)))
        run_jobs(draw, product(range(len(meshes)), bands), threads)
        return Fragments(*(torch.from_numpy(array).to(vertices.device) for array in images))
