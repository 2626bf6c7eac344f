"""Where tasks run: Dask's threads in this process.

A task is a callable without arguments that returns a plain value. It carries what it needs in a ``partial``, so that
Dask does not search long lists of shards for lazy values once for every task. Graphs are written down as Dask takes
them: one made of `dask.delayed` costs eight times as much for each task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import dask.threaded

from pipeline import signals

__all__ = ["compute", "reduce"]

T = TypeVar("T")

_FAN_IN = 16
_LAST = 10**12 - 1


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
    keys = _keys(0, len(tasks))
    graph = {key: (task,) for key, task in zip(keys, tasks, strict=True)}
    return list(_run(graph, keys, n_threads, done, stop))


def reduce(tasks: Sequence[Callable[[], T]], merge: Callable[[Sequence[T]], T], n_threads: int) -> T:
    """Run tasks and merge their results in order, a few at a time, so that few of them are held at once."""
    keys = _keys(0, len(tasks))
    graph: dict[str, tuple[Any, ...]] = {key: (task,) for key, task in zip(keys, tasks, strict=True)}
    while len(keys) > 1:
        few = [keys[i : i + _FAN_IN] for i in range(0, len(keys), _FAN_IN)]
        keys = _keys(len(graph), len(few))
        graph.update({key: (merge, some) for key, some in zip(keys, few, strict=True)})
    (result,) = _run(graph, keys, n_threads)
    merged: T = result
    return merged


def _keys(first: int, n: int) -> list[str]:
    """Names under which tasks begin in this order, so that files are read from front to back.

    Of tasks that are alike Dask begins with the one whose name comes last.
    """
    return [f"task-{_LAST - i}" for i in range(first, first + n)]


def _run(
    graph: dict[str, tuple[Any, ...]],
    keys: list[str],
    n_threads: int,
    done: Callable[[Any], object] | None = None,
    stop: threading.Event | None = None,
) -> tuple[Any, ...]:
    def posttask(key: str, result: Any, *_: object) -> None:
        if done is not None:
            done(result)
        signals.check()

    # A pool of our own, since dask would not wait for what is under way when it raises. And nothing is left to its
    # configuration, which any environment variable DASK_... changes. Signals are deferred, as one that raised while a
    # thread starts would make the pool forget that thread.
    with signals.deferred(), ThreadPoolExecutor(n_threads, "dask") as pool:
        try:
            # Dask's own threads: distributed's in-process cluster would listen on every interface. By their function:
            # to look up a name, Dask imports distributed.
            found = dask.threaded.get(
                graph,
                keys,
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
