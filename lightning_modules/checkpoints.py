"""Checkpoints to ship and to use: a small one made from that of a training run, and the module made from either.

A training checkpoint holds everything that the run needs to go on. A slim one holds what the network needs to be used:
its settings and, in half precision, its weights, which are the averaged ones where the run kept an average
(`lightning_modules.callbacks.EmaWeights` puts them into `state_dict` as it saves). Both are Lightning checkpoints, read
with `weights_only`: no code of theirs is run.
"""

from pathlib import Path
from typing import Any, Final

import torch
from omegaconf import OmegaConf
from torch import Tensor

from bodies.errors import InputError, one_line
from bodies.safe_write import whole_file
from lightning_modules.cli import checkpoint_hyperparameters, without_meant_warnings
from lightning_modules.refinement import RefinementModule

#: What a slim checkpoint keeps beside the weights: what `load_from_checkpoint` and `snugfit test` ask for, and when in
#: the run it was made.
_KEPT: Final = ("epoch", "global_step", "pytorch-lightning_version", "hparams_name", "hyper_parameters")


def slim_checkpoint(source: Path, out: Path, config: Path | None = None) -> None:
    """Writes the network of a checkpoint in half precision, without what only its training needs.

    Numbers that half precision cannot hold stay as they are.

    Args:
        source: A checkpoint of `snugfit fit`.
        out: The file to write; it appears whole or not at all.
        config: A config file whose `model.fitting` takes the place of what the checkpoint says there: how to fit can be
            chosen on the validation set after training.

    Raises:
        InputError: If the source is missing, no checkpoint of this project's command line, has weights that are not
            finite, or is the file to write; if the config cannot be read, has no such part, or it does not fit.
    """
    checkpoint = _read(source)
    if out.exists() and out.samefile(source):
        raise InputError(f"{out}: would replace the checkpoint that it is made from")
    slim: dict[str, Any] = {key: checkpoint[key] for key in _KEPT if key in checkpoint}
    slim["state_dict"] = {name: _slim(source, name, value) for name, value in checkpoint["state_dict"].items()}
    if config is not None:
        slim["hyper_parameters"] = {**slim["hyper_parameters"], "fitting": _fitting(config, slim["hyper_parameters"])}
    with whole_file(out) as temporary:
        torch.save(slim, temporary)
        if config is not None:
            try:
                load_refinement(temporary)
            except InputError as error:
                raise InputError(f"{config}: its model.fitting cannot be used ({error})") from error


def load_refinement(path: Path, *, body: str | None = None, prior: str | None = None) -> RefinementModule:
    """The module of a training or slim checkpoint, on the CPU, in single precision and ready to be used (`eval`).

    Whatever drew the bodies in training, here it is the rasterizer that fits the machine.

    Args:
        path: The checkpoint.
        body: Body model to use in place of the one that the checkpoint names, which must be of the same topology.
        prior: Pose prior to use in place of the one that the checkpoint names.

    Raises:
        InputError: If the file is missing, no checkpoint of this project's command line, does not fit this version of
            the network, or the body model or the prior cannot be loaded.
    """
    settings = _read(path)["hyper_parameters"]
    bodies = {**settings.get("body", {}), "rasterizer": "auto"} | ({} if body is None else {"model": body})
    fitting = {**settings.get("fitting", {})} | ({} if prior is None else {"prior": prior})
    try:
        with without_meant_warnings():
            module = RefinementModule.load_from_checkpoint(
                path, map_location="cpu", weights_only=True, body=bodies, fitting=fitting
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # whatever settings and weights of other versions lead to
        raise InputError(f"{path}: does not fit this version of the network: {one_line(error)}") from error
    return module.eval()


def _fitting(config: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the fit with those of a config file in their place."""
    try:
        chosen = OmegaConf.select(OmegaConf.load(config), "model.fitting")
        chosen = {} if chosen is None else chosen
        plain = OmegaConf.to_container(OmegaConf.merge(settings.get("fitting", {}), chosen), resolve=True)
    except Exception as error:  # of the file system, of YAML, of OmegaConf
        raise InputError(f"{config}: cannot be read as a config file ({one_line(error)})") from error
    if not chosen or not isinstance(plain, dict):
        raise InputError(f"{config}: has no model.fitting")
    return {str(name): value for name, value in plain.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights of a training or slim checkpoint by name, on the CPU.

    Raises:
        InputError: If the file is missing, or no checkpoint of this project's command line.
    """
    weights: dict[str, Tensor] = _read(path)["state_dict"]
    return weights


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint whose settings and weights are there."""
    checkpoint_hyperparameters(path)  # refuses what is no checkpoint
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = checkpoint.get("state_dict")
    if not (isinstance(weights, dict) and weights and all(isinstance(value, Tensor) for value in weights.values())):
        raise InputError(f"{path}: not a checkpoint of snugfit (it holds no weights)")
    return checkpoint


def _slim(path: Path, name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value.clone()
    if not bool(value.isfinite().all()):
        raise InputError(f"{path}: the weights {name} are not finite")
    half = value.half()
    return half if bool(half.isfinite().all()) else value.clone()
