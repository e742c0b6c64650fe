"""Which prediction is about which row of a frames file: first the image by its name, then the person by their box.

Two names mean the same image if one ends with the other, folder by folder ("seq/image_00001.jpg" and
"/data/imageFiles/seq/image_00001.jpg"), or if they share file name and folder. The suffix of an image file does not
count. Within an image, persons are assigned so that the overlaps of their boxes sum to the most.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

import numpy as np
from jaxtyping import Float, Int64, Shaped
from numpy import ndarray
from scipy.optimize import linear_sum_assignment

from datamodules.store import FrameStore

#: Boxes that overlap less (intersection over union) belong to different persons. Half of the usual 0.5 for detections
#: and less, because the margins of two square boxes about one person may differ by 1.5.
MIN_OVERLAP: Final = 0.15
#: Parts of a path that make it the same image even though the folders above differ: folder and file.
SHARED_PARTS: Final = 2
_IMAGE_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


@dataclass(frozen=True)
class Matches:
    """Pairs of rows and predictions, and what is left of each."""

    rows: Int64[ndarray, " pairs"]
    """Rows of the frames file, ascending."""
    predictions: Int64[ndarray, " pairs"]
    """The prediction of each."""
    unmatched_rows: tuple[str, ...]
    """Ids of the rows that have none."""
    unmatched_predictions: tuple[str, ...]
    """Names of the predictions that belong to no row, each with the reason."""


def find_images(image_names: Sequence[str], names: Sequence[str]) -> Int64[ndarray, " names"]:
    """The image that each name means: its index, -1 if there is none, -2 if there are several."""
    index: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    lengths = []
    for image, name in enumerate(image_names):
        parts = _parts(name)
        lengths.append(len(parts))
        for first in range(len(parts)):
            index[parts[first:]].append(image)
    known = {name: _find(_parts(name), index, lengths) for name in set(names)}
    return np.array([known[name] for name in names], np.int64)


def find_rows(frames: FrameStore, names: Sequence[str]) -> Int64[ndarray, " names"]:
    """The row that each row id means: its index, or -1."""
    index = {row_id: row for row, row_id in enumerate(frames.row_ids)}
    return np.array([index.get(name, -1) for name in names], np.int64)


def match_rows(frames: FrameStore, names: Sequence[str], rows: Int64[ndarray, " names"]) -> Matches:
    """Pairs when the rows are known by their ids; of predictions for the same row the first counts."""
    _, first = np.unique(rows, return_index=True)
    chosen = first[rows[first] >= 0]
    reasons = np.where(rows >= 0, "another one for this row came first", "no row has this id")
    return pairs_and_rest(frames, names, rows[chosen], chosen, reasons)


def match_persons(
    frames: FrameStore,
    names: Sequence[str],
    images: Int64[ndarray, " names"],
    box_px: Float[ndarray, "names 3"],
    min_overlap: float = MIN_OVERLAP,
) -> Matches:
    """Pairs of persons, image by image.

    Args:
        frames: The frames.
        names: What each prediction calls its image, for the list of what is left.
        images: What `find_images` says of the names.
        box_px: Centre x, y and side of the square box about each predicted person, in the frame's pixels.
        min_overlap: Boxes that overlap less are not paired; 0 pairs as many as there are.
    """
    predicted: defaultdict[int, list[int]] = defaultdict(list)
    for prediction, image in enumerate(images.tolist()):
        predicted[image].append(prediction)
    present: defaultdict[int, list[int]] = defaultdict(list)
    for row, image in enumerate(frames.column("image").tolist()):
        present[image].append(row)
    true_box_px = frames.column("box_px")
    pairs: list[tuple[int, int]] = []
    for image, rows in present.items():
        if image in predicted:
            overlap = square_overlap(true_box_px[rows], box_px[predicted[image]])
            for row, prediction in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
                if overlap[row, prediction] >= min_overlap:
                    pairs.append((rows[row], predicted[image][prediction]))
    found, chosen = np.array(sorted(pairs), np.int64).reshape(-1, 2).T
    reasons = np.select(
        [images == -1, images == -2],
        ["no image of this name", "several images end with this name"],
        "nobody is where its box is",
    )
    return pairs_and_rest(frames, names, found, chosen, reasons)


def square_overlap(
    first_px: Float[ndarray, "first 3"], second_px: Float[ndarray, "second 3"]
) -> Float[ndarray, "first second"]:
    """Intersection over union of square boxes (centre x, y, side); 0 where a number is not finite."""
    first, second = first_px[:, None].astype(np.float64), second_px[None].astype(np.float64)
    low = np.maximum(first[..., :2] - first[..., 2:] / 2, second[..., :2] - second[..., 2:] / 2)
    high = np.minimum(first[..., :2] + first[..., 2:] / 2, second[..., :2] + second[..., 2:] / 2)
    common = np.clip(high - low, 0, None).prod(axis=-1)
    union = first[..., 2] ** 2 + second[..., 2] ** 2 - common
    overlap = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return np.where(np.isfinite(overlap), overlap, 0)


def pairs_and_rest(
    frames: FrameStore,
    names: Sequence[str],
    rows: Int64[ndarray, " pairs"],
    predictions: Int64[ndarray, " pairs"],
    reasons: Shaped[ndarray, " names"],
) -> Matches:
    """The pairs with lists of what is left: rows by their ids, predictions by name and reason."""
    missing = np.setdiff1d(np.arange(len(frames)), rows)
    left = np.setdiff1d(np.arange(len(names)), predictions)
    return Matches(
        rows,
        predictions,
        tuple(frames.row_id(int(row)) for row in missing),
        tuple(f"{names[one]}: {reasons[one]}" for one in left),
    )


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name.replace("\\", "/"))
    stem = path.with_suffix("") if path.suffix.lower() in _IMAGE_SUFFIXES else path
    return tuple(part for part in stem.parts if part not in ("/", "."))


def _find(parts: tuple[str, ...], index: dict[tuple[str, ...], list[int]], lengths: Sequence[int]) -> int:
    for count in range(len(parts), 0, -1):
        found = index.get(parts[-count:], [])
        if found:
            whole = [image for image in found if lengths[image] == count]
            if not whole and (count == len(parts) or count >= SHARED_PARTS):
                whole = found
            return -1 if not whole else whole[0] if len(whole) == 1 else -2
    return -1
