"""Tests the checkpoint that ships on a small synthetic set, as `snugfit test` does, and says what came of it."""

import csv
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from bodies.errors import InputError
from bodies.safe_write import whole_folder
from lightning_modules.cli import main as lightning_main

#: The network that ships, and what it was trained on: RESULTS.md says how.
CHECKPOINT: Final = Path(__file__).resolve().parent.parent / "checkpoints" / "standin_small.ckpt"
#: Its people are of the split "test", so none of them was seen in training.
TEST_SET: Final = {"frames": 96, "subjects": 24, "split": "test", "body": "standin-tiny", "image_size": [256, 256]}


@dataclass(frozen=True)
class NetworkScores:
    """What the result table says in short."""

    zero_epe_px: float
    """End-point error of zero displacement, in pixels of the crop."""
    epe_px: float
    """That of the network."""
    pve_mm: dict[str, float]
    """Vertex error by row of the table."""

    def sentences(self) -> str:
        """What it means, in words."""
        initial = self.pve_mm["initial"]
        rows = ", ".join(
            f"{name} {self.pve_mm[row]:.0f} mm ({self.pve_mm[row] / initial:.2f} of it)"
            for row, name in (
                ("displacements", "by the network's displacements"),
                ("keypoints_detected", "by noisy OpenPose keypoints"),
                ("keypoints_true", "by 25 true keypoints"),
                ("displacements_true", "by true displacements"),
            )
        )
        return (
            f"The network leaves {self.epe_px:.2f} of {self.zero_epe_px:.2f} px of displacement "
            f"({1 - self.epe_px / self.zero_epe_px:.0%} less). "
            f"Vertex error of the bodies (PVE): initial {initial:.0f} mm, {rows}."
        )


def try_network(out: Path, console: Console) -> NetworkScores:
    """Makes a small set of people that the network never saw, refines them, and writes table and pictures.

    Args:
        out: Folder to write to; replaced if it exists. The set lies beside it and is kept for the next time.
        console: Where to report.

    Raises:
        InputError: If the checkpoint is not there, or anything cannot be written.
    """
    if not CHECKPOINT.is_file():
        raise InputError(f"{CHECKPOINT}: the checkpoint that ships with the project is not there")
    frames = out.with_name(f"{out.name}_frames.h5")
    with whole_folder(out) as folder:
        logger = {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": str(folder), "name": "", "version": ""},
        }
        test = {"synthetic": {"frames": str(frames), "synthetic": TEST_SET}}
        words = ["--ckpt_path", str(CHECKPOINT), "--verbose", "false", "--trainer.logger", json.dumps(logger)]
        words += ["--trainer.enable_model_summary", "false", "--data.test", json.dumps(test)]
        with _quiet_lightning():
            lightning_main(["test", *words])
        scores = read_scores(folder / "tables" / "test.csv")
    console.print(scores.sentences(), highlight=False)
    for picture in sorted((out / "pictures").glob("test_*.png")):
        console.print(str(picture), highlight=False, soft_wrap=True)
    return scores


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without what Lightning says of the machine and itself."""
    logs = [logging.getLogger(name) for name in ("lightning.fabric", "lightning.pytorch")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def read_scores(table: Path) -> NetworkScores:
    """The numbers of all samples from the table that a test wrote."""
    with table.open(newline="", encoding="utf-8") as file:
        rows = {row["row"]: row for row in csv.DictReader(file) if row["group"] == "all"}
    stacks = sorted(name for name in rows if name.startswith("stack_"))
    return NetworkScores(
        float(rows["zero"]["epe_px"]),
        float(rows[stacks[-1]]["epe_px"]),
        {name: float(row["pve_mm"]) for name, row in rows.items() if row["pve_mm"]},
    )
