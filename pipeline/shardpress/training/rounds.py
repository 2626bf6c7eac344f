"""The rows of each replica in each round: pure arithmetic.

The slabs of an epoch, in random order, are cut into shares of about the same number of rows: one share for each
replica in each round. Every row is in one share. A replica shuffles the rows of its share. It reads no other rows
and does not depend on earlier shares, and no two replicas read the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from shardpress.hdf5.shard import Shard
from shardpress.settings.replicas import TrainingSizes, rounds_in_epoch
from shardpress.settings.resolve import ResolvedTraining
from shardpress.shards.conversion import Conversion
from shardpress.training.order import Order, slab_starts

# Numbers of random generators, in addition to the numbers in `shardpress.training.order`.
_DISTRIBUTION = 7
_SHUFFLE = 8

_SLABS = 16  # slabs of a share, so that its rows come from many parts of the data set


@dataclass(frozen=True)
class Share:
    """The rows of one replica in one round."""

    # first row of each slab and the row after its last one, numbered over all shards
    pieces: tuple[tuple[int, int], ...]
    left_out: np.ndarray  # int64: sorted numbers of the rows in the pieces that are not trained on
    seed: int  # seed of the whole training run
    epoch: int
    number: int  # decides the order of the rows, together with the epoch

    def __str__(self) -> str:
        return f"share {self.number} of epoch {self.epoch}"

    @property
    def n_rows(self) -> int:
        """Number of rows that are trained on."""
        return sum(stop - start for start, stop in self.pieces) - len(self.left_out)

    def numbers(self) -> np.ndarray:
        """Return the numbers of all rows of the pieces, one piece after the other: int64."""
        ranges = [np.arange(start, stop) for start, stop in self.pieces]
        return np.concatenate([np.arange(0), *ranges])

    def places(self) -> np.ndarray:
        """Return the indices into `numbers` of the training rows, in the order of the training: (n_rows,), int64."""
        used = np.flatnonzero(~np.isin(self.numbers(), self.left_out))
        rng = np.random.default_rng((self.seed, _SHUFFLE, self.epoch, self.number))
        return rng.permutation(used)


@dataclass(frozen=True)
class Rounds:
    """Distribution of the rows of a training run among its replicas."""

    order: Order  # order of the rows, with small slabs
    n_replicas: int
    n_rounds: int  # number in each epoch except the first, in which one replica trains on all shares

    @property
    def n_shares(self) -> int:
        """Number of shares in every epoch."""
        return self.n_replicas * self.n_rounds

    def at_once(self, epoch: int) -> int:
        return self.n_replicas if epoch else 1

    def shares(self, epoch: int) -> Iterator[Share]:
        """Yield all shares of an epoch, round by round."""
        for number, slabs in enumerate(self._slabs_of_shares(epoch)):
            yield self._share(epoch, number, slabs)

    def _slabs_of_shares(self, epoch: int) -> list[np.ndarray]:
        """Return the numbers of the slabs of each share, in random order."""
        starts = self.order.starts
        rng = np.random.default_rng((self.order.seed, _DISTRIBUTION, epoch))
        slabs = rng.permutation(len(starts) - 1)
        ends = np.cumsum(np.diff(starts)[slabs])
        cuts = np.searchsorted(ends, np.linspace(0, starts[-1], self.n_shares + 1)[1:-1])
        return np.split(slabs, cuts)

    def _share(self, epoch: int, number: int, slabs: np.ndarray) -> Share:
        starts = self.order.starts
        pieces = tuple((int(starts[slab]), int(starts[slab + 1])) for slab in np.sort(slabs))
        left_out = self.order.left_out
        ranges = [left_out[first:stop] for first, stop in np.searchsorted(left_out, pieces)]
        return Share(pieces, np.concatenate([left_out[:0], *ranges]), self.order.seed, epoch, number)

    def n_rows_of(self, epoch: int, n_shares: int) -> int:
        """Return the number of rows of the first shares of an epoch."""
        return sum(share.n_rows for share in islice(self.shares(epoch), n_shares))

    def rounds(self, epoch: int, n_done: int = 0) -> Iterator[Sequence[Share]]:
        """Yield the shares of each round of an epoch, without its first `n_done` shares."""
        shares = islice(self.shares(epoch), n_done, None)
        while round_shares := list(islice(shares, self.at_once(epoch))):
            yield round_shares


def rounds_of(order: Order, shards: Sequence[Shard], conversion: Conversion, settings: ResolvedTraining) -> Rounds:
    sizes = TrainingSizes(order.n_rows, settings.epochs, order.window_rows)
    n_rounds = rounds_in_epoch(settings.replicas, settings.batch_size, sizes)
    max_rows = min(order.window_rows // 4, order.n_rows // (settings.replicas * n_rounds * _SLABS))
    starts = slab_starts(shards, conversion, max(1, max_rows))
    return Rounds(replace(order, starts=starts), settings.replicas, n_rounds)
