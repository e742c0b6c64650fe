"""Where a body must stand to be seen where it was seen, in closed form."""

import torch
from jaxtyping import Float
from torch import Tensor

from bodies import PinholeCamera

#: Added to the normal matrix's diagonal, relative to its trace: one seen point alone leaves the depth open.
RELATIVE_RIDGE = 1e-9


def solve_translation(
    points: Float[Tensor, "batch points 3"],
    position_px: Float[Tensor, "batch points 2"],
    weight: Float[Tensor, "batch points"],
    camera: PinholeCamera,
) -> Float[Tensor, "batch 3"]:
    """The translation that puts rigid points where they were seen, by weighted linear least squares.

    With normalised image coordinates u = (pixel - centre) / focal, (X + t_x) = u (Z + t_z) is linear in t.

    Args:
        points: Points of the untranslated body in camera axes, metres.
        position_px: Where they were seen.
        weight: Non-negative weights; zero for unseen ones. At least two distinct points must be seen.
        camera: The full-image camera.
    """
    seen = (weight > 0)[..., None]
    normalised = torch.where(seen, position_px - camera.center_px[:, None], 0) / camera.focal_px[:, None]
    rows = points.new_zeros(*points.shape[:2], 2, 3)
    rows[..., 0, 0] = rows[..., 1, 1] = 1
    rows[..., 2] = -normalised
    right = normalised * points[..., 2:] - points[..., :2]
    weighted = rows * weight[..., None, None]
    normal = torch.einsum("bpri,bprj->bij", weighted, rows).double()
    moment = torch.einsum("bpri,bpr->bi", weighted, right).double()
    trace = normal.diagonal(dim1=1, dim2=2).sum(dim=1)
    ridge = torch.eye(3, dtype=normal.dtype, device=normal.device) * (RELATIVE_RIDGE * trace)[:, None, None]
    return torch.linalg.solve(normal + ridge, moment).to(points.dtype)
