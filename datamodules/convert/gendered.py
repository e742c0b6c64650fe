"""The joints of the body models of the genders that a data set has."""

from collections.abc import Iterable
from pathlib import Path

from bodies.model_files import STAND_INS, Gender, load_rest_joints
from bodies.rest_joints import RestJoints


def load_gendered(body: Path, genders: Iterable[Gender]) -> dict[Gender, RestJoints]:
    """The joints of each gender's body; a stand-in, which is one body for all, is read once.

    Args:
        body: The folder with the models, a file in it, or the name of a stand-in.
        genders: Which ones.

    Raises:
        InputError: If one is missing or damaged.
    """
    if str(body) in STAND_INS:
        return dict.fromkeys(genders, load_rest_joints(body))
    return {gender: load_rest_joints(body, gender) for gender in genders}
