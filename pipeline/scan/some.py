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

_FLOATS, _INTEGERS = ("float32",), ("uint8", "int8", "uint16", "int16", "uint32", "int32")
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
        largest, width = np.maximum(abs(scan.minimum), abs(scan.maximum)), scan.maximum - scan.minimum
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
    pieces = _pieces(shards, settings.block_rows)
    n_pieces = len(pieces) if n_bytes is None else max(1, n_bytes // (settings.block_rows * shards[0].row_bytes))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(pieces))[:n_pieces])
    settings = replace(settings, max_unreadable=len(shards))
    look = looking(shards, settings)
    tasks = [(_looked, (look, pieces[i])) for i in chosen]
    with threads(n_threads) as pool:
        found = compute(tasks, pool, n_threads, lambda each: advance(each[0].n_rows))
    fits = set.intersection(*(smaller for _, smaller in found))
    dtype = row_dtype(shards)
    smaller = next((each for each in (*_INTEGERS, *_FLOATS) if each in fits), None)
    scan = scan_of(merged([told for told, _ in found]), settings, dtype)
    return Look(scan, sum(shard.n_rows for shard in shards), smaller)


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
    is_float, finite = rows.dtype.kind == "f", np.isfinite(rows)
    values = rows[finite]
    is_whole = not is_float or (bool(finite.all()) and bool((values == np.rint(values)).all()))
    names = [*(_INTEGERS if is_whole else ()), *(_FLOATS if is_float else ())]
    fewer = (name for name in names if np.dtype(name).itemsize < rows.dtype.itemsize)
    return {name for name in fewer if _holds(np.dtype(name), values)}


def _holds(dtype: np.dtype, values: np.ndarray) -> bool:
    if not values.size:
        return True
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return bool((values.astype(dtype) == values).all())
    return bool(values.min() >= np.iinfo(dtype).min and values.max() <= np.iinfo(dtype).max)
