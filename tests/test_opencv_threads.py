"""Workers that are forked after OpenCV has used its threads. Without care they wait for ever, so others watch them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: OpenCV starts its pool at the first large image.
POOL = """
import cv2, numpy as np
cv2.setNumThreads(4)
cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (31, 31), 0)
"""
SYNTHESIZE = """
from pathlib import Path
from datamodules.synthetic import synthesize
from datamodules.synthetic_frames import SyntheticSettings
settings = SyntheticSettings(frames=4, subjects=2, split="test", body="standin-tiny", image_size=(96, 96))
assert len(synthesize(Path("frames.h5"), settings, workers=2, quiet=True)) == 4
assert cv2.getNumThreads() == 4
"""
LOAD = """
from pathlib import Path
from datamodules.mixture import MixtureDataModule
from datamodules.sources import DatasetSource, Loading
from datamodules.synthetic import synthesize
from datamodules.synthetic_frames import SyntheticSettings
settings = SyntheticSettings(frames=4, subjects=2, split="test", body="standin-tiny", image_size=(96, 96))
source = {"made": DatasetSource(Path("frames.h5"), synthetic=settings)}
loading = Loading(batch_size=2, evaluation_batch_size=2, workers=2)
data = MixtureDataModule(test=source, crop_px=32, body_model="standin-tiny", loading=loading)
data.prepare_data()
data.setup("test")
loader = data.test_dataloader()
assert sum(len(batch.row) for batch in loader) == 4
"""


@pytest.mark.parametrize("use", [SYNTHESIZE, LOAD], ids=["synthesize", "load"])
def test_workers_are_forked_after_opencv_has_used_threads(use, tmp_path):
    command = [sys.executable, "-c", POOL + use]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
