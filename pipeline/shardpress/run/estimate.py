"""Estimates of times for plans and deadlines: each stage processes some rows, and its time is extrapolated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Shard
from shardpress.model.device import seconds_compiling
from shardpress.run.task import Task
from shardpress.scan.blocks import ScanBlock, pieces_of

T = TypeVar("T")

SECONDS = 1.5
"""Time limit for each kind of work, after which no further task or step is started."""
_BLOCKS = 8
_MAX_STRETCHES = 4096
_ENCODING_MARGIN = 1.25


@dataclass(frozen=True)
class Pace:
    """Measured work: rows, and the seconds that they took."""

    n_rows: int
    seconds: float

    def seconds_for(self, n_rows: int) -> float:
        return self.seconds * n_rows / max(1, self.n_rows)

    def __str__(self) -> str:
        return f"{self.n_rows / max(self.seconds, 1e-9):,.0f} rows/s"


@dataclass(frozen=True)
class StageEstimate:
    name: str
    seconds: float
    what: str  # description of the work


def finish_seconds(n_inputs: int) -> float:
    """Return the seconds for the verification and the report: of a bounded number of rows, which can be wide."""
    return 0.5 + 0.0025 * n_inputs


def reserved_seconds(encoding: float, n_inputs: int) -> float:
    """Return the seconds to keep for the time after training, given the seconds that the encoding takes."""
    return _ENCODING_MARGIN * encoding + 5 * finish_seconds(n_inputs) + 4


def stretches(shards: Sequence[Shard], task: Task) -> list[ScanBlock]:
    """Return a limited number of pieces of several blocks from all over the shards, in random order."""
    pieces = pieces_of(shards, _BLOCKS * task.budget.block_rows)
    order = np.random.default_rng(task.settings.training.seed).permutation(len(pieces))
    return [pieces[i] for i in order[:_MAX_STRETCHES]]


def measure_tasks(tasks: Sequence[Any], n_at_once: int, n_rows_of: Callable[[Any], int]) -> tuple[Pace, list[Any]]:
    """Run tasks for a limited time; return the pace and the results, whose rows `n_rows_of` returns."""
    import dask.local  # noqa: F401 - the first `compute` would load it, and the pace would include the time

    results: list[Any] = []
    start = time.monotonic()
    with threads(n_at_once) as pool:
        for first in range(0, len(tasks), n_at_once):
            results += compute(tasks[first : first + n_at_once], pool, n_at_once)
            if time.monotonic() - start > SECONDS:
                break
    return Pace(sum(map(n_rows_of, results)), time.monotonic() - start), results


def measure_seconds(work: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that `work` takes, and its result.

    The time of the compiler is excluded, because a run finds the kernels in the compile cache.
    """
    start = time.monotonic()
    compiled = seconds_compiling()
    result = work()
    return time.monotonic() - start - (seconds_compiling() - compiled), result
