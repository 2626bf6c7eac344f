"""One Dask pass over every block: the range of each column, and the rows that hold NaN or Inf."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pipeline import signals
from pipeline.cluster import reduce
from pipeline.errors import DataError, shown
from pipeline.gate import Shard
from pipeline.shards import Block, blocks, read

__all__ = ["Scan", "bad_rows", "describe_bad_rows", "scan"]

log = logging.getLogger(__name__)

_MAX_TASKS = 4096  # a graph's cost grows with its tasks, so a task takes as many blocks as keeps it below this


@dataclass(frozen=True)
class Scan:
    """What one pass over the rows tells.

    Attributes
    ----------
    n_rows : int
        All rows, bad ones included.
    minimum, maximum : ndarray of shape (n_inputs,), float64
        Over the good rows.
    bad_rows : ndarray of int64
        Numbers, counted over all shards, of the rows that hold NaN or Inf; sorted.
    """

    n_rows: int
    minimum: np.ndarray
    maximum: np.ndarray
    bad_rows: np.ndarray

    @property
    def n_good(self) -> int:
        """Rows without NaN and Inf."""
        return self.n_rows - len(self.bad_rows)

    @property
    def constant(self) -> np.ndarray:
        """Which columns hold one value only: bool, shape (n_inputs,)."""
        return self.minimum == self.maximum


def bad_rows(rows: np.ndarray) -> np.ndarray:
    """Positions, int64, of the rows that hold NaN or Inf."""
    if rows.dtype.kind != "f":
        return np.empty(0, dtype=np.int64)
    return np.flatnonzero(~np.isfinite(rows).all(axis=1))


def scan(
    shards: Sequence[Shard],
    block_rows: int,
    n_threads: int,
    advance: Callable[[int], object] = lambda n_rows: None,
) -> Scan:
    """Read every row once.

    Parameters
    ----------
    shards : sequence of Shard
    block_rows : int
        Rows that one task holds in memory at a time.
    n_threads : int
        Dask threads.
    advance : callable
        Told the number of rows after each block; called from several threads.

    Raises
    ------
    DataError
        When there is no good row, or a column's range is no float64.
    """
    pieces = list(blocks(shards, block_rows))
    numbers = np.cumsum([0, *(len(block) for block in pieces)])
    stride = -(-len(pieces) // _MAX_TASKS)
    tasks = [
        partial(_scan_blocks, pieces[i : i + stride], int(numbers[i]), advance) for i in range(0, len(pieces), stride)
    ]
    result = reduce(tasks, _merge, n_threads)
    if not result.n_good:
        raise DataError(
            f"no usable rows: all {result.n_rows} rows hold NaN or Inf, from file={shown(shards[0].path)} on"
        )
    with np.errstate(over="ignore"):
        endless = np.flatnonzero(np.isinf(result.maximum - result.minimum))
    if len(endless):
        raise DataError(
            f"file={shown(shards[0].path)} and what follows it: the range of columns {_some(endless)} is beyond "
            "float64, expected numbers that can be scaled. Scale them down."
        )
    if result.constant.any():
        columns = np.flatnonzero(result.constant)
        log.info("scan: %d constant columns become 0: %s", len(columns), _some(columns))
    return result


def describe_bad_rows(shards: Sequence[Shard], found: Scan) -> str:
    """Where the first bad row lies, its first bad column, and how many bad rows there are."""
    number = int(found.bad_rows[0])
    for shard in shards:
        if number < shard.n_rows:
            break
        number -= shard.n_rows
    row = read(Block(shard, number, number + 1))[0]
    column = int(np.flatnonzero(~np.isfinite(row))[0])
    return (
        f"file={shown(shard.path)} dataset={shown(shard.dataset)}: {row[column]} in row {number}, column {column}; "
        f"{len(found.bad_rows)} of {found.n_rows} rows in all hold NaN or Inf"
    )


def _scan_blocks(pieces: Sequence[Block], first_row: int, advance: Callable[[int], object]) -> Scan:
    found = []
    for block in pieces:
        signals.check()
        found.append(_scan_block(first_row, block))
        first_row += len(block)
        advance(len(block))
    return _merge(found)


def _scan_block(first_row: int, block: Block) -> Scan:
    rows = read(block)
    minimum, maximum = rows.min(axis=0), rows.max(axis=0)
    bad = np.empty(0, dtype=np.int64)
    # NaN and Inf come through as a minimum or maximum, so good blocks need no second look.
    if not (np.isfinite(minimum).all() and np.isfinite(maximum).all()):
        bad = bad_rows(rows)
        rows = np.delete(rows, bad, axis=0)
        minimum, maximum = rows.min(axis=0, initial=np.inf), rows.max(axis=0, initial=-np.inf)
    return Scan(len(block), minimum.astype(np.float64), maximum.astype(np.float64), first_row + bad)


def _merge(scans: Sequence[Scan]) -> Scan:
    return Scan(
        n_rows=sum(found.n_rows for found in scans),
        minimum=np.minimum.reduce([found.minimum for found in scans]),
        maximum=np.maximum.reduce([found.maximum for found in scans]),
        bad_rows=np.concatenate([found.bad_rows for found in scans]),
    )


def _some(numbers: np.ndarray, n_shown: int = 10) -> str:
    more = f" and {len(numbers) - n_shown} more" if len(numbers) > n_shown else ""
    return ", ".join(str(number) for number in numbers[:n_shown]) + more
