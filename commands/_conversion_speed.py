"""How much of a conversion is work on images, in CPU time: other programs on the machine change that little."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal, assert_never, get_args

import cv2
import h5py
import numpy as np

from bodies import load_body_model
from commands._conversion_cases import (
    CLIP_FRAMES,
    H36M_EVERY,
    H36M_SUBJECTS,
    write_h36m,
    write_surreal,
    write_threedpw,
)
from datamodules.convert.h36m import convert_h36m
from datamodules.convert.h36m_cameras import find_cameras
from datamodules.convert.h36m_images import Lens, video_jpegs
from datamodules.convert.run import RunOptions, Summary
from datamodules.convert.surreal import convert_surreal, mirrored_jpegs
from datamodules.convert.threedpw import convert_threedpw
from datamodules.crops import decode_jpeg
from datamodules.opencv_threads import one_opencv_thread
from datamodules.spool import Spool
from datamodules.store_file import checksum
from datamodules.store_layout import JPEG_BYTES
from datamodules.store_writing import copy_from_spool

Source = Literal["3dpw", "surreal", "h36m"]
SOURCES: Final[tuple[Source, ...]] = get_args(Source)
#: What the images of each source are, and what is done with them.
IMAGES: Final[dict[Source, str]] = {
    "3dpw": "1920 x 1080 JPEGs, stored as they are",
    "surreal": "320 x 240 video, mirrored",
    "h36m": "1000 x 1002 video, every 5th frame, undistorted",
}


@dataclass(frozen=True)
class ConversionSpeed:
    """CPU seconds of all threads; the parts are timed by themselves, in the same process."""

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
    """Checksums of their bytes, and writing these to the spool and to the file."""
    models_s: float
    """Reading the body models: once, however long the conversion."""
    again_s: float
    """The conversion again, when its output is complete."""
    command_s: float
    """The same as a command of its own: nearly all of it is importing libraries."""

    @property
    def image_share(self) -> float:
        """Part of the conversion that is work on images."""
        return (self.coding_s + self.warping_s + self.storing_s) / self.total_s

    @property
    def share_of_a_long_one(self) -> float:
        """The same for a conversion that is so long that reading the body models does not count."""
        return self.image_share * self.total_s / (self.total_s - self.models_s)


def measure_conversion(source: Source, frames: int, repeats: int, body: str = "standin") -> ConversionSpeed:
    """Writes a small data set into a temporary folder, converts it, and does the work on images alone.

    Args:
        source: In which format.
        frames: How many images.
        repeats: How often each part is timed; the parts take turns, and the fastest counts.
        body: Body model.
    """
    threads = cv2.getNumThreads()
    one_opencv_thread()
    try:
        with TemporaryDirectory() as name:
            root, out = Path(name) / "source", Path(name) / "out.h5"
            _write(source, root, body, frames)
            convert = partial(_convert, source, root, out, body)
            images = _coding(source, root)
            jpegs = images()
            parts = (
                convert,
                images,
                _warping(source, root, jpegs),
                partial(_store, jpegs, out),
                partial(_models, source, body),
            )
            total_s, coding_s, warping_s, storing_s, models_s = _fastest(parts, repeats)
            again = partial(_convert, source, root, out, body, overwrite=False)
            (again_s,) = _fastest((again,), repeats)
            command_s, rows = _complete_command(source, root, out, body), again().rows
    finally:
        cv2.setNumThreads(threads)
    # Coding undoes distortion too.
    parts_s = (total_s, coding_s - warping_s, warping_s, storing_s, models_s, again_s, command_s)
    return ConversionSpeed(source, rows, *parts_s)


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
            return convert_threedpw(root, out, "train", Path(body), options=options)
        case "surreal":
            return convert_surreal(root, out, "train", Path(body), options=options)
        case "h36m":
            return convert_h36m(root, out, "train", Path(body), options=options)
        case _:
            assert_never(source)


def _coding(source: Source, root: Path) -> Callable[[], list[bytes]]:
    """What makes the JPEGs that are stored, and nothing else."""
    match source:
        case "3dpw":
            return lambda: [path.read_bytes() for path in sorted(root.glob("imageFiles/*/*.jpg"))]
        case "surreal":
            videos = sorted(root.rglob("*.mp4"))
            wanted = set(range(CLIP_FRAMES))
            return lambda: [jpeg for video in videos for jpeg in mirrored_jpegs(video, wanted)[0].values()]
        case "h36m":
            recordings = [(video, _lens(root, video)) for video in sorted(root.glob("S*/Videos/*.mp4"))]
            count = _num_frames(recordings[0][0])
            wanted = set(range(0, count, H36M_EVERY))
            return lambda: [jpeg for video, lens in recordings for jpeg in video_jpegs(video, wanted, lens)[0].values()]
        case _:
            assert_never(source)


def _lens(root: Path, video: Path) -> Lens:
    cameras, _ = find_cameras((root,), H36M_SUBJECTS)
    return Lens(cameras[int(video.parents[1].name[1:]), video.stem.rpartition(".")[2]])


def _num_frames(video: Path) -> int:
    capture = cv2.VideoCapture(str(video))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count


def _warping(source: Source, root: Path, jpegs: Sequence[bytes]) -> Callable[[], None]:
    """Undistorts as many images as there are; does nothing where none is distorted."""
    if source != "h36m":
        return lambda: None
    pixels, lens = decode_jpeg(jpegs[0]), _lens(root, min(root.glob("S*/Videos/*.mp4")))
    assert pixels is not None

    def undistort() -> None:
        for _ in jpegs:
            lens.undistorted(np.asarray(pixels))

    return undistort


def _store(jpegs: Sequence[bytes], out: Path) -> None:
    """The way of the bytes through the writer."""
    target = out.with_name("bytes.h5")
    spool = Spool(target, {}, (JPEG_BYTES,), resume=False)
    for jpeg in jpegs:
        checksum(jpeg)
        spool.append(JPEG_BYTES, jpeg)
    spool.flush()
    temporary = spool.path_for_result
    with h5py.File(temporary, "w") as file:
        copy_from_spool(spool, file, JPEG_BYTES, "|u1", ())
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(target)
    spool.remove()


def _models(source: Source, body: str) -> None:
    for _ in range(1 if source == "h36m" else 2):  # the neutral one, or both genders
        load_body_model(body)


def _fastest(parts: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """CPU seconds of each part. A round before the clock warms caches up."""
    times = []
    for _ in range(1 + repeats):
        for part in parts:
            began = time.process_time()
            part()
            times.append(time.process_time() - began)
    return [min(times[len(parts) + number :: len(parts)]) for number in range(len(parts))]


def _complete_command(source: Source, root: Path, out: Path, body: str) -> float:
    """CPU seconds of the command, which finds its output complete."""
    options = ["--out", str(out), "--split", "train", "--body", body]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [sys.executable, "-m", "main", "data", "convert", source, str(root), *options]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
