"""Sampling of the bottleneck of a run: the device, the processor or the disk."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

_BOTTLENECKS = ("device", "processor", "disk", "other")
_INTERVAL = 0.1  # seconds between samples; a sample takes a quarter of a millisecond
_MIN_SAMPLES = 10
_TASKS = Path("/proc/self/task")


class Watch:
    """Thread that calls `sample` at intervals until `stop` is called, and counts its results.

    `sample` returns the current bottleneck, or None if it is unknown.
    """

    def __init__(self, sample: Callable[[], str | None]) -> None:
        self._sample = sample
        self._stopped = threading.Event()
        self._counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def take_shares(self) -> dict[str, float]:
        """Return the share of each bottleneck in the time since the last call, or nothing after too few samples."""
        counts = self._counts
        self._counts = Counter()
        n_samples = sum(counts.values())
        if n_samples < _MIN_SAMPLES:
            return {}
        return {name: counts[name] / n_samples for name in _BOTTLENECKS}

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_INTERVAL):
            name = self._sample()
            if name is not None:
                self._counts[name] += 1


@contextmanager
def watching(n_device_calls: Callable[[], int], is_compiling: Callable[[], bool]) -> Iterator[Watch]:
    """Sample the bottleneck of this process within the context, except while it waits for the compiler.

    `n_device_calls` returns the number of calls in progress on a device other than the CPU.
    """
    n_cores = len(os.sched_getaffinity(0))

    def sample() -> str | None:
        if is_compiling():
            return None
        return _bottleneck(_thread_states(), n_device_calls(), n_cores)

    watch = Watch(sample)
    try:
        yield watch
    finally:
        watch.stop()


def _thread_states() -> Counter[str]:
    """Return the number of threads of this process in each scheduling state, without the calling thread.

    ``R`` means running or ready to run. ``D`` means waiting for a disk or a file server, and ``S`` means waiting for
    another event.
    """
    counts: Counter[str] = Counter()
    own = str(threading.get_native_id())
    with suppress(OSError):  # /proc is missing
        for thread in os.listdir(_TASKS):
            with suppress(OSError):  # the thread has ended
                line = (_TASKS / thread / "stat").read_bytes()
                if thread != own:
                    # The state follows the name of the thread in parentheses. The name may also contain parentheses.
                    state = line[line.rindex(b")") + 2]
                    counts[chr(state)] += 1
    return counts


def _bottleneck(states: Mapping[str, int], n_device_calls: int, n_cores: int) -> str | None:
    """Return the bottleneck of this process, or None if `states`, the numbers of threads by state, is empty."""
    if not states:
        return None
    if n_device_calls:
        return "device"
    n_running = states.get("R", 0)
    n_waiting = states.get("D", 0)
    if n_running >= n_cores or (n_running and not n_waiting):
        return "processor"
    if n_waiting:
        return "disk"
    return "other"
