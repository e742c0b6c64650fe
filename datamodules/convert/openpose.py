"""OpenPose's JSON: one file per image, keypoints in the image's pixels.

Format: CMU-Perceptual-Computing-Lab/openpose `doc/02_output.md`; an undetected keypoint is (0, 0, 0).
"""

import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from bodies.errors import InputError

KEYPOINTS = 25
#: What else OpenPose writes under the same key, by its number of keypoints.
OTHER_MODELS = {18: "COCO-18", 15: "MPI-15", 135: "BODY_135"}
#: COCO-18 keypoint i is keypoint `BODY25_FROM_COCO18[i]` of BODY_25; 8 is the mid hip, 19 and above are the feet.
BODY25_FROM_COCO18: Final = (*range(8), *range(9, 19))


class FoundPeople(NamedTuple):
    """The people of one file, who may be none."""

    keypoints_px: Float32[ndarray, "people 25 3"]
    """BODY_25: x, y, confidence; zeros where nothing was detected."""
    skipped: tuple[str, ...]
    """Why someone was left out."""


def read_openpose(path: Path) -> Float32[ndarray, "people 25 3"]:
    """Keypoints (x, y, confidence) of all people in a file, in full-image pixels.

    Raises:
        InputError: If the file cannot be read, holds no people, or someone has other than 25 keypoints, numbers that
            are not finite, or confidences of which none is positive.
    """
    people = _people(path)
    if not people:
        raise InputError(f"{path}: holds no people")
    keypoints = [_keypoints(path, number, person, (KEYPOINTS,)) for number, person in enumerate(people)]
    for number, one in enumerate(keypoints):
        if problem := _problem(one):
            raise InputError(f"{path}: {problem.format(person=f'person {number}')}")
    return np.stack(keypoints)


def read_people(path: Path) -> FoundPeople:
    """Whoever was found in an image, in BODY_25 or COCO-18, which becomes BODY_25 without mid hip and feet.

    A file without people is no error, and someone without a usable keypoint costs nobody else.

    Raises:
        InputError: If the file cannot be read, is not OpenPose's, or someone has another number of keypoints.
    """
    kept, skipped = [], []
    for number, person in enumerate(_people(path)):
        keypoints = _keypoints(path, number, person, (KEYPOINTS, len(BODY25_FROM_COCO18)))
        if problem := _problem(keypoints):
            skipped.append(problem.format(person=f"person {number}"))
            continue
        keypoints = np.where(keypoints[:, 2:] > 0, keypoints, 0)
        if len(keypoints) != KEYPOINTS:
            coco, keypoints = keypoints, np.zeros((KEYPOINTS, 3), np.float32)
            keypoints[list(BODY25_FROM_COCO18)] = coco
        kept.append(keypoints)
    return FoundPeople(np.array(kept, np.float32).reshape(-1, KEYPOINTS, 3), tuple(skipped))


def _people(path: Path) -> list[object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise InputError(f"{path}: has no list 'people', so it is not OpenPose's output")
    return people


def _keypoints(path: Path, number: int, person: object, counts: tuple[int, ...]) -> Float32[ndarray, "keypoints 3"]:
    numbers = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    if not isinstance(numbers, list):
        raise InputError(f"{path}: person {number} has no 'pose_keypoints_2d'")
    if len(numbers) not in [3 * count for count in counts]:
        count, rest = divmod(len(numbers), 3)
        found = f"{count} keypoints" if not rest else f"{len(numbers)} numbers"
        model = f" ({OTHER_MODELS[count]})" if not rest and count in OTHER_MODELS else ""
        raise InputError(f"{path}: person {number} has {found}{model}, BODY_25 has {KEYPOINTS}")
    try:
        return np.asarray(numbers, dtype=np.float32).reshape(-1, 3)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: person {number} has keypoints that are not numbers") from error


def _problem(keypoints: Float32[ndarray, "keypoints 3"]) -> str | None:
    """Why someone's keypoints cannot be used, with {person} in place of who it is."""
    if not np.isfinite(keypoints).all():
        return "{person} has keypoints that are not finite"
    if (keypoints[:, 2] < 0).any():
        return "{person} has a negative confidence"
    if not (keypoints[:, 2] > 0).any():
        return "all confidences of {person} are zero"
    return None
