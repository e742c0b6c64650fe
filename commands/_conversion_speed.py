"""How much of a conversion is work on images, in CPU time: other programs on the machine change that little.

The parts are timed where they happen, so that a share is one of one run: the speed of a processor that others use too
changes from run to run by more than what is to be seen.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, assert_never, get_args
from unittest.mock import patch

import cv2

from bodies import load_body_model
from commands._conversion_cases import write_h36m, write_surreal, write_threedpw
from datamodules import spool, store_writer
from datamodules.convert import h36m, h36m_images, surreal, threedpw
from datamodules.convert.summary import RunOptions, Summary
from datamodules.opencv_threads import one_opencv_thread

Source = Literal["3dpw", "surreal", "h36m"]
SOURCES: Final[tuple[Source, ...]] = get_args(Source)
#: What the images of each source are, and what is done with them.
IMAGES: Final[dict[Source, str]] = {
    "3dpw": "1920 x 1080 JPEGs, stored as they are",
    "surreal": "320 x 240 video, mirrored",
    "h36m": "1000 x 1002 video, every 5th frame, undistorted",
}
Part = Literal["total", "coding", "warping", "storing", "models"]
_IMAGE_PARTS: Final[tuple[Part, ...]] = ("coding", "warping", "storing")
#: What is done to the bytes of images, whatever they are: checksum, into the spool, into the file.
_STORING: Final[tuple[tuple[Part, Any, str], ...]] = (
    ("storing", store_writer, "checksum"),
    ("storing", spool.Spool, "extend"),
    ("storing", spool, "_copy_bytes"),
)
#: Where each source decodes and encodes its images or reads their files, undoes distortion, and reads body models.
_TIMED: Final[dict[Source, tuple[tuple[Part, Any, str], ...]]] = {
    "3dpw": (("coding", Path, "read_bytes"), ("models", threedpw, "load_gendered")),
    "surreal": (("coding", surreal, "mirrored_jpegs"), ("models", surreal, "load_gendered")),
    "h36m": (
        ("coding", h36m_images, "video_jpegs"),
        ("warping", h36m_images.Lens, "undistorted"),
        ("models", h36m, "load_body_model"),
    ),
}


@dataclass(frozen=True)
class ConversionSpeed:
    """CPU seconds of all threads; the parts are those of one run, the one whose share of images is in the middle."""

    source: Source
    """Which data set's format."""
    frames: int
    """Rows of the file, one to an image."""
    total_s: float
    """The conversion, by one thread."""
    coding_s: float
    """Decoding and encoding the images, or reading their files."""
    warping_s: float
    """Taking distortion out of them."""
    storing_s: float
    """Checksums of their bytes, and putting these into the spool and the file; without waiting for the disk."""
    models_s: float
    """Reading the body models: once, however long the conversion."""
    again_s: float
    """The conversion again, when its output is complete."""
    command_s: float
    """The same as a command of its own, from the start of Python to its end."""

    @property
    def coding_share(self) -> float:
        """Part of the conversion that is decoding, undistorting and encoding, or reading image files."""
        return (self.coding_s + self.warping_s) / self.total_s

    @property
    def image_share(self) -> float:
        """Part of the conversion that is work on images."""
        return (self.coding_s + self.warping_s + self.storing_s) / self.total_s

    @property
    def share_of_a_long_one(self) -> float:
        """The same for a conversion that is so long that reading the body models does not count."""
        return self.image_share * self.total_s / (self.total_s - self.models_s)


def measure_conversion(source: Source, frames: int, repeats: int, body: str = "standin") -> ConversionSpeed:
    """Writes a small data set into a temporary folder, converts it, and times the parts of that.

    Args:
        source: In which format.
        frames: How many images.
        repeats: How often it is converted; the run in the middle counts.
        body: Body model.
    """
    threads = cv2.getNumThreads()
    one_opencv_thread()
    try:
        with TemporaryDirectory() as name:
            root, out = Path(name) / "source", Path(name) / "out.h5"
            _write(source, root, body, frames)
            run = _median_run(partial(_convert, source, root, out, body), source, repeats)
            again = partial(_convert, source, root, out, body, overwrite=False)
            again_s = _fastest(again, repeats)
            command_s, rows = _complete_command(source, root, out, body), again().rows
    finally:
        cv2.setNumThreads(threads)
    return ConversionSpeed(
        source,
        rows,
        total_s=run["total"],
        coding_s=run["coding"],
        warping_s=run["warping"],
        storing_s=run["storing"],
        models_s=run["models"],
        again_s=again_s,
        command_s=command_s,
    )


def _write(source: Source, root: Path, body: str, frames: int) -> None:
    model = load_body_model(body)
    match source:
        case "3dpw":
            write_threedpw(root, model, frames)
        case "surreal":
            write_surreal(root, model, frames)
        case "h36m":
            write_h36m(root, model, frames)
        case _:
            assert_never(source)


def _convert(source: Source, root: Path, out: Path, body: str, overwrite: bool = True) -> Summary:
    options = RunOptions(workers=1, overwrite=overwrite, quiet=True)
    match source:
        case "3dpw":
            return threedpw.convert_threedpw(root, out, "train", Path(body), options=options)
        case "surreal":
            return surreal.convert_surreal(root, out, "train", Path(body), options=options)
        case "h36m":
            return h36m.convert_h36m(root, out, "train", Path(body), options=options)
        case _:
            assert_never(source)


class _Clocks:
    """CPU seconds of calls during a conversion, by part; those of a part within another count for the inner one."""

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = dict.fromkeys(get_args(Part), 0.0)
        self._inner: list[float] = []

    def timed(self, part: Part, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with a clock."""

        @wraps(function)
        def run(*args: Any, **named: Any) -> Any:
            self._inner.append(0.0)
            began = time.process_time()
            try:
                return function(*args, **named)
            finally:
                took = time.process_time() - began
                self.seconds[part] += took - self._inner.pop()
                if self._inner:
                    self._inner[-1] += took

        return run


def _one_run(convert: Callable[[], object], source: Source) -> dict[Part, float]:
    """CPU seconds of a conversion and of the parts of it."""
    clocks = _Clocks()
    with ExitStack() as patches:
        for part, owner, name in (*_STORING, *_TIMED[source]):
            patches.enter_context(patch.object(owner, name, clocks.timed(part, getattr(owner, name))))
        clocks.timed("total", convert)()
    clocks.seconds["total"] = sum(clocks.seconds.values())
    return clocks.seconds


def _median_run(convert: Callable[[], object], source: Source, repeats: int) -> dict[Part, float]:
    """The run whose share of work on images is in the middle, after one that warms caches up."""
    runs = [_one_run(convert, source) for _ in range(1 + repeats)][1:]
    return sorted(runs, key=lambda run: sum(run[part] for part in _IMAGE_PARTS) / run["total"])[len(runs) // 2]


def _fastest(part: Callable[[], object], repeats: int) -> float:
    """CPU seconds. A round before the clock warms caches up."""
    times = []
    for _ in range(1 + repeats):
        began = time.process_time()
        part()
        times.append(time.process_time() - began)
    return min(times[1:])


def _complete_command(source: Source, root: Path, out: Path, body: str) -> float:
    """CPU seconds of the command, which finds its output complete."""
    options = ["--out", str(out), "--split", "train", "--body", body]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "main", "data", "convert", source, str(root), *options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
