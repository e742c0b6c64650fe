"""Random numbers that belong to a seed, not to a generator: the same for a sample whatever its batch, worker or rank.

A counter-based generator: number k of stream s of a seed is a hash of (seed, s, k). So a whole batch is drawn in a few
tensor operations on its own device, each sample from its own seed, and the device decides no more than the rounding of
logarithm and cosine. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
generators", 2014).
"""

import math
from typing import Final

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the last 64 bits of an integer; torch has no arithmetic on uint64."""
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


_GOLDEN: Final = _signed(0x9E3779B97F4A7C15)
_FIRST: Final = _signed(0xBF58476D1CE4E5B9)
_SECOND: Final = _signed(0x94D049BB133111EB)
#: A float64 has 53 bits of precision.
_KEPT_BITS: Final = 53


def uniform(seed: Int64[Tensor, " batch"], count: int, stream: int) -> Float64[Tensor, "batch count"]:
    """Numbers strictly between 0 and 1.

    Args:
        seed: One per sample.
        count: How many numbers for each.
        stream: Which of the sample's independent sequences.
    """
    key = _mix(seed + _signed((stream + 1) * _GOLDEN))
    counter = torch.arange(1, count + 1, device=seed.device) * _GOLDEN
    bits = _logical_shift(_mix(key[:, None] + counter), 64 - _KEPT_BITS)
    # Half a step inside, so that a logarithm can be taken.
    return (bits.double() + 0.5) * 2.0**-_KEPT_BITS


def standard_normal(seed: Int64[Tensor, " batch"], count: int, stream: int) -> Float32[Tensor, "batch count"]:
    """Normally distributed numbers of mean 0 and deviation 1 (Box and Muller); arguments as for `uniform`."""
    first, second = uniform(seed, 2 * count, stream).unflatten(1, (2, count)).unbind(1)
    return ((-2 * first.log()).sqrt() * (2 * math.pi * second).cos()).float()


def _mix(values: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    # Products wrap around modulo 2^64, on which the hash relies.
    values = (values ^ _logical_shift(values, 30)) * _FIRST
    values = (values ^ _logical_shift(values, 27)) * _SECOND
    return values ^ _logical_shift(values, 31)


def _logical_shift(values: Int64[Tensor, "..."], bits: int) -> Int64[Tensor, "..."]:
    """Shifts right and fills with zeros; torch's own shift repeats the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
