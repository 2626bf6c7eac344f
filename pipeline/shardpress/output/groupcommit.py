"""Group commit: results that are finished within a short time are committed together, as in databases.

A commit takes four syncs. A part of a small shard can take less time than that, so commits of single parts would take
longer than encoding.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from shardpress.errors import ShardpressError
from shardpress.output.ledger import Ledger
from shardpress.output.records import Record

log = logging.getLogger(__name__)


def _pause(seconds: float) -> float:
    """Return how long to wait before the next commit, after one that took `seconds`.

    Commits then take at most a tenth of the time, even on a slow disk, and a killed run loses at most the results of
    one second.
    """
    return min(10 * seconds, 1.0)


class GroupCommit:
    """Context that commits single results, or groups of them if they are finished faster than the disk can commit.

    When the context ends, even after an error, all results that were added are committed.
    """

    def __init__(self, ledger: Ledger, clock: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._clock = clock
        self._pending: list[Record] = []
        self._next = -math.inf  # earliest time of the next commit

    def __enter__(self) -> GroupCommit:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._commit()
        except ShardpressError as commit_error:
            if error is None:
                raise
            log.warning("%s", commit_error)  # `error` is the cause, and is raised

    def add(self, record: Record) -> None:
        """Commit a result now or within a second. Errors of `Ledger.commit` may concern this result or earlier ones."""
        self._pending.append(record)
        if self._clock() >= self._next:
            self._commit()

    def _commit(self) -> None:
        pending = self._pending
        self._pending = []  # never retried, because a second sync would succeed without writing
        if pending:
            start = self._clock()
            self._ledger.commit(*pending)
            end = self._clock()
            self._next = end + _pause(end - start)
