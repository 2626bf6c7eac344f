"""Where tasks run: Dask's threads in this process.

A task is a callable without arguments that returns a plain value. It carries what it needs in a ``partial``, so that
Dask does not search long lists of shards for lazy values once for every task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import dask

__all__ = ["compute", "reduce"]

T = TypeVar("T")

_FAN_IN = 16


def compute(tasks: Sequence[Callable[[], T]], n_threads: int) -> list[T]:
    """Run tasks in `n_threads` threads; results in the order of the tasks. The first error stops the rest."""
    return list(_run([dask.delayed(task, pure=False)() for task in tasks], n_threads))


def reduce(tasks: Sequence[Callable[[], T]], merge: Callable[[Sequence[T]], T], n_threads: int) -> T:
    """Run tasks and merge their results in order, a few at a time, so that few of them are held at once."""
    lazy = [dask.delayed(task, pure=False)() for task in tasks]
    while len(lazy) > 1:
        lazy = [dask.delayed(merge, pure=False)(lazy[i : i + _FAN_IN]) for i in range(0, len(lazy), _FAN_IN)]
    (result,) = _run(lazy, n_threads)
    merged: T = result
    return merged


def _run(lazy: Sequence[Any], n_threads: int) -> tuple[Any, ...]:
    # The threaded scheduler of dask itself: distributed's in-process cluster would listen on every interface.
    return tuple(dask.compute(*lazy, scheduler="threads", num_workers=n_threads))
