"""PARE's results: the video demo's tracks, the image demo's files, and the evaluation's arrays.

* Video: `<video>_<experiment>/pare_output.pkl`, {track: {pose, betas, pred_cam, bboxes, frame_ids, ...}}.
* Images: `pare_results/<image stem>.pkl`, {pred_pose, pred_shape, pred_cam, bboxes, ...} with one entry per person. The
  demo replaces the image's extension by plain substitution, everywhere in the name: `jpg_1.jpg` -> `pkl_1.pkl`.
* Evaluation: `evaluation_results_<dataset>.pkl` with `TESTING.SAVE_RESULTS`, or an .npz of the same arrays, also
  SPIN's `--result_file`: {pose, shape or betas, cam or camera} in the order of the dataset's npz, which has the boxes.

All cameras are those of crops. The demo's boxes are (cx, cy, w, h) with w = h the side that was resized, margin
included; the evaluation's are `center` and `scale` = side / 200 in the dataset's npz. Poses are matrices or
axis-angle.

Source: mkocabas/PARE `pare/core/tester.py`, `pare/utils/demo_utils.py`, `pare/core/trainer.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32
from numpy import ndarray
from rich.progress import track

from bodies.errors import InputError
from datamodules.convert.archives import read_joblib, read_npz
from datamodules.convert.fields import Fields, box_of, pose_of, samples_of
from datamodules.convert.predictions import CropCameras, Predictions
from datamodules.store import FrameStore

VIDEO_FILE: Final = "pare_output.pkl"
IMAGE_FOLDER: Final = "pare_results"
#: Width and height of a box may differ by rounding.
_SQUARE_TOLERANCE: Final = 1e-3
_EVALUATION: Final = ("imgname", "pose", "shape", "betas", "cam", "camera")


def read_pare(
    source: Path,
    frames: FrameStore,
    *,
    boxes: Path | None = None,
    sequence: str | None = None,
    first_frame: int = 0,
) -> Predictions:
    """Reads any of the three forms; folders are searched for files of the demos.

    Args:
        source: A file, or a folder above `pare_output.pkl` or `pare_results/`.
        frames: Tells which image a frame of a video is, and what an image file is called.
        boxes: The dataset's npz (imgname, center, scale), for the evaluation's arrays.
        sequence: Which sequence a video is; by default the one that its folder is named after.
        first_frame: Number, in the frames file, of the video's first frame.

    Raises:
        InputError: If nothing is found or a file is damaged or of another form; names the file.
    """
    if source.is_dir():
        videos = sorted(source.rglob(VIDEO_FILE))
        if videos:
            return joined([_video(path, read_joblib(path), frames, sequence, first_frame) for path in videos])
        files = sorted(path for path in source.rglob("*.pkl") if not path.name.startswith("evaluation_results"))
        if not files:
            raise InputError(f"{source}: no {VIDEO_FILE} and no .pkl files of PARE in it")
        names = _image_names(frames)
        shown = track(files, "reading PARE's files", transient=True, disable=len(files) < 200)
        return joined([_image(path, read_joblib(path), source, names) for path in shown])
    if source.suffix == ".npz":
        return _evaluation(source, read_npz(source, _EVALUATION), boxes)
    content = read_joblib(source)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{source}: is not PARE's output, it holds no dict or an empty one")
    if all(isinstance(value, dict) for value in content.values()):
        return joined([_video(source, content, frames, sequence, first_frame)])
    if "pred_pose" in content:
        return joined([_image(source, content, source.parent, _image_names(frames))])
    return _evaluation(source, content, boxes)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Results of several files of the same kind, one sample and a crop camera each, end to end."""
    cameras = [part.camera for part in parts if isinstance(part.camera, CropCameras)]
    boxes = np.concatenate([camera.box_px for camera in cameras])
    sizes = [part.image_size_px for part in parts]
    # A size of NaN differs from nothing, like one that is not known.
    known = [np.full((len(p), 2), np.nan, np.float32) if s is None else s for p, s in zip(parts, sizes, strict=True)]
    return Predictions(
        tuple(name for part in parts for name in part.names),
        parts[0].named_by_row,
        np.concatenate([part.pose for part in parts]),
        np.concatenate([part.betas for part in parts]),
        CropCameras(np.concatenate([camera.weak_camera for camera in cameras]), boxes),
        boxes,
        None if all(size is None for size in sizes) else np.concatenate(known),
    )


def _video(path: Path, content: object, frames: FrameStore, sequence: str | None, first_frame: int) -> Predictions:
    if not isinstance(content, dict) or not content or not all(isinstance(t, dict) for t in content.values()):
        raise InputError(f"{path}: is not PARE's video output, a dict of tracks")
    images = _images_of_sequence(path, frames, sequence)
    parts = []
    for track_id, arrays in content.items():
        fields = Fields(f"{path} (track {track_id})", arrays)
        numbers = fields.numbers("frame_ids", (None,)).astype(int) + first_frame
        names = [images.get(number, f"{path.parent.name}: frame {number}") for number in numbers.tolist()]
        parts.append(_demo(fields, names, "pose", "betas"))
    return joined(parts)


