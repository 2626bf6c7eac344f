"""What a few blocks tell of the rows, and what blocks tell together: tasks of a scan, and how their results merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.cluster.threads import check
from pipeline.errors import DataError
from pipeline.scan.sample import sampled
from pipeline.scan.scaler import bad_rows, missing_entries
from pipeline.shards.rows import keep_chunks, read
from pipeline.shards.shard import Block, Shard, first_rows

__all__ = ["Found", "Piece", "Pieces", "ScanSettings", "look_at", "merged", "unread"]

# A block with its shard's place in the input before it, and the number, over all shards, of that shard's first row.
Piece = tuple[int, int, Block]

_NONE = np.empty(0, dtype=np.int64)


class Pieces(tuple[Piece, ...]):
    """Those of one task, which stand in a row."""

    def __str__(self) -> str:
        first = self[0][2]
        last = self[-1][2]
        if first == last:
            return str(first)
        return f"{first} to {last}"


@dataclass(frozen=True)
class ScanSettings:
    """How rows are looked at.

    Attributes
    ----------
    block_rows : int
        Rows that one task holds in memory at a time.
    missing : float, optional
        A value that stands for a missing one.
    max_unreadable : int, optional
        How many shards may be left out because they cannot be read; with None the first one is an error.
    clip_quantile : float
        What share of a column's values, at either end, its range leaves out.
    chunk_bytes : int
        Of decompressed chunks that a process keeps, since the next block may need them again.
    impute : str, optional
        ``mean`` or ``median``: rows that miss values are good ones, and what stands for these.
    """

    block_rows: int
    missing: float | None = None
    max_unreadable: int | None = None
    clip_quantile: float = 0.0
    impute: str | None = None
    chunk_bytes: int = 0

    @property
    def fills(self) -> bool:
        """Whether what is missing is filled in."""
        return self.impute is not None


@dataclass(frozen=True)
class Found:
    """What blocks tell.

    Attributes
    ----------
    minimum, maximum : ndarray of shape (n_inputs,), float64
        Over the good rows; Inf and -Inf where there are none.
    bad_rows : ndarray of int64
        Their numbers over all shards, sorted.
    n_missing : ndarray of shape (n_inputs,), int64
        Values that the good rows miss.
    sample : ndarray of shape (n, n_inputs), float64
        Good rows that stand for all; NaN where they miss a value.
    unreadable : dict of int to str
        Why, for each shard that cannot be read, by its place in the input.
    """

    n_rows: int
    minimum: np.ndarray
    maximum: np.ndarray
    bad_rows: np.ndarray
    n_missing: np.ndarray
    sample: np.ndarray
    unreadable: Mapping[int, str] = field(default_factory=dict)


def look_at(settings: ScanSettings, stride: int, pieces: Sequence[Piece]) -> Found:
    """What one task finds; where a block cannot be read that may be, of its shard no more than why.

    Parameters
    ----------
    stride : int
        Of how many rows one is taken for the sample.
    """
    found = []
    memory = np.empty(0)
    keep_chunks(settings.chunk_bytes)
    for number, first_row, block in pieces:
        check()
        if memory.dtype != block.shard.dtype or len(memory) < len(block):
            memory = np.empty((len(block), block.shard.n_inputs), dtype=block.shard.dtype)
        try:
            # Over the rows of the last block: to be given fresh pages takes half as long as to look at them.
            rows = read(block, memory[: len(block)])
            found.append(_look(settings, stride, first_row + block.start, block, rows))
        except DataError as error:
            if settings.max_unreadable is None:
                raise
            # What its other blocks tell is thrown away, with the pass.
            found.append(_nothing(len(block), block.shard.n_inputs, _NONE, {number: str(error)}))
    return merged(found)


def unread(shards: Sequence[Shard], unreadable: Mapping[int, str]) -> Found:
    """What shards count for that cannot be read: rows, all of them bad."""
    firsts = first_rows(shards)
    numbers = np.concatenate([_NONE, *(np.arange(firsts[i], firsts[i + 1]) for i in sorted(unreadable))])
    return _nothing(len(numbers), shards[0].n_inputs, numbers, unreadable)


def merged(found: Sequence[Found]) -> Found:
    """What blocks tell together, given in the order of their rows."""
    return Found(
        n_rows=sum(each.n_rows for each in found),
        minimum=np.minimum.reduce([each.minimum for each in found]),
        maximum=np.maximum.reduce([each.maximum for each in found]),
        bad_rows=np.sort(np.concatenate([each.bad_rows for each in found])),
        n_missing=np.sum([each.n_missing for each in found], axis=0),
        sample=np.concatenate([each.sample for each in found]),
        # The first complaint about each; dicts keep the last of equal keys.
        unreadable=dict(sorted({i: why for each in reversed(found) for i, why in each.unreadable.items()}.items())),
    )


def _look(settings: ScanSettings, stride: int, first_row: int, block: Block, rows: np.ndarray) -> Found:
    stored = block.shard.stored_dtype
    bad = _NONE
    n_missing = np.zeros(rows.shape[1], dtype=np.int64)
    minimum = rows.min(axis=0)  # in the rows' own dtype, which needs no copy of a block
    maximum = rows.max(axis=0)
    # A minimum or maximum is NaN or Inf if any value is, so good blocks need no second look.
    if settings.missing is not None or not (np.isfinite(minimum).all() and np.isfinite(maximum).all()):
        bad = bad_rows(rows, settings.missing, stored, settings.fills)
        if len(bad) == len(rows):  # NumPy has no minimum of nothing
            return _nothing(len(rows), rows.shape[1], first_row + bad)
        good = np.delete(rows, bad, axis=0) if len(bad) else rows
        missed = missing_entries(good, settings.missing, stored) if settings.fills else None
        minimum, maximum = _range(good, missed)
        if missed is not None:
            n_missing = missed.sum(axis=0, dtype=np.int64)
    return Found(
        n_rows=len(rows),
        minimum=minimum.astype(np.float64),
        maximum=maximum.astype(np.float64),
        bad_rows=first_row + bad,
        n_missing=n_missing,
        sample=_sample(settings, stride, first_row, rows, bad, stored),
    )


def _sample(
    settings: ScanSettings, stride: int, first_row: int, rows: np.ndarray, bad: np.ndarray, stored: str
) -> np.ndarray:
    """Return the good rows of the sample, float64, with NaN for missing values."""
    some = rows[np.setdiff1d(sampled(first_row, len(rows), stride), bad)]
    sample = some.astype(np.float64)
    if settings.fills:
        sample[missing_entries(some, settings.missing, stored)] = np.nan
    return sample


def _range(rows: np.ndarray, missed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return minimum and maximum of the values that are not missed; Inf and -Inf if all are."""
    if missed is None:
        return rows.min(axis=0), rows.max(axis=0)
    least: float = -np.inf
    most: float = np.inf
    if rows.dtype.kind != "f":
        least = np.iinfo(rows.dtype).min
        most = np.iinfo(rows.dtype).max
    minimum = rows.min(axis=0, where=~missed, initial=most).astype(np.float64)
    maximum = rows.max(axis=0, where=~missed, initial=least).astype(np.float64)
    has_none = missed.all(axis=0)
    return np.where(has_none, np.inf, minimum), np.where(has_none, -np.inf, maximum)


def _nothing(n_rows: int, n_inputs: int, bad_rows: np.ndarray, unreadable: Mapping[int, str] | None = None) -> Found:
    """Return the result of rows of which none is good: it changes nothing when it is merged."""
    return Found(
        n_rows=n_rows,
        minimum=np.full(n_inputs, np.inf),
        maximum=np.full(n_inputs, -np.inf),
        bad_rows=bad_rows,
        n_missing=np.zeros(n_inputs, dtype=np.int64),
        sample=np.empty((0, n_inputs)),
        unreadable=dict(unreadable or {}),
    )
