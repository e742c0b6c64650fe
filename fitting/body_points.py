"""Points that ride on the bones, and how they move when joints turn and the shape changes.

A point is a fixed combination of vertices and joints: a vertex itself, a place in a triangle, or a keypoint regressed
from many vertices. Skinning is linear in where each bone carries its share of a point,

    x = sum_k c_k,    c_k = G_k m_k + w_k s_k,    s_k = p_k - G_k J_k,

with G_k, p_k the world rotation and position of bone k, J_k its rest joint, w_k the share of the point's weight
on it, and m_k that share times the rest position. Turning joint j by a small world-frame rotation omega moves all
that hangs below it:

    dx = omega x lever_j,    lever_j = sum over k at or below j of (c_k - w_k p_j).

This is the closed form of DESIGN section 6 with omega = G_j delta; working with omega keeps G_j out of the
per-point work, and the solver turns omega back into the local rotation once per joint.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from bodies import BodyModel, BodyParameters
from bodies.joints import KeypointSet


@dataclass(frozen=True)
class Bones:
    """The posed kinematic chain and its derivatives by shape, before translation."""

    rotations: Float[Tensor, "batch joints 3 3"]
    """World rotation G of each joint."""
    joints: Float[Tensor, "batch joints 3"]
    """World position p of each joint, in metres."""
    shifts: Float[Tensor, "batch joints 3"]
    """s = p - G J: bone k carries a rest point x to G_k x + s_k."""
    local_rotations: Float[Tensor, "batch joints 3 3"]
    """Rotation of each joint relative to its parent."""
    pose_features: Float[Tensor, "batch pose_features"]
    """What the pose blend shapes weigh."""


def pose_bones(body: BodyModel, parameters: BodyParameters) -> Bones:
    """Runs the kinematic chain of each sample."""
    rest = body.shape_joints(parameters.betas)
    posed = body.pose(rest, parameters.rotations)
    shifts = posed.joints - (posed.rotations @ rest[..., None]).squeeze(-1)
    return Bones(posed.rotations, posed.joints, shifts, parameters.rotations, posed.pose_features)


def shift_shape_jacobian(body: BodyModel, bones: Bones, num_betas: int) -> Float[Tensor, "batch joints 3 betas"]:
    """Derivative of `Bones.shifts` by the shape coefficients: ds_k = dp_k - G_k dJ_k."""
    rest = body.joint_shape_directions[..., :num_betas]
    batch = bones.joints.shape[0]
    # dp_k = dp_parent + G_parent (dJ_k - dJ_parent): offsets are turned at once, then summed along the chain.
    parents = body.parent_ids
    turned = torch.einsum("bkij,kjs->bkis", bones.rotations[:, parents], rest[1:] - rest[parents])
    steps = torch.cat([rest[:1].expand(batch, -1, -1, -1), turned], dim=1)
    moved = torch.einsum("jk,bjis->bkis", body.descendants, steps)
    return moved - torch.einsum("bkij,kjs->bkis", bones.rotations, rest)


@runtime_checkable
class BodyPoints(Protocol):
    """Chosen points of each sample's body, with P points and one weight on each of the joints."""

    @property
    def masses(self) -> Float[Tensor, "any_batch points joints"]:
        """Share w of each point on each bone; the first axis is 1 if all samples have the same points."""
        ...

    def select(self, index: Tensor) -> "BodyPoints":
        """The points of some samples."""
        ...

    def contributions(
        self, bones: Bones, betas: Float[Tensor, "batch betas"]
    ) -> Float[Tensor, "batch points 3 joints"]:
        """The parts c_k that the bones carry, in metres; their sum is the point, before translation."""
        ...

    def positions(self, bones: Bones, betas: Float[Tensor, "batch betas"]) -> Float[Tensor, "batch points 3"]:
        """The points themselves, before translation, without the Jacobian's intermediate values."""
        ...

    def shape_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"], num_betas: int
    ) -> Float[Tensor, "batch points 2 betas"]:
        """`rows` times the derivative of the points by shape, as far as it comes from the rest position."""
        ...

    def feature_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"]
    ) -> Float[Tensor, "batch points 2 pose_features"]:
        """`rows` times the derivative of the points by the pose features; no columns without blend shapes."""
        ...


