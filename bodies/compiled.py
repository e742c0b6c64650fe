"""Compiled loops for the CPU: how they are compiled, cached and spread over threads.

Threads come from a pool of Python's, not from numba's: compiled code runs without the interpreter lock, a forked
process makes its own pool (numba's OpenMP layer aborts there), and torch's thread count, which is 1 in a DataLoader
worker, is obeyed.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import torch
from numba import njit

Job = TypeVar("Job")


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """Decorator: compiles at the first call; keeps the machine code where numba finds room for it, if anywhere.

    Below it belongs `@no_type_check`, or the annotation checker of the test run wraps what numba must read.

    Args:
        function: The function, when the decorator is used bare.
        **options: numba's, for example `fastmath` or `inline`.
    """

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(nogil=True, error_model="numpy", cache=True, **options)(plain)
        except RuntimeError:  # numba found no directory it may write to
            return njit(nogil=True, error_model="numpy", **options)(plain)

    return decorate if function is None else decorate(function)


@cache
def _pool(process_id: int, threads: int) -> ThreadPoolExecutor:
    """The threads of this process; `process_id` because a pool does not survive a fork."""
    del process_id
    return ThreadPoolExecutor(threads, thread_name_prefix="snugfit")


def run_jobs(work: Callable[[Job], object], jobs: Iterable[Job], threads: int | None = None) -> None:
    """Runs compiled work on each job, on `threads` threads, by default torch's count."""
    jobs = list(jobs)
    threads = threads or torch.get_num_threads()
    if threads == 1 or len(jobs) == 1:
        for job in jobs:
            work(job)
    else:
        list(_pool(os.getpid(), threads).map(work, jobs))


def split(count: int, parts: int) -> list[tuple[int, int]]:
    """The range 0..count in at most `parts` runs (from, to) of nearly equal length."""
    parts = max(1, min(parts, count))
    edges = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))
