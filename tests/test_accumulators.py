"""Accumulators against numpy, in one process and in two with uneven shards."""

import math
import multiprocessing
import socket

import numpy as np
import pytest
import torch

from lightning_modules.accumulators import SampleMean, SampleTable

COLUMNS = ("initial/pve_mm", "refined/pve_mm", "epe_px")


def _rows(samples=11):
    """Ids and numbers of an evaluation: two data sets of several sequences each, row ids in no order."""
    random = torch.Generator().manual_seed(3)
    ids = torch.arange(samples)
    values = torch.rand(samples, len(COLUMNS), generator=random, dtype=torch.float64) * 100
    return ids % 2, ids // 4, torch.randperm(samples, generator=random), values


def _part(rows, start, stop):
    return tuple(tensor[start:stop] for tensor in rows)


def _table_of(*parts):
    metric = SampleTable(COLUMNS)
    for part in parts:
        metric.update(*part)
    return metric.table()


# ---- the mean of one number


def test_the_mean_is_over_samples_not_over_batches():
    metric = SampleMean()
    metric.update(torch.tensor([1.0, 2.0, 3.0]))
    metric.update(torch.tensor([10.0]))
    assert metric.compute() == 4.0


def test_the_mean_of_many_small_batches_keeps_its_digits():
    metric = SampleMean()
    values = np.random.default_rng(0).uniform(50, 150, (1000, 8)).astype(np.float32)
    for batch in values:
        metric.update(torch.from_numpy(batch))
    assert float(metric.compute()) == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)


def test_a_failure_is_counted_and_not_hidden():
    metric = SampleMean()
    metric.update(torch.tensor([1.0, math.nan, math.inf]))
    metric.update(torch.tensor([2.0]))
    assert metric.compute().isnan()
    assert metric.failures == 2
    metric.reset()
    metric.update(torch.tensor([2.0]))
    assert metric.compute() == 2.0


def test_what_is_not_defined_is_left_out():
    metric = SampleMean()
    metric.update(torch.tensor([1.0, math.nan, 3.0]), torch.tensor([True, False, True]))
    assert metric.compute() == 2.0
    assert metric.failures == 0


def test_the_mean_of_nothing_is_nan():
    metric = SampleMean()
    metric.update(torch.zeros(0))
    assert metric.compute().isnan()


def test_no_graph_is_kept():
    metric = SampleMean()
    metric.update(torch.ones(2, requires_grad=True))
    assert not metric.compute().requires_grad


# ---- the table


def test_the_table_holds_every_sample_once_sorted_by_dataset_and_row():
    rows = _rows()
    table = _table_of(_part(rows, 5, 11), _part(rows, 0, 7))  # rows 5 and 6 come twice
    keys = list(zip(table.dataset_ids.tolist(), table.row_ids.tolist(), strict=True))
    expected = sorted(zip(rows[0].tolist(), rows[2].tolist(), strict=True))
    assert keys == expected
    values = {(int(d), int(r)): v.tolist() for d, _, r, v in zip(*rows, strict=True)}
    assert table.values.tolist() == [values[key] for key in keys]


