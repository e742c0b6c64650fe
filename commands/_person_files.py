"""What `snugfit refine` writes for each person."""

import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import trimesh
from jaxtyping import Float
from numpy import ndarray

from bodies import BodyModel, BodyParameters, PinholeCamera
from bodies.joints import OPENPOSE25, OPENPOSE25_BONES
from bodies.safe_write import whole_folder
from commands._photos import Photo
from commands._refiners import Refined
from commands._round_pictures import rounds_picture
from datamodules.estimates import write_estimate
from fitting import FitResult
from lightning_modules.rounds import Round
from renderers.drawing import INITIAL_COLOR, REFINED_COLOR, Image, draw_keypoints, draw_mesh, panel

#: Height of the pictures in the overlay; photos are often larger than any screen.
OVERLAY_HEIGHT_PX = 1000
#: Shown around the person, as a share of their extent in the photo.
MARGIN = 0.45
#: Above this confidence a keypoint counts as sure in the report.
SURE_CONFIDENCE = 0.5

State = Literal["initial", "refined"]


def write_person(folder: Path, photo: Photo, person: int, refined: Refined, seconds: float) -> None:
    """Writes parameters.npz, mesh.glb, overlay.png and report.json, all or none.

    Args:
        folder: Where to; replaced if it exists.
        photo: The photo.
        person: Which of its people.
        refined: What became of all people in the photo.
        seconds: Time it took for this person.
    """
    body, camera = refined.body, photo.camera()[[person]]
    initial, fitted = refined.initial[[person]], refined.parameters[[person]]
    report = _report(photo, person, refined) | {"fit_seconds": round(seconds, 4)}
    with whole_folder(folder) as temporary:
        write_estimate(temporary / "parameters.npz", fitted, camera, body.name)
        _mesh(body, fitted).export(temporary / "mesh.glb")
        if refined.rounds:
            picture = rounds_picture(photo, person, body, refined.rounds)
        else:
            picture = overlay(photo, person, body, initial, fitted, camera)
        cv2.imwrite(str(temporary / "overlay.png"), picture[..., ::-1])
        (temporary / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def overlay(
    photo: Photo, person: int, body: BodyModel, initial: BodyParameters, fitted: BodyParameters, camera: PinholeCamera
) -> Image:
    """Photo with keypoints | initial body | refined body, side by side, cut to the person's surroundings."""
    assert photo.keypoints is not None, "without the network there are keypoints"
    left, top, right, bottom = _surroundings(photo.keypoints[person], photo.pixels.shape)
    pixels = photo.pixels[top:bottom, left:right]
    scale = min(1.0, OVERLAY_HEIGHT_PX / pixels.shape[0])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    ratio = torch.tensor([[width / pixels.shape[1], height / pixels.shape[0]]])
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    corner = torch.tensor([[float(left), float(top)]])
    view = camera.crop(corner, ratio, torch.tensor([[float(width), float(height)]]))
    points = (photo.keypoints[person, :, :2] - corner.numpy()) * ratio.numpy()
    confidence = photo.keypoints[person, :, 2]
    pictures = [draw_keypoints(pixels, points, confidence, OPENPOSE25_BONES)]
    for parameters, color in ((initial, INITIAL_COLOR), (fitted, REFINED_COLOR)):
        drawn = draw_mesh(pixels, body(parameters).vertices[0], body.faces, view, color)
        pictures.append(draw_keypoints(drawn, points, confidence, OPENPOSE25_BONES))
    return panel(pictures, ["photo and keypoints", "initial", "refined"])


def _surroundings(keypoints: Float[ndarray, "25 3"], shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box about the person's keypoints with a wide margin, within the photo."""
    seen = keypoints[keypoints[:, 2] > 0, :2]
    low, high = seen.min(axis=0), seen.max(axis=0)
    margin = MARGIN * (high - low).max()
    height, width = shape[:2]
    left, top = (int(np.clip(value, 0, limit - 1)) for value, limit in zip(low - margin, (width, height), strict=True))
    right, bottom = (int(np.ceil(value)) for value in high + margin)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)


def _mesh(body: BodyModel, parameters: BodyParameters) -> trimesh.Trimesh:
    """The body in glTF's axes: the camera's with y and z turned round, so that up is up in any viewer."""
    vertices = body(parameters).vertices[0].cpu().numpy() * np.array([1.0, -1.0, -1.0], np.float32)
    return trimesh.Trimesh(vertices, body.faces.cpu().numpy(), process=False)


def _report(photo: Photo, person: int, refined: Refined) -> dict[str, object]:
    """What is said of the fit that the body is from, before and after; with the network of each round too."""
    first, fit = refined.fits[0], refined.fits[refined.decisive(person)]
    report = _fit_report(fit, person) | {
        "initial_error_px": _number(first.initial_error_px[person]),
        "initial_objective": _number(first.initial_objective[person]),
    }
    return {
        "image": str(photo.image_path),
        "person": person,
        **report,
        **_keypoint_report(photo, person, refined),
        **({"from_rest": _fit_report(refined.from_rest, person)} if refined.from_rest else {}),
        **({"rounds": [_round_report(each, person) for each in refined.rounds]} if refined.rounds else {}),
        "initial_estimate": _origin(photo, refined),
        "body_model": refined.body.name,
        "focal_px": photo.focal_px.tolist(),
        "center_px": photo.center_px.tolist(),
    }


def _fit_report(fit: FitResult, person: int) -> dict[str, object]:
    status = fit.status[person]
    return {
        "status": status.name.lower(),
        "message": status.value,
        "accepted": status.accepted,
        "initial_error_px": _number(fit.initial_error_px[person]),
        "final_error_px": _number(fit.final_error_px[person]),
        "initial_objective": _number(fit.initial_objective[person]),
        "final_objective": _number(fit.final_objective[person]),
    }


def _round_report(done: Round, person: int) -> dict[str, object]:
    return _fit_report(done.fit, person) | {
        "predicted_displacement_px": _number(done.predicted.mean_length_px()[person]),
        "vertices_seen": int((done.predicted.weight[person] > 0).sum()),
    }


def _keypoint_report(photo: Photo, person: int, refined: Refined) -> dict[str, object]:
    """Distances of the body's keypoints from the detected ones, before and after; nothing without those."""
    if photo.keypoints is None:
        return {}
    confidence = photo.keypoints[person, :, 2]
    off_px = keypoint_errors_px(photo, person, refined)["refined"]
    return {
        "sure_keypoints_mean_error_px": {
            name: None if mean is None else round(mean, 3)
            for name, mean in sure_keypoints_error_px(photo, person, refined).items()
        },
        "keypoints": {
            name: {
                "confidence": round(float(confidence[k]), 3),
                "refined_error_px": round(float(off_px[k]), 2) if confidence[k] > 0 else None,
            }
            for k, name in enumerate(OPENPOSE25)
        },
    }


def sure_keypoints_error_px(photo: Photo, person: int, refined: Refined) -> dict[State, float | None]:
    """Mean distance of a person's keypoints from those detected with confidence; None if there are none."""
    assert photo.keypoints is not None, "there are keypoints to compare with"
    sure = photo.keypoints[person, :, 2] > SURE_CONFIDENCE
    errors = keypoint_errors_px(photo, person, refined)
    return {state: float(each[sure].mean()) if sure.any() else None for state, each in errors.items()}


def keypoint_errors_px(photo: Photo, person: int, refined: Refined) -> dict[State, Float[ndarray, " keypoints"]]:
    """Distance of each of a person's keypoints from the detected one, before and after."""
    assert photo.keypoints is not None, "there are keypoints to compare with"
    seen_px, camera = photo.keypoints[person, :, :2], photo.camera()[[person]]

    def off_px(bodies: BodyParameters) -> Float[ndarray, " keypoints"]:
        points = refined.body.keypoints(refined.body(bodies[[person]]), "openpose25")
        return np.asarray(np.linalg.norm(camera.project(points)[0].numpy() - seen_px, axis=-1))

    return {"initial": off_px(refined.initial), "refined": off_px(refined.parameters)}


def _origin(photo: Photo, refined: Refined) -> str:
    if photo.initial_path:
        return str(photo.initial_path)
    rest = "rest posture, best of eight headings"
    return rest if refined.from_rest is None else f"fitted to the keypoints from {rest}"


def _number(value: torch.Tensor) -> float | None:
    number = float(value)
    return round(number, 4) if np.isfinite(number) else None
