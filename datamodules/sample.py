"""One person on the CPU (`BodySample`) and a batch of them on the device, ready for the network (`RefinementBatch`).

A sample is a NamedTuple of tensors, so default collation, pinning and transfer work on it; collating adds an axis at
the front of every tensor, which the annotations call `*batch`. It holds what a data loader's worker can give cheaply:
pixels, cameras, the true body, and the initial estimate or what the device needs to draw it. The rest (noise, meshes,
renderings, supervision) is made on the device from `seed`, in `on_after_batch_transfer`.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self, get_args

import roma
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from bodies.body_model import BodyParameters
from bodies.camera import PinholeCamera
from datamodules.crops import ImageCamera
from renderers.rasterize import Fragments

#: How the initial estimate comes about: the true body plus noise, a regressor's estimate as it is, or the true pose
#: with the shape and camera of the regressor's estimate.
InitialKind = Literal["noise", "estimate", "true_pose"]
#: The order is the code in `InitialSample.kind`.
INITIAL_KINDS: Final[tuple[InitialKind, ...]] = get_args(InitialKind)


class CameraFields(NamedTuple):
    """A `PinholeCamera` that collates."""

    focal_px: Float32[Tensor, "*batch 2"]
    """Focal lengths along x and y."""
    center_px: Float32[Tensor, "*batch 2"]
    """Principal point (x, y)."""
    size_px: Float32[Tensor, "*batch 2"]
    """Image width and height."""

    @classmethod
    def of(cls, camera: ImageCamera) -> Self:
        """From the store's camera."""
        return cls(*(torch.tensor(part) for part in camera))

    def camera(self) -> PinholeCamera:
        """The cameras of a collated batch."""
        return PinholeCamera(*self)


class BodyFields(NamedTuple):
    """`BodyParameters` that collate."""

    rotations: Float32[Tensor, "*batch joints 3 3"]
    """Rotation of each joint relative to its parent; joint 0 is the root in the camera frame."""
    betas: Float32[Tensor, "*batch betas"]
    """Shape coefficients."""
    transl: Float32[Tensor, "*batch 3"]
    """Translation in metres in the camera frame."""

    @classmethod
    def from_axis_angle(
        cls, pose: Float[ndarray, " pose"], betas: Float[ndarray, " betas"], transl: Float[ndarray, "3"]
    ) -> Self:
        """From the store's layout: (72,) axis-angle in radians, joint after joint."""
        rotations = roma.rotvec_to_rotmat(torch.tensor(pose, dtype=torch.float32).view(-1, 3))
        return cls(rotations, torch.tensor(betas, dtype=torch.float32), torch.tensor(transl, dtype=torch.float32))

    def parameters(self) -> BodyParameters:
        """The bodies of a collated batch."""
        return BodyParameters(*self)


class InitialSample(NamedTuple):
    """The initial estimate, as far as it is known before the sample is on the device."""

    kind: Int64[Tensor, "*batch"]
    """Index into `INITIAL_KINDS`."""
    regressor: Int64[Tensor, "*batch"]
    """Which of the data module's regressors `body` is from, -1 if none (kind "noise")."""
    body: BodyFields
    """The regressor's estimate; the true body for kind "noise"."""
    focal_px: Float32[Tensor, "*batch"]
    """Focal length that `body.transl` goes with; the true one (mean of x and y) for kind "noise"."""


class SurfaceSample(NamedTuple):
    """DensePose points, padded to a fixed number, which may be none."""

    position_px: Float32[Tensor, "*batch points 2"]
    """Full-image positions."""
    triangle: Int64[Tensor, "*batch points"]
    """Rows of the body model's faces."""
    barycentric: Float32[Tensor, "*batch points 3"]
    """Weights of the triangle's corners."""
    weight: Float32[Tensor, "*batch points"]
    """1 for a point, 0 for padding."""
    sought: Bool[Tensor, "*batch"]
    """Whether anybody of the data set has points, and there is room for them: who has none then was not found."""


