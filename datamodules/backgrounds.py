"""What is behind the person in a synthetic image: a crop of a photo, or a scene made of noise, walls and shapes.

Made scenes are no photos, but they have what a network must not mistake for a body: edges of all directions, several
scales of texture, and skin-coloured or cloth-coloured bars of the width of limbs.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from bodies.errors import InputError
from datamodules.texture_patterns import Color, draw_cloth_color

Image = UInt8[ndarray, "height width 3"]
Canvas = Float32[ndarray, "height width 3"]

IMAGE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
#: How often a scene has none, one or two parts of another kind.
_PATCH_SHARES: Final = (0.45, 0.35, 0.2)
#: Cells across the image of the coarsest noise, and how much weaker each next finer one is.
_COARSEST_CELLS: Final = 3
_OCTAVES: Final = 7
#: The part of a photo that becomes the background, along its narrower axis.
_PHOTO_SHARE: Final = (0.5, 1.0)


def list_images(folder: Path) -> tuple[Path, ...]:
    """The images below a folder, in the order of their names.

    Raises:
        InputError: If it is no folder or has none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of images")
    files = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES))
    if not files:
        raise InputError(f"{folder}: no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return files


def read_image(path: Path) -> Image:
    """An image file as RGB.

    Raises:
        InputError: If it cannot be read.
    """
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise InputError(f"{path}: it cannot be read as an image")
    rgb: ndarray = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return rgb


def photo_background(rng: np.random.Generator, photos: tuple[Path, ...], width: int, height: int) -> Image:
    """A random crop of a random photo, mirrored every other time.

    Raises:
        InputError: If the photo cannot be read.
    """
    photo = read_image(photos[rng.integers(len(photos))])
    # The crop has the shape of the image; the smaller it is in the photo, the more it is enlarged.
    scale = min(photo.shape[1] / width, photo.shape[0] / height) * rng.uniform(*_PHOTO_SHARE)
    crop_width, crop_height = max(1, int(width * scale)), max(1, int(height * scale))
    left = rng.integers(photo.shape[1] - crop_width + 1)
    top = rng.integers(photo.shape[0] - crop_height + 1)
    crop = photo[top : top + crop_height, left : left + crop_width]
    if rng.uniform() < 0.5:
        crop = crop[:, ::-1]
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    resized: ndarray = cv2.resize(np.ascontiguousarray(crop), (width, height), interpolation=method)
    return resized


def made_background(rng: np.random.Generator, width: int, height: int) -> Image:
    """A made scene: a ground of one of several kinds, clutter, uneven light, and now and then some blur."""
    ground = _draw_ground(rng, width, height)
    for _ in range(rng.choice(3, p=_PATCH_SHARES)):  # something else beside, behind or in front of it
        patch = np.zeros((height, width), np.uint8)
        cv2.fillPoly(patch, [_draw_polygon(rng, rng.uniform(0, 1, 2) * (width, height), max(width, height))], 255)
        ground = np.where(patch[..., None] > 0, _draw_ground(rng, width, height), ground)
    image = np.clip(ground * 255, 0, 255).astype(np.uint8)
    for _ in range(int(rng.gamma(1.5, 6.0))):
        _draw_shape(rng, image)
    light = 1 + 0.35 * fractal_noise(rng, width, height, octaves=2)
    light += rng.uniform(0, 0.25) * fractal_noise(rng, width, height)
    scene = image * light[..., None]
    if rng.uniform() < 0.35:
        scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.6, 4.0) * width / 320)
    return np.clip(scene, 0, 255).astype(np.uint8)


def fractal_noise(
    rng: np.random.Generator, width: int, height: int, octaves: int = _OCTAVES
) -> Float32[ndarray, "height width"]:
    """Noise at several scales, each half as wide and about 0.6 as strong as the one before; about -1 to 1."""
    total, strength, sum_of_strengths = np.zeros((1, 1), np.float32), 1.0, 0.0
    for octave in range(octaves):
        cells = _COARSEST_CELLS * 2**octave
        rows = cells * height // max(width, height) + 1
        finer = rng.uniform(-strength, strength, (rows, cells)).astype(np.float32)
        total = finer + cv2.resize(total, (cells, rows), interpolation=cv2.INTER_LINEAR)
        sum_of_strengths += strength
        strength *= 0.6
    return cv2.resize(total, (width, height), interpolation=cv2.INTER_LINEAR) / np.float32(sum_of_strengths)


def _draw_color(rng: np.random.Generator) -> Color:
    """Walls, wood, plants and sky rather than toys."""
    muted = np.array([[0.75, 0.72, 0.66], [0.45, 0.33, 0.22], [0.35, 0.42, 0.25], [0.6, 0.72, 0.85], [0.4, 0.4, 0.42]])
    if rng.uniform() < 0.35:
        return draw_cloth_color(rng)
    return np.clip(muted[rng.integers(len(muted))] * rng.uniform(0.4, 1.3) + rng.normal(scale=0.05, size=3), 0, 1)


def _draw_ground(rng: np.random.Generator, width: int, height: int) -> Canvas:
    return _GROUNDS[rng.integers(len(_GROUNDS))](rng, width, height)


def _gradient(rng: np.random.Generator, width: int, height: int) -> Canvas:
    first, second = _draw_color(rng), _draw_color(rng)
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, width), np.linspace(-0.5, 0.5, height))
    along = np.clip(x * np.cos(angle) + y * np.sin(angle) + 0.5, 0, 1)[..., None]
    return (first * (1 - along) + second * along).astype(np.float32)


