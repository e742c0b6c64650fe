"""Makes a SURREAL-like set with any body model and writes it as a frames file of the store.

    synthesize(Path("train.h5"), SyntheticSettings(frames=20_000, subjects=200, body="standin-tiny"), workers=8)

The set depends on its settings alone, not on the number of processes; an interrupted run is gone on with. What makes
a frame is in `datamodules.synthetic_frames`; the idea of rendering textured bodies of known shape over backgrounds is
that of Varol et al., "Learning from Synthetic Humans", 2017.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

import cv2
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from bodies.errors import InputError
from datamodules.opencv_threads import one_opencv_thread
from datamodules.store import FrameStore, FrameWriter
from datamodules.synthetic_frames import DATASET, FrameMaker, SyntheticSettings

Item = TypeVar("Item")


def synthesize(path: Path, settings: SyntheticSettings, workers: int | None = None, quiet: bool = False) -> FrameStore:
    """Makes a set.

    Args:
        path: The frames file to write.
        settings: What the set is to be.
        workers: Processes to use; by default one per core, and the calling one alone for 0 or 1.
        quiet: Show no progress bar.

    Returns:
        The finished file, opened.

    Raises:
        InputError: If the settings cannot be met, or the file cannot be written.
    """
    if workers is not None and workers < 0:
        raise InputError(f"workers {workers}: there cannot be fewer than none")
    maker = FrameMaker(settings)
    progress = _progress(quiet)
    with FrameWriter(path, DATASET, settings.split, settings.body, _header(settings)) as writer, progress:
        todo = [number for number in range(settings.frames) if settings.row_id(number) not in writer]
        task = progress.add_task("frames", total=settings.frames, completed=settings.frames - len(todo))
        for frame in _made(maker.frame, todo, workers):
            writer.add_row(replace(frame.row, image=writer.add_image(frame.image)))
            progress.advance(task)
        names = {number: settings.subject_name(number) for number in range(min(settings.subjects, settings.frames))}
        bare = [number for number, name in names.items() if not writer.has_texture(name)]
        task = progress.add_task("textures", total=len(names), completed=len(names) - len(bare))
        for number, texture in zip(bare, _made(maker.wardrobe.given_texture, bare, workers), strict=True):
            writer.add_texture(names[number], texture)
            progress.advance(task)
    return FrameStore(path)


def _header(settings: SyntheticSettings) -> dict[str, str | int]:
    """What a run that goes on with an interrupted one has to have in common with it."""
    sources = (settings.amass, settings.textures, settings.backgrounds)
    # Files without points say nothing of them, as they did before there were any.
    surface = {"surface_points": settings.surface_points} if settings.surface_points else {}
    return {
        "seed": settings.seed,
        "frames": settings.frames,
        "subjects": settings.subjects,
        "image_size": "x".join(map(str, settings.image_size)),
        "texture_px": settings.texture_px,
        "sources": ", ".join(str(source or "made") for source in sources),
        **surface,
    }


def _progress(quiet: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=quiet,
    )


class _Items(Dataset[Item | InputError], Generic[Item]):
    """Items that are made when a data loader's worker asks for them."""

    def __init__(self, make: Callable[[int], Item], numbers: Sequence[int]) -> None:
        self._make, self._numbers = make, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Item | InputError:
        try:
            return self._make(self._numbers[index])
        except InputError as error:
            # Handed over as a result: the loader would make the message a page with a traceback.
            return error


def _made(make: Callable[[int], Item], numbers: Sequence[int], workers: int | None) -> Iterator[Item]:
    """The items of the numbers, in order, made by several processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores if workers is None else workers, len(numbers))
    if count <= 1:
        with _one_thread():
            yield from map(make, numbers)
        return
    # In this process too, as its children inherit it.
    with _one_thread():
        items = _Items(make, numbers)
        for item in DataLoader(items, None, num_workers=count, collate_fn=_unchanged, worker_init_fn=one_opencv_thread):
            if isinstance(item, InputError):
                raise item
            yield item


def _unchanged(item: Item) -> Item:
    return item


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in a worker: sums are split among threads, and their last digits depend on how."""
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    one_opencv_thread()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
