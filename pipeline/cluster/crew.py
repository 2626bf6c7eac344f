"""Where the tasks of a whole run go: to threads of this process, or to workers that are processes of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from pipeline.cluster.tally import Tally
from pipeline.cluster.threads import threads

__all__ = ["Crew", "Threads"]


class Crew(Protocol):
    """Who does a run's tasks.

    Attributes
    ----------
    tally : Tally
        What each worker has done so far, as far as there are any.
    """

    tally: Tally

    def executor(self, n_threads: int) -> AbstractContextManager[tuple[Executor, int]]:
        """What takes tasks for as long as the context lasts, and how many of them may be under way at a time.

        Parameters
        ----------
        n_threads : int
            As many work at a time, where this process does it; workers have threads of their own.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Plain values for reports: ``kind``, and of workers what `Tally.told` says of them."""
        ...


class Threads:
    """Dask's threads in this process: no socket, and nothing of `distributed` is imported."""

    def __init__(self) -> None:
        self.tally = Tally()  # of nobody

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        """As many threads, each with a task."""
        with threads(n_threads) as pool:
            yield pool, n_threads

    def facts(self) -> dict[str, Any]:
        """Their kind."""
        return {"kind": "threads", "workers": []}
