"""Rows of which only joints are known: Human3.6M by motion capture alone, without a fitted body.

`FrameStore.has_body` tells them; what is known of them is `joints_m`.
"""

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray

from bodies.joints import H36M17, SMPL24
from datamodules.store import FrameStore

#: Joints that are in both sets by the same name: number in h36m17, number in SMPL's chain. They are not quite the same
#: places: hips are centimetres apart.
_SHARED = tuple((place, SMPL24.index(name)) for place, name in enumerate(H36M17) if name in SMPL24)


def measured_chain_m(frames: FrameStore, rows: Int64[ndarray, " rows"]) -> Float32[ndarray, "rows joints 3"]:
    """SMPL's 24 joints of some rows as measured, in the camera frame; NaN where there is none of that name."""
    measured = frames.column("joints_m")[rows]
    chain = np.full((len(rows), len(SMPL24), 3), np.nan, np.float32)
    for place, joint in _SHARED:
        known = measured[:, place, 3] > 0
        chain[known, joint] = measured[known, place, :3]
    return chain
