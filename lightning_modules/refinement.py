"""The LightningModule: it wires network, batch preparation, loss, fit and scores, and computes nothing itself."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bodies import BodyModel, InputError
from datamodules.initial import NoiseScale
from datamodules.sample import BodySample, RefinementBatch
from fitting import FitResult
from lightning_modules.accumulators import SampleTable
from lightning_modules.evaluation import (
    EvaluationSettings,
    RefinementRow,
    columns,
    displacement_columns,
    map_errors_px,
    refine,
    score,
)
from lightning_modules.fitting_settings import FittingSettings
from lightning_modules.hourglass import DisplacementNetwork
from lightning_modules.losses import DisplacementNorm, displacement_loss, surface_loss
from lightning_modules.metrics import evaluation_points
from lightning_modules.preparation import BatchPreparation, BodySettings

#: Precisions in which the batch reaches the device as it was loaded. The others round its cameras and bodies first.
PRECISIONS: Final = ("32-true", "bf16-mixed", "16-mixed")
_BODY: Final = BodySettings()
_NOISE: Final = NoiseScale()
_FITTING: Final = FittingSettings()
_EVALUATION: Final = EvaluationSettings()

OptimizerMaker = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerMaker = Callable[[Optimizer], LRScheduler]


@dataclass(frozen=True)
class Refinement:
    """What became of a batch that was evaluated; for callbacks that draw it."""

    displacement_px: Float[Tensor, "batch 2 crop crop"]
    """The network's prediction, in pixels of the crop."""
    fits: dict[RefinementRow, FitResult]
    """The fit of each row; the initial estimate has none."""


class Prediction(NamedTuple):
    """Refined bodies of a batch. A tuple, because Lightning moves it to the CPU by itself."""

    rotations: Float[Tensor, "batch joints 3 3"]
    """Of the joints, relative to their parents; the initial estimate's where the fit was rejected."""
    betas: Float[Tensor, "batch betas"]
    """Shape coefficients, likewise."""
    transl: Float[Tensor, "batch 3"]
    """Translation in metres in the camera frame, likewise."""
    focal_px: Float[Tensor, "batch 2"]
    """Focal lengths of the full-image cameras that go with the bodies."""
    center_px: Float[Tensor, "batch 2"]
    """Their principal points."""
    accepted: Bool[Tensor, " batch"]
    """Whether the fit was."""
    dataset: Int64[Tensor, " batch"]
    """Which of the data module's data sets."""
    row: Int64[Tensor, " batch"]
    """Row in that data set's frames file."""


@runtime_checkable
class SampleNames(Protocol):
    """A data module that can say what its numbers stand for."""

    def dataset_name(self, dataset: int) -> str:
        """Name of a data set."""
        ...

    def sequence_name(self, dataset: int, sequence: int) -> str:
        """Name of a sequence of it."""
        ...

    def sample_name(self, dataset: int, row: int) -> str:
        """Name of a row of it."""
        ...


