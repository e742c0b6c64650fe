"""The terms of the objective, one function per term, each as a value and as a local quadratic.

A sample's objective is the sum of its terms:

* reprojection: sum over points of weight * rho(|r|^2), r the pixel residual in units of the person's size
  (`PERSON_PX`), rho Geman-McClure's: sigma^2 r^2 / (sigma^2 + r^2)    (Wehrbein et al., eq. 4; SMPLify, eq. 2)
* pose prior: weight * energy of the body pose, for example a Gaussian mixture
* shape prior: weight * |beta|^2
* bending: weight * sum over elbows and knees of exp(angle)^2, large when they bend backwards  (SMPLify, eq. 4)
* camera depth: weight * (t_z - t_z of the initial estimate)^2                              (SPIN `smplify.py`)
* initial pose: weight * sum over joints of |R - R of the initial estimate|^2 / 2, for small angles their square  (ours)
* initial shape: weight * |beta - beta of the initial estimate|^2                             (ours)

The unknowns of a quadratic are, in this order: a world-frame rotation omega of each joint (joints x 3), the shape
coefficients, the translation (3). See `fitting.body_points` for omega.
"""

from dataclasses import dataclass, replace

import roma
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bodies import BodyModel, BodyParameters, PinholeCamera
from bodies.camera import NEAR_PLANE_M
from fitting.body_points import BodyPoints, Bones, TrianglePoints, VertexPoints, shift_shape_jacobian
from fitting.jacobian_cpu import mesh_quadratic

#: Residuals are measured as if the person were this tall in the image, so that weights and the robustifier's
#: sigma mean the same for a person near or far. 200 is about the size in the 224 px crops SPIN's weights are for.
PERSON_PX = 200.0

#: SMPL's components along which elbows and knees bend, and the sign that makes bending backwards positive:
#: left and right elbow about y, left and right knee about x (SPIN `prior.py`, `angle_prior`).
BENDING_JOINTS = (18, 19, 4, 5)
BENDING_AXES = (1, 1, 0, 0)
BENDING_SIGNS = (1.0, -1.0, -1.0, -1.0)

#: Below this angle the inverse right Jacobian uses its series; the next term is of order 1e-9 there.
SMALL_ANGLE_RAD = 1e-2


@dataclass(frozen=True)
class Quadratic:
    """Second-order model of a term at a point: value + gradient . x + x . hessian . x / 2."""

    value: Float[Tensor, " batch"]
    """Value of the term."""
    gradient: Float[Tensor, "batch unknowns"]
    """Its derivative by the unknowns."""
    hessian: Float[Tensor, "batch unknowns unknowns"]
    """A positive semi-definite (Gauss-Newton) approximation of its second derivative."""

    def select(self, index: Tensor) -> "Quadratic":
        """The models of some samples."""
        return Quadratic(self.value[index], self.gradient[index], self.hessian[index])

    def where(self, condition: Tensor, other: "Quadratic") -> "Quadratic":
        """These models where `condition` (batch,) holds, the other ones elsewhere."""
        return Quadratic(
            torch.where(condition, self.value, other.value),
            torch.where(condition[:, None], self.gradient, other.gradient),
            torch.where(condition[:, None, None], self.hessian, other.hessian),
        )


@dataclass(frozen=True)
class PointEvidence:
    """Where points of the body were seen in the image."""

    points: BodyPoints
    """Which points."""
    target_px: Float[Tensor, "batch points 2"]
    """Where they were seen, in full-image pixels."""
    weight: Float[Tensor, "batch points"]
    """Non-negative weight of each, zero where nothing was seen."""
    sigma: float
    """Scale of the Geman-McClure robustifier, in pixels of a person `PERSON_PX` tall."""

    def select(self, index: Tensor) -> "PointEvidence":
        """The evidence of some samples."""
        return replace(
            self,
            points=self.points.select(index),
            target_px=self.target_px[index],
            weight=self.weight[index],
        )


def geman_mcclure(
    squared: Float[Tensor, "batch points"], sigma: float
) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points"]]:
    """Robust loss of squared residuals: sigma^2 s / (sigma^2 + s), and its derivative by s.

    The derivative, (sigma^2 / (sigma^2 + s))^2, is the weight of iteratively reweighted least squares.
    """
    inlier = sigma**2 / (sigma**2 + squared)
    return squared * inlier, inlier.square()


def reprojection_residual(
    evidence: PointEvidence,
    camera_points: Float[Tensor, "batch points 3"],
    camera: PinholeCamera,
    scale: Float[Tensor, " batch"],
) -> Float[Tensor, "batch points 2"]:
    """Projected minus seen position, times `scale`; zero where the weight is zero, whatever the target holds."""
    seen = evidence.weight[..., None] > 0
    # Unseen points may lie anywhere, even at depth zero: they are replaced before the division.
    safe_points = torch.where(seen, camera_points, torch.ones_like(camera_points))
    residual = camera.project(safe_points) - torch.where(seen, evidence.target_px, 0)
    return torch.where(seen, residual, 0) * scale[:, None, None]


