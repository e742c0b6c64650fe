"""Where a run is written: the folder that holds its files, and Weights & Biases that works without an account.

Under `wandb agent` a run belongs to a sweep. It then goes to W&B's server, without which there is no sweep, and its
folder is called by the id that the agent gave it: agents that start at the same moment would choose the same number.
"""

import csv
import os
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from bodies.safe_write import whole_file


class RunFolder(CSVLogger):
    """Lightning's CSV logger, whose folder is the run's; a run that goes on in its folder keeps its numbers.

    Args:
        save_dir: Folder of all runs.
        name: Name of the run.
        version: Folder of the run in `<save_dir>/<name>`; by default the next `version_<n>` or, in a sweep of W&B, the
            run's id.
    """

    def __init__(self, save_dir: str = "runs", name: str = "run", version: str | None = None) -> None:
        super().__init__(save_dir, name, version or _sweep_run())

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes the numbers."""
        writer = self._experiment
        if not isinstance(writer, _KeepingWriter):
            writer = self._experiment = _KeepingWriter(self.log_dir)
        return writer

    def forget_from(self, step: int) -> None:
        """Drops the numbers of this step and later ones: a run that goes on from before them logs them again."""
        self.save()
        path = Path(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
        rows = _rows(path)
        kept = [row for row in rows if float(row["step"]) < step]
        if len(kept) == len(rows):
            return
        with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(kept)


class _KeepingWriter(ExperimentWriter):
    """Lightning's writer, but for the numbers it finds: it would delete them."""

    def _check_log_dir_exists(self) -> None:
        rows = _rows(Path(self.metrics_file_path))
        self.metrics_keys = list(rows[0]) if rows else []


class OfflineFirstWandb(WandbLogger):
    """Sends runs to W&B if the environment has WANDB_API_KEY or the run is one of a sweep.

    Else it keeps them in files that `wandb sync` can send.

    Args:
        save_dir: Folder for the files, in its subfolder wandb.
        name: Name of the run; W&B names those of a sweep.
        project: Project that the run belongs to; a sweep has its own.
        group: Runs that belong together.
    """

    def __init__(
        self, save_dir: str = "runs", name: str | None = None, project: str = "snugfit", group: str | None = None
    ) -> None:
        sweep = _sweep_run() is not None
        offline = not (sweep or os.environ.get("WANDB_API_KEY"))
        name = None if sweep else name
        super().__init__(name=name, save_dir=save_dir, project=project, offline=offline, group=group)


def _sweep_run() -> str | None:
    """The id that `wandb agent` gave to this run of a sweep, if there is one."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
