"""The pinhole camera that sees a body, and how crops and weak-perspective estimates turn into it.

Conventions, used everywhere in snugfit:

* Camera axes are OpenCV's: x right, y down, z forward; units are metres.
* Pixel (row r, column c) covers [c, c+1) x [r, r+1), so its centre is (c + 0.5, r + 0.5). A 2D position
  is (x, y), x to the right.
* There is one camera per body, that of the full image. A crop is a change of camera (`crop`), never a
  change of the body.
"""

from dataclasses import dataclass
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bodies.errors import InputError

#: Crop side in pixels and focal length that SPIN, PARE, ProHMR and mmhuman3d train with.
REGRESSOR_CROP_PX = 224.0
REGRESSOR_FOCAL_PX = 5000.0
#: Keeps 1 / (s b) finite for a predicted scale of zero; the value the public regressors use.
SCALE_EPSILON = 1e-9
#: A point is in front of the camera if it is at least this far away, in metres.
NEAR_PLANE_M = 1e-3


@dataclass(frozen=True)
class PinholeCamera:
    """One pinhole camera without distortion for each batch element."""

    focal_px: Float[Tensor, "batch 2"]
    """Focal lengths along x and y."""
    center_px: Float[Tensor, "batch 2"]
    """Principal point (x, y)."""
    size_px: Float[Tensor, "batch 2"]
    """Image width and height."""

    def __len__(self) -> int:
        return self.focal_px.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        return type(self)(self.focal_px[index], self.center_px[index], self.size_px[index])

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """The same cameras on another device or in another precision."""
        return type(self)(self.focal_px.to(target), self.center_px.to(target), self.size_px.to(target))

    def expand(self, batch: int) -> Self:
        """Repeats a single camera `batch` times, without copying."""
        return type(self)(
            self.focal_px.expand(batch, 2),
            self.center_px.expand(batch, 2),
            self.size_px.expand(batch, 2),
        )

    def project(self, points: Float[Tensor, "batch points 3"]) -> Float[Tensor, "batch points 2"]:
        """Camera-frame points in metres to pixels.

        The formula is applied as it stands to points behind the camera too; callers that can meet such
        points mask them by depth.
        """
        return points[..., :2] / points[..., 2:] * self.focal_px[:, None] + self.center_px[:, None]

    def unproject(
        self, position_px: Float[Tensor, "batch points 2"], depth: Float[Tensor, "batch points"]
    ) -> Float[Tensor, "batch points 3"]:
        """Pixels and planar depth (z, metres) to camera-frame points in metres."""
        xy = (position_px - self.center_px[:, None]) / self.focal_px[:, None] * depth[..., None]
        return torch.cat([xy, depth[..., None]], dim=-1)

    def crop(
        self,
        origin_px: Float[Tensor, "batch 2"],
        scale: Float[Tensor, "batch 2"],
        size_px: Float[Tensor, "batch 2"],
    ) -> Self:
        """The camera of the image `(pixel - origin) * scale`, of the given size.

        Args:
            origin_px: Corner of the crop in this image that becomes (0, 0); may lie outside of it.
            scale: Pixels of the crop per pixel of this image, along x and y.
            size_px: Width and height of the crop.
        """
        return type(self)(self.focal_px * scale, (self.center_px - origin_px) * scale, size_px)

    @classmethod
    def from_image_size(cls, size_px: Float[Tensor, "batch 2"], focal_px: float | None = None) -> Self:
        """A camera with its principal point in the middle of the image.

        Args:
            size_px: Image width and height.
            focal_px: Focal length; by default the image diagonal, the paper's choice for unknown cameras.

        Raises:
            InputError: If the focal length is not positive and finite.
        """
        if focal_px is None:
            focal = diagonal_focal_px(size_px)
        elif focal_px > 0 and focal_px != float("inf"):
            focal = torch.full_like(size_px[:, 0], focal_px)
        else:
            raise InputError(f"the focal length must be positive and finite, got {focal_px}")
        return cls(focal[:, None].expand(-1, 2).clone(), size_px / 2, size_px)


def diagonal_focal_px(size_px: Float[Tensor, "batch 2"]) -> Float[Tensor, " batch"]:
    """Focal length sqrt(w^2 + h^2) for images of unknown camera (section 3.3 of the paper; CLIFF)."""
    return torch.linalg.vector_norm(size_px, dim=-1)


def crop_to_square_box(
    camera: PinholeCamera,
    box_center_px: Float[Tensor, "batch 2"],
    box_side_px: Float[Tensor, " batch"],
    crop_px: int,
) -> PinholeCamera:
    """The camera of a square box of the full image, resized to `crop_px` x `crop_px`."""
    side = box_side_px[:, None]
    scale = (crop_px / side).expand(-1, 2)
    return camera.crop(box_center_px - side / 2, scale, torch.full_like(box_center_px, crop_px))


