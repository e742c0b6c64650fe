"""ProHMR's samples through a dump of ours, as its repository writes none; docs/importers.md says how.

    imgname       (N,) text
    center, scale (N,2), (N,)          the box that was resized to 224: its centre, and its side in pixels (ProHMR's
                                       data sets) or divided by 200 (SPIN's)
    rotmats       (N,64,24,3,3)        global_orient and body_pose, concatenated
    pose_6d       (N,64,144)           instead of rotmats: pred_pose_6d, column after column
    betas         (N,64,10) or (N,10)  the same for all samples of an image
    pred_cam      (N,64,3) or (N,3)    likewise; s, tx, ty of the crop
    log_prob      (N,64)               optional

Sample 0 is the mode (z = 0), the others are drawn. The flow is volume-preserving up to a constant, so the mode has the
greatest log_prob; a dump whose samples were reordered is noticed by that.

Source: nkolot/ProHMR `prohmr/models/prohmr.py`, `prohmr/utils/geometry.py`, `prohmr/datasets/image_dataset.py`.
"""

from pathlib import Path

import numpy as np

from bodies.errors import InputError
from datamodules.convert.archives import read_npz
from datamodules.convert.fields import Fields, box_of, samples_of
from datamodules.convert.lazy_pose import lazy_pose_of
from datamodules.convert.predictions import CropCameras, Predictions

_KNOWN = ("imgname", "center", "scale", "box_px", "rotmats", "pose_6d", "betas", "pred_cam", "log_prob")
#: log_prob is float32 and some hundreds large: the mode may lose to a draw beside it by this.
_LOG_PROB_SLACK = 1e-2


def read_prohmr(path: Path) -> Predictions:
    """Reads the dump; what is large in it stays in the file until a row is asked for.

    Raises:
        InputError: If a part is missing or has another shape, or sample 0 is not the mode; names the file.
    """
    fields = Fields(str(path), read_npz(path, _KNOWN, mapped=True))
    names = fields.texts("imgname")
    if not names:
        raise InputError(f"{path}: holds no rows")
    pose = lazy_pose_of(fields, fields.need("rotmats", "pose_6d"), len(names), "columns")
    samples = pose.shape[1]
    box = box_of(fields, len(names))
    if box is None:
        raise InputError(f"{path}: has no 'center' and 'scale', the boxes of the crops")
    if fields.name("log_prob"):
        log_prob = fields.numbers("log_prob", (len(names), samples))
        below = np.mean(log_prob.max(axis=1) > log_prob[:, 0] + _LOG_PROB_SLACK)
        if below > 0.5:
            raise InputError(f"{path}: sample 0 is not the mode, other samples have a greater log_prob")
    betas = samples_of(fields, "betas", len(names), samples, 10)
    weak_camera = samples_of(fields, "pred_cam", len(names), samples, 3)
    return Predictions(names, False, pose, betas, CropCameras(weak_camera, box), box, None)