@dataclass(frozen=True)
class VertexPoints:
    """Vertices chosen for each sample by itself."""

    vertex_ids: Int64[Tensor, "batch points"]
    """Which vertices."""
    template: Float[Tensor, "batch points 3"]
    """Rest position at mean shape."""
    shape_directions: Float[Tensor, "batch points 3 betas"]
    """Shape blend shapes."""
    pose_directions: Float[Tensor, "batch points 3 pose_features"]
    """Pose blend shapes; no columns if the model has none."""
    masses: Float[Tensor, "batch points joints"]
    """Skinning weights."""

    @classmethod
    def gather(cls, body: BodyModel, vertex_ids: Int64[Tensor, "batch points"]) -> "VertexPoints":
        """The given vertices of each sample."""
        return cls(
            vertex_ids,
            body.template[vertex_ids],
            body.shape_directions[vertex_ids],
            body.pose_directions[vertex_ids],
            body.skin_weights[vertex_ids],
        )

    def select(self, index: Tensor) -> "VertexPoints":
        """See `BodyPoints`."""
        return VertexPoints(
            self.vertex_ids[index],
            self.template[index],
            self.shape_directions[index],
            self.pose_directions[index],
            self.masses[index],
        )

    def rest(self, bones: Bones, betas: Float[Tensor, "batch betas"]) -> Float[Tensor, "batch points 3"]:
        """Where the points are before skinning, blend shapes included."""
        directions = self.shape_directions[..., : betas.shape[-1]]
        rest = self.template + (directions @ betas[:, None, :, None]).squeeze(-1)
        if self.pose_directions.shape[-1]:
            rest = rest + (self.pose_directions @ bones.pose_features[:, None, :, None]).squeeze(-1)
        return rest

    def contributions(
        self, bones: Bones, betas: Float[Tensor, "batch betas"]
    ) -> Float[Tensor, "batch points 3 joints"]:
        """See `BodyPoints`."""
        rest = self.rest(bones, betas)
        carried = rest @ bones.rotations.permute(0, 3, 2, 1).flatten(2)  # columns: axis-major, then joint
        carried = carried.unflatten(-1, (3, -1)) + bones.shifts.transpose(1, 2)[:, None]
        return carried * self.masses[:, :, None]

    def positions(self, bones: Bones, betas: Float[Tensor, "batch betas"]) -> Float[Tensor, "batch points 3"]:
        """See `BodyPoints`."""
        rest = self.rest(bones, betas)
        bone_matrix = torch.cat([bones.rotations, bones.shifts[..., None]], dim=-1).flatten(2)
        blended = (self.masses @ bone_matrix).unflatten(-1, (3, 4))
        return (blended[..., :3] @ rest[..., None]).squeeze(-1) + blended[..., 3]

    def _blended_rows(self, bones: Bones, rows: Tensor) -> Float[Tensor, "batch points 2 3"]:
        return rows @ (self.masses @ bones.rotations.flatten(2)).unflatten(-1, (3, 3))

    def shape_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"], num_betas: int
    ) -> Float[Tensor, "batch points 2 betas"]:
        """See `BodyPoints`."""
        return self._blended_rows(bones, rows) @ self.shape_directions[..., :num_betas]

    def feature_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"]
    ) -> Float[Tensor, "batch points 2 pose_features"]:
        """See `BodyPoints`."""
        return self._blended_rows(bones, rows) @ self.pose_directions


@dataclass(frozen=True)
class TrianglePoints:
    """Places in triangles of the mesh, chosen for each sample by itself: means of three vertices, by their shares."""

    corners: VertexPoints
    """The corners, the three of a point one after the other."""
    shares: Float[Tensor, "batch points 3"]
    """Barycentric coordinates; none is negative."""

    @classmethod
    def gather(
        cls,
        body: BodyModel,
        triangle_ids: Int64[Tensor, "batch points"],
        barycentric: Float[Tensor, "batch points 3"],
    ) -> "TrianglePoints":
        """The given places, in rows of `BodyModel.faces`."""
        return cls(VertexPoints.gather(body, body.faces[triangle_ids].flatten(1)), barycentric)

    @property
    def masses(self) -> Float[Tensor, "batch points joints"]:
        """See `BodyPoints`."""
        return self._mean(self.corners.masses)

    def _mean(self, values: Float[Tensor, "batch corners ..."]) -> Float[Tensor, "batch points ..."]:
        """The mean of what belongs to the corners, for each point."""
        apart = values.unflatten(1, self.shares.shape[1:])
        return (apart * self.shares.view(*self.shares.shape, *[1] * (values.ndim - 2))).sum(dim=2)

    def _rows(self, rows: Float[Tensor, "batch points 2 3"]) -> Float[Tensor, "batch corners 2 3"]:
        return rows.repeat_interleave(3, dim=1)

    def select(self, index: Tensor) -> "TrianglePoints":
        """See `BodyPoints`."""
        return TrianglePoints(self.corners.select(index), self.shares[index])

    def contributions(
        self, bones: Bones, betas: Float[Tensor, "batch betas"]
    ) -> Float[Tensor, "batch points 3 joints"]:
        """See `BodyPoints`."""
        return self._mean(self.corners.contributions(bones, betas))

    def positions(self, bones: Bones, betas: Float[Tensor, "batch betas"]) -> Float[Tensor, "batch points 3"]:
        """See `BodyPoints`."""
        return self._mean(self.corners.positions(bones, betas))

    def shape_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"], num_betas: int
    ) -> Float[Tensor, "batch points 2 betas"]:
        """See `BodyPoints`."""
        return self._mean(self.corners.shape_rows(bones, self._rows(rows), num_betas))

    def feature_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"]
    ) -> Float[Tensor, "batch points 2 pose_features"]:
        """See `BodyPoints`."""
        return self._mean(self.corners.feature_rows(bones, self._rows(rows)))


