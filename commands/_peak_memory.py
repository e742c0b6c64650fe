"""How much memory a stretch of code needs at its peak."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

STATM = Path("/proc/self/statm")
PAGE_BYTES = 4096
POLL_SECONDS = 0.002


@dataclass
class PeakMemory:
    """Filled in when the stretch ends."""

    peak_mb: float = float("nan")
    """Resident memory, or GPU memory, beyond what there was at the start; NaN where it cannot be read."""


@contextmanager
def peak_memory(device: str) -> Iterator[PeakMemory]:
    """Watches the memory of this process, or of its GPU, until the block ends."""
    result = PeakMemory()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield result
        result.peak_mb = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    if not STATM.exists():
        yield result
        return
    _return_freed_memory()
    done, start = threading.Event(), _resident_mb()
    highest = [start]

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            highest.append(max(highest.pop(), _resident_mb()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield result
    finally:
        done.set()
        watcher.join()
        result.peak_mb = highest[0] - start


def _return_freed_memory() -> None:
    """Gives freed memory back to the system, or the stretch would be served from it and seem to need none."""
    gc.collect()
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc
            libc.malloc_trim(0)


def _resident_mb() -> float:
    return int(STATM.read_text().split()[1]) * PAGE_BYTES / 2**20
