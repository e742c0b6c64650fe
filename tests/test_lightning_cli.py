"""`snugfit fit`, `validate`, `test` and `predict` through the real command, on a synthetic set that they make."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import lightning_modules.loggers
from lightning_modules.cli import (
    BASE_CONFIG,
    RefinementCLI,
    checkpoint_hyperparameters,
    without_meant_warnings,
)
from lightning_modules.loggers import OfflineFirstWandb
from lightning_modules.refinement import RefinementModule
from main import main

ROOT = Path(__file__).resolve().parent.parent
TINY = str(Path(__file__).parent / "configs" / "tiny.yaml")
#: Sweeps are files for other commands, see test_sweeps.py.
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "sweeps")
#: Saves in mid-epoch: an epoch of tiny.yaml has four steps.
MID_EPOCH = {
    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
    "init_args": {"filename": "mid", "every_n_train_steps": 3},
}
#: Without validation, so without the callbacks that wait for it.
QUICK = ["--trainer.limit_val_batches", "0", "--trainer.callbacks", json.dumps([MID_EPOCH])]
EMA = {"class_path": "lightning_modules.callbacks.EmaWeights", "init_args": {"decay": 0.9}}
WANDB = {"class_path": "lightning_modules.loggers.OfflineFirstWandb", "init_args": {"save_dir": "runs"}}
VERSION = Path("runs/tiny/version_0")


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder in which tiny.yaml was trained to its end, and the synthetic set it made."""
    folder = tmp_path_factory.mktemp("run")
    _in(folder, _fit)
    return folder


def _in(folder: Path, function, *args):
    before = Path.cwd()
    os.chdir(folder)
    try:
        return function(*args)
    finally:
        os.chdir(before)


def _fit(*words: str) -> None:
    assert main(["fit", "--config", TINY, "--trainer.callbacks+", json.dumps(MID_EPOCH), *words]) == 0


def _curve(folder: Path) -> dict[int, str]:
    """Training loss by step, to the last digit."""
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def _table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["row"]: row for row in csv.DictReader(file) if row["group"] == "all"}


# ---- a run and what it leaves behind


def test_fit_leaves_checkpoints_tables_and_pictures(run):
    folder = run / VERSION
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt", "mid.ckpt"}
    assert _curve(folder).keys() == set(range(6))
    table = _table(folder / "tables" / "val.csv")
    assert list(table) == ["zero", "stack_1", "stack_2", "initial", "displacements"]
    assert 40 < float(table["initial"]["mpjpe_mm"]) < 250
    assert int(table["initial"]["samples"]) == 3
    pictures = sorted(p.name for p in (folder / "pictures").iterdir())
    assert pictures == [f"val_step_000000{step}_00{k}.png" for step in (3, 6) for k in range(3)]
    samples = (folder / "tables" / "val_samples.csv").read_text().splitlines()
    assert samples[1].startswith("synthetic/validation-0-00000/0000000/0,")
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["crop_px"] == 32
    assert cv2.imread(str(folder / "curve.png")).shape == (440, 1210, 3)  # errors of maps and of bodies


def test_a_reference_is_resolved_after_all_layers_are_merged(run):
    hyperparameters = checkpoint_hyperparameters(run / VERSION / "checkpoints" / "last.ckpt")
    assert hyperparameters["scheduler"]["init_args"]["total_steps"] == 6


def test_the_checkpoint_holds_plain_settings_and_the_network_alone(run):
    path = run / VERSION / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert all(name.startswith("network.") for name in checkpoint["state_dict"])
    assert json.loads(json.dumps(checkpoint["hyper_parameters"]))["body"]["model"] == "standin-tiny"
    # The weights and Adam's two means of each, and its counters; a body would add more than that.
    weights = sum(value.numel() for value in checkpoint["state_dict"].values())
    assert sum(value.numel() for value in _tensors(checkpoint)) < 3.1 * weights


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def test_a_checkpoint_rebuilds_its_module(run):
    path = run / VERSION / "checkpoints" / "best.ckpt"
    with without_meant_warnings():
        module = RefinementModule.load_from_checkpoint(path, weights_only=True)
    assert module.network.stacks == 2
    assert module.crop_px == 32
    assert module.fitting.solver.max_steps == 3
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all((module.state_dict()[name] == value).all() for name, value in state.items())


