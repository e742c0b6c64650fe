"""Poses that are converted when they are asked for: 64 samples of 35,515 rows are 2 GB of matrices in the file."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy import ndarray

from datamodules.convert.fields import Fields
from datamodules.convert.rotations import SixNumbers, matrices_from_6d, matrices_to_pose


@dataclass(frozen=True)
class LazyPose:
    """Rows of the file's rotations, as matrices or as six numbers of each."""

    source: Float[ndarray, "all samples joints_and_numbers"]
    """All rows of the file, mapped rather than in memory; the numbers of a body's 24 joints one after the other."""
    six: SixNumbers
    """The order of six numbers; without meaning where there are nine."""
    rows: Int64[ndarray, " rows"]
    """Which rows of the file."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, samples, and the 72 numbers of each pose."""
        return len(self.rows), self.source.shape[1], 72

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: Int64[ndarray, " chosen"]) -> Self:
        """Some of the rows, still not read."""
        return replace(self, rows=self.rows[chosen])

    def read(self) -> Float32[ndarray, "rows samples 72"]:
        """Axis-angle in radians; a row with a matrix that is no rotation is NaN."""
        with np.errstate(over="ignore"):
            numbers = self.source[self.rows].astype(np.float32)
        if numbers.shape[2] == 144:
            return matrices_to_pose(matrices_from_6d(numbers.reshape(*numbers.shape[:2], 24, 6), self.six))[0]
        return matrices_to_pose(numbers.reshape(*numbers.shape[:2], 24, 3, 3))[0]


def lazy_pose_of(fields: Fields, name: str, rows: int, six: SixNumbers) -> LazyPose:
    """Rotations in any of the shapes in use, with S samples of each row or one.

    They are matrices (N, S, 24, 3, 3) or (N, 24, 3, 3), or six numbers (N, S, 144), (N, 144), (N, S, 24, 6) or
    (N, 24, 6).

    Raises:
        InputError: If the shape is another one.
    """
    matrices: list[tuple[int | None, ...]] = [(rows, None, 24, 3, 3), (rows, 24, 3, 3)]
    sixes: list[tuple[int | None, ...]] = [(rows, None, 144), (rows, 144), (rows, None, 24, 6), (rows, 24, 6)]
    array = fields.checked(name, *matrices, *sixes)
    width = 216 if array.shape[-2:] == (3, 3) else 144
    return LazyPose(array.reshape(rows, -1, width), six, np.arange(rows))
