"""Human3.6M, in any of the three forms in which it is kept: the raw tree, annotations in JSON, SPIN's .npz.

`h36m_tree`, `h36m_annotations` and `h36m_npz` say what lies where in each; this is common to them:

* Training is on S1, S5, S6, S7 and S8 by all four cameras, testing on S9 and S11 by the frontal one alone (protocol 2),
  both on every 5th of 50 frames a second. The other cameras of the test set make protocol 1.
* Image and annotations belong together by number: frame i of the video, from 0, is row i of the joints; image files
  count from 1. SPIN's script for the test set saves the frame after; videos, which are preferred, have no such shift.
* Lengths are in millimetres but for those of SMPL. The world's z is up; SMPL's root turns about the rest pelvis.
* The real cameras distort. By default distortion is taken out of the images if the cameras' file has it, for those of
  the store are pinhole cameras; boxes are moved along.
* Joints are those of the motion capture, as measured: in three recordings of S9 they are known to be shifted, and are
  left so, as evaluations do it.
* SMPL parameters are fits by others, of the neutral model. A fit that its measured joints contradict is left out.

A row without SMPL parameters is skipped and counted, for rows are taken to know the body: training and all vertex
errors need it. There is none of S9 and S11 among the MoSh files; to be scored by measured joints alone, as
published evaluations do, rows of the test set can be kept without (`joints_only`). Their pose and shape are all zero,
which no real row's are (`FrameStore.has_body`), their translation is that of the measured pelvis; whoever reads them
has to look at `joints_m`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, assert_never

from bodies.body_model import BodyModel
from bodies.errors import InputError
from bodies.model_files import load_body_model
from datamodules.convert import h36m_annotations, h36m_npz
from datamodules.convert.complete import finished
from datamodules.convert.h36m_cameras import CAMERA_IDS, FRONTAL_ID, Camera, Cameras, find_cameras
from datamodules.convert.h36m_images import ImageJob, Lens, VideoJob
from datamodules.convert.h36m_rows import DATASET, View, view_rows
from datamodules.convert.h36m_tree import Recording, Tree, find_recordings, is_tree, read_view, without_path
from datamodules.convert.run import Conversion, Job, JobPlan, every_nth, run_conversion
from datamodules.convert.summary import RunOptions, Skipped, Split, Summary
from datamodules.store import FrameStore

#: Whose recordings are in which split.
SUBJECTS: Final[Mapping[Split, tuple[int, ...]]] = {"train": (1, 5, 6, 7, 8), "test": (9, 11)}
#: Frames between those that are used, at 50 Hz.
EVERY: Final = 5
Views = Literal["protocol", "frontal", "all"]
"""Which cameras: all for training and the frontal one for testing (protocol 2), the frontal one, or all four."""

Form = Literal["tree", "annotations", "npz"]
"""In what the data set is kept: as downloaded, as I2L-MeshNet annotates it, as SPIN packs it."""


@dataclass(frozen=True)
class H36MChoices:
    """What of Human3.6M is converted, and how."""

    every: int = EVERY
    """Take every n-th frame."""
    views: Views = "protocol"
    """Which cameras."""
    smpl: Path | None = None
    """Folder of the SMPL parameters: MoSh pickles of the raw tree, by default its `mosh`; JSON files of annotations, by
    default `annotations`."""
    joints_only: bool = False
    """Keep rows of the test set that have no SMPL parameters."""
    undistort: bool = True
    """Take the cameras' distortion out of the images."""

    def names(self, split: Split) -> tuple[str, ...]:
        """The cameras of a split."""
        frontal = self.views == "frontal" or (self.views == "protocol" and split == "test")
        return (FRONTAL_ID,) if frontal else CAMERA_IDS


def convert_h36m(
    source: Path,
    out: Path,
    split: Split,
    body: Path,
    choices: H36MChoices | None = None,
    options: RunOptions | None = None,
) -> Summary:
    """Writes a split of Human3.6M as a frames file.

    Args:
        source: The folder with S1, S5, ... (raw), the one with `annotations` and `images` (JSON), or an .npz of SPIN.
            The cameras' file is looked for there too, see `h36m_cameras`.
        out: The frames file.
        split: Which part, train or test.
        body: Folder with SMPL_NEUTRAL and J_regressor_h36m.npy, or another body model of which h36m17 is known.
        choices: What of it.
        options: How to do it.

    Raises:
        InputError: If the source is none of the three, files that all rows need are missing or damaged, the choices
            make no sense, or nothing is left of it.
    """
    choices, options = choices or H36MChoices(), options or RunOptions()
    if complete := finished(out, DATASET, split, options):
        return complete
    every_nth(choices.every)
    if split not in SUBJECTS:
        raise InputError(f"{source}: Human3.6M has no {split} split, only {' and '.join(SUBJECTS)}")
    if choices.joints_only and split != "test":
        raise InputError(f"{source}: rows without SMPL parameters can be tested with, but not be trained on")
    if choices.smpl is not None and not choices.smpl.is_dir():
        raise InputError(f"{choices.smpl}: there is no such folder of SMPL parameters")
    neutral = load_body_model(body, "neutral") if body.is_dir() else load_body_model(body)
    neutral.keypoint_regressor("h36m17")  # says what to do if there is none
    form = _form(source)
    root = source.parent if form == "npz" else source
    cameras, camera_path = find_cameras((root,), SUBJECTS[split])
    distorted = any(camera.distorts for camera in cameras.values())
    if not choices.undistort:
        cameras = {key: camera.without_distortion() for key, camera in cameras.items()}
    jobs, skipped = _jobs(source, form, split, neutral, cameras, choices)
    settings: dict[str, str | int] = {
        "source": str(source.resolve()),
        "every": choices.every,
        "views": choices.views,
        "smpl": str(choices.smpl.resolve()) if choices.smpl else "",
        "joints_only": int(choices.joints_only),
        "undistort": int(choices.undistort),
    }
    conversion = Conversion(DATASET, split, str(body), jobs, settings, skipped)
    summary = run_conversion(conversion, out, options)
    if choices.joints_only and summary.state == "written":
        without = int((~FrameStore(out).has_body).sum())
        summary = summary.with_note(f"{without} of these rows have measured joints alone")
    if not distorted or not choices.undistort:
        cause = f"{camera_path.name} has no distortion" if not distorted else "as asked for"
        summary = summary.with_note(f"images keep the distortion of the lenses ({cause})")
    return summary