def test_a_test_takes_the_network_from_the_checkpoint_and_the_fit_from_the_command_line(run):
    checkpoint = str(VERSION / "checkpoints" / "best.ckpt")
    # Only data and trainer from the file: the module is what the checkpoint says.
    parts = yaml.safe_load(Path(TINY).read_text())
    data = run / "data.yaml"
    data.write_text(yaml.safe_dump({"data": parts["data"], "trainer": parts["trainer"] | {"max_steps": 1}}))
    words = ["test", "--config", str(data), "--ckpt_path", checkpoint, "--run_name", "tested"]
    words += ["--trainer.logger+", json.dumps(WANDB)]
    assert _in(run, main, [*words, "--model.fitting.prior", "none"]) == 0
    folder = run / "runs/tested/version_0"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["network"]["init_args"]["stacks"] == 2
    assert config["model"]["fitting"]["prior"] == "none"
    assert config["model"]["fitting"]["solver"]["max_steps"] == 3
    table = _table(folder / "tables" / "test.csv")
    rows = ["initial", "keypoints_detected", "keypoints_true", "displacements", "displacements_true"]
    assert [row for row in table if "stack" not in row and row != "zero"] == rows
    assert float(table["keypoints_true"]["pixel_error_px"]) < float(table["initial"]["pixel_error_px"])
    assert float(table["displacements_true"]["pixel_error_px"]) < float(table["initial"]["pixel_error_px"])
    assert len(list((folder / "pictures").glob("test_*.png"))) == 3
    media = list((run / "runs/wandb").glob("offline-run-*/files/media"))
    assert len(list(media[0].rglob("*.png"))) == 3
    assert len(list(media[0].rglob("*.table.json"))) == 1


def test_validate_repeats_what_fit_has_measured(run):
    checkpoint = str(VERSION / "checkpoints" / "last.ckpt")
    assert _in(run, main, ["validate", "--config", TINY, "--ckpt_path", checkpoint, "--run_name", "validated"]) == 0
    again = _table(run / "runs/validated/version_0/tables/val.csv")
    assert again == _table(run / VERSION / "tables" / "val.csv")


def test_predict_writes_the_refined_bodies(run):
    checkpoint = str(VERSION / "checkpoints" / "best.ckpt")
    assert _in(run, main, ["predict", "--config", TINY, "--ckpt_path", checkpoint, "--run_name", "predicted"]) == 0
    with np.load(run / "runs/predicted/version_0/predictions/made.npz", allow_pickle=False) as arrays:
        assert arrays["row_ids"].tolist() == [f"synthetic/test-0-0000{k % 2}/000000{k}/0" for k in range(3)]
        assert arrays["rotations"].shape == (3, 24, 3, 3)
        assert arrays["accepted"].any()
        assert (arrays["transl"][:, 2] > 0).all()


# ---- interruption


def _fit_and_die(folder: Path) -> None:
    kill = {"class_path": "tiny_refinement.Kill", "init_args": {"step": 5}}
    _in(folder, _fit, *QUICK, "--trainer.callbacks+", json.dumps(kill))


def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(run, tmp_path):
    (tmp_path / "data").symlink_to(run / "data")
    process = multiprocessing.get_context("spawn").Process(target=_fit_and_die, args=(tmp_path,))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    _in(tmp_path, _fit, *QUICK, "--ckpt_path", str(VERSION / "checkpoints" / "mid.ckpt"))
    unbroken, resumed = _curve(run / VERSION), _curve(tmp_path / "runs/tiny/version_1")
    assert resumed.keys() == {3, 4, 5}
    assert {step: unbroken[step] for step in resumed} == resumed


def test_a_run_that_ended_with_an_epoch_goes_on_from_its_last_checkpoint(run, tmp_path):
    (tmp_path / "data").symlink_to(run / "data")
    schedule = ["--model.scheduler.init_args.total_steps", "6"]
    ended = ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "0"]
    assert _in(tmp_path, main, ["fit", "--config", TINY, *ended, *schedule]) == 0
    last = str(VERSION / "checkpoints" / "last.ckpt")
    assert _in(tmp_path, main, ["fit", "--config", TINY, "--trainer.limit_val_batches", "0", "--ckpt_path", last]) == 0
    unbroken, resumed = _curve(run / VERSION), _curve(tmp_path / "runs/tiny/version_1")
    assert resumed == {step: unbroken[step] for step in (4, 5)}


# ---- averaged weights, and several processes


