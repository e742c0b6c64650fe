"""The joints of a body without its surface, in numpy: all that bringing a posed person into another frame takes.

`bodies.model_files.load_rest_joints` reads it in a third of the time of a whole body model. The numbers are those of
`BodyModel.shape_joints` and `BodyModel.pose`.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Float32, Float64
from numpy import ndarray
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class RestJoints:
    """Where the joints of the kinematic chain are at rest, depending on the shape."""

    name: str
    """Of the body model."""
    template_m: Float32[ndarray, "joints 3"]
    """Joints of the mean shape."""
    directions_m: Float32[ndarray, "joints 3 betas"]
    """How they move with each shape coefficient."""
    parents: tuple[int, ...]
    """Parent of each joint, before it in the order; -1 for the root."""

    @classmethod
    def regressed(
        cls,
        name: str,
        regressor: csr_matrix,
        template: Float[ndarray, "vertices 3"],
        shape_directions: Float[ndarray, "vertices 3 betas"],
        parents: tuple[int, ...],
    ) -> Self:
        """Joints are linear in betas: J v(beta) = J T + (J S) beta, computed in float64 once."""
        # Of the thousands of vertices a joint is a mean of a few dozen.
        used, columns = np.unique(regressor.indices, return_inverse=True)
        values = regressor.data.astype(np.float64)
        regress = csr_matrix((values, columns, regressor.indptr), shape=(regressor.shape[0], len(used)))
        directions = shape_directions[used].astype(np.float64)
        moved = (regress @ directions.reshape(len(used), -1)).reshape(-1, *directions.shape[1:])
        rest = regress @ template[used].astype(np.float64)
        return cls(name, rest.astype(np.float32), moved.astype(np.float32), parents)

    def at_rest(self, betas: Float[ndarray, "batch betas"]) -> Float32[ndarray, "batch joints 3"]:
        """Rest joints in metres.

        Args:
            betas: Shape coefficients; fewer than the model has count as zeros for the rest.

        Raises:
            ValueError: If there are more than the model has.
        """
        count = betas.shape[1]
        if count > self.directions_m.shape[2]:
            raise ValueError(f"{self.name} has {self.directions_m.shape[2]} shape coefficients, got {count}")
        directions = self.directions_m[..., :count].reshape(-1, count)
        moved = (betas.astype(np.float32) @ directions.T).reshape(len(betas), *self.template_m.shape)
        return self.template_m + moved

    def pelvis(self, betas: Float[ndarray, "batch betas"]) -> Float32[ndarray, "batch 3"]:
        """The root at rest, about which the root of a pose turns; in metres.

        Raises:
            ValueError: As `at_rest` does.
        """
        return self.at_rest(betas)[:, 0]

    def posed(
        self, rest_m: Float[ndarray, "batch joints 3"], rotations: Float[ndarray, "batch joints 3 3"]
    ) -> Float64[ndarray, "batch joints 3"]:
        """Runs the kinematic chain: the joints in metres, before translation.

        Args:
            rest_m: Rest joints.
            rotations: Of each joint against its parent.
        """
        joints_m, turns = rest_m.astype(np.float64), rotations.astype(np.float64)
        for joint, parent in enumerate(self.parents[1:], start=1):
            offset = rest_m[:, joint] - rest_m[:, parent]
            joints_m[:, joint] = joints_m[:, parent] + (turns[:, parent] @ offset[..., None])[..., 0]
            turns[:, joint] = turns[:, parent] @ turns[:, joint]
        return joints_m
