"""Results that are finished close together are committed together, as databases do it.

A commit record takes four syncs. A part of a small shard is finished sooner than that, and would wait for its record
longer than for its rows.
"""

from __future__ import annotations

import logging
import math
import time

from pipeline.errors import ShardpressError
from pipeline.output.ledger import Ledger
from pipeline.output.records import Record

__all__ = ["GroupCommit"]

log = logging.getLogger(__name__)


def _pause(seconds: float) -> float:
    """How long no other commit follows one that took so many seconds.

    Commits take a tenth of the time at most, on a slow disk, too, and a kill costs no more than a second of what was
    finished.
    """
    return min(10 * seconds, 1.0)


class GroupCommit:
    """Commits results at once while they come slowly, and some together while they come faster than the disk is.

    A context: when it ends, by an error too, everything that was added is committed.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[Record] = []
        self._next = -math.inf  # not before then

    def __enter__(self) -> GroupCommit:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._commit()
        except ShardpressError as failed:
            if error is None:
                raise
            log.warning("%s", failed)  # what ended the run was there first

    def add(self, record: Record) -> None:
        """Have a result committed, now or soon; raises like `Ledger.commit`, for this one or an earlier one."""
        self._waiting.append(record)
        if time.monotonic() >= self._next:
            self._commit()

    def _commit(self) -> None:
        waiting = self._waiting
        self._waiting = []  # none is tried twice: a record that failed to sync once is not on the disk
        if waiting:
            start = time.monotonic()
            self._ledger.commit(*waiting)
            end = time.monotonic()
            self._next = end + _pause(end - start)
