"""A command that finds its output complete ends at once: it must not wait for torch or a body model."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tiny_store

import bodies
from bodies import InputError
from commands._data_convert import Dataset
from commands._data_import import Regressor
from datamodules.convert.complete import finished, is_imported, refuse_detected
from datamodules.convert.summary import RunOptions
from datamodules.store import FrameStore, FrameWriter

#: What takes most of a second or more to import, and anything of ours that needs it.
HEAVY = {"torch", "roma", "scipy", "trimesh", "cv2", "lightning", "bodies.body_model", "datamodules.store_reader"}
#: A process of its own, as a user starts it. Its time depends on the machine; the modules that it loads do not.
SCRIPT = "import sys, main\ncode = main.main(sys.argv[1:])\nprint('modules', *sys.modules)\nsys.exit(code)"


def write(path: Path, dataset: str = "tiny", **changes: object) -> FrameStore:
    with FrameWriter(path, dataset, "train", "standin-tiny") as writer:
        for number in range(2):
            image = writer.add_image(tiny_store.stored_image(number))
            writer.add_row(tiny_store.frame_row(number, image, **changes))
    return FrameStore(path)


def run(*words: object) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A command, and what of `HEAVY` it imported."""
    line = [sys.executable, "-c", SCRIPT, "data", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)
    *_, modules = done.stdout.splitlines()
    assert modules.startswith("modules sys "), done.stderr
    return done, HEAVY & set(modules.split())


@pytest.mark.parametrize("dataset", get_args(Dataset))
def test_a_second_conversion_loads_nothing_heavy(dataset, tmp_path):
    out = write(tmp_path / "out.h5", dataset).path
    before = out.stat()
    done, heavy = run("convert", dataset, tmp_path / "source", "--out", out, "--split", "train", "--body", tmp_path)
    assert (done.returncode, done.stderr, heavy) == (0, "", set())
    assert "is complete already" in done.stdout
    assert out.stat() == before


@pytest.mark.parametrize("regressor", get_args(Regressor))
def test_a_second_import_loads_nothing_heavy(regressor, tmp_path):
    frames = write(tmp_path / "frames.h5")
    out = tiny_store.write_estimates(tmp_path / "out.h5", frames, [0, 1])
    words = ("import", regressor, tmp_path / "source", "--frames", frames.path, "--out", out, "--name", "pare")
    done, heavy = run(*words)
    assert (done.returncode, done.stderr, heavy) == (0, "", set())
    assert "is complete already" in done.stdout.replace("\n", "")


@pytest.mark.parametrize(("detector", "name"), [("openpose", "detected keypoints"), ("densepose", "surface points")])
def test_detections_that_are_there_are_found_before_anything_heavy_is_loaded(detector, name, tmp_path):
    frames = write(tmp_path / "frames.h5").path
    done, heavy = run("keypoints", detector, tmp_path, "--frames", frames)
    assert (done.returncode, heavy) == (2, set())
    assert f"frames.h5: it has {name} already; give --overwrite" in done.stderr


def test_only_what_is_this_and_whole_is_complete(tmp_path):
    options = RunOptions(quiet=True)
    out = write(tmp_path / "out.h5", "3dpw").path
    done = finished(out, "3dpw", "train", options)
    assert done is not None
    assert (done.state, done.rows) == ("complete", 2)
    with pytest.raises(InputError, match=r"out.h5: it holds 3dpw, train; give --overwrite to write 3dpw, test"):
        finished(out, "3dpw", "test", options)
    out.write_bytes(out.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"out.h5: not a whole HDF5 file"):
        finished(out, "3dpw", "train", options)
    assert finished(out, "3dpw", "train", RunOptions(overwrite=True)) is None
    assert finished(out, "3dpw", "train", RunOptions(dry_run=True)) is None


def test_estimates_are_complete_for_their_frames_and_regressor_alone(tmp_path):
    frames = write(tmp_path / "frames.h5")
    other = tiny_store.write_frames(tmp_path / "other.h5", 4).path
    out = tiny_store.write_estimates(tmp_path / "out.h5", frames, [0])
    assert is_imported(out, frames.path, "pare")
    assert not is_imported(out, frames.path, "prohmr")
    assert not is_imported(out, other, "pare")
    assert not is_imported(tmp_path / "none.h5", frames.path, "pare")
    out.write_bytes(out.read_bytes()[:-100])
    assert not is_imported(out, frames.path, "pare")
    with pytest.raises(InputError, match=r"out.h5: "):
        is_imported(out, out, "pare")


def test_rows_without_detections_may_get_them(tmp_path):
    nothing = {"detected_keypoints_px": np.zeros((25, 3), np.float32), "surface": tiny_store.surface_points(0, 0)}
    bare = write(tmp_path / "bare.h5", **nothing).path
    refuse_detected(bare, "openpose")
    refuse_detected(bare, "densepose")


def test_names_of_bodies_are_imported_on_demand_and_wrong_ones_refused():
    assert {name: getattr(bodies, name).__module__.partition(".")[0] for name in bodies.__all__} == dict.fromkeys(
        bodies.__all__, "bodies"
    )
    with pytest.raises(AttributeError, match="module 'bodies' has no attribute 'Nonsense'"):
        bodies.Nonsense  # noqa: B018
