"""Tests of the sample: it has a bounded size, covers all rows, and does not depend on block boundaries."""

import itertools

import numpy as np
import pytest

from shardpress.scan.sample import quantiles, sample_positions, stride_of


@pytest.mark.parametrize("stride", [1, 2, 7, 1000])
def test_the_sample_does_not_depend_on_the_blocks(stride):
    n = 3001
    whole = sample_positions(0, n, stride)
    rng = np.random.default_rng(0)
    for n_cuts in (1, 5, 60):
        cuts = np.unique([0, *rng.integers(0, n, n_cuts), n])
        pieces = [first + sample_positions(first, stop - first, stride) for first, stop in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_the_sample_holds_all_of_few_rows_and_is_bounded():
    assert sample_positions(3, 5, 1).tolist() == [0, 1, 2, 3, 4]
    assert sample_positions(3, 0, 1).tolist() == []
    for n_rows, n_inputs, n_values in ((100, 8, 800), (101, 8, 800), (10**7, 784, 2**18), (10**5, 10**5, 2**18)):
        n = len(sample_positions(0, n_rows, stride_of(n_rows, n_inputs, n_values)))
        most = max(32, n_values // n_inputs)
        assert n <= most
        assert n == n_rows or n >= most // 2


@pytest.mark.parametrize("n", [1, 11, 101, 1001])  # NumPy rounds the places for other sizes
def test_quantiles_equal_numpy(n):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, 5))
    rows[:, 1] = rng.integers(0, 3, n)
    rows[rng.random(n) < 0.3, 2] = np.nan
    rows[:, 3] = np.nan
    for q in (0.0, 0.001, 0.01, 0.25, 0.499):
        found = quantiles(rows, q)
        for column, values in enumerate(rows.T):
            values = values[~np.isnan(values)]
            if not len(values):
                assert np.isnan(found[:, column]).all()
                continue
            expected = [np.quantile(values, q, method="lower"), -np.quantile(-values, q, method="lower")]
            assert found[:, column].tolist() == expected
