"""`snugfit data import`: another regressor's results as initial estimates."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

from rich.console import Console
from rich.table import Table

from bodies.errors import InputError
from commands._left_over import LeftOver, print_left_over, write_left_over
from datamodules.convert.complete import is_imported

if TYPE_CHECKING:  # with torch behind them, they are imported where there is something to do
    from bodies import BodyModel
    from datamodules.convert.importing import ImportReport
    from datamodules.convert.predictions import FocalChoice, Predictions
    from datamodules.store import FrameStore

Regressor = Literal["pare", "prohmr", "hmr-plus", "npz"]

_STAND_IN = "standin"


def import_(
    regressor: Regressor,
    source: Path,
    *,
    frames: Path,
    out: Path,
    name: str | None = None,
    focal: str = "frames",
    boxes: Path | None = None,
    sequence: str | None = None,
    first_frame: int = 0,
    body: str | None = None,
    list_file: Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Takes a regressor's results into an estimates file; docs/importers.md describes the layouts.

    Args:
        regressor: pare, prohmr, hmr-plus, or npz for any other through the documented layout.
        source: What the regressor wrote: a file, or for PARE's demos a folder.
        frames: The frames file whose rows the results are for.
        out: The estimates file to write.
        name: What to call the regressor in the file; by default the first argument.
        focal: Focal length with which crop cameras become translations: frames, diagonal, or pixels.
        boxes: For PARE's evaluation arrays, the dataset's npz with imgname, center and scale.
        sequence: For PARE's video demo, which sequence the video is.
        first_frame: For PARE's video demo, the number of the video's first frame in the frames file.
        body: Body model to compare with the ground truth; by default the frames file's, else the stand-in.
        list_file: Text file to write all left-over rows and predictions to.
        overwrite: Write anew although the file is complete.
        dry_run: Match and compare, but write nothing.

    Raises:
        InputError: If a file cannot be used, nothing matches, or the results are absurd; names the file and the cause.
    """
    console, label = Console(), name or regressor
    if not overwrite and not dry_run and is_imported(out, frames, label):
        console.print(f"{out} is complete already (overwrite to write it anew)", soft_wrap=True)
        return
    from datamodules.convert.importing import import_predictions
    from datamodules.store import FrameStore

    choice, store = _focal_choice(focal), FrameStore(frames)
    predictions = _read(regressor, source, store, boxes, sequence, first_frame)
    model = _body(store, body, console)
    report = import_predictions(source, predictions, store, out, label, body=model, focal=choice, dry_run=dry_run)
    console.print(_table(report, store))
    print_left_over(console, _left_over(report))
    if list_file is not None:
        write_left_over(list_file, _left_over(report))
    console.print(f"would write {out}" if dry_run else f"wrote {out}", soft_wrap=True)


def _focal_choice(focal: str) -> "FocalChoice":
    match focal:
        case "frames" | "diagonal":
            return focal
        case _:
            try:
                return float(focal)
            except ValueError as error:
                raise InputError(f"--focal: frames, diagonal, or a number of pixels, got {focal!r}") from error


def _read(
    regressor: Regressor, source: Path, store: "FrameStore", boxes: Path | None, sequence: str | None, first_frame: int
) -> "Predictions":
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    match regressor:
        case "pare":
            from datamodules.convert.pare import read_pare

            return read_pare(source, store, boxes=boxes, sequence=sequence, first_frame=first_frame)
        case "prohmr":
            from datamodules.convert.prohmr import read_prohmr

            return read_prohmr(source)
        case "hmr-plus":
            from datamodules.convert.hmr_plus import read_hmr_plus

            return read_hmr_plus(source)
        case "npz":
            from datamodules.convert.generic import read_generic

            return read_generic(source)
        case _:
            assert_never(regressor)


def _body(store: "FrameStore", body: str | None, console: Console) -> "BodyModel":
    from bodies import load_body_model

    if body is not None:
        return load_body_model(body)
    try:
        return load_body_model(store.body_model)
    except InputError:
        # Its joints lie where SMPL's do within centimetres, which is enough to see what is absurd.
        console.print(f"body model {store.body_model!r} is not at hand: errors are those of the stand-in's joints")
        return load_body_model(_STAND_IN)


def _table(report: "ImportReport", store: "FrameStore") -> Table:
    agreement = report.agreement
    table = Table("", "", show_header=False)
    table.add_row("rows", f"{report.rows} of {len(store)}, {report.samples} sample(s) each")
    table.add_row("mean joint error", f"{agreement.error_mm:.1f} mm (24 joints, roots aligned, sample 0)")
    table.add_row("size in the image", f"{agreement.size_ratio:.3f} times too far away (median)")
    table.add_row("offset of the pelvis", f"{agreement.offset:.3f} of the box (median)")
    table.add_row("rows without a prediction", str(len(report.unmatched_rows)))
    table.add_row("predictions without a row", str(len(report.unmatched_predictions)))
    table.add_row("rows left out as unusable", str(len(report.skipped)))
    if agreement.hint is not None:
        table.add_row("suspicious", agreement.hint)
    return table


def _left_over(report: "ImportReport") -> LeftOver:
    return (
        ("rows without a prediction", report.unmatched_rows),
        ("predictions without a row", report.unmatched_predictions),
        ("rows left out as unusable", report.skipped),
    )
