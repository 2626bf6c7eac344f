"""Measure work by counting operations, independent of the speed and load of the machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from unittest.mock import patch

from shardpress.hdf5.files import FILES


@dataclass
class Work:
    """Counts of operations.

    Attributes
    ----------
    n_calls : int
        Number of calls of Python and C functions, in this thread.
    n_reads, n_bytes : int
        Reads of input files, in all threads.
    """

    n_calls: int = 0
    n_reads: int = 0
    n_bytes: int = 0

    def highest(self, other: Work) -> Work:
        """Return the maximum of each count."""
        highest = (max(a, b) for a, b in zip(astuple(self), astuple(other), strict=True))
        return Work(*highest)


@contextmanager
def count_work() -> Iterator[Work]:
    """Count the work that is done in the context."""
    work = Work()

    def call(frame: object, event: str, argument: object) -> None:
        work.n_calls += event.endswith("call")

    def preadv(descriptor: int, buffer: memoryview, offset: int) -> int:
        n_bytes = os.preadv(descriptor, [buffer], offset)
        work.n_reads += 1
        work.n_bytes += n_bytes
        return n_bytes

    with patch.object(FILES, "preadv", preadv):
        sys.setprofile(call)
        try:
            yield work
        finally:
            sys.setprofile(None)
