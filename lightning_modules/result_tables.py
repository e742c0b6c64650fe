"""Results as tables: for people in the console, as CSV for everything else.

One table line is one way of refinement (a row of `evaluation`) for one group of samples: all of them, a data set, or a
sequence. Means are over the samples that can have the number; a mean with a failed sample in it is NaN and stays
visible as such. A number that no sample of the group can have is left out, and a line without numbers too.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final

from rich.table import Table

from bodies.safe_write import whole_file
from lightning_modules.accumulators import GroupSummary, SampleErrors
from lightning_modules.evaluation import FIT_NUMBERS, ROW_NUMBERS

#: Numbers of a table line, in the order of their columns.
NUMBERS: Final = (*ROW_NUMBERS, *FIT_NUMBERS)
#: The rows of displacement maps are told from those of bodies by their one number.
EPE: Final = "epe_px"

GroupName = Callable[[Sequence[int]], str]
"""From the ids of a group, (data set) or (data set, sequence), to what people call it."""


@dataclass(frozen=True)
class TableLine:
    """One way of refinement for one group of samples."""

    group: str
    """What the group is called."""
    row: str
    """Which way."""
    samples: int
    """How many samples the group has."""
    numbers: dict[str, float]
    """Mean of each number that the row has."""


def table_lines(columns: Sequence[str], summary: GroupSummary, name: GroupName) -> list[TableLine]:
    """One line for each group and row, groups in the order of the summary and rows in that of the columns."""
    rows = list(dict.fromkeys(column.rpartition("/")[0] for column in columns))
    lines = []
    for group, key in enumerate(summary.keys.tolist()):
        means = dict(zip(columns, summary.mean[group].tolist(), strict=True))
        counts = dict(zip(columns, summary.count[group].tolist(), strict=True))
        samples = max(counts.values(), default=0)
        # Without any samples the table keeps its shape.
        shown = [column for column in columns if counts[column] or not samples]
        for row in rows:
            numbers = {c.rpartition("/")[2]: means[c] for c in shown if c.rpartition("/")[0] == row}
            if numbers:
                lines.append(TableLine(name(key), row, samples, numbers))
    return lines


def body_lines(lines: Sequence[TableLine]) -> list[TableLine]:
    """Those about bodies."""
    return [line for line in lines if EPE not in line.numbers]


def map_lines(lines: Sequence[TableLine]) -> list[TableLine]:
    """Those about displacement maps."""
    return [line for line in lines if EPE in line.numbers]


def rich_table(lines: Sequence[TableLine], title: str) -> Table:
    """A table for the console."""
    numbers = [n for n in (*NUMBERS, EPE) if any(n in line.numbers for line in lines)]
    table = Table(title=title)
    for heading in ("group", "row"):
        table.add_column(heading, no_wrap=True)
    for heading in ("samples", *(_heading(number) for number in numbers)):
        table.add_column(heading, justify="right")
    for place, line in enumerate(lines):
        last = place + 1 == len(lines) or lines[place + 1].group != line.group
        cells = (_shown(n, line.numbers[n]) if n in line.numbers else "" for n in numbers)
        table.add_row(line.group, line.row, str(line.samples), *cells, end_section=last)
    return table


def write_lines(path: Path, lines: Sequence[TableLine]) -> None:
    """Writes table lines as CSV, full precision, empty where a row lacks a number."""
    numbers = [n for n in (*NUMBERS, EPE) if any(n in line.numbers for line in lines)]
    cells = [[line.group, line.row, line.samples, *(line.numbers.get(n, "") for n in numbers)] for line in lines]
    _write_csv(path, ["group", "row", "samples", *numbers], cells)


def write_samples(path: Path, errors: SampleErrors, sample_name: Callable[[int, int], str]) -> None:
    """Writes the numbers of each sample as CSV, empty where the sample cannot have the number."""
    cells = []
    for place, (dataset, row) in enumerate(zip(errors.dataset_ids.tolist(), errors.row_ids.tolist(), strict=True)):
        values = zip(errors.values[place].tolist(), errors.defined[place].tolist(), strict=True)
        cells.append([sample_name(dataset, row), *(value if defined else "" for value, defined in values)])
    _write_csv(path, ["sample", *errors.columns], cells)


def _write_csv(path: Path, heading: Sequence[str], cells: Sequence[Sequence[object]]) -> None:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    writer.writerows(cells)
    with whole_file(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _heading(number: str) -> str:
    """As people write it: "pa_mpjpe_mm" is "PA-MPJPE", "pixel_error_px" is "pixel error"; units are in the title."""
    stem = number.removesuffix("_mm").removesuffix("_px")
    return stem.upper().replace("_", "-") if number.endswith("_mm") or number == EPE else stem.replace("_", " ")


def _shown(number: str, value: float) -> str:
    if math.isnan(value):
        return "nan"
    return f"{value:.1%}" if number == "accepted" else f"{value:.2f}" if number.endswith("_px") else f"{value:.1f}"
