"""What a fit aims at: keypoints seen in the image, vertices, or points of the surface between them."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bodies import BodyModel, InputError
from bodies.joints import KeypointSet
from fitting.body_points import KeypointPoints, TrianglePoints, VertexPoints
from fitting.terms import PointEvidence

#: Default scales of the robustifier. Of 20, 40 and 80 the first gave the lowest joint error for bodies fitted from
#: rest to noisy keypoints of postures that the prior was not fitted to.
KEYPOINT_SIGMA_PX = 20.0
VERTEX_SIGMA_PX = 20.0
SURFACE_SIGMA_PX = 20.0
#: By how much barycentric coordinates may be negative, or their sum off one: they were stored in single precision.
BARYCENTRIC_SLACK = 1e-3


@dataclass(frozen=True)
class KeypointTargets:
    """Detected keypoints."""

    position_px: Float[Tensor, "batch keypoints 2"]
    """Full-image pixels."""
    confidence: Float[Tensor, "batch keypoints"]
    """In 0..1; zero if not detected."""
    keypoint_set: KeypointSet = "openpose25"
    """Which keypoints they are."""
    factor: float = 1.0
    """Weight of this data term."""
    sigma_px: float = KEYPOINT_SIGMA_PX
    """Robustifier scale, for a person `terms.PERSON_PX` tall."""

    def __getitem__(self, index: slice | Tensor) -> Self:
        return replace(self, position_px=self.position_px[index], confidence=self.confidence[index])

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """The same targets on another device or in another precision."""
        return replace(self, position_px=self.position_px.to(target), confidence=self.confidence.to(target))

    def weights(self) -> Float[Tensor, "batch keypoints"]:
        """Confidence of each keypoint, zero where position or confidence is not finite."""
        usable = self.position_px.isfinite().all(dim=-1) & self.confidence.isfinite()
        return torch.where(usable, self.confidence, 0).clamp(min=0)

    def evidence(self, body: BodyModel) -> PointEvidence:
        """These targets as a term of the objective; confidences count squared, as SPIN and SMPLify have it."""
        weight = self.factor * self.weights().square()
        points = KeypointPoints.gather(body, self.keypoint_set)
        return PointEvidence(points, self.position_px, weight, self.sigma_px)


@dataclass(frozen=True)
class VertexTargets:
    """Where vertices of the mesh were seen, for example the initial projection plus a displacement (eq. 6)."""

    position_px: Float[Tensor, "batch vertices 2"]
    """Full-image pixels."""
    weight: Float[Tensor, "batch vertices"]
    """Zero for vertices that were not seen; relative reliability otherwise, usually 1."""
    factor: float = 100.0
    """Weight of this data term: what all vertices together count for, compared with one sure keypoint."""
    sigma_px: float = VERTEX_SIGMA_PX
    """Robustifier scale, for a person `terms.PERSON_PX` tall."""
    max_vertices: int = 600
    """At most so many are used of each sample, spread evenly over the visible surface."""

    def __getitem__(self, index: slice | Tensor) -> Self:
        return replace(self, position_px=self.position_px[index], weight=self.weight[index])

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """The same targets on another device or in another precision."""
        return replace(self, position_px=self.position_px.to(target), weight=self.weight.to(target))

    def weights(self) -> Float[Tensor, "batch vertices"]:
        """Weight of each vertex, zero where position or weight is not finite."""
        usable = self.position_px.isfinite().all(dim=-1) & self.weight.isfinite()
        return torch.where(usable, self.weight, 0).clamp(min=0)

    def evidence(self, body: BodyModel) -> PointEvidence:
        """These targets as a term of the objective, thinned out to `max_vertices`."""
        if self.weight.shape[1] != body.num_vertices:
            raise ValueError(f"{body.name} has {body.num_vertices} vertices, the targets have {self.weight.shape[1]}")
        count = min(self.max_vertices, body.num_vertices)
        chosen, weight = _first_seen(body.surface_order.to(self.weight.device), self.weights(), count)
        position = self.position_px.gather(1, chosen[..., None].expand(-1, -1, 2))
        points = VertexPoints.gather(body, chosen)
        return PointEvidence(points, position, weight * (self.factor / count), self.sigma_px)


@dataclass(frozen=True)
class SurfaceTargets:
    """Where points of the body's surface were seen, as DensePose tells of pixels; every sample has its own."""

    position_px: Float[Tensor, "batch points 2"]
    """Full-image pixels."""
    triangle: Int64[Tensor, "batch points"]
    """Rows of the body model's faces."""
    barycentric: Float[Tensor, "batch points 3"]
    """Shares of the triangle's corners in each point; they sum to one."""
    weight: Float[Tensor, "batch points"]
    """Zero for padding, which may hold anything; relative reliability otherwise, usually 1."""
    factor: float = 100.0
    """Weight of this data term: what `max_points` points together count for, compared with one sure keypoint."""
    sigma_px: float = SURFACE_SIGMA_PX
    """Robustifier scale, for a person `terms.PERSON_PX` tall."""
    max_points: int = 500
    """At most so many are used of each sample, at even steps through its list."""

    def __post_init__(self) -> None:
        if self.max_points < 1:
            raise ValueError(f"max_points must be at least 1, got {self.max_points}")

    def __getitem__(self, index: slice | Tensor) -> Self:
        return replace(
            self,
            position_px=self.position_px[index],
            triangle=self.triangle[index],
            barycentric=self.barycentric[index],
            weight=self.weight[index],
        )

    def to(self, target: torch.device | str | torch.dtype) -> Self:
        """The same targets on another device or in another precision; triangles stay whole numbers."""
        return replace(
            self,
            position_px=self.position_px.to(target),
            triangle=self.triangle if isinstance(target, torch.dtype) else self.triangle.to(target),
            barycentric=self.barycentric.to(target),
            weight=self.weight.to(target),
        )

    def weights(self) -> Float[Tensor, "batch points"]:
        """Weight of each point, zero where any of its numbers is not finite."""
        places = self.position_px.isfinite().all(dim=-1) & self.barycentric.isfinite().all(dim=-1)
        return torch.where(places & self.weight.isfinite(), self.weight, 0).clamp(min=0)

    def evidence(self, body: BodyModel) -> PointEvidence:
        """These targets as a term of the objective, thinned out to `max_points`.

        Raises:
            InputError: If a point with a weight is in no triangle of the body, or its shares do not sum to one.
        """
        weights = self.weights()
        self._check(body, weights > 0)
        chosen, weight = _evenly(weights, min(self.max_points, weights.shape[1]))
        seen, places = weight > 0, chosen[..., None]
        shares = torch.where(seen[..., None], self.barycentric.gather(1, places.expand(-1, -1, 3)), 1).clamp(min=0)
        triangle = torch.where(seen, self.triangle.gather(1, chosen), 0)
        points = TrianglePoints.gather(body, triangle, shares / shares.sum(dim=-1, keepdim=True))
        position = self.position_px.gather(1, places.expand(-1, -1, 2))
        return PointEvidence(points, position, weight * (self.factor / self.max_points), self.sigma_px)

    def _check(self, body: BodyModel, used: Bool[Tensor, "batch points"]) -> None:
        triangle, shares = self.triangle[used], self.barycentric[used]
        wrong = triangle[(triangle < 0) | (triangle >= len(body.faces))]
        if len(wrong):
            raise InputError(
                f"a surface point is in triangle {int(wrong[0])}, the body model {body.name} has {len(body.faces)}: "
                "the points are of another body"
            )
        off = ((shares.sum(dim=-1) - 1).abs() > BARYCENTRIC_SLACK) | (shares < -BARYCENTRIC_SLACK).any(dim=-1)
        if off.any():
            raise InputError(f"the shares of a surface point's corners are {shares[off][0].tolist()}: not a mean")


