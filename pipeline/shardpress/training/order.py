"""The rows of each minibatch, and the learning rate of each step: pure arithmetic.

Rows are numbered over all shards. An epoch visits every training row once, in an order that only the seed and the
epoch decide:

1. the data set is cut into *slabs*, row ranges that are cheap to read at once;
2. slabs from all over the data set, in random order, fill a *window*;
3. the rows of a window are shuffled together; minibatches are cut from one window after the other.

A window that holds the whole data set is a full shuffle. The order does not depend on where the rows are kept, so
training from memory and training from disk give the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shardpress.hdf5.shard import Shard
from shardpress.settings.defaults import LEAST_STEPS
from shardpress.settings.resolve import ResolvedTraining
from shardpress.shards.conversion import Conversion

_SLAB_BYTES = 2**20  # long enough that seeking costs little, short enough that a window holds many slabs
MAX_CHUNK_BYTES = 2**24  # larger chunks span several slabs, and are decompressed for each window
_SHARE_OF_WHOLE = 0.75  # share of the rows that keep all features in a nested network
_MAX_RUNS = 512  # reads of a file for the validation, for any number of rows

# Each purpose has its own generator; these numbers, in addition to the seed, make them independent.
_EPOCHS = 1
_VALIDATION = 2
_SLABS = 3
_SAMPLE = 4
_NOISE = 6
_KEPT = 9


@dataclass(frozen=True)
class Order:
    """The order of the training rows in every epoch."""

    starts: np.ndarray  # int64: first row of each slab, and the number of rows at the end
    left_out: np.ndarray  # int64: sorted numbers of the rows that are not trained on: bad rows, and validation rows
    window_rows: int  # maximum number of rows of a window that consists of several slabs
    seed: int

    @property
    def n_rows(self) -> int:
        """Number of training rows in an epoch."""
        return int(self.starts[-1]) - len(self.left_out)

    def windows(self, epoch: int, n_skipped: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the windows of an epoch, each as (slab numbers, row numbers in training order), both int64.

        The first `n_skipped` rows of the epoch are left out, because an interrupted training run continues after them.
        """
        rng = np.random.default_rng((self.seed, _EPOCHS, epoch))
        # A second generator, since the number of slabs must not change how rows are shuffled.
        slabs = np.random.default_rng((self.seed, _SLABS, epoch)).permutation(len(self.starts) - 1)
        for window in self._fill(slabs):
            rows = self._rows_of(window)
            rows = rng.permutation(rows[~np.isin(rows, self.left_out)])
            if n_skipped >= len(rows):
                n_skipped -= len(rows)
                continue
            yield window, rows[n_skipped:]
            n_skipped = 0

    def _rows_of(self, slabs: np.ndarray) -> np.ndarray:
        return np.concatenate([np.arange(self.starts[slab], self.starts[slab + 1]) for slab in slabs])

    def sample(self, most: int) -> np.ndarray:
        """Return sorted numbers (n,) of rows that represent all training rows: `most`, or all if there are fewer."""
        rows = spread_rows(self.n_rows, np.empty(0, dtype=np.int64), min(most, self.n_rows), self.seed, _SAMPLE)
        # These numbers do not count the rows that are left out. Add the number of such rows before each row.
        n_before = np.searchsorted(self.left_out - np.arange(len(self.left_out)), rows, side="right")
        return np.asarray(rows + n_before)

    def _fill(self, slabs: np.ndarray) -> Iterator[np.ndarray]:
        ends = np.cumsum(np.diff(self.starts)[slabs])
        first = 0
        n_taken = 0
        while first < len(slabs):
            last = max(first + 1, int(np.searchsorted(ends, n_taken + self.window_rows, side="right")))
            # Sorted, so that the order of a window over all rows does not depend on how the slabs were cut.
            yield np.sort(slabs[first:last])
            first = last
            n_taken = int(ends[last - 1])


def slab_starts(
    shards: Sequence[Shard],
    conversion: Conversion,
    max_rows: int | None = None,
) -> np.ndarray:
    """Return the first row of each slab of about a megabyte, and the number of rows at the end: int64.

    A slab has whole HDF5 chunks, unless the chunks are too large. A window takes whole slabs: if it holds few rows, the
    limit `max_rows` keeps the slabs small compared with it.
    """
    starts = []
    first_row = 0
    for shard in shards:
        slab_rows = _slab_rows(shard, conversion.row_bytes(shard))
        if max_rows is not None:
            slab_rows = min(slab_rows, max(1, max_rows))
        starts.append(first_row + np.arange(0, shard.n_rows, slab_rows, dtype=np.int64))
        first_row += shard.n_rows
    return np.concatenate([*starts, [first_row]])


