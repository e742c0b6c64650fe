"""What `snugfit refine` reads: photos with their keypoints and initial estimates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from bodies import BodyModel, BodyParameters, InputError, PinholeCamera
from bodies.camera import NEAR_PLANE_M
from datamodules.convert.openpose import read_openpose
from datamodules.estimates import read_estimate

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
#: Keypoints below this confidence are guesses that pull limbs astray; they are not fitted.
MIN_CONFIDENCE = 0.05
#: A body has more unknowns than this many keypoints can place.
MIN_KEYPOINTS = 4


class PhotoFiles(NamedTuple):
    """The files of one photo."""

    image: Path
    keypoints: Path | None
    initial: Path | None


@dataclass(frozen=True)
class Photo:
    """One photo with the people to be fitted in it."""

    image_path: Path
    """Where it is."""
    pixels: UInt8[ndarray, "height width 3"]
    """RGB."""
    keypoints: Float[ndarray, "people 25 3"] | None
    """BODY_25: x, y in pixels, confidence; without them there is an initial estimate."""
    initial: BodyParameters | None
    """An initial estimate for each of them, in the camera frame."""
    initial_path: Path | None
    """Its file."""
    focal_px: Float[Tensor, " 2"]
    """Focal lengths."""
    center_px: Float[Tensor, " 2"]
    """Principal point."""

    def __len__(self) -> int:
        known = self.initial if self.keypoints is None else self.keypoints
        assert known is not None, "a photo has keypoints or an initial estimate"
        return len(known)

    def camera(self) -> PinholeCamera:
        """The photo's camera, once for each person."""
        height, width = self.pixels.shape[:2]
        one = PinholeCamera(self.focal_px[None], self.center_px[None], torch.tensor([[float(width), float(height)]]))
        return one.expand(len(self))

    def fitted_keypoints(self) -> Float[Tensor, "people 25 3"] | None:
        """The keypoints with confidence 0 where they are not to be fitted, and at most 1."""
        if self.keypoints is None:
            return None
        keypoints = torch.from_numpy(self.keypoints)
        confidence = torch.where(keypoints[..., 2:] >= MIN_CONFIDENCE, keypoints[..., 2:], 0).clamp(max=1)
        return torch.cat([keypoints[..., :2], confidence], dim=-1)

    def check_in_front(self, body: BodyModel) -> None:
        """Refuses an initial estimate of which a part is behind the camera.

        Raises:
            InputError: If there is one.
        """
        if self.initial is None:
            return
        if self.initial.betas.shape[1] > body.num_betas:
            given = self.initial.betas.shape[1]
            raise InputError(f"{self.initial_path}: has {given} betas, the body model {body.name} has {body.num_betas}")
        nearest = body(self.initial).vertices[..., 2].amin(dim=1)
        for person, depth in enumerate(nearest.tolist()):
            if depth < NEAR_PLANE_M:
                raise InputError(f"{self.initial_path}: person {person} is behind the camera (depth {depth:.2f} m)")


def find_photos(images: Sequence[Path], keypoints: Path | None, initial: Path | None) -> list[PhotoFiles]:
    """Pairs photos with their keypoints and initial estimates by name.

    Raises:
        InputError: If there are no photos, a file and several photos do not go together, or there are neither
            keypoints nor initial estimates.
    """
    if keypoints is None and initial is None:
        raise InputError("without --keypoints the people need an initial estimate, --init")
    photos: list[Path] = []
    for path in images:
        if path.is_dir():
            found = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise InputError(f"{path}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
            photos += found
        else:
            photos.append(path)
    if not photos:
        raise InputError("no image was given")
    if len(photos) > 1:
        for given, option in ((keypoints, "--keypoints"), (initial, "--init")):
            if given is not None and not given.is_dir():
                raise InputError(f"{given}: with several photos {option} must be a folder")
        _refuse_same_names(photos)
    return [
        PhotoFiles(
            photo,
            _of_photo(keypoints, f"{photo.stem}_keypoints.json"),
            _of_photo(initial, f"{photo.stem}.npz"),
        )
        for photo in photos
    ]


def _of_photo(given: Path | None, name: str) -> Path | None:
    return given / name if given is not None and given.is_dir() else given


def _refuse_same_names(photos: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for photo in photos:
        if photo.stem in seen:
            raise InputError(f"{photo}: would be written to the same folder as {seen[photo.stem]}")
        seen[photo.stem] = photo


def read_photo(files: PhotoFiles, focal_px: float | None) -> Photo:
    """Reads and checks everything of one photo before anything is fitted or written.

    Raises:
        InputError: With the file and the cause.
    """
    if focal_px is not None and not (math.isfinite(focal_px) and focal_px > 0):
        raise InputError(f"--focal: the focal length must be positive and finite, got {focal_px}")
    pixels = _read_image(files.image)
    keypoints = None if files.keypoints is None else _read_keypoints(files.keypoints)
    focal = None if focal_px is None else torch.full((2,), focal_px)
    center, initial = None, None
    if files.initial is not None:
        estimate = read_estimate(files.initial)
        initial, center = estimate.parameters, estimate.center_px
        if keypoints is not None and len(initial) != len(keypoints):
            raise InputError(f"{files.initial}: has {len(initial)} people, {files.keypoints} has {len(keypoints)}")
        if focal is None:
            focal = estimate.focal_px
        elif estimate.focal_px is not None and not torch.allclose(focal, estimate.focal_px, rtol=0.01):
            theirs = estimate.focal_px.tolist()
            raise InputError(f"{files.initial}: was made with focal length {theirs}, --focal says {focal_px}")
    height, width = pixels.shape[:2]
    size = torch.tensor([float(width), float(height)])
    if focal is None:
        focal = torch.linalg.vector_norm(size).expand(2).clone()
    center = size / 2 if center is None else center
    return Photo(files.image, pixels, keypoints, initial, files.initial, focal, center)


def _read_keypoints(path: Path) -> Float[ndarray, "people 25 3"]:
    keypoints = read_openpose(path)
    for person, points in enumerate(keypoints):
        usable = int((points[:, 2] >= MIN_CONFIDENCE).sum())
        if usable < MIN_KEYPOINTS:
            raise InputError(
                f"{path}: person {person} has {usable} keypoints with confidence {MIN_CONFIDENCE} or more, "
                f"{MIN_KEYPOINTS} are needed"
            )
    return keypoints


def _read_image(path: Path) -> UInt8[ndarray, "height width 3"]:
    try:
        data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    # Keypoint detectors see the stored pixels; EXIF rotation would put them elsewhere.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(data, flags) if len(data) else None
    if image is None:
        raise InputError(f"{path}: is not an image that OpenCV can read")
    return image
