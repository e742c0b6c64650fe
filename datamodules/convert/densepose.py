"""Adds DensePose points to a frames file, as points of the body's surface.

Each row gets the pixels of the detection or annotation that fits its true body best, with what DensePose says that they
show: a triangle of the body and a place in it (`datamodules.convert.surface_atlas`). Who is who is decided by where the
true body has these points (`datamodules.convert.detections`). The charts are SMPL's, so the frames' bodies have to be.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64
from numpy import ndarray
from rich.progress import track

from bodies.errors import InputError
from datamodules.convert.complete import refuse_detected
from datamodules.convert.densepose_files import SurfacePerson, read_surface_file, surface_files
from datamodules.convert.detections import (
    Bodies,
    Candidates,
    DetectionReport,
    assign,
    candidates,
    find_seen_images,
    fit_of,
    true_surface_px,
)
from datamodules.convert.match import Matches
from datamodules.convert.surface_atlas import SurfaceAtlas, read_atlas
from datamodules.store import FrameStore, SurfacePoints, amend_frames
from datamodules.store_records import NO_SURFACE_POINTS

#: Points of a person that decide whose they are.
FITTED_POINTS: Final = 64


def add_densepose(
    source: Path,
    frames: FrameStore,
    bodies: Bodies,
    charts: Path,
    *,
    points: int = 500,
    min_score: float = 0.5,
    overwrite: bool = False,
    dry_run: bool = False,
) -> DetectionReport:
    """Replaces the surface points of a frames file; rows without a detection get none.

    The points of all people are in memory at once: 24 bytes each.

    Args:
        source: A dump of detectron2, annotations in COCO's form, or a folder of these.
        frames: The frames, opened without `skip_bad_rows`.
        bodies: Models of the true bodies, SMPL, see `load_true_bodies`.
        charts: DensePose's `UV_Processed.mat`, or its folder.
        points: Points of each person to keep at most.
        min_score: Detections with a lower score are left out.
        overwrite: Replace surface points that are there.
        dry_run: Match, but write nothing.

    Raises:
        InputError: If there are points already, a file is damaged or of another format, nobody can be used, or nobody
            is where they were found; names the file and the cause. The frames file stays as it was.
    """
    if points < 1:
        raise InputError(f"points {points}: at least one of each person is kept")
    if not overwrite and not dry_run:
        refuse_detected(frames.path, "densepose")
    body = next(iter(bodies.values()))
    atlas = read_atlas(charts, body.faces.numpy(), body.num_vertices)
    people, skipped = _read(source, points, min_score)
    names = tuple(person.name for person in people)
    images = find_seen_images(frames, source.stem, names)
    pairs = candidates(frames, images)
    if not len(pairs):
        raise InputError(f"{source}: no image of {frames.path} has the name of one of it ({names[0]} ...)")
    surface = [_on_surface(person, atlas) for person in people]
    distance_px = _distances_px(frames, bodies, atlas, surface, pairs)
    side_px = frames.column("box_px")[pairs.rows, 2]
    matches = assign(frames, names, images, pairs, fit_of(distance_px, np.isfinite(distance_px), side_px))
    if not len(matches.rows):
        raise InputError(
            f"{source}: nobody of {frames.path} is where the points are: they belong to other images, or to images "
            "that were resized or mirrored"
        )
    if not dry_run:
        of_row = dict(zip(matches.rows.tolist(), matches.predictions.tolist(), strict=True))
        rows = range(frames.num_rows)
        amend_frames(frames.path, surface=(surface[of_row[k]] if k in of_row else NO_SURFACE_POINTS for k in rows))
    return _report(matches, pairs, distance_px, side_px, skipped)


def _read(source: Path, points: int, min_score: float) -> tuple[list[SurfacePerson], tuple[str, ...]]:
    files, people, skipped = surface_files(source), list[SurfacePerson](), list[str]()
    for file in track(files, "reading DensePose", transient=True, disable=len(files) < 2):
        for person in read_surface_file(file, points, min_score):
            if isinstance(person, str):
                skipped.append(person)
            else:
                people.append(person)
    if not people:
        reason = f", the first because {skipped[0]}" if skipped else ""
        raise InputError(f"{source}: holds nobody who can be used{reason}")
    return people, tuple(skipped)


def _on_surface(person: SurfacePerson, atlas: SurfaceAtlas) -> SurfacePoints:
    triangle, barycentric = atlas.locate(person.part, person.uv)
    return SurfacePoints(person.position_px, triangle.astype(np.int32), barycentric)


def _distances_px(
    frames: FrameStore, bodies: Bodies, atlas: SurfaceAtlas, surface: Sequence[SurfacePoints], pairs: Candidates
) -> Float64[ndarray, "pairs points"]:
    """How far some of each person's points are from where the row's true body has them; NaN beyond their number."""
    position_px = np.full((len(surface), FITTED_POINTS, 2), np.nan, np.float32)
    corners = np.zeros((len(surface), FITTED_POINTS, 3), np.int64)
    barycentric = np.zeros((len(surface), FITTED_POINTS, 3), np.float32)
    for number, points in enumerate(surface):
        count = min(FITTED_POINTS, len(points.triangle))
        chosen = np.linspace(0, len(points.triangle) - 1, count).round().astype(int)
        position_px[number, :count] = points.position_px[chosen]
        corners[number, :count] = atlas.faces[points.triangle[chosen]]
        barycentric[number, :count] = points.barycentric[chosen]
    found = pairs.detections
    true_px = true_surface_px(frames, bodies, pairs.rows, corners[found], barycentric[found])
    result: Float64[ndarray, "pairs points"] = np.linalg.norm((position_px[found] - true_px).astype(np.float64), axis=2)
    return result


def _report(
    matches: Matches,
    pairs: Candidates,
    distance_px: Float64[ndarray, "pairs points"],
    side_px: Float32[ndarray, " pairs"],
    skipped: tuple[str, ...],
) -> DetectionReport:
    chosen = set(zip(matches.rows.tolist(), matches.predictions.tolist(), strict=True))
    both = zip(pairs.rows.tolist(), pairs.detections.tolist(), strict=True)
    places = [place for place, pair in enumerate(both) if pair in chosen]
    chosen_px = distance_px[places]
    return DetectionReport(
        len(matches.rows),
        float(np.nanmedian(chosen_px)),
        float(np.nanmedian(chosen_px / side_px[places, None])),
        matches.unmatched_rows,
        matches.unmatched_predictions,
        skipped,
    )
