"""The demo's test of the network, on a tiny checkpoint and a few frames, and what the network that ships can do."""

import csv
from pathlib import Path

import cv2
import pytest
from rich.console import Console
from tiny_refinement import write_tiny_checkpoint

from bodies import InputError
from commands import _demo_network
from commands._demo_network import CHECKPOINT, NetworkScores, try_network
from lightning_modules.checkpoints import load_refinement


@pytest.fixture
def console(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    return Console(width=400)


def test_the_scores_are_put_into_words():
    pve = {"initial": 100.0, "displacements": 60.0, "keypoints_detected": 110.0}
    words = NetworkScores(6.0, 1.5, pve | {"keypoints_true": 40.0, "displacements_true": 25.0}).sentences()
    assert "leaves 1.50 of 6.00 px of displacement (75% less)" in words
    assert "initial 100 mm, by the network's displacements 60 mm (0.60 of it)" in words
    assert "by noisy OpenPose keypoints 110 mm (1.10 of it)" in words


def test_a_missing_checkpoint_is_named(monkeypatch, tmp_path, console):
    monkeypatch.setattr(_demo_network, "CHECKPOINT", tmp_path / "gone.ckpt")
    with pytest.raises(InputError, match=r"gone\.ckpt"):
        try_network(tmp_path / "network", console)
    assert not list(tmp_path.iterdir())


def test_the_set_is_made_the_table_written_and_every_picture_named(monkeypatch, tmp_path, console, capsys):
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny.ckpt")
    monkeypatch.setattr(_demo_network, "CHECKPOINT", checkpoint)
    monkeypatch.setattr(_demo_network, "TEST_SET", _demo_network.TEST_SET | {"frames": 4, "subjects": 2})
    scores = try_network(tmp_path / "network", console)
    with (tmp_path / "network" / "tables" / "test.csv").open() as file:
        table = {row["row"]: row for row in csv.DictReader(file) if row["group"] == "all"}
    assert scores.zero_epe_px == float(table["zero"]["epe_px"])
    assert scores.pve_mm["displacements_true"] == float(table["displacements_true"]["pve_mm"])
    assert scores.pve_mm["displacements_true"] < scores.pve_mm["initial"]
    pictures = sorted((tmp_path / "network" / "pictures").glob("*.png"))
    assert len(pictures) == 4
    assert all(cv2.imread(str(picture)) is not None for picture in pictures)
    printed = capsys.readouterr().out
    assert all(str(picture) in printed for picture in pictures)
    assert scores.sentences() in printed


def test_the_set_is_kept_and_the_rest_is_replaced(monkeypatch, tmp_path, console):
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny.ckpt")
    monkeypatch.setattr(_demo_network, "CHECKPOINT", checkpoint)
    monkeypatch.setattr(_demo_network, "TEST_SET", _demo_network.TEST_SET | {"frames": 2, "subjects": 1})
    first = try_network(tmp_path / "network", console)
    frames = tmp_path / "network_frames.h5"
    (tmp_path / "network" / "stray.txt").write_text("of a run before")
    before = frames.stat()
    assert try_network(tmp_path / "network", console) == first
    assert frames.stat().st_mtime_ns == before.st_mtime_ns
    assert not (tmp_path / "network" / "stray.txt").exists()


# ---- the checkpoint that ships


def test_the_checkpoint_that_ships_is_small_and_loads():
    assert CHECKPOINT.stat().st_size < 8_000_000
    module = load_refinement(CHECKPOINT)
    assert module.body.name == "standin-tiny"
    assert Path(__file__).resolve().parent.parent / "checkpoints" / "standin_small.ckpt" == CHECKPOINT


def test_the_network_that_ships_improves_on_people_it_has_not_seen(monkeypatch, tmp_path, console):
    # Other people than in RESULTS.md's test set, and fewer: the bounds leave room for that.
    few = {"frames": 48, "subjects": 24, "seed": 7}
    monkeypatch.setattr(_demo_network, "TEST_SET", _demo_network.TEST_SET | few)
    scores = try_network(tmp_path / "network", console)
    assert scores.epe_px < 0.45 * scores.zero_epe_px
    assert scores.pve_mm["displacements"] < 0.75 * scores.pve_mm["initial"]
    assert scores.pve_mm["displacements"] < scores.pve_mm["keypoints_detected"]
    assert scores.pve_mm["displacements_true"] < 0.8 * scores.pve_mm["keypoints_true"]
