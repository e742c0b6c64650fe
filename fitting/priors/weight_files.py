"""Reads the weights out of checkpoints of others, with nothing of theirs imported or run."""

import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor

from bodies.errors import InputError, one_line

#: Packages whose classes training runs leave in their checkpoints next to the weights: callbacks, settings, numbers.
#: What they name is replaced by empty stand-ins.
_BOOKKEEPING: Final = (
    "argparse",
    "configer",
    "dotmap",
    "human_body_prior",
    "lightning",
    "numpy",
    "omegaconf",
    "prohmr",
    "pytorch_lightning",
    "yacs",
)


#: Torch's default, which none of the networks that are read here changes.
_NORM_EPSILON: Final = 1e-5


class _Nothing:
    """Stands for a class or function that a checkpoint names; takes whatever the file does with it and keeps nothing.

    A call gives an OrderedDict, the one kind of object on which torch lets a file set items as well as attributes.
    """

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


class _NoNumber:
    """Stands for numpy's classes, whose states are tuples."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file."""

    name: str
    """What messages call the file."""
    tensors: Mapping[str, Tensor]
    """By the names that the file gives them."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file of torch.save: a state dict, or a dict that holds one as `state_dict`.

        Raises:
            InputError: If the file is missing, damaged, names classes that weights do not need, or holds no weights.
        """
        content = _load(path)
        state = content.get("state_dict", content) if isinstance(content, dict) else {}
        found = state.items() if isinstance(state, dict) else ()
        tensors = {key: value for key, value in found if isinstance(key, str) and isinstance(value, Tensor)}
        if not tensors:
            raise InputError(f"{path}: holds no weights by name")
        return cls(str(path), tensors)

    def below(self, prefix: str) -> "Weights":
        """Those whose names begin with `prefix`; messages still use the whole names."""
        return Weights(self.name, {key: value for key, value in self.tensors.items() if key.startswith(prefix)})

    def take(self, key: str, *shape: int | None) -> Tensor:
        """A tensor of finite numbers in double precision.

        Args:
            key: Its name.
            shape: Its shape; None for an extent that the file may choose.

        Raises:
            InputError: If it is not there, has another shape, or a number is not finite.
        """
        tensor = self._of_shape(key, shape)
        if not tensor.is_floating_point():
            raise InputError(f"{self.name}: {key} does not hold real numbers but {tensor.dtype}")
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{self.name}: {key} holds numbers that are not finite")
        return tensor.double()

    def take_integers(self, key: str, *shape: int | None) -> Tensor:
        """The same for whole numbers, as int64."""
        tensor = self._of_shape(key, shape)
        if tensor.is_floating_point() or tensor.is_complex():
            raise InputError(f"{self.name}: {key} does not hold whole numbers but {tensor.dtype}")
        return tensor.long()

    def _of_shape(self, key: str, shape: tuple[int | None, ...]) -> Tensor:
        tensor = self.tensors.get(key)
        if tensor is None:
            raise InputError(f"{self.name}: has no {key}")
        fits = len(shape) == tensor.dim() and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if extent is None else str(extent) for extent in shape)
            raise InputError(f"{self.name}: {key} has shape {tuple(tensor.shape)}, expected ({wanted})")
        return tensor


def norm_as_scale_and_shift(weights: Weights, name: str, features: int) -> tuple[Tensor, Tensor]:
    """What a BatchNorm1d does outside of training, in double precision: values * scale + shift.

    Raises:
        InputError: If a part is missing, has another shape, or a variance is not positive.
    """
    variance = weights.take(f"{name}.running_var", features)
    if not bool((variance + _NORM_EPSILON > 0).all()):
        raise InputError(f"{weights.name}: {name}.running_var holds negative numbers")
    scale = weights.take(f"{name}.weight", features) / (variance + _NORM_EPSILON).sqrt()
    shift = weights.take(f"{name}.bias", features) - weights.take(f"{name}.running_mean", features) * scale
    return scale, shift


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        stand_ins = [
            (_NoNumber if name.startswith("numpy.") else _Nothing, name)
            for name in _names(path)
            if name.partition(".")[0] in _BOOKKEEPING
        ]
        with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]  # pairs are allowed since 2.6
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or one_line(error)})") from error
    except Exception as error:  # torch and pickle raise nearly anything for a damaged file
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is not None:
            raise InputError(
                f"{path}: refused, it names {named[1]}, which weights do not need; nothing was run"
            ) from error
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a whole file of torch.save ({first})") from error


def _names(path: Path) -> set[str]:
    """The classes and functions that a file of torch.save names, read off its pickle without unpickling it.

    Empty for the format before torch 1.6, which is no archive; the files in it that are read here hold weights alone.
    """
    if not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        inside = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        data = b"" if inside is None else archive.read(inside)
    # An opcode GLOBAL has the argument "module name"; torch writes protocol 2, which spells names in no other way.
    return {str(value).replace(" ", ".", 1) for code, value, _ in pickletools.genops(data) if code.name == "GLOBAL"}