def weak_perspective_to_translation(
    weak_camera: Float[Tensor, "batch 3"],
    box_center_px: Float[Tensor, "batch 2"],
    box_side_px: Float[Tensor, " batch"],
    camera: PinholeCamera,
) -> Float[Tensor, "batch 3"]:
    """Crop camera (s, tx, ty) of a regressor to the translation seen by the full-image camera.

    t = (tx + 2 (cx - ox) / (s b), ty + 2 (cy - oy) / (s b), 2 f / (s b)), with box centre c, side b and principal
    point o; CLIFF `common/utils.py` `cam_crop2full`, for any focal length and principal point. The two focal
    lengths are assumed to be equal up to calibration noise: depth follows their geometric mean.

    Args:
        weak_camera: Scale and translation predicted for the crop.
        box_center_px: Centre of the box that was resized to the regressor's input, in full-image pixels.
        box_side_px: Side of that box, every margin included.
        camera: The full-image camera.
    """
    scale, shift = weak_camera[:, :1], weak_camera[:, 1:]
    scaled_side = scale * box_side_px[:, None] + SCALE_EPSILON
    depth = 2 * camera.focal_px.prod(dim=-1, keepdim=True).sqrt() / scaled_side
    # The box centre's offset in metres at that depth; for fx = fy it is the formula above.
    offset = (box_center_px - camera.center_px) / camera.focal_px * depth
    return torch.cat([shift + offset, depth], dim=-1)


def translation_to_weak_perspective(
    transl: Float[Tensor, "batch 3"],
    box_center_px: Float[Tensor, "batch 2"],
    box_side_px: Float[Tensor, " batch"],
    camera: PinholeCamera,
) -> Float[Tensor, "batch 3"]:
    """The inverse of `weak_perspective_to_translation`, to write what a regressor would have predicted."""
    depth = transl[:, 2:]
    focal = camera.focal_px.prod(dim=-1, keepdim=True).sqrt()
    scale = (2 * focal / depth - SCALE_EPSILON) / box_side_px[:, None]
    shift = transl[:, :2] - (box_center_px - camera.center_px) / camera.focal_px * depth
    return torch.cat([scale, shift], dim=-1)


def crop_translation(
    weak_camera: Float[Tensor, "batch 3"],
    focal_px: float = REGRESSOR_FOCAL_PX,
    crop_px: float = REGRESSOR_CROP_PX,
) -> Float[Tensor, "batch 3"]:
    """(s, tx, ty) to the translation in the regressor's own crop camera, principal point at the crop centre.

    (tx, ty, 2 f / (crop s)); SPIN `train/trainer.py`, PARE `smpl_cam_head.py`, ProHMR `prohmr.py`.
    """
    depth = 2 * focal_px / (crop_px * weak_camera[:, :1] + SCALE_EPSILON)
    return torch.cat([weak_camera[:, 1:], depth], dim=-1)


def weak_perspective_full_image(
    weak_camera: Float[Tensor, "batch 3"],
    box_center_px: Float[Tensor, "batch 2"],
    box_side_px: Float[Tensor, " batch"],
    size_px: Float[Tensor, "batch 2"],
) -> Float[Tensor, "batch 4"]:
    """(s, tx, ty) of a crop to (sx, sy, tx, ty) of the full image: x_px = w / 2 (sx (X + tx) + 1).

    PARE / VIBE `convert_crop_cam_to_orig_img`, mmhuman3d `convert_crop_cam_to_orig_img`.
    """
    scale = weak_camera[:, :1] * box_side_px[:, None] / size_px
    shift = weak_camera[:, 1:] + (box_center_px - size_px / 2) / (size_px / 2) / (scale + SCALE_EPSILON)
    return torch.cat([scale, shift], dim=-1)


def transform_to_camera(
    world_to_camera: Float[Tensor, "batch 4 4"],
    root_rotation: Float[Tensor, "batch 3 3"],
    rest_pelvis: Float[Tensor, "batch 3"],
    transl: Float[Tensor, "batch 3"],
) -> tuple[Float[Tensor, "batch 3 3"], Float[Tensor, "batch 3"]]:
    """Root rotation and translation of a body in the world, as the camera sees them.

    SMPL's root turns about the rest pelvis J0, not about the origin: with x_cam = R x + t,
    R_root' = R R_root and transl' = R (J0 + transl) + t - J0. Moving `transl` alone is wrong by (R - I) J0.

    Returns:
        The root rotation and the translation in the camera frame.
    """
    rotation, shift = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3]
    pelvis = torch.einsum("bij,bj->bi", rotation, rest_pelvis + transl) + shift
    return rotation @ root_rotation, pelvis - rest_pelvis


def square_box(
    position_px: Float[Tensor, "batch points 2"],
    valid: Bool[Tensor, "batch points"] | Int[Tensor, "batch points"] | Float[Tensor, "batch points"],
    margin: float,
) -> tuple[Float[Tensor, "batch 2"], Float[Tensor, " batch"]]:
    """Centre and side of the square box about the valid points, `margin` times their larger extent.

    Every element needs at least one valid point.
    """
    usable = (valid > 0)[..., None]
    low = position_px.masked_fill(~usable, float("inf")).amin(dim=1)
    high = position_px.masked_fill(~usable, float("-inf")).amax(dim=1)
    return (low + high) / 2, (high - low).amax(dim=-1) * margin
