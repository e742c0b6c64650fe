"""The stand-in body: bake it anew, or show any body."""

from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from scipy.spatial.transform import Rotation
from torch import Tensor

from bodies import BodyModel, BodyParameters, InputError, PinholeCamera
from bodies.joints import OPENPOSE25_BONES, SMPL24
from bodies.model_files import STAND_INS, load_body_model
from bodies.safe_write import whole_file
from bodies.standin import TOPOLOGIES, bake_with_report, save_body
from renderers.drawing import Color, Image, contact_sheet, draw_keypoints, draw_mesh, panel

#: The camera that looks at the body: so far away that perspective hardly shows, with 2.2 m across the picture's height.
DISTANCE_M: Final = 12.0
FRAME_HEIGHT_M: Final = 2.2
HEIGHT_PX: Final = 420
#: The same for close-ups of face and feet, which need not show more than half a metre.
CLOSE_UP_M: Final = 0.5
CLOSE_UP_ASPECT: Final = 0.8
#: Free space beside the body.
MARGIN_M: Final = 0.15
BACKGROUND: Final[Color] = (246, 246, 244)
SHAPES_SHOWN: Final = 5
SHAPE_RANGE: Final = 2.0
PICTURE_SUFFIXES: Final = (".png", ".jpg")

#: Axis-angle in degrees of the joints that turn: left ones, mirrored for the right side, unless the right one is named.
#: A joint with two entries turns about them in that order, both about fixed axes.
_Turn = tuple[tuple[float, float, float], ...]
POSES: Final[dict[str, dict[str, _Turn]]] = {
    "stand": {"left_shoulder": ((0, 0, -72),), "left_elbow": ((0, -12, 0),)},
    "walk": {
        "left_hip": ((-28, 0, 0),), "right_hip": ((18, 0, 0),), "left_knee": ((8, 0, 0),), "right_knee": ((38, 0, 0),),
        "left_ankle": ((8, 0, 0),), "right_ankle": ((12, 0, 0),),
        "left_shoulder": ((0, 0, -72), (22, 0, 0)), "right_shoulder": ((0, 0, 72), (-28, 0, 0)),
        "left_elbow": ((0, -20, 0),), "right_elbow": ((0, 35, 0),),
    },
    "sit": {
        "left_hip": ((-88, 0, 0), (0, 8, 0)), "left_knee": ((88, 0, 0),),
        "left_shoulder": ((0, 0, -70), (-15, 0, 0)), "left_elbow": ((0, -75, 0),),
    },
    "arms up": {"left_collar": ((0, 0, 20),), "left_shoulder": ((0, 0, 55),)},
    "squat": {
        "left_hip": ((-115, 0, 0), (0, 22, 0)), "left_knee": ((125, 0, 0),), "left_ankle": ((-10, 0, 0),),
        "spine1": ((25, 0, 0),), "spine2": ((15, 0, 0),), "neck": ((-12, 0, 0),), "left_shoulder": ((0, -75, 0),),
    },
}  # fmt: skip


class View(NamedTuple):
    """Where the camera stands. It sees the body's front at turn 0, its left side at turn 90, its top at pitch 90."""

    turn_deg: float = 0.0
    pitch_deg: float = 0.0
    target: Float[Tensor, " 3"] | None = None
    """The point in the middle of a close-up; without one the whole body is seen."""


def bake(out: Path | None = None, seed: int = 0) -> None:
    """Bakes the stand-in body, full and tiny, from the package anny into SMPL's layout.

    Needs the extra `bake`. The first run of a version of anny builds its cache, for one or two minutes. The same
    versions and seed give the same files.

    Args:
        out: Folder for standin.npz and standin_tiny.npz; by default they replace those that ship with the project.
        seed: Of the persons and poses that the body is made from.

    Raises:
        InputError: If the extra `bake` is not installed, or the seed is negative.
    """
    if seed < 0:
        raise InputError(f"seed {seed}: it cannot be negative")
    console = Console()
    table = Table("body", "vertices", "kB", "worst joint", "its mean error, mm", "variance explained", title="Baked")
    for name, topology in TOPOLOGIES.items():
        path = STAND_INS[name] if out is None else out / STAND_INS[name].name
        with console.status(f"baking {name}"):
            data, report = bake_with_report(topology, seed)
        save_body(data, path, report)
        worst = int(report.joint_error_mm.argmax())
        table.add_row(
            name,
            str(len(data.template)),
            f"{path.stat().st_size / 1000:.0f}",
            SMPL24[worst],
            f"{report.joint_error_mm[worst]:.2f}",
            f"{report.explained_variance.sum():.2%}",
        )
        console.print(f"wrote {path}")
    console.print(table)


