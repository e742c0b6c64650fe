"""Between vertices and pixels: equations 1, 2, 5 and 6 of the paper (Wehrbein et al., arXiv 2403.11634).

A pixel whose visible triangle has the corners i_1, i_2, i_3 and the barycentric coordinates b_1, b_2, b_3 reads
vertex values as sum_k b_k value(i_k); a vertex reads pixel values as their mean, weighted by its barycentric coordinate
at each pixel that sees one of its triangles. Background pixels hold zeros and are never read.

Everything is indexing, multiplication and summation over the rendered pixels of the whole batch: it runs on any device,
is differentiable in the values, and is not touched by autocast. Values of lower precision than float32 are promoted.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from bodies.camera import NEAR_PLANE_M, PinholeCamera
from renderers.rasterize import Fragments

#: A vertex counts as visible from this summed weight on: any weight, but for numbers so small that float32 loses
#: the digits of their products.
MIN_WEIGHT: Final = 1e-20


@dataclass(frozen=True)
class DisplacementSupervision:
    """What the network has to predict for the rendering of an initial estimate."""

    displacement_px: Float[Tensor, "batch 2 height width"]
    """From where the pixel's surface point is to where it should be, x then y; zero outside of the mask."""
    mask: Bool[Tensor, "batch height width"]
    """Pixels that were rendered and whose surface is in front of both cameras."""


class _Covered(NamedTuple):
    """The rendered pixels of a batch, as rows of the flattened images and vertices."""

    pixels: Int64[Tensor, " covered"]
    vertices: Int64[Tensor, "covered 3"]
    weights: Float[Tensor, "covered 3"]


def vertex_to_pixel(
    fragments: Fragments, faces: Int64[Tensor, "faces 3"], values: Float[Tensor, "batch vertices channels"]
) -> Float[Tensor, "batch height width channels"]:
    """Interpolates vertex values over the visible surface; zero on the background. The sum of equation 2."""
    _, num_vertices, channels = values.shape
    covered = _covered(fragments, faces, num_vertices)
    values = _at_least_float32(values)
    rows, weights = values.flatten(0, 1), covered.weights.to(values.dtype)
    # Corner by corner: three times faster on a CPU than a sum over an axis of length three.
    first, second, third = (rows.index_select(0, covered.vertices[:, k]) * weights[:, k, None] for k in range(3))
    surface = first + second + third
    image = values.new_zeros(fragments.triangle_id.numel(), channels).index_copy(0, covered.pixels, surface)
    return image.view(*fragments.triangle_id.shape, channels)


def pixel_to_vertex(
    fragments: Fragments,
    faces: Int64[Tensor, "faces 3"],
    values: Float[Tensor, "batch height width channels"],
    num_vertices: int,
) -> tuple[Float[Tensor, "batch vertices channels"], Float[Tensor, "batch vertices"]]:
    """Equation 5: for each vertex the mean of the pixels that see its triangles, weighted by its share in them.

    Returns:
        The means, zero for vertices that no pixel sees, and the summed weight of each vertex, zero for those alone.
        Weights are in pixels: how much of the image is nearest to the vertex, roughly.
    """
    batch, channels = values.shape[0], values.shape[-1]
    covered = _covered(fragments, faces, num_vertices)
    values = _at_least_float32(values)
    weights = covered.weights.to(values.dtype)
    seen = values.flatten(0, 2).index_select(0, covered.pixels)
    # The last channel is one everywhere, so that its weighted sum is the sum of the weights.
    seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    sums = values.new_zeros(batch * num_vertices, channels + 1)
    for corner in range(3):
        sums = sums.index_add(0, covered.vertices[:, corner], seen * weights[:, corner, None])
    sums, total = sums[:, :-1], sums[:, -1]
    visible = total >= MIN_WEIGHT
    # The denominator is replaced before the division, so that unseen vertices have a gradient of zero, not NaN.
    mean = torch.where(visible[:, None], sums / total.where(visible, torch.ones_like(total))[:, None], 0.0)
    total = total.where(visible, torch.zeros_like(total))
    return mean.view(batch, num_vertices, channels), total.view(batch, num_vertices)


