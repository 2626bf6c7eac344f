"""Where tasks run in this process: a pool of threads, and how what is under way there learns that it shall stop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from pipeline import signals

__all__ = ["check", "stop", "threads"]

_pool = threading.local()  # in each thread of a pool: whether that pool is stopping


class _Threads(ThreadPoolExecutor):
    def __init__(self, n: int) -> None:
        self.stopping = threading.Event()  # of this pool alone: another one's tasks go on
        super().__init__(n, "dask", initializer=setattr, initargs=(_pool, "stopping", self.stopping))

    def stop(self) -> None:
        self.stopping.set()


@contextmanager
def threads(n: int) -> Iterator[Executor]:
    """An executor of `n` threads in this process, for as long as the context lasts.

    A pool of our own, and not the one that Dask would share: threads end with the work that they were made for.
    """
    pool = _Threads(n)
    try:
        yield pool
    except BaseException:
        stop(pool)
        raise
    finally:
        with signals.deferred():  # one that raised in here would leave threads behind
            pool.shutdown()


def stop(executor: Executor) -> None:
    """Have what is under way in this process stop at its next `check`, and take back what is under way elsewhere."""
    if hasattr(executor, "stop"):
        executor.stop()


def check() -> None:
    """Whether to go on: tasks call it between blocks.

    Raises
    ------
    Stopped
        When a signal has come.
    InterruptedError
        When another task of this pool has failed. Nobody sees it, the first error is the one that `compute` raises.
    """
    signals.check()  # first: what a user asked for is what a run ends by
    if hasattr(_pool, "stopping") and _pool.stopping.is_set():
        raise InterruptedError
