"""Pictures for people: meshes over photos, keypoints, displacement as colour, panels with captions.

Images are 8-bit RGB arrays, rows from the top. Positions are in pixels with pixel centres at +0.5, as everywhere;
OpenCV draws with pixel centres at whole numbers, so half a pixel is taken off where its functions are called. Nothing
here changes an image it is given.
"""

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from bodies.camera import NEAR_PLANE_M, PinholeCamera
from renderers.correspondence import vertex_to_pixel
from renderers.maps import vertex_normals
from renderers.rasterize import Fragments, make_rasterizer

#: Of any size: the pictures that a function is given and those that it makes may differ in theirs.
Image = UInt8[ndarray, "_ _ 3"]
Color = tuple[int, int, int]

#: Colours of a body before and after it was refined, told apart by people with any kind of colour vision.
INITIAL_COLOR: Final[Color] = (236, 168, 112)
REFINED_COLOR: Final[Color] = (128, 182, 236)

#: Samples per pixel along each axis, unless the mesh covers more than the given number of pixels.
SUPERSAMPLING: Final = 2
SUPERSAMPLED_PX: Final = 4_000_000
#: Directions to the lights, in camera axes, and their strengths: a key light above the photographer's left shoulder,
#: a fill from the right, one from the sky.
LIGHTS: Final = (((-0.45, -0.65, -0.75), 0.72), ((0.85, -0.10, -0.45), 0.20), ((0.0, -1.0, 0.15), 0.16))
AMBIENT: Final = 0.20
#: How far light reaches round to the far side of a lit surface; 0 is Lambert's law.
WRAP: Final = 0.25
RIM: Final = 0.30
GLOSS: Final = 0.12
GLOSS_EXPONENT: Final = 24.0

FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
INK: Final[Color] = (245, 245, 245)
PAPER: Final[Color] = (24, 26, 30)
#: Where there is no displacement to show.
NO_FLOW: Final[Color] = (62, 64, 68)
GAP_PX: Final = 6
#: Fractional bits of the coordinates given to OpenCV's drawing functions.
SHIFT_BITS: Final = 4


def draw_mesh(
    image: Image,
    vertices: Float[Tensor, "vertices 3"],
    faces: Int64[Tensor, "faces 3"],
    camera: PinholeCamera,
    color: Color = REFINED_COLOR,
    alpha: float = 0.9,
) -> Image:
    """Draws a shaded mesh over a photo, with smooth edges.

    Args:
        image: The photo.
        vertices: Camera-frame metres.
        faces: Triangles, counter-clockwise seen from outside.
        camera: The photo's camera, a batch of one.
        color: RGB of the surface.
        alpha: How much the mesh hides of the photo, 0..1.
    """
    vertices, faces, camera = vertices.detach().cpu().float(), faces.cpu(), camera.to("cpu").to(torch.float32)
    box = _mesh_box(vertices, camera, image.shape[1], image.shape[0])
    if box is None:
        return image.copy()
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    factor = SUPERSAMPLING if width * height <= SUPERSAMPLED_PX else 1
    size = torch.tensor([[width, height]], dtype=torch.float32) * factor
    close_up = camera.crop(torch.tensor([[left, top]], dtype=torch.float32), torch.full_like(size, factor), size)
    fragments = make_rasterizer("cpu")(vertices[None], faces, close_up, height * factor, width * factor)
    # Colour and coverage, zero on the background: averaged over a pixel's samples it is coverage times colour.
    layer = np.zeros((height * factor, width * factor, 4), np.float32)
    brightness = _brightness(fragments, vertices, faces)
    layer[fragments.mask[0].numpy()] = _rgb_coverage(brightness, color)
    layer = np.asarray(cv2.resize(layer, (width, height), interpolation=cv2.INTER_AREA))
    result = image.copy()
    under = result[top:bottom, left:right].astype(np.float32)
    over = under * (1 - alpha * layer[..., 3:]) + alpha * layer[..., :3]
    result[top:bottom, left:right] = np.rint(over).astype(np.uint8)
    return result