def test_group_statistics_are_numpys():
    datasets, sequences, _, values = rows = _rows()
    table = _table_of(rows)
    by_dataset, by_sequence, overall = table.by_dataset(), table.by_sequence(), table.overall()
    assert by_dataset.keys.tolist() == [[0], [1]]
    # 1e-12: sums of a dozen float64 numbers in another order.
    for g, dataset in enumerate([0, 1]):
        chosen = values[datasets == dataset].numpy()
        np.testing.assert_allclose(by_dataset.mean[g], chosen.mean(axis=0), rtol=1e-12)
        lower_median = np.sort(chosen, axis=0)[(len(chosen) - 1) // 2]
        np.testing.assert_array_equal(by_dataset.median[g], lower_median)
        assert by_dataset.count[g].tolist() == [len(chosen)] * 3
    pairs = sorted(set(zip(datasets.tolist(), sequences.tolist(), strict=True)))
    assert [tuple(key) for key in by_sequence.keys.tolist()] == pairs
    for g, (dataset, sequence) in enumerate(pairs):
        chosen = values[(datasets == dataset) & (sequences == sequence)].numpy()
        np.testing.assert_allclose(by_sequence.mean[g], chosen.mean(axis=0), rtol=1e-12)
    assert overall.keys.shape == (1, 0)
    np.testing.assert_allclose(overall.mean[0], values.numpy().mean(axis=0), rtol=1e-12)


def test_failures_and_undefined_numbers_in_the_table():
    datasets, sequences, row_ids, values = _rows(6)
    values[0, 0] = math.nan
    values[1, 2] = math.nan
    defined = torch.ones_like(values, dtype=torch.bool)
    defined[1, 2] = False
    table = _table_of((datasets, sequences, row_ids, values, defined))
    summary = table.by_dataset()
    assert summary.failures.tolist() == [[1, 0, 0], [0, 0, 0]]
    assert summary.count.tolist() == [[3, 3, 3], [3, 3, 2]]
    assert summary.mean.isnan().tolist() == [[True, False, False], [False, False, False]]
    # The failure counts as the worst of the three.
    assert summary.median[0, 0] == values[datasets == 0, 0].nan_to_num(nan=math.inf).sort().values[1]
    torch.testing.assert_close(summary.mean[1, 2], values[[3, 5], 2].mean())


def test_a_group_of_undefined_numbers_has_no_mean():
    rows = _rows(2)
    table = _table_of((*rows, torch.zeros(2, 3, dtype=torch.bool)))
    summary = table.overall()
    assert summary.mean.isnan().all()
    assert summary.median.isnan().all()
    assert not summary.count.any()


def test_an_empty_table_has_no_groups_and_no_mean():
    metric = SampleTable(COLUMNS)
    metric.update(*_part(_rows(), 0, 0))
    table = metric.table()
    assert table.values.shape == (0, 3)
    assert table.by_sequence().mean.shape == (0, 3)
    assert table.overall().mean.isnan().all()


def test_reset_empties_the_table():
    metric = SampleTable(COLUMNS)
    metric.update(*_rows())
    metric.reset()
    metric.update(*_part(_rows(), 0, 2))
    assert len(metric.table().values) == 2


@pytest.mark.parametrize("change", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.to("cpu")])
def test_the_precision_of_the_module_around_them_does_not_touch_them(change):
    module = torch.nn.Module()
    module.table, module.mean = SampleTable(COLUMNS), SampleMean()
    change(module)
    rows = _rows()
    module.table.update(*rows)
    module.mean.update(rows[3][:, 0])
    change(module)
    assert sorted(module.table.table().values.flatten().tolist()) == sorted(rows[3].flatten().tolist())
    assert float(module.mean.compute()) == pytest.approx(float(rows[3][:, 0].mean()), rel=1e-12)
    assert module.table.dtype == torch.float64


def test_what_cannot_be_stored_is_refused():
    datasets, sequences, rows, values = _rows(2)
    with pytest.raises(AssertionError, match="2 columns for 3 names"):
        SampleTable(COLUMNS).update(datasets, sequences, rows, values[:, :2])
    with pytest.raises(AssertionError, match="do not fit"):
        SampleTable(COLUMNS).update(datasets, sequences, rows + 2**53, values)


# ---- two processes


def _shards(rank):
    """Uneven, and overlapping as a sampler's padding makes them."""
    return [_part(_rows(), 0, 3), _part(_rows(), 3, 7)] if rank == 0 else [_part(_rows(), 6, 11)]


def _evaluate(rank, port, results):
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    even, one_sided, mean = SampleTable(COLUMNS), SampleTable(COLUMNS), SampleMean()
    for part in _shards(rank):
        even.update(*part)
        mean.update(part[3][:, 0])
        if rank == 0:
            one_sided.update(*part)
    local = len(even.rows)
    tables = [even.table(), one_sided.table()]
    assert len(even.rows) == local, "computing must leave the process's own rows in place"
    summaries = [summary for t in tables for summary in (t.overall(), t.by_dataset(), t.by_sequence())]
    results.put((rank, [s.mean.tolist() for s in summaries], float(mean.compute())))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_with_uneven_shards_agree_with_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_evaluate, args=(rank, port, results), daemon=True) for rank in range(2)]
    for process in processes:
        process.start()
    answers = dict((rank, rest) for rank, *rest in (results.get(timeout=300) for _ in processes))
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    everything, first = _table_of(_rows()), _table_of(*_shards(0))
    expected = [s.mean.tolist() for t in (everything, first) for s in (t.overall(), t.by_dataset(), t.by_sequence())]
    shown = torch.cat([part[3][:, 0] for rank in range(2) for part in _shards(rank)])
    for means, mean in answers.values():
        assert means == expected  # to the last bit: rows are sorted before they are added up
        assert mean == pytest.approx(float(shown.mean()), rel=1e-12)
