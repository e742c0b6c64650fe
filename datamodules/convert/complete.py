"""What an earlier run did already, told by the file alone: neither torch nor a body model is loaded to see it.

Files are made beside their place and moved there when they are whole, so one that has everything where it belongs is
complete. Its values are checked by whoever opens it to use it.
"""

from pathlib import Path
from typing import Literal, assert_never

from bodies.errors import InputError
from datamodules.convert.summary import RunOptions, Split, Summary
from datamodules.store_file import estimates_file, frames_file

Detector = Literal["openpose", "densepose"]


def finished(out: Path, dataset: str, split: Split, options: RunOptions) -> Summary | None:
    """The summary of a file that an earlier conversion completed, or None if there is something to do.

    Raises:
        InputError: If there is a file of another kind, data set or split, which is not to be overwritten.
    """
    if options.overwrite or options.dry_run or not out.exists():
        return None
    file = frames_file(out)
    held = (str(file.attributes["dataset"]), str(file.attributes["split"]))
    if held != (dataset, split):
        raise InputError(f"{out}: it holds {', '.join(held)}; give --overwrite to write {dataset}, {split}")
    return Summary(out, file.rows("rows"), "complete")


def is_imported(out: Path, frames: Path, regressor: str) -> bool:
    """Whether the file is there and holds this regressor's estimates for these frames.

    Raises:
        InputError: If the frames file cannot be used.
    """
    rows = frames_file(frames)
    if not out.is_file():
        return False
    try:
        file = estimates_file(out)
    except InputError:
        return False
    tied = str(file.attributes["row_fingerprint"]) == str(rows.attributes["row_fingerprint"])
    return tied and file.rows("rows") == rows.rows("rows") and str(file.attributes["regressor"]) == regressor


def refuse_detected(frames: Path, detector: Detector) -> None:
    """Nothing, if the frames file has nothing of this detector yet.

    Raises:
        InputError: Otherwise, or if the file cannot be used.
    """
    file = frames_file(frames)
    match detector:
        case "openpose":
            name, blocks = "detected keypoints", file.blocks("rows/detected_keypoints_px")
            there = any((keypoints_px[..., 2] > 0).any() for _, keypoints_px in blocks)
        case "densepose":
            name, there = "surface points", bool(file.column("rows/surface_count").any())
        case _:
            assert_never(detector)
    if there:
        raise InputError(f"{frames}: it has {name} already; give --overwrite to replace them all")
