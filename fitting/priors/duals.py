"""Values together with their derivatives along many directions: forward differentiation, for what priors are made of.

Written out because a Jacobian of 69 or 72 columns through a network is a few large matrix products this way, and
because torch's own forward mode compiles scripts on first use.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

#: Squared lengths below this do not count as such (`torch.nn.functional.normalize` has the length 1e-12).
_SMALLEST_SQUARED = 1e-24
#: Squared angles below this use series, whose next terms are of order 1e-10 there.
_SMALL_SQUARED_RAD = 1e-4


@dataclass(frozen=True)
class Dual:
    """A value and, if it is wanted, its derivative. Operations act on the axes behind batch and directions."""

    value: Float[Tensor, "batch ..."]
    """The value."""
    tangent: Float[Tensor, "batch directions ..."] | None = None
    """Its derivative along each direction."""

    def mapped(self, linear: Callable[[Tensor], Tensor]) -> "Dual":
        """A linear function of it, one that takes any axes in front."""
        return Dual(linear(self.value), None if self.tangent is None else linear(self.tangent))

    def affine(self, weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None) -> "Dual":
        """A linear layer."""
        tangent = None if self.tangent is None else functional.linear(self.tangent, weight)
        return Dual(functional.linear(self.value, weight, bias), tangent)

    def scaled(self, scale: Float[Tensor, " features"], shift: Float[Tensor, " features"]) -> "Dual":
        """A norm outside of training."""
        return Dual(self.value * scale + shift, None if self.tangent is None else self.tangent * scale)

    def rectified(self, slope: float = 0.0) -> "Dual":
        """A leaky rectifier."""
        value = functional.leaky_relu(self.value, slope)
        if self.tangent is None:
            return Dual(value)
        passing = torch.where(self.value > 0, torch.ones_like(self.value), slope)
        return Dual(value, self.tangent * passing.unsqueeze(1))

    def __add__(self, other: "Dual") -> "Dual":
        value = self.value + other.value
        if self.tangent is None or other.tangent is None:
            return Dual(value)
        return Dual(value, self.tangent + other.tangent)

    def __sub__(self, other: "Dual") -> "Dual":
        return self + other.mapped(torch.neg)

    def times(self, other: "Dual", product: Callable[[Tensor, Tensor], Tensor] = torch.mul) -> "Dual":
        """A product, or anything else that is linear in each of the two."""
        value = product(self.value, other.value)
        if self.tangent is None or other.tangent is None:
            return Dual(value)
        one = product(self.tangent, other.value.unsqueeze(1))
        return Dual(value, one + product(self.value.unsqueeze(1), other.tangent))

    def normalized(self) -> "Dual":
        """Vectors along the last axis, of length one."""
        squared = self.times(self, dot)
        length = squared.value.clamp(min=_SMALLEST_SQUARED).sqrt()
        inverse = 1 / length
        if squared.tangent is None:
            return Dual(self.value * inverse)
        slope = (-0.5 * inverse**3).unsqueeze(1)
        return self.times(Dual(inverse, slope * squared.tangent))


def dot(left: Tensor, right: Tensor) -> Tensor:
    """Inner product along the last axis, which stays."""
    return (left * right).sum(dim=-1, keepdim=True)


def cross(left: Tensor, right: Tensor) -> Tensor:
    """Cross product along the last axis."""
    left, right = torch.broadcast_tensors(left, right)
    return torch.linalg.cross(left, right)


def joined(parts: list[Dual]) -> Dual:
    """One behind the other along the last axis."""
    tangents = [part.tangent for part in parts if part.tangent is not None]
    value = torch.cat([part.value for part in parts], dim=-1)
    return Dual(value, torch.cat(tangents, dim=-1) if len(tangents) == len(parts) else None)


def by_joint(
    value: Float[Tensor, "batch joints *rest"], derivative: Float[Tensor, "batch joints 3 *rest"] | None
) -> Dual:
    """Something that each joint has of its own axis-angle alone; directions are the pose's numbers, joint by joint."""
    if derivative is None:
        return Dual(value)
    batch, joints, _, *rest = derivative.shape
    tangent = derivative.new_zeros(batch, joints, 3, joints, *rest)
    tangent.diagonal(dim1=1, dim2=3).copy_(derivative.movedim(1, -1))
    return Dual(value, tangent.flatten(1, 2))


def rotations(pose: Float[Tensor, "batch joints 3"], *, derive: bool) -> Dual:
    """Rotation matrices (batch, joints, 3, 3) of axis-angles in radians: R = I + a [t]x + b [t]x^2.

    dR/dt_k = R [J_k]x, where J_k is column k of `right_jacobian`.
    """
    squared, small, safe, angle = _angles(pose)
    a = torch.where(small, 1 - squared / 6 + squared**2 / 120, angle.sin() / angle)
    b = torch.where(small, 0.5 - squared / 24 + squared**2 / 720, (1 - angle.cos()) / safe)
    skew = skew_symmetric(pose)
    value = torch.eye(3, dtype=pose.dtype, device=pose.device) + a * skew + b * (skew @ skew)
    if not derive:
        return Dual(value)
    return by_joint(value, value.unsqueeze(-3) @ skew_symmetric(right_jacobian(pose).mT))


def right_jacobian(pose: Float[Tensor, "batch joints 3"]) -> Float[Tensor, "batch joints 3 3"]:
    """By how much R turns, as R exp([d]x), when its axis-angle changes: J = I - b [t]x + c [t]x^2.

    b and c are (1 - cos t)/t^2 and (t - sin t)/t^3 (Chirikjian, "Stochastic Models, Information Theory, and Lie
    Groups", vol. 2, eq. 10.86).
    """
    squared, small, safe, angle = _angles(pose)
    b = torch.where(small, 0.5 - squared / 24 + squared**2 / 720, (1 - angle.cos()) / safe)
    c = torch.where(small, 1 / 6 - squared / 120 + squared**2 / 5040, (angle - angle.sin()) / (safe * angle))
    skew = skew_symmetric(pose)
    return torch.eye(3, dtype=pose.dtype, device=pose.device) - b * skew + c * (skew @ skew)


def _angles(pose: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared angles with two axes to spare, whether they are small, and, safe to divide by, the same and its root."""
    squared = pose.square().sum(dim=-1)[..., None, None]
    small = squared < _SMALL_SQUARED_RAD
    safe = torch.where(small, torch.ones_like(squared), squared)
    return squared, small, safe, safe.sqrt()


def skew_symmetric(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """[v]x, with [v]x w = v x w."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))


def without_whole_turns(pose: Float[Tensor, "batch joints 3"], *, derive: bool) -> Dual:
    """The same rotations as axis-angle with angles up to pi, which is what networks were trained on."""
    squared = pose.square().sum(dim=-1, keepdim=True)
    turned = squared > torch.pi**2
    angle = torch.where(turned, squared, torch.ones_like(squared)).sqrt()
    surplus = 2 * torch.pi * torch.where(turned, (angle / (2 * torch.pi)).round(), 0)
    value = pose * (1 - surplus / angle)
    if not derive:
        return Dual(value)
    identity = torch.eye(3, dtype=pose.dtype, device=pose.device)
    outer = pose[..., :, None] * pose[..., None, :]
    factor, along = (1 - surplus / angle)[..., None], (surplus / angle**3)[..., None]
    return by_joint(value, factor * identity + along * outer)
