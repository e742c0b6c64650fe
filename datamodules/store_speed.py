"""How fast crops come out of a frames file, and how much of that is JPEG decoding."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bodies.errors import InputError
from datamodules.crops import Reduction, decode_jpeg, reduction_for, square_crop_affine
from datamodules.opencv_threads import one_opencv_thread
from datamodules.store_reader import FrameStore

#: The timed part is taken this many times, and the fastest is reported: other processes only ever slow it down.
REPEATS: Final = 3


@dataclass(frozen=True)
class StoreSpeed:
    """Times of one measurement. The parts are measured in one process with one OpenCV thread."""

    samples_per_s: float
    """Crops per second out of a DataLoader, batches included, workers started before the clock."""
    workers: int
    """Processes of the DataLoader."""
    crop_px: int
    """Side of the crops."""
    sample_ms: float
    """One row with its numbers and its crop as a tensor, in one process."""
    decode_ms: float
    """Decoding of the same JPEG bytes alone, at the same reduction."""
    read_ms: float
    """Reading of the same JPEG bytes alone, checksum included."""
    jpeg_bytes: float
    """Mean size of an encoded image."""

    @property
    def decode_fraction(self) -> float:
        """Part of a sample's time that is JPEG decoding."""
        return self.decode_ms / self.sample_ms


class CropDataset(Dataset[UInt8[Tensor, "3 crop crop"]]):
    """The box crop of each row: the least that a data loader does.

    Args:
        store: The frames file.
        crop_px: Side of the crops.
    """

    def __init__(self, store: FrameStore, crop_px: int) -> None:
        self._store = store
        self._crop_px = crop_px

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 crop crop"]:
        frame = self._store.read(index)
        crop = self._store.read_crop(index, frame.box_px[:2], float(frame.box_px[2]), self._crop_px)
        return torch.from_numpy(np.ascontiguousarray(crop.image.transpose(2, 0, 1)))


def measure_store_speed(
    store: FrameStore, crop_px: int = 256, workers: int = 2, samples: int = 1000, batch_size: int = 8
) -> StoreSpeed:
    """Reads crops in random order, first alone and part by part, then through a DataLoader.

    Args:
        store: The frames file.
        crop_px: Side of the crops.
        workers: Processes of the DataLoader.
        samples: How many crops to read; rows repeat if the file has fewer.
        batch_size: Crops to a batch.

    Raises:
        InputError: If an image is damaged, or fewer samples are asked for than the workers take in advance.
    """
    least = batch_size * (_head_batches(workers) + 2)
    if samples < least:
        raise InputError(f"at least {least} samples are needed, got {samples}")
    order = np.random.default_rng(0).integers(len(store), size=samples).tolist()
    dataset = CropDataset(store, crop_px)
    threads = cv2.getNumThreads()
    one_opencv_thread()
    try:
        # A pass before the clock brings the file into the page cache: this measures us, not the disk.
        encoded = {index: store.read_jpeg(index) for index in set(order)}
        reductions = {index: _reduction(store, index, crop_px) for index in encoded}
        parts = (dataset.__getitem__, store.read_jpeg, lambda index: decode_jpeg(encoded[index], reductions[index]))
        sample_s, read_s, decode_s = _fastest(parts, order)
        samples_per_s = _loader_speed(dataset, order, workers, batch_size)
    finally:
        cv2.setNumThreads(threads)
    return StoreSpeed(
        samples_per_s=samples_per_s,
        workers=workers,
        crop_px=crop_px,
        sample_ms=1e3 * sample_s / samples,
        decode_ms=1e3 * decode_s / samples,
        read_ms=1e3 * read_s / samples,
        jpeg_bytes=float(np.mean([len(data) for data in encoded.values()])),
    )


def _reduction(store: FrameStore, index: int, crop_px: int) -> Reduction:
    box = store.read(index).box_px
    return reduction_for(square_crop_affine(box[:2], float(box[2]), 0.0, crop_px))


def _fastest(parts: Sequence[Callable[[int], object]], order: Sequence[int]) -> list[float]:
    """Seconds of each part over all samples. The parts take turns, so that a slow moment meets all of them."""
    times = []
    for _ in range(REPEATS):
        for part in parts:
            start = time.perf_counter()
            for index in order:
                part(index)
            times.append(time.perf_counter() - start)
    return [min(times[number :: len(parts)]) for number in range(len(parts))]


def _loader_speed(dataset: CropDataset, order: Sequence[int], workers: int, batch_size: int) -> float:
    loader = DataLoader(
        dataset, batch_size, sampler=order, num_workers=workers, worker_init_fn=one_opencv_thread, drop_last=True
    )
    batches = iter(loader)
    # Workers begin with a few batches each; the clock starts when those are used up and we wait for them.
    for _ in range(_head_batches(workers)):
        next(batches)
    start, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch)
    return count / (time.perf_counter() - start)


def _head_batches(workers: int) -> int:
    """Two for each worker, DataLoader's default, and one that is waited for."""
    return 2 * workers + 1
