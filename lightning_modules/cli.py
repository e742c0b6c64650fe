"""`snugfit fit`, `validate`, `test` and `predict`: Lightning's command line for the module and the data of refinement.

What a run is comes from four layers, each overriding the one before: configs/base.yaml, the hyperparameters in the
checkpoint of `--ckpt_path`, the `--config` files from left to right, and the command line. So a checkpoint alone
rebuilds its network, and how it fits can still be changed. Unknown keys are refused everywhere. Values refer to others
relatively, `${..other}`: references are resolved when all layers are merged.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch
from jsonargparse import ArgumentError, set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from omegaconf.errors import OmegaConfBaseException

from bodies.errors import InputError, one_line
from datamodules.initial import NoiseScale
from datamodules.mixture import MixtureDataModule
from lightning_modules.refinement import RefinementModule
from lightning_modules.requeue import JobEnds

#: Trainer, loggers and callbacks of every run.
BASE_CONFIG: Final = Path(__file__).resolve().parent.parent / "configs" / "base.yaml"
#: Values that two sections share: (where it is set, where it is used).
LINKS: Final = (
    ("model.crop_px", "data.crop_px"),
    ("model.body.model", "data.body_model"),
    ("model.body.true_models", "data.true_body_models"),
    *((f"model.noise.{field.name}", f"data.noise.{field.name}") for field in fields(NoiseScale)),
)
#: Warnings of Lightning that ask for what is meant as it is.
MEANT: Final = (
    ".*is an instance of `nn.Module` and is already saved",  # saved with its settings, so that checkpoints rebuild it
    "You have overridden `on_after_batch_transfer` in `LightningModule`",
    "The '.*dataloader' does not have many workers",
    "Checkpoint directory .* exists and is not empty",  # the folder of a run that goes on
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # a test needs fewer
    "The dirpath has changed from",  # each run has its own folder
    ".*isinstance\\(treespec, LeafSpec\\).* is deprecated",  # Lightning's own code, like the next two
    r"\s*By default only one JsonargparseDeprecationWarning",
    r"\s*.* was deprecated in v4\.",
)


class SavedConfig(SaveConfigCallback):
    """Writes the configuration of a run into its folder, and tells the loggers."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the loggers."""
        config = json.loads(self.parser.dump(self.config, format="json", skip_none=False))
        for logger in trainer.loggers:
            logger.log_hyperparams(config)


