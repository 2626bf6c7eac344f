"""Tests of outliers: few rows, far away, whatever the units."""

from __future__ import annotations

import numpy as np

from shardpress.base.outliers import Spread, largest_share, outliers, owners, worst_first
from tests.support.cases import each


@each("n_rows", [0, 1, 2, 19, 20, 99, 1000])
def test_at_most_one_percent_of_the_rows_are_outliers(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    squares = np.square(rng.normal(size=(n_rows, 3))).mean(axis=1)
    assert not outliers(squares).any()
    n_most = 0 if n_rows < 20 else max(1, n_rows // 100)
    squares[: n_rows // 4] *= 1e12
    assert np.count_nonzero(outliers(squares)) <= n_most
    squares[: n_rows // 4] /= 1e12
    squares[:n_most] *= 1e6
    for factor in (1, 1e-30, 1e30):
        assert np.flatnonzero(outliers(factor * squares)).tolist() == list(range(n_most))


def test_infinite_errors_are_outliers_with_all_of_the_error() -> None:
    errors = np.ones(300)
    errors[7] = np.inf
    assert np.flatnonzero(outliers(errors)).tolist() == [7]
    assert largest_share(errors) == (7, 1.0)


@each("n_at_once", [1, 7, 300, 1000])
def test_shares_of_the_variance_equal_numpy_for_any_blocks(n_at_once: int) -> None:
    features = np.random.default_rng(0).normal(1e4, 1, (300, 4)).astype(np.float32)
    features[:, 2] = 0.1  # its variance is a rounding error
    features[:, 3] = 0
    spread = Spread.of(features[start : start + n_at_once] for start in range(0, 300, n_at_once))
    squares = np.square(features[:, :2] - features[:, :2].mean(axis=0, dtype=np.float64))
    expected = np.pad(squares / squares.sum(axis=0), ((0, 0), (0, 2)))
    np.testing.assert_allclose(spread.shares(features), expected, rtol=1e-6, atol=1e-9)


@each("n_rows", [10, 99, 100, 399, 400, 3000])
def test_owners_are_few_rows_with_most_of_a_variance(n_rows: int) -> None:
    n_most = min(4, n_rows // 100)
    shares = np.full((n_rows, 3), 0.1 / n_rows)
    shares[[7, 5, 3, 1], 0] = [0.3, 0.2, 0.1, 0.05]
    shares[[2, 4, 6, 8, 9], 1] = 0.12  # of too many rows
    shares[6, 2] = 0.9
    expected = {0: [], 1: [6], 2: [6], 3: [3, 5, 6, 7], 4: [3, 5, 6, 7]}
    assert owners(shares, n_rows).tolist() == expected[n_most]


def test_rows_with_most_of_a_feature_come_before_large_errors() -> None:
    errors = np.array([0.0, 2.0, 9.0, 5.0])
    leverage = np.array([1.0, 0.01, 0.09, 0.3])
    assert worst_first(errors, leverage, 3000).tolist() == [0, 3, 2, 1]
    assert worst_first(errors, leverage, 100).tolist() == [2, 3, 1, 0], "a few rows have large shares by chance"
