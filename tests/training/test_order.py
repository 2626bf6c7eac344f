"""Tests of the order of training rows, which depends only on seed and epoch, and of the choice of validation rows."""

from itertools import product

import numpy as np

from shardpress.hdf5.shard import Shard, first_rows
from shardpress.shards.conversion import AS_STORED
from shardpress.training.order import Order, noise_of, slab_starts, spread_rows
from tests.support.cases import case

NONE = np.empty(0, dtype=np.int64)
STARTS = np.array([0, 3, 4, 9, 12, 20, 21])


def test_an_epoch_visits_each_training_row_once():
    for window_rows, left_out in product(
        [1, 5, 20, 21, 22], [[], [0], [20], [3, 4, 5, 11], list(range(9)), list(range(20))]
    ):
        with case(window_rows, left_out):
            order = Order(STARTS, np.array(left_out, dtype=np.int64), window_rows, seed=7)
            expected = np.setdiff1d(np.arange(21), left_out)
            for epoch in range(3):
                visited = np.concatenate([rows for _slabs, rows in order.windows(epoch)])
                assert sorted(visited) == expected.tolist()
            assert order.n_rows == len(expected)
            assert all(len(slabs) == 1 or len(rows) <= window_rows for slabs, rows in order.windows(0))
            for most in (1, 3, len(expected), 100):
                assert len(np.intersect1d(order.sample(most), expected)) == min(most, len(expected))


def test_a_window_mixes_slabs_of_the_whole_data_set():
    """Files are often sorted by class or day, so a window of adjacent rows would contain only one class or day."""
    windows = Order(np.arange(0, 1001, 10), NONE, 100, 0).windows(0)
    assert all(slabs.max() - slabs.min() > 20 for slabs, _rows in windows)


def test_slabs_stay_within_shards_and_hold_whole_chunks():
    """A slab has at most 1 MiB, unless a single chunk or row has more. Chunks of more than 16 MiB are divided."""
    for chunk_rows, n_inputs in product([1, 3, 10, 1000], [2, 2**16, 2**18]):
        with case(chunk_rows, n_inputs):
            shards = [Shard("", "X", (size, n_inputs), "<f4", chunk_rows) for size in (17, 0, 1, 30)]
            starts = slab_starts(shards, AS_STORED)
            assert (np.diff(starts) > 0).all()
            firsts = first_rows(shards)
            assert set(firsts) <= set(starts)
            if n_inputs * chunk_rows * 4 <= 2**24:
                shard_of_slab = np.searchsorted(firsts, starts[:-1], side="right") - 1
                assert ((starts[:-1] - firsts[shard_of_slab]) % chunk_rows == 0).all()
            else:
                assert np.diff(starts).max() <= max(1, 2**20 // (4 * n_inputs))
            for max_rows in (0, 1, 16):  # a window of little memory holds several slabs
                assert np.diff(slab_starts(shards, AS_STORED, max_rows)).max() <= max(1, max_rows)


def test_validation_rows_are_sorted_runs_of_good_rows_everywhere():
    for max_runs, n_wanted in product([1, 10, 4096], [0, 1, 50, 990, 1000]):
        with case(max_runs, n_wanted):
            found = spread_rows(1000, NONE, n_wanted, seed=1, max_runs=max_runs)
            assert (found.dtype, len(found)) == (np.int64, n_wanted)
            assert (np.diff(found) > 0).all()
            assert np.count_nonzero(np.diff(found) > 1) < max(1, max_runs)
    found = spread_rows(1000, NONE, 50, seed=1, max_runs=10)
    assert np.histogram(found, bins=10, range=(0, 1000))[0].tolist() == [5] * 10
    bad = np.arange(0, 1000, 3)
    np.testing.assert_array_equal(spread_rows(1000, bad, 50, seed=1, max_runs=10), np.setdiff1d(found, bad))
    assert spread_rows(1000, NONE, 50, seed=2, max_runs=10).tolist() != found.tolist()


def test_noise_depends_only_on_seed_and_step():
    found = [noise_of(seed, step, (3, 5)).tobytes() for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1), (2**70, 10**9))]
    assert len(set(found)) == len(found)
    assert noise_of(0, 1, (3, 5)).tobytes() == found[1]
    assert noise_of(0, 1, (1, 5)).tobytes() == found[1][:5], "a smaller minibatch gets the beginning"
    counts = np.bincount(noise_of(0, 0, (512, 1001)).ravel(), minlength=256)
    assert np.abs(counts - 2002).max() < 6 * np.sqrt(2002), "uniformly distributed"
