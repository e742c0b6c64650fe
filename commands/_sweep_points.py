"""The points of a sweep: each combination of a grid, or settings drawn at random, and how good each turned out."""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

import numpy as np

from bodies.errors import InputError
from bodies.safe_write import whole_file
from commands._sweep_file import Goal, Parameter, SweepFile

#: Where the loggers of configs/base.yaml put the runs.
RUNS: Final = Path("runs")
_RECORD: Final = "sweep.json"


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    number: int
    """Counted from 0."""
    settings: dict[str, Any]
    """What is varied and its values here."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"point_{self.number:03d}"

    @property
    def words(self) -> tuple[str, ...]:
        """Its options, as W&B's agent would write them."""
        return tuple(f"--{key}={value}" for key, value in self.settings.items())


def sweep_points(sweep: SweepFile, count: int | None, seed: int) -> list[Point]:
    """The points of a sweep; point k is the same whatever their number.

    Args:
        sweep: The sweep.
        count: How many; by default all of a grid, and of random ones as many as the file's run_cap.
        seed: Of the random ones.

    Raises:
        InputError: If there is no end to them, or a number makes no sense.
    """
    if seed < 0 or (count is not None and count < 1):
        raise InputError(f"points {count}, seed {seed}: at least one point, and no negative seed")
    keys = [parameter.key for parameter in sweep.parameters]
    match sweep.method:
        case "grid":
            grid = itertools.product(*(parameter.values for parameter in sweep.parameters))
            settings = (dict(zip(keys, values, strict=True)) for values in grid)
        case "random":
            if count is None and sweep.run_cap is None:
                raise InputError(f"{sweep.path}: a random sweep needs a run_cap, or --points")
            settings = (_drawn(sweep.parameters, seed, number) for number in itertools.count())
        case _:
            assert_never(sweep.method)
    chosen = itertools.islice(settings, count or sweep.run_cap)
    return [Point(number, values) for number, values in enumerate(chosen)]


def _drawn(parameters: Sequence[Parameter], seed: int, number: int) -> dict[str, Any]:
    rng = np.random.default_rng((seed, number))
    return {parameter.key: _value(parameter, rng) for parameter in parameters}


def _value(parameter: Parameter, rng: np.random.Generator) -> Any:
    low, high = parameter.values[0], parameter.values[-1]
    match parameter.range:
        case None:
            return parameter.values[int(rng.integers(len(parameter.values)))]
        case "uniform":
            return float(rng.uniform(low, high))
        case "int_uniform":
            return int(rng.integers(low, high, endpoint=True))
        case "log_uniform_values":
            return float(np.exp(rng.uniform(math.log(low), math.log(high))))
        case _:
            assert_never(parameter.range)


def recorded(sweep: SweepFile, point: Point) -> float | None:
    """What a point that was run before came to; None if it was not, or did not come to its end.

    Raises:
        InputError: If what was run under its name was another command.
    """
    path = RUNS / sweep.name / point.name / _RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        words, value = record["command"], float(record[sweep.metric])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a point with {sweep.metric} ({type(error).__name__})") from error
    if words != [*sweep.words, *point.words]:
        raise InputError(f"{path}: was made by another command; give the sweep another name, or remove that folder")
    return value


def record(sweep: SweepFile, point: Point, value: float) -> None:
    """Notes what a point came to."""
    content = {"command": [*sweep.words, *point.words], sweep.metric: value}
    with whole_file(RUNS / sweep.name / point.name / _RECORD) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def best_value(metrics: Path, metric: str, goal: Goal) -> float:
    """The best of what a run logged of a number.

    Raises:
        InputError: If it logged none.
    """
    try:
        with metrics.open(newline="", encoding="utf-8") as file:
            numbers = [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]
    except OSError as error:
        raise InputError(f"{metrics}: not written by the run; is RunFolder among its loggers? ({error})") from error
    finite = [number for number in numbers if math.isfinite(number)]
    if not finite:
        raise InputError(f"{metrics}: no {metric} was logged")
    return min(finite) if goal == "minimize" else max(finite)


def write_table(sweep: SweepFile, results: Sequence[tuple[Point, float]]) -> Path:
    """Writes points and what they came to, in the order given, and returns the file."""
    path = RUNS / sweep.name / "sweep.csv"
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["point", sweep.metric, *(parameter.key for parameter in sweep.parameters)])
        writer.writerows([point.name, value, *point.settings.values()] for point, value in results)
    return path