class RefinementModule(LightningModule):
    """Learns displacements from an initial body to the person in the photo, and refines bodies with them.

    Args:
        network: The displacement network.
        crop_px: Side of the square crops in pixels.
        body: Body models and rasterizer.
        noise: Noise of the initial estimates that are drawn from the truth.
        loss_norm: How the error of a pixel is measured.
        surface_weight: Weight of the `surface_loss`, for a network with `surface_outputs`; it is 0 in the paper.
        optimizer: Makes the optimiser.
        scheduler: Makes the learning rate schedule, which advances with each step; constant by default.
        fitting: Prior, solver and weights of the fit.
        evaluation: What validation and test compare.

    Raises:
        InputError: If a file is missing, or network, crop and body model do not go together.
    """

    def __init__(
        self,
        network: DisplacementNetwork,
        crop_px: int = 256,
        body: BodySettings = _BODY,
        noise: NoiseScale = _NOISE,
        loss_norm: DisplacementNorm = "l1",
        surface_weight: float = 0.0,
        optimizer: OptimizerMaker = Adam,
        scheduler: SchedulerMaker | None = None,
        fitting: FittingSettings = _FITTING,
        evaluation: EvaluationSettings = _EVALUATION,
    ) -> None:
        super().__init__()
        # For the checkpoint; loggers get the whole configuration from the command line (`cli.SavedConfig`).
        self.save_hyperparameters(logger=False)
        network.check_size(crop_px, crop_px)
        if bool(network.surface_outputs) != (surface_weight > 0):
            raise InputError(
                f"surface_weight must be positive if the network has surface_outputs, else 0; got {surface_weight}"
            )
        self.network = network
        self.crop_px = crop_px
        self.prepare = BatchPreparation(body, noise)
        self.loss_norm = loss_norm
        self.surface_weight = surface_weight
        self.fitting = fitting
        self.evaluation = evaluation
        self._optimizer, self._scheduler = optimizer, scheduler
        # In a tuple so that torch does not find it: see `preparation` on why bodies and priors are no submodules.
        self._prior = (fitting.load_prior(),)
        self.validation_scores = SampleTable(columns(evaluation.validation_rows, network.stacks))
        self.test_scores = SampleTable(columns(evaluation.test_rows, network.stacks))
        self._check_joints()

    def __deepcopy__(self, memo: dict[int, Any]) -> "RefinementModule":
        """A module with parameters of its own, as averaging weights needs it, that shares what it never changes.

        Bodies and prior are large, and the makers of optimiser and schedule that the command line gives hold on to
        its parser, which under DDP cannot be copied.
        """
        for shared in (self.prepare, self._prior, self._optimizer, self._scheduler):
            memo[id(shared)] = shared
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__({name: copy.deepcopy(value, memo) for name, value in self.__getstate__().items()})
        return twin

    @property
    def body(self) -> BodyModel:
        """The body model of the estimates, on the device of the last batch."""
        return self.prepare.body

    def setup(self, stage: str) -> None:
        """Refuses precisions that would round cameras and bodies before they are used."""
        if self.trainer.precision not in PRECISIONS:
            raise InputError(
                f"trainer.precision {self.trainer.precision} rounds the cameras and bodies of each batch; "
                f"use one of {', '.join(PRECISIONS)}"
            )

    def on_after_batch_transfer(self, batch: BodySample, dataloader_idx: int) -> RefinementBatch:
        """Draws the initial estimates and renders them, in float32."""
        return self.prepare(batch)

    def forward(self, batch: RefinementBatch) -> Float[Tensor, "batch stacks 2 crop crop"]:
        """Displacement of each stack in pixels of the crop; the last one's is the prediction."""
        return self.network(batch.images, batch.renderings)

    def training_step(self, batch: RefinementBatch, batch_idx: int) -> Float[Tensor, ""]:
        """The loss, summed over the stacks."""
        stacks_px, surface = self.network.predict(batch.images, batch.renderings)
        loss = displacement_loss(stacks_px, batch.displacement_px, batch.mask, self.loss_norm).sum()
        parts = {"displacement_loss": loss}
        if surface is not None:
            parts["surface_loss"] = surface_loss(surface, *self.prepare.true_surface(batch, surface.shape[-1])).sum()
            loss = loss + self.surface_weight * parts["surface_loss"]
        self._check_loss(loss, batch)
        errors = map_errors_px(batch, stacks_px).nanmean(dim=0)
        numbers = {"loss": loss, **parts} | dict(zip(displacement_columns(self.network.stacks), errors, strict=True))
        self.log_dict({f"train/{name}": number for name, number in numbers.items()}, batch_size=len(batch))
        self.log("epe_px", errors[-1], prog_bar=True, logger=False, batch_size=len(batch))
        return loss

    # Lightning hands the callbacks whatever a step returns, its annotations notwithstanding.
    def validation_step(self, batch: RefinementBatch, batch_idx: int) -> Refinement:  # type: ignore[override]
        """Scores a batch before and after refinement."""
        return self._evaluate(batch, self.evaluation.validation_rows, self.validation_scores)

    def test_step(self, batch: RefinementBatch, batch_idx: int) -> Refinement:  # type: ignore[override]
        """Scores a batch before and after refinement, in all the ways that the table compares."""
        return self._evaluate(batch, self.evaluation.test_rows, self.test_scores)

    def predict_step(self, batch: RefinementBatch, batch_idx: int) -> Prediction:
        """Refines a batch."""
        row, camera = self.evaluation.predict_row, batch.initial_camera
        fit = self.refine(batch, self(batch)[:, -1], (row,)).get(row)
        body = fit.parameters if fit else batch.initial
        accepted = fit.accepted if fit else torch.zeros_like(batch.row, dtype=torch.bool)
        place = camera.focal_px, camera.center_px
        return Prediction(body.rotations, body.betas, body.transl, *place, accepted, batch.dataset, batch.row)

    def refine(
        self,
        batch: RefinementBatch,
        displacement_px: Float[Tensor, "batch 2 crop crop"],
        rows: Sequence[RefinementRow],
    ) -> dict[RefinementRow, FitResult]:
        """Fits the batch's initial estimates in each of the ways, in float32."""
        self.prepare.to(self.device)
        fit = self.fitting.fit(self.body, self._prior[0])
        with torch.autocast(self.device.type, enabled=False):
            return refine(rows, batch, displacement_px.float(), fit, self.fitting)

    def on_validation_epoch_end(self) -> None:
        """Logs the means over the validation set."""
        self._log_means("val", self.validation_scores)

    def on_test_epoch_end(self) -> None:
        """Logs the means over the test set."""
        self._log_means("test", self.test_scores)

    def on_validation_epoch_start(self) -> None:
        """Forgets the validation before."""
        self.validation_scores.reset()

    def on_test_epoch_start(self) -> None:
        """Forgets the test before."""
        self.test_scores.reset()

    def configure_optimizers(self) -> Any:
        """The optimiser over the network's parameters, and its schedule."""
        optimizer = self._optimizer(self.network.parameters())
        if self._scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._scheduler(optimizer), "interval": "step"}}

    def _evaluate(self, batch: RefinementBatch, rows: tuple[RefinementRow, ...], table: SampleTable) -> Refinement:
        stacks_px = self(batch).float()
        fits = self.refine(batch, stacks_px[:, -1], rows)
        with torch.autocast(self.device.type, enabled=False):
            true_mesh = self.prepare.true_mesh(batch.truth, batch.gender)
            scores = score(rows, batch, stacks_px, fits, true_mesh, self.body, self.evaluation.protocol)
        table.update(batch.dataset, batch.sequence, batch.row, scores.values, scores.defined)
        return Refinement(stacks_px[:, -1], fits)

    def _log_means(self, stage: str, scores: SampleTable) -> None:
        table = scores.table()
        means = table.overall().mean[0].tolist()
        # The same on each process already: `table` gathered all samples.
        self.log_dict(
            {f"{stage}/{name}": mean for name, mean in zip(table.columns, means, strict=True)}, sync_dist=True
        )

    def _check_loss(self, loss: Tensor, batch: RefinementBatch) -> None:
        """Stops the run where it broke, not a thousand steps later."""
        if not bool(loss.isfinite()):
            pairs = zip(batch.dataset.tolist(), batch.row.tolist(), strict=True)
            names = ", ".join(self.sample_name(dataset, row) for dataset, row in pairs)
            raise InputError(f"the loss is {float(loss.detach())} at step {self.global_step}, in the batch of {names}")

    def dataset_name(self, dataset: int) -> str:
        """What tables call a data set."""
        names = self._names()
        return names.dataset_name(dataset) if names else f"data set {dataset}"

    def sequence_name(self, dataset: int, sequence: int) -> str:
        """What tables call a sequence of a data set."""
        names = self._names()
        return names.sequence_name(dataset, sequence) if names else f"data set {dataset} sequence {sequence}"

    def sample_name(self, dataset: int, row: int) -> str:
        """What tables and messages call a sample."""
        names = self._names()
        return names.sample_name(dataset, row) if names else f"data set {dataset} row {row}"

    def _names(self) -> SampleNames | None:
        data = getattr(self.trainer, "datamodule", None)
        return data if isinstance(data, SampleNames) else None

    def _check_joints(self) -> None:
        rest = self.body.rest_parameters()
        evaluation_points(self.body, self.body(rest), self.evaluation.protocol)
