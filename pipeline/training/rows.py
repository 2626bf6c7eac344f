"""The rows of the minibatches: kept in memory, or read window by window; and their way to a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.scan.scaler import Cleaning
from pipeline.settings.resolve import ResolvedTraining
from pipeline.shards.rows import read
from pipeline.shards.shard import Block, Shard, block_of, first_rows, row_dtype
from pipeline.training.order import Order, noise_of, slab_starts

if TYPE_CHECKING:
    from kernels.step import TrainingStep

__all__ = ["DeviceRows", "ResidentRows", "Rows", "StreamedRows", "begun", "cut", "rows_of"]


class ResidentRows:
    """All rows, kept in memory in their own dtype.

    Attributes
    ----------
    resident : ndarray of shape (n_rows, n_inputs)
    """

    def __init__(self, resident: np.ndarray) -> None:
        self.resident = resident

    @classmethod
    def of(cls, shards: Sequence[Shard], n_threads: int, cleaning: Cleaning | None = None) -> ResidentRows:
        """Read all rows of shards, once."""
        starts = slab_starts(shards)
        return cls(_Reader(shards, n_threads, cleaning).slabs(starts, np.arange(len(starts) - 1)))

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        """An epoch's minibatches from number `first` on, as row numbers: `n_each` at a time, of shape (n,), int64."""
        return _numbers(order, epoch, batch_size, first, n_each)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Single rows (n, n_inputs), unscaled, by their numbers (n,)."""
        return self.resident[numbers]


class StreamedRows:
    """Rows read window by window, the next while one is trained on: two windows in memory."""

    resident: DeviceRows | None = None

    def __init__(self, shards: Sequence[Shard], n_threads: int, cleaning: Cleaning | None = None) -> None:
        self._shards = shards
        self._reader = _Reader(shards, n_threads, cleaning)

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        """An epoch's minibatches from number `first` on, as rows: `n_each` at a time, of shape (n, n_inputs)."""
        return cut(self._windows(order, epoch, first * batch_size), n_each * batch_size)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Single rows (n, n_inputs), unscaled, by their sorted numbers (n,)."""
        firsts = first_rows(self._shards)
        shard_of = np.searchsorted(firsts, numbers, side="right")
        # Neighbours are read at once, but no piece lies in two shards.
        breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(shard_of) != 0)) + 1
        runs = [run for run in np.split(numbers, breaks) if len(run)]
        return self._reader.pieces([(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _windows(self, order: Order, epoch: int, n_skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each window's rows in the order of the slabs, and their places in the order of the training."""
        with ThreadPoolExecutor(1, "read-ahead") as ahead:  # one, since each more holds a window more
            # Lazy: each step starts to read a window.
            windows = (
                (slabs, rows, ahead.submit(self._reader.slabs, order.starts, slabs))
                for slabs, rows in order.windows(epoch, n_skipped)
            )
            upcoming = next(windows, None)
            while upcoming is not None:
                slabs, rows, reading = upcoming
                buffer = reading.result()
                upcoming = next(windows, None)
                yield buffer, _places(order.starts, slabs, rows)
                del buffer, reading  # before the window after the next is read