def draw_keypoints(
    image: Image,
    points_px: Float[ndarray, "keypoints 2"],
    confidence: Float[ndarray, " keypoints"] | None = None,
    bones: Sequence[tuple[int, int]] = (),
    color: Color | None = None,
    min_confidence: float = 0.05,
) -> Image:
    """Draws keypoints and the bones between them.

    Args:
        image: The photo.
        points_px: Positions (x, y).
        confidence: 0..1; all certain by default. Uncertain bones are drawn thinner.
        bones: Pairs of keypoints to join, for example `bodies.joints.OPENPOSE25_BONES`.
        color: One colour for all; by default each bone has its own.
        min_confidence: Keypoints below it, or not finite, are left out.
    """
    result = image.copy()
    sure = np.ones(len(points_px)) if confidence is None else np.nan_to_num(confidence)
    shown = np.isfinite(points_px).all(axis=1) & (sure >= min_confidence)
    unit = max(image.shape[:2]) / 400
    places = [_fixed_point(point) if show else (0, 0) for point, show in zip(points_px, shown, strict=True)]
    joined = [(a, b) for a, b in bones if shown[a] and shown[b]]
    hues = _rainbow(len(joined))
    for outline in (True, False):
        for (a, b), hue in zip(joined, hues, strict=True):
            weight = max(1.0, 2 * unit * float(min(sure[a], sure[b], 1.0)))
            ink = PAPER if outline else color or hue
            cv2.line(result, places[a], places[b], ink, round(weight + 2 * outline * unit), cv2.LINE_AA, SHIFT_BITS)
        for k in np.flatnonzero(shown):
            radius = round((1.6 + 0.8 * outline) * max(unit, 1.0) * (1 << SHIFT_BITS))
            cv2.circle(result, places[k], radius, PAPER if outline else color or INK, -1, cv2.LINE_AA, SHIFT_BITS)
    return result


def flow_to_color(
    displacement_px: Float[ndarray, "height width 2"],
    max_px: float,
    mask: Bool[ndarray, "height width"] | None = None,
) -> Image:
    """Displacement as colour: hue is direction, white is zero, full colour is `max_px`, and what is longer is darker.

    Args:
        displacement_px: (x, y) of each pixel.
        max_px: Length of the fullest colour.
        mask: Where there is a displacement; elsewhere, and where it is not finite, the picture is grey.

    Raises:
        ValueError: If `max_px` is not positive.
    """
    if not max_px > 0:
        raise ValueError(f"max_px must be positive, got {max_px}")
    valid = np.isfinite(displacement_px).all(axis=-1)
    if mask is not None:
        valid &= mask
    x, y = np.moveaxis(np.where(valid[..., None], displacement_px, 0).astype(np.float32), -1, 0)
    length = np.hypot(x, y) / np.float32(max_px)
    hue = np.degrees(np.arctan2(y, x)) % 360
    hsv = np.stack([hue, length.clip(0, 1), np.where(length > 1, np.float32(0.7), np.float32(1))], axis=-1)
    rgb = np.rint(cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB) * 255).astype(np.uint8)
    rgb[~valid] = NO_FLOW
    return rgb


