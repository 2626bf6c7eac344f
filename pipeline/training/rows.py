"""Which rows make up each minibatch (pure arithmetic), and then the rows themselves.

Rows are numbered over all shards. An epoch visits every training row once, in an order that only the seed and the
epoch decide:

1. the data set is cut into *slabs*, row ranges that are cheap to read at once;
2. slabs from all over the data set, in random order, fill a *window*;
3. the rows of a window are shuffled together; minibatches are cut from one window after the other.

A window that holds the whole data set is a full shuffle. The order does not depend on where the rows are kept, so
training from memory and training from disk give the same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.shards.open import block_of, first_rows, read, row_dtype
from pipeline.shards.vet import Shard

__all__ = ["Order", "ResidentRows", "Rows", "StreamedRows", "slab_starts", "spread_rows"]

_SLAB_BYTES = 2**20
_MAX_CHUNK_BYTES = 2**24
_MAX_RUNS = 512

# One seed, one generator for each purpose: these numbers keep the streams apart.
_EPOCHS, _SPREAD, _SLABS = 1, 2, 3


# -- which rows --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """The order of the training rows in every epoch.

    Attributes
    ----------
    starts : ndarray of int64
        First row of each slab, and the number of rows at the end.
    left_out : ndarray of int64
        Sorted numbers of the rows that are not trained on: bad ones, and those of the validation.
    window_rows : int
        A window takes slabs until it holds this many rows.
    seed : int
    """

    starts: np.ndarray
    left_out: np.ndarray
    window_rows: int
    seed: int

    @property
    def n_rows(self) -> int:
        """Training rows in an epoch."""
        return int(self.starts[-1]) - len(self.left_out)

    def windows(self, epoch: int, n_skipped: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The windows of an epoch, each as (slab numbers, row numbers in training order), both int64.

        Without the first `n_skipped` rows of the epoch: an interrupted training goes on behind them.
        """
        rng = np.random.default_rng((self.seed, _EPOCHS, epoch))
        # A generator of their own: how many slabs there are must not shift the shuffling of the rows.
        slabs = np.random.default_rng((self.seed, _SLABS, epoch)).permutation(len(self.starts) - 1)
        for window in self._fill(slabs):
            rows = np.concatenate([np.arange(self.starts[slab], self.starts[slab + 1]) for slab in window])
            rows = rng.permutation(rows[~np.isin(rows, self.left_out)])
            if n_skipped >= len(rows):
                n_skipped -= len(rows)
                continue
            yield window, rows[n_skipped:]
            n_skipped = 0

    def _fill(self, slabs: np.ndarray) -> Iterator[np.ndarray]:
        ends = np.cumsum(np.diff(self.starts)[slabs])
        first, n_taken = 0, 0
        while first < len(slabs):
            last = max(first + 1, int(np.searchsorted(ends, n_taken + self.window_rows, side="right")))
            # Sorted, so that a window over everything shuffles alike however the slabs were cut.
            yield np.sort(slabs[first:last])
            first, n_taken = last, int(ends[last - 1])


