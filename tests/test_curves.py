"""The training curve, from tables of numbers that are known."""

import csv

import cv2
import numpy as np
import pytest

from bodies import InputError
from lightning_modules.curves import read_curves, write_curves


def _metrics(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _training(step, zero, first, second):
    values = {"zero": zero, "stack_1": first, "stack_2": second}
    return {"step": step} | {f"train/{name}/epe_px": value for name, value in values.items()}


def _validation(step, zero, last, initial_mm, refined_mm):
    maps = {"val/zero/epe_px": zero, "val/stack_1/epe_px": 9.0, "val/stack_2/epe_px": last}
    return {"step": step} | maps | {"val/initial/pve_mm": initial_mm, "val/displacements/pve_mm": refined_mm}


def test_the_curve_is_the_ratio_of_running_means(tmp_path):
    # Batches with large and small displacements in turn, of which always a half and a quarter are left.
    rows = [_training(10 * k, zero, zero / 2, zero / 4) for k, zero in enumerate([2.0, 8.0] * 40)]
    curves = read_curves(_metrics(tmp_path / "metrics.csv", rows))
    np.testing.assert_allclose(curves.steps, 10 * np.arange(80))
    np.testing.assert_allclose(curves.left["stack 1"], 0.5)
    np.testing.assert_allclose(curves.left["stack 2"], 0.25)


def test_a_mean_has_a_window_of_25_points(tmp_path):
    rows = [_training(k, 1.0, float(k == 50), 0.0) for k in range(100)]
    left = read_curves(_metrics(tmp_path / "metrics.csv", rows)).left["stack 1"]
    np.testing.assert_allclose(left, np.where(abs(np.arange(100) - 50) <= 12, 1 / 25, 0), atol=1e-12)


def test_validations_are_told_from_training_steps(tmp_path):
    rows = [{"step": 4, "lr-Adam": 1e-3}, _training(4, 4.0, 3.0, 2.0), _validation(5, 4.0, 1.0, 90.0, 60.0)]
    curves = read_curves(_metrics(tmp_path / "metrics.csv", rows))
    np.testing.assert_allclose(curves.steps, [4])
    np.testing.assert_allclose(curves.validation_steps, [5])
    np.testing.assert_allclose(curves.validation_left, [0.25])
    assert {name: values.tolist() for name, values in curves.pve_mm.items()} == {"initial": [90], "refined": [60]}


@pytest.mark.parametrize("validated", [False, True])
def test_the_picture_has_a_panel_for_what_there_is(tmp_path, validated):
    rows = [_training(k, 1.0, 0.5, 0.4) for k in range(30)] + [_validation(30, 1.0, 0.4, 90.0, 60.0)] * validated
    write_curves(read_curves(_metrics(tmp_path / "metrics.csv", rows)), tmp_path / "curve.png")
    assert cv2.imread(str(tmp_path / "curve.png")).shape == (440, 1210 if validated else 605, 3)


@pytest.mark.parametrize("content", [None, b"", b"step,lr-Adam\n4,0.1\n", bytes(range(256))])
def test_what_holds_no_curve_is_refused_by_name(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv: "):
        read_curves(path)
