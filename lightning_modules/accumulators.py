"""torchmetrics accumulators of per-sample numbers, right under DDP with shards of any size, empty ones included.

A number that is not finite is a failure: it is counted, and the mean it belongs to is NaN, since leaving it out would
flatter. A number that a sample cannot have (an end-point error where nothing was rendered, a vertex error without a
true mesh) is declared undefined by the caller and left out of mean and count.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

#: Identifiers travel as float64, which holds every integer up to this one.
_LARGEST_ID: Final = 2**53
_ID_COLUMNS: Final = 3


class SampleMean(Metric):
    """Mean over samples of one number each. Its unit and alignment belong into the name it is logged under.

    `failures` counts the numbers that were not finite; any makes the mean NaN. Without samples the mean is NaN. Samples
    that a sampler repeats to even out shards count twice here; `SampleTable` drops them.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    failures: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("failures", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(_float64(fn), exclude_state)

    def update(self, values: Float[Tensor, " batch"], defined: Bool[Tensor, " batch"] | None = None) -> None:
        """Adds samples; those that are not `defined` are left out."""
        # Without boolean indexing, which would wait for the GPU in each training step.
        values = values.detach().double()
        present = torch.ones_like(values, dtype=torch.bool) if defined is None else defined
        finite = values.isfinite()
        self.total += values.where(present & finite, 0.0).sum()
        self.count += present.sum()
        self.failures += (present & ~finite).sum()

    def compute(self) -> Float[Tensor, ""]:
        """The mean, float64."""
        mean = self.total / self.count
        return torch.where(self.failures > 0, torch.nan, mean)


@dataclass(frozen=True)
class GroupSummary:
    """Statistics of each group of samples."""

    keys: Int64[Tensor, "groups key"]
    """What identifies the group: no number for the whole, (dataset) or (dataset, sequence)."""
    count: Int64[Tensor, "groups columns"]
    """Samples for which the number is defined, failures included."""
    failures: Int64[Tensor, "groups columns"]
    """How many of these were not finite."""
    mean: Float[Tensor, "groups columns"]
    """Mean; NaN with any failure or without samples."""
    median: Float[Tensor, "groups columns"]
    """The lower median, failures counting as infinitely bad; NaN without samples."""


@dataclass(frozen=True)
class SampleErrors:
    """Per-sample numbers of a whole evaluation, each sample once, sorted by dataset and row."""

    columns: tuple[str, ...]
    """Names of the numbers, with unit and alignment."""
    dataset_ids: Int64[Tensor, " rows"]
    """Which data set."""
    sequence_ids: Int64[Tensor, " rows"]
    """Which sequence of that data set."""
    row_ids: Int64[Tensor, " rows"]
    """Which row of that data set."""
    values: Float[Tensor, "rows columns"]
    """The numbers, float64."""
    defined: Bool[Tensor, "rows columns"]
    """Which of them the sample can have."""

    def overall(self) -> GroupSummary:
        """All samples as one group."""
        return self._summary(self.dataset_ids.new_zeros(len(self.dataset_ids), 0))

    def by_dataset(self) -> GroupSummary:
        """One group per data set."""
        return self._summary(self.dataset_ids[:, None])

    def by_sequence(self) -> GroupSummary:
        """One group per sequence of each data set."""
        return self._summary(torch.stack([self.dataset_ids, self.sequence_ids], dim=1))

    def _summary(self, keys: Int64[Tensor, "rows key"]) -> GroupSummary:
        if keys.shape[1]:
            groups, group_of_row = torch.unique(keys, dim=0, return_inverse=True)
        else:
            groups, group_of_row = keys.new_zeros(1, 0), keys.new_zeros(len(keys))

        def total(numbers: Tensor) -> Tensor:
            zeros = numbers.new_zeros(len(groups), len(self.columns))
            return zeros.index_add(0, group_of_row, numbers)

        finite = self.values.isfinite()
        count = total(self.defined.long())
        failures = total((self.defined & ~finite).long())
        mean = total(self.values.where(self.defined & finite, 0.0)) / count
        ranked = self.values.where(finite, torch.inf).where(self.defined, torch.nan)
        median = torch.full_like(mean, torch.nan)
        for group in range(len(groups)):
            rows = ranked[group_of_row == group]
            if len(rows):
                median[group] = rows.nanmedian(dim=0).values
        return GroupSummary(groups, count, failures, mean.where(failures == 0, torch.nan), median)


class SampleTable(Metric):
    """Gathers named numbers of each sample with its place in the data, for tables by data set and sequence.

    A sample that two processes saw (samplers repeat samples to even out shards) is kept once.

    Args:
        columns: Names of the numbers, with unit and alignment.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, columns: Sequence[str]) -> None:
        super().__init__()
        self.columns = tuple(columns)
        # One flat float64 list: a process without samples then sends an empty tensor of the right rank and type,
        # which torchmetrics makes from the metric's own dtype.
        self.set_dtype(torch.float64)
        self.add_state("rows", [], dist_reduce_fx="cat")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(_float64(fn), exclude_state)

    def update(
        self,
        dataset_ids: Int64[Tensor, " batch"],
        sequence_ids: Int64[Tensor, " batch"],
        row_ids: Int64[Tensor, " batch"],
        values: Float[Tensor, "batch columns"],
        defined: Bool[Tensor, "batch columns"] | None = None,
    ) -> None:
        """Adds samples.

        Args:
            dataset_ids: Which data set each is from.
            sequence_ids: Which sequence of it.
            row_ids: Which row of it; data set and row identify the sample.
            values: One column per name.
            defined: Which numbers the sample can have; all by default.
        """
        assert values.shape[1] == len(self.columns), f"{values.shape[1]} columns for {len(self.columns)} names"
        ids = torch.stack([dataset_ids, row_ids, sequence_ids], dim=1)
        assert ids.numel() == 0 or int(ids.abs().max()) <= _LARGEST_ID, "identifiers do not fit into float64"
        present = torch.ones_like(values, dtype=torch.bool) if defined is None else defined
        packed = torch.cat([ids.double(), values.detach().double(), present.double()], dim=1)
        self.rows.append(packed.flatten())

    def compute(self) -> Float[Tensor, "rows packed"]:
        """The rows as they were packed; read them through `table`, since torchmetrics lets no record through."""
        width = _ID_COLUMNS + 2 * len(self.columns)
        rows = dim_zero_cat(self.rows) if len(self.rows) else torch.zeros(0, dtype=torch.float64)
        return rows.reshape(-1, width)

    def table(self) -> SampleErrors:
        """All samples of all processes, on the CPU."""
        packed = self.compute().cpu()
        packed = packed[_first_of_each(packed[:, :2])]
        ids, (values, defined) = packed[:, :_ID_COLUMNS].long(), packed[:, _ID_COLUMNS:].chunk(2, dim=1)
        return SampleErrors(self.columns, ids[:, 0], ids[:, 2], ids[:, 1], values, defined.bool())


def _float64(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What moves tensors as `fn` does and keeps them in float64.

    torchmetrics ignores `module.bfloat16()` but follows `module.to(torch.bfloat16)`, which is what Lightning calls for
    a trainer of precision bf16-true. Sums would lose all but two digits.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = tensor.to(fn(tensor.new_empty(0)).device)
        return moved.double() if moved.is_floating_point() else moved

    return move


def _first_of_each(keys: Float[Tensor, "rows key"]) -> Int64[Tensor, " unique"]:
    """Where each different row first is, in the order of the rows' values."""
    unique, group_of_row = torch.unique(keys, dim=0, return_inverse=True)
    places = torch.arange(len(keys), device=keys.device)
    first = places.new_full((len(unique),), len(keys))
    return first.scatter_reduce(0, group_of_row, places, reduce="amin")
