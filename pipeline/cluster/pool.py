"""Where the tasks of a whole run go: to threads of this process, or to workers that are processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipeline.cluster.checks import Question
from pipeline.cluster.devices import environment_of, named
from pipeline.cluster.security import address_in, checked, is_written
from pipeline.cluster.stats import Tally
from pipeline.cluster.threads import threads
from pipeline.errors import ConfigError
from pipeline.settings.config import ClusterSettings

__all__ = ["Crew", "Threads", "check_settings", "crew_of"]


class Crew(Protocol):
    """Who does a run's tasks.

    Attributes
    ----------
    tally : Tally
        What each worker has done so far, as far as there are any.
    is_here : bool
        Whether this process does the tasks by itself.
    n_sharing : int
        Processes that share the cores among which a run's threads are counted; 0 where each has cores of its own.
    """

    tally: Tally
    is_here: bool
    n_sharing: int

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

    is_here = True
    n_sharing = 1

    def __init__(self) -> None:
        self.tally = Tally()  # of nobody

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        """As many threads, each with a task; and one more task, which whoever is free first need not wait for."""
        with threads(n_threads) as pool:
            yield pool, n_threads + 1

    def facts(self) -> dict[str, Any]:
        """Their kind."""
        return {"kind": "threads", "workers": []}


def check_settings(settings: ClusterSettings) -> None:
    """Refuse a crew that cannot be, as far as that can be known before anything is looked at.

    Raises
    ------
    ConfigError
    """
    path = Path(settings.scheduler_file or "")
    if address := settings.scheduler or (address_in(path) if is_written(path) else ""):  # which may yet be written
        checked(address, settings.insecure_cluster)
    for device in named(settings.devices, os.environ):
        environment_of(device, 1, os.environ)
    if settings.dashboard and (settings.workers or settings.devices) and find_spec("bokeh") is None:
        raise ConfigError("dashboard: Dask's page is made by bokeh, which is not installed: pip install bokeh")


@contextmanager
def crew_of(
    settings: ClusterSettings,
    n_threads: int,
    start: Callable[[], Any],
    ask: Callable[[], Question],
    requires_device: bool = False,
) -> Iterator[Crew]:
    """The crew that the settings ask for, for as long as the context lasts.

    Parameters
    ----------
    n_threads : int
        Of all workers of this run together.
    start : callable
        Takes the device that a worker's process is set to: `pipeline.device.start_device`.
    ask : callable
        What workers are asked before they do anything.
    requires_device : bool
        Whether each worker must use the device that it is set to.

    Raises
    ------
    ConfigError
        For a cluster that cannot be used, or not safely; for workers that would not do what this process does.
    DeviceError
        When no worker has its device.
    SystemLimit, TryAgain
    """
    if not (settings.workers or settings.devices or settings.scheduler or settings.scheduler_file):
        yield Threads()
        return
    from pipeline.cluster.processes import local
    from pipeline.cluster.remote import given  # and distributed with it, which is not needed else
    from pipeline.cluster.workers import hushed

    with hushed():
        if settings.workers or settings.devices:
            workers = local(settings, n_threads, start, ask, requires_device)
        else:
            workers = given(settings, start, ask, requires_device)
        with workers as crew:
            yield crew