def _form(source: Path) -> Form:
    """In which form a source keeps the data set.

    Raises:
        InputError: If it is none of the three.
    """
    if source.suffix == ".npz":
        return "npz"
    if h36m_annotations.is_annotated(source):
        return "annotations"
    if is_tree(source):
        return "tree"
    raise InputError(
        f"{source}: it is none of what Human3.6M is kept in: a folder with S1/MyPoseFeatures, one with annotations/"
        "Human36M_subject1_data.json, or an .npz"
    )


def _jobs(
    source: Path, form: Form, split: Split, body: BodyModel, cameras: Cameras, choices: H36MChoices
) -> tuple[tuple[Job, ...], tuple[Skipped, ...]]:
    """What there is to do, and what was left out before that.

    Raises:
        InputError: If a file that all rows need is damaged.
    """
    lenses = {key: Lens(camera) for key, camera in cameras.items()}
    match form:
        case "npz":
            views = h36m_npz.read_views(source, SUBJECTS[split], cameras, choices.names(split), choices.every)
            return _view_jobs(views, source.parent, lenses, body, choices), ()
        case "annotations":
            views = _annotated(source, split, cameras, choices)
            return _view_jobs(views, source / "images", lenses, body, choices), ()
        case "tree":
            return _tree_jobs(source, split, lenses, body, choices)
        case _:
            assert_never(form)


def _annotated(source: Path, split: Split, cameras: Cameras, choices: H36MChoices) -> Iterator[tuple[View, Camera]]:
    fits = choices.smpl or source / "annotations"
    for subject in SUBJECTS[split]:
        yield from h36m_annotations.read_views(source, fits, subject, cameras, choices.names(split), choices.every)


def _view_jobs(
    views: Iterator[tuple[View, Camera]],
    images: Path,
    lenses: Mapping[tuple[int, str], Lens],
    body: BodyModel,
    choices: H36MChoices,
) -> tuple[Job, ...]:
    return tuple(
        ImageJob(
            images.__truediv__,
            lenses[int(view.subject[1:]), camera.name],
            partial(view_rows, view, body, choices.joints_only),
        )
        for view, camera in views
    )


def _tree_jobs(
    source: Path, split: Split, lenses: Mapping[tuple[int, str], Lens], body: BodyModel, choices: H36MChoices
) -> tuple[tuple[Job, ...], tuple[Skipped, ...]]:
    mosh = choices.smpl or (source / "mosh" if (source / "mosh").is_dir() else None)
    tree = Tree(source, mosh)
    jobs: list[Job] = []
    skipped: list[Skipped] = []
    for subject in SUBJECTS[split]:
        recordings, alone = find_recordings(source, subject, choices.names(split))
        skipped += [Skipped(f"{DATASET}/{name}", "it has no measured joints", 0) for name in alone]
        if not recordings:
            skipped.append(Skipped(f"{DATASET}/S{subject}", "there are no recordings of this subject", 0))
        for recording in recordings:
            lens = lenses[subject, recording.camera]
            plan = partial(_recording_rows, tree, recording, lens.camera, body, choices)
            video = tree.video(recording)
            if video.is_file():
                jobs.append(VideoJob(video, lens, plan))
            else:
                jobs.append(ImageJob(partial(tree.image, recording), lens, plan))
    return tuple(jobs), tuple(skipped)


def _recording_rows(tree: Tree, recording: Recording, camera: Camera, body: BodyModel, choices: H36MChoices) -> JobPlan:
    """The rows of a recording; one whose files are damaged is left out by name, for hundreds remain."""
    try:
        return view_rows(read_view(tree, recording, camera, choices.every), body, choices.joints_only)
    except InputError as error:
        return JobPlan((), (Skipped(f"{DATASET}/{recording.name}", without_path(error), 0),))
