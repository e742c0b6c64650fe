"""One thread for OpenCV, where processes share the cores by being several."""

import cv2


def one_opencv_thread(worker: int = 0) -> None:
    """Ends OpenCV's threads: to be called before workers are forked, and in them, as `worker_init_fn`.

    OpenCV's pool does not survive a fork: a child that uses it or changes its size waits for ever. So whoever forks
    ends the pool first; the children inherit the one thread and leave it. Those that are spawned begin with a pool of
    their own.

    Args:
        worker: Number of the worker, which does not matter.
    """
    del worker
    if cv2.getNumThreads() != 1:
        cv2.setNumThreads(1)
