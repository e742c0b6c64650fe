"""What a conversion is asked and what it says of itself: options, what was skipped and why, the table on the screen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from rich.table import Table

from bodies.errors import InputError
from bodies.safe_write import whole_file

Split = Literal["train", "validation", "test"]


class Skipped(NamedTuple):
    """Something of the source that did not become rows."""

    name: str
    """Which row, clip or file."""
    reason: str
    """Why, the same words for the same cause."""
    rows: int = 1
    """How many rows it would have been; 0 for a whole file of which that is not known."""


@dataclass(frozen=True)
class RunOptions:
    """How a conversion is done.

    Raises:
        InputError: If there are fewer than no threads.
    """

    workers: int | None = None
    """Threads; by default one per core."""
    dry_run: bool = False
    """Count what would be made, and write nothing."""
    overwrite: bool = False
    """Make the file anew if it is there already."""
    quiet: bool = False
    """Show no progress bar."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers {self.workers}: there cannot be fewer than none")


@dataclass(frozen=True)
class Summary:
    """What came of a conversion."""

    out: Path
    """The frames file."""
    rows: int
    """Rows in it, or, of a dry run, rows that it would have at most."""
    state: Literal["written", "planned", "complete"]
    """`complete`: the file was there already."""
    skipped: tuple[Skipped, ...] = ()
    """What was left out."""
    notes: tuple[str, ...] = ()
    """Facts that the user should see."""

    def with_note(self, note: str) -> "Summary":
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """Lists what was skipped, one a line: name, number of rows, reason. A list that was there before is replaced."""
    if not skipped:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as temporary:
        temporary.write_text("".join(f"{entry.name}\t{entry.rows}\t{entry.reason}\n" for entry in skipped))


def summary_table(summary: Summary) -> Table:
    """How many rows there are, and for each reason how many were skipped and the first of them."""
    title = {"written": "wrote", "planned": "would write", "complete": "is complete already:"}[summary.state]
    table = Table("", "rows", "for example", title=f"{title} {summary.out}")
    table.add_row("converted", str(summary.rows), "")
    counts: dict[str, list[Skipped]] = {}
    for entry in summary.skipped:
        counts.setdefault(entry.reason, []).append(entry)
    for reason, entries in sorted(counts.items(), key=lambda pair: -sum(entry.rows for entry in pair[1])):
        rows = sum(entry.rows for entry in entries)
        table.add_row(f"skipped: {reason}", str(rows) if rows else f"{len(entries)} files", entries[0].name)
    for note in summary.notes:
        table.add_row(note, "", "")
    return table
