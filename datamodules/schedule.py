"""Which row of which data set is sample number i: a function of the seed and i alone, and the samplers that ask it.

The stream of samples is cut into blocks of `BLOCK_SAMPLES`. In each block every data set has its fixed share of places,
permuted anew, so the mixture holds in every block and not only on average; and how often a data set came before sample
i follows from the number of the block. The n-th sample of a data set of N rows is place n mod N in the (n div N)-th
permutation of its rows: no row comes twice before all came once.

In step s, rank r of W ranks with batches of B takes the samples (s W + r) B to (s W + r) B + B - 1. So what all ranks
see together depends neither on their number nor on that of the workers, and a run that is resumed at sample i goes on
with exactly the samples the unbroken run would have seen.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray
from torch.utils.data import Dataset, DistributedSampler

from bodies.errors import InputError

#: A data set's share of the mixture is rounded to a multiple of one over this.
BLOCK_SAMPLES: Final = 4096
#: What a random sequence is for; keeps those of one seed apart.
_BLOCK, _ROWS, _SAMPLE, _EVALUATION = range(4)


class Draw(NamedTuple):
    """One sample to be read."""

    dataset: int
    """Which data set."""
    place: int
    """Which of its usable rows."""
    seed: int
    """Seeds all that is drawn for the sample; 63 bits."""


class MixtureSchedule:
    """The endless stream of training samples.

    Args:
        sizes: Number of usable rows of each data set.
        weights: Probability of each, up to a common factor.
        seed: Another seed is another stream.

    Raises:
        InputError: If a weight is negative or not finite, all are zero, or a data set with a weight has no rows.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self._sizes, self._seed = tuple(sizes), seed
        self.places = _places(sizes, weights)
        self._sources = np.repeat(np.arange(len(sizes)), self.places)
        # The block and permutations used last: the stream is mostly read in order.
        self._block: tuple[int, ndarray, ndarray] | None = None
        self._rows: dict[int, tuple[int, ndarray]] = {}

    def __getitem__(self, sample: int) -> Draw:
        """Sample number `sample`, from 0."""
        block, place = divmod(sample, BLOCK_SAMPLES)
        datasets, earlier = self._in_block(block)
        dataset = int(datasets[place])
        epoch, position = divmod(block * int(self.places[dataset]) + int(earlier[place]), self._sizes[dataset])
        row = int(self._permutation(dataset, epoch)[position])
        return Draw(dataset, row, sample_seed(self._seed, _SAMPLE, sample))

    def _in_block(self, block: int) -> tuple[Int64[ndarray, " samples"], Int64[ndarray, " samples"]]:
        """The data set of each sample of a block, and how many samples of it come before in the block."""
        if self._block is None or self._block[0] != block:
            datasets = np.random.default_rng((self._seed, _BLOCK, block)).permutation(self._sources)
            # A stable sort gathers each data set's samples in order; there they are counted from its first place.
            order = np.argsort(datasets, kind="stable")
            earlier = np.empty_like(order)
            first_places = np.cumsum(self.places) - self.places
            earlier[order] = np.arange(BLOCK_SAMPLES) - np.repeat(first_places, self.places)
            self._block = block, datasets, earlier
        return self._block[1:]

    def _permutation(self, dataset: int, epoch: int) -> Int64[ndarray, " rows"]:
        """The rows of a data set in the order of one pass over it."""
        if dataset not in self._rows or self._rows[dataset][0] != epoch:
            rng = np.random.default_rng((self._seed, _ROWS, dataset, epoch))
            self._rows[dataset] = epoch, rng.permutation(self._sizes[dataset])
        return self._rows[dataset][1]