@dataclass(frozen=True)
class KeypointPoints:
    """Keypoints of a named set, the same for all samples, with everything below the bones summed up front."""

    template: Float[Tensor, "points joints 3"]
    """Share of each bone times rest position, at mean shape."""
    shape_directions: Float[Tensor, "points joints 3 betas"]
    """The same for the shape blend shapes."""
    pose_directions: Float[Tensor, "points joints 3 pose_features"]
    """The same for the pose blend shapes."""
    masses: Float[Tensor, "1 points joints"]
    """Share of each bone."""

    @classmethod
    def gather(cls, body: BodyModel, name: KeypointSet) -> "KeypointPoints":
        """The keypoints of `BodyModel.keypoints(mesh, name)`.

        Raises:
            ValueError: If the model does not define that set.
        """
        regressor = body.keypoint_regressor(name)
        vertex_part, joint_part = regressor[:, : body.num_vertices], regressor[:, body.num_vertices :]
        support = vertex_part.abs().amax(dim=0).nonzero().squeeze(-1)
        vertex_part, weights = vertex_part[:, support], body.skin_weights[support]
        # A joint of the chain rides on its own bone, at its rest place; pose blend shapes do not move it.
        moments = torch.einsum("pv,vk,vc->pkc", vertex_part, weights, body.template[support])
        moments = moments + joint_part[..., None] * body.joint_template
        shape = torch.einsum("pv,vk,vcs->pkcs", vertex_part, weights, body.shape_directions[support])
        shape = shape + joint_part[..., None, None] * body.joint_shape_directions
        pose = torch.einsum("pv,vk,vcf->pkcf", vertex_part, weights, body.pose_directions[support])
        return cls(moments, shape, pose, (vertex_part @ weights + joint_part)[None])

    def select(self, index: Tensor) -> "KeypointPoints":
        """See `BodyPoints`: all samples have the same keypoints."""
        return self

    def _moments(self, bones: Bones, betas: Tensor) -> Float[Tensor, "batch points joints 3"]:
        directions = self.shape_directions[..., : betas.shape[-1]]
        moments = self.template + torch.einsum("pkcs,bs->bpkc", directions, betas)
        if self.pose_directions.shape[-1]:
            moments = moments + torch.einsum("pkcf,bf->bpkc", self.pose_directions, bones.pose_features)
        return moments

    def contributions(
        self, bones: Bones, betas: Float[Tensor, "batch betas"]
    ) -> Float[Tensor, "batch points 3 joints"]:
        """See `BodyPoints`."""
        turned = torch.einsum("bkij,bpkj->bpik", bones.rotations, self._moments(bones, betas))
        return turned + self.masses[:, :, None] * bones.shifts.transpose(1, 2)[:, None]

    def positions(self, bones: Bones, betas: Float[Tensor, "batch betas"]) -> Float[Tensor, "batch points 3"]:
        """See `BodyPoints`."""
        turned = torch.einsum("bkij,bpkj->bpi", bones.rotations, self._moments(bones, betas))
        return turned + self.masses @ bones.shifts

    def shape_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"], num_betas: int
    ) -> Float[Tensor, "batch points 2 betas"]:
        """See `BodyPoints`."""
        turned = torch.einsum("bpri,bkij->bprkj", rows, bones.rotations)
        return torch.einsum("bprkj,pkjs->bprs", turned, self.shape_directions[..., :num_betas])

    def feature_rows(
        self, bones: Bones, rows: Float[Tensor, "batch points 2 3"]
    ) -> Float[Tensor, "batch points 2 pose_features"]:
        """See `BodyPoints`."""
        turned = torch.einsum("bpri,bkij->bprkj", rows, bones.rotations)
        return torch.einsum("bprkj,pkjf->bprf", turned, self.pose_directions)
