"""The picture of one refined sample: photo, initial body, displacement as colour, refined body."""

from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from bodies import BodyModel, BodyParameters
from datamodules.sample import RefinementBatch
from renderers.drawing import (
    INITIAL_COLOR,
    REFINED_COLOR,
    Image,
    draw_flow_legend,
    draw_mesh,
    flow_to_color,
    panel,
)

#: Crops are enlarged to at least this height: bodies are drawn finer than the network sees them.
HEIGHT_PX: Final = 384
#: The colour wheel's rim is at this quantile of the displacement's length, rounded up to a whole pixel.
RIM_QUANTILE: Final = 0.98


def refinement_picture(
    batch: RefinementBatch,
    place: int,
    displacement_px: Float[Tensor, "2 crop crop"],
    refined: BodyParameters,
    body: BodyModel,
) -> Image:
    """Panels of one sample side by side, in the crop.

    Args:
        batch: Its batch.
        place: Where it is in the batch.
        displacement_px: What the network predicted for it.
        refined: The refined bodies of the batch.
        body: The body model of the estimates.
    """
    mask = batch.mask[place].cpu().numpy()
    true = batch.displacement_px[place].permute(1, 2, 0).float().cpu().numpy()
    predicted = displacement_px.permute(1, 2, 0).float().cpu().numpy()
    known = mask & bool(batch.has_body[place])
    rim_px = flow_rim_px(true[known] if known.any() else predicted[mask])
    photo = _enlarged(_photo(batch, place), cv2.INTER_CUBIC)
    maps = (predicted, mask), (true, known)
    flows = [_enlarged(flow_to_color(each, rim_px, where), cv2.INTER_NEAREST) for each, where in maps]
    estimates = (batch.initial, INITIAL_COLOR), (refined, REFINED_COLOR)
    initial, after = (_drawn(photo, batch, place, each, body, color) for each, color in estimates)
    pictures = [photo, initial, draw_flow_legend(flows[0], rim_px), flows[1], after]
    return panel(pictures, ["photo", "initial", "predicted displacement", "true displacement", "refined"])


def flow_rim_px(displacement_px: Float[ndarray, "pixels 2"]) -> float:
    """Length at the colour wheel's rim for some displacements: a whole number of pixels, at least one."""
    lengths = np.linalg.norm(displacement_px, axis=-1)
    return max(float(np.ceil(np.quantile(lengths, RIM_QUANTILE))), 1.0) if lengths.size else 1.0


def _photo(batch: RefinementBatch, place: int) -> Image:
    pixels = batch.images[place].permute(1, 2, 0).float().cpu().numpy()
    return np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)


def _drawn(
    photo: Image,
    batch: RefinementBatch,
    place: int,
    estimate: BodyParameters,
    body: BodyModel,
    color: tuple[int, int, int],
) -> Image:
    """The body over the enlarged crop, seen by the initial estimate's camera."""
    crop_camera = batch.initial_crop_camera[[place]]
    side = photo.shape[0]
    scale = side / batch.images.shape[-1]
    origin, ratio = torch.zeros_like(crop_camera.center_px), torch.full_like(crop_camera.center_px, scale)
    camera = crop_camera.crop(origin, ratio, torch.full_like(ratio, side))
    return draw_mesh(photo, body(estimate[[place]]).vertices[0], body.faces, camera, color)


def _enlarged(image: Image, interpolation: int) -> Image:
    factor = max(1, -(-HEIGHT_PX // image.shape[0]))
    size = image.shape[1] * factor, image.shape[0] * factor
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), dtype=np.uint8)