def _places(sizes: Sequence[int], weights: Sequence[float]) -> Int64[ndarray, " datasets"]:
    """How many places of a block each data set has: its share, rounded so that they add up; at least one."""
    shares = np.asarray(weights, np.float64)
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise InputError(f"probabilities of the data sets must be 0 or more, finite and not all 0, got {list(weights)}")
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        if share > 0 and size == 0:
            raise InputError(f"training data set {number} has a probability of {share:g} but no usable rows")
    exact = shares / shares.sum() * BLOCK_SAMPLES
    places = np.where(shares > 0, np.maximum(np.floor(exact), 1), 0).astype(np.int64)
    # Largest remainders get what rounding down left over; where the minimum of one overdrew, the largest give.
    for _ in range(BLOCK_SAMPLES - int(places.sum())):
        places[np.argmax(exact - places)] += 1
    for _ in range(int(places.sum()) - BLOCK_SAMPLES):
        places[np.argmax(places)] -= 1
    return places


def sample_seed(seed: int, purpose: int, *numbers: int) -> int:
    """63 bits that depend on everything given."""
    state = np.random.SeedSequence((seed, purpose, *numbers)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


class Position(NamedTuple):
    """How far training has come."""

    samples: int
    """Samples that all ranks together have taken since the beginning."""
    epoch_batches: int
    """Batches that each rank has taken in this epoch."""


class Share(NamedTuple):
    """Which of how many processes."""

    rank: int = 0
    """Number of this process."""
    world: int = 1
    """How many there are."""


class _Counted(Dataset[int]):
    """So many numbers: what DistributedSampler wants to be told about a data set."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


# Lightning would put a sampler of its own in place of any that is not a DistributedSampler.
class TrainingBatches(DistributedSampler[list[Draw]]):
    """The batches of one rank, an epoch at a time, from where `position` says that training is.

    Args:
        schedule: The stream.
        batch_size: Samples of a batch of one rank.
        batches: Batches that each rank takes in an epoch.
        share: Which rank of how many.
        position: Asked at the beginning of each epoch, and when one is resumed.
    """

    def __init__(
        self,
        schedule: MixtureSchedule,
        batch_size: int,
        batches: int,
        share: Share,
        position: Callable[[], Position],
    ) -> None:
        super().__init__(_Counted(batches), num_replicas=share.world, rank=share.rank, shuffle=False)
        self._schedule, self._batch_size, self._batches, self._share = schedule, batch_size, batches, share
        self._position = position

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Draw]]:
        done = self._position()
        # An epoch that was finished before the checkpoint was written is followed by a whole one.
        for step in range(self._batches - done.epoch_batches % self._batches):
            first = done.samples + (step * self._share.world + self._share.rank) * self._batch_size
            yield [self._schedule[sample] for sample in range(first, first + self._batch_size)]


class EvaluationBatches(DistributedSampler[list[Draw]]):
    """Every row once, the same in each run, dealt out to the ranks in turn.

    All ranks get the same number of batches, so none waits for another in vain: where a rank has too few rows for that,
    its batches are smaller. Only where a rank has fewer rows than there are batches does a row come twice.

    Args:
        sizes: Number of usable rows of each data set.
        seed: Seeds the samples, each by its data set and place.
        batch_size: Largest batch.
        share: Which rank of how many.

    Raises:
        InputError: If there is no row at all.
    """

    def __init__(self, sizes: Sequence[int], seed: int, batch_size: int, share: Share) -> None:
        super().__init__(_Counted(sum(sizes)), num_replicas=share.world, rank=share.rank, shuffle=False)
        total = sum(sizes)
        if total == 0:
            raise InputError("the data sets to evaluate on have no usable rows")
        self._starts, self._seed = np.cumsum((0, *sizes)), seed
        longest = -(-total // share.world)
        self._batches = -(-longest // batch_size)
        numbers = np.arange(share.rank, total, share.world)
        if len(numbers) < self._batches:
            numbers = np.append(numbers, share.rank % total)
        cuts = np.arange(batch_size, len(numbers), batch_size)
        self._numbers = (
            np.split(numbers, cuts) if len(cuts) + 1 == self._batches else np.array_split(numbers, self._batches)
        )

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Draw]]:
        for numbers in self._numbers:
            yield [self._draw(int(number)) for number in numbers]

    def _draw(self, number: int) -> Draw:
        dataset = int(np.searchsorted(self._starts, number, side="right")) - 1
        place = number - int(self._starts[dataset])
        return Draw(dataset, place, sample_seed(self._seed, _EVALUATION, dataset, place))