def _slab_rows(shard: Shard, row_bytes: int) -> int:
    """Return the number of rows of a slab, in whole chunks unless the chunks are too large."""
    slab_rows = max(1, _SLAB_BYTES // row_bytes)
    if shard.chunk_rows * row_bytes > MAX_CHUNK_BYTES:
        return slab_rows
    n_chunks = -(-slab_rows // shard.chunk_rows)
    return n_chunks * shard.chunk_rows


def spread_rows(
    n_rows: int,
    left_out: np.ndarray,
    n_wanted: int,
    seed: int,
    purpose: int = _VALIDATION,
    max_runs: int = _MAX_RUNS,
) -> np.ndarray:
    """Return sorted numbers of good rows that represent all rows: short runs, evenly spread over the data set.

    Runs are cheap to read from a file. For validation they have another advantage: adjacent rows often resemble each
    other, and most neighbours of a validation row are validation rows as well.

    Parameters
    ----------
    n_rows : int
        Total number of rows, including bad ones.
    left_out : ndarray of int64
        Rows that are dropped from the `n_wanted` rows, which are chosen from all rows.
    purpose : int
        Number of the random generator. Choices for different purposes do not depend on each other.
    """
    n_runs = min(n_wanted, max_runs)
    # Each run has a random place in its stratum. Every stratum also contains an equal share of the other rows.
    lengths = _even_sizes(n_wanted, n_runs)
    gaps = _even_sizes(n_rows - n_wanted, n_runs)
    strata = np.cumsum(lengths + gaps) - (lengths + gaps)
    rng = np.random.default_rng((seed, purpose))
    firsts = strata + rng.integers(0, gaps + 1)
    runs = [np.arange(first, first + n) for first, n in zip(firsts, lengths, strict=True)]
    return np.setdiff1d(np.concatenate([np.empty(0, dtype=np.int64), *runs]), left_out)


def _even_sizes(n: int, n_parts: int) -> np.ndarray:
    """Return sizes (n_parts,), int64, that add up to `n` and are almost equal."""
    edges = np.linspace(0, n, n_parts + 1).astype(np.int64)
    return np.diff(edges)


def noise_of(seed: int, step: int, shape: tuple[int, int]) -> np.ndarray:
    """Return random bytes (uint8) of this shape for a step, which is counted from 0 over all epochs.

    The bytes depend on nothing else, so an interrupted training run continues with the same bytes.
    """
    n_bytes = math.prod(shape)
    # The generator's raw output: drawing numbers below 256 would take twice as long, almost as long as a step.
    random_words = np.random.SFC64((seed, _NOISE, step)).random_raw(-(-n_bytes // 8))
    return random_words.view(np.uint8)[:n_bytes].reshape(shape)


def kept_features(seed: int, step: int, n_rows: int, n_features: int) -> np.ndarray:
    """Return how many of the first features the decoder gets for each row of a step: (n_rows,), float32.

    Three quarters of the rows keep all features: with half of them, all features together reconstruct less. The others
    keep a random number, from 1 on. Like noise, the numbers depend only on the seed and the step.
    """
    rng = np.random.default_rng((seed, _KEPT, step))
    kept = rng.integers(1, n_features + 1, n_rows)
    return np.where(rng.random(n_rows) < _SHARE_OF_WHOLE, n_features, kept).astype(np.float32)


def learning_rate(settings: ResolvedTraining, step: int, steps_per_epoch: int, n_epochs: int) -> float:
    """Return the learning rate of a step, which is counted from 0 over all epochs.

    The linear schedule rises during the first epoch, since large steps from the initial weights would saturate the
    units. After that it falls to 0. The rise takes more than one epoch if epochs are short; see `long_epoch`.
    """
    if settings.schedule == "constant":
        return settings.learning_rate
    n_steps = n_epochs * steps_per_epoch
    n_rising = long_epoch(steps_per_epoch, n_epochs)
    rise = (step + 1) / n_rising
    fall = (n_steps - step) / max(1, n_steps - n_rising)
    return settings.learning_rate * min(rise, fall, 1.0)


def long_epoch(steps_per_epoch: int, n_epochs: int) -> int:
    """Return the steps of an epoch, or a twentieth of all steps (of at most `LEAST_STEPS`) if that is more."""
    n_steps = min(LEAST_STEPS, n_epochs * steps_per_epoch)
    return max(steps_per_epoch, n_steps // 20)
