"""Training that starts from the weights of another run: fine-tuning, or one more cycle of the learning rate."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import nn

from bodies.errors import InputError
from lightning_modules.checkpoints import read_weights

#: Parts of a network that a checkpoint may lack: they only add to what it has learned.
_OPTIONAL = ("surface_outputs.", "merge_surfaces.", "upsampling.")
_NETWORK = "network."


class StartFrom(Callback):
    """Gives the network the weights of a checkpoint before the first step; a run that is resumed keeps its own.

    Optimiser, schedule and step count start anew: to go on with a run, use `--ckpt_path`.

    Args:
        checkpoint: A training or slim checkpoint of a network of the same sizes; `surface_outputs` and
            `convex_upsampling` may be new.

    Raises:
        InputError: If the file is missing, no checkpoint of this project, or of a network of other sizes.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loads the weights, unless Lightning has just restored those of the run itself."""
        if trainer.ckpt_path is None:
            network: Any = pl_module.network
            start_from(network, self.checkpoint)


def start_from(network: nn.Module, checkpoint: Path) -> None:
    """Gives a network the weights of a checkpoint; what `StartFrom` does.

    Raises:
        InputError: As there.
    """
    weights = read_weights(checkpoint)
    given = {name.removeprefix(_NETWORK): value for name, value in weights.items() if name.startswith(_NETWORK)}
    own = network.state_dict()
    missing = [name for name in own if name not in given and not name.startswith(_OPTIONAL)]
    foreign = [name for name, value in given.items() if name not in own or own[name].shape != value.shape]
    if missing or foreign:
        raise InputError(f"{checkpoint}: of another network, its {(foreign or missing)[0]} does not fit")
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)
