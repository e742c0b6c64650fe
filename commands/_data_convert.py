"""The command `snugfit data convert`."""

from pathlib import Path
from typing import Literal, assert_never

from rich.console import Console

from datamodules.convert.run import RunOptions, summary_table
from datamodules.convert.surreal import convert_surreal
from datamodules.convert.threedpw import convert_threedpw

Dataset = Literal["threedpw", "surreal"]


def convert(
    dataset: Dataset,
    source: Path,
    *,
    out: Path,
    split: Literal["train", "validation", "test"],
    body: Path,
    every: int = 1,
    workers: int | None = None,
    dry_run: bool = False,
    overwrite: bool = False,
) -> None:
    """Turns a data set, as downloaded, into a frames file.

    The file does not depend on the number of threads. Run again after an interruption, it goes on where it stopped; a
    file that is complete is left alone. What was skipped, and why, is counted on the screen and listed in full in
    OUT.skipped.tsv.

    Args:
        dataset: Which data set.
        source: Folder of the downloads: the one with imageFiles and sequenceFiles (threedpw), or the one with cmu
            (surreal).
        out: The frames file to write.
        split: Which split.
        body: Folder with SMPL_MALE and SMPL_FEMALE (.pkl or .npz, also under their original names): both data sets have
            bodies of these genders, and their translations depend on the rest pelvis.
        every: Take every n-th frame of each sequence or clip.
        workers: Threads to use; by default one per core.
        dry_run: Count what would be converted and skipped, and write nothing.
        overwrite: Make the file anew if it is there already.
    """
    options = RunOptions(workers, dry_run, overwrite)
    match dataset:
        case "threedpw":
            summary = convert_threedpw(source, out, split, body, every, options)
        case "surreal":
            summary = convert_surreal(source, out, split, body, every, options)
        case _:
            assert_never(dataset)
    Console().print(summary_table(summary))
