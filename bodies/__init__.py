"""What a body is and the camera that sees it: SMPL-layout models, joint sets, pinhole cameras.

A name is imported when it is first asked for: whoever needs `InputError` alone does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bodies.body_model import BodyMesh, BodyModel, BodyParameters, PosedJoints, ShapedBody
    from bodies.camera import PinholeCamera
    from bodies.errors import InputError
    from bodies.model_data import BodyModelData, TextureLayout
    from bodies.model_files import load_body_model
else:  # type checkers look at the imports above, and find names that are not there

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"bodies.{_MODULES[name]}"), name)
        return value


#: Where each name is.
_MODULES = {
    "BodyMesh": "body_model",
    "BodyModel": "body_model",
    "BodyModelData": "model_data",
    "BodyParameters": "body_model",
    "InputError": "errors",
    "PinholeCamera": "camera",
    "PosedJoints": "body_model",
    "ShapedBody": "body_model",
    "TextureLayout": "model_data",
    "load_body_model": "model_files",
}

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
