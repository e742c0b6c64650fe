"""What a camera does to an image after the light has entered it: blur, colour, noise, JPEG."""

from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

Image = UInt8[ndarray, "height width 3"]

#: Standard deviation of noise at full brightness, of 255; darker pixels have less.
MAX_NOISE: Final = 12.0
JPEG_QUALITY: Final = (45, 96)


def photographed(rng: np.random.Generator, image: Image) -> Image:
    """Defocus or motion blur, colour cast, contrast and gamma, sensor noise; each drawn, most of them weak."""
    scale = max(image.shape[:2]) / 320
    kind = rng.uniform()
    if kind < 0.45:
        image = cv2.GaussianBlur(image, (0, 0), scale * rng.uniform(0.3, 1.1))
    elif kind < 0.58:
        image = cv2.filter2D(image, -1, _motion_kernel(scale * rng.uniform(1.5, 6.0), rng.uniform(0, np.pi)))
    toned: ndarray = cv2.LUT(image, _tone_curves(rng))
    strength = MAX_NOISE * rng.beta(1.2, 4.0)
    noise = rng.standard_normal(image.shape, np.float32)
    if rng.uniform() < 0.5:  # cameras smooth their noise, most of all its colours
        noise = 1.8 * cv2.GaussianBlur(noise, (0, 0), 0.8)
    # Shot noise grows with the root of the signal, read noise does not depend on it.
    amplitude = strength * np.sqrt(0.15 + np.arange(256) / 300).astype(np.float32)
    return np.clip(toned + noise * amplitude[toned] + 0.5, 0, 255).astype(np.uint8)


def encoded(rng: np.random.Generator, image: Image) -> bytes:
    """JPEG of a quality that is drawn."""
    quality = int(rng.integers(*JPEG_QUALITY))
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV could not encode an image in memory"
    return bytes(data.tobytes())


def _tone_curves(rng: np.random.Generator) -> UInt8[ndarray, "256 1 3"]:
    """A curve for each channel: white balance, contrast, gamma."""
    level = np.linspace(0, 1, 256)[:, None]
    gamma = np.exp(rng.normal(scale=0.15))
    cast = np.exp(rng.normal(scale=0.05, size=3))
    contrast, offset = rng.uniform(0.8, 1.15), rng.normal(scale=0.03)
    curve = ((level * cast) ** gamma - 0.5) * contrast + 0.5 + offset
    return np.rint(np.clip(curve, 0, 1) * 255).astype(np.uint8)[:, None]


def _motion_kernel(length_px: float, angle_rad: float) -> ndarray:
    """A line through the middle, of the given length, with weights that sum to one."""
    radius = int(np.ceil(length_px / 2)) + 1
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    along = np.array([np.cos(angle_rad), np.sin(angle_rad)]) * length_px / 2
    start, end = (np.rint((radius + sign * along) * 16).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_AA, 4)
    return kernel / kernel.sum()
