"""Statistics of workers (tasks, rows and time of each process) for the log and for the report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from shardpress.base.errors import quantity
from shardpress.result.facts import Work, WorkerFacts

_MAX_RATES = 8
"""Largest number of workers whose rates are all logged. For more workers, three rates are logged as a summary."""


def process_name() -> str:
    """Return a name for the calling process, which is unique among the running processes of all hosts."""
    return f"{platform.node()}:{os.getpid()}"


class KnownWorker(NamedTuple):
    """A worker process."""

    process: str  # as `process_name` returns it
    name: str  # in the scheduler
    device: str | None


class WorkerStats:
    """Tasks, rows and time of each worker process in each stage.

    `shardpress.cluster.executor` adds each result to the attribute ``stats`` of its executor. Executors of threads have
    no such attribute, because all threads belong to one process.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()  # of the current stage
        self._current: dict[str, Work] = {}  # work of each process in the current stage
        self._stages: dict[str, dict[str, Work]] = {}  # the same for each stage

    def begin(self, stage: str) -> None:
        """Start a stage, to which the next results belong. Discard its earlier statistics."""
        self._start = time.monotonic()
        self._current = {}
        self._stages[stage] = self._current

    def add(self, process: str, result: object) -> None:
        """Count a task, and the rows of its result, or of the items of a list, if they have an attribute ``n_rows``."""
        before = self._current.get(process, Work(0, 0, 0.0))
        items = result if isinstance(result, list) else [result]
        n_rows = before.n_rows + sum(getattr(item, "n_rows", 0) for item in items)
        self._current[process] = Work(before.n_tasks + 1, n_rows, time.monotonic() - self._start)

    def __str__(self) -> str:
        """Return the rates of the workers in the current stage, the slowest first. Empty before the first result."""
        if not self._current:
            return ""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rates = sorted(work.n_rows / seconds for work in self._current.values())
        workers = quantity(len(rates), "worker")
        if len(rates) <= _MAX_RATES:
            return f"{workers} at {_rates_text(rates)} rows/s"
        summary = [rates[0], median(rates), rates[-1]]
        return f"{workers} at {_rates_text(summary)} rows/s (least, median, most)"

    def facts(self, workers: Sequence[KnownWorker] = ()) -> list[WorkerFacts]:
        """Return the work of the known workers, and of others that have run tasks."""
        by_process = {worker.process: worker for worker in workers}
        for processes in self._stages.values():
            for process in processes:
                by_process.setdefault(process, KnownWorker(process, process, None))
        return [self._facts_of(worker) for worker in by_process.values()]

    def _facts_of(self, worker: KnownWorker) -> WorkerFacts:
        host, _, pid = worker.process.rpartition(":")
        stages = {name: works[worker.process] for name, works in self._stages.items() if worker.process in works}
        return WorkerFacts(worker.name, host, int(pid), worker.device, stages)


def _rates_text(rates: Sequence[float]) -> str:
    return " + ".join(f"{rate:,.0f}" for rate in rates)
