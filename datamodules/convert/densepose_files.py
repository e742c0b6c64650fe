"""Reads what DensePose says of people: detectron2's dump, and annotations in COCO's form.

* `apply_net.py dump` writes a list with a dict per image, by `torch.save` although its documentation opens it with
  pickle: file_name, scores (N,), pred_boxes_XYXY (N, 4), and for each person a `DensePoseChartResultWithConfidences`
  of labels (h, w), 0 to 24, and uv (2, h, w), 0 to 1. They begin at the corner of the box with the fraction cut off.
  The tensors may be those of a GPU. The file is read with a stand-in for that one class and with nothing run.
* COCO annotations hold dp_x, dp_y in 256ths of the box, dp_I, dp_U and dp_V. (DensePose's first notebook divides by
  255; detectron2, followed here, by 256. That is 0.4 % of the box.)
* Results of continuous surface embeddings (CSE) refer to another mesh and are refused, as are IUV images, which do not
  tell people apart.

Sources: facebookresearch/detectron2 `projects/DensePose/apply_net.py`, `densepose/structures/chart_result.py`,
`densepose/converters/base.py`, `densepose/structures/data_relative.py`.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from torch import Tensor

from bodies.errors import InputError, one_line
from datamodules.convert.surface_atlas import PARTS

#: Side of the grid in which annotated points are counted.
ANNOTATION_GRID: Final = 256.0
#: How far outside 0..1 a chart coordinate may be.
_UV_SLACK: Final = 0.01
#: A result's size may differ from its box's by the fractions that were cut off.
_SIZE_SLACK_PX: Final = 2
_DUMPS: Final = (".pkl", ".pt", ".pth")


class SurfacePerson(NamedTuple):
    """Pixels of one person with what they show of the surface."""

    name: str
    """What the source calls the image."""
    position_px: Float32[ndarray, "points 2"]
    """Where they are in the full image."""
    part: Int64[ndarray, " points"]
    """Body parts, 1 to 24."""
    uv: Float64[ndarray, "points 2"]
    """Places in the part's chart, 0 to 1."""


class _ChartResult:
    """Stands for detectron2's result class: what the file sets on it is tensors."""

    labels: Tensor
    uv: Tensor


_RESULT_NAMES: Final = tuple(
    (_ChartResult, f"densepose.structures.{module}{name}")
    for module in ("", "chart_result.")
    for name in ("DensePoseChartResult", "DensePoseChartResultWithConfidences")
)


def surface_files(source: Path) -> tuple[Path, ...]:
    """The dumps and annotations that a path means: itself, or those in a folder and below.

    Raises:
        InputError: If there is none.
    """
    if source.is_file():
        return (source,)
    files = sorted(source.rglob("*")) if source.is_dir() else []
    known = tuple(file for file in files if file.suffix.lower() in (*_DUMPS, ".json"))
    if not known:
        if any(file.name.endswith("_IUV.png") for file in files):
            raise InputError(f"{source}: IUV images do not tell people apart; give the dump of detectron2 (.pkl)")
        raise InputError(f"{source}: there is no dump of detectron2 (.pkl) and no annotation file (.json)")
    return known


def read_surface_file(path: Path, most: int, min_score: float) -> Iterator[SurfacePerson | str]:
    """The people of a file, or why one of them was left out.

    Args:
        path: A dump or annotations.
        most: How many points to keep of each person, drawn at random, the same ones in every run.
        min_score: People with a lower score are left out.

    Raises:
        InputError: If the file is damaged or of another format.
    """
    match path.suffix.lower():
        case ".json":
            yield from _annotated(path, most)
        case ".pkl" | ".pt" | ".pth":
            for entry in _dump(path):
                yield from _detected(path, entry, most, min_score)
        case _:
            raise InputError(f"{path}: expected was a dump of detectron2 (.pkl) or annotations (.json)")


def _dump(path: Path) -> list[Any]:
    try:
        with torch.serialization.safe_globals(list(_RESULT_NAMES)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except Exception as error:  # torch and pickle raise nearly anything for a damaged file
        names = re.search(r"GLOBAL ([\w.]+)", str(error))
        if names is None:
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"{path}: not a whole file of torch.save ({first})") from error
        kind = " (continuous surface embeddings; a model with charts is needed)" if ".cse" in names[1] else ""
        raise InputError(f"{path}: refused, it names {names[1]}{kind}; nothing was run") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) and "file_name" in entry for entry in content):
        raise InputError(f"{path}: not detectron2's dump, a list with a dict for each image")
    return content