def reprojection_value(
    evidence: PointEvidence,
    camera_points: Float[Tensor, "batch points 3"],
    camera: PinholeCamera,
    scale: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Robust reprojection error; infinite if a seen point is not in front of the camera."""
    residual = reprojection_residual(evidence, camera_points, camera, scale)
    loss, _ = geman_mcclure(residual.square().sum(-1), evidence.sigma)
    return _infinite_behind(evidence, camera_points, (evidence.weight * loss).sum(dim=1))


def _infinite_behind(evidence: PointEvidence, camera_points: Tensor, value: Tensor) -> Float[Tensor, " batch"]:
    behind = ((camera_points[..., 2] < NEAR_PLANE_M) & (evidence.weight > 0)).any(dim=1)
    return value.masked_fill(behind, float("inf"))


def reprojection_quadratic(
    evidence: PointEvidence,
    body: BodyModel,
    bones: Bones,
    parameters: BodyParameters,
    camera: PinholeCamera,
    scale: Float[Tensor, " batch"],
    free: Bool[Tensor, " unknowns"],
) -> Quadratic:
    """The same with its closed-form Jacobian (DESIGN section 6); right in the block of the `free` unknowns."""
    if isinstance(evidence.points, VertexPoints | TrianglePoints) and evidence.weight.device.type == "cpu":
        term = mesh_quadratic(
            evidence.points,
            body,
            bones,
            parameters.betas,
            parameters.transl,
            camera,
            scale,
            evidence.target_px,
            evidence.weight,
            evidence.sigma,
            free,
        )
        return Quadratic(*term)
    return reprojection_quadratic_tensors(evidence, body, bones, parameters, camera, scale)


def reprojection_quadratic_tensors(
    evidence: PointEvidence,
    body: BodyModel,
    bones: Bones,
    parameters: BodyParameters,
    camera: PinholeCamera,
    scale: Float[Tensor, " batch"],
) -> Quadratic:
    """`reprojection_quadratic` in tensor operations, for any points on any device."""
    contributions = evidence.points.contributions(bones, parameters.betas)
    camera_points = contributions.sum(dim=-1) + parameters.transl[:, None]
    residual = reprojection_residual(evidence, camera_points, camera, scale)
    loss, influence = geman_mcclure(residual.square().sum(-1), evidence.sigma)
    rows = _projection_rows(camera_points, camera, scale, evidence.weight > 0)
    jacobian = point_jacobian(evidence.points, body, bones, parameters.betas, contributions, rows)
    weighted = (jacobian * (evidence.weight * influence)[..., None, None]).flatten(1, 2)
    gradient = 2 * (weighted.transpose(1, 2) @ residual.flatten(1)[..., None]).squeeze(-1)
    hessian = 2 * (weighted.transpose(1, 2) @ jacobian.flatten(1, 2))
    value = _infinite_behind(evidence, camera_points, (evidence.weight * loss).sum(dim=1))
    return Quadratic(value, gradient, hessian)


def _projection_rows(
    camera_points: Tensor, camera: PinholeCamera, scale: Tensor, seen: Tensor
) -> Float[Tensor, "batch points 2 3"]:
    """Derivative of the scaled pixel position by the camera-frame point; zero for unseen points."""
    safe_points = torch.where(seen[..., None], camera_points, torch.ones_like(camera_points))
    inverse_depth = 1 / safe_points[..., 2:]
    slope = (camera.focal_px * scale[:, None])[:, None] * inverse_depth * seen[..., None]
    along_depth = -slope * safe_points[..., :2] * inverse_depth
    return torch.cat([torch.diag_embed(slope), along_depth[..., None]], dim=-1)


def point_jacobian(
    points: BodyPoints,
    body: BodyModel,
    bones: Bones,
    betas: Float[Tensor, "batch betas"],
    contributions: Float[Tensor, "batch points 3 joints"],
    rows: Float[Tensor, "batch points 2 3"],
) -> Float[Tensor, "batch points 2 unknowns"]:
    """`rows` times the derivative of the points by all unknowns."""
    below = body.descendants.T
    levers = contributions @ below - (points.masses @ below)[:, :, None] * bones.joints.transpose(1, 2)[:, None]
    # row . (omega x lever) = (lever x row) . omega, for both rows and all joints at once.
    turning = torch.linalg.cross(levers[:, :, None], rows[..., None], dim=3)
    num_betas = betas.shape[-1]
    shape = points.shape_rows(bones, rows, num_betas)
    moved = shift_shape_jacobian(body, bones, num_betas)
    carried = (points.masses @ moved.flatten(2)).unflatten(-1, (3, num_betas))
    shape = shape + rows @ carried
    turning = turning.transpose(-1, -2)
    if body.pose_directions.shape[-1]:
        turning = turning + _blend_shape_rows(points, bones, rows)
    return torch.cat([turning.flatten(3), shape, rows], dim=-1)


def _blend_shape_rows(points: BodyPoints, bones: Bones, rows: Tensor) -> Float[Tensor, "batch points 2 joints 3"]:
    """What turning a joint does through the pose blend shapes.

    The features are R_j - I row by row; R_j grows by R_j [delta]x = R_j [G_j^T omega]x, so column a of the
    derivative is R_j [G_j^T e_a]x.
    """
    by_feature = points.feature_rows(bones, rows).unflatten(-1, (-1, 9))
    local, world = bones.local_rotations[:, 1:], bones.rotations[:, 1:]
    axes = world.transpose(-1, -2)  # column a is G^T e_a
    # (R [u]x) rows are (row of R) x u: for each row i of R and each axis a.
    turned = torch.linalg.cross(
        local[..., None].expand(*local.shape, 3), axes[:, :, None].expand(*local.shape, 3), dim=-2
    )
    turning = torch.einsum("bprjf,bjfa->bprja", by_feature, turned.flatten(2, 3))
    return torch.nn.functional.pad(turning, (0, 0, 1, 0))


def axis_angle_jacobian(
    pose: Float[Tensor, "batch joints 3"], world_rotations: Float[Tensor, "batch joints 3 3"]
) -> Float[Tensor, "batch joints 3 3"]:
    """Derivative of each joint's axis-angle by its omega: J_r^-1(theta) G^T.

    J_r^-1 = I + [theta]x / 2 + (1 / t^2 - cot(t / 2) / (2 t)) [theta]x^2, t = |theta|: the inverse right Jacobian
    of SO(3) (Chirikjian, "Stochastic Models, Information Theory, and Lie Groups", vol. 2, eq. 10.86).
    """
    angle = torch.linalg.vector_norm(pose, dim=-1)
    small = angle < SMALL_ANGLE_RAD
    safe = torch.where(small, torch.ones_like(angle), angle)
    factor = torch.where(small, 1 / 12 + angle.square() / 720, 1 / safe.square() - 1 / (2 * safe * (safe / 2).tan()))
    skew = _skew(pose)
    identity = torch.eye(3, dtype=pose.dtype, device=pose.device)
    inverse = identity + skew / 2 + factor[..., None, None] * (skew @ skew)
    return inverse @ world_rotations.transpose(-1, -2)


def _skew(vector: Float[Tensor, "batch joints 3"]) -> Float[Tensor, "batch joints 3 3"]:
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def bending_value(body_pose: Float[Tensor, "batch body_pose"]) -> Float[Tensor, " batch"]:
    """Sum over elbows and knees of exp(angle)^2."""
    return _bending_exponentials(body_pose).square().sum(dim=1)


def _bending_exponentials(body_pose: Tensor) -> Float[Tensor, "batch 4"]:
    angles = body_pose[:, _bending_columns()]
    return torch.exp(angles * angles.new_tensor(BENDING_SIGNS))


def _bending_columns() -> list[int]:
    return [3 * (joint - 1) + axis for joint, axis in zip(BENDING_JOINTS, BENDING_AXES, strict=True)]


def bending_derivatives(
    body_pose: Float[Tensor, "batch body_pose"],
) -> tuple[Float[Tensor, "batch body_pose"], Float[Tensor, "batch body_pose"]]:
    """Gradient and the diagonal of the Gauss-Newton Hessian by the body pose (axis-angle)."""
    squared = _bending_exponentials(body_pose).square()
    signs = squared.new_tensor(BENDING_SIGNS)
    gradient, diagonal = torch.zeros_like(body_pose), torch.zeros_like(body_pose)
    gradient[:, _bending_columns()] = 2 * squared * signs
    diagonal[:, _bending_columns()] = 2 * squared
    return gradient, diagonal


def local_pose(rotations: Float[Tensor, "batch joints 3 3"]) -> Float[Tensor, "batch joints 3"]:
    """Axis-angle of each joint, in radians, angles up to pi."""
    return roma.rotmat_to_rotvec(rotations)


def turned_value(
    initial: Float[Tensor, "batch joints 3 3"], rotations: Float[Tensor, "batch joints 3 3"]
) -> Float[Tensor, " batch"]:
    """Sum over the joints of |R - R_0|^2 / 2 = 2 (1 - cos angle), which is the squared angle where it is small."""
    return (rotations - initial).square().sum(dim=(1, 2, 3)) / 2


def turned_gradient(
    initial: Float[Tensor, "batch joints 3 3"],
    rotations: Float[Tensor, "batch joints 3 3"],
    world_rotations: Float[Tensor, "batch joints 3 3"],
) -> Float[Tensor, "batch joints 3"]:
    """Derivative of `turned_value` by each joint's omega; 2 I is at least its second derivative.

    With M = R_0^T R the value of a joint is 3 - trace M, and R exp([d]x) changes it by d . (M - M^T)_x; d = G^T omega.
    """
    relative = initial.transpose(-1, -2) @ rotations
    skew = relative - relative.transpose(-1, -2)
    local = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    return (world_rotations @ local[..., None]).squeeze(-1)
