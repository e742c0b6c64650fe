"""Draws a scene with people whose bodies are known, and refines them: the whole pipeline on what ships."""

import json
from pathlib import Path

import cv2
import numpy as np
import roma
import torch
from jaxtyping import Float32
from numpy import ndarray
from rich.console import Console

from bodies import BodyModel, BodyParameters, PinholeCamera, load_body_model
from bodies.safe_write import whole_folder
from commands._demo_network import try_network
from commands.refine import refine
from datamodules.poses import PoseKind, sample_poses
from renderers.drawing import Image, draw_mesh

WIDTH_PX, HEIGHT_PX = 1280, 720
#: Who stands in the scene: posture, heading in degrees (0 faces the camera), place to the right and away in metres,
#: and the colour of the body.
PEOPLE: tuple[tuple[PoseKind, float, float, float, tuple[int, int, int]], ...] = (
    ("walk", 40.0, -1.5, 4.6, (205, 150, 120)),
    ("reach", -15.0, 0.0, 5.2, (150, 105, 80)),
    ("lunge", 150.0, 1.3, 5.2, (225, 180, 150)),
)
#: What a detector gets wrong: spread of the keypoints, and the share it does not see.
KEYPOINT_NOISE_PX = 4.0
DROPPED = 0.1
#: Height of the pelvis above the middle of the picture is about nought, so feet end near its lower edge.
CAMERA_HEIGHT_M = 0.25


def demo(out: Path = Path("out/demo"), seed: int = 2) -> int:
    """Refines three people in a made picture by keypoints, then tests the network that ships on a small made set.

    Needs no file but those that ship. The keypoints are the true ones with noise, and one in ten is missing. The set is
    made anew by its seed if it is not there; its people are none of those in training.

    Args:
        out: Folder to write to; replaced if it exists.
        seed: Of postures and noise.
    """
    console = Console()
    body = load_body_model("standin")
    truth = _people(body, seed)
    camera = PinholeCamera.from_image_size(torch.tensor([[float(WIDTH_PX), float(HEIGHT_PX)]]))
    with whole_folder(out / "scene") as folder:
        cv2.imwrite(str(folder / "street.png"), _scene(body, truth, camera, seed)[..., ::-1])
        people = [{"pose_keypoints_2d": k.flatten().tolist()} for k in _detections(body, truth, camera, seed)]
        (folder / "street_keypoints.json").write_text(json.dumps({"version": 1.3, "people": people}))
    console.print(f"{out / 'scene' / 'street.png'}: {len(PEOPLE)} people with noisy keypoints; fitting them")
    failed = refine(out / "scene" / "street.png", keypoints=out / "scene" / "street_keypoints.json", out=out)
    console.print("Testing the network that ships on a set of people it has never seen")
    try_network(out / "network", console)
    return failed


def _people(body: BodyModel, seed: int) -> BodyParameters:
    generator = torch.Generator().manual_seed(seed)
    rotations, transl = [], []
    for number, (kind, heading, right, away, _) in enumerate(PEOPLE):
        sample = sample_poses(1, seed + number, [kind])
        turn = roma.rotvec_to_rotmat(torch.tensor([0.0, float(np.radians(heading)), 0.0]))
        upright = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        root = upright @ turn @ roma.rotvec_to_rotmat(torch.from_numpy(sample.root_orientation[0]))
        joints = roma.rotvec_to_rotmat(torch.from_numpy(sample.body_pose[0]).view(-1, 3))
        rotations.append(torch.cat([root[None], joints]))
        transl.append(torch.tensor([right, CAMERA_HEIGHT_M, away]))
    betas = 0.8 * torch.randn(len(PEOPLE), 10, generator=generator)
    return BodyParameters(torch.stack(rotations), betas, torch.stack(transl))


def _scene(body: BodyModel, truth: BodyParameters, camera: PinholeCamera, seed: int) -> Image:
    """A floor, a wall and the people, the farthest drawn first."""
    rows = np.linspace(0, 1, HEIGHT_PX, dtype=np.float32)[:, None, None]
    wall = np.array((196, 204, 210), np.float32) * (1 - 0.35 * rows) + np.zeros((1, WIDTH_PX, 1), np.float32)
    image = wall + np.random.default_rng(seed).normal(0, 3, (HEIGHT_PX, WIDTH_PX, 1)).astype(np.float32)
    horizon = round(0.62 * HEIGHT_PX)
    image[horizon:] = image[horizon:] * np.array((0.72, 0.66, 0.60), np.float32)
    picture = np.rint(image.clip(0, 255)).astype(np.uint8)
    mesh = body(truth)
    for person in truth.transl[:, 2].argsort(descending=True).tolist():
        picture = draw_mesh(picture, mesh.vertices[person], body.faces, camera, PEOPLE[person][-1], alpha=1.0)
    return picture


def _detections(
    body: BodyModel, truth: BodyParameters, camera: PinholeCamera, seed: int
) -> Float32[ndarray, "people 25 3"]:
    rng = np.random.default_rng(seed)
    pixels = camera.expand(len(truth)).project(body.keypoints(body(truth), "openpose25")).numpy()
    noisy = pixels + rng.normal(0, KEYPOINT_NOISE_PX, pixels.shape)
    confidence = rng.uniform(0.55, 0.95, pixels.shape[:2]) * (rng.random(pixels.shape[:2]) >= DROPPED)
    points = np.concatenate([noisy, confidence[..., None]], axis=-1)
    points[confidence == 0] = 0  # as OpenPose writes what it did not see
    return points.astype(np.float32)