def _detected(path: Path, entry: Mapping[str, Any], most: int, min_score: float) -> Iterator[SurfacePerson | str]:
    name = str(entry["file_name"])
    scores, boxes = entry.get("scores"), entry.get("pred_boxes_XYXY")
    if not isinstance(scores, Tensor) or not isinstance(boxes, Tensor) or boxes.shape != (len(scores), 4):
        raise InputError(f"{path}: {name} has no scores and pred_boxes_XYXY of one length")
    results = entry.get("pred_densepose", [])
    if len(results) != len(scores):
        raise InputError(f"{path}: {name} has {len(scores)} boxes and {len(results)} results of DensePose")
    for number, (score, box, result) in enumerate(zip(scores.tolist(), boxes, results, strict=True)):
        where = f"{name}: person {number}"
        if not score >= min_score:
            yield f"{where} has a score below {min_score:g}"
            continue
        labels, uv = getattr(result, "labels", None), getattr(result, "uv", None)
        if not isinstance(labels, Tensor) or not isinstance(uv, Tensor) or uv.shape != (2, *labels.shape):
            raise InputError(f"{path}: {where} has no labels (h, w) and uv (2, h, w)")
        yield _of_result(name, where, box.double().numpy(), labels.numpy(), uv.double().numpy(), most)


def _of_result(
    name: str, where: str, box_px: ndarray, labels: ndarray, uv: Float64[ndarray, "2 height width"], most: int
) -> SurfacePerson | str:
    if not np.isfinite(box_px).all():
        return f"{where} has a box that is not finite"
    size_px = np.array(labels.shape[::-1])
    if (np.abs(box_px[2:] - box_px[:2] - size_px) > _SIZE_SLACK_PX).any():
        return f"{where} has labels of {tuple(size_px.tolist())} pixels, which are not those of its box"
    rows, columns = np.nonzero(labels)
    rows, columns = _thinned(where, most, rows, columns)
    # The corner with its fraction cut off, and from there to the middle of each pixel.
    position_px = np.trunc(box_px[:2]) + np.stack([columns, rows], axis=1) + 0.5
    return _person(name, where, position_px, labels[rows, columns], uv[:, rows, columns].T)


def _annotated(path: Path, most: int) -> Iterator[SurfacePerson | str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
        annotations = content["annotations"]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not JSON: {one_line(error)}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not annotations in COCO's form, with 'images' and 'annotations'") from error
    for number, annotation in enumerate(annotations):
        if "dp_x" not in annotation:
            continue  # COCO has points for some people only
        where = f"{path}: annotation {annotation.get('id', number)}"
        if "dp_vertex" in annotation:
            raise InputError(
                f"{where} is about vertices (dp_vertex, CSE); points of charts (dp_I, dp_U, dp_V) are needed"
            )
        if annotation.get("image_id") not in names:
            yield f"{where} is of an image that is not listed"
            continue
        yield _of_annotation(names[annotation["image_id"]], where, annotation, most)


def _of_annotation(name: str, where: str, annotation: Mapping[str, Any], most: int) -> SurfacePerson | str:
    try:
        x, y, part, u, v = (np.asarray(annotation[f"dp_{key}"], np.float64) for key in ("x", "y", "I", "U", "V"))
        box_px = np.asarray(annotation["bbox"], np.float64)
    except KeyError as error:
        raise InputError(f"{where} lacks {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} holds points or a box that are not numbers") from error
    if not (x.ndim == 1 and x.shape == y.shape == part.shape == u.shape == v.shape) or box_px.shape != (4,):
        raise InputError(f"{where} has dp_x, dp_y, dp_I, dp_U and dp_V of different lengths, or a box of other than 4")
    (kept,) = _thinned(where, most, np.arange(len(x)))
    position_px = box_px[:2] + np.stack([x, y], axis=1)[kept] / ANNOTATION_GRID * box_px[2:]
    return _person(name, where, position_px, part[kept], np.stack([u, v], axis=1)[kept])


def _thinned(where: str, most: int, *indices: Int64[ndarray, " points"]) -> tuple[Int64[ndarray, " chosen"], ...]:
    """The same `most` entries of each array, drawn without bias; all if there are no more."""
    count = len(indices[0])
    if count <= most:
        return indices
    rng = np.random.default_rng(zlib.crc32(where.encode()))
    chosen = np.sort(rng.permutation(count)[:most])
    return tuple(index[chosen] for index in indices)


def _person(name: str, where: str, position_px: ndarray, part: ndarray, uv: ndarray) -> SurfacePerson | str:
    if not len(part):
        return f"{where} has no point on the body"
    if not (np.isfinite(position_px).all() and np.isfinite(uv).all()):
        return f"{where} has a number that is not finite"
    if part.min() < 1 or part.max() > PARTS or (part != np.round(part)).any():
        return f"{where} has parts {part.min():g} to {part.max():g}, DensePose counts 1 to {PARTS}"
    if uv.min() < -_UV_SLACK or uv.max() > 1 + _UV_SLACK:
        return f"{where} has chart coordinates of {uv.min():g} to {uv.max():g}, expected was 0 to 1"
    return SurfacePerson(
        name, position_px.astype(np.float32), part.astype(np.int64), np.clip(uv, 0, 1).astype(np.float64)
    )
