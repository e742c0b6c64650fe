"""From a row of a frames file to the scene that a texture is read off: pixels about a body, and the bodies in them."""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy import ndarray
from torch import Tensor

from bodies import BodyModel, BodyParameters
from bodies.camera import NEAR_PLANE_M
from datamodules.store import FrameStore, ImageCamera, StoredFrame, StoredPiece
from datamodules.store_layout import Gender
from datamodules.texture_looks import Scene

#: Pixels about the body that are drawn with it, so that its silhouette is seen as one.
_MARGIN_PX: Final = 2


class SceneMaker:
    """Cuts the body out of a row's image and poses all bodies that the file knows in that image.

    Args:
        store: The file.
        model: Body model of each gender.
        device: Where the scenes are to be.
    """

    def __init__(self, store: FrameStore, model: Callable[[Gender], BodyModel], device: torch.device) -> None:
        self._store, self._model, self._device = store, model, device
        # Pieces of one image are images of their own in the file; their name tells that they belong together.
        _, number = np.unique(np.array(store.image_names), return_inverse=True)
        self._image_of_row: ndarray = number[store.column("image")]
        self._rows_by_image = np.argsort(self._image_of_row, kind="stable")
        self._sorted_images = self._image_of_row[self._rows_by_image]

    def scene(self, frame: StoredFrame, piece: StoredPiece) -> Scene | None:
        """The scene of a row, or None if the body is not in its image."""
        vertices = self._vertices(frame)
        box = _box(vertices, frame.camera, piece)
        if box is None:
            return None
        left, top, right, bottom = box
        x, y = piece.origin_px
        pixels = np.ascontiguousarray(piece.pixels[top - y : bottom - y, left - x : right - x])
        size = torch.tensor([[right - left, bottom - top]], dtype=torch.float32)
        corner = torch.tensor([[left, top]], dtype=torch.float32)
        camera = frame.camera.batched().crop(corner, torch.ones(1, 2), size)
        others = [self._vertices(self._store.read(int(row))) for row in self._others(frame)]
        stacked = torch.stack(others) if others else vertices.new_zeros(0, *vertices.shape)
        return Scene(torch.from_numpy(pixels).to(self._device), camera.to(self._device), vertices, stacked)

    def _others(self, frame: StoredFrame) -> Int64[ndarray, " rows"]:
        """Rows of other persons in the same image."""
        image = self._image_of_row[frame.row]
        rows = self._rows_by_image[slice(*np.searchsorted(self._sorted_images, [image, image + 1]))]
        return rows[self._store.column("subject")[rows] != frame.subject]

    def _vertices(self, frame: StoredFrame) -> Float32[Tensor, "vertices 3"]:
        model = self._model(frame.gender)
        numbers = (frame.pose, frame.betas[: model.num_betas], frame.transl)
        parameters = BodyParameters.from_axis_angle(*(torch.tensor(part)[None].to(self._device) for part in numbers))
        with torch.no_grad():
            return model(parameters).vertices[0]


def _box(
    vertices: Float32[Tensor, "vertices 3"], camera: ImageCamera, piece: StoredPiece
) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom, in full-image pixels, of the part of the piece that the body can cover."""
    x, y = piece.origin_px
    height, width, _ = piece.pixels.shape
    if float(vertices[:, 2].min()) < NEAR_PLANE_M:
        return (x, y, x + width, y + height) if float(vertices[:, 2].max()) >= NEAR_PLANE_M else None
    position_px = camera.batched().project(vertices.cpu()[None])[0].double().numpy()
    corner, far = np.array([x, y]), np.array([x + width, y + height])
    low = np.clip(np.floor(position_px.min(axis=0)) - _MARGIN_PX, corner, far).astype(int)
    high = np.clip(np.ceil(position_px.max(axis=0)) + _MARGIN_PX, corner, far).astype(int)
    if not (low < high).all():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])