def vertex_displacement(
    initial_vertices: Float[Tensor, "batch vertices 3"],
    initial_camera: PinholeCamera,
    true_vertices: Float[Tensor, "batch vertices 3"],
    true_camera: PinholeCamera,
) -> Float[Tensor, "batch vertices 2"]:
    """Equation 1: from the initial projection of each vertex to its true one, in pixels of the image both cameras see.

    The formula as it stands: meaningless for vertices behind a camera, see `displacement_supervision`.
    """
    return true_camera.project(true_vertices) - initial_camera.project(initial_vertices)


def displacement_supervision(
    fragments: Fragments,
    faces: Int64[Tensor, "faces 3"],
    initial: tuple[Float[Tensor, "batch vertices 3"], PinholeCamera],
    true: tuple[Float[Tensor, "batch vertices 3"], PinholeCamera],
) -> DisplacementSupervision:
    """Equations 1 and 2: what the displacement of each rendered pixel should be.

    Args:
        fragments: Rendering of the initial mesh by the initial camera.
        faces: Triangles of both meshes.
        initial: The estimate to refine: camera-frame vertices in metres and the camera of the rendered crop.
        true: The ground truth, likewise; its camera sees the same crop.

    Returns:
        The displacement and where it holds. Pixels whose triangle has a corner behind either camera, or not finite,
        are outside of the mask.
    """
    displacement = vertex_displacement(*initial, *true)
    usable = (initial[0][..., 2] >= NEAR_PLANE_M) & (true[0][..., 2] >= NEAR_PLANE_M)
    usable &= displacement.isfinite().all(dim=-1)
    displacement = displacement.where(usable[..., None], torch.zeros_like(displacement))
    # The third channel interpolates "unusable": it is zero where all corners that matter are usable.
    values = torch.cat([displacement, (~usable)[..., None].to(displacement.dtype)], dim=-1)
    image = vertex_to_pixel(fragments, faces, values)
    mask = fragments.mask & (image[..., 2] == 0)
    return DisplacementSupervision((image[..., :2] * mask[..., None]).permute(0, 3, 1, 2).contiguous(), mask)


def vertex_targets(
    fragments: Fragments,
    faces: Int64[Tensor, "faces 3"],
    displacement_px: Float[Tensor, "batch 2 height width"],
    vertices: Float[Tensor, "batch vertices 3"],
    crop_camera: PinholeCamera,
    camera: PinholeCamera,
) -> tuple[Float[Tensor, "batch vertices 2"], Float[Tensor, "batch vertices"]]:
    """Equations 5 and 6: where the fit should bring each vertex, in pixels of the full image.

    Args:
        fragments: Rendering of the initial mesh by the crop's camera.
        faces: Its triangles.
        displacement_px: Predicted displacement of each pixel, in pixels of the crop.
        vertices: The initial mesh, camera-frame metres.
        crop_camera: The camera that rendered it, a crop of `camera`.
        camera: The camera of the fit. Pass the crop's to stay in the crop.

    Returns:
        The targets and their weights: the summed barycentric weight of each vertex, zero if no pixel sees it. The
        target of an unseen vertex is its initial projection. The paper's fit asks only whether a vertex is visible,
        weight > 0.
    """
    mean, weight = pixel_to_vertex(fragments, faces, displacement_px.permute(0, 2, 3, 1), vertices.shape[1])
    # A crop scales pixels and focal lengths alike.
    to_image = (camera.focal_px / crop_camera.focal_px)[:, None]
    return camera.project(vertices) + mean * to_image, weight


def _covered(fragments: Fragments, faces: Tensor, num_vertices: int) -> _Covered:
    ids = fragments.triangle_id.flatten()
    pixels = (ids >= 0).nonzero().squeeze(1)
    _, height, width = fragments.triangle_id.shape
    sample = pixels // (height * width)
    vertices = faces.index_select(0, ids.index_select(0, pixels)) + (sample * num_vertices)[:, None]
    return _Covered(pixels, vertices, fragments.barycentric.flatten(0, 2).index_select(0, pixels))


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
