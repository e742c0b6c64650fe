"""Samples collate, pin and move as they are, and turn into bodies and cameras; a batch checks its own shapes."""

import jaxtyping
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch.utils.data import default_collate

from bodies.body_model import BodyParameters
from bodies.camera import PinholeCamera
from datamodules.crops import ImageCamera
from datamodules.sample import (
    INITIAL_KINDS,
    BodyFields,
    BodySample,
    CameraFields,
    InitialSample,
    RefinementBatch,
    SurfaceSample,
)
from renderers.rasterize import background

CROP_PX = 8


def sample(seed: int) -> BodySample:
    rng = np.random.default_rng(seed)
    camera = ImageCamera(
        *(rng.uniform(100, 200, 2).astype(np.float32) for _ in range(2)), np.array([320, 240], np.float32)
    )
    body = BodyFields.from_axis_angle(rng.normal(size=72), rng.normal(size=10), rng.normal(size=3))
    numbers = torch.zeros(5, dtype=torch.int64)
    surface = SurfaceSample(torch.zeros(5, 2), numbers, torch.zeros(5, 3), torch.zeros(5), torch.tensor(False))
    code = torch.tensor(seed)
    return BodySample(
        image=torch.full((3, CROP_PX, CROP_PX), seed, dtype=torch.uint8),
        camera=CameraFields.of(camera),
        crop_camera=CameraFields.of(camera.crop(np.array([100.0, 90.0]), 60.0, CROP_PX)),
        box_px=torch.tensor([100.0, 90.0, 60.0]),
        body=body,
        has_body=torch.tensor(True),
        gender=code,
        initial=InitialSample(torch.tensor(INITIAL_KINDS.index("noise")), torch.tensor(-1), body, torch.tensor(150.0)),
        detected_keypoints_px=torch.zeros(25, 3),
        true_keypoints_px=torch.zeros(25, 3),
        joints_m=torch.zeros(17, 4),
        surface=surface,
        texture=torch.zeros(7, 4, dtype=torch.uint8),
        dataset=code,
        sequence=code,
        row=code,
        seed=code,
    )


def test_samples_collate_into_a_sample_of_batches():
    batch = default_collate([sample(0), sample(1)])
    assert isinstance(batch, BodySample)
    assert batch.image.shape == (2, 3, CROP_PX, CROP_PX)
    assert batch.surface.position_px.shape == (2, 5, 2)
    assert batch.row.tolist() == [0, 1]
    assert batch.initial.body.rotations.shape == (2, 24, 3, 3)
    assert batch.seed.dtype == torch.int64


def test_collated_fields_are_bodies_and_cameras():
    samples = [sample(0), sample(1)]
    batch = default_collate(samples)
    body, camera = batch.body.parameters(), batch.crop_camera.camera()
    assert isinstance(body, BodyParameters)
    assert isinstance(camera, PinholeCamera)
    torch.testing.assert_close(body.betas[1], samples[1].body.betas)
    torch.testing.assert_close(camera.center_px[1], samples[1].crop_camera.center_px)


def test_axis_angles_become_the_rotations_of_body_parameters():
    rng = np.random.default_rng(3)
    pose, betas, transl = (rng.normal(scale=0.5, size=n).astype(np.float32) for n in (72, 10, 3))
    # As a store returns them: on read-only memory.
    for array in (pose, betas, transl):
        array.flags.writeable = False
    fields = default_collate([BodyFields.from_axis_angle(pose, betas, transl)]).parameters()
    torch.testing.assert_close(fields.pose, torch.tensor(pose)[None], atol=1e-5, rtol=0)
    torch.testing.assert_close(fields.transl, torch.tensor(transl)[None])


def test_a_batch_moves_as_lightning_moves_it():
    moved = move_data_to_device(default_collate([sample(2)]), torch.device("meta"))
    assert isinstance(moved, BodySample)
    assert isinstance(moved.initial, InitialSample)
    assert moved.initial.body.rotations.device.type == "meta"


def refinement_batch(**changes: object) -> RefinementBatch:
    batch = default_collate([sample(0), sample(1)])
    fragments = background(2, CROP_PX, CROP_PX, torch.device("cpu"))
    values = {
        "images": batch.image / 255,
        "renderings": torch.zeros(2, 10, CROP_PX, CROP_PX),
        "fragments": fragments,
        "mask": fragments.mask,
        "displacement_px": torch.zeros(2, 2, CROP_PX, CROP_PX),
        "initial": batch.initial.body.parameters(),
        "initial_camera": batch.camera.camera(),
        "initial_crop_camera": batch.crop_camera.camera(),
        "truth": batch.body.parameters(),
        "camera": batch.camera.camera(),
        "crop_camera": batch.crop_camera.camera(),
        "initial_kind": batch.initial.kind,
        **{
            name: getattr(batch, name)
            for name in ("box_px", "has_body", "gender", "detected_keypoints_px", "true_keypoints_px", "joints_m")
        },
        **{name: getattr(batch, name) for name in ("surface", "dataset", "sequence", "row")},
    }
    return RefinementBatch(**{**values, **changes})


def test_a_refinement_batch_holds_what_fits_together_and_nothing_else():
    assert len(refinement_batch()) == 2
    for name, value in {
        "mask": torch.zeros(2, CROP_PX, CROP_PX + 1, dtype=torch.bool),
        "images": torch.zeros(2, 3, CROP_PX, CROP_PX, dtype=torch.uint8),
        "box_px": torch.zeros(3, 3),
        "renderings": torch.zeros(2, 7, CROP_PX, CROP_PX),
    }.items():
        with pytest.raises(jaxtyping.TypeCheckError):
            refinement_batch(**{name: value})
