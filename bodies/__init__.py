"""What a body is and the camera that sees it: SMPL-layout models, joint sets, pinhole cameras."""

from bodies.body_model import BodyMesh, BodyModel, BodyParameters, PosedJoints, ShapedBody
from bodies.camera import PinholeCamera
from bodies.errors import InputError
from bodies.model_data import BodyModelData, TextureLayout
from bodies.model_files import load_body_model

__all__ = [
    "BodyMesh",
    "BodyModel",
    "BodyModelData",
    "BodyParameters",
    "InputError",
    "PinholeCamera",
    "PosedJoints",
    "ShapedBody",
    "TextureLayout",
    "load_body_model",
]
