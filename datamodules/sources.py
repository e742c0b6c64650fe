"""Where samples come from, as a configuration says it, and the files opened and checked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bodies.errors import InputError
from datamodules.store_reader import EstimateStore, FrameStore
from datamodules.synthetic_frames import SyntheticSettings


@dataclass(frozen=True)
class DatasetSource:
    """One data set, or one split of it.

    Raises:
        InputError: If the probability is negative or `every` is not positive.
    """

    frames: Path
    """The frames file."""
    estimates: tuple[Path, ...] = ()
    """Estimates files of its rows, one per regressor."""
    probability: float = 1.0
    """How often training takes a sample of it, up to a common factor; without meaning in validation and test."""
    self_mixing: bool = False
    """Whether training pastes patches of its images elsewhere: the paper does for Human3.6M and SURREAL."""
    every: int = 1
    """Take each so-many-th row only."""
    skip_bad_rows: bool = False
    """Leave out damaged rows instead of refusing the file."""
    synthetic: SyntheticSettings | None = None
    """How to make the frames file where it is missing."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability < float("inf"):
            raise InputError(f"{self.frames}: its probability must be 0 or more and finite, got {self.probability}")
        if self.every < 1:
            raise InputError(f"{self.frames}: every must be 1 or more, got {self.every}")


@dataclass(frozen=True)
class Loading:
    """How samples become batches. Of these numbers the paper gives the training batch alone, 8.

    Raises:
        InputError: If a number is out of its range.
    """

    batch_size: int = 8
    """Samples of a training batch of one rank."""
    evaluation_batch_size: int = 32
    """The same in validation and test."""
    batches_per_epoch: int = 1000
    """Training batches that each rank takes in an epoch."""
    workers: int = 2
    """Loader processes of one rank; 0 reads in the main process."""
    crop_margin: float = 1.0
    """Side of the crop over that of the stored box, which has a margin already."""
    surface_points: int = 0
    """How many DensePose points a sample has room for; more are thinned out at random."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "evaluation_batch_size", "batches_per_epoch"):
            if getattr(self, name) < 1:
                raise InputError(f"data.loading.{name} must be 1 or more, got {getattr(self, name)}")
        if self.workers < 0 or self.surface_points < 0 or not 0 < self.crop_margin < float("inf"):
            raise InputError("data.loading: workers and surface_points must be 0 or more, crop_margin positive")


@dataclass(frozen=True)
class OpenedSource:
    """A source and its files."""

    name: str
    """What the configuration calls it."""
    source: DatasetSource
    """What the configuration says of it."""
    frames: FrameStore
    """Its rows."""
    estimates: tuple[EstimateStore, ...]
    """Their estimates."""


def open_sources(sources: Mapping[str, DatasetSource]) -> tuple[OpenedSource, ...]:
    """Opens the files of a split's data sets.

    Raises:
        InputError: If a file is missing or bad; names it.
    """
    opened = []
    for name, source in sources.items():
        frames = FrameStore(source.frames, source.skip_bad_rows)
        stores = tuple(EstimateStore(path, frames, source.skip_bad_rows) for path in source.estimates)
        opened.append(OpenedSource(name, source, frames, stores))
    return tuple(opened)


def check_trainable(sources: Iterable[OpenedSource]) -> None:
    """Refuses data sets that cannot be trained on: displacements are those to a true body.

    Raises:
        InputError: If a row has measured joints alone; names the file and the row.
    """
    for opened in sources:
        frames = opened.frames
        if len(bodiless := np.flatnonzero(~frames.has_body)):
            raise InputError(
                f"{frames.path}: {len(bodiless)} of its {len(frames)} rows have measured joints but no true body, the "
                f"first is {frames.row_id(int(frames.rows[bodiless[0]]))}; it can be tested with, but not trained on"
            )


def make_missing(sources: Iterable[DatasetSource]) -> None:
    """Makes the synthetic sets that are configured and whose frames file is not there.

    Raises:
        InputError: If one cannot be made as configured.
    """
    for source in sources:
        if source.synthetic is not None and not source.frames.exists():
            # Imported here, for it brings what only making images needs.
            from datamodules.synthetic import synthesize

            source.frames.parent.mkdir(parents=True, exist_ok=True)
            synthesize(source.frames, source.synthetic)
