"""What a run shows and keeps beside its numbers: pictures, result tables, predictions, and the network's size.

Files go to the folder of the run (`trainer.log_dir`); what W&B can show goes there too if it is among the loggers.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from torch import Tensor

from bodies.errors import InputError
from bodies.safe_write import whole_file
from datamodules.sample import RefinementBatch
from lightning_modules.accumulators import SampleErrors
from lightning_modules.evaluation import RefinementRow
from lightning_modules.network_cost import network_cost
from lightning_modules.overlays import refinement_picture
from lightning_modules.refinement import Prediction, Refinement, RefinementModule
from lightning_modules.result_tables import (
    EPE,
    NUMBERS,
    TableLine,
    body_lines,
    map_lines,
    rich_table,
    table_lines,
    write_lines,
    write_samples,
)
from renderers.drawing import Image

#: Wide enough for all numbers, where the output is not a terminal.
_TABLE_WIDTH: Final = 150


class NetworkSummary(Callback):
    """Prints the network's parameters and multiply-accumulates when training starts."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints them once, on the first process."""
        module = _refinement(pl_module)
        if trainer.is_global_zero:
            cost = network_cost(module.network, module.crop_px, module.crop_px)
            Console().print(f"Displacement network: {cost}", highlight=False)


class OverlayPictures(Callback):
    """Draws samples of validation and test: photo, initial body, displacement, refined body.

    Args:
        pictures: How many of each validation or test.
        row: Which refined body is drawn.
    """

    def __init__(self, pictures: int = 8, row: RefinementRow = "displacements") -> None:
        self.pictures = pictures
        self.row: RefinementRow = row
        self._drawn, self._folder = 0, Path()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count."""
        self._begin(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to count."""
        self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        # The folder is asked for where all processes come: Lightning broadcasts it.
        self._drawn, self._folder = 0, _folder(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: RefinementBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws as many of the batch as are still wanted."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module, outputs, batch, f"val_step_{trainer.global_step:07d}")

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: RefinementBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draws as many of the batch as are still wanted."""
        self._draw(trainer, pl_module, outputs, batch, "test")

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, outcome: Refinement, batch: RefinementBatch, name: str
    ) -> None:
        if not trainer.is_global_zero or self._drawn >= self.pictures:
            return
        module = _refinement(pl_module)
        fit = outcome.fits.get(self.row)
        refined = fit.parameters if fit else batch.initial
        names, pictures = [], []
        for place in range(min(len(batch), self.pictures - self._drawn)):
            picture = refinement_picture(batch, place, outcome.displacement_px[place], refined, module.body)
            names.append(module.sample_name(int(batch.dataset[place]), int(batch.row[place])))
            pictures.append(picture)
            _write_picture(self._folder / "pictures" / f"{name}_{self._drawn:03d}.png", picture)
            self._drawn += 1
        for logger in _wandb(trainer):
            logger.log_image(f"pictures/{name.partition('_')[0]}", pictures, caption=names)


class ResultTables(Callback):
    """Prints the result table after validation and test.

    It is written as CSV too, overall and by data set, by sequence, and sample by sample.

    Args:
        by_sequence: Whether to write the table by sequence.
    """

    def __init__(self, by_sequence: bool = True) -> None:
        self.by_sequence = by_sequence

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports, unless it was the check before training."""
        if not trainer.sanity_checking:
            self._report(trainer, _refinement(pl_module), "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports."""
        self._report(trainer, _refinement(pl_module), "test")

    def _report(self, trainer: Trainer, module: RefinementModule, stage: str) -> None:
        scores = module.validation_scores if stage == "val" else module.test_scores
        # Both talk to the other processes, so all of them have to come here.
        errors, folder = scores.table(), _folder(trainer)
        if not trainer.is_global_zero:
            return
        lines = table_lines(errors.columns, errors.overall(), lambda key: "all")
        datasets = table_lines(errors.columns, errors.by_dataset(), lambda key: module.dataset_name(key[0]))
        if len(datasets) > len(lines):
            lines = lines + datasets
        _print_tables(lines, f"{stage}, step {trainer.global_step}")
        self._write(folder / "tables", stage, errors, lines, module)
        for logger in _wandb(trainer):
            _log_table(logger, stage, lines)

    def _write(
        self, folder: Path, stage: str, errors: SampleErrors, lines: Sequence[TableLine], module: RefinementModule
    ) -> None:
        write_lines(folder / f"{stage}.csv", lines)
        write_samples(folder / f"{stage}_samples.csv", errors, module.sample_name)
        if self.by_sequence:
            sequences = table_lines(
                errors.columns, errors.by_sequence(), lambda key: module.sequence_name(key[0], key[1])
            )
            write_lines(folder / f"{stage}_sequences.csv", sequences)


class PredictionFiles(Callback):
    """Writes what `predict` refined: one .npz file per data set, with its samples in the order of their rows.

    Its arrays are row_ids and the fields of `Prediction`. With several processes each writes its own files.
    """

    def __init__(self) -> None:
        self._predictions: list[Prediction] = []

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the prediction before."""
        self._predictions = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: RefinementBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the batch."""
        self._predictions.append(outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the files."""
        folder = _folder(trainer)  # broadcasts, so processes without predictions have to come here too
        if not self._predictions:
            return
        module = _refinement(pl_module)
        arrays = _prediction_arrays(self._predictions)
        dataset_ids, rows = arrays.pop("dataset"), arrays.pop("row")
        suffix = f"_{trainer.global_rank}" if trainer.world_size > 1 else ""
        for dataset in np.unique(dataset_ids).tolist():
            chosen = np.flatnonzero(dataset_ids == dataset)
            chosen = chosen[np.argsort(rows[chosen], kind="stable")]
            names = np.array([module.sample_name(dataset, row) for row in rows[chosen].tolist()])
            path = folder / "predictions" / f"{_file_name(module.dataset_name(dataset))}{suffix}.npz"
            with whole_file(path) as temporary:
                chosen_arrays: dict[str, Any] = {key: value[chosen] for key, value in arrays.items()}
                np.savez(temporary, row_ids=names, **chosen_arrays)
            if trainer.is_global_zero:
                Console().print(f"Wrote {path}", highlight=False, soft_wrap=True)


class EmaWeights(WeightAveraging):
    """Keeps an exponential moving average of the weights: it is validated, and it is what a checkpoint holds.

    In the n-th step the average keeps the share min(decay, (1 + n) / (10 + n)) of itself, so that it does not hold on
    to the first weights (TensorFlow, `tf.train.ExponentialMovingAverage`, `num_updates`).

    Args:
        decay: Share that the average keeps in the end.

    Raises:
        InputError: If the share is not between 0 and 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise InputError(f"the decay of averaged weights must be at least 0 and less than 1, got {decay}")
        super().__init__(multi_avg_fn=partial(_move_averages, decay))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the training up again; for tests the checkpoint's weights are the average already."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


@torch.no_grad()
def _move_averages(decay: float, averages: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
    """The averages after one more step, in place; `updates` counts those before. Counters are copied."""
    keep = min((1 + int(updates)) / (10 + int(updates)), decay)
    if averages[0].is_floating_point():
        torch._foreach_lerp_(averages, current, 1 - keep)
    else:
        torch._foreach_copy_(averages, current)


def _refinement(pl_module: LightningModule) -> RefinementModule:
    assert isinstance(pl_module, RefinementModule), f"made for RefinementModule, not {type(pl_module).__name__}"
    return pl_module


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.log_dir or trainer.default_root_dir)


def _wandb(trainer: Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def _write_picture(path: Path, picture: Image) -> None:
    with whole_file(path) as temporary:
        cv2.imwrite(str(temporary), picture[..., ::-1])


def _print_tables(lines: Sequence[TableLine], title: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=_TABLE_WIDTH)
    console.print(rich_table(body_lines(lines), f"{title}: bodies (mm, pixels of the full image)"))
    console.print(rich_table(map_lines(lines), f"{title}: maps (crop px)"))


def _log_table(logger: WandbLogger, stage: str, lines: Sequence[TableLine]) -> None:
    cells = [[line.group, line.row, line.samples, *(line.numbers.get(n) for n in (*NUMBERS, EPE))] for line in lines]
    logger.log_table(f"tables/{stage}", columns=["group", "row", "samples", *NUMBERS, EPE], data=cells)


def _prediction_arrays(predictions: Sequence[Prediction]) -> dict[str, np.ndarray]:
    columns = zip(*predictions, strict=True)
    return {name: torch.cat(parts).cpu().numpy() for name, parts in zip(Prediction._fields, columns, strict=True)}


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
