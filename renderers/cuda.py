"""The GPU rasterizer: nvdiffrast with its CUDA context. The only file that imports nvdiffrast.

How our camera becomes nvdiffrast's clip space (facts from nvdiffrast's documentation and `csrc/common/rasterize.cu`):

* Pixel (row r, column c) of its output is sampled at x / w = 2 (c + 0.5) / width - 1, y / w = 2 (r + 0.5) / height - 1.
  With x_clip / w = 2 x_px / width - 1, y_clip / w = 2 y_px / height - 1 and w = z its centres are ours, and row 0, the
  bottom row for OpenGL, is our top row.
* z_clip / w runs from -1 at the near plane to 1 at the far plane. Both are put close to each mesh, for its depth buffer
  rounds by about a millionth of that range; only a mesh that reaches the camera gets `NEAR_PLANE_M`.
* The output is (u, v, z / w, triangle + 1), u and v being the weights of corners 0 and 1. Depth comes from the weights.
* Coverage is decided on corners rounded to 1/16 pixel, so pixels at an edge may show the neighbour of the triangle that
  the CPU rasterizer shows; their weights are then clamped to the triangle.
"""

from typing import Any, Final

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from bodies.camera import NEAR_PLANE_M, PinholeCamera
from renderers.rasterize import Fragments, background, check_meshes, require_nvdiffrast

#: nvdiffrast draws in tiles of this many pixels; older versions refuse an image that is not a multiple of it.
TILE_PX: Final = 8
#: Room between the mesh and the planes that bound its depth, as a part of the depth.
DEPTH_MARGIN: Final = 0.01
#: Largest triangle number that a float32 holds exactly; nvdiffrast stores a larger one by its bits, with this offset.
MAX_EXACT_ID: Final = 1 << 24
ID_BITS_OFFSET: Final = 0x4A800000


