"""OpenPose's JSON: one file per image, BODY_25 keypoints in the image's pixels.

Format: CMU-Perceptual-Computing-Lab/openpose `doc/02_output.md`; an undetected keypoint is (0, 0, 0).
"""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from bodies.errors import InputError

KEYPOINTS = 25
#: What else OpenPose writes under the same key, by its number of keypoints.
OTHER_MODELS = {18: "COCO-18", 15: "MPI-15", 135: "BODY_135"}


def read_openpose(path: Path) -> Float32[ndarray, "people 25 3"]:
    """Keypoints (x, y, confidence) of all people in a file, in full-image pixels.

    Raises:
        InputError: If the file cannot be read, holds no people, or someone has other than 25 keypoints, numbers that
            are not finite, or confidences of which none is positive.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    people = content.get("people") if isinstance(content, dict) else None
    if not isinstance(people, list):
        raise InputError(f"{path}: has no list 'people', so it is not OpenPose's output")
    if not people:
        raise InputError(f"{path}: holds no people")
    return np.stack([_keypoints(path, number, person) for number, person in enumerate(people)])


def _keypoints(path: Path, number: int, person: object) -> Float32[ndarray, "25 3"]:
    numbers = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
    if not isinstance(numbers, list):
        raise InputError(f"{path}: person {number} has no 'pose_keypoints_2d'")
    if len(numbers) != 3 * KEYPOINTS:
        count, rest = divmod(len(numbers), 3)
        found = f"{count} keypoints" if not rest else f"{len(numbers)} numbers"
        model = f" ({OTHER_MODELS[count]})" if not rest and count in OTHER_MODELS else ""
        raise InputError(f"{path}: person {number} has {found}{model}, BODY_25 has {KEYPOINTS}")
    try:
        keypoints = np.asarray(numbers, dtype=np.float32).reshape(KEYPOINTS, 3)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: person {number} has keypoints that are not numbers") from error
    if not np.isfinite(keypoints).all():
        raise InputError(f"{path}: person {number} has keypoints that are not finite")
    if (keypoints[:, 2] < 0).any():
        raise InputError(f"{path}: person {number} has a negative confidence")
    if not (keypoints[:, 2] > 0).any():
        raise InputError(f"{path}: all confidences of person {number} are zero")
    return keypoints
