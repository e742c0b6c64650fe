"""Slurm: batch files that go with the command line, and runs that go on after the time limit."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment

from lightning_modules.cli import OptionCheck
from lightning_modules.loggers import RunFolder
from lightning_modules.requeue import GoOn, JobEnds, _job_id
from main import main

ROOT = Path(__file__).resolve().parent.parent
TINY = str(Path(__file__).parent / "configs" / "tiny.yaml")
BATCH_FILES = sorted((ROOT / "configs" / "slurm").iterdir())
TRAINING = ("train.sbatch", "train_cpu.sbatch")
#: What each is given on the command line of sbatch.
GIVEN = {
    "train.sbatch": ["--config", "configs/experiment/standin_small.yaml", "--data.loading.batch_size", "4"],
    "train_cpu.sbatch": ["--config", "configs/experiment/standin_small.yaml"],
    "evaluate.sbatch": ["validate", "--config", "configs/experiment/standin_small.yaml"],
    "sweep.sbatch": ["configs/sweeps/priors.yaml", "--dry-run"],
}


def _directives(path: Path) -> dict[str, str]:
    """The options of the #SBATCH lines; those switched off by a second # are not among them."""
    words = [word for line in path.read_text().splitlines() if line.startswith("#SBATCH") for word in line.split()]
    options = [word.removeprefix("--").partition("=") for word in words if word.startswith("--")]
    return {name: value for name, _, value in options}


def _environment(path: Path, folder: Path, nodes: int = 1) -> dict[str, str]:
    """What Slurm sets for the batch file, and an `srun` that writes down what it is given."""
    asked = _directives(path)
    srun = folder / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NAME": asked["job-name"],
        "SLURM_CLUSTER_NAME": "cluster",
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_NNODES": str(nodes),
        "SLURM_NTASKS_PER_NODE": asked["ntasks-per-node"],
        "SLURM_NTASKS": str(nodes * int(asked["ntasks-per-node"])),
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
        "SLURM_ARRAY_TASK_ID": "3",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    others = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "RUN_", "WANDB_RUN"))}
    return others | slurm


def _words_of_srun(path: Path, folder: Path, given: list[str], nodes: int = 1) -> list[str]:
    command = ["bash", str(path), *given]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(path, folder, nodes), capture_output=True, text=True, check=True
    )
    words = done.stdout.splitlines()
    return words[next(k for k, word in enumerate(words) if word.endswith("snugfit")) + 1 :]


def _option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


# ---- batch files


def test_every_batch_file_is_known_here():
    assert [path.name for path in BATCH_FILES] == sorted(GIVEN)


