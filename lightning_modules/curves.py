"""The training curve of a run as a picture: how much of zero displacement's error is left, over the steps.

What is drawn is a ratio: the zero displacement's error depends on the initial estimates that a batch happened to draw,
and the network's error follows it up and down. The ratio of their running means says what was learned.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray

from bodies.errors import InputError
from bodies.safe_write import whole_file

#: How many points of a curve are averaged with their neighbours at most.
_WINDOW: Final = 25
#: Names of the logged numbers, after "train/" and "val/".
_ZERO: Final = "zero/epe_px"
#: What of each validation is drawn: (logged number, label).
_PVE: Final = (("initial/pve_mm", "initial"), ("displacements/pve_mm", "refined"))


@dataclass(frozen=True)
class RunCurves:
    """What a run logged, ready to be drawn."""

    steps: Float64[ndarray, " points"]
    """Training steps."""
    left: dict[str, Float64[ndarray, " points"]]
    """By stack, its end-point error over zero displacement's."""
    validation_steps: Float64[ndarray, " validations"]
    """Steps at which the network was validated."""
    validation_left: Float64[ndarray, " validations"]
    """The last stack's ratio there."""
    pve_mm: dict[str, Float64[ndarray, " validations"]]
    """Vertex error of the initial and the refined bodies."""


def read_curves(metrics: Path) -> RunCurves:
    """Reads the metrics.csv that Lightning's CSV logger wrote.

    Raises:
        InputError: If it is missing or holds no training step of this project.
    """
    try:
        with metrics.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{metrics}: not a table of logged numbers ({error})") from error
    training, validation = _columns(rows, f"train/{_ZERO}"), _columns(rows, f"val/{_ZERO}")
    if not len(training.get("step", ())):
        raise InputError(f"{metrics}: it has no training step with {_ZERO}")
    stacks = sorted(name for name in training if name.startswith("train/stack_"))
    last = stacks[-1].removeprefix("train/") if stacks else _ZERO
    return RunCurves(
        steps=training["step"],
        left={
            name.split("/")[1].replace("_", " "): _ratio(training[name], training[f"train/{_ZERO}"]) for name in stacks
        },
        validation_steps=validation.get("step", np.zeros(0)),
        validation_left=validation.get(f"val/{last}", np.zeros(0)) / validation.get(f"val/{_ZERO}", np.ones(0)),
        pve_mm={label: validation[f"val/{name}"] for name, label in _PVE if f"val/{name}" in validation},
    )


def write_curves(curves: RunCurves, out: Path) -> None:
    """Draws the curves: the displacement's error on the left, the vertex error on the right if it was validated."""
    panels = 2 if curves.pve_mm else 1
    figure = Figure(figsize=(5.5 * panels, 4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, *others = figure.subplots(1, panels, squeeze=False)[0]
    for name, ratio in curves.left.items():
        left.plot(curves.steps, ratio, label=f"training, {name}", linewidth=1)
    if len(curves.validation_steps):
        left.plot(curves.validation_steps, curves.validation_left, "ko-", markersize=4, label="validation")
    left.axhline(1, color="0.6", linewidth=0.8)
    left.set(xlabel="step", ylabel="end-point error / that of zero displacement", ylim=(0, 1.1))
    left.legend()
    for right in others:
        for name, errors_mm in curves.pve_mm.items():
            right.plot(curves.validation_steps, errors_mm, "o-", markersize=4, label=name)
        right.set(xlabel="step", ylabel="PVE in validation (mm)")
        right.set_ylim(0, 1.1 * max(float(errors_mm.max()) for errors_mm in curves.pve_mm.values()))
        right.legend()
    with whole_file(out) as temporary:
        figure.savefig(temporary, format="png")


class TrainingCurve(Callback):
    """Draws the curve of the run into its folder, as curve.png, after each validation and when training ends.

    It is drawn from what Lightning's CSV logger wrote; without that logger there is none.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws, unless nothing was trained."""
        if trainer.training and not trainer.sanity_checking:
            self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.save()
                folder = Path(logger.log_dir)
                # A run of a few steps may end before its first number is logged.
                with suppress(InputError):
                    write_curves(read_curves(folder / "metrics.csv"), folder / "curve.png")


def _columns(rows: Sequence[Mapping[str, str]], wanted: str) -> dict[str, Float64[ndarray, " points"]]:
    """The columns of the rows that have a number in the column `wanted`, of those columns that are full there."""
    chosen = [row for row in rows if row.get(wanted)]
    names = [name for name in (chosen[0] if chosen else {}) if name and all(_is_number(row[name]) for row in chosen)]
    return {name: np.array([float(row[name]) for row in chosen]) for name in names}


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False


def _ratio(error: Float64[ndarray, " points"], zero: Float64[ndarray, " points"]) -> Float64[ndarray, " points"]:
    """Ratio of the centred running means, with shorter windows towards both ends."""
    half = min(_WINDOW, len(error)) // 2
    sums = np.cumsum(np.stack([np.pad(error, (1, 0)), np.pad(zero, (1, 0))]), axis=1)
    places = np.arange(len(error))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(error))
    error_sum, zero_sum = sums[:, high] - sums[:, low]
    return error_sum / zero_sum
