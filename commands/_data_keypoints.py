"""`snugfit data keypoints`: detections of OpenPose or DensePose for the rows of a frames file."""

from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

from rich.console import Console
from rich.table import Table

from bodies.errors import InputError
from commands._left_over import LeftOver, print_left_over, write_left_over
from datamodules.convert.complete import Detector, refuse_detected

if TYPE_CHECKING:  # with torch behind them, they are imported where there is something to do
    from datamodules.convert.detections import Bodies, DetectionReport
    from datamodules.store import FrameStore

_STAND_IN: Final = "standin"


def keypoints(
    detector: Detector,
    source: Path,
    *,
    frames: Path,
    charts: Path | None = None,
    mirrored: bool = False,
    points: int = 500,
    min_score: float = 0.5,
    body: str | None = None,
    list_file: Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Adds what a detector found to a frames file; docs/data.md describes the sources.

    Images are found by their names, persons by where their true bodies project. The file is replaced as a whole at the
    end; estimates files keep fitting. Rows without a detection are listed.

    Args:
        detector: openpose, for keypoints; densepose, for points of the body surface.
        source: For OpenPose the folder of its *_keypoints.json; for DensePose a dump of detectron2 (.pkl), annotations
            in COCO's form (.json), or a folder of these.
        frames: The frames file.
        charts: For DensePose, its UV_Processed.mat.
        mirrored: For OpenPose, the images were mirror images of the stored ones, as SURREAL's videos are.
        points: For DensePose, how many points of each person to keep at most.
        min_score: For DensePose, leave out detections with a lower score.
        body: Body model of the true bodies: standin, standin-tiny, or a path; by default what the file says.
        list_file: Text file to write all left-over rows and detections to.
        workers: Threads that read OpenPose's files; by default one per core.
        overwrite: Replace what the file has of this kind already, in all rows.
        dry_run: Match and compare, but write nothing.

    Raises:
        InputError: If a file cannot be used, nobody is where they were found, or the file has detections already.
    """
    if not source.exists():
        raise InputError(f"{source}: there is no such file or folder")
    if not overwrite and not dry_run:
        refuse_detected(frames, detector)
    from datamodules.store import FrameStore

    console, store = Console(), FrameStore(frames)
    match detector:
        case "openpose":
            from datamodules.convert.openpose_folder import add_openpose

            bodies = _bodies_of_joints(store, body, console)
            report = add_openpose(
                source, store, bodies, mirrored=mirrored, workers=workers, overwrite=overwrite, dry_run=dry_run
            )
        case "densepose":
            from datamodules.convert.densepose import add_densepose
            from datamodules.convert.detections import load_true_bodies

            report = add_densepose(
                source,
                store,
                load_true_bodies(store, body),
                _needed(charts, mirrored),
                points=points,
                min_score=min_score,
                overwrite=overwrite,
                dry_run=dry_run,
            )
        case _:
            assert_never(detector)
    console.print(_table(report, store))
    print_left_over(console, _left_over(report))
    if list_file is not None:
        write_left_over(list_file, _left_over(report))
    console.print(f"would write them into {frames}" if dry_run else f"wrote them into {frames}", soft_wrap=True)


def _needed(charts: Path | None, mirrored: bool) -> Path:
    if mirrored:
        raise InputError(
            "--mirrored is for keypoints; run DensePose on images that are not mirrored (ffmpeg -vf hflip)"
        )
    if charts is None:
        raise InputError("--charts: DensePose's points need its UV_Processed.mat (in densepose_uv_data.tar.gz)")
    return charts


def _bodies_of_joints(store: "FrameStore", body: str | None, console: Console) -> "Bodies":
    from datamodules.convert.detections import load_true_bodies

    try:
        return load_true_bodies(store, body)
    except InputError:
        if body is not None:
            raise
        # Its joints lie where SMPL's do within centimetres, which is enough to tell persons apart.
        console.print(f"body model {store.body_model!r} is not at hand: the stand-in's joints tell persons apart")
        return load_true_bodies(store, _STAND_IN)


def _table(report: "DetectionReport", store: "FrameStore") -> Table:
    table = Table("", "", show_header=False)
    table.add_row("rows", f"{report.rows} of {len(store)}")
    distance = f"{report.distance_px:.1f} px, {report.distance:.3f} of the box (median)"
    table.add_row("distance from the true body", distance)
    table.add_row("rows without a detection", str(len(report.unmatched_rows)))
    table.add_row("detections without a row", str(len(report.unmatched_detections)))
    table.add_row("files and people left out", str(len(report.skipped)))
    return table


def _left_over(report: "DetectionReport") -> LeftOver:
    return (
        ("rows without a detection", report.unmatched_rows),
        ("detections without a row", report.unmatched_detections),
        ("files and people left out", report.skipped),
    )
