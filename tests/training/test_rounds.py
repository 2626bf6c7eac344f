"""Tests of the shares of an epoch: each row is in one share, sizes are similar, and an epoch can start at any round."""

from itertools import product

import numpy as np
import pytest

from shardpress.shards.conversion import AS_STORED
from shardpress.training.order import Order, slab_starts
from shardpress.training.rounds import Rounds, rounds_of
from tests.support.cases import case
from tests.support.helpers import numbered_shards
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of


def trained_on(share):
    return share.numbers()[share.places()]


def rounds(n_rows, n_replicas, n_rounds, left_out=()):
    starts = np.array([0, *range(3, n_rows, 5), n_rows])
    return Rounds(Order(starts, np.array(left_out, dtype=np.int64), n_rows, seed=3), n_replicas, n_rounds)


def test_every_row_is_in_one_share_of_an_epoch():
    """This includes more shares than slabs, and shares without training rows."""
    for n_rows, n_replicas, n_rounds, n_left_out in product([6, 100, 1001], [2, 3], [1, 2, 7], [0, 3]):
        with case(n_rows, n_replicas, n_rounds, n_left_out):
            left_out = np.arange(1, n_left_out + 1)
            shared = rounds(n_rows, n_replicas, n_rounds, left_out)
            epochs = []
            for epoch in range(3):
                shares = list(shared.shares(epoch))
                assert len(shares) == shared.n_shares
                assert [share.n_rows for share in shares] == [len(trained_on(share)) for share in shares]
                assert shared.n_rows_of(epoch, len(shares)) == shared.order.n_rows
                epochs.append(np.concatenate([trained_on(share) for share in shares]))
                expected = np.setdiff1d(np.arange(n_rows), left_out)
                np.testing.assert_array_equal(np.sort(epochs[-1]), expected)
            assert n_rows < 50 or not np.array_equal(epochs[0], epochs[1])


def test_a_share_lists_its_rows_in_order():
    """Files are read in order, and the shuffled order of a share depends on this order."""
    for share in rounds(200, 3, 4, left_out=np.arange(0, 200, 7)).shares(1):
        assert len(share.pieces) > 1
        assert list(share.pieces) == sorted(share.pieces)
        assert share.left_out.tolist() == sorted(share.left_out)


@pytest.mark.process
def test_shares_have_similar_sizes_and_cover_the_data_set(tmp_path):
    shards = numbered_shards(tmp_path, 1000, 0, 500, 2500)
    order = Order(slab_starts(shards, AS_STORED), np.arange(0, 4000, 40), 10**6, seed=0)
    config = settings_of(**{**ONE_LAYER, "replicas": 4}, n_features=1, batch_size=8, epochs=9)
    shared = rounds_of(order, shards, AS_STORED, config.training)
    assert shared.n_rounds > 1
    for epoch in range(2):
        sizes = [share.n_rows for share in shared.shares(epoch)]
        assert max(sizes) <= 1.3 * min(sizes)
    for share in shared.shares(0):
        assert len(np.unique(trained_on(share) // 400)) >= 4, "rows from at least four tenths of the data"
