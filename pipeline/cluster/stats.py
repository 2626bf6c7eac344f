"""Statistics of workers: tasks, rows and time of each process, for the log and for report.json."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

__all__ = ["WorkerStats", "process_name"]

_MAX_RATES = 8
"""Largest number of workers whose rates are logged one by one. Three rates summarize a larger number of workers."""


def process_name() -> str:
    """Return a name of the calling process that is unique among the running processes of all hosts."""
    return f"{platform.node()}:{os.getpid()}"


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
    """Tasks and rows of each worker process in each stage.

    `pipeline.cluster.executor` adds each result to the ``stats`` of its executor. Executors of threads have none,
    since all threads belong to one process.

    Parameters
    ----------
    clock : callable
        Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stages: dict[str, _StageStats] = {}
        self._current: _StageStats | None = None

    def begin(self, stage: str) -> None:
        """Start a stage; the next results belong to it. A repeated stage replaces the earlier one."""
        self._current = _StageStats(self._clock())
        self._stages[stage] = self._current

    def add(self, process: str, result: Any) -> None:
        """Count a result, and its ``n_rows`` if it has that attribute.

        Parameters
        ----------
        process : str
            The `process_name` of the process that computed it.
        result : object
            The result of a task.
        """
        if self._current is None:
            return
        stats = self._current.processes.setdefault(process, _ProcessStats())
        stats.n_tasks += 1
        stats.n_rows += getattr(result, "n_rows", 0)
        stats.seconds = self._clock() - self._current.start

    def __str__(self) -> str:
        """Return the rates of the workers in the current stage, the slowest first; empty before the first result."""
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
        """Return the work of each worker as plain values, for report.json.

        Parameters
        ----------
        workers : sequence of mapping
            Facts about the known workers: ``name``, ``host`` and ``pid`` (as in `process_name`), and ``device``.

        Returns
        -------
        list of dict
            These facts, followed by facts about workers that did some work and have left. The key ``stages`` holds
            ``n_tasks``, ``n_rows`` and ``seconds`` (from the start of the stage to the last result) for each stage in
            which the worker took part.
        """
        facts = {f"{worker['host']}:{worker['pid']}": dict(worker) for worker in workers}
        for stage in self._stages.values():
            for process in stage.processes:
                facts.setdefault(process, _facts_of_unknown(process))
        return [{**worker, "stages": self._work_of(process)} for process, worker in facts.items()]

    def _work_of(self, process: str) -> dict[str, dict[str, Any]]:
        """Return the work of one process in each stage in which it took part."""
        work = {}
        for name, stage in self._stages.items():
            if process in stage.processes:
                work[name] = asdict(stage.processes[process])
        return work


def _rates_of(stage: _StageStats, now: float) -> list[float]:
    """Return the rows per second of each process from the start of the stage until now, in ascending order."""
    seconds = max(now - stage.start, 1e-9)
    return sorted(stats.n_rows / seconds for stats in stage.processes.values())


def _rates_text(rates: Sequence[float]) -> str:
    return " + ".join(f"{rate:,.0f}" for rate in rates)


def _facts_of_unknown(process: str) -> dict[str, Any]:
    """Return facts about a worker that joined and left during the run."""
    host, _, pid = process.rpartition(":")
    return {"name": process, "host": host, "pid": int(pid), "device": None}
