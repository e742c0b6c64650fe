"""The quadratic of `terms.reprojection_quadratic` for points of the mesh, in one pass over the points on the CPU.

The same numbers as the tensor code in `fitting.terms`, which is its readable twin, its oracle in the tests, and
the path on a GPU. As tensor operations the Jacobian takes a dozen passes over arrays of its own size (13 MB for 32
bodies with 600 vertices each) and its product runs over all 85 unknowns; here each point's two rows stay in
registers and cache, and only the unknowns that move the point (its bones' ancestors: about 33 of 85) are multiplied.
Samples run in parallel.
"""

from typing import no_type_check

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyModel, PinholeCamera
from bodies.camera import NEAR_PLANE_M
from bodies.compiled import compiled, run_jobs, split
from fitting.body_points import Bones, TrianglePoints, VertexPoints, shift_shape_jacobian

#: Sums may be reordered and fused; infinities and NaN keep their meaning.
FAST = {"contract", "reassoc", "nsz"}


def mesh_quadratic(
    points: VertexPoints | TrianglePoints,
    body: BodyModel,
    bones: Bones,
    betas: Float[Tensor, "batch betas"],
    transl: Float[Tensor, "batch 3"],
    camera: PinholeCamera,
    scale: Float[Tensor, " batch"],
    target_px: Float[Tensor, "batch points 2"],
    weight: Float[Tensor, "batch points"],
    sigma: float,
    free: Bool[Tensor, " unknowns"],
) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch unknowns"], Float[Tensor, "batch unknowns unknowns"]]:
    """Robust reprojection error, its gradient and its Gauss-Newton Hessian; see `fitting.terms` for the unknowns.

    The value is infinite where a seen point is not in front of the camera. Only the block of the `free` unknowns
    is right in gradient and Hessian; the other rows are zero, which makes the camera stage cheap.
    """
    unknowns = 3 * body.num_joints + betas.shape[1] + 3
    value = betas.new_empty(len(betas))
    gradient = betas.new_empty(len(betas), unknowns)
    hessian = betas.new_empty(len(betas), unknowns, unknowns)
    vertices = points.corners if isinstance(points, TrianglePoints) else points
    arrays = (
        *(vertices.rest(bones, betas), vertices.masses, vertices.shape_directions, vertices.pose_directions),
        *(bones.rotations.flatten(2), bones.joints, bones.shifts, bones.local_rotations),
        *(shift_shape_jacobian(body, bones, betas.shape[1]).flatten(2), transl),
        *(camera.focal_px * scale[:, None], camera.center_px, scale, target_px, weight),
        *(value, gradient, hessian),
        *((points.shares,) if isinstance(points, TrianglePoints) else ()),
    )
    accumulate = _accumulate_triangles if isinstance(points, TrianglePoints) else _accumulate
    # Numba computes in float64 as soon as one operand is a Python number: the precision is the tensors' own.
    number = value.numpy().dtype.type
    parents = np.asarray(body.parents, dtype=np.int64)
    constants = (number(sigma), number(NEAR_PLANE_M), parents, free.numpy())
    inputs = tuple(array.contiguous().numpy() for array in arrays)
    run_jobs(lambda run: accumulate(*run, *constants, *inputs), split(len(betas), torch.get_num_threads()))
    return value, gradient, hessian


