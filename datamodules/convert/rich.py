"""RICH as downloaded: `bodies/<split>/<recording>/<frame>/<person>.pkl`, `images/...` and `scan_calibration/<scene>`.

What is easy to get wrong, and how it is read here:

* Bodies are gendered SMPL-X with 12 hand components on top of the mean hand (`smplx_model`); they are turned into SMPL
  of the same gender (`smplx_to_smpl`). Genders are a table of their own; who is in a recording, its name tells: all
  numbers between the scene and the action.
* Bodies are in the frame of all cameras, that of camera 0. For each camera the root turns about SMPL's rest pelvis, and
  the translation follows.
* A scene has one calibration for its cameras; a camera without one moves, and its images are skipped.
* Calibrations are for images of 4112 x 3008. Some cameras stand upright (cameras 3 and 5 of Pavallion): their images
  are 3008 x 4112 and so is their calibration, whose principal point tells it. Smaller releases of the images have the
  same cameras at a fraction of the focal length; the size of the image tells by how much.
* Lens distortion is left out, as RICH's toolkit leaves it out, with which the bodies were fitted; the summary says how
  many pixels it would be.
* Images are BMP, PNG or JPEG, by scene and release. JPEGs are stored as they are; of the others, a generous piece
  about the people is, as a JPEG of quality 95.
* Frame numbers begin anywhere, and bodies or images of a frame may be absent.

Sources: paulchhuang/rich_toolkit, isarandi/posepile `ds/rich`, zju3dv/GVHMR `hmr4d/dataset/rich`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from bodies.errors import InputError
from bodies.model_files import Gender, load_body_model
from datamodules.convert.complete import finished
from datamodules.convert.rich_files import (
    Calibration,
    Recording,
    find_recordings,
    image_size_px,
    read_calibration,
    read_genders,
    whole_image_size_px,
)
from datamodules.convert.rich_people import DATASET, Bodies, see
from datamodules.convert.run import Conversion, Job, JobPlan, PlannedFrame, every_nth, run_conversion
from datamodules.convert.smplx_model import find_smplx_model, read_smplx_model
from datamodules.convert.smplx_to_smpl import SmplxToSmpl, find_transfer, read_transfer, rest_correspondence
from datamodules.convert.summary import RunOptions, Skipped, Split, Summary
from datamodules.crops import decode_jpeg
from datamodules.store import FrameRow, StoredImage

#: Side of the stored piece over that of the people's boxes: crops are turned by any angle and enlarged a little.
PIECE_MARGIN: Final = 2.0
JPEG_QUALITY: Final = 95
#: Frames per job.
_JOB_FRAMES: Final = 16
_DAMAGED: Final = "its image is damaged"


@dataclass(frozen=True)
class ModelFiles:
    """Where the models are that a conversion from SMPL-X needs."""

    smpl: Path
    """Folder with SMPL_MALE and SMPL_FEMALE."""
    smplx: Path | None = None
    """Folder with SMPLX_MALE and SMPLX_FEMALE; by default that of SMPL, or `smplx` below it."""
    transfer: Path | None = None
    """The official matrix from SMPL-X to SMPL; by default what is found beside the models, and without it our own
    correspondence is used."""

    @property
    def smplx_folder(self) -> Path:
        """Where SMPL-X is looked for."""
        return self.smplx or self.smpl

    def matrix_file(self) -> Path | None:
        """The official matrix, if there is one."""
        return self.transfer or find_transfer((self.smplx_folder, self.smpl))


def convert_rich(
    source: Path,
    out: Path,
    split: Split,
    models: ModelFiles,
    every: int = 1,
    options: RunOptions | None = None,
) -> Summary:
    """Writes a split of RICH as a frames file.

    Args:
        source: The folder with `bodies` (or `train_body`), `images` and `scan_calibration`, or the one above it.
        out: The frames file.
        split: Which part.
        models: Where the body models are.
        every: Take every n-th frame of each recording, from its first.
        options: How to do it.

    Raises:
        InputError: If calibrations or models are missing or damaged, a person's gender is not known, images are not of
            these cameras, or nothing is left to be written.
    """
    options = options or RunOptions()
    if complete := finished(out, DATASET, split, options):
        return complete
    every_nth(every)
    root, recordings = find_recordings(source, split)
    converters = _converters(recordings, read_genders(root), models)
    jobs: list[_Images] = []
    skipped: list[Skipped] = []
    for recording in recordings:
        more_jobs, more_skipped = _plan_recording(root, recording, converters, every)
        jobs += more_jobs
        skipped += more_skipped
    matrix_file = models.matrix_file()
    method = matrix_file.name if matrix_file else "closest points of the two models"
    settings: dict[str, str | int] = {"source": str(source.resolve()), "every": every, "transfer": method}
    conversion = Conversion(DATASET, split, str(models.smpl), tuple(jobs), settings, tuple(skipped))
    return _with_notes(run_conversion(conversion, out, options), jobs, method)


def _converters(
    recordings: Sequence[Recording],
    genders: Mapping[int, Gender],
    models: ModelFiles,
) -> Mapping[int, tuple[Gender, SmplxToSmpl]]:
    """For each person the gender and the conversion; each model is read once, and only if somebody needs it."""
    matrix_file = models.matrix_file()
    by_gender: dict[Gender, SmplxToSmpl] = {}
    people: dict[int, tuple[Gender, SmplxToSmpl]] = {}
    for recording in recordings:
        for subject in recording.subjects:
            if subject not in genders:
                raise InputError(f"{recording.bodies}: no gender is known of person {subject}; add it to gender.json")
            gender = genders[subject]
            if gender not in by_gender:
                model = read_smplx_model(find_smplx_model(models.smplx_folder, gender))
                smpl = load_body_model(models.smpl, gender)
                if matrix_file:
                    matrix = read_transfer(matrix_file, smpl.num_vertices, model.body.num_vertices)
                else:
                    matrix = rest_correspondence(model, smpl)
                by_gender[gender] = SmplxToSmpl(model, smpl, matrix)
            people[subject] = gender, by_gender[gender]
    return people


def _plan_recording(
    root: Path, recording: Recording, converters: Mapping[int, tuple[Gender, SmplxToSmpl]], every: int
) -> tuple[list["_Images"], list[Skipped]]:
    """The jobs of a recording, camera after camera, and what of it is left out."""
    name = f"{DATASET}/{recording.name}"
    cameras = recording.cameras()
    shown = set().union(*cameras.values())
    frames = sorted(recording.frames() | shown)
    if not frames:
        return [], [Skipped(name, "the recording has no frames", 0)]
    if not shown:
        return [], [Skipped(name, "the recording has no images", 0)]
    frames = [frame for frame in frames if (frame - frames[0]) % every == 0]
    starts = range(0, len(frames), _JOB_FRAMES)
    blocks = [Bodies(recording, frames[start : start + _JOB_FRAMES], shown, converters) for start in starts]
    calibrations = root / "scan_calibration" / recording.scene / "calibration"
    if not calibrations.is_dir():
        raise InputError(f"{calibrations}: there is no such folder of calibrations, which {recording.images} needs")
    jobs, skipped = [], []
    for camera, files in sorted(cameras.items()):
        calibration = calibrations / f"{camera:03d}.xml"
        if calibration.is_file():
            files = {frame: files[frame] for frame in frames if frame in files}
            jobs += [_Images(root, block, camera, read_calibration(calibration), files) for block in blocks]
        else:
            rows = len(frames) * len(recording.subjects)
            skipped.append(Skipped(f"{name}/cam_{camera:02d}", "its camera moves: it has no calibration", rows))
    return jobs, skipped


def _with_notes(summary: Summary, jobs: Sequence["_Images"], method: str) -> Summary:
    """The summary with how well SMPL fits, and how much the lenses would change."""
    blocks = {id(job.bodies): job.bodies for job in jobs}
    errors_mm = 1e3 * np.concatenate([np.zeros(0), *(block.errors_m() for block in blocks.values())])
    if len(errors_mm):
        summary = summary.with_note(
            f"SMPL fitted to the vertices of SMPL-X ({method}): {errors_mm.mean():.1f} mm, worst body "
            f"{errors_mm.max():.1f} mm"
        )
    if lens_px := max((job.lens_px for job in jobs), default=0.0):
        summary = summary.with_note(f"lens distortion, left out as in RICH's toolkit: up to {lens_px:.1f} px at joints")
    return summary


class _Images(Job):
    """Some frames of one camera."""

    def __init__(
        self, root: Path, bodies: Bodies, camera: int, calibration: Calibration, files: Mapping[int, Path]
    ) -> None:
        self._root, self.bodies, self._camera, self._calibration = root, bodies, camera, calibration
        self._files = {frame: files[frame] for frame in bodies.frames if frame in files}
        self._size_px = (0, 0)
        self._pieces: dict[int, tuple[int, int, int, int]] = {}
        self.lens_px = 0.0
        """How far the lens would move a joint of a person that is seen, at most."""

    def plan(self) -> JobPlan:
        """Rows from the bodies; the size of the images is that of the first one that has any."""
        name, subjects = (
            f"{DATASET}/{self.bodies.recording.name}/cam_{self._camera:02d}",
            self.bodies.recording.subjects,
        )
        rows: Mapping[tuple[int, int], FrameRow | str] = {}
        if size_px := next(filter(None, map(_header_size_px, self._files.values())), None):
            view = see(self.bodies, self._calibration, self._camera, size_px)
            rows, self.lens_px, self._size_px = view.rows, view.lens_px, size_px
        planned, skipped = [], []
        for frame in self.bodies.frames:
            usable = []
            for subject in subjects:
                row = rows.get((frame, subject), _DAMAGED) if frame in self._files else "there is no image file"
                if isinstance(row, str):
                    skipped.append(Skipped(f"{name}/{frame:05d}/{subject:03d}", row))
                else:
                    usable.append(row)
            if usable:
                image = self._files[frame].relative_to(self._root).as_posix()
                planned.append(PlannedFrame(image, frame, tuple(usable)))
                self._pieces[frame] = _piece(usable, self._size_px)
        return JobPlan(tuple(planned), tuple(skipped))

    def images(self, frames: Sequence[PlannedFrame]) -> Iterator[StoredImage | str]:
        """The files: JPEGs as they are, of others the piece about the people."""
        for frame in frames:
            path = self._root / frame.name
            try:
                data = path.read_bytes()
                size_px = whole_image_size_px(path.suffix, data)
            except OSError as error:
                raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
            except ValueError as error:
                yield f"{_DAMAGED}: {error}"
                continue
            if size_px != self._size_px:
                yield "its image has another size than others of its camera"
            elif data.startswith(b"\xff\xd8"):
                yield StoredImage(frame.name, data, size_px)
            else:
                yield _cut_out(frame.name, data, size_px, self._pieces[frame.frame])


def _header_size_px(path: Path) -> tuple[int, int] | None:
    try:
        return image_size_px(path)
    except (OSError, ValueError):
        return None  # it is skipped by itself when its turn comes


def _piece(rows: Sequence[FrameRow], size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is to be kept of an image."""
    boxes = np.stack([row.box_px for row in rows])
    reach = boxes[:, 2:] * PIECE_MARGIN / 2
    low = np.clip(np.floor((boxes[:, :2] - reach).min(axis=0)), 0, np.array(size_px) - 1)
    high = np.clip(np.ceil((boxes[:, :2] + reach).max(axis=0)), low + 1, size_px)
    left, top, right, bottom = (int(edge) for edge in (*low, *high))
    return left, top, right, bottom


def _cut_out(name: str, data: bytes, size_px: tuple[int, int], piece: tuple[int, int, int, int]) -> StoredImage | str:
    pixels = decode_jpeg(data)  # OpenCV tells formats by their first bytes
    if pixels is None or pixels.shape[1::-1] != size_px:
        return f"{_DAMAGED}: it cannot be decoded"
    left, top, right, bottom = piece
    cut = np.ascontiguousarray(pixels[top:bottom, left:right])
    jpeg: bytes = cv2.imencode(".jpg", cut, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return StoredImage(name, jpeg, size_px, (left, top))
