"""From a row of a data set's files to a `BodySample`: what a loader's worker does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch.utils.data import Dataset, default_collate

from bodies.body_model import BodyModel
from bodies.errors import InputError
from datamodules.augmentation import (
    Augmentation,
    PhotometricDistortion,
    channel_noise,
    draw_crop_change,
    mix_patches,
)
from datamodules.initial import InitialDraw, choose_initial, usable_rows
from datamodules.sample import INITIAL_KINDS, BodyFields, BodySample, CameraFields, InitialSample, SurfaceSample
from datamodules.schedule import Draw
from datamodules.sources import OpenedSource
from datamodules.store_layout import GENDERS, Gender
from datamodules.store_reader import FrameStore
from datamodules.store_records import StoredEstimate, StoredFrame, SurfacePoints
from datamodules.turned_crop import (
    CropChange,
    RestPelvis,
    TurnedCrop,
    apply_affine,
    move_keypoints,
    turn_body,
    turn_joints,
    turned_crop,
)

#: Independent random sequences of one sample, so that a change of one part of the augmentation leaves the others.
_CROP, _INITIAL, _COLOURS, _PATCHES, _TEXTURE, _SURFACE = range(6)


@dataclass(frozen=True)
class SampleFormat:
    """What all samples of a run have in common."""

    crop_px: int
    """Side of the crops."""
    crop_margin: float
    """Side of the crop's box over that of the stored one."""
    surface_points: int
    """How many DensePose points a sample has room for."""
    texture_shape: tuple[int, ...]
    """(H, W, 4) in UV space or (V, 4) per vertex."""
    regressors: tuple[str, ...]
    """Names of all regressors of the run; `InitialSample.regressor` counts them."""
    draws: tuple[InitialDraw, ...]
    """Ways to an initial estimate."""
    pelvises: Mapping[Gender, RestPelvis]
    """Rest pelvis of the model of the true bodies of each gender; the initial ones are "neutral"."""


class SampleReader:
    """Reads samples of one data set; it pickles.

    Args:
        number: Which of the run's data sets it is.
        opened: The data set's files, and which rows of them count.
        form: What all samples have in common.
        augmentation: What is changed on a sample; None leaves it as it is.

    Raises:
        InputError: If two estimates files are of the same regressor, or a sample is asked for that a regressor has not.
    """

    def __init__(
        self, number: int, opened: OpenedSource, form: SampleFormat, augmentation: Augmentation | None = None
    ) -> None:
        frames = opened.frames
        self.number, self.frames, self._form, self._augmentation = number, frames, form, augmentation
        self.estimates = {store.regressor: store for store in opened.estimates}
        self._mixes = opened.source.self_mixing
        if len(self.estimates) < len(opened.estimates):
            raise InputError(f"{frames.path}: two of its estimates files are of the same regressor")
        for draw in form.draws:
            samples = self.estimates[draw.regressor].samples if draw.regressor in self.estimates else None
            if samples is not None and draw.sample is not None and not 0 <= draw.sample < samples:
                path = self.estimates[draw.regressor].path
                raise InputError(f"{path}: has {samples} samples of each row, number {draw.sample} was asked for")
        self._sought = form.surface_points > 0 and bool(frames.column("surface_count").any())
        self._usable = usable_rows(form.draws, self.estimates, frames)
        self._indices: Int64[ndarray, " rows"] = np.flatnonzero(self._usable)[:: opened.source.every]
        self._distort = None if augmentation is None else PhotometricDistortion(augmentation)

    def notes(self) -> tuple[str, ...]:
        """What is missing, for whoever starts a run."""
        notes = [f"{len(self.frames.skipped)} bad rows left out"] if self.frames.skipped else []
        for name, store in self.estimates.items():
            if missing := int((~store.valid[self.frames.rows]).sum()):
                notes.append(f"{missing} rows have no estimate by {name}")
        if bodiless := int((~self.frames.has_body).sum()):
            notes.append(f"{bodiless} rows have measured joints alone, without a true body")
        if unusable := int((~self._usable).sum()):
            notes.append(f"{unusable} rows left out, which have no initial estimate of any kind asked for")
        return tuple(notes)

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, draw: Draw) -> BodySample:
        """One sample.

        Raises:
            InputError: If its image is damaged; names the file and the row.
        """
        index = int(self._indices[draw.place])
        frame, form, augmentation = self.frames.read(index), self._form, self._augmentation
        change = CropChange() if augmentation is None else draw_crop_change(augmentation, _rng(draw, _CROP))
        crop = turned_crop(frame.camera, frame.box_px, change, form.crop_margin, form.crop_px)
        body = self._turned(frame, frame.gender, change.angle_rad)
        return BodySample(
            image=self._image(index, crop, draw),
            camera=CameraFields.of(frame.camera),
            crop_camera=CameraFields.of(crop.camera),
            box_px=torch.from_numpy(crop.box_px),
            body=body,
            has_body=torch.tensor(bool(self.frames.has_body[index])),
            gender=torch.tensor(GENDERS.index(frame.gender)),
            initial=self._initial(index, frame, change.angle_rad, body, draw),
            detected_keypoints_px=torch.from_numpy(move_keypoints(frame.detected_keypoints_px, crop.full_to_turned)),
            true_keypoints_px=torch.from_numpy(move_keypoints(frame.true_keypoints_px, crop.full_to_turned)),
            joints_m=torch.from_numpy(turn_joints(frame.joints_m, change.angle_rad)),
            surface=self._surface(frame, crop, draw),
            texture=self._texture(frame, draw),
            dataset=torch.tensor(self.number),
            sequence=torch.tensor(frame.sequence),
            row=torch.tensor(frame.row),
            seed=torch.tensor(draw.seed),
        )

    def _image(self, index: int, crop: TurnedCrop, draw: Draw) -> UInt8[torch.Tensor, "3 crop crop"]:
        image = self.frames.read_warped(index, crop.full_to_crop, self._form.crop_px)
        if self._augmentation is not None and self._distort is not None:
            patches, colours = _rng(draw, _PATCHES), _rng(draw, _COLOURS)
            if self._mixes and patches.random() < self._augmentation.self_mixing_probability:
                image = mix_patches(image, self._augmentation, patches)
            image = self._distort(image, colours)
            image = channel_noise(image, self._augmentation.image_channel_noise, colours)
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    def _turned(self, body: StoredFrame | StoredEstimate, gender: Gender, angle_rad: float) -> BodyFields:
        fields = BodyFields.from_axis_angle(body.pose, body.betas, body.transl)
        return turn_body(fields, self._form.pelvises[gender].at(fields.betas), angle_rad)

    def _initial(
        self, index: int, frame: StoredFrame, angle_rad: float, true_body: BodyFields, draw: Draw
    ) -> InitialSample:
        rng, has_body = _rng(draw, _INITIAL), bool(self.frames.has_body[index])
        chosen, estimate = choose_initial(self._form.draws, self.estimates, frame.row, rng, has_body)
        kind = torch.tensor(INITIAL_KINDS.index(chosen.kind))
        if estimate is None:
            return InitialSample(kind, torch.tensor(-1), true_body, torch.tensor(float(frame.camera.focal_px.mean())))
        regressor = torch.tensor(self._form.regressors.index(chosen.regressor))
        body = self._turned(estimate, "neutral", angle_rad)
        return InitialSample(kind, regressor, body, torch.tensor(estimate.focal_px))

    def _surface(self, frame: StoredFrame, crop: TurnedCrop, draw: Draw) -> SurfaceSample:
        room, (start, stop) = self._form.surface_points, frame.surface_range
        count = min(room, stop - start)
        numbers = torch.zeros(room, dtype=torch.int64)
        padded = SurfaceSample(
            torch.zeros(room, 2), numbers, torch.zeros(room, 3), torch.zeros(room), torch.tensor(self._sought)
        )
        if count == 0:
            return padded
        points = self.frames.read_surface(frame)
        if stop - start > room:
            points = SurfacePoints(*(part[_rng(draw, _SURFACE).permutation(stop - start)[:room]] for part in points))
        padded.position_px[:count] = torch.from_numpy(apply_affine(crop.full_to_turned, points.position_px)).float()
        padded.triangle[:count] = torch.from_numpy(points.triangle.astype(np.int64))
        padded.barycentric[:count] = torch.from_numpy(points.barycentric.copy())
        padded.weight[:count] = 1
        return padded

    def _texture(self, frame: StoredFrame, draw: Draw) -> UInt8[torch.Tensor, "... 4"]:
        shape = self._form.texture_shape
        texture = self.frames.read_texture(frame.subject)
        if texture is None:
            return torch.zeros(shape, dtype=torch.uint8)
        rgba = fitted_texture(texture.rgba, shape)
        if rgba is None:
            raise InputError(
                f"{self.frames.path}: its textures are of shape {texture.rgba.shape}, this run's of {shape}; "
                "textures in UV space and per vertex cannot be mixed"
            )
        if self._augmentation is not None:
            rgba = channel_noise(rgba, self._augmentation.texture_channel_noise, _rng(draw, _TEXTURE))
        return torch.from_numpy(rgba.copy())


