"""Sweeps: files whose settings the command line takes, and running them here."""

import csv
import itertools
import json
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

import commands.sweep
from bodies.errors import InputError
from commands._sweep_file import read_sweep
from commands._sweep_points import best_value, sweep_points
from lightning_modules.cli import OptionCheck
from lightning_modules.evaluation import EvaluationSettings, columns
from main import main

ROOT = Path(__file__).resolve().parent.parent
TINY = str(Path(__file__).parent / "configs" / "tiny.yaml")
SWEEPS = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
METRIC = "val/displacements/pve_mm"
GRID = {
    "method": "grid",
    "metric": {"name": METRIC, "goal": "minimize"},
    "parameters": {
        "model.fitting.prior": {"values": ["standin", "none"]},
        "model.fitting.weights.pose_prior": {"values": [1.0, 4.0]},
    },
    "command": ["${env}", "${interpreter}", "${program}", "validate", f"--config={TINY}", "${args}"],
}
LOG_RANGE = {"distribution": "log_uniform_values", "min": 0.5, "max": 64.0}


@pytest.fixture(autouse=True)
def _no_progress(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")


@pytest.fixture(scope="module")
def checks():
    """A check of the words of each verb: making one takes a second."""
    return {verb: OptionCheck(verb) for verb in ("fit", "validate")}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function that writes a sweep file, in a folder that is the current one; a key set to None is left out."""
    monkeypatch.chdir(tmp_path)

    def write(**changes) -> str:
        content = {key: value for key, value in (GRID | changes).items() if value is not None}
        Path("s.yaml").write_text(yaml.safe_dump(content))
        return "s.yaml"

    return write


# ---- the files that ship


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_command_takes_every_value(path, checks, monkeypatch):
    """The ends of ranges included. Checkpoints that the user has to bring are left out."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(path)
    verb, *words = sweep.words
    words = [word for word in words if not (word.startswith("--ckpt_path=") and not Path(word[12:]).exists())]
    for number in range(max(len(parameter.values) for parameter in sweep.parameters)):
        values = ((each.key, each.values[number % len(each.values)]) for each in sweep.parameters)
        checks[verb]([*words, *(f"--{key}={value}" for key, value in values), "--run_version=x"])


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_metric_is_one_that_is_logged(path):
    sweep = read_sweep(path)
    logged = columns(EvaluationSettings().validation_rows, stacks=1)
    assert sweep.metric.removeprefix("val/") in logged
    assert sweep.metric.startswith("val/")
    assert sweep.words[0] in ("fit", "validate")  # both validate; a test would choose on the test set
    assert f"--run_name={path.stem}" in sweep.words


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_agent_of_wandb_runs_the_same_command(path):
    """By the agent's own functions: they fill in the command as it does before it starts a run."""
    content = yaml.safe_load(path.read_text())
    point = sweep_points(read_sweep(path), 3, seed=0)[-1]
    given = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.settings.items()}})
    given |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [content["program"]]}
    filled = (
        given[word[2:-1]] if word.startswith("${") else [word] for word in create_sweep_command(content["command"])
    )
    words = list(itertools.chain.from_iterable(filled))
    assert words[:3] == ["/usr/bin/env", "python", "main.py"]
    assert words[3:] == [*read_sweep(path).words, *point.words]
    assert (ROOT / content["program"]).is_file()


def test_some_sweep_needs_no_licensed_file():
    for name in ("fit_weights", "priors", "training_losses"):
        text = (ROOT / "configs" / "sweeps" / f"{name}.yaml").read_text()
        assert "priors/" not in text
        assert "smpl" not in text.lower().replace("priors_smpl", "")


# ---- points


def test_a_grid_is_every_combination_in_the_order_of_the_file(written):
    points = sweep_points(read_sweep(Path(written())), None, 0)
    settings = [tuple(point.settings.values()) for point in points]
    assert settings == [("standin", 1.0), ("standin", 4.0), ("none", 1.0), ("none", 4.0)]
    assert points[3].name == "point_003"
    assert points[1].words == ("--model.fitting.prior=standin", "--model.fitting.weights.pose_prior=4.0")


