"""Statistics of workers (tasks, rows and time of each process) for the log and for the report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from shardpress.base.errors import quantity

_MAX_RATES = 8
"""Largest number of workers whose rates are all logged. For more workers, three rates are logged as a summary."""


def process_name() -> str:
    """Return a name for the calling process, which is unique among the running processes of all hosts."""
    return f"{platform.node()}:{os.getpid()}"


def facts_of(process: str, name: str, device: str | None) -> dict[str, Any]:
    """Return plain values for reports about a worker with this name in the scheduler."""
    host, _, pid = process.rpartition(":")
    return {"name": name, "host": host, "pid": int(pid), "device": device}


class WorkerStats:
    """Tasks, rows and time of each worker process in each stage.

    `shardpress.cluster.executor` adds each result to the attribute ``stats`` of its executor. Executors of threads have
    no such attribute, because all threads belong to one process.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()  # of the current stage
        self._current: dict[str, dict[str, Any]] = {}  # work of each process in the current stage
        self._stages: dict[str, dict[str, dict[str, Any]]] = {}  # the same for each stage

    def begin(self, stage: str) -> None:
        """Start a stage, to which the next results belong. Discard its earlier statistics."""
        self._start = time.monotonic()
        self._current = {}
        self._stages[stage] = self._current

    def add(self, process: str, result: Any) -> None:
        """Count a task, and the rows of its result if the result has an attribute ``n_rows``."""
        work = self._current.setdefault(process, {"n_tasks": 0, "n_rows": 0, "seconds": 0.0})
        work["n_tasks"] += 1
        work["n_rows"] += getattr(result, "n_rows", 0)
        work["seconds"] = time.monotonic() - self._start  # until the last result

    def __str__(self) -> str:
        """Return the rates of the workers in the current stage, the slowest first. Empty before the first result."""
        if not self._current:
            return ""
        seconds = max(time.monotonic() - self._start, 1e-9)
        rates = sorted(work["n_rows"] / seconds for work in self._current.values())
        workers = quantity(len(rates), "worker")
        if len(rates) <= _MAX_RATES:
            return f"{workers} at {_rates_text(rates)} rows/s"
        summary = [rates[0], median(rates), rates[-1]]
        return f"{workers} at {_rates_text(summary)} rows/s (least, median, most)"

    def summary(self, workers: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Return facts and work of the known workers (see `facts_of`), and of others that have run tasks."""
        facts = {f"{worker['host']}:{worker['pid']}": dict(worker) for worker in workers}
        for processes in self._stages.values():
            for process in processes:
                facts.setdefault(process, facts_of(process, process, None))
        return [{**worker, "stages": self._work_of(process)} for process, worker in facts.items()]

    def _work_of(self, process: str) -> dict[str, dict[str, Any]]:
        return {name: processes[process] for name, processes in self._stages.items() if process in processes}


def _rates_text(rates: Sequence[float]) -> str:
    return " + ".join(f"{rate:,.0f}" for rate in rates)