class NvdiffrastRasterizer:
    """nvdiffrast behind the signature of `renderers.rasterize.Rasterizer`.

    Its context is made at the first call on each device and does not travel when the object is pickled or copied.

    Raises:
        InputError: If nvdiffrast or a CUDA device is missing.
    """

    def __init__(self) -> None:
        require_nvdiffrast()
        self._contexts: dict[torch.device, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._contexts = {}

    def __call__(
        self,
        vertices: Float[Tensor, "batch vertices 3"],
        faces: Int64[Tensor, "faces 3"],
        camera: PinholeCamera,
        height: int,
        width: int,
    ) -> Fragments:
        """See `renderers.rasterize.Rasterizer`.

        Raises:
            ValueError: Also if the tensors are not on a CUDA device.
        """
        check_meshes(vertices, faces, camera, height, width)
        _check_device(vertices.device)
        if not (vertices.numel() and len(faces)):
            return background(len(vertices), height, width, vertices.device)
        vertices = vertices.detach().float()
        padded = _whole_tiles(height), _whole_tiles(width)
        finite = vertices.isfinite().all(dim=-1)
        positions = clip_positions(vertices.where(finite[..., None], torch.zeros_like(vertices)), camera, *padded)
        if finite.all():
            output = self._draw(positions, faces.to(torch.int32), padded, None)
            triangle_id = _decode_ids(output[..., 3])
        else:
            output, triangle_id = self._draw_finite(positions, faces, padded, finite)
        output, triangle_id = output[:, :height, :width], triangle_id[:, :height, :width]
        barycentric, depth = _weights_and_depth(output, triangle_id, vertices[..., 2], faces)
        return Fragments(triangle_id.contiguous(), barycentric, depth)

    def _draw_finite(
        self, positions: Tensor, faces: Tensor, padded: tuple[int, int], finite: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draws the triangles whose corners are all finite, which are not the same ones in each mesh.

        Each mesh gets its own triangles ("range mode"); nvdiffrast skips those with a corner of -1.
        """
        batch, vertices = finite.shape
        offsets = torch.arange(batch, device=faces.device)[:, None, None] * vertices
        usable = finite[:, faces].all(dim=-1, keepdim=True)
        triangles = torch.where(usable, faces + offsets, -1).flatten(0, 1).to(torch.int32)
        starts = torch.arange(batch, dtype=torch.int32) * len(faces)
        ranges = torch.stack([starts, torch.full_like(starts, len(faces))], dim=1)
        output = self._draw(positions.flatten(0, 1), triangles, padded, ranges)
        ids = _decode_ids(output[..., 3])
        first = (torch.arange(batch, device=ids.device) * len(faces))[:, None, None]
        return output, torch.where(ids >= 0, ids - first, -1)

    def _draw(self, positions: Tensor, triangles: Tensor, padded: tuple[int, int], ranges: Tensor | None) -> Tensor:
        import nvdiffrast.torch as dr

        device = positions.device
        if device not in self._contexts:
            self._contexts[device] = dr.RasterizeCudaContext(device=device)
        output, _ = dr.rasterize(
            self._contexts[device], positions.contiguous(), triangles.contiguous(), padded, ranges=ranges, grad_db=False
        )
        return output


def clip_positions(
    vertices: Float32[Tensor, "batch vertices 3"], camera: PinholeCamera, height: int, width: int
) -> Float32[Tensor, "batch vertices 4"]:
    """Camera-frame vertices to nvdiffrast's clip space (see the module's text) of an image of that size.

    Computed in float64: a crop's principal point may lie far outside, and x_clip is then a difference of large numbers.
    """
    size = torch.tensor([width, height], dtype=torch.float64, device=vertices.device)
    scale, shift = 2 * camera.focal_px.double() / size, 2 * camera.center_px.double() / size - 1
    points = vertices.double()
    depth = points[..., 2:]
    near = (depth.amin(dim=1, keepdim=True) * (1 - DEPTH_MARGIN)).clamp(min=NEAR_PLANE_M)
    far = torch.maximum(depth.amax(dim=1, keepdim=True), near) * (1 + DEPTH_MARGIN)
    x_y = points[..., :2] * scale[:, None] + depth * shift[:, None]
    z = (depth * (far + near) - 2 * far * near) / (far - near)
    return torch.cat([x_y, z, depth], dim=-1).float()


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f'nvdiffrast draws CUDA tensors, got {device}; use the rasterizer "cpu"')


def _whole_tiles(pixels: int) -> int:
    return -(-pixels // TILE_PX) * TILE_PX


def _decode_ids(stored: Float32[Tensor, "batch height width"]) -> Int64[Tensor, "batch height width"]:
    """From nvdiffrast's triangle number, one more than the triangle and 0 on the background, to ours."""
    exact = stored <= MAX_EXACT_ID
    bits = stored.contiguous().view(torch.int32).long() - ID_BITS_OFFSET
    return torch.where(exact, stored.long(), bits) - 1


def _weights_and_depth(
    output: Float32[Tensor, "batch height width 4"],
    triangle_id: Int64[Tensor, "batch height width"],
    vertex_depth: Float32[Tensor, "batch vertices"],
    faces: Int64[Tensor, "faces 3"],
) -> tuple[Float32[Tensor, "batch height width 3"], Float32[Tensor, "batch height width"]]:
    first_two = output[..., :2]
    last = (1 - first_two.sum(dim=-1, keepdim=True)).clamp(min=0)
    covered = triangle_id >= 0
    barycentric = torch.cat([first_two, last], dim=-1) * covered[..., None]
    corners = faces[triangle_id.clamp(min=0)]
    corner_depth = vertex_depth.gather(1, corners.flatten(1)).view_as(corners)
    # A non-finite corner belongs to triangles that are not drawn, but background pixels point at triangle 0.
    depth = torch.where(covered, (barycentric * corner_depth).sum(dim=-1), 0.0)
    return barycentric, depth
