"""The benchmark's own parts: its cases, its whole-mesh baseline, its memory watch, its tables."""

import numpy as np
import pytest
import torch

from bodies import load_body_model
from commands._conversion_speed import SOURCES, ConversionSpeed, measure_conversion
from commands._fit_cases import WholeMeshPoints, make_fit_cases
from commands._peak_memory import peak_memory
from commands.bench import SOLVERS, FitRow, _conversion_table, _fit_table, _markdown, _time_fit
from fitting.body_points import pose_bones


@pytest.fixture(scope="module")
def body():
    return load_body_model("standin-tiny")


def test_cases_start_about_as_wrong_as_a_regressor_and_show_their_vertices(body):
    cases = make_fit_cases(body, 16, seed=3, max_vertices=200)
    error = torch.linalg.vector_norm(body(cases.initial).vertices - body(cases.truth).vertices, dim=-1)
    assert 0.05 < error.mean() < 0.3
    seen = (cases.targets.weight > 0).sum(dim=1)
    assert (seen > 0.2 * body.num_vertices).all()
    assert (seen < 0.8 * body.num_vertices).all()


def test_whole_mesh_baseline_solves_the_same_problem(body):
    cases = make_fit_cases(body, 2, seed=3, max_vertices=50)
    points = cases.targets.evidence(body).points
    bones = pose_bones(body, cases.initial)
    whole = WholeMeshPoints(body, points).positions(bones, cases.initial.betas)
    assert torch.allclose(whole, points.positions(bones, cases.initial.betas), atol=1e-5)


def test_solvers_reach_what_the_table_says():
    rows = [_time_fit("standin-tiny", solver, 2, 1, "cpu") for solver in SOLVERS]
    whole, chosen, fast = rows
    # The same steps on the same problem, but for the order of sums.
    assert whole.objective == pytest.approx(chosen.objective, rel=1e-2)
    assert fast.objective < chosen.objective < chosen.initial_objective
    text = _markdown([_fit_table(rows)])
    assert text.count("| Levenberg-Marquardt |") == 1
    assert "1.0 x" in text


def test_ratio_is_to_levenberg_marquardt_of_the_same_batch():
    rows = [
        FitRow(solver=name, batch=8, seconds=seconds, objective=1, initial_objective=2, error_px=0, peak_mb=0)
        for name, seconds in zip(SOLVERS, (6.0, 3.0, 1.5), strict=True)
    ]
    assert list(_fit_table(rows).columns[-1].cells) == ["4.0 x", "2.0 x", "1.0 x"]


def test_memory_watch_sees_what_was_held_for_a_while():
    with peak_memory("cpu") as memory:
        held = np.ones(40 * 2**17)  # 40 MB
        total = sum(float(held.sum()) for _ in range(20))
    assert total > 0
    assert np.isnan(memory.peak_mb) or 30 < memory.peak_mb < 200


@pytest.mark.parametrize("source", SOURCES)
def test_conversion_of_a_few_frames_takes_all_of_them_and_its_parts_are_parts_of_it(source, monkeypatch):
    monkeypatch.setattr("commands._conversion_speed._complete_command", lambda *_: 1.5)
    speed = measure_conversion(source, frames=4, repeats=1, body="standin-tiny")
    assert (speed.source, speed.frames, speed.command_s) == (source, 4, 1.5)
    parts = (speed.coding_s, speed.storing_s, speed.models_s)
    assert all(part > 0 for part in parts)
    assert sum(parts) + speed.warping_s < speed.total_s
    assert 0 < speed.coding_share < speed.image_share < speed.share_of_a_long_one < 1
    assert (speed.warping_s > 1e-3) == (source == "h36m")
    # It looks at one file, whatever the conversion takes.
    assert speed.again_s < 2


def test_shares_of_a_conversion_are_of_its_cpu_time():
    table = _conversion_table([ConversionSpeed("surreal", 500, 2.0, 1.0, 0.2, 0.2, 0.25, 0.003, 1.5)])
    row = [next(iter(column.cells)) for column in table.columns]
    assert row[1:] == ["4.00", "50 %", "10 %", "10 %", "12 %", "18 %", "70 %", "80 %", "3 ms", "1.5 s"]
