"""Refines the people of one photo in rounds: render the bodies, predict where they should be, fit them to that.

Each round starts from the bodies that the round before has accepted, and cuts and renders its crops anew. What the
network is given is what training gives it: the square box of the rendered body's part of the image, resampled and
rendered by the same functions, only that training knows the true body and takes the box from that.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from bodies import BodyParameters, PinholeCamera
from bodies.camera import NEAR_PLANE_M, square_box
from datamodules.crops import ImageCamera, warp_affine
from datamodules.synthetic_frames import BOX_MARGIN
from datamodules.turned_crop import CropChange, TurnedCrop, turned_crop
from fitting import Smplify, VertexTargets
from fitting.targets import Targets
from lightning_modules.refinement import RefinementModule
from lightning_modules.rounds import PredictedDisplacement, Round
from renderers import UvTexture, VertexColors, vertex_targets
from renderers.maps import Texture

#: Crops that the network sees at once; at full resolution one of the paper's network takes a gigabyte.
_AT_ONCE: Final = 4
_BYTE: Final = 255.0


@dataclass(frozen=True)
class PhotoPeople:
    """The people of one photo, and what is known of them beside their bodies."""

    pixels: UInt8[ndarray, "height width 3"]
    """The photo, RGB."""
    camera: PinholeCamera
    """Its camera, once for each of them."""
    texture: Texture
    """Their appearance; see `BatchPreparation.texture`."""
    more_targets: tuple[Targets, ...] = ()
    """What is fitted beside the displacements: keypoints."""


def refine_in_rounds(
    module: RefinementModule, fit: Smplify, people: PhotoPeople, initial: BodyParameters, rounds: int
) -> tuple[Round, ...]:
    """Runs the rounds.

    Args:
        module: The network with its settings, on the CPU.
        fit: How to fit.
        people: The people.
        initial: Their bodies to start with.
        rounds: How many rounds, at least one. They end early if a round was accepted for none of the people: the next
            one would see the same.

    Returns:
        What happened in each; the last one's fit holds the refined bodies.
    """
    assert rounds >= 1, f"{rounds} rounds"
    done: list[Round] = []
    bodies = initial
    for _ in range(rounds):
        predicted = predict_displacement(module, people, bodies)
        targets: VertexTargets = module.fitting.displacements.targets(predicted.position_px, predicted.weight)
        result = fit(bodies, people.camera, (targets, *people.more_targets))
        done.append(Round(bodies, predicted, result))
        if not bool(result.accepted.any()):
            break
        bodies = result.parameters
    return tuple(done)


@torch.no_grad()
def predict_displacement(
    module: RefinementModule, people: PhotoPeople, bodies: BodyParameters
) -> PredictedDisplacement:
    """Renders bodies into crops of the photo and asks the network for their displacement."""
    parts = [
        _predict(module, people, bodies, slice(start, start + _AT_ONCE)) for start in range(0, len(bodies), _AT_ONCE)
    ]
    names = ("box_px", "displacement_px", "mask", "position_px", "weight")
    return PredictedDisplacement(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _predict(
    module: RefinementModule, people: PhotoPeople, bodies: BodyParameters, chosen: slice
) -> PredictedDisplacement:
    bodies, camera = bodies[chosen], people.camera[chosen]
    box_px = body_box_px(module.body(bodies).vertices, camera)
    crops = [_crop(camera, place, box_px[place].numpy(), module.crop_px) for place in range(len(bodies))]
    crop_cameras = [crop.camera.batched() for crop in crops]
    crop_camera = PinholeCamera(
        *(torch.cat([getattr(each, name) for each in crop_cameras]) for name in ("focal_px", "center_px", "size_px"))
    )
    rendered = module.prepare.render(bodies, crop_camera, _chosen(people.texture, chosen), module.crop_px)
    images = np.stack([warp_affine(people.pixels, crop.full_to_crop, module.crop_px) for crop in crops])
    crop_images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / _BYTE
    in_crop_px = module.network(crop_images, rendered.renderings)[:, -1].float()
    position_px, weight = vertex_targets(
        rendered.fragments, module.body.faces, in_crop_px, rendered.vertices, crop_camera, camera
    )
    scale = (camera.focal_px / crop_camera.focal_px)[:, :, None, None]
    return PredictedDisplacement(box_px, in_crop_px * scale, rendered.fragments.mask, position_px, weight)


def body_box_px(vertices: Float[Tensor, "people verts 3"], camera: PinholeCamera) -> Float[Tensor, "people 3"]:
    """Centre x, centre y and side of the square box about the part of each body that is in the image.

    As `datamodules.synthetic_frames` has it for the true body: the projection's extent, cut off at the image's borders.
    """
    in_front = (vertices[..., 2] >= NEAR_PLANE_M) & vertices.isfinite().all(dim=-1)
    # Where nothing is in front of the camera any box will do: nothing is rendered into it.
    in_front |= ~in_front.any(dim=1, keepdim=True)
    position_px = torch.nan_to_num(camera.project(vertices)).clamp(min=0).minimum(camera.size_px[:, None])
    center_px, side_px = square_box(position_px, in_front, BOX_MARGIN)
    return torch.cat([center_px, side_px.clamp(min=BOX_MARGIN)[:, None]], dim=1)


def _crop(camera: PinholeCamera, place: int, box_px: Float32[ndarray, "3"], crop_px: int) -> TurnedCrop:
    one = ImageCamera(*(part[place].numpy() for part in (camera.focal_px, camera.center_px, camera.size_px)))
    return turned_crop(one, box_px, CropChange(), 1.0, crop_px)


def _chosen(texture: Texture, chosen: slice) -> Texture:
    match texture:
        case VertexColors(rgb):
            return VertexColors(rgb[chosen])
        case UvTexture(image, coordinates, faces):
            return UvTexture(image[chosen], coordinates, faces)
