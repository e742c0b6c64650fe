"""Fits bodies to the people in photos, from OpenPose keypoints, a network's displacements, or both."""

import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from torch import Tensor

from bodies import InputError
from commands._person_files import sure_keypoints_error_px, write_person
from commands._photos import Photo, find_photos, read_photo
from commands._refiners import Refined, Refiner, SolverName, keypoint_refiner


def refine(
    *images: Path,
    keypoints: Path | None = None,
    init: Path | None = None,
    checkpoint: Path | None = None,
    texture: Path | None = None,
    subject: str | None = None,
    rounds: int = 1,
    body: str | None = None,
    prior: str | None = None,
    focal_px: float | None = None,
    solver: SolverName | None = None,
    hold: float | None = None,
    out: Path = Path("out"),
) -> int:
    """Fits bodies to the people in photos and draws them before and after.

    For each person it writes OUT/<image>/person_<k>/ with parameters.npz (which is a valid --init, in AMASS's names),
    mesh.glb, overlay.png and report.json. Without --init the fit starts from a standing body at eight headings.

    With --checkpoint a network predicts where each point of the rendered body should be in the photo, and the body is
    fitted to that, and to the keypoints if there are any.

    Args:
        images: Photos, or folders of photos.
        keypoints: OpenPose's JSON of the photo, or the folder of such files, <image>_keypoints.json each. With
            --checkpoint and --init they can be left out.
        init: Initial estimate as .npz, or the folder of such files, <image>.npz each. Keys: poses (or rotations),
            betas, trans, and if known focal_px (or intrinsics); one row for each person of the JSON, in its order.
        checkpoint: The network: a checkpoint of `snugfit fit`, or one that `snugfit checkpoint slim` wrote.
        texture: How the person looks, for the network: a .png in the body's UV layout, an .npz with the array rgba,
            a frames file of `snugfit data`, or a folder with person_<k>.png or .npz for each person. Nothing is known
            of anyone's looks without it.
        subject: Whose texture of a frames file.
        rounds: How often to render, predict and fit, each time from the bodies accepted before.
        body: Body model: standin, standin-tiny, or the path of an SMPL file; by default that of the checkpoint, else
            standin.
        prior: Pose prior: standin, the path of gmm_08.pkl, VPoser's folder or snapshot, or none; by default that of
            the checkpoint, else standin.
        focal_px: Focal length of the camera; by default that of the estimate, else the image's diagonal.
        solver: How to fit: Levenberg-Marquardt (lm), or adam; by default as the checkpoint says, else lm.
        hold: How strongly each joint is held to the initial estimate, the weight of its squared turn in radians; 0 for
            not at all. By default 100 for keypoints with --init, and what the checkpoint's fit has with a network.
        out: Folder to write to.

    Returns:
        0; 1 if some of several photos were skipped because of bad input.
    """
    console = Console()
    jobs = find_photos(images, keypoints, init)
    refiner: Refiner
    if checkpoint is not None:
        # What a fit to keypoints does not need, and would wait for.
        from commands._network_refiner import network_refiner
        from commands._person_textures import read_textures

        textures = read_textures(texture, subject)
        refiner = network_refiner(checkpoint, textures, rounds, body, prior, solver, hold)
    else:
        _refuse_without_checkpoint(keypoints, texture, subject, rounds)
        if hold is not None and init is None:
            raise InputError(f"--hold {hold:g}: without --init there is nothing to hold to")
        refiner = keypoint_refiner(body, prior, solver, hold)
    failures = 0
    for job in track(jobs, description="Refining", console=console, disable=len(jobs) == 1):
        try:
            photo = read_photo(job, focal_px)
            began = time.perf_counter()
            refined = refiner(photo)
            seconds = (time.perf_counter() - began) / len(photo)
            for person in range(len(photo)):
                folder = out / photo.image_path.stem / f"person_{person}"
                write_person(folder, photo, person, refined, seconds)
                _print_result(console, folder, photo, refined, person)
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


def _refuse_without_checkpoint(keypoints: Path | None, texture: Path | None, subject: str | None, rounds: int) -> None:
    """Refuses what only the network can make use of."""
    if keypoints is None:
        raise InputError("--keypoints: they can be left out with a --checkpoint only")
    for given, option in (
        (texture, "--texture"),
        (subject, "--subject"),
        (None if rounds == 1 else rounds, "--rounds"),
    ):
        if given is not None:
            raise InputError(f"{option} {given}: is for the network of a --checkpoint")


def _print_result(console: Console, folder: Path, photo: Photo, refined: Refined, person: int) -> None:
    """A line for each person, which names the picture; if there are several rounds, one for each of them."""
    picture, fits = folder / "overlay.png", refined.fits
    lines = [f"{_change(f.initial_error_px[person], f.final_error_px[person])}, {f.status[person].value}" for f in fits]
    if refined.rounds and photo.keypoints is not None:
        # The displacements can pull the body off them.
        errors = sure_keypoints_error_px(photo, person, refined)
        if errors["initial"] is not None and errors["refined"] is not None:
            lines[-1] += f"; sure keypoints {_change(errors['initial'], errors['refined'])}"
    if len(lines) == 1:
        text = f" {lines[0]}"
    else:
        text = "".join(f"\n  round {number}: {line}" for number, line in enumerate(lines, start=1))
    console.print(f"{picture}:{text}", soft_wrap=True, highlight=False)


def _change(before_px: float | Tensor, after_px: float | Tensor) -> str:
    return f"{float(before_px):.1f} -> {float(after_px):.1f} px"
