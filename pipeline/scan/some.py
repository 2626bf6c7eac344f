"""A look at some rows, or at all of them: what a scan would tell, and in what smaller dtype they would fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.errors import DataError
from pipeline.scan.blocks import Found, Piece, ScanSettings, merged
from pipeline.scan.ranges import Scan, looking, scan_of
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard, first_rows, row_dtype

__all__ = ["Look", "look_at_rows", "smaller_dtype"]

_FLOATS = ("float32",)
_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
_TRIED = 4096  # rows of a block, of which it is told whether they fit into a smaller dtype


@dataclass(frozen=True)
class Look:
    """What some rows tell.

    Attributes
    ----------
    scan : Scan
        Of the rows that were looked at.
    n_rows : int
        Of all.
    smaller : str or None
        A dtype that takes fewer bytes and holds every value of those that were tried.
    """

    scan: Scan
    n_rows: int
    smaller: str | None

    @property
    def in_float32(self) -> float:
        """The coarsest step of float32 within a column, as a share of the column's range; 0 without any range."""
        scan = self.scan
        largest = np.maximum(abs(scan.minimum), abs(scan.maximum))
        width = scan.maximum - scan.minimum
        varies = np.isfinite(width) & (width > 0)
        return float((largest[varies] * 2.0**-23 / width[varies]).max(initial=0.0))

    @property
    def is_all(self) -> bool:
        """Whether every row was looked at."""
        return self.scan.n_rows == self.n_rows


def look_at_rows(
    shards: Sequence[Shard],
    settings: ScanSettings,
    n_threads: int,
    n_bytes: int | None,
    seed: int = 0,
    advance: Callable[[int], object] = lambda n_rows: None,
) -> Look:
    """Scan rows from all over the input: about `n_bytes` of them, or all with None.

    Parameters
    ----------
    advance : callable
        Told how many rows more have been looked at.

    Raises
    ------
    ReadFailed, NotPermitted, SystemLimit
        When the system fails. That a shard cannot be read stands in the scan.
    """
    settings = replace(settings, max_unreadable=len(shards))
    look = looking(shards, settings)
    tasks = [(_looked, (look, piece)) for piece in _chosen(shards, settings.block_rows, n_bytes, seed)]
    with threads(n_threads) as pool:
        results = compute(tasks, pool, n_threads, lambda each: advance(each[0].n_rows))
    scan = scan_of(merged([found for found, _ in results]), settings, row_dtype(shards))
    fits = set.intersection(*(smaller for _, smaller in results))
    smaller = next((each for each in (*_INTEGERS, *_FLOATS) if each in fits), None)
    return Look(scan, sum(shard.n_rows for shard in shards), smaller)


def _chosen(shards: Sequence[Shard], block_rows: int, n_bytes: int | None, seed: int) -> list[Piece]:
    """Return random pieces with about `n_bytes` bytes of rows, in their order; all pieces with None."""
    pieces = _pieces(shards, block_rows)
    if n_bytes is None:
        return pieces
    n_pieces = max(1, n_bytes // (block_rows * shards[0].row_bytes))
    chosen = np.random.default_rng(seed).permutation(len(pieces))[:n_pieces]
    return [pieces[i] for i in np.sort(chosen)]


def _pieces(shards: Sequence[Shard], block_rows: int) -> list[Piece]:
    starts = first_rows(shards)[:-1].tolist()
    return [
        (number, first, block)
        for number, (shard, first) in enumerate(zip(shards, starts, strict=True))
        for block in Block(shard, 0, shard.n_rows).cut(block_rows)
    ]


def _looked(task: tuple[Callable[[Sequence[Piece]], Found], Piece]) -> tuple[Found, set[str]]:
    look, piece = task
    block = piece[2]
    some = Block(block.shard, block.start, min(block.stop, block.start + _TRIED))
    try:
        smaller = smaller_dtype(read(some))
    except DataError:  # which the scan meets, too, and tells
        smaller = set(_INTEGERS + _FLOATS)
    return look([piece]), smaller


def smaller_dtype(rows: np.ndarray) -> set[str]:
    """The dtypes of fewer bytes that hold all values of rows as they are; NaN and Inf only floats do."""
    is_float = rows.dtype.kind == "f"
    is_finite = np.isfinite(rows)
    values = rows[is_finite]
    names: list[str] = []
    if not is_float or (is_finite.all() and (values == np.rint(values)).all()):
        names += _INTEGERS
    if is_float:
        names += _FLOATS
    fewer = (name for name in names if np.dtype(name).itemsize < rows.dtype.itemsize)
    return {name for name in fewer if _holds(np.dtype(name), values)}


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    if not values.size:
        return True
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return bool((values.astype(dtype) == values).all())
    return bool(values.min() >= np.iinfo(dtype).min and values.max() <= np.iinfo(dtype).max)