class BodySample(NamedTuple):
    """One person in one image. Where a data set lacks something, its weights are zero; no field is ever absent."""

    image: UInt8[Tensor, "*batch 3 crop crop"]
    """RGB crop, augmented."""
    camera: CameraFields
    """The true full-image camera."""
    crop_camera: CameraFields
    """The same camera, changed to the crop."""
    box_px: Float32[Tensor, "*batch 3"]
    """Centre x, centre y and side of the person's box in the full image; scales the reprojection loss."""
    body: BodyFields
    """The true body in the camera frame."""
    has_body: Bool[Tensor, "*batch"]
    """False for motion capture without a fitted body (`store_records.has_true_body`): `body` then stands for nothing
    and `joints_m` is the truth. Never so in training."""
    gender: Int64[Tensor, "*batch"]
    """Index into `store_layout.GENDERS`: the body model's file that `body` refers to."""
    initial: InitialSample
    """The initial estimate."""
    detected_keypoints_px: Float32[Tensor, "*batch 25 3"]
    """openpose25 in the full image as detected: x, y, confidence."""
    true_keypoints_px: Float32[Tensor, "*batch 25 3"]
    """openpose25 in the full image as annotated: x, y, 1; zeros where not annotated."""
    joints_m: Float32[Tensor, "*batch 17 4"]
    """h36m17 as measured, in the camera frame: x, y, z, 1; zeros where not measured."""
    surface: SurfaceSample
    """DensePose points."""
    texture: UInt8[Tensor, "... 4"]
    """RGB and coverage, (H, W, 4) in UV space or (V, 4) per vertex, the same for all samples of a run; coverage 0
    everywhere if the person has no texture."""
    dataset: Int64[Tensor, "*batch"]
    """Which of the data module's data sets."""
    sequence: Int64[Tensor, "*batch"]
    """Index into that data set's `FrameStore.sequences`."""
    row: Int64[Tensor, "*batch"]
    """Row in that data set's frames file; names the sample in messages."""
    seed: Int64[Tensor, "*batch"]
    """Seeds all that is drawn for this sample on the device."""


@dataclass(frozen=True)
class RefinementBatch:
    """What the network is given and what it is held against, on the device, in single precision.

    `crop` is the side of the crops in pixels, `joints` 24.
    """

    images: Float[Tensor, "batch 3 crop crop"]
    """RGB crops in 0..1."""
    renderings: Float[Tensor, "batch 10 crop crop"]
    """The initial body seen by `initial_crop_camera`: texture, depth, normals, vertex colour."""
    fragments: Fragments
    """Which triangle of the initial body each crop pixel shows."""
    mask: Bool[Tensor, "batch crop crop"]
    """Pixels that show the initial body; the loss is taken over these."""
    displacement_px: Float[Tensor, "batch 2 crop crop"]
    """Where the surface point at each pixel really is, minus where it is drawn, in crop pixels; 0 off the mask, and
    where the sample has no true body."""
    initial: BodyParameters
    """The initial estimate."""
    initial_camera: PinholeCamera
    """The full-image camera that goes with it: the true one but for the focal length."""
    initial_crop_camera: PinholeCamera
    """The same camera, changed to the crop."""
    truth: BodyParameters
    """The true bodies."""
    has_body: Bool[Tensor, " batch"]
    """False where `truth` stands for nothing and `joints_m` is all that is known."""
    camera: PinholeCamera
    """The true full-image cameras."""
    crop_camera: PinholeCamera
    """The same cameras, changed to the crop."""
    box_px: Float[Tensor, "batch 3"]
    """Centre x, centre y and side of the person's box in the full image."""
    gender: Int64[Tensor, " batch"]
    """Index into `store_layout.GENDERS`."""
    initial_kind: Int64[Tensor, " batch"]
    """Index into `INITIAL_KINDS`."""
    detected_keypoints_px: Float[Tensor, "batch 25 3"]
    """openpose25 in the full image as detected: x, y, confidence."""
    true_keypoints_px: Float[Tensor, "batch 25 3"]
    """openpose25 in the full image as annotated: x, y, 1; zeros where not annotated."""
    joints_m: Float[Tensor, "batch 17 4"]
    """h36m17 as measured in the camera frame: x, y, z, 1; zeros where not measured."""
    surface: SurfaceSample
    """DensePose points."""
    dataset: Int64[Tensor, " batch"]
    """Which of the data module's data sets."""
    sequence: Int64[Tensor, " batch"]
    """Index into that data set's `FrameStore.sequences`."""
    row: Int64[Tensor, " batch"]
    """Row in that data set's frames file."""

    def __len__(self) -> int:
        return len(self.images)