def draw_flow_legend(image: Image, max_px: float) -> Image:
    """Puts the colour wheel of `flow_to_color` into the lower right corner, with the length of its rim."""
    result = image.copy()
    diameter = max(24, min(image.shape[:2]) // 5)
    height, width = min(diameter, image.shape[0]), min(diameter, image.shape[1])
    axis = (np.arange(diameter, dtype=np.float32) + 0.5) / diameter * 2 - 1
    wheel = np.stack(np.meshgrid(axis, axis), axis=-1) * np.float32(max_px)
    inside = np.hypot(wheel[..., 0], wheel[..., 1]) <= max_px
    corner = result[-height:, -width:]
    corner[inside[-height:, -width:]] = flow_to_color(wheel, max_px)[-height:, -width:][inside[-height:, -width:]]
    text = f"{max_px:g} px"
    scale = _text_scale(text, 2 * width, max(10, diameter // 5))
    (text_width, _), _ = cv2.getTextSize(text, FONT, scale, 1)
    place = (max(0, image.shape[1] - width - text_width - GAP_PX), image.shape[0] - GAP_PX)
    _write(result, text, place, scale)
    return result


def panel(images: Sequence[Image], captions: Sequence[str], height_px: int | None = None) -> Image:
    """Images side by side at one height, each below its caption.

    Args:
        images: At least one.
        captions: One for each; made smaller if it is wider than its image. ASCII: OpenCV's fonts hold little else.
        height_px: Height of the images; that of the highest by default.

    Raises:
        ValueError: If there are no images, or the number of captions differs.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f"a panel needs images and as many captions, got {len(images)} and {len(captions)}")
    height = height_px or max(image.shape[0] for image in images)
    bar = max(18, round(height * 0.06))
    columns: list[ndarray] = []
    for image, caption in zip(images, captions, strict=True):
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        head = _blank(bar, width)
        scale = _text_scale(caption, width - 2 * GAP_PX, round(bar * 0.5))
        (_, text_height), _ = cv2.getTextSize(caption, FONT, scale, 1)
        _write(head, caption, (GAP_PX, (bar + text_height) // 2), scale)
        columns += [np.concatenate([head, _resized(image, height, width)]), _blank(bar + height, GAP_PX)]
    return np.concatenate(columns[:-1], axis=1)


def contact_sheet(images: Sequence[Image], columns: int) -> Image:
    """Images in rows of `columns`, each centred in a cell as large as the largest of them.

    Raises:
        ValueError: If there are no images or no columns.
    """
    if not images or columns < 1:
        raise ValueError(f"a contact sheet needs images and columns, got {len(images)} and {columns}")
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    rows = -(-len(images) // columns)
    columns = min(columns, len(images))
    sheet = _blank(rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        top = row * (height + GAP_PX) + (height - image.shape[0]) // 2
        left = column * (width + GAP_PX) + (width - image.shape[1]) // 2
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet


def _mesh_box(
    vertices: Float32[Tensor, "vertices 3"], camera: PinholeCamera, width: int, height: int
) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom of the part of the image that the mesh can cover; None if it is out of sight."""
    vertices = vertices[vertices.isfinite().all(dim=-1)]
    in_front = vertices[:, 2] >= NEAR_PLANE_M
    if not in_front.any():
        return None
    if not in_front.all():
        return 0, 0, width, height
    projected = camera.project(vertices[None])[0].double()
    limit = torch.tensor([width, height], dtype=torch.float64)
    low = projected.amin(dim=0).floor().clamp(min=0)
    high = torch.minimum(projected.amax(dim=0).ceil(), limit)
    if not bool((low < high).all()):
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _brightness(
    fragments: Fragments, vertices: Float32[Tensor, "vertices 3"], faces: Int64[Tensor, "faces 3"]
) -> Float32[ndarray, " covered"]:
    """Of each rendered pixel, about 0..1: ambient light, wrapped Lambert, some gloss, a bright rim."""
    at_vertices = torch.cat([vertex_normals(vertices[None], faces), vertices[None]], dim=-1)
    normal, point = vertex_to_pixel(fragments, faces, at_vertices)[fragments.mask].T.numpy().reshape(2, 3, -1)
    normal, to_eye = _unit(normal), _unit(-point)
    facing = (normal * to_eye).sum(axis=0)
    # Seen from inside (a mesh cut by the near plane), the surface is lit from inside.
    normal, facing = normal * np.where(facing < 0, np.float32(-1), np.float32(1)), np.abs(facing)
    light = AMBIENT + RIM * (1 - facing).clip(0) ** 3
    for direction, strength in LIGHTS:
        towards = _unit(_column(direction))
        light += strength * ((normal * towards).sum(axis=0) + WRAP).clip(0) / (1 + WRAP)
    halfway = _unit(to_eye + _unit(_column(LIGHTS[0][0])))
    return light + GLOSS * (normal * halfway).sum(axis=0).clip(0) ** GLOSS_EXPONENT


def _rgb_coverage(brightness: Float32[ndarray, " covered"], color: Color) -> Float32[ndarray, "covered 4"]:
    rgb = brightness[:, None] * np.array(color, np.float32)
    return np.concatenate([rgb.clip(0, 255), np.ones_like(brightness[:, None])], axis=1)


def _column(direction: Sequence[float]) -> Float32[ndarray, "3 1"]:
    return np.array(direction, np.float32)[:, None]


def _unit(vectors: Float32[ndarray, "3 points"]) -> Float32[ndarray, "3 points"]:
    return vectors / np.sqrt((vectors**2).sum(axis=0)).clip(1e-12)


def _fixed_point(point_px: Float[ndarray, " 2"]) -> tuple[int, int]:
    """For OpenCV's drawing functions, which clip what is outside but must be given 32-bit numbers."""
    x, y = np.rint((np.clip(point_px, -1e6, 1e6) - 0.5) * (1 << SHIFT_BITS)).astype(int)
    return int(x), int(y)


def _rainbow(count: int) -> list[Color]:
    """Bright colours, evenly spaced in hue."""
    if count == 0:
        return []
    hsv = np.array([[[360 * k / count, 0.75, 1.0] for k in range(count)]], np.float32)
    return [(int(r), int(g), int(b)) for r, g, b in cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255]


def _blank(height: int, width: int) -> ndarray:
    return np.full((height, width, 3), PAPER, np.uint8)


def _resized(image: Image, height: int, width: int) -> Image:
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _text_scale(text: str, width_px: int, height_px: int) -> float:
    """The font scale at which the text fits into a box."""
    (width, height), _ = cv2.getTextSize(text or " ", FONT, 1.0, 1)
    return max(0.2, min(width_px / max(width, 1), height_px / max(height, 1)))


def _write(image: Image, text: str, place: tuple[int, int], scale: float) -> None:
    """Writes light text with a dark outline into `image`, `place` being the left end of the base line."""
    for color, thickness in ((PAPER, 1 + 2 * max(1, round(scale))), (INK, max(1, round(scale)))):
        cv2.putText(image, text, place, FONT, scale, color, thickness, cv2.LINE_AA)
