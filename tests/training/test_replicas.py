"""Tests of replicas: the shares of an epoch, which have similar sizes, and the average of what was trained on them."""

from itertools import product

import numpy as np
import pytest

from shardpress.shards.conversion import AS_STORED
from shardpress.training.averaging import Average, Weights, outer_step
from shardpress.training.order import Order, slab_starts
from shardpress.training.rounds import Rounds, rounds_of
from tests.support.cases import case
from tests.support.helpers import numbered_shards
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of


def trained_on(share):
    return share.numbers()[share.places()]


def test_every_row_is_in_one_share_and_shares_are_in_order():
    """This includes more shares than slabs. A share lists its pieces in the order of the files, as its order does."""
    for n_rows, n_replicas, n_rounds, n_left_out in product([6, 100, 1001], [2, 3], [1, 2, 7], [0, 3]):
        with case(n_rows, n_replicas, n_rounds, n_left_out):
            left_out = np.arange(1, n_left_out + 1)
            starts = np.array([0, *range(3, n_rows, 5), n_rows])
            order = Order(starts, left_out, n_rows, seed=3)
            shared = Rounds(order, n_replicas, n_rounds)
            epochs = []
            for epoch in range(3):
                shares = list(shared.shares(epoch))
                assert len(shares) == shared.n_shares
                assert [share.n_rows for share in shares] == [len(trained_on(share)) for share in shares]
                assert all(list(share.pieces) == sorted(share.pieces) for share in shares)
                assert all(share.left_out.tolist() == sorted(share.left_out) for share in shares)
                assert shared.n_rows_of(epoch, len(shares)) == order.n_rows
                epochs.append(np.concatenate([trained_on(share) for share in shares]))
                expected = np.setdiff1d(np.arange(n_rows), left_out)
                np.testing.assert_array_equal(np.sort(epochs[-1]), expected)
            assert n_rows < 50 or not np.array_equal(epochs[0], epochs[1])


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


# -- averages ----------------------------------------------------------------------------------------------------

SHAPES = {"W": (3, 2), "b": (2,)}


def random_arrays(rng, shapes=SHAPES):
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def states(rng, counts):
    return [
        Weights(random_arrays(rng), {**random_arrays(rng, {"W.mean": (3, 2)}), "step": np.asarray(n, np.float32)})
        for n in counts
    ]


def test_replicas_are_averaged_by_their_rows():
    """The largest number of steps is kept."""
    rng = np.random.default_rng(0)
    found = states(rng, [7, 9, 8, 5])
    weights = [64, 128, 100, 0]
    average = Average()
    for state, n_rows in zip(found, weights, strict=True):
        average.add(state, n_rows)
    mean = average.mean()
    assert average.n_rows == sum(weights)
    assert mean.rule["step"] == 9
    for kind, name in (("parameters", "W"), ("parameters", "b"), ("rule", "W.mean")):
        arrays = [getattr(state, kind)[name].astype(np.float64) for state in found]
        expected = np.average(arrays, axis=0, weights=weights).astype(np.float32)
        np.testing.assert_array_max_ulp(getattr(mean, kind)[name], expected)


@pytest.mark.parametrize(("n_replicas", "m"), [(2, 0.65), (8, 0.9)])
def test_outer_steps_equal_nesterov_momentum(n_replicas, m):
    """The mean change is the gradient: ``b <- m b + g ;  p <- p - 0.7 (g + m b)`` with ``g = p - mean``.

    A steady move is amplified by ``0.7 / (1 - m)``: by the number of replicas, but at most sevenfold.
    """
    rng = np.random.default_rng(2)
    (state,) = states(rng, [5])
    velocity = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    p = np.array(state.parameters["b"], np.float64)
    b = np.zeros(2)
    for _ in range(4):
        (mean,) = states(rng, [6])
        g = p - mean.parameters["b"]
        b = m * b + g
        p = p - 0.7 * (g + m * b)
        state, velocity = outer_step(state, mean, velocity, n_replicas)
        np.testing.assert_allclose(state.parameters["b"], p, rtol=1e-6, atol=1e-6)
        assert state.rule is mean.rule
        assert {array.dtype for array in (*velocity.values(), *state.parameters.values())} == {np.dtype(np.float32)}
