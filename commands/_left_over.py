"""What a command could not use: a few of them on the screen, all of them in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from bodies.errors import InputError
from bodies.safe_write import whole_file

#: How many of a kind are printed.
SHOWN: Final = 10
#: Titles, each with its entries.
LeftOver = tuple[tuple[str, Sequence[str]], ...]


def print_left_over(console: Console, left_over: LeftOver) -> None:
    """Prints the first entries of each kind."""
    for title, lines in left_over:
        if lines:
            console.print(f"{title}:")
            for line in lines[:SHOWN]:
                console.print(f"  {line}", soft_wrap=True, markup=False)
            if len(lines) > SHOWN:
                console.print(f"  and {len(lines) - SHOWN} more")


def write_left_over(path: Path, left_over: LeftOver) -> None:
    """Writes all entries, each kind under its title.

    Raises:
        InputError: If the file cannot be written.
    """
    text = "".join(f"{title}\n" + "".join(f"  {line}\n" for line in lines) for title, lines in left_over)
    try:
        with whole_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: it cannot be written ({error.strerror})") from error