def show(body: str = "standin", out: Path = Path("body.png")) -> None:
    """Draws a body from all sides, in a few poses and shapes, with its keypoints.

    Args:
        body: "standin", "standin-tiny", or the path of an SMPL .pkl or .npz file.
        out: The picture to write, .png or .jpg.

    Raises:
        InputError: If there is no such body, or the picture has another suffix.
    """
    if out.suffix.lower() not in PICTURE_SUFFIXES:
        raise InputError(f"{out}: the picture is written as {' or '.join(PICTURE_SUFFIXES)}")
    model = load_body_model(body)
    console = Console()
    with console.status(f"drawing {model.name}"):
        rest = model.rest_parameters()
        rows = [_turntable(model, rest), _close_ups(model, rest), _poses(model), *_shapes(model)]
        picture = contact_sheet(rows, columns=1)
    with whole_file(out) as temporary:
        cv2.imwrite(str(temporary), picture[..., ::-1])
    console.print(f"wrote {out}")


def _turntable(model: BodyModel, rest: BodyParameters) -> Image:
    turns = {"front": 0.0, "": 45.0, "left side": 90.0, "back": 180.0, "right side": 270.0}
    plain = [_draw(model, rest, View(turn)) for turn in turns.values()]
    keyed = [_draw(model, rest, View(turn), keypoints=True) for turn in (0.0, 90.0)]
    return panel([*plain, *keyed], [*turns, "keypoints", ""])


def _close_ups(model: BodyModel, rest: BodyParameters) -> Image:
    at = dict(zip(SMPL24, model(rest).joints[0], strict=True))
    left, right = ((at[f"{side}_ankle"] + at[f"{side}_foot"]) / 2 for side in ("left", "right"))
    views = {
        "head": View(target=at["head"]),
        "head, left": View(90.0, target=at["head"]),
        "feet from above": View(0.0, 50.0, (left + right) / 2),
        "left foot": View(90.0, target=left),
        "left hand from above": View(0.0, 80.0, at["left_hand"]),
    }
    return panel([_draw(model, rest, view, keypoints=True) for view in views.values()], list(views))


def _poses(model: BodyModel) -> Image:
    images, captions = [], []
    for name, turns in POSES.items():
        parameters = _posed(model, turns)
        images += [_draw(model, parameters, View(25.0)), _draw(model, parameters, View(100.0), keypoints=True)]
        captions += [name, ""]
    return panel(images, captions)


def _shapes(model: BodyModel) -> list[Image]:
    rows = []
    for view in (View(0.0), View(90.0)):
        images, captions = [], []
        for component in range(min(SHAPES_SHOWN, model.num_betas)):
            for value in (-SHAPE_RANGE, SHAPE_RANGE):
                parameters = _posed(model, POSES["stand"])
                parameters.betas[0, component] = value
                images.append(_draw(model, parameters, view))
                captions.append(f"beta {component} {value:+.0f}")
        rows.append(panel(images, captions))
    return rows


def _posed(model: BodyModel, turns: dict[str, _Turn]) -> BodyParameters:
    parameters = model.rest_parameters()
    for joint, name in enumerate(SMPL24):
        left = name.replace("right_", "left_")
        degrees = turns.get(name, turns.get(left))
        if degrees is None:
            continue
        # The mirror image of a rotation about (x, y, z) is one about (x, -y, -z).
        mirror = np.array([1.0, -1.0, -1.0]) if name not in turns else 1.0
        rotation = Rotation.identity()
        for turn in degrees:
            rotation = Rotation.from_rotvec(np.array(turn) * mirror, degrees=True) * rotation
        parameters.rotations[0, joint] = torch.from_numpy(rotation.as_matrix()).float()
    return parameters


def _draw(model: BodyModel, parameters: BodyParameters, view: View, keypoints: bool = False) -> Image:
    """One picture of one person without translation, with openpose25 if that is wanted and the body has it."""
    mesh = model(parameters)
    # From y up to the camera's y down: half a turn about x, after the turn about y that shows the wanted side.
    rotation = Rotation.from_euler("yx", [-view.turn_deg, 180 + view.pitch_deg], degrees=True).as_matrix()
    to_camera = torch.from_numpy(rotation).float()
    vertices = mesh.vertices[0] @ to_camera.T
    if view.target is None:
        low, high = vertices.amin(dim=0), vertices.amax(dim=0)
        center, width_m, frame_m = (low + high) / 2, float(high[0] - low[0]) + MARGIN_M, FRAME_HEIGHT_M
    else:
        center, width_m, frame_m = to_camera @ view.target, CLOSE_UP_ASPECT * CLOSE_UP_M, CLOSE_UP_M
    width = round(HEIGHT_PX * width_m / frame_m)
    camera = _camera(width, HEIGHT_PX * DISTANCE_M / frame_m)
    shift = torch.tensor([0.0, 0.0, DISTANCE_M]) - center
    image = np.full((HEIGHT_PX, width, 3), BACKGROUND, np.uint8)
    image = draw_mesh(image, vertices + shift, model.faces, camera, alpha=1.0)
    if keypoints and "openpose25" in model.keypoint_sets:
        points = model.keypoints(mesh, "openpose25")[0] @ to_camera.T + shift
        image = draw_keypoints(image, camera.project(points[None])[0].numpy(), bones=OPENPOSE25_BONES)
    return image


def _camera(width_px: int, focal_px: float) -> PinholeCamera:
    size = torch.tensor([[float(width_px), float(HEIGHT_PX)]])
    return PinholeCamera(torch.full((1, 2), focal_px), size / 2, size)