def _clouds(rng: np.random.Generator, width: int, height: int) -> Canvas:
    """Three colours that flow into each other: foliage, rock, cloth."""
    share = [np.clip(0.5 + 1.4 * fractal_noise(rng, width, height), 0, 1)[..., None] for _ in range(2)]
    first = _draw_color(rng)
    # Things of one kind have similar colours.
    second, third = (np.clip(first * rng.uniform(0.4, 1.5) + rng.normal(scale=0.1, size=3), 0, 1) for _ in range(2))
    return (((first * share[0] + second * (1 - share[0])) * share[1]) + third * (1 - share[1])).astype(np.float32)


def _room(rng: np.random.Generator, width: int, height: int) -> Canvas:
    """A floor and two walls that meet in a corner, with a skirting board and planks or tiles."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = _draw_color(rng)
    corner = np.array([rng.uniform(-0.1, 1.1) * width, rng.uniform(0.5, 0.85) * height])
    left, right = (np.array([x, corner[1] + rng.uniform(0.0, 0.3) * height]) for x in (-0.2 * width, 1.2 * width))
    floor = np.array([left, corner, right, (1.5 * width, 2 * height), (-0.5 * width, 2 * height)])
    side = np.array([corner, (corner[0], -height), (1.5 * width, -height), right])
    _fill(image, side, image[0, 0] * rng.uniform(0.7, 1.2))
    floor_color = _draw_color(rng)
    _fill(image, floor, floor_color)
    vanishing = np.array([rng.uniform(0, 1) * width, corner[1] - rng.uniform(0.1, 0.6) * height])
    for x in np.arange(-width, 2 * width, rng.uniform(0.08, 0.3) * width):
        end = np.array([x, 1.2 * height])
        start = end + (vanishing - end) * (end[1] - corner[1]) / max(end[1] - vanishing[1], 1.0)
        _line(image, start, end, floor_color * 0.75, 1)
    thickness = rng.integers(1, 6)
    for end in (left, right):
        _line(image, corner, end, _draw_color(rng), int(thickness))
    return image


def _bricks(rng: np.random.Generator, width: int, height: int) -> Canvas:
    """Bricks, tiles, shelves or windows, seen at an angle."""
    rows, columns = rng.integers(4, 24), rng.integers(3, 18)
    base, joint = _draw_color(rng), _draw_color(rng)
    tile = np.empty((rows * 12, columns * 12, 3), np.float32)
    shade = rng.normal(1, rng.uniform(0.02, 0.3), (rows, columns, 1))
    tile[:] = np.repeat(np.repeat(base * shade, 12, axis=0), 12, axis=1)
    tile[:: 12 * int(rng.integers(1, 3))] = joint
    tile[:, :: 12 * int(rng.integers(1, 3))] = joint
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) * (tile.shape[1], tile.shape[0])
    spread = rng.uniform(-0.5, 0.0, (4, 2)) * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])
    target = (np.array([(0, 0), (1, 0), (1, 1), (0, 1)]) + spread) * (width, height)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))
    warped: ndarray = cv2.warpPerspective(tile, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    return warped


_GROUNDS: Final[tuple[Callable[[np.random.Generator, int, int], Canvas], ...]] = (
    _gradient,
    _clouds,
    _clouds,
    _room,
    _room,
    _bricks,
)


def _draw_shape(rng: np.random.Generator, image: Image) -> None:
    """One thing of the clutter: a box, a polygon, an ellipse, a pole, or a bent bar as wide as a limb."""
    height, width = image.shape[:2]
    color = tuple(float(c) for c in np.clip(_draw_color(rng) * 255, 0, 255))
    place = rng.uniform(-0.1, 1.1, 2) * (width, height)
    size = np.exp(rng.uniform(np.log(0.03), np.log(0.5))) * max(width, height)
    match int(rng.integers(5)):
        case 0:
            half = rng.uniform(0.15, 0.5, 2) * size
            low, high = np.rint(place - half).astype(int).tolist(), np.rint(place + half).astype(int).tolist()
            cv2.rectangle(image, low, high, color, -1 if rng.uniform() < 0.75 else int(rng.integers(1, 6)))
        case 1:
            cv2.fillPoly(image, [_draw_polygon(rng, place, float(size))], color, cv2.LINE_AA)
        case 2:
            axes = np.maximum(1, np.rint(rng.uniform(0.1, 0.5, 2) * size)).astype(int).tolist()
            cv2.ellipse(
                image, np.rint(place).astype(int).tolist(), axes, rng.uniform(0, 180), 0, 360, color, -1, cv2.LINE_AA
            )
        case 3:
            direction = rng.normal(size=2)
            _line(image, place - direction * width, place + direction * width, color, int(rng.integers(1, 9)))
        case _:
            bends = place + np.cumsum(rng.normal(scale=0.12, size=(3, 2)), axis=0) * max(width, height)
            thickness = int(np.clip(rng.uniform(0.02, 0.07) * max(width, height), 1, 60))
            for start, end in pairwise(bends):
                _line(image, start, end, color, thickness)


def _draw_polygon(rng: np.random.Generator, place: ndarray, size_px: float) -> ndarray:
    """Corners about a place, in OpenCV's whole pixels."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
    radii = rng.uniform(0.2, 0.6, len(angles)) * size_px
    return np.rint(place + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]).astype(np.int32)


def _fill(image: Canvas, corners: ndarray, color: ndarray) -> None:
    cv2.fillPoly(image, [np.rint(corners).astype(np.int32)], tuple(float(c) for c in color), cv2.LINE_AA)


def _line(image: ndarray, start: ndarray, end: ndarray, color: ndarray | tuple[float, ...], thickness: int) -> None:
    first, last = (np.rint(np.clip(point, -1e4, 1e4)).astype(int).tolist() for point in (start, end))
    cv2.line(image, first, last, tuple(float(c) for c in color), thickness, cv2.LINE_AA)
