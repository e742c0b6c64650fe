"""Arrays of a dump by name: found under one of several names, and checked to be numbers of the shape that is expected.

Numbers that are not finite are let through here: they cost their own row, not the file (`PlacedBodies.problems`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Shaped
from numpy import ndarray

from bodies.errors import InputError
from datamodules.convert.rotations import SixNumbers, matrices_from_6d, matrices_to_pose

#: A square box's side divided by this is the 'scale' of SPIN's files (MPII's person height of 200 px).
SPIN_SCALE_PX = 200.0
#: No person is found in a box of fewer pixels, and no image is 4000 px of person: smaller numbers are sides / 200.
_SMALLEST_SIDE_PX = 20.0


@dataclass(frozen=True)
class Fields:
    """The arrays of one dump."""

    where: str
    """The file, for messages."""
    arrays: Mapping[str, Any]
    """What is in it."""

    def name(self, *names: str) -> str | None:
        """The first of the names that is there and not None."""
        return next((name for name in names if self.arrays.get(name) is not None), None)

    def need(self, *names: str) -> str:
        """The first of the names that is there.

        Raises:
            InputError: If none is.
        """
        found = self.name(*names)
        if found is None:
            others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            raise InputError(f"{self.where}: has no '{names[0]}'{others}")
        return found

    def numbers(self, name: str, *shapes: tuple[int | None, ...]) -> Float32[ndarray, "..."]:
        """An array of numbers of one of the given shapes, in which None stands for any length; not to be changed.

        Raises:
            InputError: If it is missing or is something else.
        """
        array = self.checked(name, *shapes)
        with np.errstate(over="ignore"):
            return array.astype(np.float32, copy=False)

    def checked(self, name: str, *shapes: tuple[int | None, ...]) -> Shaped[ndarray, "..."]:
        """The same as it is in the file, of any type of number: one that is mapped stays so.

        Raises:
            InputError: If it is missing or is something else.
        """
        given = self.arrays[self.need(name)]
        try:
            array = np.asarray(given)
        except ValueError as error:
            raise InputError(f"{self.where}: '{name}' is not an array of one shape") from error
        if array.dtype.kind not in "fiu":
            raise InputError(f"{self.where}: '{name}' does not hold numbers")
        if not any(_fits(array.shape, shape) for shape in shapes):
            wanted = " or ".join("(" + ", ".join("any" if n is None else str(n) for n in s) + ")" for s in shapes)
            raise InputError(f"{self.where}: '{name}' has shape {array.shape}, expected was {wanted}")
        return array

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of names.

        Raises:
            InputError: If it is missing or is something else.
        """
        array = np.asarray(self.arrays[self.need(name)]).reshape(-1)
        values = [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in array.tolist()]
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{self.where}: '{name}' does not hold text")
        return tuple(str(value) for value in values)


def pose_of(fields: Fields, name: str, rows: int, six: SixNumbers | None = None) -> Float32[ndarray, "rows samples 72"]:
    """Poses in any of the shapes in use: (N, 72), (N, S, 72), (N, 24, 3), (N, 24, 3, 3), (N, S, 24, 3, 3).

    With `six`, also (N, 144), (N, S, 144), (N, 24, 6) and (N, S, 24, 6) in that order of the six numbers.

    Raises:
        InputError: If the shape is another one, or none of the matrices is a rotation.
    """
    vectors: list[tuple[int | None, ...]] = [(rows, 72), (rows, None, 72), (rows, 24, 3)]
    matrices: list[tuple[int | None, ...]] = [(rows, 24, 3, 3), (rows, None, 24, 3, 3)]
    sixes: list[tuple[int | None, ...]] = [(rows, 144), (rows, None, 144), (rows, 24, 6), (rows, None, 24, 6)]
    array = fields.numbers(name, *vectors, *matrices, *(sixes if six else ()))
    if any(_fits(array.shape, shape) for shape in vectors):
        return array.reshape(rows, -1, 72)
    if any(_fits(array.shape, shape) for shape in matrices):
        return checked_pose(fields, name, array.reshape(rows, -1, 24, 3, 3))
    assert six is not None
    return checked_pose(fields, name, matrices_from_6d(array.reshape(rows, -1, 24, 6), six))


def checked_pose(
    fields: Fields, name: str, rotations: Float[ndarray, "rows samples 24 3 3"]
) -> Float32[ndarray, "rows samples 72"]:
    """Axis-angle; rows with a matrix that is no rotation come as NaN.

    Raises:
        InputError: If all rows are like that.
    """
    pose, good = matrices_to_pose(rotations)
    if len(good) and not good.any():
        raise InputError(f"{fields.where}: '{name}' holds matrices that are no rotations")
    return pose


def samples_of(
    fields: Fields, name: str, rows: int, samples: int, width: int
) -> Float32[ndarray, "rows samples width"]:
    """(N, width), the same for all samples, or (N, S, width).

    Raises:
        InputError: If the shape is another one.
    """
    array = fields.numbers(name, (rows, width), (rows, samples, width))
    return np.broadcast_to(array.reshape(rows, -1, width), (rows, samples, width))


def box_of(fields: Fields, rows: int) -> Float32[ndarray, "rows 3"] | None:
    """The square box, as `box_px` (cx, cy, side), or as `center` and `scale` (side in pixels or divided by 200).

    Raises:
        InputError: If the shapes are others, a side is not positive, or `scale` mixes its two meanings.
    """
    if fields.name("box_px"):
        box = fields.numbers("box_px", (rows, 3))
    elif fields.name("center") and fields.name("scale"):
        scale = fields.numbers("scale", (rows,), (rows, 1)).reshape(rows)
        divided = scale < _SMALLEST_SIDE_PX
        if divided.any() and not divided.all():
            raise InputError(f"{fields.where}: 'scale' is partly in pixels and partly divided by {SPIN_SCALE_PX:g}")
        side = scale * SPIN_SCALE_PX if divided.any() else scale
        box = np.concatenate([fields.numbers("center", (rows, 2)), side[:, None]], axis=1)
    else:
        return None
    if (box[:, 2] <= 0).any():
        raise InputError(f"{fields.where}: a box has a side that is not positive")
    return box


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(want in (None, have) for want, have in zip(wanted, shape, strict=True))
