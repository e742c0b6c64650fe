"""What `snugfit refine` writes for each person."""

import json
from pathlib import Path

import cv2
import numpy as np
import torch
import trimesh

from bodies import BodyModel, BodyParameters, PinholeCamera
from bodies.joints import OPENPOSE25, OPENPOSE25_BONES
from bodies.safe_write import whole_folder
from commands._photos import Photo
from datamodules.estimates import write_estimate
from fitting import FromRest
from renderers.drawing import INITIAL_COLOR, REFINED_COLOR, Image, draw_keypoints, draw_mesh, panel

#: Height of the pictures in the overlay; photos are often larger than any screen.
OVERLAY_HEIGHT_PX = 1000
#: Shown around the person, as a share of their extent in the photo.
MARGIN = 0.45
#: Above this confidence a keypoint counts as sure in the report.
SURE_CONFIDENCE = 0.5


def write_person(
    folder: Path, photo: Photo, person: int, body: BodyModel, result: FromRest, fit_seconds: float
) -> None:
    """Writes parameters.npz, mesh.glb, overlay.png and report.json, all or none.

    Args:
        folder: Where to; replaced if it exists.
        photo: The photo.
        person: Which of its people.
        body: The body model of the fit.
        result: Initial and fitted bodies of all people in the photo.
        fit_seconds: Time of the fit for this person.
    """
    camera = photo.camera()[[person]]
    initial, fitted = result.initial[[person]], result.fit.parameters[[person]]
    report = _report(photo, person, body, result, camera) | {"fit_seconds": round(fit_seconds, 4)}
    with whole_folder(folder) as temporary:
        write_estimate(temporary / "parameters.npz", fitted, camera, body.name)
        _mesh(body, fitted).export(temporary / "mesh.glb")
        picture = overlay(photo, person, body, initial, fitted, camera)
        cv2.imwrite(str(temporary / "overlay.png"), picture[..., ::-1])
        (temporary / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def overlay(
    photo: Photo, person: int, body: BodyModel, initial: BodyParameters, fitted: BodyParameters, camera: PinholeCamera
) -> Image:
    """Photo with keypoints | initial body | refined body, side by side, cut to the person's surroundings."""
    left, top, right, bottom = _surroundings(photo, person)
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


def _surroundings(photo: Photo, person: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box about the person's keypoints with a wide margin, within the photo."""
    seen = photo.keypoints[person, photo.keypoints[person, :, 2] > 0, :2]
    low, high = seen.min(axis=0), seen.max(axis=0)
    margin = MARGIN * (high - low).max()
    height, width = photo.pixels.shape[:2]
    left, top = (int(np.clip(value, 0, limit - 1)) for value, limit in zip(low - margin, (width, height), strict=True))
    right, bottom = (int(np.ceil(value)) for value in high + margin)
    return left, top, min(max(right, left + 1), width), min(max(bottom, top + 1), height)


def _mesh(body: BodyModel, parameters: BodyParameters) -> trimesh.Trimesh:
    """The body in glTF's axes: the camera's with y and z turned round, so that up is up in any viewer."""
    vertices = body(parameters).vertices[0].cpu().numpy() * np.array([1.0, -1.0, -1.0], np.float32)
    return trimesh.Trimesh(vertices, body.faces.cpu().numpy(), process=False)


def _report(photo: Photo, person: int, body: BodyModel, result: FromRest, camera: PinholeCamera) -> dict[str, object]:
    fit, status = result.fit, result.fit.status[person]
    confidence = photo.keypoints[person, :, 2]
    sure = confidence > SURE_CONFIDENCE
    errors = {}
    for name, parameters in (("initial", result.initial), ("refined", fit.parameters)):
        mesh = body(parameters[[person]])
        pixels = camera.project(body.keypoints(mesh, "openpose25"))[0].numpy()
        errors[name] = np.linalg.norm(pixels - photo.keypoints[person, :, :2], axis=-1)
    return {
        "image": str(photo.image_path),
        "person": person,
        "status": status.name.lower(),
        "message": status.value,
        "accepted": status.accepted,
        "initial_error_px": _number(fit.initial_error_px[person]),
        "final_error_px": _number(fit.final_error_px[person]),
        "initial_objective": _number(fit.initial_objective[person]),
        "final_objective": _number(fit.final_objective[person]),
        "sure_keypoints_mean_error_px": {
            name: round(float(error[sure].mean()), 3) if sure.any() else None for name, error in errors.items()
        },
        "keypoints": {
            name: {
                "confidence": round(float(confidence[k]), 3),
                "refined_error_px": round(float(errors["refined"][k]), 2) if confidence[k] > 0 else None,
            }
            for k, name in enumerate(OPENPOSE25)
        },
        "initial_estimate": str(photo.initial_path) if photo.initial_path else "rest posture, best of eight headings",
        "body_model": body.name,
        "focal_px": photo.focal_px.tolist(),
        "center_px": photo.center_px.tolist(),
    }


def _number(value: torch.Tensor) -> float | None:
    number = float(value)
    return round(number, 4) if np.isfinite(number) else None