class RefinementCLI(LightningCLI):
    """Lightning's command line with shared values linked and checkpoints as defaults.

    Args:
        verb: The one subcommand to offer: making the parser of each takes a second.
        **keywords: As for LightningCLI.
    """

    def __init__(self, verb: str, **keywords: Any) -> None:
        self._verb = verb
        super().__init__(**keywords)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # static where it is the same for all
        """The verb with the arguments that do not come from the command line."""
        return {self._verb: LightningCLI.subcommands()[self._verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what is neither trainer, model nor data."""
        parser.add_argument("--run_name", default="run", help="Name of the run's folder and of the run in W&B.")
        parser.add_argument(
            "--run_version",
            type=str | None,
            help="Folder of the run in runs/<run_name>, which may be there already; by default a new version_<n>.",
        )
        for source, target in LINKS:
            parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses the given words, also where the process has others."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint override the command line; `main` puts it below."""


class _HasParser(Exception):
    """Ends the making of a command line."""


class _ParserAlone(RefinementCLI):
    """Makes the parser and nothing else."""

    def __init__(self, verb: str, **keywords: Any) -> None:
        with suppress(_HasParser):
            super().__init__(verb, **keywords)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses nothing."""
        raise _HasParser


def main(args: Sequence[str], data_class: type[LightningDataModule] = MixtureDataModule) -> int | None:
    """Runs one of Lightning's verbs.

    Args:
        args: The verb and what follows it on the command line.
        data_class: Where the data comes from.

    Returns:
        Nothing; of a Slurm job that ends early, whether it was requeued (0) or not (1).

    Raises:
        InputError: If a file is missing or wrong, an option or key is unknown or has a value of the wrong type, or a
            reference in a config leads nowhere.
        SystemExit: After `--help` and `--print_config`.
    """
    verb, *words = args
    with _all_layers(verb, words) as layers:
        try:
            _make(RefinementCLI, data_class, layers)
        except JobEnds as end:
            return end.requeue()
    return None


class OptionCheck:
    """Sees whether words are ones that a verb of Lightning takes, without running it.

    Args:
        verb: The verb; making its parser takes a second.
    """

    def __init__(self, verb: str) -> None:
        self._verb = verb
        self._parser = _make(_ParserAlone, MixtureDataModule, [verb]).parser

    def __call__(self, words: Sequence[str]) -> None:
        """Returns if the verb takes these words after it.

        Raises:
            InputError: As `main`, as far as nothing has to be made to see it.
        """
        with _all_layers(self._verb, words) as layers:
            self._parser.parse_args(layers)


@contextmanager
def _all_layers(verb: str, words: Sequence[str]) -> Iterator[list[str]]:
    """Yields the words with all layers of the configuration, and says what was wrong with them in words of ours."""
    with tempfile.TemporaryDirectory(prefix="snugfit_") as folder, without_meant_warnings():
        layers = ["--config", str(BASE_CONFIG), *_checkpoint_words(words, Path(folder)), *words]
        try:
            yield [verb, *layers]
        except ArgumentError as error:
            raise InputError(f"{error} (`snugfit {verb} --help` lists what there is)") from error
        except MisconfigurationException as error:  # of Lightning, about options that do not go together
            raise InputError(one_line(error)) from error
        except OmegaConfBaseException as error:
            raise InputError(f"a reference in the configuration leads nowhere: {error}") from error


@contextmanager
def without_meant_warnings() -> Iterator[None]:
    """Runs Lightning without the warnings of `MEANT`."""
    with warnings.catch_warnings():
        for message in MEANT:
            warnings.filterwarnings("ignore", message=message)
        yield


def _make(kind: type[RefinementCLI], data_class: type[LightningDataModule], args: Sequence[str]) -> RefinementCLI:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    options: dict[str, Any] = {"parser_mode": "omegaconf+", "exit_on_error": False}
    verb = args[0]
    return kind(
        verb,
        model_class=RefinementModule,
        datamodule_class=data_class,
        save_config_callback=SavedConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={"prog": "snugfit"} | options | {verb: options},
        args=list(args),
    )


def _checkpoint_words(words: Sequence[str], folder: Path) -> list[str]:
    """The words that make the hyperparameters of the checkpoint the first config file."""
    path = _checkpoint_path(words)
    if path is None:
        return []
    hyperparameters = checkpoint_hyperparameters(path)
    config = folder / "checkpoint.yaml"
    config.write_text(json.dumps({"model": hyperparameters}), encoding="utf-8")  # JSON is YAML
    return ["--config", str(config)]


def checkpoint_hyperparameters(path: Path) -> dict[str, Any]:
    """What a checkpoint says its module was made with.

    Raises:
        InputError: If the file is missing, or no checkpoint of this project's command line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        hyperparameters = dict(checkpoint["hyper_parameters"])
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint of snugfit ({type(error).__name__})") from error
    hyperparameters.pop("_instantiator", None)
    return hyperparameters


def _checkpoint_path(words: Sequence[str]) -> Path | None:
    """What follows `--ckpt_path`, unless it is one of Lightning's words for a checkpoint yet to be found."""
    value = None
    for place, word in enumerate(words):
        if word == "--ckpt_path" and place + 1 < len(words):
            value = words[place + 1]
        elif word.startswith("--ckpt_path="):
            value = word.partition("=")[2]
    return None if value in (None, "last", "best", "hpc", "null") else Path(value)
