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

from pipeline.settings.defaults import LEAST_STEPS
from pipeline.settings.resolve import ResolvedTraining
from pipeline.shards.shard import Shard

__all__ = [
    "MAX_CHUNK_BYTES",
    "Order",
    "learning_rate",
    "long_epoch",
    "noise_of",
    "slab_starts",
    "spread_rows",
]

_SLAB_BYTES = 2**20  # so long that seeking costs little, so short that a window holds many
MAX_CHUNK_BYTES = 2**24  # slabs of larger ones are parts of a chunk, which is decompressed once for each window
_MAX_RUNS = 512  # reads of a file for the validation, however many rows it has

# One seed, one generator for each purpose: these numbers keep the streams apart.
_EPOCHS = 1
_WATCHED = 2
_SLABS = 3
_SAMPLED = 4
_NOISE = 6


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

    def sample(self, most: int) -> np.ndarray:
        """Sorted numbers (n,) of rows that stand for all that are trained on: `most`, where there are so many."""
        found = spread_rows(self.n_rows, np.empty(0, dtype=np.int64), min(most, self.n_rows), self.seed, _SAMPLED)
        # Counted without the rows that are left out; so many of those lie before each.
        n_before = np.searchsorted(self.left_out - np.arange(len(self.left_out)), found, side="right")
        return np.asarray(found + n_before)

    def _fill(self, slabs: np.ndarray) -> Iterator[np.ndarray]:
        ends = np.cumsum(np.diff(self.starts)[slabs])
        first = 0
        n_taken = 0
        while first < len(slabs):
            last = max(first + 1, int(np.searchsorted(ends, n_taken + self.window_rows, side="right")))
            # Sorted, so that a window over everything shuffles alike however the slabs were cut.
            yield np.sort(slabs[first:last])
            first = last
            n_taken = int(ends[last - 1])


def slab_starts(shards: Sequence[Shard], max_rows: int | None = None) -> np.ndarray:
    """Cut every shard into slabs of about a megabyte, in whole HDF5 chunks where those are not too large.

    A window takes whole slabs: for one that holds few rows, `max_rows` keeps them small beside it.

    Returns
    -------
    ndarray of int64
        First row of each slab, and the number of rows at the end.
    """
    starts = []
    first_row = 0
    for shard in shards:
        slab_rows = max(1, _SLAB_BYTES // shard.row_bytes)
        if shard.chunk_rows * shard.row_bytes <= MAX_CHUNK_BYTES:
            slab_rows = -(-slab_rows // shard.chunk_rows) * shard.chunk_rows
        if max_rows is not None:
            slab_rows = min(slab_rows, max(1, max_rows))
        starts.append(first_row + np.arange(0, shard.n_rows, slab_rows, dtype=np.int64))
        first_row += shard.n_rows
    return np.concatenate([*starts, [first_row]])


def spread_rows(n_rows: int, left_out: np.ndarray, n_wanted: int, seed: int, purpose: int = _WATCHED) -> np.ndarray:
    """Sorted numbers of good rows that stand for all: short runs, evenly spread over the data set.

    Runs are cheap to read from a file. For validation it also helps that a row's neighbours in time, which resemble it,
    are mostly chosen with it.

    Parameters
    ----------
    n_rows : int
        All rows, bad ones among them.
    left_out : ndarray of int64
        Dropped from the `n_wanted` rows that are chosen of all.
    purpose : int
        Of which choices do not depend on each other.
    """
    n_runs = min(n_wanted, _MAX_RUNS)
    # Each run lies somewhere in a stratum of its own, which is the run and its share of the rows that stay out.
    lengths, gaps = (np.diff(np.linspace(0, n, n_runs + 1).astype(np.int64)) for n in (n_wanted, n_rows - n_wanted))
    strata = np.cumsum(lengths + gaps) - (lengths + gaps)
    firsts = strata + np.random.default_rng((seed, purpose)).integers(0, gaps + 1)
    runs = [np.arange(first, first + n) for first, n in zip(firsts, lengths, strict=True)]
    return np.setdiff1d(np.concatenate([np.empty(0, dtype=np.int64), *runs]), left_out)


def noise_of(seed: int, step: int, shape: tuple[int, int]) -> np.ndarray:
    """Random bytes for a step, counted from 0 over all epochs: of this shape, uint8.

    They depend on nothing else, so that an interrupted training goes on with the same.
    """
    n_bytes = math.prod(shape)
    # As they come from the generator: drawing numbers below 256 takes twice as long, and a step little more.
    drawn = np.random.SFC64((seed, _NOISE, step)).random_raw(-(-n_bytes // 8))
    return drawn.view(np.uint8)[:n_bytes].reshape(shape)


def learning_rate(settings: ResolvedTraining, step: int, steps_per_epoch: int, n_epochs: int) -> float:
    """Return the learning rate of a step.

    The linear schedule rises during the first epoch, while the weights are far from any order and large steps would
    saturate the units. After that it falls to 0. Many short epochs count as twenty.

    Parameters
    ----------
    step : int
        Number of the step, counted from 0 over all epochs.
    n_epochs : int
        Number of epochs of the training, which a deadline may have made smaller than that of the settings.
    """
    if settings.schedule == "constant":
        return settings.learning_rate
    n_steps = n_epochs * steps_per_epoch
    n_rising = long_epoch(steps_per_epoch, n_epochs)
    rise = (step + 1) / n_rising
    fall = (n_steps - step) / max(1, n_steps - n_rising)
    return settings.learning_rate * min(rise, fall, 1.0)


def long_epoch(steps_per_epoch: int, n_epochs: int) -> int:
    """Return the steps of an epoch; of many short ones a twentieth of all steps, but at most of `LEAST_STEPS`."""
    n_steps = min(LEAST_STEPS, n_epochs * steps_per_epoch)
    return max(steps_per_epoch, n_steps // 20)
