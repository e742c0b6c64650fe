"""What a rasterizer takes and gives, and which one to use.

Conventions (those of `bodies.camera`): camera axes x right, y down, z forward, metres; pixel (row r, column c) is
sampled at its centre (c + 0.5, r + 0.5). Depth is planar, the z coordinate, not the distance along the ray. Both sides
of a triangle are drawn: bodies are closed surfaces, so depth alone decides what is seen. Surface nearer than
`bodies.camera.NEAR_PLANE_M` is not drawn, pixel by pixel: of a triangle that crosses the near plane the far part
remains. A triangle with a non-finite corner is left out. Rasterizing has no gradient; what is interpolated with its
result has.
"""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal, Protocol, assert_never, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from bodies import InputError, PinholeCamera

RasterizerName = Literal["auto", "cpu", "nvdiffrast"]


@dataclass(frozen=True)
class Fragments:
    """What each pixel sees of its mesh. Background pixels hold triangle -1 and zeros."""

    triangle_id: Int64[Tensor, "batch height width"]
    """Row of `faces` that is visible at the pixel's centre, -1 on the background."""
    barycentric: Float32[Tensor, "batch height width 3"]
    """Perspective-correct weights of that triangle's corners at the visible surface point, in 0..1, summing to one."""
    depth: Float32[Tensor, "batch height width"]
    """z of the surface point in metres, 0 on the background."""

    @property
    def mask(self) -> Bool[Tensor, "batch height width"]:
        """Where the mesh is."""
        return self.triangle_id >= 0


@runtime_checkable
class Rasterizer(Protocol):
    """A function from meshes of one topology and their cameras to what each pixel sees."""

    def __call__(
        self,
        vertices: Float[Tensor, "batch vertices 3"],
        faces: Int64[Tensor, "faces 3"],
        camera: PinholeCamera,
        height: int,
        width: int,
    ) -> Fragments:
        """Rasterizes each mesh of the batch into its own image.

        Args:
            vertices: Camera-frame positions in metres.
            faces: Corners of each triangle, the same for the whole batch.
            camera: One camera for each mesh.
            height: Rows of the image.
            width: Columns of the image.

        Returns:
            Fragments on the device of `vertices`.

        Raises:
            ValueError: If the shapes do not fit together.
        """
        ...


def make_rasterizer(name: RasterizerName = "auto") -> Rasterizer:
    """A rasterizer by name. All of them pickle and can be called from several processes.

    Args:
        name: "cpu" is numba's, on any device's tensors (CUDA tensors are copied to the host and back); "nvdiffrast"
            draws CUDA tensors on their device; "auto" decides by the device of the tensors at each call.

    Raises:
        InputError: If nvdiffrast is asked for and it or a CUDA device is missing.
    """
    # Imported here: numba takes half a second to import, and nvdiffrast is an extra.
    match name:
        case "auto":
            return AutoRasterizer()
        case "cpu":
            from renderers.cpu import CpuRasterizer

            return CpuRasterizer()
        case "nvdiffrast":
            from renderers.cuda import NvdiffrastRasterizer

            return NvdiffrastRasterizer()
        case _:
            assert_never(name)


class AutoRasterizer:
    """nvdiffrast for CUDA tensors where it is installed, else the CPU rasterizer."""

    def __init__(self) -> None:
        self._made: dict[RasterizerName, Rasterizer] = {}

    def __call__(
        self,
        vertices: Float[Tensor, "batch vertices 3"],
        faces: Int64[Tensor, "faces 3"],
        camera: PinholeCamera,
        height: int,
        width: int,
    ) -> Fragments:
        """See `Rasterizer`."""
        name: RasterizerName = "nvdiffrast" if vertices.is_cuda and nvdiffrast_installed() else "cpu"
        if vertices.is_cuda and name == "cpu":
            warnings.warn("nvdiffrast is not installed: CUDA meshes are rasterized on the host", stacklevel=2)
        if name not in self._made:
            self._made[name] = make_rasterizer(name)
        return self._made[name](vertices, faces, camera, height, width)


def nvdiffrast_installed() -> bool:
    """Whether nvdiffrast can be imported; it is not imported to find out."""
    return find_spec("nvdiffrast") is not None


def require_nvdiffrast() -> None:
    """Checks that nvdiffrast can be used here.

    Raises:
        InputError: With the line that installs it, or saying that there is no CUDA device.
    """
    if not nvdiffrast_installed():
        raise InputError(
            "nvdiffrast is not installed: pip install --no-build-isolation 'snugfit[gpu]' (needs the CUDA toolkit), "
            'or use the rasterizer "cpu"'
        )
    if not torch.cuda.is_available():
        raise InputError('nvdiffrast needs a CUDA device and torch sees none here: use the rasterizer "cpu"')


def background(batch: int, height: int, width: int, device: torch.device) -> Fragments:
    """Images without any surface."""
    return Fragments(
        torch.full((batch, height, width), -1, dtype=torch.int64, device=device),
        torch.zeros((batch, height, width, 3), device=device),
        torch.zeros((batch, height, width), device=device),
    )


def check_meshes(vertices: Tensor, faces: Tensor, camera: PinholeCamera, height: int, width: int) -> None:
    """What every rasterizer requires of its arguments.

    Raises:
        ValueError: With the shape that does not fit.
    """
    if vertices.ndim != 3 or vertices.shape[-1] != 3:
        raise ValueError(f"vertices must have the shape (batch, vertices, 3), got {tuple(vertices.shape)}")
    if faces.ndim != 2 or faces.shape[-1] != 3 or faces.dtype != torch.int64:
        raise ValueError(f"faces must be int64 of the shape (faces, 3), got {faces.dtype} {tuple(faces.shape)}")
    if len(camera) != len(vertices):
        raise ValueError(f"{len(vertices)} meshes need as many cameras, got {len(camera)}")
    if height < 1 or width < 1:
        raise ValueError(f"an image needs at least one pixel, got height {height} and width {width}")
