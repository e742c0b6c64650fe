"""Training that goes on where it was: after a Slurm job's time limit, and in the folder of a run that broke off."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Final

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from lightning_modules.loggers import RunFolder

#: What Slurm sends ahead of the time limit if the job has `#SBATCH --signal=SIGUSR1@<seconds>`.
REQUEUE_SIGNAL: Final = signal.SIGUSR1
#: What `--ckpt_path last` finds in the folder of the run.
LAST_CHECKPOINT: Final = "last.ckpt"


class JobEnds(SystemExit):
    """Ends a run whose checkpoint was written ahead of the time limit; `requeue` is for whoever started the run.

    Args:
        job: What Slurm calls the job.
        saved: Where the checkpoint is, in words.
        first: Whether this is the first of the processes.
    """

    def __init__(self, job: str, saved: str, first: bool) -> None:
        super().__init__(f"snugfit: {saved}, job {job} not requeued")  # what is printed if nobody does
        self._job, self._saved, self._first = job, saved, first

    def requeue(self) -> int:
        """Lets the first process requeue the job; returns its exit code. Slurm then kills whatever still runs."""
        if not self._first:
            return 0
        import wandb  # not at the top: the import takes longer than all others here

        if wandb.run is not None:
            wandb.finish()
        sys.stderr.write(f"snugfit: {self._saved}, requeueing job {self._job}\n")
        sys.stderr.flush()
        try:
            code = subprocess.run(["scontrol", "requeue", self._job], check=False).returncode
        except OSError as error:  # in a container that has no Slurm
            sys.stderr.write(f"snugfit: no scontrol ({error})\n")
            code = 1
        if code:
            sys.stderr.write("snugfit: not requeued; submit the job again with the same --run_version\n")
        return 1 if code else 0


# A `Checkpoint`, because Lightning runs those after all other callbacks, so after the averaging of weights.
class GoOn(Checkpoint):
    """Lets a run go on in its own folder, and a Slurm job go on after its time limit.

    When Slurm announces the limit (SIGUSR1), the processes finish their step, write last.ckpt together and end
    (`JobEnds`), and the command line has the job requeued. Started again with the same `--run_version` and
    `--ckpt_path last`, the run goes on from that step. Outside Slurm the signal is not touched.

    Lightning does it from within the signal handler: in the middle of a step, and without regard to where the other
    processes are, with which it has to write the checkpoint (Lightning's issue 21406). It leaves the signal alone where
    somebody handles it already, as here.
    """

    def __init__(self) -> None:
        self._announced = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listens to Slurm. A validation or test is not saved, but must not end by the signal either."""
        if _job_id() is not None and threading.current_thread() is threading.main_thread():
            signal.signal(REQUEUE_SIGNAL, self._note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the numbers of steps that are made again."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, RunFolder):
                    logger.forget_from(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends if the limit was announced to any of the processes.

        Raises:
            JobEnds: When it is saved.
        """
        job = _job_id()
        if job is None or not trainer.strategy.reduce_boolean_decision(self._announced, all=False):
            return
        path = _folder(trainer) / LAST_CHECKPOINT
        trainer.save_checkpoint(path)  # comes back when all processes have come so far
        raise JobEnds(job, f"step {trainer.global_step} saved in {path}", trainer.is_global_zero)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._announced = True


def _job_id() -> str | None:
    """What Slurm calls this job, in the form that it takes back for one of an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _folder(trainer: Trainer) -> Path:
    """Where the run keeps its checkpoints."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return Path(callback.dirpath)
    return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"
