"""The data module: data sets drawn by probability for training, every row once for validation and test.

Training is an endless stream of samples (`datamodules.schedule`): which row sample i is depends on the seed and i
alone, whatever the number of ranks and workers. An epoch is `loading.batches_per_epoch` batches of it. What goes into a
checkpoint is how many samples have been taken, so a run resumed in mid-epoch sees what the unbroken run would have.

Nothing has to be set in the trainer: the samplers deal the samples out to the ranks themselves, and are of the class
that Lightning leaves in place whatever `use_distributed_sampler` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from bodies import BodyModel, InputError, load_body_model
from datamodules.augmentation import Augmentation
from datamodules.initial import TRAINING_DRAWS, InitialDraw, NoiseScale
from datamodules.initial_errors import initial_error_summary
from datamodules.opencv_threads import one_opencv_thread
from datamodules.sample import BodySample
from datamodules.sample_reader import MixtureDataset, SampleFormat, SampleReader, texture_shape
from datamodules.schedule import (
    BLOCK_SAMPLES,
    EvaluationBatches,
    MixtureSchedule,
    Position,
    Share,
    TrainingBatches,
)
from datamodules.sources import DatasetSource, Loading, OpenedSource, check_trainable, make_missing, open_sources
from datamodules.store_layout import GENDERS, Gender
from datamodules.turned_crop import RestPelvis

Split = Literal["train", "validation", "test"]

#: What Lightning calls a stage, and the splits that are read in it.
_SPLITS_OF_STAGE: Final[dict[str, tuple[Split, ...]]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("test",),
}
_NOISE: Final = NoiseScale()
_EVALUATION_DRAWS: Final = (InitialDraw("noise"),)
_AUGMENTATION: Final = Augmentation()
_LOADING: Final = Loading()
#: Validation and test are the same whatever the seed of training.
_EVALUATION_SEED: Final = 0
#: Of each data set, for the errors printed at start-up.
_SUMMARY_ROWS: Final = 64


@dataclass(frozen=True)
class _Start:
    """What was before the run that this process makes."""

    samples: int = 0
    """Samples that had been taken by all ranks together."""
    batches: int = 0
    """Batches that Lightning had counted."""


class MixtureDataModule(lightning.LightningDataModule):
    """Data sets by name, drawn by probability in training and read once through in validation and test.

    Args:
        train: Data sets of training.
        validation: Data sets of validation.
        test: Data sets of test and prediction.
        crop_px: Side of the crops.
        body_model: Body model of the initial estimates: standin, standin-tiny, or the path of an SMPL file.
        true_body_models: Models that the true bodies of some gender refer to; `body_model` for the others.
        noise: Noise of the initial estimates that are made from the true bodies.
        training_draws: Ways to an initial estimate in training.
        evaluation_draws: The same in validation and test; one, as a rule.
        augmentation: What is changed on training samples; null for nothing.
        loading: Batches, workers, and what a sample holds.
        seed: Another seed is another stream of training samples.

    Raises:
        InputError: If the side of the crops or the seed makes no sense.
    """

    def __init__(
        self,
        train: Mapping[str, DatasetSource] | None = None,
        validation: Mapping[str, DatasetSource] | None = None,
        test: Mapping[str, DatasetSource] | None = None,
        crop_px: int = 256,
        body_model: str = "standin",
        true_body_models: Mapping[Gender, str] | None = None,
        noise: NoiseScale = _NOISE,
        training_draws: tuple[InitialDraw, ...] = TRAINING_DRAWS,
        evaluation_draws: tuple[InitialDraw, ...] = _EVALUATION_DRAWS,
        augmentation: Augmentation | None = _AUGMENTATION,
        loading: Loading = _LOADING,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if crop_px < 1 or seed < 0:
            raise InputError(f"data.crop_px must be 1 or more and data.seed 0 or more, got {crop_px} and {seed}")
        self._sources: dict[Split, Mapping[str, DatasetSource]] = {
            "train": train or {},
            "validation": validation or {},
            "test": test or {},
        }
        self._crop_px, self._noise, self._augmentation, self._loading = crop_px, noise, augmentation, loading
        self._training_draws, self._evaluation_draws, self._seed = training_draws, evaluation_draws, seed
        self._body_model, self._true_body_models = body_model, dict(true_body_models or {})
        self.readers: dict[Split, tuple[SampleReader, ...]] = {}
        """Of each split that was set up: one per data set, in the order of the configuration."""
        self._start = _Start()

    @cached_property
    def body(self) -> BodyModel:
        """The model of the initial estimates."""
        return load_body_model(self._body_model)

    @cached_property
    def true_bodies(self) -> dict[Gender, BodyModel]:
        """Models of the true bodies of the genders that have their own."""
        return {gender: load_body_model(name) for gender, name in self._true_body_models.items()}

    def prepare_data(self) -> None:
        """Makes the synthetic sets that are configured and not there yet."""
        make_missing(source for sources in self._sources.values() for source in sources.values())

    def setup(self, stage: str) -> None:
        """Opens and checks the files of a stage.

        Raises:
            InputError: If a file is missing or bad, a body model cannot be loaded, a data set of validation or test has
                no usable rows, or one of training that has a probability has none, or rows without a true body.
        """
        opened = {split: open_sources(self._sources[split]) for split in _SPLITS_OF_STAGE[stage]}
        check_trainable(opened.get("train", ()))
        every = [source for sources in opened.values() for source in sources]
        form = SampleFormat(
            crop_px=self._crop_px,
            crop_margin=self._loading.crop_margin,
            surface_points=self._loading.surface_points,
            texture_shape=texture_shape([source.frames for source in every], self.body),
            regressors=tuple(sorted({store.regressor for source in every for store in source.estimates})),
            draws=(),
            pelvises={gender: RestPelvis.of(self.true_bodies.get(gender, self.body)) for gender in GENDERS},
        )
        for split, sources in opened.items():
            first = self._first_number(split)
            training = split == "train"
            form = replace(form, draws=self._training_draws if training else self._evaluation_draws)
            augmentation = self._augmentation if training else None
            self.readers[split] = tuple(
                SampleReader(number, source, form, augmentation) for number, source in enumerate(sources, first)
            )
            if not training:
                _check_rows(self.readers[split], split)
            if sources and (self.trainer is None or self.trainer.is_global_zero):
                _check_bodies(sources, self.body.name)
                rank_zero_info(self._describe(split, sources))

    def train_dataloader(self) -> DataLoader[BodySample]:
        """The stream of training samples, this rank's share of it.

        Raises:
            InputError: If there is no training data.
        """
        readers, loading = self._readers("train"), self._loading
        batches = TrainingBatches(
            self._schedule(), loading.batch_size, loading.batches_per_epoch, self._share(), self._position
        )
        return _ResumableLoader(MixtureDataset(readers), sampler=batches, **self._loader_settings())

    def val_dataloader(self) -> DataLoader[BodySample] | list[DataLoader[BodySample]]:
        """Every validation row once; nothing where no validation data is configured."""
        return self._evaluation_loader("validation") if self._sources["validation"] else []

    def test_dataloader(self) -> DataLoader[BodySample]:
        """Every test row once.

        Raises:
            InputError: If there is no test data.
        """
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[BodySample]:
        """The same as in test."""
        return self._evaluation_loader("test")

    def state_dict(self) -> dict[str, Any]:
        """How far the stream of training samples was read by the batches that were trained on."""
        return {"samples": self._position().samples, "batches": self._trained_batches()[0], "stream": self._stream()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on where a checkpoint's run was."""
        self._start = _Start(int(state_dict["samples"]), int(state_dict["batches"]))
        if "train" in self.readers and state_dict["stream"] != self._stream():
            rank_zero_warn(
                "the checkpoint was trained on other data sets, probabilities or another seed: "
                "its run is continued with other samples than it would have seen"
            )

    def dataset_name(self, dataset: int) -> str:
        """What the configuration calls a data set; `BodySample.dataset` counts through training, validation, test."""
        return [name for sources in self._sources.values() for name in sources][dataset]

    def sequence_name(self, dataset: int, sequence: int) -> str:
        """Name of a sequence of a data set that was set up."""
        return self._reader(dataset).frames.sequences[sequence]

    def sample_name(self, dataset: int, row: int) -> str:
        """Row id of a sample of a data set that was set up."""
        return self._reader(dataset).frames.row_id(row)

    def _first_number(self, split: Split) -> int:
        """What `BodySample.dataset` is for the first data set of a split."""
        splits = tuple(self._sources)
        return sum(len(self._sources[earlier]) for earlier in splits[: splits.index(split)])

    def _reader(self, dataset: int) -> SampleReader:
        return next(reader for readers in self.readers.values() for reader in readers if reader.number == dataset)

    def _readers(self, split: Split) -> tuple[SampleReader, ...]:
        if not self._sources[split]:
            raise InputError(f"no data set is configured in data.{split}")
        assert split in self.readers, f"setup was not called for {split}"
        return self.readers[split]

    def _schedule(self) -> MixtureSchedule:
        probabilities = [source.probability for source in self._sources["train"].values()]
        return MixtureSchedule([len(reader) for reader in self._readers("train")], probabilities, self._seed)

    def _stream(self) -> str:
        """What the stream of training samples depends on."""
        parts = zip(self._sources["train"].items(), self.readers.get("train", ()), strict=False)
        datasets = [
            (name, source.probability, len(reader), reader.frames.fingerprint) for (name, source), reader in parts
        ]
        return repr((self._seed, datasets))

    def _evaluation_loader(self, split: Split) -> DataLoader[BodySample]:
        readers = self._readers(split)
        sizes, batch_size = [len(reader) for reader in readers], self._loading.evaluation_batch_size
        batches = EvaluationBatches(sizes, _EVALUATION_SEED, batch_size, self._share())
        return DataLoader(MixtureDataset(readers), sampler=batches, **self._loader_settings())

    def _loader_settings(self) -> dict[str, Any]:
        workers = self._loading.workers
        if workers:
            one_opencv_thread()
        return {
            # The samplers yield whole batches and the data set collates them.
            "batch_size": None,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": one_opencv_thread,
            # Else each epoch would draw from the global generator, whose state then tells broken from unbroken runs.
            "generator": torch.Generator(),
        }

    def _share(self) -> Share:
        return Share() if self.trainer is None else Share(self.trainer.global_rank, self.trainer.world_size)

    def _position(self) -> Position:
        total, epoch = self._trained_batches()
        since = (total - self._start.batches) * self._share().world
        return Position(self._start.samples + since * self._loading.batch_size, epoch)

    def _trained_batches(self) -> tuple[int, int]:
        """Batches trained on in all and in this epoch, as Lightning counts them; workers read further ahead."""
        if self.trainer is None:
            return self._start.batches, 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        # Lightning's annotations know but a base class of its counters.
        return progress.total.processed, progress.current.processed  # type: ignore[attr-defined]

    def _describe(self, split: Split, sources: Sequence[OpenedSource]) -> str:
        """What a split consists of, for the start of a run."""
        lines = [f"{split}:"]
        training = split == "train"
        places = self._schedule().places.tolist() if training and self._sources["train"] else []
        shares = [f", {count / BLOCK_SAMPLES:.1%} of the samples" for count in places] or [""] * len(sources)
        for reader, opened, share in zip(self.readers[split], sources, shares, strict=True):
            lines.append(f"  {opened.name}: {len(reader)} rows of {opened.frames.path}{share}")
            lines += [f"    {note}" for note in reader.notes()]
            if training:
                errors = initial_error_summary(
                    opened.frames, self.body, self._noise, opened.estimates, self.true_bodies, _SUMMARY_ROWS
                )
                lines += [f"    initial estimate by {error}" for error in errors]
        return "\n".join(lines)


class _ResumableLoader(DataLoader[BodySample]):
    """A loader that Lightning knows to be resumable; where it is, the data module's state says."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing of its own."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""


def _check_rows(readers: Sequence[SampleReader], split: Split) -> None:
    """A data set of which nothing is left would be missing from the results without a word."""
    for reader in readers:
        if not len(reader):
            frames = reader.frames
            raise InputError(
                f"{frames.path}: none of its {len(frames)} rows can be used for {split}: {'; '.join(reader.notes())}"
            )


def _check_bodies(sources: Sequence[OpenedSource], body_name: str) -> None:
    """Official models go by many names, but the stand-ins are different bodies to the same parameters."""
    for source in sources:
        names = {source.frames.body_model, body_name}
        if len(names) > 1 and any(name.startswith("standin") for name in names):
            rank_zero_warn(
                f"{source.frames.path}: its bodies are of {source.frames.body_model}, data.body_model is {body_name}"
            )
