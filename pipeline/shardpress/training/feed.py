"""Rows of minibatches, kept in memory or read window by window, and the feed that passes them to a training step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np

from shardpress.base.progress import Progress
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.hdf5.shard import Block, Shard, block_of, first_rows
from shardpress.model.device import DeviceStep
from shardpress.model.scaler import Cleaning
from shardpress.settings.resolve import ResolvedTraining
from shardpress.shards.conversion import Conversion
from shardpress.training.order import Order, kept_features, noise_of, slab_starts
from shardpress_kernels.network import Network

_Item = TypeVar("_Item")

_TASKS_PER_THREAD = 16  # at least, so that all threads end at about the same time


def numbers_of(order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1) -> Iterator[np.ndarray]:
    """Yield the minibatches of an epoch from number `first` on, `n_each` at a time: row numbers (n,), int64."""
    windows = order.windows(epoch, first * batch_size)
    return cut(((rows, np.arange(len(rows))) for _slabs, rows in windows), n_each * batch_size)


class ResidentRows:
    """All rows (n_rows, n_inputs), kept in memory in their own dtype."""

    def __init__(self, resident: np.ndarray) -> None:
        self.resident = resident

    @classmethod
    def of(cls, reader: Reader) -> ResidentRows:
        starts = slab_starts(reader.shards, reader.conversion).tolist()
        row_bytes = reader.conversion.row_bytes(reader.shards[0])
        with Progress("training: reading rows", starts[-1], "rows", row_bytes, is_minor=True) as progress:
            return cls(reader.pieces(list(pairwise(starts)), progress.advance))

    minibatches = staticmethod(numbers_of)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return single rows (n, n_inputs), unscaled, by their numbers (n,)."""
        return self.resident[numbers]


