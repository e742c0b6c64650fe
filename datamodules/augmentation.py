"""What is changed on a training sample: the crop's place, the image's colours, patches of it, the texture's colours.

The list is the paper's (Wehrbein et al., arXiv 2403.11634): rotation, scaling, channel-wise pixel noise on image and
texture, photometric distortion, and self-mixing of image patches on some data sets. Its probabilities and ranges are
not given in the paper; all of ours are in `Augmentation`. It does not name mirroring, so there is none.

Everything is drawn from the generator that is passed in, so a sample's seed decides it. What moves bodies and cameras
is `draw_crop_change`, carried out by `datamodules.turned_crop`; the rest leaves all labels as they are.
"""

import os
import random
from dataclasses import dataclass, fields

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from bodies.errors import InputError
from datamodules.turned_crop import CropChange

# albumentations asks its server for newer versions when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations

#: Largest shares and factors that make sense; beyond them crops lose the person.
_MAX_DEG, _MAX_RANGE = 180.0, 0.9


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training sample. No number here is given in the paper.

    Rotation, scale and shift are Gaussian, cut off at two standard deviations.

    Raises:
        InputError: If a number is out of its range.
    """

    rotation_probability: float = 0.6
    """How often the crop is turned."""
    rotation_deg: float = 20.0
    """Standard deviation of the angle."""
    scale: float = 0.12
    """Standard deviation of the logarithm of the crop box's side."""
    shift: float = 0.04
    """Standard deviation of the crop box's shift along x and y, in sides of the person's box."""
    photometric_probability: float = 0.8
    """How often brightness, contrast, saturation and hue are changed."""
    brightness: float = 0.3
    """Largest relative change of brightness."""
    contrast: float = 0.3
    """Largest relative change of contrast."""
    saturation: float = 0.3
    """Largest relative change of saturation."""
    hue: float = 0.05
    """Largest change of hue, in turns of the colour circle."""
    blur_probability: float = 0.1
    """How often the crop is blurred, by a Gaussian of up to 1.2 crop pixels."""
    gray_probability: float = 0.02
    """How often the crop loses its colours."""
    image_channel_noise: float = 0.2
    """Each channel of the image is multiplied by 1 +- up to this."""
    texture_channel_noise: float = 0.2
    """The same for the texture, drawn by itself."""
    self_mixing_probability: float = 0.3
    """How often patches of the image are pasted elsewhere, in data sets with `self_mixing`."""
    most_patches: int = 3
    """Up to how many patches then."""
    least_patch: float = 0.08
    """Sides of a patch over that of the crop: from here ..."""
    greatest_patch: float = 0.25
    """... to here."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, most = getattr(self, field.name), _greatest(field.name)
            if not 0 <= value <= most:
                raise InputError(f"augmentation: {field.name} must be between 0 and {most:g}, got {value}")
        if self.least_patch > self.greatest_patch:
            raise InputError(
                f"augmentation: least_patch {self.least_patch} is above greatest_patch {self.greatest_patch}"
            )


def _greatest(name: str) -> float:
    """The greatest value of a field of `Augmentation`."""
    if name.endswith("_probability"):
        return 1.0
    return {"rotation_deg": _MAX_DEG, "hue": 0.5, "most_patches": 100}.get(name, _MAX_RANGE)


def draw_crop_change(augmentation: Augmentation, rng: np.random.Generator) -> CropChange:
    """How the crop of one sample is turned, scaled and shifted."""
    turned = rng.random() < augmentation.rotation_probability
    angle, scale, *shift = np.clip(rng.standard_normal(4), -2, 2)
    return CropChange(
        float(np.deg2rad(augmentation.rotation_deg) * angle) if turned else 0.0,
        float(np.exp(augmentation.scale * scale)),
        (float(augmentation.shift * shift[0]), float(augmentation.shift * shift[1])),
    )


class PhotometricDistortion:
    """Changes of colour and sharpness that leave every pixel in its place; it pickles.

    Args:
        augmentation: How often and how strongly.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        def about_one(change: float) -> tuple[float, float]:
            return 1 - change, 1 + change

        jitter = albumentations.ColorJitter(
            about_one(augmentation.brightness),
            about_one(augmentation.contrast),
            about_one(augmentation.saturation),
            (-augmentation.hue, augmentation.hue),
            p=augmentation.photometric_probability,
        )
        blur = albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.2), p=augmentation.blur_probability)
        self._transform = albumentations.Compose([jitter, blur, albumentations.ToGray(p=augmentation.gray_probability)])

    def __call__(
        self, image: UInt8[ndarray, "height width 3"], rng: np.random.Generator
    ) -> UInt8[ndarray, "height width 3"]:
        """A distorted copy."""
        # Not `set_random_seed`, which gives every transform the same sequence.
        self._transform.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        distorted: ndarray = self._transform(image=image)["image"]
        return distorted


def channel_noise(
    image: UInt8[ndarray, "*pixels channels"], strength: float, rng: np.random.Generator
) -> UInt8[ndarray, "*pixels channels"]:
    """Multiplies red, green and blue by a factor each, from 1 - strength to 1 + strength; a fourth channel stays.

    "Channel-wise pixel noise" is taken to be that of SPIN (`datasets/base_dataset.py`) and its successors.
    """
    channels = image.shape[-1]
    table = np.repeat(np.arange(256, dtype=np.float32)[:, None], channels, axis=1)
    table[:, :3] *= rng.uniform(1 - strength, 1 + strength, 3)
    # A table of 256 results is several times faster than arithmetic on each pixel. OpenCV wants two axes of pixels.
    table = np.rint(table).clip(0, 255).astype(np.uint8)
    noisy: ndarray = cv2.LUT(image.reshape(image.shape[0], -1, channels), table[None])
    return noisy.reshape(image.shape)


def mix_patches(
    image: UInt8[ndarray, "height width 3"], augmentation: Augmentation, rng: np.random.Generator
) -> UInt8[ndarray, "height width 3"]:
    """A copy in which rectangles of the image itself cover other places of it, as occluders of the right colours."""
    height, width = image.shape[:2]
    mixed = image.copy()
    for _ in range(rng.integers(1, augmentation.most_patches + 1) if augmentation.most_patches else 0):
        shares = rng.uniform(augmentation.least_patch, augmentation.greatest_patch, 2)
        rows, columns = np.maximum(1, np.rint(shares * (height, width)).astype(int))
        from_row, to_row = rng.integers(0, height - rows + 1, 2)
        from_column, to_column = rng.integers(0, width - columns + 1, 2)
        patch = image[from_row : from_row + rows, from_column : from_column + columns]
        mixed[to_row : to_row + rows, to_column : to_column + columns] = patch
    return mixed
