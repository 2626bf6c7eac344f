"""What bounds a run, moment by moment: the device, the processor or the disk."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["BOUNDS", "Watch", "bound", "states", "watching"]

BOUNDS = ("device", "processor", "disk", "other")
_EVERY = 0.1  # seconds: a look takes a quarter of a millisecond
_FEWEST = 10  # looks that tell anything
_TASKS = Path("/proc/self/task")


class Watch:
    """Looks again and again at what the threads of this process are at, until it is stopped.

    Parameters
    ----------
    look : callable
        What bounds the process at this moment, one of `BOUNDS`; None where that cannot be told.
    """

    def __init__(self, look: Callable[[], str | None]) -> None:
        self._look = look
        self._stopped = threading.Event()
        self._found: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def taken(self) -> dict[str, float]:
        """Shares of the time since this was last asked, of each of `BOUNDS`; nothing where that was too short."""
        found = self._found
        self._found = Counter()
        n_looks = sum(found.values())
        return {} if n_looks < _FEWEST else {name: found[name] / n_looks for name in BOUNDS}

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_EVERY):
            if (found := self._look()) is not None:
                self._found[found] += 1


@contextmanager
def watching(n_device_calls: Callable[[], int], is_compiling: Callable[[], bool]) -> Iterator[Watch]:
    """Watch this process, but not while it compiles, for as long as the context lasts.

    Parameters
    ----------
    n_device_calls : callable
        How many calls a device other than the CPU is at work on.
    """
    n_cores = len(os.sched_getaffinity(0))

    def look() -> str | None:
        return None if is_compiling() else bound(states(), n_device_calls(), n_cores)

    watch = Watch(look)
    try:
        yield watch
    finally:
        watch.stop()


def states(tasks: Path = _TASKS) -> Counter[str]:
    """How many threads of this process, but for the one that asks, are in each of the kernel's states.

    ``R`` runs or would run if a core were free, ``D`` waits for a disk or a file server, ``S`` for anything else.
    """
    found: Counter[str] = Counter()
    own = str(threading.get_native_id())
    with suppress(OSError):  # no such thing on this system
        for thread in os.listdir(tasks):
            with suppress(OSError):  # it has ended
                told = (tasks / thread / "stat").read_bytes()
                if thread != own:
                    found[chr(told[told.rindex(b")") + 2])] += 1  # behind its name, which may hold anything
    return found


def bound(found: Mapping[str, int], n_device_calls: int, n_cores: int) -> str | None:
    """What of `BOUNDS` more of would make the process go on faster, by the states of its threads; None without any."""
    if not found:
        return None
    if n_device_calls:
        return "device"
    n_running = found.get("R", 0)
    n_waiting = found.get("D", 0)
    if n_running >= n_cores or (n_running and not n_waiting):
        return "processor"
    return "disk" if n_waiting else "other"
