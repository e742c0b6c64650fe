"""What `snugfit refine` knows of how people look: their textures, from files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from torch import Tensor

from bodies import InputError
from datamodules.sample_reader import fitted_texture
from datamodules.store import FrameStore

#: Name of the array in an .npz.
ARRAY: Final = "rgba"
PERSON_SUFFIXES: Final = (".png", ".npz")
STORE_SUFFIXES: Final = (".h5", ".hdf5")

Rgba = UInt8[ndarray, "*texels 4"]


@dataclass(frozen=True)
class PersonTextures:
    """Textures of people, (H, W, 4) in UV space or (V, 4) per vertex.

    The last channel is the coverage: 0 where the colour is not known.
    """

    path: Path | None = None
    """Where they are from."""
    alone: Rgba | None = None
    """That of one person, alone in each photo."""
    numbered: dict[int, Rgba] = field(default_factory=dict)
    """Those of the people of a photo, by their number."""

    def of_photo(self, image: Path, people: int, vertices: int) -> UInt8[Tensor, "people ... 4"]:
        """The textures of the people of a photo; nothing is covered of those who have none.

        Args:
            image: The photo, for messages.
            people: How many there are.
            vertices: Vertices of the body model, which is what a texture has a colour for if nobody has one.

        Raises:
            InputError: If one person's texture is to serve several, or they are of different kinds.
        """
        if self.alone is not None and people > 1:
            raise InputError(
                f"{self.path}: is the texture of one person, {image} shows {people}; "
                "give a folder that holds person_0.png, person_1.png ... (or .npz)"
            )
        known = self.numbered if self.alone is None else {0: self.alone}
        shape = next((known[person].shape for person in sorted(known) if person < people), (vertices, 4))
        textures = []
        for person in range(people):
            rgba = fitted_texture(known[person], shape) if person in known else np.zeros(shape, np.uint8)
            if rgba is None:
                raise InputError(f"{self.path}: textures in UV space and per vertex cannot be mixed")
            textures.append(rgba)
        return torch.from_numpy(np.stack(textures))


def read_textures(path: Path | None, subject: str | None) -> PersonTextures:
    """Reads the texture of one person, or those in a folder, person_<k>.png or .npz.

    Args:
        path: A .png in the body's UV layout, an .npz with the array rgba, a frames file of `snugfit data`, or a folder.
        subject: Whose texture of a frames file; it may be left out if there is one subject.

    Raises:
        InputError: If there is no texture, or it cannot be read.
    """
    if subject is not None and (path is None or path.suffix.lower() not in STORE_SUFFIXES):
        raise InputError(f"--subject {subject}: goes with a --texture that is a frames file ({STORE_SUFFIXES[0]})")
    if path is None:
        return PersonTextures()
    if path.is_dir():
        return PersonTextures(path, numbered=_read_folder(path))
    if path.suffix.lower() in STORE_SUFFIXES:
        return PersonTextures(path, _read_subject(path, subject))
    return PersonTextures(path, _read_file(path))


def _read_folder(path: Path) -> dict[int, Rgba]:
    numbered: dict[int, Rgba] = {}
    for file in sorted(path.glob("person_*")):
        number = file.stem.removeprefix("person_")
        if file.suffix.lower() not in PERSON_SUFFIXES or not number.isdecimal():
            continue
        if int(number) in numbered:
            raise InputError(f"{file}: is the second texture of this person")
        numbered[int(number)] = _read_file(file)
    if not numbered:
        raise InputError(f"{path}: holds no textures, person_0.png, person_1.png ... (or .npz)")
    return numbered


def _read_file(path: Path) -> Rgba:
    match path.suffix.lower():
        case ".png":
            return _read_png(path)
        case ".npz":
            return _read_npz(path)
        case _:
            raise InputError(f"{path}: a texture is a .png, an .npz or a frames file ({STORE_SUFFIXES[0]})")


def _read_png(path: Path) -> Rgba:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    if image is None:
        raise InputError(f"{path}: is not an image that OpenCV can read")
    if image.dtype != np.uint8 or image.ndim != 3:
        raise InputError(f"{path}: a texture has 8 bits a channel, in colour")
    return _with_coverage(np.concatenate([image[..., 2::-1], image[..., 3:]], axis=-1))


def _read_npz(path: Path) -> Rgba:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            rgba: ndarray = arrays[ARRAY]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (KeyError, ValueError, BadZipFile, EOFError) as error:
        raise InputError(f"{path}: is not an .npz with a plain array '{ARRAY}'") from error
    if rgba.dtype != np.uint8 or rgba.ndim not in (2, 3) or rgba.shape[-1] not in (3, 4) or 0 in rgba.shape:
        raise InputError(
            f"{path}: '{ARRAY}' is {rgba.dtype} of shape {rgba.shape}; a texture is uint8 of shape (V, 4) per vertex "
            "or (H, W, 4) in UV space"
        )
    return _with_coverage(rgba)


def _with_coverage(colors: UInt8[ndarray, "..."]) -> Rgba:
    """Colours without coverage are all known."""
    if colors.shape[-1] == 4:
        return colors
    return np.concatenate([colors, np.full_like(colors[..., :1], 255)], axis=-1)


def _read_subject(path: Path, subject: str | None) -> Rgba:
    store = FrameStore(path)
    if subject is None and len(store.subjects) == 1:
        subject = store.subjects[0]
    if subject not in store.subjects:
        shown = ", ".join(store.subjects[:8]) + (" ..." if len(store.subjects) > 8 else "")
        asked = "several subjects, name one with --subject" if subject is None else f"no subject {subject!r}"
        raise InputError(f"{path}: has {asked} (it has {shown})")
    texture = store.read_texture(store.subjects.index(subject))
    if texture is None:
        raise InputError(f"{path}: has no texture of {subject}; `snugfit data texture` makes it")
    return texture.rgba
