"""Pool of threads in this process, whose tasks can be stopped early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

from shardpress.base import signals

# In each thread of a pool, the attribute `stopping` is the event that stops the pool.
_current_pool = threading.local()


class _ThreadPool(ThreadPoolExecutor):
    """Pool whose tasks can be stopped without stopping the tasks of other pools."""

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
    """Provide an executor with `n` threads in this process. The threads end with the context.

    Dask's own pool is not used, because all callers share it and its threads do not end.
    """
    pool = _ThreadPool(n)
    try:
        yield pool
    except BaseException:
        stop(pool)
        raise
    finally:
        with signals.deferred():  # otherwise an exception could leave threads running
            pool.shutdown()


def stop(executor: Executor) -> None:
    """Stop the tasks of an executor. Tasks in this process stop at their next `check`. Other tasks are cancelled."""
    if hasattr(executor, "stop"):
        executor.stop()


def check() -> None:
    """Raise `Stopped` after a signal, and `InterruptedError` after a failure of another task of this pool.

    Tasks call this between blocks of rows. The `InterruptedError` is not reported, because `compute` raises the first
    error.
    """
    signals.check()  # first, because a signal determines the exit code
    if hasattr(_current_pool, "stopping") and _current_pool.stopping.is_set():
        raise InterruptedError