def _image(path: Path, content: object, root: Path, names: Mapping[str, list[str]]) -> Predictions:
    if not isinstance(content, dict) or "pred_pose" not in content:
        raise InputError(f"{path}: is not PARE's image output, it has no 'pred_pose'")
    folder = [part for part in path.relative_to(root).parts[:-1] if part != IMAGE_FOLDER]
    # Folders of the results, if there are any, tell images of the same name in different folders apart.
    candidates = names.get(path.name, [])
    within = [name for name in candidates if Path(name).parts[:-1][-len(folder) :] == tuple(folder)] if folder else []
    base = Path((within or candidates or [path.stem])[0]).name
    name = within[0] if len(within) == 1 else "/".join([*folder, base])
    fields = Fields(str(path), content)
    people = len(fields.numbers("pred_cam", (None, 3)))
    return _demo(fields, [name] * people, "pred_pose", "pred_shape")


def _demo(fields: Fields, names: Sequence[str], pose: str, betas: str) -> Predictions:
    rows = len(names)
    weak_camera = fields.numbers("pred_cam", (rows, 3))
    box = fields.numbers("bboxes", (rows, 4))
    width, height = box[:, 2], box[:, 3]
    if (np.abs(width - height) > _SQUARE_TOLERANCE * np.abs(width)).any() or (width <= 0).any():
        raise InputError(
            f"{fields.where}: 'bboxes' are not square: (cx, cy, w, h) with w = h was expected, not corners"
        )
    return Predictions(
        tuple(names),
        False,
        pose_of(fields, pose, rows),
        samples_of(fields, betas, rows, 1, 10),
        CropCameras(weak_camera[:, None], box[:, :3]),
        box[:, :3],
        _image_size(fields, weak_camera, width) if fields.name("orig_cam") else None,
    )


def _image_size(
    fields: Fields, weak_camera: Float32[ndarray, "rows 3"], side_px: Float32[ndarray, " rows"]
) -> Float32[ndarray, "rows 2"]:
    """Size of the image that PARE saw: sx = s b / W and sy = s b / H (`convert_crop_cam_to_orig_img`)."""
    scale = fields.numbers("orig_cam", (len(side_px), 4))[:, :2]
    size = (weak_camera[:, :1] * side_px[:, None]).astype(np.float64)
    ratio = np.divide(size, scale, out=np.full(scale.shape, np.nan), where=scale != 0)
    rounded: ndarray = np.round(ratio).astype(np.float32)
    return np.where(rounded > 0, rounded, np.nan)


def _evaluation(path: Path, arrays: Mapping[str, Any], boxes: Path | None) -> Predictions:
    fields = Fields(str(path), arrays)
    if fields.name("pose") is None:
        raise InputError(f"{path}: has no 'pose'; PARE's evaluation writes it with TESTING.SAVE_RESULTS")
    if boxes is None:
        raise InputError(f"{path}: has crop cameras without boxes; give the dataset's npz (imgname, center, scale)")
    dataset = Fields(str(boxes), read_npz(boxes, ("imgname", "center", "scale")))
    names = dataset.texts("imgname")
    box = box_of(dataset, len(names))
    if box is None:
        raise InputError(f"{boxes}: has no 'center' and 'scale', the boxes of the crops")
    count = len(fields.arrays["pose"])
    if count != len(names):
        raise InputError(f"{path}: has {count} rows, but {boxes} has {len(names)}")
    if fields.name("imgname") and [Path(n).name for n in fields.texts("imgname")] != [Path(n).name for n in names]:
        raise InputError(f"{path}: its images are not in the order of {boxes}")
    weak_camera = fields.numbers(fields.need("cam", "camera"), (count, 3))
    betas = samples_of(fields, fields.need("shape", "betas"), count, 1, 10)
    return Predictions(
        names, False, pose_of(fields, "pose", count), betas, CropCameras(weak_camera[:, None], box), box, None
    )


def _images_of_sequence(path: Path, frames: FrameStore, sequence: str | None) -> dict[int, str]:
    """Image name of each frame number of the sequence that a video is."""
    folder = path.parent.name
    if sequence is not None:
        found = [sequence] if sequence in frames.sequences else []
    else:
        # The demo's folder is named <video>_<experiment>; of sequences that fit the longest name counts.
        last = {name: name.rpartition("/")[2] for name in frames.sequences}
        fitting = [name for name, end in last.items() if folder == end or folder.startswith(f"{end}_")]
        longest = max((len(last[name]) for name in fitting), default=0)
        found = [name for name in fitting if len(last[name]) == longest]
        found = found or (list(frames.sequences) if len(frames.sequences) == 1 else [])
    if len(found) != 1:
        asked = f"no sequence {sequence!r}" if sequence else f"no single sequence that the folder {folder!r} names"
        raise InputError(f"{path}: {frames.path} has {asked}; say which (sequence), it has {_some(frames.sequences)}")
    rows = np.flatnonzero(frames.column("sequence") == frames.sequences.index(found[0]))
    names, images, numbers = frames.image_names, frames.column("image")[rows], frames.column("frame")[rows]
    return {int(number): names[image] for number, image in zip(numbers, images, strict=True)}


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _image_names(frames: FrameStore) -> dict[str, list[str]]:
    """Images by what the demo calls their results."""
    names: dict[str, list[str]] = {}
    for name in frames.image_names:
        path = Path(name)
        extension = path.suffix.lstrip(".")
        result = path.name.replace(extension, "pkl") if extension else f"{path.name}.pkl"
        names.setdefault(result, []).append(name)
    return names
