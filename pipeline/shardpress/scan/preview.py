"""Scan of some or all rows for `inspect`, and smaller dtypes that can hold the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.errors import DataError
from shardpress.scan.blocks import BlockStats, Piece, ScanSettings, merge_stats, pieces_of
from shardpress.scan.ranges import Scan, scan_from_stats, scan_task
from shardpress.shards.rows import read
from shardpress.shards.shard import Block, Shard

_FLOATS = ("float32",)
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_TESTED_ROWS = 4096  # number of rows of each block to test with smaller dtypes


@dataclass(frozen=True)
class Preview:
    """Scan of some rows, and a smaller dtype that can hold them.

    Attributes
    ----------
    scan : Scan
        Scan of these rows.
    n_rows : int
        Total number of rows in the input.
    smaller : str or None
        Smaller dtype that holds all tested values exactly, or None.
    """

    scan: Scan
    n_rows: int
    smaller: str | None

    @property
    def float32_error(self) -> float:
        """Largest spacing of float32 numbers within a column, relative to the column's range.

        It is 0 if no column varies.
        """
        scan = self.scan
        largest = np.maximum(abs(scan.minimum), abs(scan.maximum))
        width = scan.maximum - scan.minimum
        varies = np.isfinite(width) & (width > 0)
        steps = largest[varies] * 2.0**-23 / width[varies]
        return float(steps.max(initial=0.0))

    @property
    def has_all_rows(self) -> bool:
        """True if all rows were scanned."""
        return self.scan.n_rows == self.n_rows


def preview_rows(
    shards: Sequence[Shard],
    settings: ScanSettings,
    n_threads: int,
    n_bytes: int | None,
    seed: int = 0,
    advance: Callable[[int], object] = lambda n_rows: None,
) -> Preview:
    """Scan random blocks of the input.

    Parameters
    ----------
    n_bytes : int or None
        Approximate total size of the blocks. If None, all rows are scanned.
    advance : callable
        Called with the number of rows of each finished task.

    Raises
    ------
    ReadFailed, NotPermitted, SystemLimit
        If a system call fails. Unreadable shards do not raise an error; the scan lists them.
    """
    settings = replace(settings, max_unreadable=len(shards))
    task = scan_task(shards, settings)
    tasks = [(_scan_piece, (task, piece)) for piece in _random_pieces(shards, settings.block_rows, n_bytes, seed)]
    with threads(n_threads) as pool:
        results = compute(tasks, pool, n_threads, lambda result: advance(result[0].n_rows))
    stats = merge_stats([each for each, _ in results])
    return Preview(
        scan=scan_from_stats(stats, settings, shards),
        n_rows=sum(shard.n_rows for shard in shards),
        smaller=_first_common([dtypes for _, dtypes in results]),
    )


def _first_common(dtypes_of_blocks: Sequence[set[str]]) -> str | None:
    """Return the first dtype that can hold the rows of all blocks, or None if no dtype can."""
    common = set.intersection(*dtypes_of_blocks)
    for name in (*_INTEGERS, *_FLOATS):
        if name in common:
            return name
    return None


def _random_pieces(shards: Sequence[Shard], block_rows: int, n_bytes: int | None, seed: int) -> list[Piece]:
    """Return random pieces in row order with about `n_bytes` bytes of rows. If `n_bytes` is None, return all pieces."""
    pieces = pieces_of(shards, block_rows)
    if n_bytes is None:
        return pieces
    n_pieces = max(1, n_bytes // (block_rows * shards[0].row_bytes))
    chosen = np.random.default_rng(seed).permutation(len(pieces))[:n_pieces]
    return [pieces[i] for i in np.sort(chosen)]


def _scan_piece(task: tuple[Callable[[Sequence[Piece]], BlockStats], Piece]) -> tuple[BlockStats, set[str]]:
    """Return the statistics of a piece, and the smaller dtypes that can hold the first rows of the piece."""
    scan, piece = task
    block = piece[2]
    tested = Block(block.shard, block.start, min(block.stop, block.start + _TESTED_ROWS))
    try:
        dtypes = smaller_dtypes(read(tested))
    except DataError:  # the scan also reads this block, and reports the error
        dtypes = set(_INTEGERS + _FLOATS)
    return scan([piece]), dtypes


def smaller_dtypes(rows: np.ndarray) -> set[str]:
    """Return the smaller dtypes that can hold all values of rows exactly. Only floats can hold NaN and Inf."""
    is_finite = np.isfinite(rows)
    values = rows[is_finite]
    names: list[str] = []
    if rows.dtype.kind == "f":
        names += _FLOATS
    if rows.dtype.kind != "f" or (is_finite.all() and (values == np.rint(values)).all()):
        names += _INTEGERS
    dtypes = [np.dtype(name) for name in names]
    return {dtype.name for dtype in dtypes if dtype.itemsize < rows.dtype.itemsize and _holds(dtype, values)}


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    if not values.size:
        return True
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return bool((values.astype(dtype) == values).all())
    limits = np.iinfo(dtype)
    return bool(values.min() >= limits.min and values.max() <= limits.max)
