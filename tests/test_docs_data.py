"""docs/data.md, run: every command of its fenced blocks, in order, on small sets in the real formats.

This is the end-to-end test as well: three converted training sets with the estimates of PARE and ProHMR, `snugfit fit`
on their mixture by the paper's own configuration, and `snugfit test` with a result table at its end.
"""

import csv
import re
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_downloads
import yaml

from datamodules.store import EstimateStore, FrameStore
from main import main

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "data.md"
#: What makes a run small; everything else is as the configurations say.
SMALL = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "log_every_n_steps": 1,
        "val_check_interval": 2,
        "logger": [
            {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "${.....run_name}"},
            }
        ],
    },
    "model": {
        "body": {"rasterizer": "cpu"},
        "fitting": {"solver": {"class_path": "fitting.LevenbergMarquardt", "init_args": {"max_steps": 3}}},
    },
    "data": {"loading": {"batch_size": 3, "evaluation_batch_size": 4, "batches_per_epoch": 4, "workers": 0}},
}
NETWORK = {"width": 16, "stem_width": 8, "stacks": 2, "depth": 2, "feature_stride": 2, "encoder_blocks": 1}
SMALL_TRAINING = {"crop_px": 32, "network": {"init_args": {**NETWORK, "norm": "group"}}}


#: Some fifteen seconds of work: training and two tests.
pytestmark = pytest.mark.slow


def commands() -> list[list[str]]:
    """The words of each command in a fenced block."""
    blocks = re.findall(r"^```\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def small(words: list[str]) -> list[str]:
    """The same command with what makes it small."""
    extra: list[str] = []
    if words[0] in ("fit", "test"):
        extra = ["--config", f"{words[0]}.yaml"]
    elif words[1] in ("convert", "keypoints"):
        extra = ["--workers", "1"]
    return [*words, *extra]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder in which all commands of the page were run."""
    folder = tmp_path_factory.mktemp("page")
    tiny_downloads.write_downloads(folder)
    (folder / "configs").symlink_to(ROOT / "configs")
    training = {**SMALL, "model": {**SMALL["model"], **SMALL_TRAINING}}
    for name, content in (("fit", training), ("test", SMALL)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TERM", "dumb")
        for program, *words in commands():
            assert program == "snugfit", "only snugfit's commands are fenced; others are indented"
            if words[:2] in (["data", "import"], ["data", "keypoints"]):
                frames = FrameStore(words[words.index("--frames") + 1])
                tiny_downloads.write_results(words[2], Path(words[3]), frames)
            began = time.perf_counter()
            assert main(small(words)) == 0, " ".join(words)
            with (folder / "times.txt").open("a") as times:
                times.write(f"{time.perf_counter() - began:.1f} s {' '.join(words)}\n")
    return folder


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["row"]: row for row in csv.DictReader(file) if row["group"] == "all"}


def test_the_page_names_files_that_are_there():
    for name in re.findall(r"\]\((\w+\.md)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / name).is_file()
    configs = [Path(word) for words in commands() for word in words if word.startswith("configs/")]
    assert configs
    assert all((ROOT / config).is_file() for config in configs)


def test_each_data_set_was_converted(run):
    rows = {"3dpw/train": 4, "3dpw/validation": 2, "3dpw/test": 4, "h36m/train": 4, "h36m/test": 2}
    rows |= {"surreal/train": 6, "rich/test": 2}
    assert {name: len(FrameStore(run / "data" / f"{name}.h5")) for name in rows} == rows
    assert (run / "data" / "3dpw" / "train.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["3dpw/train", "h36m/train", "surreal/train"])
def test_all_rows_have_estimates_of_both_regressors(run, name):
    frames = FrameStore(run / "data" / f"{name}.h5")
    for regressor, samples in (("pare", 1), ("prohmr", 4)):
        store = EstimateStore(run / "data" / f"{name}_{regressor}.h5", frames)
        assert (store.regressor, store.samples) == (regressor, samples)
        assert store.valid.all()


def test_estimates_of_rows_without_bodies_are_compared_at_measured_joints(run):
    frames = FrameStore(run / "data" / "h36m" / "test.h5")
    assert not frames.column("pose").any()
    assert EstimateStore(run / "data" / "h36m" / "test_pare.h5", frames).valid.all()


def test_keypoints_and_textures_were_added(run):
    for name in ("rich/test", "3dpw/test"):
        found = FrameStore(run / "data" / f"{name}.h5").column("detected_keypoints_px")
        assert ((found[..., 2] > 0).sum(axis=1) == 15).all()
    for name in ("3dpw/train", "h36m/train"):
        frames = FrameStore(run / "data" / f"{name}.h5")
        assert all(frames.read_texture(subject) is not None for subject in range(len(frames.subjects)))


def test_the_network_was_trained_on_the_mixture(run):
    folder = run / "runs" / "paper" / "version_0"
    with (folder / "metrics.csv").open() as file:
        losses = {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]}
    assert losses.keys() == set(range(4))
    assert np.isfinite(list(losses.values())).all()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert set(config["data"]["train"]) == {"3dpw", "h36m", "surreal"}
    assert {draw["kind"] for draw in config["data"]["training_draws"]} == {"noise", "estimate", "true_pose"}
    assert set(table(folder / "tables" / "val.csv")) >= {"initial", "displacements"}


@pytest.mark.parametrize(("name", "samples"), [("threedpw_pare_gmm", 4), ("rich_pare_gmm", 2)])
def test_the_run_ends_with_a_table(run, name, samples):
    rows = table(run / "runs" / name / "version_0" / "tables" / "test.csv")
    ways = ["initial", "keypoints_detected", "keypoints_true", "displacements", "displacements_true"]
    assert [row for row in rows if "stack" not in row and row != "zero"] == ways
    assert int(rows["initial"]["samples"]) == samples
    # PARE's stand-in turns each joint by 0.12 rad, about each axis: some 50 to 100 mm.
    assert 20 < float(rows["initial"]["mpjpe_mm"]) < 200
    assert float(rows["keypoints_detected"]["pixel_error_px"]) < float(rows["initial"]["pixel_error_px"])
    assert float(rows["displacements_true"]["pixel_error_px"]) < float(rows["initial"]["pixel_error_px"])