@compiled(fastmath=FAST)
@no_type_check
def _accumulate(
    first, last, sigma, near, parents, free, rest, masses, shape_directions, pose_directions, world, places, shifts,
    local, moved, transl, focal, center, scale, target, weight, value, gradient, hessian,
):  # fmt: skip
    count = weight.shape[1]
    unknowns = gradient.shape[1]
    joints = parents.shape[0]
    width = (unknowns + 15) // 16 * 16
    blends = pose_directions.shape[3] > 0
    for b in range(first, last):
        levers = np.empty(3 * joints, rest.dtype)
        below = np.empty(joints, rest.dtype)
        blend = np.empty(9, rest.dtype)
        along = np.empty(moved.shape[2], rest.dtype)
        rows = np.zeros((2, width), rest.dtype)
        top, bottom = rows[0], rows[1]
        product = np.zeros((unknowns, width), rest.dtype)
        slope = np.zeros(unknowns, rest.dtype)
        turned = _blend_turns(b, world, local)
        total = rest.dtype.type(0)
        for i in range(count):
            if weight[b, i] <= 0:
                continue
            x, y, z = _carry(b, i, rest, masses, world, shifts, moved, levers, below, blend, along)
            x, y, z = x + transl[b, 0], y + transl[b, 1], z + transl[b, 2]
            if z < near:
                total = rest.dtype.type(np.inf)
                break
            rx, ry, ax, az, by, bz = _project(b, i, x, y, z, focal, center, scale, target)
            loss, influence = _robust(weight[b, i], rx, ry, sigma)
            total += loss
            _turn_rows(b, levers, below, parents, places, ax, az, by, bz, top, bottom)
            if blends:
                _add_blend_shapes(b, i, pose_directions, blend, turned, ax, az, by, bz, top, bottom)
            _shape_rows(b, i, shape_directions, blend, along, ax, az, by, bz, top, bottom, unknowns)
            _add_products(free, below, blends, influence, rx, ry, top, bottom, slope, product)
        # Each row of the product is complete: joints that have no share of a point are zero in its rows too.
        value[b], gradient[b], hessian[b] = total, slope, product[:, :unknowns]


