"""The contact sheet of `snugfit data show`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from rich.progress import track

from bodies import BodyModel, BodyParameters, InputError, PinholeCamera, load_body_model
from bodies.joints import H36M17_BONES
from bodies.safe_write import whole_file
from datamodules.store import FrameStore, StoredFrame
from datamodules.store_layout import Gender
from renderers.drawing import contact_sheet, draw_keypoints, draw_mesh, panel

#: Height of a frame in the sheet.
FRAME_HEIGHT_PX: Final = 320
#: How much the mesh hides of the photo.
MESH_ALPHA: Final = 0.6

Image = UInt8[ndarray, "height width 3"]


def draw_sheet(store: FrameStore, count: int, columns: int, body: str | None) -> Image:
    """Frames evenly spaced over a file, each beside itself with the true body drawn, or with the measured joints.

    Raises:
        InputError: If an image is damaged, or the body model cannot be loaded or is not the file's.
    """

    @cache
    def models(gender: Gender) -> BodyModel:
        # A file of any name stands for the neutral body.
        return load_body_model(body or store.body_model, None if gender == "neutral" else gender)

    chosen = np.unique(np.linspace(0, len(store) - 1, min(count, len(store))).round().astype(int))
    pairs = [
        _pair(store, int(index), models) for index in track(chosen, "drawing", transient=True, disable=len(chosen) < 30)
    ]
    return contact_sheet(pairs, columns)


def write_png(path: Path, image: Image) -> None:
    """Writes a picture, whole or not at all.

    Raises:
        InputError: If it cannot be written.
    """
    try:
        with whole_file(path) as temporary:
            if not cv2.imwrite(str(temporary), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
                raise InputError(f"{path}: OpenCV cannot write it")
    except OSError as error:
        raise InputError(f"{path}: it cannot be written ({error.strerror})") from error


def _pair(store: FrameStore, index: int, models: Callable[[Gender], BodyModel]) -> Image:
    frame, piece = store.read(index), store.read_image(index)
    height, width = piece.pixels.shape[:2]
    scale = min(1.0, FRAME_HEIGHT_PX / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = cv2.resize(piece.pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else piece.pixels
    scales = torch.tensor([[size[0] / width, size[1] / height]])
    camera = frame.camera.batched().crop(
        torch.tensor([piece.origin_px], dtype=torch.float32), scales, torch.tensor([size], dtype=torch.float32)
    )
    caption = f"{frame.row}: {store.subjects[frame.subject]}"
    if store.has_body[index]:
        return panel([photo, _with_body(photo, frame, camera, models(frame.gender))], [caption, "true body"])
    return panel([photo, _with_joints(photo, frame, camera)], [caption, "measured joints"])


def _with_body(photo: Image, frame: StoredFrame, camera: PinholeCamera, model: BodyModel) -> Image:
    numbers = (torch.tensor(part)[None] for part in (frame.pose, frame.betas[: model.num_betas], frame.transl))
    with torch.no_grad():
        vertices = model(BodyParameters.from_axis_angle(*numbers)).vertices[0]
    return draw_mesh(photo, vertices, model.faces, camera, alpha=MESH_ALPHA)


def _with_joints(photo: Image, frame: StoredFrame, camera: PinholeCamera) -> Image:
    points_px = camera.project(torch.tensor(frame.joints_m[None, :, :3]))[0].numpy()
    return draw_keypoints(photo, points_px, frame.joints_m[:, 3], H36M17_BONES)
