"""Statistics of workers (tasks, rows and time of each process) for the log and for the report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

_MAX_RATES = 8
"""Largest number of workers whose rates are all logged. For more workers, three rates are logged as a summary."""


def process_name() -> str:
    """Return a name for the calling process, which is unique among the running processes of all hosts."""
    return f"{platform.node()}:{os.getpid()}"


def facts_of(process: str, name: str, device: str | None) -> dict[str, Any]:
    """Return plain values for reports about a worker with this name in the scheduler."""
    host, _, pid = process.rpartition(":")
    return {"name": name, "host": host, "pid": int(pid), "device": device}


@dataclass
class _ProcessStats:
    """Work of one process in one stage."""

    n_tasks: int = 0
    n_rows: int = 0
    seconds: float = 0.0  # from the start of the stage to the last result


@dataclass
class _StageStats:
    """Work of all processes in one stage."""

    start: float
    processes: dict[str, _ProcessStats] = field(default_factory=dict)


class WorkerStats:
    """Tasks, rows and time of each worker process in each stage.

    `shardpress.cluster.executor` adds each result to the attribute ``stats`` of its executor. Executors of threads have
    no such attribute, because all threads belong to one process.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stages: dict[str, _StageStats] = {}
        self._current: _StageStats | None = None

    def begin(self, stage: str) -> None:
        """Start a stage, to which the next results belong. Discard its earlier statistics."""
        self._current = _StageStats(self._clock())
        self._stages[stage] = self._current

    def add(self, process: str, result: Any) -> None:
        """Count a task, and the rows of its result if the result has an attribute ``n_rows``."""
        if self._current is None:
            return
        stats = self._current.processes.setdefault(process, _ProcessStats())
        stats.n_tasks += 1
        stats.n_rows += getattr(result, "n_rows", 0)
        stats.seconds = self._clock() - self._current.start

    def __str__(self) -> str:
        """Return the rates of the workers in the current stage, the slowest first. Empty before the first result."""
        if self._current is None or not self._current.processes:
            return ""
        rates = _rates_of(self._current, self._clock())
        n_workers = len(rates)
        workers = "1 worker" if n_workers == 1 else f"{n_workers} workers"
        if n_workers <= _MAX_RATES:
            return f"{workers} at {_rates_text(rates)} rows/s"
        summary = [rates[0], median(rates), rates[-1]]
        return f"{workers} at {_rates_text(summary)} rows/s (least, median, most)"

    def summary(self, workers: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """Return facts and work of the known workers (see `facts_of`), and of others that have run tasks."""
        facts = {f"{worker['host']}:{worker['pid']}": dict(worker) for worker in workers}
        for stage in self._stages.values():
            for process in stage.processes:
                facts.setdefault(process, facts_of(process, process, None))
        return [{**worker, "stages": self._work_of(process)} for process, worker in facts.items()]

    def _work_of(self, process: str) -> dict[str, dict[str, Any]]:
        work = {}
        for name, stage in self._stages.items():
            if process in stage.processes:
                work[name] = asdict(stage.processes[process])
        return work


def _rates_of(stage: _StageStats, now: float) -> list[float]:
    """Return the average rate of each process in rows per second, in ascending order."""
    seconds = max(now - stage.start, 1e-9)
    return sorted(stats.n_rows / seconds for stats in stage.processes.values())


def _rates_text(rates: Sequence[float]) -> str:
    return " + ".join(f"{rate:,.0f}" for rate in rates)
