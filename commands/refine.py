"""Fits bodies to the people in photos, from OpenPose keypoints and, if there is one, an initial estimate."""

import time
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import track

from bodies import InputError, load_body_model
from commands._person_files import write_person
from commands._photos import Photo, find_photos, read_photo
from fitting import FROM_REST_SCHEDULE, Adam, FromRest, GmmPrior, LevenbergMarquardt, Smplify, fit_from_rest
from fitting.solution import Solver


def refine(
    *images: Path,
    keypoints: Path,
    init: Path | None = None,
    body: str = "standin",
    prior: str = "standin",
    focal_px: float | None = None,
    solver: Literal["lm", "adam"] = "lm",
    out: Path = Path("out"),
) -> int:
    """Fits bodies to the people in photos and draws them before and after.

    For each person it writes OUT/<image>/person_<k>/ with parameters.npz (which is a valid --init, in AMASS's names),
    mesh.glb, overlay.png and report.json. Without --init the fit starts from a standing body at eight headings.

    Args:
        images: Photos, or folders of photos.
        keypoints: OpenPose's JSON of the photo, or the folder of such files, <image>_keypoints.json each.
        init: Initial estimate as .npz, or the folder of such files, <image>.npz each. Keys: poses (or rotations),
            betas, trans, and if known focal_px (or intrinsics); one row for each person of the JSON, in its order.
        body: Body model: standin, standin-tiny, or the path of an SMPL file.
        prior: Pose prior: standin, or the path of gmm_08.pkl.
        focal_px: Focal length of the camera; by default that of the estimate, else the image's diagonal.
        solver: How to fit: Levenberg-Marquardt (lm), or adam.
        out: Folder to write to.

    Returns:
        0; 1 if some of several photos were skipped because of bad input.
    """
    console = Console()
    jobs = find_photos(images, keypoints, init)
    model = load_body_model(body)
    solvers: dict[str, Solver] = {"lm": LevenbergMarquardt(), "adam": Adam()}
    fit = Smplify(model, GmmPrior.load(prior), solvers[solver])
    failures = 0
    for job in track(jobs, description="Refining", console=console, disable=len(jobs) == 1):
        try:
            photo = read_photo(job, focal_px)
            _refine_photo(photo, fit, out, console)
        except InputError as error:
            if len(jobs) == 1:
                raise
            failures += 1
            console.print(f"skipped: {error}", style="red", soft_wrap=True, highlight=False)
    if failures:
        console.print(f"{failures} of {len(jobs)} photos were skipped")
    if failures == len(jobs):
        raise InputError("no photo could be refined; the causes are above")
    return 1 if failures else 0


def _refine_photo(photo: Photo, fit: Smplify, out: Path, console: Console) -> None:
    began = time.perf_counter()
    people = len(photo.keypoints)
    camera, targets = photo.camera(), photo.targets()
    if photo.initial is None:
        fit = fit.with_schedule(FROM_REST_SCHEDULE)
        result = fit_from_rest(fit, camera, targets)
    else:
        photo.check_in_front(fit.body)
        result = FromRest(photo.initial, fit(photo.initial, camera, targets))
    seconds = time.perf_counter() - began
    for person in range(people):
        folder = out / photo.image_path.stem / f"person_{person}"
        write_person(folder, photo, person, fit.body, result, seconds / people)
        status = result.fit.status[person]
        errors = f"{result.fit.initial_error_px[person]:.1f} -> {result.fit.final_error_px[person]:.1f} px"
        console.print(f"{folder / 'overlay.png'}: {errors}, {status.value}", soft_wrap=True, highlight=False)
