"""A few people made by code, as a data module gives them: for tests of training and evaluation without any file."""

import functools
import os
import signal
from pathlib import Path

import lightning
import torch
from lightning import Callback, LightningDataModule
from torch.utils.data import DataLoader, Dataset, default_collate

from bodies import BodyParameters, PinholeCamera, load_body_model
from bodies.camera import crop_to_square_box, square_box
from datamodules.initial import NoiseScale
from datamodules.sample import INITIAL_KINDS, BodyFields, BodySample, CameraFields, InitialSample, SurfaceSample
from datamodules.store_layout import Gender
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.hourglass import DisplacementNetwork
from lightning_modules.preparation import BodySettings
from lightning_modules.refinement import RefinementModule
from renderers import VertexColors, make_rasterizer, render_maps, unique_vertex_colors

BODY = "standin-tiny"
CROP_PX = 32
SIZE_PX = (160.0, 120.0)
NOISE = NoiseScale()


@functools.cache
def _body():
    return load_body_model(BODY)


def person(row: int) -> tuple[BodyParameters, PinholeCamera]:
    """An upright person four metres away."""
    random = torch.Generator().manual_seed(row)
    pose = 0.15 * torch.randn(1, 72, generator=random)
    pose[:, 0] += torch.pi  # SMPL's y is up, the camera's is down
    transl = torch.tensor([[0.0, 0.3, 4.0]]) + 0.1 * torch.randn(1, 3, generator=random)
    parameters = BodyParameters.from_axis_angle(pose, 0.5 * torch.randn(1, 10, generator=random), transl)
    size = torch.tensor([SIZE_PX])
    return parameters, PinholeCamera(torch.full((1, 2), 180.0) + row, size / 2, size)


@functools.cache
def body_sample(row: int, crop_px: int = CROP_PX) -> BodySample:
    """Row `row`: data set row % 2, a sequence for every four rows, an image of the body in its unique colours."""
    body, (truth, camera) = _body(), person(row)
    mesh = body(truth)
    pixels = camera.project(mesh.vertices)
    center, side = square_box(pixels, torch.ones(1, body.num_vertices), 1.3)
    crop_camera = crop_to_square_box(camera, center, side, crop_px)
    colors = unique_vertex_colors(body.template)
    fragments = make_rasterizer("cpu")(mesh.vertices, body.faces, crop_camera, crop_px, crop_px)
    maps = render_maps(fragments, mesh.vertices, body.faces, VertexColors(colors[None]), colors)
    keypoints = camera.project(body.keypoints(mesh, "openpose25"))[0]
    noise = torch.randn(25, 2, generator=torch.Generator().manual_seed(1000 + row))
    sure = torch.ones(25, 1)
    fields = BodyFields(*(part[0] for part in (truth.rotations, truth.betas, truth.transl)))
    rgba = torch.cat([colors * 255, torch.full((body.num_vertices, 1), 255.0)], dim=1)
    return BodySample(
        image=(maps[0, :3] * 255).to(torch.uint8),
        camera=CameraFields(*(part[0] for part in (camera.focal_px, camera.center_px, camera.size_px))),
        crop_camera=CameraFields(
            *(part[0] for part in (crop_camera.focal_px, crop_camera.center_px, crop_camera.size_px))
        ),
        box_px=torch.cat([center[0], side]),
        body=fields,
        has_body=torch.tensor(True),
        gender=torch.tensor(0),
        initial=InitialSample(
            torch.tensor(INITIAL_KINDS.index("noise")), torch.tensor(-1), fields, camera.focal_px[0].mean()
        ),
        detected_keypoints_px=torch.cat([keypoints + 2 * noise, sure], dim=1),
        true_keypoints_px=torch.cat([keypoints, sure], dim=1),
        joints_m=torch.zeros(17, 4),
        surface=SurfaceSample(
            torch.zeros(0, 2),
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(0, 3),
            torch.zeros(0),
            torch.tensor(False),
        ),
        texture=rgba.to(torch.uint8),
        dataset=torch.tensor(row % 2),
        sequence=torch.tensor(row // 4),
        row=torch.tensor(row),
        seed=torch.tensor(7 * row + 1),
    )


class People(Dataset):
    def __init__(self, count: int, crop_px: int) -> None:
        self.count, self.crop_px = count, crop_px

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> BodySample:
        return body_sample(row, self.crop_px)


class PeopleData(LightningDataModule):
    """The same people for every purpose.

    Args:
        crop_px: Side of the crops.
        body_model: Must be the tiny stand-in.
        true_body_models: Must be empty.
        noise: Not looked at.
        people: How many.
        batch_size: Samples in a batch.
    """

    def __init__(
        self,
        crop_px: int = CROP_PX,
        body_model: str = BODY,
        true_body_models: dict[Gender, str] | None = None,
        noise: NoiseScale = NOISE,
        people: int = 5,
        batch_size: int = 2,
    ) -> None:
        super().__init__()
        assert body_model == BODY
        assert not true_body_models
        self.crop_px, self.people, self.batch_size = crop_px, people, batch_size

    def _loader(self) -> DataLoader:
        return DataLoader(People(self.people, self.crop_px), batch_size=self.batch_size)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = _loader


def tiny_network() -> DisplacementNetwork:
    """The same weights each time."""
    torch.manual_seed(0)
    return DisplacementNetwork(
        width=16, stem_width=8, stacks=2, depth=2, feature_stride=2, encoder_blocks=1, norm="group"
    )


def tiny_module(**changes: object) -> RefinementModule:
    keywords = {
        "network": tiny_network(),
        "crop_px": CROP_PX,
        "body": BodySettings(model=BODY),
        "fitting": FittingSettings(),
    }
    return RefinementModule(**{**keywords, **changes})


def write_tiny_checkpoint(path: Path, **changes: object) -> Path:
    """What Lightning's command line saves of `tiny_module`, without training; the network predicts zero."""
    hyperparameters = {
        "network": {
            "class_path": "lightning_modules.hourglass.DisplacementNetwork",
            "init_args": {
                "width": 16,
                "stem_width": 8,
                "stacks": 2,
                "depth": 2,
                "feature_stride": 2,
                "encoder_blocks": 1,
                "norm": "group",
            },
        },
        "crop_px": CROP_PX,
        "body": {"model": BODY, "true_models": {}, "rasterizer": "auto"},
        "fitting": {"prior": "standin"},
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    checkpoint = {
        "state_dict": {f"network.{name}": value for name, value in tiny_network().state_dict().items()},
        "hparams_name": "kwargs",
        "hyper_parameters": hyperparameters | changes,
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    torch.save(checkpoint, path)
    return path


def batch_of(rows: list[int]) -> BodySample:
    return default_collate([body_sample(row) for row in rows])


class Kill(Callback):
    """Ends the process as `kill -9` does.

    Args:
        step: After which optimiser step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