@pytest.fixture(scope="module")
def shared_run(run, tmp_path_factory):
    """A folder in which two processes trained with averaged weights and all callbacks, validating once, at the end."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "data").symlink_to(run / "data")
    words = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.callbacks+", json.dumps(EMA)]
    words += ["--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.num_sanity_val_steps", "0"]
    # A new interpreter, because Lightning starts the second process with the words of this one.
    command = [sys.executable, str(ROOT / "main.py"), "fit", "--config", TINY, *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_two_processes_train_and_one_of_them_reports(shared_run):
    folder = shared_run / VERSION
    assert _curve(folder).keys() == {0, 1, 2}
    assert int(_table(folder / "tables" / "val.csv")["initial"]["samples"]) == 3
    # Of the three samples the first process has two, and it alone draws.
    assert [p.name for p in sorted((folder / "pictures").iterdir())] == [f"val_step_0000003_00{k}.png" for k in (0, 1)]
    assert not (shared_run / "runs/tiny/version_1").exists()


def test_the_best_checkpoint_holds_the_averaged_weights_that_were_validated(shared_run):
    best = str(VERSION / "checkpoints" / "best.ckpt")
    assert _in(shared_run, main, ["validate", "--config", TINY, "--ckpt_path", best, "--run_name", "again"]) == 0
    again, then = (_table(shared_run / f"runs/{name}/version_0/tables/val.csv") for name in ("again", "tiny"))
    for row, numbers in then.items():
        for name, value in numbers.items():
            if name not in ("group", "row") and value:
                # Batches of other sizes, hence 1e-4; the weights before averaging are off by several times that.
                assert float(again[row][name]) == pytest.approx(float(value), rel=1e-4), (row, name)


# ---- configuration


class _HaveParser(Exception):
    """Ends the command when its parser is made."""


@pytest.fixture(scope="module")
def parser():
    """The parser of `fit`: making it takes longer than all that the tests parse with it."""
    made = []

    def keep(self, parser, args):
        made.append(parser)
        raise _HaveParser

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RefinementCLI, "parse_arguments", keep)
        with pytest.raises(_HaveParser):
            main(["fit"])
    return made[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_config_is_one_that_the_command_takes(path, parser):
    with without_meant_warnings():
        config = parser.parse_args(["fit", "--config", str(BASE_CONFIG), "--config", str(path)]).fit
    assert config.model.network.class_path == "lightning_modules.hourglass.DisplacementNetwork"
    # Lists replace those of the layer below; what every run needs has to be there still.
    kinds = {callback.class_path.rpartition(".")[2] for callback in config.trainer.callbacks}
    assert {"ModelCheckpoint", "ResultTables", "OverlayPictures", "PredictionFiles"} <= kinds
    if config.model.scheduler is not None:
        assert config.model.scheduler.init_args.total_steps == config.trainer.max_steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.crop_size", "3"], "crop_size"),
        (["--model.network.init_args.widthh", "3"], "widthh"),
        (["--model.loss_norm", "l3"], "loss_norm"),
        (["--data.crop_px", "64"], "crop_px"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--trainer.enable_progress_bar", "false"], "found `RichProgressBar` in callbacks list"),
        (["--ckpt_path", "missing.ckpt"], "missing.ckpt: no such checkpoint"),
        (["--ckpt_path", TINY], "tiny.yaml: not a checkpoint of snugfit"),
        (["--run_name", "${.nowhere}"], "reference in the configuration leads nowhere"),
        (["--model.crop_px", "36"], "multiples of 8"),
        (["--model.body.model", "missing.pkl"], "missing.pkl"),
        (["--model.fitting.prior", "missing.npz"], "missing.npz: no such file"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", TINY, *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("snugfit: error: ")
    assert message in lines[-1]


def test_later_configs_win_and_the_command_line_most(tmp_path, parser):
    for name, width in (("a", 16), ("b", 48)):
        network = {"init_args": {"width": width, "depth": 3 if name == "a" else 2}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"model": {"network": network}}))
    paths = [BASE_CONFIG, TINY, tmp_path / "a.yaml", tmp_path / "b.yaml"]
    configs = [word for path in paths for word in ("--config", str(path))]
    with without_meant_warnings():
        config = parser.parse_args(["fit", *configs, "--model.network.init_args.depth", "1"]).fit
    network = config.model.network.init_args
    assert (network.width, network.depth, network.stacks) == (48, 1, 2)


def test_the_configuration_can_be_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", TINY, "--print_config"])
    assert end.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["run_name"] == "tiny"


def test_the_base_config_is_where_the_command_looks_for_it():
    assert BASE_CONFIG.is_file()
    assert BASE_CONFIG in CONFIGS


# ---- loggers


def test_wandb_is_offline_without_a_key(monkeypatch, tmp_path):
    made = []
    monkeypatch.setattr(
        lightning_modules.loggers.WandbLogger, "__init__", lambda self, **keywords: made.append(keywords)
    )
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    OfflineFirstWandb(str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "key")
    OfflineFirstWandb(str(tmp_path))
    assert [keywords["offline"] for keywords in made] == [True, False]
