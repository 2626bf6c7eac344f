"""Which process of a crew has done how much, and how fast: for the log while it works, and for the morning."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

__all__ = ["Tally", "who"]

_NAMED = 8  # rates that a line of the log holds: of more workers the slowest, the middle and the fastest tell enough


def who() -> str:
    """The process that asks, on its host: equal nowhere else at this time."""
    return f"{platform.node()}:{os.getpid()}"


@dataclass
class _Done:
    """What one process has done of a stage."""

    n_tasks: int = 0
    n_rows: int = 0
    seconds: float = 0.0  # from the beginning of the stage to its last result


@dataclass
class _Stage:
    start: float
    by: dict[str, _Done] = field(default_factory=dict)


class Tally:
    """Counts tasks and rows of each process, stage by stage.

    An executor that has one as its attribute ``tally`` has `pipeline.cluster.executor` tell it of every result. Threads
    of this process have none: there would be one line, of all.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}
        self._now: _Stage | None = None

    def begin(self, stage: str) -> None:
        """What is told from here on belongs to this stage, which begins now, for a second time perhaps."""
        self._now = self._stages[stage] = _Stage(time.monotonic())

    def add(self, by: str, result: Any) -> None:
        """Count a result, and its ``n_rows`` if it has that.

        Parameters
        ----------
        by : str
            What `who` says where it was made.
        """
        if self._now is not None:
            done = self._now.by.setdefault(by, _Done())
            done.n_tasks += 1
            done.n_rows += getattr(result, "n_rows", 0)
            done.seconds = time.monotonic() - self._now.start

    def __str__(self) -> str:
        """The pace of each worker in this stage so far, the slowest first; nothing before the first result."""
        if self._now is None or not self._now.by:
            return ""
        passed = max(time.monotonic() - self._now.start, 1e-9)
        paces = sorted(done.n_rows / passed for done in self._now.by.values())
        few = paces if len(paces) <= _NAMED else [paces[0], median(paces), paces[-1]]
        are = "" if len(paces) <= _NAMED else " (least, median, most)"
        workers = "1 worker" if len(paces) == 1 else f"{len(paces)} workers"
        return f"{workers} at {' + '.join(f'{pace:,.0f}' for pace in few)} rows/s{are}"

    def told(self, workers: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
        """What each worker has done, for report.json.

        Parameters
        ----------
        workers : sequence of mapping
            What is known of those that are there: ``name``, ``host`` and ``pid`` (as `who` spells them), ``device``.

        Returns
        -------
        list of dict
            These, and such as have done something and are gone; of each ``stages``, where for each one that it took
            part in stand ``n_tasks``, ``n_rows`` and ``seconds``, from the stage's beginning to its last result.
        """
        known = {f"{worker['host']}:{worker['pid']}": dict(worker) for worker in workers}
        for by in (by for stage in self._stages.values() for by in stage.by):
            host, _, pid = by.rpartition(":")
            known.setdefault(by, {"name": by, "host": host, "pid": int(pid), "device": None})
        return [
            {**told, "stages": {name: asdict(stage.by[by]) for name, stage in self._stages.items() if by in stage.by}}
            for by, told in known.items()
        ]
