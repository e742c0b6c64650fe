"""HMR+ and other models of mmhuman3d: the demo's `inference_result.npz` and dumps in its HumanData form.

    smpl          dict in a 0-d object array: body_pose (N,23,3) or (N,23,3,3), global_orient (N,3) or (N,3,3),
                  betas (N,10); or the three beside each other in the .npz
    pred_cams     (N,3)                s, tx, ty of the crop
    bboxes_xyxy   (N,4) or (N,5)       demo: corners and score; the crop's side is the larger extent times 1.25
    bbox_xywh     (N,4) or (N,5)       HumanData: corner, extent, score; the crop's side is the larger extent, no margin
    image_path    (N,) text

So the same person has another crop in the two forms. HumanData's service keys and key points are not read.

Source: open-mmlab/mmhuman3d `demo/estimate_smpl.py`, `mmhuman3d/data/data_structures/human_data.py`,
`mmhuman3d/core/conventions/cameras/convert_convention.py` and `mmhuman3d/utils/demo_utils.py` (`box2cs`).
"""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from bodies.errors import InputError
from datamodules.convert.archives import read_npz
from datamodules.convert.fields import Fields, samples_of
from datamodules.convert.generic import split_pose
from datamodules.convert.predictions import CropCameras, Predictions

#: What the demo enlarges a detection by (`box2cs`, scale_mult 1.25, aspect ratio 1).
DEMO_MARGIN: Final = 1.25
_BODY: Final = ("body_pose", "global_orient", "betas")
_KNOWN: Final = ("smpl", *_BODY, "pred_cams", "camera", "bboxes_xyxy", "bbox_xywh", "image_path")


def read_hmr_plus(path: Path) -> Predictions:
    """Reads either form.

    Raises:
        InputError: If a part is missing or has another shape; names the file. `tools/test.py` writes neither cameras
            nor image names, so its JSON cannot be used.
    """
    if path.suffix == ".json":
        raise InputError(f"{path}: has neither cameras nor image names; use the demo's .npz")
    arrays = read_npz(path, _KNOWN)
    if isinstance(arrays.get("smpl"), dict):
        arrays = {**arrays, **{name: arrays["smpl"].get(name) for name in _BODY}}
    fields = Fields(str(path), arrays)
    names = fields.texts("image_path")
    if not names:
        raise InputError(f"{path}: holds no rows")
    for name in _BODY:
        fields.need(name)
    pose = split_pose(fields, len(names))
    box = _box(fields, len(names))
    weak_camera = samples_of(fields, fields.need("pred_cams", "camera"), len(names), pose.shape[1], 3)
    betas = samples_of(fields, "betas", len(names), pose.shape[1], 10)
    return Predictions(names, False, pose, betas, CropCameras(weak_camera, box), box, None)


def _box(fields: Fields, rows: int) -> Float32[ndarray, "rows 3"]:
    """Centre and side of the square that was resized."""
    name = fields.need("bboxes_xyxy", "bbox_xywh")
    given = fields.numbers(name, (rows, 4), (rows, 5))
    corner, second = given[:, :2], given[:, 2:4]
    extent, margin = (second - corner, DEMO_MARGIN) if name == "bboxes_xyxy" else (second, 1.0)
    if (extent <= 0).any():
        kind = "corners (x1, y1, x2, y2)" if name == "bboxes_xyxy" else "(x, y, w, h)"
        raise InputError(f"{fields.where}: '{name}' holds a box without extent; {kind} was expected")
    return np.concatenate([corner + extent / 2, margin * extent.max(axis=1, keepdims=True)], axis=1)
