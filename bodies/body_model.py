"""SMPL in stages: shape, pose, skin. Each stage is a type of its own, so they cannot be mixed up.

    shaped = body.shape(betas)                     # rest vertices and joints of this person
    posed = body.pose(shaped.joints, rotations)    # world rotation and position of each joint
    vertices = body.skin(shaped, posed)            # before translation

`body(parameters)` runs all three and translates. All but the chain can be evaluated for chosen vertices alone.

Frames: the model's rest pose has x to the body's left, y up, z forward; the root rotates about the rest pelvis (not
the origin) and `transl` is added last, so posed pelvis = rest pelvis + transl.

Source of the equations: Loper et al., "SMPL: A Skinned Multi-Person Linear Model", 2015, equations 2 to 10.
"""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np
import roma
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from bodies.errors import InputError
from bodies.joints import KeypointSet
from bodies.model_data import BodyModelData, TextureLayout


@dataclass(frozen=True)
class BodyParameters:
    """Pose, shape and place of one body per batch element, in the camera frame."""

    rotations: Float[Tensor, "batch joints 3 3"]
    """Rotation of each joint relative to its parent; joint 0 is the global orientation."""
    betas: Float[Tensor, "batch betas"]
    """Shape coefficients."""
    transl: Float[Tensor, "batch 3"]
    """Translation in metres, added after the root has turned about the rest pelvis."""

    @classmethod
    def from_axis_angle(
        cls,
        pose: Float[Tensor, "batch pose"],
        betas: Float[Tensor, "batch betas"],
        transl: Float[Tensor, "batch 3"],
    ) -> Self:
        """From SMPL's own layout: (B, 72) axis-angle in radians, joint after joint."""
        rotations = roma.rotvec_to_rotmat(pose.unflatten(1, (pose.shape[1] // 3, 3)))
        return cls(rotations, betas, transl)

    @property
    def pose(self) -> Float[Tensor, "batch pose"]:
        """The rotations as axis-angle in radians, (B, 72)."""
        return roma.rotmat_to_rotvec(self.rotations).flatten(1)

    def __len__(self) -> int:
        return self.betas.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        return type(self)(self.rotations[index], self.betas[index], self.transl[index])

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """The same bodies on another device or in another precision."""
        return type(self)(*(getattr(self, f.name).to(target) for f in fields(self)))

    def detach(self) -> Self:
        """The same bodies without gradients."""
        return type(self)(*(getattr(self, f.name).detach() for f in fields(self)))

    def where(self, condition: Tensor, other: Self) -> Self:
        """These bodies where `condition` (batch,) holds, the other ones elsewhere."""
        return type(self)(
            torch.where(condition[:, None, None, None], self.rotations, other.rotations),
            torch.where(condition[:, None], self.betas, other.betas),
            torch.where(condition[:, None], self.transl, other.transl),
        )


@dataclass(frozen=True)
class ShapedBody:
    """A person in rest pose."""

    vertices: Float[Tensor, "batch vertices 3"]
    """Rest vertices, all of them or those that `BodyModel.shape` was asked for."""
    joints: Float[Tensor, "batch joints 3"]
    """Rest joints."""


@dataclass(frozen=True)
class PosedJoints:
    """The kinematic chain after posing, before translation."""

    rotations: Float[Tensor, "batch joints 3 3"]
    """Rotation of each joint relative to the camera frame (the product along the chain)."""
    joints: Float[Tensor, "batch joints 3"]
    """Joint positions."""
    pose_features: Float[Tensor, "batch pose_features"]
    """Entries of R_j - I of all joints but the root, row-major: what the pose blend shapes weigh."""


@dataclass(frozen=True)
class BodyMesh:
    """The posed body in the camera frame."""

    vertices: Float[Tensor, "batch vertices 3"]
    """Posed vertices in metres."""
    joints: Float[Tensor, "batch joints 3"]
    """Posed joints of the kinematic chain in metres."""


class BodyModel(nn.Module):
    """A body in SMPL's layout, of any vertex count.

    Its arrays are buffers that are not saved with a checkpoint: a licensed model file stays where it is.

    Args:
        data: The arrays of a model file.
    """

    template: Tensor
    shape_directions: Tensor
    pose_directions: Tensor
    joint_template: Tensor
    joint_shape_directions: Tensor
    skin_weights: Tensor
    faces: Tensor
    parent_ids: Tensor
    """Parent of each joint but the root."""
    descendants: Tensor
    """(joints, joints): entry (j, k) is 1 if joint k is j or hangs below it."""
    _joint_order: Tensor

    def __init__(self, data: BodyModelData) -> None:
        super().__init__()
        self.name = data.name
        self.parents: tuple[int, ...] = tuple(int(p) for p in data.parents)
        self.texture: TextureLayout | None = data.texture
        vertices, _, betas = data.shape_directions.shape
        # Joints of the shaped body are linear in betas: J v(beta) = J T + (J S) beta, computed in float64 once.
        regress = data.joint_regressor.astype(np.float64)
        joint_shape = regress @ data.shape_directions.reshape(vertices, 3 * betas).astype(np.float64)
        arrays = {
            "template": data.template,
            "shape_directions": data.shape_directions,
            "pose_directions": data.pose_directions,
            "joint_template": regress @ data.template.astype(np.float64),
            "joint_shape_directions": joint_shape.reshape(-1, 3, betas),
            "skin_weights": data.skin_weights,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.as_tensor(array, dtype=torch.float32), persistent=False)
        self.register_buffer("faces", torch.as_tensor(data.faces, dtype=torch.int64), persistent=False)
        self._register_chain()
        self._missing_keypoints = data.missing_keypoints
        self.keypoint_sets: tuple[str, ...] = ("smpl24", *data.keypoint_regressors)
        for name, regressor in data.keypoint_regressors.items():
            dense = torch.as_tensor(regressor.toarray(), dtype=torch.float32)
            self.register_buffer(f"_keypoints_{name}", dense, persistent=False)

    def _register_chain(self) -> None:
        """Index tensors of the kinematic chain; as buffers they are where the model is and need no copy per call."""
        levels = _chain_levels(self.parents)
        order = torch.tensor([joint for joints, _ in levels for joint in joints]).argsort()
        self.register_buffer("parent_ids", torch.tensor(self.parents[1:], dtype=torch.int64), persistent=False)
        self.register_buffer("_joint_order", order, persistent=False)
        below = torch.eye(len(self.parents))
        for joint in range(len(self.parents) - 1, 0, -1):
            below[self.parents[joint]] += below[joint]
        self.register_buffer("descendants", below, persistent=False)
        self._depth = len(levels)
        for depth, level in enumerate(levels[1:], start=1):
            self.register_buffer(f"_level_{depth}", torch.tensor(level), persistent=False)

    @property
    def num_vertices(self) -> int:
        """Number of vertices."""
        return self.template.shape[0]

    @property
    def num_joints(self) -> int:
        """Number of joints of the kinematic chain."""
        return len(self.parents)

    @property
    def num_betas(self) -> int:
        """Number of shape coefficients."""
        return self.shape_directions.shape[-1]

    @cached_property
    def surface_order(self) -> Int64[Tensor, " vertices"]:
        """The vertices in a fixed order whose every beginning covers the surface evenly, on the CPU.

        Weighted sampling without replacement by vertex area (Efraimidis and Spirakis, 2006): meshes put most of
        their vertices into face and hands, which would otherwise dominate any choice of vertices.
        """
        faces = self.faces.cpu()
        corners = self.template.double().cpu()[faces]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        area = torch.zeros(self.num_vertices, dtype=torch.float64)
        area.index_add_(0, faces.flatten(), torch.linalg.vector_norm(normals, dim=-1).repeat_interleave(3))
        uniform = torch.rand(self.num_vertices, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        # A vertex that no face uses has area zero; it comes last.
        return (uniform.log() / area.clamp(min=torch.finfo(torch.float64).tiny)).argsort(descending=True)

    @property
    def device(self) -> torch.device:
        """Where the arrays are."""
        return self.template.device

    def shape(
        self, betas: Float[Tensor, "batch betas"], vertex_ids: Int64[Tensor, " chosen"] | None = None
    ) -> ShapedBody:
        """The rest body of each person.

        Args:
            betas: Shape coefficients; fewer than the model has count as zeros for the rest.
            vertex_ids: Which vertices to evaluate; all by default.
        """
        count = self._checked_betas(betas)
        template, directions = self.template, self.shape_directions[..., :count]
        if vertex_ids is not None:
            template, directions = template[vertex_ids], directions[vertex_ids]
        vertices = template + torch.einsum("vcs,bs->bvc", directions, betas)
        return ShapedBody(vertices, self.shape_joints(betas))

    def shape_joints(self, betas: Float[Tensor, "batch betas"]) -> Float[Tensor, "batch joints 3"]:
        """Rest joints alone, without evaluating any vertex."""
        count = self._checked_betas(betas)
        return self.joint_template + torch.einsum("jcs,bs->bjc", self.joint_shape_directions[..., :count], betas)

    def pose(
        self,
        rest_joints: Float[Tensor, "batch joints 3"],
        rotations: Float[Tensor, "batch joints 3 3"],
    ) -> PosedJoints:
        """Runs the kinematic chain, one tree level at a time."""
        if rotations.shape[1] != self.num_joints:
            raise ValueError(f"{self.name} has {self.num_joints} joints, got {rotations.shape[1]} rotations")
        offsets = torch.cat([rest_joints[:, :1], rest_joints[:, 1:] - rest_joints[:, self.parent_ids]], dim=1)
        # Levels are concatenated and put in joint order at the end: no in-place writes, so autograd can follow.
        world, places = [rotations[:, :1]], [offsets[:, :1]]
        for depth in range(1, self._depth):
            joints, parents = self.get_buffer(f"_level_{depth}")
            parent_rotation = world[-1][:, parents]
            world.append(parent_rotation @ rotations[:, joints])
            places.append(places[-1][:, parents] + (parent_rotation @ offsets[:, joints, :, None]).squeeze(-1))
        features = rotations[:, 1:] - torch.eye(3, dtype=rotations.dtype, device=rotations.device)
        return PosedJoints(
            torch.cat(world, dim=1)[:, self._joint_order],
            torch.cat(places, dim=1)[:, self._joint_order],
            features.flatten(1),
        )

    def skin(
        self,
        shaped: ShapedBody,
        posed: PosedJoints,
        vertex_ids: Int64[Tensor, " chosen"] | None = None,
    ) -> Float[Tensor, "batch chosen 3"]:
        """Linear blend skinning with pose blend shapes, before translation.

        Args:
            shaped: The rest body.
            posed: The chain of the same persons.
            vertex_ids: Which vertices `shaped` holds; all by default.
        """
        rest, weights, directions = shaped.vertices, self.skin_weights, self.pose_directions
        if vertex_ids is not None:
            weights, directions = weights[vertex_ids], directions[vertex_ids]
        assert rest.shape[1] == weights.shape[0], "shape and skin were given different vertex_ids"
        if directions.shape[-1]:
            rest = rest + torch.einsum("vcp,bp->bvc", directions, posed.pose_features)
        # x -> G_k (x - J_k) + p_k for each bone k, written as rotation and shift.
        shifts = posed.joints - (posed.rotations @ shaped.joints[..., None]).squeeze(-1)
        bones = torch.cat([posed.rotations, shifts[..., None]], dim=-1).flatten(2)
        blended = (weights @ bones).unflatten(-1, (3, 4))
        return (blended[..., :3] @ rest[..., None]).squeeze(-1) + blended[..., 3]

    def forward(self, parameters: BodyParameters, vertex_ids: Int64[Tensor, " chosen"] | None = None) -> BodyMesh:
        """Shape, pose, skin and translate.

        Args:
            parameters: One body per batch element.
            vertex_ids: If given, the mesh holds these vertices alone.
        """
        shaped = self.shape(parameters.betas, vertex_ids)
        posed = self.pose(shaped.joints, parameters.rotations)
        vertices = self.skin(shaped, posed, vertex_ids)
        shift = parameters.transl[:, None]
        return BodyMesh(vertices + shift, posed.joints + shift)

    def keypoint_regressor(self, name: KeypointSet) -> Float[Tensor, "keypoints sources"]:
        """Weights of a named set over the posed vertices, then the posed joints.

        Raises:
            InputError: If the model's files do not define that set.
        """
        if name == "smpl24":
            vertices = self.template.new_zeros(self.num_joints, self.num_vertices)
            return torch.cat([vertices, torch.eye(self.num_joints).to(vertices)], dim=1)
        if name not in self.keypoint_sets:
            remedy = self._missing_keypoints.get(name, f"it has {', '.join(self.keypoint_sets)}")
            raise InputError(f"{self.name}: it does not define the keypoint set {name!r}; {remedy}")
        return self.get_buffer(f"_keypoints_{name}")

    def keypoints(self, mesh: BodyMesh, name: KeypointSet) -> Float[Tensor, "batch keypoints 3"]:
        """The keypoints of a named set on a whole mesh, in metres.

        Raises:
            InputError: If the model's files do not define that set.
        """
        if name == "smpl24":
            return mesh.joints
        return self.keypoint_regressor(name) @ torch.cat([mesh.vertices, mesh.joints], dim=1)

    def rest_parameters(self, batch: int = 1) -> BodyParameters:
        """Zero pose, mean shape, at the origin."""
        like = self.template
        rotations = torch.eye(3, dtype=like.dtype, device=like.device).expand(batch, self.num_joints, 3, 3)
        return BodyParameters(rotations.clone(), like.new_zeros(batch, self.num_betas), like.new_zeros(batch, 3))

    def _checked_betas(self, betas: Tensor) -> int:
        if betas.shape[-1] > self.num_betas:
            raise ValueError(f"{self.name} has {self.num_betas} shape coefficients, got {betas.shape[-1]}")
        return betas.shape[-1]


def _chain_levels(parents: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Joints by depth in the tree, each level with its parents' places in the level before."""
    depth = [0] * len(parents)
    for joint, parent in enumerate(parents):
        depth[joint] = 0 if parent < 0 else depth[parent] + 1
    levels: list[tuple[list[int], list[int]]] = []
    for level in range(max(depth) + 1):
        joints = [j for j, d in enumerate(depth) if d == level]
        places = [] if level == 0 else [levels[-1][0].index(parents[j]) for j in joints]
        levels.append((joints, places))
    return levels