@compiled(fastmath=FAST)
@no_type_check
def _accumulate_triangles(
    first, last, sigma, near, parents, free, rest, masses, shape_directions, pose_directions, world, places, shifts,
    local, moved, transl, focal, center, scale, target, weight, value, gradient, hessian, shares,
):  # fmt: skip
    """`_accumulate` for points that are means of three vertices: their rows are the means of the vertices' rows."""
    unknowns = gradient.shape[1]
    joints = parents.shape[0]
    width = (unknowns + 15) // 16 * 16
    blends = pose_directions.shape[3] > 0
    for b in range(first, last):
        levers, below = np.empty(3 * joints, rest.dtype), np.empty(joints, rest.dtype)
        blend, along = np.empty((3, 9), rest.dtype), np.empty(moved.shape[2], rest.dtype)
        levers_of, below_of, along_of = np.empty_like(levers), np.empty_like(below), np.empty_like(along)
        rows = np.zeros((2, width), rest.dtype)
        top, bottom = rows[0], rows[1]
        slope, product = np.zeros(unknowns, rest.dtype), np.zeros((unknowns, width), rest.dtype)
        turned = _blend_turns(b, world, local)
        total = rest.dtype.type(0)
        for i in range(weight.shape[1]):
            if weight[b, i] <= 0:
                continue
            levers[:], below[:], along[:] = 0, 0, 0
            x, y, z = transl[b, 0], transl[b, 1], transl[b, 2]
            for c in range(3):
                at, share = 3 * i + c, shares[b, i, c]
                if share == 0:
                    continue
                px, py, pz = _carry(b, at, rest, masses, world, shifts, moved, levers_of, below_of, blend[c], along_of)
                x, y, z = x + share * px, y + share * py, z + share * pz
                _add_corner(
                    b, at, share, shape_directions, blend[c], levers_of, below_of, along_of, levers, below, along
                )
            if z < near:
                total = rest.dtype.type(np.inf)
                break
            rx, ry, ax, az, by, bz = _project(b, i, x, y, z, focal, center, scale, target)
            loss, influence = _robust(weight[b, i], rx, ry, sigma)
            total += loss
            _turn_rows(b, levers, below, parents, places, ax, az, by, bz, top, bottom)
            for c in range(3):
                if blends and shares[b, i, c] != 0:
                    _add_blend_shapes(b, 3 * i + c, pose_directions, blend[c], turned, ax, az, by, bz, top, bottom)
            _mean_shape_rows(along, ax, az, by, bz, top, bottom, unknowns)
            _add_products(free, below, blends, influence, rx, ry, top, bottom, slope, product)
        value[b], gradient[b], hessian[b] = total, slope, product[:, :unknowns]


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _project(b, i, x, y, z, focal, center, scale, target):
    """Residual in pixels, and the rows of the projection's derivative: (ax, 0, az) and (0, by, bz)."""
    rx = focal[b, 0] * x / z + (center[b, 0] - target[b, i, 0]) * scale[b]
    ry = focal[b, 1] * y / z + (center[b, 1] - target[b, i, 1]) * scale[b]
    ax, by = focal[b, 0] / z, focal[b, 1] / z
    return rx, ry, ax, -ax * x / z, by, -by * y / z


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _robust(weight, rx, ry, sigma):
    """Robust loss of a residual, and the factor on its gradient and Hessian."""
    squared = rx * rx + ry * ry
    inlier = sigma * sigma / (sigma * sigma + squared)
    return weight * squared * inlier, (weight + weight) * inlier * inlier


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _add_products(free, below, blends, influence, rx, ry, top, bottom, slope, product):
    """Adds influence J^T r to the slope and influence J^T J to the product, for the free unknowns.

    Rows of joints that do not move the point are zero and are skipped as a whole. The others run over the full padded
    width: whole vector registers beat a list of non-zero columns three to one.
    """
    turns = 3 * below.shape[0]
    for a in range(slope.shape[0]):
        if not free[a] or (not blends and a < turns and below[a // 3] == 0):
            continue
        above, beneath = influence * top[a], influence * bottom[a]
        slope[a] += above * rx + beneath * ry
        line = product[a]
        for c in range(line.shape[0]):
            line[c] += above * top[c] + beneath * bottom[c]


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _carry(b, i, rest, masses, world, shifts, moved, levers, below, blend, along):
    """Sums what each bone carries; leaves its parts in `levers` and its shares in `below`.

    `blend` becomes the mean rotation of the bones, row by row, `along` the mean derivative of their shifts.
    """
    for c in range(9):
        blend[c] = 0
    for s in range(along.shape[0]):
        along[s] = 0
    px, py, pz = rest[b, i, 0], rest[b, i, 1], rest[b, i, 2]
    x = y = z = rest.dtype.type(0)
    for k in range(below.shape[0]):
        w = masses[b, i, k]
        below[k] = w
        levers[3 * k] = levers[3 * k + 1] = levers[3 * k + 2] = 0
        if w == 0:
            continue
        turn, move = world[b, k], moved[b, k]
        for c in range(9):
            blend[c] += w * turn[c]
        for s in range(along.shape[0]):
            along[s] += w * move[s]
        levers[3 * k] = w * (turn[0] * px + turn[1] * py + turn[2] * pz + shifts[b, k, 0])
        levers[3 * k + 1] = w * (turn[3] * px + turn[4] * py + turn[5] * pz + shifts[b, k, 1])
        levers[3 * k + 2] = w * (turn[6] * px + turn[7] * py + turn[8] * pz + shifts[b, k, 2])
        x += levers[3 * k]
        y += levers[3 * k + 1]
        z += levers[3 * k + 2]
    return x, y, z


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _add_corner(b, at, share, directions, blend, levers_of, below_of, along_of, levers, below, along):
    """Adds a corner's share to what belongs to the point; `along` becomes the whole derivative by shape."""
    betas = along.shape[0] // 3
    for k in range(below.shape[0]):
        below[k] += share * below_of[k]
    for k in range(levers.shape[0]):
        levers[k] += share * levers_of[k]
    for c in range(9):
        blend[c] *= share
    for k in range(3):
        for s in range(betas):
            turned = blend[3 * k] * directions[b, at, 0, s] + blend[3 * k + 1] * directions[b, at, 1, s]
            turned += blend[3 * k + 2] * directions[b, at, 2, s]
            along[k * betas + s] += share * along_of[k * betas + s] + turned


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _turn_rows(b, levers, below, parents, places, ax, az, by, bz, top, bottom):
    """Rows by omega: adds up what hangs below each joint and measures it from the joint."""
    for k in range(below.shape[0] - 1, -1, -1):
        at = 3 * k
        if below[k] == 0:
            top[at] = top[at + 1] = top[at + 2] = 0
            bottom[at] = bottom[at + 1] = bottom[at + 2] = 0
            continue
        if k > 0:
            up = parents[k]
            below[up] += below[k]
            levers[3 * up] += levers[at]
            levers[3 * up + 1] += levers[at + 1]
            levers[3 * up + 2] += levers[at + 2]
        lx = levers[at] - below[k] * places[b, k, 0]
        ly = levers[at + 1] - below[k] * places[b, k, 1]
        lz = levers[at + 2] - below[k] * places[b, k, 2]
        top[at], top[at + 1], top[at + 2] = ly * az, lz * ax - lx * az, -ly * ax
        bottom[at], bottom[at + 1], bottom[at + 2] = ly * bz - lz * by, -lx * bz, lx * by


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _shape_rows(b, i, directions, blend, along, ax, az, by, bz, top, bottom, unknowns):
    """Rows by shape and translation, at the end."""
    betas = along.shape[0] // 3
    last = unknowns - 3
    first = last - betas
    ux, vx = ax * blend[0] + az * blend[6], by * blend[3] + bz * blend[6]
    uy, vy = ax * blend[1] + az * blend[7], by * blend[4] + bz * blend[7]
    uz, vz = ax * blend[2] + az * blend[8], by * blend[5] + bz * blend[8]
    dx, dy, dz = directions[b, i, 0], directions[b, i, 1], directions[b, i, 2]
    for s in range(betas):
        top[first + s] = ux * dx[s] + uy * dy[s] + uz * dz[s] + ax * along[s] + az * along[2 * betas + s]
        bottom[first + s] = vx * dx[s] + vy * dy[s] + vz * dz[s] + by * along[betas + s] + bz * along[2 * betas + s]
    top[last], top[last + 1], top[last + 2] = ax, 0, az
    bottom[last], bottom[last + 1], bottom[last + 2] = 0, by, bz


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _mean_shape_rows(along, ax, az, by, bz, top, bottom, unknowns):
    """`_shape_rows` of a point whose derivative by shape is summed up already."""
    betas = along.shape[0] // 3
    last = unknowns - 3
    first = last - betas
    for s in range(betas):
        top[first + s] = ax * along[s] + az * along[2 * betas + s]
        bottom[first + s] = by * along[betas + s] + bz * along[2 * betas + s]
    top[last], top[last + 1], top[last + 2] = ax, 0, az
    bottom[last], bottom[last + 1], bottom[last + 2] = 0, by, bz


@compiled(fastmath=FAST)
@no_type_check
def _blend_turns(b, world, local):
    """For each joint but the root: derivative of its 9 features by omega, R [G^T e_a]x row by row."""
    joints = world.shape[1]
    turned = np.empty((joints - 1, 9, 3), world.dtype)
    for j in range(1, joints):
        for a in range(3):
            ux, uy, uz = world[b, j, 3 * a], world[b, j, 3 * a + 1], world[b, j, 3 * a + 2]
            for i in range(3):
                rx, ry, rz = local[b, j, i, 0], local[b, j, i, 1], local[b, j, i, 2]
                turned[j - 1, 3 * i, a] = ry * uz - rz * uy
                turned[j - 1, 3 * i + 1, a] = rz * ux - rx * uz
                turned[j - 1, 3 * i + 2, a] = rx * uy - ry * ux
    return turned


@compiled(inline="always", fastmath=FAST)
@no_type_check
def _add_blend_shapes(b, i, directions, blend, turned, ax, az, by, bz, top, bottom):
    """Adds what turning a joint does through the pose blend shapes."""
    ux, vx = ax * blend[0] + az * blend[6], by * blend[3] + bz * blend[6]
    uy, vy = ax * blend[1] + az * blend[7], by * blend[4] + bz * blend[7]
    uz, vz = ax * blend[2] + az * blend[8], by * blend[5] + bz * blend[8]
    dx, dy, dz = directions[b, i, 0], directions[b, i, 1], directions[b, i, 2]
    for j in range(turned.shape[0]):
        for f in range(9):
            at = 9 * j + f
            above = ux * dx[at] + uy * dy[at] + uz * dz[at]
            beneath = vx * dx[at] + vy * dy[at] + vz * dz[at]
            for a in range(3):
                top[3 * j + 3 + a] += above * turned[j, f, a]
                bottom[3 * j + 3 + a] += beneath * turned[j, f, a]