@pytest.mark.parametrize("path", BATCH_FILES, ids=lambda path: path.name)
def test_the_shell_reads_it(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    asked = _directives(path)
    assert asked.get("gpus-per-node", asked["ntasks-per-node"]) == asked["ntasks-per-node"]  # one process per GPU
    assert asked["nodes"] == "1"


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_job_goes_on_after_its_limit(name):
    asked = _directives(ROOT / "configs" / "slurm" / name)
    assert {"requeue", "open-mode", "signal"} <= asked.keys()
    assert asked["open-mode"] == "append"
    # Not `B:`, which would tell the shell alone. Slurm may send it a minute early, and a validation may come between.
    assert re.fullmatch(r"SIGUSR1@\d{3,}", asked["signal"])


@pytest.mark.parametrize("name", [*TRAINING, "evaluate.sbatch"])
def test_the_command_line_takes_what_the_job_passes(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    verb, *words = _words_of_srun(ROOT / "configs" / "slurm" / name, tmp_path, GIVEN[name])
    OptionCheck(verb)(words)
    assert _option(words, "--run_version") == "job_4321"
    if name in TRAINING:
        assert _option(words, "--ckpt_path") == "last"


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("name", [*TRAINING, "evaluate.sbatch"])
def test_processes_and_nodes_are_what_lightning_wants(name, nodes, tmp_path, monkeypatch):
    path = ROOT / "configs" / "slurm" / name
    words = _words_of_srun(path, tmp_path, GIVEN[name], nodes)
    for variable, value in _environment(path, tmp_path, nodes).items():
        if variable.startswith(("SLURM_", "PATH")):
            monkeypatch.setenv(variable, value)
    assert SLURMEnvironment.detect()
    environment = SLURMEnvironment()
    devices = int(_option(words, "--trainer.devices"))
    environment.validate_settings(devices, int(_option(words, "--trainer.num_nodes")))
    assert environment.world_size() == nodes * devices
    with pytest.raises(ValueError, match="does not match"):
        environment.validate_settings(devices + 1, nodes)


def test_a_job_can_go_on_with_the_run_of_another(tmp_path):
    path = ROOT / "configs" / "slurm" / "train.sbatch"
    report = 'printf "%s\\n" "$@" "$WANDB_RUN_ID"'
    environment = _environment(path, tmp_path) | {"RUN_VERSION": "job_17"}
    (tmp_path / "srun").write_text(f"#!/bin/sh\n{report}\n")
    done = subprocess.run(["bash", str(path)], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert _option(lines, "--run_version") == "job_17"
    assert lines[-1] == "cluster_job_17"  # the same run of W&B, too


def test_a_task_of_an_array_runs_its_point_or_the_next_of_wandb(tmp_path):
    path = ROOT / "configs" / "slurm" / "sweep.sbatch"
    assert _words_of_srun(path, tmp_path, GIVEN["sweep.sbatch"]) == [
        *["sweep", "configs/sweeps/priors.yaml", "--point", "3", "--dry-run"]
    ]
    done = subprocess.run(
        ["bash", str(path), "me/snugfit/abc123"],
        cwd=ROOT,
        env=_environment(path, tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["wandb", "agent", "--count", "1", "me/snugfit/abc123"]


# ---- the time limit


class Announce(Callback):
    """Announces the limit as Slurm does, in the middle of a step.

    Args:
        step: Before which optimiser step.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGUSR1)


def _part(name: str, **arguments) -> dict:
    return {"class_path": name, "init_args": arguments}


_LAST = {"filename": "last", "every_n_epochs": 1, "save_on_train_epoch_end": True, "enable_version_counter": False}
#: Averaged weights come before the checkpoint, whatever the order here.
CALLBACKS = [
    _part("lightning_modules.requeue.GoOn"),
    _part("lightning.pytorch.callbacks.ModelCheckpoint", **_LAST),
    _part("lightning_modules.callbacks.EmaWeights", decay=0.9),
]


def _fit(version: str, *callbacks: dict) -> int:
    parts = ["--trainer.callbacks", json.dumps([*CALLBACKS, *callbacks]), "--trainer.limit_val_batches", "0"]
    words = ["--ckpt_path", "last", "--run_version", version, "--trainer.num_sanity_val_steps", "0"]
    return main(["fit", "--config", TINY, *parts, *words])


def _losses(folder: Path) -> list[tuple[int, str]]:
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of Slurm whose `scontrol` writes down what it is asked for."""
    handler = signal.getsignal(signal.SIGUSR1)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    signal.signal(signal.SIGUSR1, handler)


@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_a_job_goes_on_after_its_time_limit_as_if_there_were_none(slurm, capsys):
    """Loss by loss and weight by weight; of the interrupted step the loss is not logged."""
    assert _fit("unbroken") == 0
    assert not (slurm / "asked").exists()
    assert _fit("job_77", _part("test_slurm.Announce", step=2)) == 0
    assert (slurm / "asked").read_text() == "requeue 77\n"
    assert "step 3 saved in runs/tiny/job_77/checkpoints/last.ckpt, requeueing job 77" in capsys.readouterr().err
    unbroken, broken = slurm / "runs/tiny/unbroken", slurm / "runs/tiny/job_77"
    assert _losses(broken) == _losses(unbroken)[:2]
    assert _fit("job_77") == 0
    assert _losses(broken) == [row for row in _losses(unbroken) if row[0] != 2]
    assert sorted(path.name for path in (slurm / "runs/tiny").iterdir()) == ["job_77", "unbroken"]
    kept, wanted = (torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (broken, unbroken))
    for weights in ("state_dict", "current_model_state"):
        for name, value in wanted[weights].items():
            assert torch.equal(kept[weights][name], value), name


def test_outside_slurm_the_signal_is_left_alone(slurm, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    GoOn().setup(trainer, LightningModule(), "fit")
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN


def test_a_job_that_slurm_does_not_requeue_fails(slurm, capsys, monkeypatch):
    assert JobEnds("77", "saved", first=False).requeue() == 0
    assert not (slurm / "asked").exists()
    (slurm / "bin" / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    assert JobEnds("77", "saved", first=True).requeue() == 1
    monkeypatch.setenv("PATH", "")
    assert JobEnds("77", "saved", first=True).requeue() == 1
    assert capsys.readouterr().err.count("not requeued; submit the job again") == 2
    # Whoever trains from Python and leaves it at that gets a message and exit code 1.
    assert JobEnds("77", "saved in x.ckpt", first=True).code == "snugfit: saved in x.ckpt, job 77 not requeued"


def test_a_task_of_an_array_is_requeued_by_its_own_name(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "80")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert _job_id() == "77_3"


# ---- the folder of a run


def test_a_run_that_goes_on_keeps_its_numbers_and_forgets_those_it_makes_again(tmp_path):
    first = RunFolder(str(tmp_path), "run", "job_1")
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step)
    first.log_metrics({"val/pve": 9.0}, 1)
    first.save()
    again = RunFolder(str(tmp_path), "run", "job_1")
    again.forget_from(2)
    again.log_metrics({"train/loss": 20.0, "lr": 0.1}, 2)
    again.save()
    with (tmp_path / "run/job_1/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["train/loss"], row["val/pve"], row["lr"]) for row in rows] == [
        ("0", "0.0", "", ""),
        ("1", "1.0", "", ""),
        ("1", "", "9.0", ""),
        ("2", "20.0", "", "0.1"),
    ]


def test_a_new_run_gets_a_new_folder_unless_it_is_one_of_a_sweep(tmp_path, monkeypatch):
    for variable in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    assert RunFolder(str(tmp_path), "run").version == 0
    (tmp_path / "run" / "version_0").mkdir(parents=True)
    assert RunFolder(str(tmp_path), "run").version == 1
    monkeypatch.setenv("WANDB_RUN_ID", "abc")  # a batch file sets it, too
    assert RunFolder(str(tmp_path), "run").version == 1
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert RunFolder(str(tmp_path), "run").version == "abc"
    assert RunFolder(str(tmp_path), "run", "point_001").version == "point_001"


_SWEEP_RUN = """
from lightning_modules.loggers import OfflineFirstWandb, RunFolder
logger = OfflineFirstWandb("runs", "named")
logger.log_hyperparams({"model": {"crop_px": 32}})
run = logger.experiment
assert run.id == "abc123" and run.sweep_id == "s1", (run.id, run.sweep_id)
assert run.config["model.surface_weight"] == 0.5 and run.config["model"] == {"crop_px": 32}, dict(run.config)
assert run.settings.run_name != "named"
assert not logger._offline
"""


def test_a_run_of_a_sweep_is_the_run_that_wandb_asked_for(tmp_path):
    """In a process of its own with what `wandb agent` sets, but for the server."""
    parameters = tmp_path / "config.yaml"
    parameters.write_text("wandb_version: 1\nmodel.surface_weight:\n  value: 0.5\n")
    environment = os.environ | {
        "WANDB_SWEEP_ID": "s1",
        "WANDB_RUN_ID": "abc123",
        "WANDB_SWEEP_PARAM_PATH": str(parameters),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("WANDB_API_KEY", None)
    command = [sys.executable, "-c", _SWEEP_RUN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