def slab_starts(shards: Sequence[Shard], max_rows: int | None = None) -> np.ndarray:
    """Cut every shard into slabs of about a megabyte, in whole HDF5 chunks where those are not too large.

    Parameters
    ----------
    shards : sequence of Shard
    max_rows : int, optional
        Rows of a slab, at most. A window takes whole slabs, so they must be small beside it.

    Returns
    -------
    ndarray of int64
        First row of each slab, and the number of rows at the end.
    """
    starts, first_row = [], 0
    for shard in shards:
        row_bytes = shard.n_inputs * np.dtype(shard.dtype).itemsize
        slab_rows = max(1, _SLAB_BYTES // row_bytes)
        if shard.chunk_rows * row_bytes <= _MAX_CHUNK_BYTES:
            slab_rows = -(-slab_rows // shard.chunk_rows) * shard.chunk_rows
        if max_rows is not None:
            slab_rows = min(slab_rows, max(1, max_rows))
        starts.append(first_row + np.arange(0, shard.n_rows, slab_rows, dtype=np.int64))
        first_row += shard.n_rows
    return np.concatenate([*starts, [first_row]])


def spread_rows(n_rows: int, bad_rows: np.ndarray, n_wanted: int, seed: int) -> np.ndarray:
    """Sorted numbers of good rows that stand for all: short runs, evenly spread over the data set.

    Runs are cheap to read from a file. For validation it also helps that a row's neighbours in time, which resemble it,
    are mostly chosen with it.

    Parameters
    ----------
    n_rows : int
        All rows.
    bad_rows : ndarray of int64
        Rows that cannot be used.
    n_wanted : int
        How many; bad rows among them are dropped.
    seed : int
    """
    n_runs = min(n_wanted, _MAX_RUNS)
    # Each run lies somewhere in a stratum of its own, which is the run and its share of the rows that stay out.
    lengths, gaps = (np.diff(np.linspace(0, n, n_runs + 1).astype(np.int64)) for n in (n_wanted, n_rows - n_wanted))
    strata = np.cumsum(lengths + gaps) - (lengths + gaps)
    firsts = strata + np.random.default_rng((seed, _SPREAD)).integers(0, gaps + 1)
    runs = [np.arange(first, first + n) for first, n in zip(firsts, lengths, strict=True)]
    return np.setdiff1d(np.concatenate([np.empty(0, dtype=np.int64), *runs]), bad_rows)


# -- the rows themselves -----------------------------------------------------------------------------------------


class Rows(Protocol):
    """Where training rows come from."""

    resident: np.ndarray | None
    """All rows, when the device can keep them."""

    def minibatches(self, order: Order, epoch: int, batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
        """An epoch's minibatches from number `first` on: row numbers (n,) int64 where rows are resident, else rows."""

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Single rows, given by their sorted numbers: shape (len(numbers), n_inputs), dtype `row_dtype`."""


class ResidentRows:
    """All rows, loaded once and kept in their own dtype.

    Parameters
    ----------
    shards : sequence of Shard
    n_threads : int
        Dask threads that load them.
    """

    def __init__(self, shards: Sequence[Shard], n_threads: int) -> None:
        starts = slab_starts(shards)
        self._rows = _read_slabs(shards, starts, np.arange(len(starts) - 1), n_threads)
        self.resident: np.ndarray | None = self._rows

    def minibatches(self, order: Order, epoch: int, batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
        """An epoch's minibatches from number `first` on, as row numbers."""
        windows = order.windows(epoch, first * batch_size)
        return _cut(((rows, np.arange(len(rows))) for _slabs, rows in windows), batch_size)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Single rows, by their numbers."""
        return self._rows[numbers]


class StreamedRows:
    """Rows read window by window, the next while one is trained on: two windows in memory.

    Parameters
    ----------
    shards : sequence of Shard
    n_threads : int
        Dask threads that read a window.
    """

    resident: np.ndarray | None = None

    def __init__(self, shards: Sequence[Shard], n_threads: int) -> None:
        self._shards, self._n_threads = shards, n_threads

    def minibatches(self, order: Order, epoch: int, batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
        """An epoch's minibatches from number `first` on, as rows."""
        return _cut(self._windows(order, epoch, first * batch_size), batch_size)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Single rows, by their sorted numbers."""
        return _read_rows(self._shards, numbers, self._n_threads)

    def _windows(self, order: Order, epoch: int, n_skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each window's rows in the order of the slabs, and their places in the order of the training."""
        with ThreadPoolExecutor(1, "read-ahead") as reader:
            windows = order.windows(epoch, n_skipped)

            def start_next() -> tuple | None:
                window = next(windows, None)
                if window is None:
                    return None
                return (*window, reader.submit(_read_slabs, self._shards, order.starts, window[0], self._n_threads))

            upcoming = start_next()
            while upcoming is not None:
                slabs, rows, reading = upcoming
                buffer = reading.result()
                upcoming = start_next()
                places = _places(order.starts, slabs, rows)
                yield buffer, places
                del buffer, reading  # before the window after the next is read


def _cut(windows: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int) -> Iterator[np.ndarray]:
    """Minibatches of ``values[places]``, window after window; only the epoch's last one may be smaller."""
    rest: np.ndarray | None = None
    for values, places in windows:
        first = 0
        if rest is not None:
            first = batch_size - len(rest)
            rest = np.concatenate([rest, values[places[:first]]])
            if len(rest) < batch_size:
                continue
            yield rest
        last = first + (len(places) - first) // batch_size * batch_size
        for start in range(first, last, batch_size):
            yield values[places[start : start + batch_size]]
        rest = values[places[last:]] if last < len(places) else None
        del values, places  # a window is large: let go of it before the next one comes
    if rest is not None:
        yield rest


def _read_rows(shards: Sequence[Shard], rows: np.ndarray, n_threads: int) -> np.ndarray:
    numbers = first_rows(shards)
    shard = np.searchsorted(numbers, rows, side="right")
    breaks = np.flatnonzero((np.diff(rows) != 1) | (np.diff(shard) != 0)) + 1
    firsts = np.concatenate([[0], breaks, [len(rows)]]).astype(np.int64)
    pieces = [(int(rows[a]), int(rows[b - 1]) + 1) for a, b in pairwise(firsts) if a < b]
    return _read_pieces(shards, pieces, n_threads)


def _places(starts: np.ndarray, slabs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where rows lie in a buffer that holds `slabs` one after the other."""
    offsets = np.cumsum([0, *np.diff(starts)[slabs][:-1]])
    slab = np.searchsorted(starts[slabs], rows, side="right") - 1
    return np.asarray(offsets[slab] + rows - starts[slabs][slab])


def _read_slabs(shards: Sequence[Shard], starts: np.ndarray, slabs: np.ndarray, n_threads: int) -> np.ndarray:
    """The rows of `slabs`, one after the other."""
    return _read_pieces(shards, list(zip(starts[slabs].tolist(), starts[slabs + 1].tolist(), strict=True)), n_threads)


def _read_pieces(shards: Sequence[Shard], pieces: Sequence[tuple[int, int]], n_threads: int) -> np.ndarray:
    """Row ranges, each within one shard, read by Dask's threads straight into one array."""
    offsets = np.cumsum([0, *(stop - start for start, stop in pieces)])
    buffer = np.empty((int(offsets[-1]), shards[0].n_inputs), dtype=row_dtype(shards))
    numbers = first_rows(shards)

    def read_into(i: int) -> None:
        buffer[offsets[i] : offsets[i + 1]] = read(block_of(shards, numbers, *pieces[i]))

    with threads(n_threads) as pool:
        compute([(read_into, i) for i in range(len(pieces))], pool, n_threads)
    return buffer