Targets = KeypointTargets | VertexTargets | SurfaceTargets


def _first_seen(
    order: Int64[Tensor, " vertices"], weights: Float[Tensor, "batch vertices"], count: int
) -> tuple[Int64[Tensor, "batch chosen"], Float[Tensor, "batch chosen"]]:
    """Of each sample the first `count` vertices in `order` that were seen, and their weights.

    The order is the same for all and fixed, so the choice of a sample is its own. Places left over have weight zero.
    """
    ordered = weights[:, order]
    seen = ordered > 0
    place = seen.cumsum(dim=1) - 1
    # What is not chosen goes to one place more, which is cut off.
    place = torch.where(seen & (place < count), place, count)
    batch = len(weights)
    chosen = order.new_zeros(batch, count + 1).scatter_(1, place, order.expand(batch, -1))
    weight = weights.new_zeros(batch, count + 1).scatter_(1, place, ordered)
    return chosen[:, :count], weight[:, :count]


def _evenly(
    weights: Float[Tensor, "batch points"], count: int
) -> tuple[Int64[Tensor, "batch chosen"], Float[Tensor, "batch chosen"]]:
    """Of each sample `count` of the points that were seen, at even steps through them, and their weights.

    Place k takes number floor(k seen / count) of the seen ones, or number k if there are no more than `count`. Places
    left over have weight zero.
    """
    seen = weights > 0
    number = seen.cumsum(dim=1) - 1
    total = seen.sum(dim=1, keepdim=True).clamp(min=max(count, 1))
    place = (number * count + total - 1) // total
    # What is not chosen goes to one place more, which is cut off.
    place = torch.where(seen & (place * total // max(count, 1) == number) & (place < count), place, count)
    batch, points = weights.shape
    numbers = torch.arange(points, device=weights.device).expand(batch, -1)
    chosen = numbers.new_zeros(batch, count + 1).scatter_(1, place, numbers)
    weight = weights.new_zeros(batch, count + 1).scatter_(1, place, weights)
    return chosen[:, :count], weight[:, :count]


def person_size_px(
    position_px: Float[Tensor, "batch points 2"], weight: Float[Tensor, "batch points"]
) -> Float[Tensor, " batch"]:
    """Larger extent of the points that are fitted; 1 px at the least, so that a single point has a defined scale."""
    if not weight.shape[1]:
        return weight.new_ones(len(weight))
    seen = (weight > 0)[..., None]
    low = position_px.masked_fill(~seen, float("inf")).amin(dim=1)
    high = position_px.masked_fill(~seen, float("-inf")).amax(dim=1)
    extent = (high - low).amax(dim=-1)
    return torch.where(extent.isfinite(), extent, 1).clamp(min=1.0)
