"""The picture of a person that was refined with the network: each round's body, displacement and outcome."""

from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from bodies import BodyModel, BodyParameters, PinholeCamera
from bodies.joints import OPENPOSE25_BONES
from commands._photos import Photo
from datamodules.crops import square_crop_affine, warp_affine
from datamodules.turned_crop import apply_affine
from lightning_modules.overlays import flow_rim_px
from lightning_modules.rounds import Round
from renderers.drawing import (
    INITIAL_COLOR,
    NO_FLOW,
    REFINED_COLOR,
    Color,
    Image,
    contact_sheet,
    draw_flow_legend,
    draw_keypoints,
    draw_mesh,
    flow_to_color,
    panel,
)

#: Crops are enlarged to at least this height.
CROP_HEIGHT_PX: Final = 480
#: Shown around the crop on each side, as a share of it: the person may lean out of the initial body's box.
MARGIN: Final = 0.15


def rounds_picture(photo: Photo, person: int, body: BodyModel, rounds: tuple[Round, ...]) -> Image:
    """A row for each round: photo | body before | displacement as colour, in pixels of the photo | body after.

    Each row shows what the network saw in that round with a margin, which is grey in the displacement.
    """
    return contact_sheet([_row(photo, person, body, rounds, number) for number in range(len(rounds))], columns=1)


def _row(photo: Photo, person: int, body: BodyModel, rounds: tuple[Round, ...], number: int) -> Image:
    done = rounds[number]
    box_px = done.predicted.box_px[person].numpy()
    flow, border = _flow_picture(done, person)
    side = flow.shape[0]
    wide_px = float(box_px[2]) * side / (side - 2 * border)
    to_view = square_crop_affine(box_px[:2], wide_px, 0.0, side)
    plain = warp_affine(photo.pixels, to_view, side)
    view = photo.camera()[[person]].crop(
        torch.from_numpy(box_px[None, :2] - wide_px / 2),
        torch.full((1, 2), side / wide_px),
        torch.full((1, 2), float(side)),
    )
    before = _drawn(plain, body, done.start[[person]], view, REFINED_COLOR if number else INITIAL_COLOR)
    after = _drawn(plain, body, done.fit.parameters[[person]], view, REFINED_COLOR)
    photo_caption = "photo"
    if photo.keypoints is not None:
        points_px = apply_affine(to_view, photo.keypoints[person, :, :2])
        plain = draw_keypoints(plain, points_px, photo.keypoints[person, :, 2], OPENPOSE25_BONES)
        photo_caption = "photo and keypoints"
    names = ["initial" if number == 0 else f"after round {number}", "displacement"]
    names.append("refined" if len(rounds) == 1 else f"after round {number + 1}")
    if not done.fit.status[person].accepted:
        names[-1] += " (not accepted)"
    return panel([plain, before, flow, after], [photo_caption, *names])


def _flow_picture(done: Round, person: int) -> tuple[Image, int]:
    """The displacement with its colour wheel, and the width of the margin around the crop in it."""
    displacement_px: Float32[ndarray, "crop crop 2"] = (
        done.predicted.displacement_px[person].permute(1, 2, 0).contiguous().numpy()
    )
    mask = done.predicted.mask[person].numpy()
    rim_px = flow_rim_px(displacement_px[mask])
    colors = flow_to_color(displacement_px, rim_px, mask)
    side = colors.shape[0] * max(1, -(-CROP_HEIGHT_PX // colors.shape[0]))
    border = round(MARGIN * side)
    enlarged = cv2.resize(colors, (side, side), interpolation=cv2.INTER_NEAREST)
    framed = np.full((side + 2 * border, side + 2 * border, 3), NO_FLOW, np.uint8)
    framed[border : border + side, border : border + side] = enlarged
    return draw_flow_legend(framed, rim_px), border


def _drawn(photo: Image, body: BodyModel, parameters: BodyParameters, view: PinholeCamera, color: Color) -> Image:
    return draw_mesh(photo, body(parameters).vertices[0], body.faces, view, color)
