"""Jobs of compiled code run once each, on any number of threads, and in a forked process."""

import multiprocessing
import sys
import threading

import pytest

from bodies.compiled import compiled, run_jobs, split


def test_split_covers_the_range_in_order_and_nearly_evenly():
    for count in (0, 1, 5, 7, 100):
        for parts in (1, 2, 3, 200):
            runs = split(count, parts)
            assert [i for first, last in runs for i in range(first, last)] == list(range(count))
            lengths = [last - first for first, last in runs]
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_job_runs_once(threads):
    lock, done = threading.Lock(), []

    def work(job: int) -> None:
        with lock:
            done.append(job)

    run_jobs(work, range(20), threads)
    assert sorted(done) == list(range(20))


def test_error_in_a_job_comes_out():
    with pytest.raises(ZeroDivisionError):
        run_jobs(lambda job: 1 // job, [1, 0, 2], 2)


def test_compiled_bare_and_with_options_gives_the_same():
    def square(x):
        return x * x

    assert compiled(square)(3.0) == compiled(fastmath=True)(square)(3.0) == 9.0


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_forked_process_makes_its_own_threads():
    run_jobs(lambda job: None, range(4), 2)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=run_jobs, args=(abs, range(4), 2))
    child.start()
    child.join(30)
    assert child.exitcode == 0
