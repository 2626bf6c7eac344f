"""A pool of threads in this process, and the check by which its tasks stop early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from pipeline import signals

__all__ = ["check", "stop", "threads"]

# Thread-local data: in each thread of a pool, `stopping` is the event that stops the pool.
_current_pool = threading.local()


class _ThreadPool(ThreadPoolExecutor):
    """A pool whose tasks can be stopped without stopping those of other pools."""

    def __init__(self, n_threads: int) -> None:
        self.stopping = threading.Event()
        super().__init__(
            n_threads,
            thread_name_prefix="dask",
            initializer=setattr,
            initargs=(_current_pool, "stopping", self.stopping),
        )

    def stop(self) -> None:
        self.stopping.set()


@contextmanager
def threads(n: int) -> Iterator[Executor]:
    """Provide an executor of `n` threads in this process, which end with the context.

    Dask would share one pool among all callers, and its threads would not end.
    """
    pool = _ThreadPool(n)
    try:
        yield pool
    except BaseException:
        stop(pool)
        raise
    finally:
        with signals.deferred():  # an exception raised here would leave threads running
            pool.shutdown()


def stop(executor: Executor) -> None:
    """Stop tasks of this process at their next `check`, and cancel those of other processes."""
    if hasattr(executor, "stop"):
        executor.stop()


def check() -> None:
    """Raise an error if the current task should stop. Tasks call this between blocks of rows.

    Raises
    ------
    Stopped
        If a signal was received.
    InterruptedError
        If another task of this pool has failed. It is not reported: `compute` raises the first error.
    """
    signals.check()  # first, because a signal determines the exit code
    if hasattr(_current_pool, "stopping") and _current_pool.stopping.is_set():
        raise InterruptedError
