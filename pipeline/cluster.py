"""Where tasks run: Dask's threads in this process.

A task is a callable without arguments that returns a plain value. It carries what it needs in a ``partial``, so that
Dask does not search long lists of shards for lazy values once for every task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import dask
import dask.threaded

from pipeline import signals

__all__ = ["compute", "reduce"]

T = TypeVar("T")

_FAN_IN = 16


def compute(
    tasks: Sequence[Callable[[], T]],
    n_threads: int,
    done: Callable[[T], object] | None = None,
    stop: threading.Event | None = None,
) -> list[T]:
    """Run tasks in `n_threads` threads; results in the order of the tasks. The first error stops the rest.

    When it returns, and when it raises, no task is at work any more.

    Parameters
    ----------
    tasks : sequence of callable
    n_threads : int
    done : callable, optional
        Given each result as soon as it is there, in the thread that called `compute`. What it raises stops the rest.
    stop : Event, optional
        Set when something went wrong, before the tasks under way are waited for.
    """
    lazy = [dask.delayed(task, pure=False)() for task in tasks]
    ours = {item.key for item in lazy}

    def tell(key: str, result: T) -> None:
        if done is not None and key in ours:
            done(result)

    return list(_run(lazy, n_threads, tell, stop))


def reduce(tasks: Sequence[Callable[[], T]], merge: Callable[[Sequence[T]], T], n_threads: int) -> T:
    """Run tasks and merge their results in order, a few at a time, so that few of them are held at once."""
    lazy = [dask.delayed(task, pure=False)() for task in tasks]
    while len(lazy) > 1:
        lazy = [dask.delayed(merge, pure=False)(lazy[i : i + _FAN_IN]) for i in range(0, len(lazy), _FAN_IN)]
    (result,) = _run(lazy, n_threads)
    merged: T = result
    return merged


def _run(
    lazy: Sequence[Any],
    n_threads: int,
    tell: Callable[[str, Any], object] = lambda key, result: None,
    stop: threading.Event | None = None,
) -> tuple[Any, ...]:
    def posttask(key: str, result: Any, *_: object) -> None:
        tell(key, result)
        signals.check()

    # A pool of our own, since dask would not wait for what is under way when it raises. And nothing is left to its
    # configuration, which any environment variable DASK_... changes. Signals are deferred, as one that raised while a
    # thread starts would make the pool forget that thread.
    with signals.deferred(), ThreadPoolExecutor(n_threads, "dask") as pool:
        try:
            found = dask.compute(
                *lazy,
                # Dask's own threads: distributed's in-process cluster would listen on every interface. By its function:
                # to look up a name, Dask imports distributed.
                scheduler=dask.threaded.get,
                pool=pool,
                chunksize=1,
                rerun_exceptions_locally=False,
                callbacks=[(None, None, None, posttask, None)],
            )
        except BaseException:
            if stop is not None:
                stop.set()
            raise
        return tuple(found)
