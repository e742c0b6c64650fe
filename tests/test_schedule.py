"""The stream of samples is a function of seed and number; ranks, batches and restarts are ways to cut it."""

from collections import Counter

import numpy as np
import pytest

from bodies import InputError
from datamodules.schedule import (
    BLOCK_SAMPLES,
    Draw,
    EvaluationBatches,
    MixtureSchedule,
    Position,
    Share,
    TrainingBatches,
)

SIZES, WEIGHTS = (100, 7, 3000), (0.5, 0.2, 0.3)


def schedule(seed: int = 0) -> MixtureSchedule:
    return MixtureSchedule(SIZES, WEIGHTS, seed)


def test_the_mixture_holds_in_every_block():
    stream = schedule()
    for block in (0, 5):
        draws = [stream[block * BLOCK_SAMPLES + i] for i in range(BLOCK_SAMPLES)]
        counts = Counter(draw.dataset for draw in draws)
        for dataset, weight in enumerate(WEIGHTS):
            assert abs(counts[dataset] - weight * BLOCK_SAMPLES) <= 1
        # And is spread over the block: 400 of its samples have a standard error of 0.025.
        begin = Counter(draw.dataset for draw in draws[:400])
        assert begin[0] / 400 == pytest.approx(0.5, abs=0.1)


def test_no_row_comes_twice_before_all_came_once():
    stream = schedule()
    places: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for i in range(3 * BLOCK_SAMPLES):
        draw = stream[i]
        places[draw.dataset].append(draw.place)
    for dataset, size in enumerate(SIZES):
        passes = [places[dataset][i : i + size] for i in range(0, len(places[dataset]), size)]
        for one in passes[:-1]:
            assert sorted(one) == list(range(size))
        assert len(set(passes[-1])) == len(passes[-1])
        assert len(passes) == 1 or passes[0] != passes[1]


def test_a_sample_depends_on_seed_and_number_alone():
    numbers = [0, 1, 4095, 4096, 4097, 40_000, 1]
    forwards = [schedule()[i] for i in numbers]
    stream = schedule()
    backwards = [stream[i] for i in reversed(numbers)]
    assert forwards == backwards[::-1]
    assert all(0 <= draw.seed < 2**63 for draw in forwards)
    assert len({draw.seed for draw in forwards}) == len(set(numbers))
    assert forwards != [schedule(1)[i] for i in numbers]


def test_rare_data_sets_are_not_forgotten():
    stream = MixtureSchedule((10, 10, 10), (1e-9, 1.0, 0.0), 0)
    assert stream.places.tolist() == [1, BLOCK_SAMPLES - 1, 0]


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ((5, 5), (-1, 2), "0 or more, finite and not all 0"),
        ((5, 5), (0, 0), "not all 0"),
        ((5,), (float("nan"),), "not all 0"),
        ((5, 0), (1, 1), "data set 1 has a probability of 1 but no usable rows"),
    ],
)
def test_mixtures_without_sense_are_refused(sizes, weights, message):
    with pytest.raises(InputError, match=message):
        MixtureSchedule(sizes, weights, 0)


def training(batch_size: int, batches: int, share: Share, samples: int = 0, epoch_batches: int = 0) -> list[list[Draw]]:
    position = Position(samples, epoch_batches)
    return list(TrainingBatches(schedule(), batch_size, batches, share, lambda: position))


def test_two_ranks_see_together_what_one_sees():
    alone = training(8, 6, Share())
    ranks = [training(4, 6, Share(rank, 2)) for rank in range(2)]
    together = [first + second for first, second in zip(*ranks, strict=True)]
    assert together == alone
    assert len({draw.seed for batch in alone for draw in batch}) == 48


def test_batches_go_on_where_they_were():
    unbroken = training(4, 10, Share(1, 2))
    # After three batches of two ranks of four, in mid-epoch.
    assert training(4, 10, Share(1, 2), samples=24, epoch_batches=3) == unbroken[3:]
    next_epoch = training(4, 10, Share(1, 2), samples=80)
    assert len(next_epoch) == 10
    assert next_epoch[0] == [schedule()[i] for i in range(84, 88)]
    # A checkpoint written after the last batch of an epoch still counts its batches.
    assert training(4, 10, Share(1, 2), samples=80, epoch_batches=10) == next_epoch


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("sizes", [(5, 4), (3,), (0, 17, 8), (1,), (16,)])
def test_evaluation_takes_every_row_once(sizes, batch_size, world):
    ranks = [EvaluationBatches(sizes, 0, batch_size, Share(rank, world)) for rank in range(world)]
    batches = [list(rank) for rank in ranks]
    assert len({len(rank) for rank in batches}) == 1
    assert all(len(rank) == len(sampler) for rank, sampler in zip(batches, ranks, strict=True))
    assert all(1 <= len(batch) <= batch_size for rank in batches for batch in rank)
    rows = Counter((draw.dataset, draw.place) for rank in batches for batch in rank for draw in batch)
    assert set(rows) == {(dataset, place) for dataset, size in enumerate(sizes) for place in range(size)}
    repeats = sum(rows.values()) - sum(sizes)
    # Only where a rank has fewer rows than batches, which batches of one and ranks without any row can bring.
    assert repeats == (-sum(sizes) % world if batch_size == 1 or sum(sizes) < world else 0)


def test_evaluation_draws_the_same_for_a_row_whoever_has_it():
    alone = {draw[:2]: draw for batch in EvaluationBatches(SIZES, 0, 16, Share()) for draw in batch}
    shared = [draw for batch in EvaluationBatches(SIZES, 0, 5, Share(2, 3)) for draw in batch]
    assert all(alone[draw[:2]] == draw for draw in shared)
    assert len({draw.seed for draw in alone.values()}) == sum(SIZES)


def test_nothing_to_evaluate_is_said():
    with pytest.raises(InputError, match="no usable rows"):
        EvaluationBatches((0, 0), 0, 4, Share())


def test_drawing_is_quick_for_large_data_sets():
    stream = MixtureSchedule((1_500_000, 20_000), (0.7, 0.3), 0)
    draws = [stream[10_000_000 + i] for i in range(1000)]
    assert max(draw.place for draw in draws) > 20_000
    assert np.mean([draw.dataset == 0 for draw in draws]) == pytest.approx(0.7, abs=0.08)
