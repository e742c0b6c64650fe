"""Runs a sweep over settings here, without W&B's server, and compares its runs."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bodies.errors import InputError
from commands._sweep_file import SweepFile, read_sweep
from commands._sweep_points import RUNS, Point, best_value, record, recorded, sweep_points, write_table

_MAIN: Final = Path(__file__).resolve().parent.parent / "main.py"
#: Wide enough for the names of some settings, where the output is not a terminal.
_TABLE_WIDTH: Final = 150
_EXIT_USAGE: Final = 2


def sweep(
    file: Path, *, points: int | None = None, point: int | None = None, seed: int = 0, dry_run: bool = False
) -> int:
    """Runs the points of a sweep file one after the other, and prints them with the best first.

    The file is one of `wandb sweep`, see configs/sweeps; methods are grid and random. Runs go to runs/NAME/point_NNN,
    what they print to point_NNN.log, the table to runs/NAME/sweep.csv. A point that was finished before is not run
    again, so an interrupted sweep goes on where it was, and several machines can share the work, each with its --point.

    Args:
        file: The sweep file.
        points: How many points; by default all of a grid, and of random ones the run_cap of the file.
        point: Run but this one, counted from 0.
        seed: Of random points.
        dry_run: Check every setting, print the commands, and run nothing.

    Returns:
        0, or 1 if a point failed.

    Raises:
        InputError: If the file makes no sense, or the command does not take a setting of it.
    """
    sweep_file = read_sweep(file)
    every = sweep_points(sweep_file, points, seed)
    if point is not None and not 0 <= point < len(every):
        raise InputError(f"{file}: no point {point}, there are {len(every)}")
    chosen = every if point is None else [every[point]]
    _check(sweep_file, chosen)
    console = Console()
    if dry_run:
        for each in chosen:
            console.print(shlex.join(["snugfit", *_words(sweep_file, each)]), soft_wrap=True, highlight=False)
        return 0
    failed = sum(not _done(sweep_file, each, len(every), console) for each in chosen)
    values = [(each, recorded(sweep_file, each)) for each in every]
    results = [(each, value) for each, value in values if value is not None]
    results.sort(key=lambda result: result[1], reverse=sweep_file.goal == "maximize")
    _print_table(sweep_file, results, len(every), console)
    return 1 if failed else 0


def _check(sweep_file: SweepFile, points: Sequence[Point]) -> None:
    """Parses the command alone and with each setting, so that a mistake shows before hours of running.

    Raises:
        InputError: If the command does not take one, naming it.
    """
    from lightning_modules.cli import OptionCheck  # it brings torch

    verb, *words = sweep_file.words
    with Console(stderr=True).status("checking the settings"):
        check = OptionCheck(verb)
        try:
            check(words)
        except InputError as error:
            raise InputError(f"{sweep_file.path}: command: {error}") from error
        for word in dict.fromkeys(_settings_to_check(sweep_file, points)):
            try:
                check([*words, word])
            except InputError as error:
                raise InputError(f"{sweep_file.path}: parameters: {word}: {error}") from error


def _settings_to_check(sweep_file: SweepFile, points: Sequence[Point]) -> list[str]:
    """Each listed value that occurs, and of a range the first that was drawn."""
    ranges = {parameter.key for parameter in sweep_file.parameters if parameter.range is not None}
    first = points[0].words
    others = [
        word for point in points[1:] for key, word in zip(point.settings, point.words, strict=True) if key not in ranges
    ]
    return [*first, *others]


def _words(sweep_file: SweepFile, point: Point) -> list[str]:
    """What follows `snugfit`."""
    return [*sweep_file.words, *point.words, f"--run_name={sweep_file.name}", f"--run_version={point.name}"]


def _done(sweep_file: SweepFile, point: Point, count: int, console: Console) -> bool:
    """Runs a point unless it was finished before; whether it is finished now.

    Raises:
        InputError: If the run ends because of the user's input.
    """
    if recorded(sweep_file, point) is not None:
        return True
    folder = RUNS / sweep_file.name / point.name
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.csv").unlink(missing_ok=True)  # of a run that broke off
    begun = time.monotonic()
    with console.status(f"point {point.number} of {count}: {' '.join(point.words)}"):
        code = _run(_words(sweep_file, point), sweep_file.name, log)
    label = f"{point.name}, {time.monotonic() - begun:.0f} s:"
    if code == _EXIT_USAGE:
        raise InputError(f"{sweep_file.path}: {point.name}: {_last_line(log)}")
    if code:
        console.print(f"{label} failed with exit code {code}, see {log}", soft_wrap=True, highlight=False)
        return False
    value = best_value(folder / "metrics.csv", sweep_file.metric, sweep_file.goal)
    record(sweep_file, point, value)
    console.print(f"{label} {sweep_file.metric} {value:.4g}", soft_wrap=True, highlight=False)
    return True


def _run(words: Sequence[str], group: str, log: Path) -> int:
    environment = {**os.environ, "WANDB_RUN_GROUP": group, "TERM": "dumb"}
    # Where a job has set it for a run of its own: each point is one.
    environment.pop("WANDB_RUN_ID", None)
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, str(_MAIN), *words]
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("snugfit: error: ") if lines else f"failed, see {log}"


def _print_table(sweep_file: SweepFile, results: Sequence[tuple[Point, float]], count: int, console: Console) -> None:
    if not console.is_terminal:
        console = Console(width=_TABLE_WIDTH)
    table = Table(title=f"{sweep_file.name}: {len(results)} of {count} points, best first")
    for column in ("point", sweep_file.metric, *(parameter.key for parameter in sweep_file.parameters)):
        table.add_column(column, justify="right", overflow="fold")
    for point, value in results:
        shown = (f"{each:.4g}" if isinstance(each, float) else str(each) for each in point.settings.values())
        table.add_row(str(point.number), f"{value:.2f}", *shown)
    console.print(table)
    console.print(f"wrote {write_table(sweep_file, results)}", soft_wrap=True, highlight=False)