class StreamedRows:
    """Rows that are read window by window, during the training on the previous window; memory holds two windows."""

    resident: DeviceRows | None = None

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        """Yield the minibatches of an epoch from number `first` on, `n_each` at a time: rows (n, n_inputs)."""
        return cut(self._windows(order, epoch, first * batch_size), n_each * batch_size)

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return single rows (n, n_inputs), unscaled, by their sorted numbers (n,)."""
        firsts = first_rows(self._reader.shards)
        shard_of = np.searchsorted(firsts, numbers, side="right")
        # Adjacent rows are read at once, but no piece spans two shards.
        breaks = np.flatnonzero((np.diff(numbers) != 1) | (np.diff(shard_of) != 0)) + 1
        runs = [run for run in np.split(numbers, breaks) if len(run)]
        return self._reader.pieces([(int(run[0]), int(run[-1]) + 1) for run in runs])

    def _windows(self, order: Order, epoch: int, n_skipped: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the rows of each window in the order of the slabs, and their positions in training order."""

        def read_window(window: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
            slabs, _rows = window
            return self._reader.slabs(order.starts, slabs)

        for (slabs, rows), buffer in read_ahead(read_window, order.windows(epoch, n_skipped)):
            yield buffer, _places(order.starts, slabs, rows)
            del buffer  # free these rows before another window is read


class DeviceRows(StreamedRows):
    """Rows that a device keeps in its own memory.

    The rows are uploaded once, window by window. While one window is uploaded, the next one is read. An instance is
    iterable, as `shardpress_kernels.upload.Pieces` of the rows.
    """

    def __init__(self, reader: Reader, window_rows: int = 1) -> None:
        super().__init__(reader)
        self.resident = self
        self._window_rows = window_rows

    def __len__(self) -> int:
        return int(first_rows(self._reader.shards)[-1])

    def __iter__(self) -> Iterator[np.ndarray]:
        starts = slab_starts(self._reader.shards, self._reader.conversion, max(1, self._window_rows // 4))
        # A window consists of the slabs that begin in its rows.
        begins = np.searchsorted(starts, np.arange(0, len(self), self._window_rows))
        edges = np.unique([*np.minimum(begins, len(starts) - 1), len(starts) - 1])
        windows = (np.arange(first, last) for first, last in pairwise(edges))
        # Another thread only reads, since the device belongs to the thread that requests the rows.
        for _slabs, rows in read_ahead(lambda slabs: self._reader.slabs(starts, slabs), windows):
            yield rows
            del rows  # free these rows before another window is read

    minibatches = staticmethod(numbers_of)


Rows = ResidentRows | StreamedRows
"""Source of training rows. The classes have the same methods."""


def read_ahead(
    read: Callable[[_Item], np.ndarray], items: Iterable[_Item]
) -> Generator[tuple[_Item, np.ndarray], None, None]:
    """Yield each item with the rows that `read` returns for it, and meanwhile read the rows of the next item.

    The rows of two items are in memory at a time, if the caller releases the rows of an item before the next one.
    """
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        reading = ((item, pool.submit(read, item)) for item in items)  # each `next` starts to read
        upcoming = next(reading, None)
        while upcoming is not None:
            item, future = upcoming
            rows = future.result()
            upcoming = next(reading, None)
            del future  # it holds the rows
            yield item, rows
            del rows


class StepFeed:
    """Minibatches for a training step, each with its noise and targets.

    A device can take several minibatches at once. The next minibatches are loaded after all earlier ones have been
    trained on. `pieces` is called with a number of minibatches: it returns an iterable over the rows (n, n_inputs), or
    their numbers (n,), of this number of minibatches at a time. `targets` does the same for the targets (n,), if the
    network has a head. The noise depends on the number `first` of the first step.
    """

    def __init__(
        self,
        step: DeviceStep,
        pieces: Callable[[int], Iterable[np.ndarray]],
        network: Network,
        settings: ResolvedTraining,
        first: int,
        targets: Callable[[int], Iterable[np.ndarray]] | None = None,
    ) -> None:
        n_each = step.n_at_once(settings.batch_size)
        self._step = step
        self._pieces = iter(pieces(n_each))
        self._targets = None if targets is None else iter(targets(n_each))
        self._network = network
        self._settings = settings
        self._next_step = first  # number of the first step on minibatches that are not loaded yet
        self._lengths: list[int] = []  # rows of each loaded minibatch that was not trained on yet

    def n_ready(self) -> int:
        """Return how many minibatches are loaded, after loading some if there are none; 0 at the end."""
        if not self._lengths:
            self._load()
        return len(self._lengths)

    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> tuple[int, float | None]:
        """Take a step at each rate, on one loaded minibatch after the other.

        Return the number of their rows, and the cost before the last step if `with_cost`, otherwise None.
        """
        n_steps = len(learning_rates)
        n_rows = sum(self._lengths[:n_steps])
        cost = self._step.take(learning_rates, with_cost)
        self._lengths = self._lengths[n_steps:]
        return n_rows, cost

    def _load(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            return
        size = self._settings.batch_size
        n_rows = len(piece)
        self._lengths = [min(size, n_rows - start) for start in range(0, n_rows, size)]
        noise = None
        if self._settings.corruption:
            noise = self._noise()
        more = {}
        if self._targets is not None:
            more["targets"] = next(self._targets)
        if self._network.nested:
            more["kept"] = self._kept()
        self._step.begin(piece, noise, size, **more)
        self._next_step += len(self._lengths)

    def _kept(self) -> np.ndarray:
        """Return the number of features that the decoder gets for each row of the loaded minibatches."""
        seed = self._settings.seed
        n_features = self._network.n_features
        lengths = enumerate(self._lengths, self._next_step)
        return np.concatenate([kept_features(seed, step, n, n_features) for step, n in lengths])

    def _noise(self) -> np.ndarray:
        seed = self._settings.seed
        n_inputs = self._network.n_inputs
        arrays = [noise_of(seed, step, (n, n_inputs)) for step, n in enumerate(self._lengths, self._next_step)]
        if len(arrays) == 1:
            return arrays[0]
        return np.concatenate(arrays)


def cut(windows: Iterable[tuple[np.ndarray, np.ndarray]], batch_size: int) -> Iterator[np.ndarray]:
    """Yield minibatches of ``values[places]``, window after window; only the last one of the epoch may be smaller."""
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
        rest = values[places[last:]] if last < len(places) else None  # a copy, which does not keep the window in memory
        del values, places  # a window is large: release it before the next one arrives
    if rest is not None:
        yield rest


def _places(starts: np.ndarray, slabs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the positions of rows in a buffer that holds `slabs` one after the other."""
    offsets = np.cumsum([0, *np.diff(starts)[slabs][:-1]])
    slab = np.searchsorted(starts[slabs], rows, side="right") - 1
    return np.asarray(offsets[slab] + rows - starts[slabs][slab])


@dataclass(frozen=True)
class Reader:
    """Reader of row ranges, which also cleans the rows."""

    shards: Sequence[Shard]
    conversion: Conversion
    n_threads: int
    cleaning: Cleaning | None = None

    @cached_property
    def dtype(self) -> np.dtype:
        return self.conversion.dtype(self.shards)

    def slabs(self, starts: np.ndarray, slabs: np.ndarray) -> np.ndarray:
        return self.pieces(list(zip(starts[slabs].tolist(), starts[slabs + 1].tolist(), strict=True)))

    def pieces(self, pieces: Sequence[tuple[int, int]], done: Callable[[int], object] | None = None) -> np.ndarray:
        """Return the rows of ranges, each within one shard, one after the other. Count them with `done`."""
        numbers = first_rows(self.shards)
        blocks = [block_of(self.shards, numbers, *piece) for piece in pieces]
        n_inputs = self.shards[0].n_inputs
        if self.cleaning is not None:
            n_inputs = self.cleaning.scaler.n_inputs
        return rows_of(blocks, self.conversion, self.dtype, n_inputs, self.cleaning, self.n_threads, done)


def rows_of(
    blocks: Sequence[Block],
    conversion: Conversion,
    dtype: np.dtype,
    n_inputs: int,
    cleaning: Cleaning | None,
    n_threads: int,
    done: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return the cleaned rows of blocks, one after the other; Dask's threads read them into one array.

    `done` is called with numbers of rows when they have been read.
    """
    offsets = np.cumsum([0, *map(len, blocks)])
    buffer = np.empty((int(offsets[-1]), n_inputs), dtype=dtype)

    def read_into(numbers: range) -> int:
        # Read in place, since a window that is assembled from pieces would need its memory twice.
        for i in numbers:
            rows = conversion.read(blocks[i])
            if cleaning is not None:
                rows = cleaning.cleaned(rows, blocks[i].shard.stored_dtype)
            buffer[offsets[i] : offsets[i + 1]] = rows
        return int(offsets[numbers.stop] - offsets[numbers.start])

    n_per_task = max(1, len(blocks) // (_TASKS_PER_THREAD * n_threads))
    numbers = range(len(blocks))
    tasks = [(read_into, numbers[start : start + n_per_task]) for start in range(0, len(blocks), n_per_task)]
    with threads(n_threads) as pool:
        compute(tasks, pool, n_threads, done)
    return buffer