class DeviceRows(StreamedRows):
    """Rows that a device is to keep in its own memory: they go there once, a window at a time, while the next is read.

    Iterated over, they are `kernels.upload.Pieces`.
    """

    def __init__(
        self, shards: Sequence[Shard], n_threads: int, cleaning: Cleaning | None = None, window_rows: int = 1
    ) -> None:
        super().__init__(shards, n_threads, cleaning)
        self.resident = self
        self._window_rows = window_rows

    def __len__(self) -> int:
        return int(first_rows(self._shards)[-1])

    def __iter__(self) -> Iterator[np.ndarray]:
        starts = slab_starts(self._shards, max(1, self._window_rows // 4))
        # A window takes the slabs that begin in as many rows.
        begins = np.searchsorted(starts, np.arange(0, len(self), self._window_rows))
        edges = np.unique([*np.minimum(begins, len(starts) - 1), len(starts) - 1])
        with ThreadPoolExecutor(1, "read-ahead") as ahead:  # the device is for the thread that asks for its rows
            windows = (np.arange(*pair) for pair in pairwise(edges))
            # Lazy: each step starts to read a window.
            reading = (ahead.submit(self._reader.slabs, starts, slabs) for slabs in windows)
            upcoming = next(reading, None)
            while upcoming is not None:
                piece = upcoming.result()
                upcoming = next(reading, None)
                yield piece
                del piece  # before the one after the next is read

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        """An epoch's minibatches from number `first` on, as row numbers: `n_each` at a time, of shape (n,), int64."""
        return _numbers(order, epoch, batch_size, first, n_each)


Rows = ResidentRows | StreamedRows
"""Where training rows come from: classes of one face."""


def _numbers(order: Order, epoch: int, batch_size: int, first: int, n_each: int) -> Iterator[np.ndarray]:
    windows = order.windows(epoch, first * batch_size)
    return cut(((rows, np.arange(len(rows))) for _slabs, rows in windows), n_each * batch_size)


def begun(
    step: TrainingStep,
    pieces: Callable[[int], Iterable[np.ndarray]],
    settings: ResolvedTraining,
    n_inputs: int,
    first: int,
) -> Iterator[list[int]]:
    """Have a step begin with some minibatches after the other, each with its noise.

    Parameters
    ----------
    pieces : callable
        Rows (n, n_inputs), or their numbers (n,), of as many minibatches at a time as it is told: a step's device may
        want several.
    first : int
        Number of the first step's noise.

    Yields
    ------
    list of int
        How many rows each minibatch has that the step has begun with: steps on all of them are taken before the next.
    """
    size = settings.batch_size
    for piece in pieces(step.n_at_once(size)):
        lengths = [min(size, len(piece) - start) for start in range(0, len(piece), size)]
        noise = None
        if settings.corruption:
            each = [noise_of(settings.seed, first + i, (n, n_inputs)) for i, n in enumerate(lengths)]
            noise = each[0] if len(each) == 1 else np.concatenate(each)
        step.begin(piece, noise, size)
        yield lengths
        first += len(lengths)


def cut(windows: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int) -> Iterator[np.ndarray]:
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
        rest = values[places[last:]] if last < len(places) else None  # copied: it must not keep the window
        del values, places  # a window is large: let go of it before the next one comes
    if rest is not None:
        yield rest


def _places(starts: np.ndarray, slabs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Where rows lie in a buffer that holds `slabs` one after the other."""
    offsets = np.cumsum([0, *np.diff(starts)[slabs][:-1]])
    slab = np.searchsorted(starts[slabs], rows, side="right") - 1
    return np.asarray(offsets[slab] + rows - starts[slabs][slab])


@dataclass(frozen=True)
class _Reader:
    """Reads row ranges, and cleans them."""

    shards: Sequence[Shard]
    n_threads: int
    cleaning: Cleaning | None

    def slabs(self, starts: np.ndarray, slabs: np.ndarray) -> np.ndarray:
        """The rows of `slabs`, one after the other."""
        return self.pieces(list(zip(starts[slabs].tolist(), starts[slabs + 1].tolist(), strict=True)))

    def pieces(self, pieces: Sequence[tuple[int, int]]) -> np.ndarray:
        """Row ranges, each within one shard, one after the other."""
        numbers = first_rows(self.shards)
        blocks = [block_of(self.shards, numbers, *piece) for piece in pieces]
        return rows_of(blocks, row_dtype(self.shards), self.shards[0].n_inputs, self.cleaning, self.n_threads)


def rows_of(
    blocks: Sequence[Block], dtype: np.dtype, n_inputs: int, cleaning: Cleaning | None, n_threads: int
) -> np.ndarray:
    """Blocks, one after the other, read by Dask's threads straight into one array, and cleaned."""
    offsets = np.cumsum([0, *map(len, blocks)])
    buffer = np.empty((int(offsets[-1]), n_inputs), dtype=dtype)

    def read_into(i: int) -> None:
        # In place: a window that is put together from pieces would need its memory twice.
        rows = read(blocks[i])
        buffer[offsets[i] : offsets[i + 1]] = rows if cleaning is None else cleaning.cleaned(blocks[i], rows)

    with threads(n_threads) as pool:
        compute([(read_into, i) for i in range(len(blocks))], pool, n_threads)
    return buffer
