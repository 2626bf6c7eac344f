"""Which rows each replica trains on in each round: pure arithmetic.

An epoch's slabs, in random order, are cut into shares of about as many rows: one for each replica in each round. Every
row lies in one share. A replica shuffles the rows of its share, so it reads no others and knows nothing of those before
it; and no two replicas read the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from pipeline.settings.replicas import TrainingSizes, rounds_in_epoch
from pipeline.settings.resolve import ResolvedTraining
from pipeline.shards.shard import Shard
from pipeline.training.order import Order, slab_starts

__all__ = ["Rounds", "Share", "rounds_of"]

# Generators of their own, beside those of `pipeline.training.order`.
_DEALT = 7
_SHUFFLED = 8

_SLABS = 16  # in a share: rows from so many places of the data set


@dataclass(frozen=True)
class Share:
    """The rows of one replica in one round.

    Attributes
    ----------
    pieces : tuple of (int, int)
        First row of each slab and the one behind its last, as rows are numbered over all shards.
    left_out : ndarray of int64
        Sorted numbers of the rows among them that are not trained on.
    seed : int
        Of the whole training.
    epoch, number : int
        Which share it is: its rows have an order of their own.
    """

    pieces: tuple[tuple[int, int], ...]
    left_out: np.ndarray
    seed: int
    epoch: int
    number: int

    def __str__(self) -> str:
        return f"share {self.number} of epoch {self.epoch}"

    @property
    def n_rows(self) -> int:
        """That are trained on."""
        return sum(stop - start for start, stop in self.pieces) - len(self.left_out)

    def numbers(self) -> np.ndarray:
        """Of all rows of the pieces, one piece after the other: int64."""
        return np.concatenate([np.arange(0), *(np.arange(start, stop) for start, stop in self.pieces)])

    def places(self) -> np.ndarray:
        """Where among those the rows lie that are trained on, in the order of the training: (n_rows,), int64."""
        kept = np.flatnonzero(~np.isin(self.numbers(), self.left_out))
        return np.random.default_rng((self.seed, _SHUFFLED, self.epoch, self.number)).permutation(kept)


@dataclass(frozen=True)
class Rounds:
    """How the epochs of a training are shared out among its replicas.

    Attributes
    ----------
    order : Order
        Whose slabs are dealt, in small ones.
    n_rounds : int
        In each epoch but the first: that one is trained by one replica, one share after the other.
    """

    order: Order
    n_replicas: int
    n_rounds: int

    @property
    def n_shares(self) -> int:
        """In every epoch."""
        return self.n_replicas * self.n_rounds

    def at_once(self, epoch: int) -> int:
        """How many replicas train at a time."""
        return self.n_replicas if epoch else 1

    def shares(self, epoch: int) -> Iterator[Share]:
        """All of them, those of a round side by side."""
        starts = self.order.starts
        left_out = self.order.left_out
        seed = self.order.seed
        slabs = np.random.default_rng((seed, _DEALT, epoch)).permutation(len(starts) - 1)
        ends = np.cumsum(np.diff(starts)[slabs])
        cuts = np.searchsorted(ends, np.linspace(0, starts[-1], self.n_shares + 1)[1:-1])
        for number, dealt in enumerate(np.split(slabs, cuts)):
            pieces = tuple((int(starts[slab]), int(starts[slab + 1])) for slab in np.sort(dealt))
            without = [left_out[slice(*np.searchsorted(left_out, piece))] for piece in pieces]
            yield Share(pieces, np.concatenate([left_out[:0], *without]), seed, epoch, number)

    def n_rows_of(self, epoch: int, n_shares: int) -> int:
        """Rows of the first shares of an epoch."""
        return sum(share.n_rows for share in islice(self.shares(epoch), n_shares))

    def rounds(self, epoch: int, n_done: int = 0) -> Iterator[Sequence[Share]]:
        """What is trained on at the same time, without the first `n_done` shares of the epoch."""
        shares = islice(self.shares(epoch), n_done, None)
        while together := list(islice(shares, self.at_once(epoch))):
            yield together


def rounds_of(order: Order, shards: Sequence[Shard], settings: ResolvedTraining) -> Rounds:
    """How such an order of rows is shared out."""
    sizes = TrainingSizes(order.n_rows, settings.epochs, order.window_rows)
    n_rounds = rounds_in_epoch(settings.replicas, settings.batch_size, sizes)
    max_rows = min(order.window_rows // 4, order.n_rows // (settings.replicas * n_rounds * _SLABS))
    return Rounds(replace(order, starts=slab_starts(shards, max(1, max_rows))), settings.replicas, n_rounds)
