"""The persons of a synthetic set: shape, appearance, and the texture that a video would have left of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from bodies.body_model import BodyModel
from bodies.errors import InputError
from datamodules.backgrounds import list_images, read_image
from datamodules.body_regions import body_regions
from datamodules.procedural_textures import draw_appearance
from datamodules.texture_canvas import make_canvas, make_lattice, sample_image
from datamodules.texture_damage import damaged_texture

#: Shapes are normal, as SMPL's coefficients are scaled, and cut here.
MAX_BETA: Final = 2.5
#: How much the coefficients of one person differ from frame to frame, as the fits of one person do.
BETA_JITTER: Final = 0.15
#: Appearances kept in memory; one of the full body takes half a megabyte.
_KEPT: Final = 512


@dataclass(frozen=True)
class Subject:
    """Who one frame shows."""

    betas: Float32[ndarray, " betas"]
    """Centre of the person's shape coefficients."""
    colors: UInt8[ndarray, "points 3"]
    """Clean colours of the points of `Wardrobe.lattice`."""


class Wardrobe:
    """Makes subjects by number; the same number is always the same person.

    Args:
        body: The body model.
        seed: Numbers that no other set has.
        textures: Folder of texture images in the body's UV layout; by default appearances are drawn.
        texture_px: Side of the stored textures, for bodies with a UV layout.

    Raises:
        InputError: If the folder has no images, or the body has no UV layout to put them on.
    """

    def __init__(self, body: BodyModel, seed: tuple[int, ...], textures: Path | None, texture_px: int) -> None:
        self._body, self._seed = body, seed
        self._images = list_images(textures) if textures else ()
        if textures and body.texture is None:
            raise InputError(f"{textures}: texture images need a body with UV coordinates, {body.name} has none")
        self.lattice = make_lattice(body)
        self._canvas = make_canvas(body, texture_px)
        self._regions = body_regions(body, self.lattice.points)
        self._uv = self.lattice.uv(body.texture) if body.texture else None
        self._known: dict[int, Subject] = {}

    def given_texture(self, number: int) -> UInt8[ndarray, "*shape 4"]:
        """What the network gets to see of a subject: RGB and coverage, (H, W, 4) or (V, 4)."""
        rng = np.random.default_rng([*self._seed, number, 1])
        return damaged_texture(rng, self._canvas, self.lattice.points, self.subject(number).colors)

    def subject(self, number: int) -> Subject:
        """Shape and clean appearance of a subject."""
        if number not in self._known:
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[number] = self._made(number)
        return self._known[number]

    def _made(self, number: int) -> Subject:
        rng = np.random.default_rng([*self._seed, number, 0])
        betas = np.clip(rng.standard_normal(self._body.num_betas), -MAX_BETA, MAX_BETA).astype(np.float32)
        if self._uv is None or not self._images:
            return Subject(betas, np.rint(draw_appearance(rng, self._regions) * 255).astype(np.uint8))
        # Every image is worn once before one is worn twice.
        order = np.random.default_rng(self._seed).permutation(len(self._images))
        image = read_image(self._images[order[number % len(order)]])
        # What is finer than the lattice would only make it flicker.
        side = min(1024, *image.shape[:2])
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        return Subject(betas, sample_image(image, self._uv))
