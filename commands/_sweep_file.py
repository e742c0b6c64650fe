"""Sweep files, in the format of W&B's: what is varied, how, and the command that is run."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from omegaconf import OmegaConf

from bodies.errors import InputError, one_line

Method = Literal["grid", "random"]
Goal = Literal["minimize", "maximize"]
Range = Literal["uniform", "int_uniform", "log_uniform_values"]

#: Keys of the file; the second ones name the sweep in W&B and mean nothing here.
_KEYS: Final = ("name", "program", "method", "metric", "parameters", "command", "run_cap")
_NAMES_IN_WANDB: Final = ("project", "entity", "description")
_PARAMETER_KEYS: Final = ("value", "values", "distribution", "min", "max")
#: W&B's words for what a list or one value means already.
_OF_VALUES: Final = ("categorical", "constant")
#: Not `test`: settings are chosen on the validation set.
_VERBS: Final = ("fit", "validate")
_PROGRAM: Final = ("${env}", "${interpreter}", "${program}")
_ARGUMENTS: Final = "${args}"
_VARIABLE: Final = re.compile(r"\$\{envvar:([A-Z0-9_]+)\}")


@dataclass(frozen=True)
class Parameter:
    """A key of the configuration and what it may be."""

    key: str
    """The option without its dashes."""
    values: tuple[Any, ...]
    """The values to choose from; of a range, its two ends."""
    range: Range | None
    """How to draw between the ends, if it is a range."""


@dataclass(frozen=True)
class SweepFile:
    """A sweep file that was read and found to make sense."""

    path: Path
    """The file."""
    name: str
    """Name of the sweep and of the folder of its runs."""
    method: Method
    """All combinations, or drawn ones."""
    words: tuple[str, ...]
    """The command: a verb of snugfit and the options that all runs share."""
    metric: str
    """Which number is compared."""
    goal: Goal
    """Which of two is better."""
    parameters: tuple[Parameter, ...]
    """What is varied, in the order of the file."""
    run_cap: int | None
    """At most so many runs."""


def read_sweep(path: Path) -> SweepFile:
    """Reads a sweep file.

    Raises:
        InputError: If it cannot be read, has a key that is not known or a value that makes no sense, or asks for what
            only W&B's server can do.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # of the file system, of YAML, of OmegaConf
        raise InputError(f"{path}: cannot be read as a sweep file ({one_line(error)})") from error
    sweep = _mapping(path, "the file", content)
    for key in sweep:
        if key == "early_terminate":
            raise InputError(f"{path}: early_terminate needs W&B's server")
        if key not in _KEYS + _NAMES_IN_WANDB:
            raise InputError(f"{path}: unknown key {key}; there are {', '.join(_KEYS + _NAMES_IN_WANDB)}")
    method, (metric, goal) = _method(path, sweep), _metric(path, sweep)
    parameters = _mapping(path, "parameters", sweep.get("parameters"))
    cap = sweep.get("run_cap")
    if cap is not None and not (_is_whole(cap) and cap > 0):
        raise InputError(f"{path}: run_cap must be a whole number above 0, got {cap!r}")
    return SweepFile(
        path=path,
        name=_name(path, sweep),
        method=method,
        words=_command(path, sweep),
        metric=metric,
        goal=goal,
        parameters=tuple(_parameter(path, method, key, value) for key, value in parameters.items()),
        run_cap=cap,
    )


def _mapping(path: Path, what: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        raise InputError(f"{path}: {what} must be keys with values, got {value!r}")
    return value


def _name(path: Path, sweep: Mapping[str, Any]) -> str:
    name = str(sweep.get("name", path.stem))
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise InputError(f"{path}: name {name!r} is no name of a folder")
    return name


def _method(path: Path, sweep: Mapping[str, Any]) -> Method:
    method: Any = sweep.get("method")
    if method == "bayes":
        raise InputError(f"{path}: method bayes needs W&B's server; without it there are grid and random")
    if method not in get_args(Method):
        raise InputError(f"{path}: method must be grid or random, got {method!r}")
    chosen: Method = method
    return chosen


def _metric(path: Path, sweep: Mapping[str, Any]) -> tuple[str, Goal]:
    metric = _mapping(path, "metric", sweep.get("metric"))
    for key in metric:
        if key not in ("name", "goal"):
            raise InputError(f"{path}: unknown key metric.{key}; there are name, goal")
    name, goal = metric.get("name"), metric.get("goal", "minimize")
    if not isinstance(name, str) or goal not in get_args(Goal):
        raise InputError(f"{path}: metric must have a name, and minimize or maximize as its goal")
    return name, goal


def _command(path: Path, sweep: Mapping[str, Any]) -> tuple[str, ...]:
    """The verb and what follows it, where W&B's agent would put in the arguments of a run."""
    command = sweep.get("command")
    if not isinstance(command, list) or command.count(_ARGUMENTS) != 1:
        raise InputError(f"{path}: command must be a list of words with {_ARGUMENTS} once among them")
    words = [_VARIABLE.sub(_variable, str(word)) for word in command if word not in (*_PROGRAM, _ARGUMENTS, "snugfit")]
    if not words or words[0] not in _VERBS:
        raise InputError(f"{path}: command must run snugfit's {' or '.join(_VERBS)}; settings are not chosen by a test")
    for word in words:
        if word.startswith("${"):
            raise InputError(f"{path}: {word} in command works with W&B's agent only")
    return tuple(words)


def _variable(found: re.Match[str]) -> str:
    """The value of an environment variable; as with W&B its name if it is not set."""
    return os.environ.get(found[1], found[1])


def _parameter(path: Path, method: Method, key: str, value: Any) -> Parameter:
    what = f"parameters.{key}"
    given = _mapping(path, what, value)
    for name in given:
        if name not in _PARAMETER_KEYS:
            raise InputError(f"{path}: unknown key {what}.{name}; there are {', '.join(_PARAMETER_KEYS)}")
    if "value" in given or "values" in given:
        listed = given["values"] if "values" in given else [given["value"]]
        kinds = {name for name in given if name != "distribution"}
        if not (len(kinds) == 1 and isinstance(listed, list) and listed):
            raise InputError(f"{path}: {what} must have a value, a list of values, or min and max")
        if given.get("distribution", "categorical") not in _OF_VALUES:
            raise InputError(f"{path}: {what}: distribution {given['distribution']} goes with min and max")
        if None in listed:  # the agent would write None, which is a word like any other
            raise InputError(f"{path}: {what}: write null in quotes, as the command line has it")
        return Parameter(key, tuple(listed), None)
    if method == "grid":
        raise InputError(f"{path}: {what}: a grid needs values, not a range")
    return _range(path, what, key, given)


def _range(path: Path, what: str, key: str, given: Mapping[str, Any]) -> Parameter:
    low: Any = given.get("min")
    high: Any = given.get("max")
    if not (_is_number(low) and _is_number(high) and low < high):
        raise InputError(f"{path}: {what} must have numbers min < max, got {low!r} and {high!r}")
    whole = _is_whole(low) and _is_whole(high)
    kind = given.get("distribution", "int_uniform" if whole else "uniform")
    if kind not in get_args(Range):
        raise InputError(f"{path}: {what}: distribution must be one of {', '.join(get_args(Range))}, got {kind!r}")
    if (kind == "log_uniform_values" and low <= 0) or (kind == "int_uniform" and not whole):
        raise InputError(f"{path}: {what}: {kind} cannot be drawn from {low} to {high}")
    return Parameter(key, (low, high), kind)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)