class MixtureDataset(Dataset[BodySample]):
    """Collated batches of the samples that a list of draws names.

    Args:
        readers: One per data set.
    """

    def __init__(self, readers: Sequence[SampleReader]) -> None:
        self._readers = tuple(readers)

    def __getitem__(self, draws: list[Draw]) -> BodySample:
        batch: BodySample = default_collate([self._readers[draw.dataset].read(draw) for draw in draws])
        return batch


def texture_shape(stores: Sequence[FrameStore], body: BodyModel) -> tuple[int, ...]:
    """Shape of the first texture there is; where there is none, that of one colour per vertex."""
    for frames in stores:
        for subject in range(len(frames.subjects)):
            texture = frames.read_texture(subject)
            if texture is not None:
                return texture.rgba.shape
    return (body.num_vertices, 4)


def fitted_texture(rgba: UInt8[ndarray, "..."], shape: tuple[int, ...]) -> UInt8[ndarray, "..."] | None:
    """A texture in the shape of the run's: as it is, resampled in UV space, or None if it is of the other kind."""
    if rgba.shape == shape:
        return rgba
    if rgba.ndim != len(shape) or rgba.ndim == 2:
        return None
    # Colours are averaged by coverage: the black of texels that were never seen must not bleed.
    covered = rgba[..., 3:].astype(np.float32) / 255
    size, method = (shape[1], shape[0]), cv2.INTER_AREA if shape[0] < rgba.shape[0] else cv2.INTER_LINEAR
    colour = cv2.resize(rgba[..., :3] * covered, size, interpolation=method)
    coverage = cv2.resize(covered, size, interpolation=method)[..., None]
    colour = np.divide(colour, coverage, out=np.zeros_like(colour), where=coverage > 0)
    return np.concatenate([colour + 0.5, coverage * 255 + 0.5], axis=-1).clip(0, 255).astype(np.uint8)


def _rng(draw: Draw, purpose: int) -> np.random.Generator:
    return np.random.default_rng((draw.seed, purpose))
