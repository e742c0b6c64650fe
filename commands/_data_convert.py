"""The command `snugfit data convert`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, assert_never

from rich.console import Console

from bodies.errors import InputError
from datamodules.convert.complete import finished
from datamodules.convert.summary import RunOptions, Split, Summary, summary_table

Dataset = Literal["h36m", "3dpw", "surreal", "rich"]
Views = Literal["protocol", "frontal", "all"]


def convert(
    dataset: Dataset,
    source: Path,
    *,
    out: Path,
    split: Split,
    body: Path,
    every: int | None = None,
    smplx: Path | None = None,
    transfer: Path | None = None,
    views: Views = "protocol",
    smpl: Path | None = None,
    joints_only: bool = False,
    undistort: bool = True,
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
        source: Folder of the downloads: the one with imageFiles and sequenceFiles (3dpw), the one with cmu
            (surreal), the one with bodies, images and scan_calibration (rich), or, of h36m, the one with S1, S5, ...,
            the one with annotations and images, or SPIN's .npz.
        out: The frames file to write.
        split: Which split.
        body: Folder with SMPL_MALE and SMPL_FEMALE (.pkl or .npz, also under their original names): the data sets have
            bodies of these genders, and their translations depend on the rest pelvis. For h36m with SMPL_NEUTRAL and
            J_regressor_h36m.npy.
        every: Take every n-th frame of each sequence or clip; by default each, and of h36m every 5th.
        smplx: Folder with SMPLX_MALE and SMPLX_FEMALE, of which RICH's bodies are; by default that of SMPL, or `smplx`
            below it.
        transfer: The official matrix from SMPL-X to SMPL (smplx2smpl_deftrafo_setup.pkl), for rich; by default the one
            beside the models, and without it a correspondence of closest points.
        views: Cameras of h36m: those of protocol 2 (all for training, the frontal one for testing), the frontal one
            or all.
        smpl: Folder of h36m's SMPL parameters: MoSh pickles, by default `mosh` in SOURCE, or the JSON files of
            I2L-MeshNet or NeuralAnnot, by default `annotations` in SOURCE.
        joints_only: Keep h36m's test rows that have no SMPL parameters, to be scored by their measured joints; their
            pose and shape are zero.
        undistort: Take the distortion of h36m's lenses out of its images.
        workers: Threads to use; by default one per core.
        dry_run: Count what would be converted and skipped, and write nothing.
        overwrite: Make the file anew if it is there already.

    Raises:
        InputError: If an option is given that is for another data set, or whatever the data set's converter says.
    """
    h36m = {
        "--views": views != "protocol",
        "--smpl": smpl,
        "--joints-only": joints_only,
        "--no-undistort": not undistort,
    }
    _refuse_foreign(dataset, {"h36m": h36m, "rich": {"--smplx": smplx, "--transfer": transfer}})
    options = RunOptions(workers, dry_run, overwrite)
    summary = finished(out, dataset, split, options)
    if summary is None:
        choices = _Choices(body, every, smplx, transfer, views, smpl, joints_only, undistort)
        summary = _converted(dataset, source, out, split, choices, options)
    Console().print(summary_table(summary))


class _Choices(NamedTuple):
    """What `convert` was asked for, besides source and output."""

    body: Path
    every: int | None
    smplx: Path | None
    transfer: Path | None
    views: Views
    smpl: Path | None
    joints_only: bool
    undistort: bool


def _converted(
    dataset: Dataset, source: Path, out: Path, split: Split, choices: _Choices, options: RunOptions
) -> Summary:
    """Converts; a converter is imported when it is called, for it brings torch."""
    stride = 1 if choices.every is None else choices.every
    match dataset:
        case "3dpw":
            from datamodules.convert.threedpw import convert_threedpw

            return convert_threedpw(source, out, split, choices.body, stride, options)
        case "surreal":
            from datamodules.convert.surreal import convert_surreal

            return convert_surreal(source, out, split, choices.body, stride, options)
        case "rich":
            from datamodules.convert.rich import ModelFiles, convert_rich

            models = ModelFiles(choices.body, choices.smplx, choices.transfer)
            return convert_rich(source, out, split, models, stride, options)
        case "h36m":
            from datamodules.convert.h36m import EVERY, H36MChoices, convert_h36m

            every = EVERY if choices.every is None else choices.every
            of_h36m = H36MChoices(every, choices.views, choices.smpl, choices.joints_only, choices.undistort)
            return convert_h36m(source, out, split, choices.body, of_h36m, options)
        case _:
            assert_never(dataset)


def _refuse_foreign(dataset: Dataset, given: Mapping[Dataset, Mapping[str, object]]) -> None:
    """Refuses what would be ignored: an option that only another data set has."""
    for owner, options in given.items():
        for option, value in options.items():
            if value and owner != dataset:
                raise InputError(f"{option}: {dataset} has no use for it, only {owner}")