def test_random_points_depend_on_seed_and_number_alone(written):
    ranges = {"a": LOG_RANGE, "b": {"min": 1, "max": 3}, "c": {"min": 0.0, "max": 1.0}, "d": {"values": ["x", "y"]}}
    sweep = read_sweep(Path(written(method="random", parameters=ranges, run_cap=200)))
    points = sweep_points(sweep, None, 0)
    assert len(points) == 200
    assert sweep_points(sweep, 7, 0) == points[:7]
    assert sweep_points(sweep, 7, 1) != points[:7]
    drawn = {key: [point.settings[key] for point in points] for key in ranges}
    assert 0.5 <= min(drawn["a"]) < 1 < 32 < max(drawn["a"]) <= 64
    # Half of the values lie below the middle of the logarithms; 5 standard deviations of 200 coins are 35.
    assert abs(sum(value < 32**0.5 for value in drawn["a"]) - 100) < 35
    assert set(drawn["b"]) == {1, 2, 3}
    assert 0 <= min(drawn["c"]) < 0.1 < 0.9 < max(drawn["c"]) <= 1
    assert set(drawn["d"]) == {"x", "y"}


# ---- files that make no sense


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {}}, "s.yaml: unknown key metrics"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs W&B's server"),
        ({"method": "bayes"}, "bayes needs W&B's server"),
        ({"method": "all"}, "method must be grid or random, got 'all'"),
        ({"metric": None}, "metric must be keys with values"),
        ({"metric": {"name": METRIC, "aim": "minimize"}}, "unknown key metric.aim"),
        ({"metric": {"name": METRIC, "goal": "low"}}, "minimize or maximize"),
        ({"parameters": {}}, "parameters must be keys with values"),
        ({"parameters": {"a": {"value": 1, "q": 2}}}, "unknown key parameters.a.q"),
        ({"parameters": {"a": {"values": []}}}, "parameters.a must have a value"),
        ({"parameters": {"a": {"value": 1, "min": 0}}}, "parameters.a must have a value"),
        ({"parameters": {"a": {"values": [1, None]}}}, "parameters.a: write null in quotes"),
        ({"parameters": {"a": LOG_RANGE}}, "parameters.a: a grid needs values"),
        ({"method": "random", "parameters": {"a": {"min": 2, "max": 1}}}, "min < max"),
        ({"method": "random", "parameters": {"a": LOG_RANGE | {"min": 0.0}}}, "cannot be drawn from 0.0"),
        ({"method": "random", "parameters": {"a": LOG_RANGE | {"distribution": "beta"}}}, "got 'beta'"),
        ({"method": "random"}, "a random sweep needs a run_cap"),
        ({"run_cap": 0}, "run_cap must be a whole number above 0"),
        ({"name": "../up"}, "no name of a folder"),
        ({"command": ["${program}", "validate"]}, "with ${args} once"),
        ({"command": ["${program}", "test", "${args}"]}, "fit or validate"),
        ({"command": ["validate", "${args_json}", "${args}"]}, "${args_json} in command works with W&B's agent only"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_2(changes, message, written, capsys):
    assert main(["sweep", written(**changes), "--dry-run"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("snugfit: error: s.yaml: ")
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_file_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "list.yaml").write_text("- a\n")
    for name in ("missing.yaml", "list.yaml"):
        assert main(["sweep", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parameters": {"model.fitting.weights.pose_priors": {"values": [1.0]}}},
            "parameters: --model.fitting.weights.pose_priors=1.0:",
        ),
        ({"parameters": {"model.loss_norm": {"values": ["l1", "l3"]}}}, "parameters: --model.loss_norm=l3:"),
        ({"command": ["validate", "--config=missing.yaml", "${args}"]}, "command: "),
    ],
)
def test_a_setting_that_the_command_does_not_take_is_named_before_anything_runs(
    changes, message, written, checks, monkeypatch, capsys
):
    monkeypatch.setattr("lightning_modules.cli.OptionCheck", lambda verb: checks[verb])
    assert main(["sweep", written(**changes)]) == 2
    assert f"snugfit: error: s.yaml: {message}" in capsys.readouterr().err
    assert not Path("runs").exists()


# ---- running one


@pytest.fixture
def runs(monkeypatch):
    """The commands that were run; what they would have measured is read off their settings."""
    made = []

    def run(words, group, log):
        made.append(words)
        options = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
        if options.get("model.fitting.weights.pose_prior") == "4.0" and options["model.fitting.prior"] == "none":
            log.write_text("it broke\n")
            return 1
        folder = Path("runs", options["run_name"], options["run_version"])
        folder.mkdir(parents=True, exist_ok=True)
        value = float(options["model.fitting.weights.pose_prior"]) + 10 * (options["model.fitting.prior"] == "none")
        (folder / "metrics.csv").write_text(f"step,{METRIC}\n1,{value + 1}\n2,\n3,{value}\n4,nan\n")
        return 0

    monkeypatch.setattr(commands.sweep, "_run", run)
    monkeypatch.setattr(commands.sweep, "_check", lambda sweep_file, points: None)
    return made


def _table() -> list[list[str]]:
    with Path("runs/s/sweep.csv").open() as file:
        return list(csv.reader(file))


def test_points_are_compared_and_finished_ones_not_run_again(written, runs, capsys):
    file = written()
    assert main(["sweep", file]) == 1  # one of them fails
    assert [words[-1] for words in runs] == [f"--run_version=point_00{k}" for k in range(4)]
    table = _table()
    assert table[0] == ["point", METRIC, "model.fitting.prior", "model.fitting.weights.pose_prior"]
    assert [row[:2] for row in table[1:]] == [["point_000", "1.0"], ["point_001", "4.0"], ["point_002", "11.0"]]
    out = capsys.readouterr().out
    assert "point_003" in out
    assert "failed with exit code 1, see runs/s/point_003.log" in out
    assert "s: 3 of 4 points, best first" in out
    assert main(["sweep", file]) == 1
    assert [words[-1] for words in runs[4:]] == ["--run_version=point_003"]


def test_one_point_is_run_for_an_array_of_jobs(written, runs):
    file = written(metric={"name": METRIC, "goal": "maximize"})
    assert main(["sweep", file, "--point", "2"]) == 0
    assert main(["sweep", file, "--point", "0"]) == 0
    assert len(runs) == 2
    # The best is what a run logged best, and the order is the other way round.
    assert [row[:2] for row in _table()[1:]] == [["point_002", "12.0"], ["point_000", "2.0"]]
    assert main(["sweep", file, "--point", "4"]) == 2
    assert main(["sweep", file, "--points", "0"]) == 2


def test_a_point_that_was_another_command_is_not_taken_for_this_one(written, runs, capsys):
    assert main(["sweep", written(), "--point", "0"]) == 0
    changed = GRID["parameters"] | {"model.fitting.weights.pose_prior": {"values": [2.0, 4.0]}}
    assert main(["sweep", written(parameters=changed), "--point", "0"]) == 2
    assert "runs/s/point_000/sweep.json: was made by another command" in capsys.readouterr().err
    Path("runs/s/point_000/sweep.json").write_text("[]")
    assert main(["sweep", written(), "--point", "0"]) == 2


def test_wrong_input_of_a_run_ends_the_sweep(written, runs, monkeypatch, capsys):
    def run(words, group, log):
        log.write_text("loading\nsnugfit: error: x.ckpt: no such checkpoint\n")
        return 2

    monkeypatch.setattr(commands.sweep, "_run", run)
    assert main(["sweep", written()]) == 2
    assert "s.yaml: point_000: x.ckpt: no such checkpoint" in capsys.readouterr().err


def test_a_number_that_was_never_logged_is_an_error(tmp_path):
    metrics = tmp_path / "metrics.csv"
    with pytest.raises(InputError, match="not written by the run"):
        best_value(metrics, METRIC, "minimize")
    metrics.write_text(f"step,{METRIC}\n0,\n1,nan\n")
    with pytest.raises(InputError, match=f"no {METRIC} was logged"):
        best_value(metrics, METRIC, "minimize")


def test_a_dry_run_prints_the_commands(written, runs, capsys):
    assert main(["sweep", written(), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("snugfit validate --config=")
    assert lines[0].endswith("--model.fitting.weights.pose_prior=1.0 --run_name=s --run_version=point_000")
    assert not runs
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_sweep_of_real_runs(written, capsys):
    """Two validations of an untrained network, in processes of their own, through the whole command."""
    parameters = {"model.fitting.prior": {"values": ["none", "standin"]}}
    assert main(["sweep", written(parameters=parameters)]) == 0
    values = [float(row[1]) for row in _table()[1:]]
    assert 50 < values[0] <= values[1] < 250
    assert json.loads(Path("runs/s/point_000/sweep.json").read_text())[METRIC] in values
    assert Path("runs/s/point_001/tables/val.csv").is_file()
    assert "s: 2 of 2 points" in capsys.readouterr().out
