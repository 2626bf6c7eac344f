"""Tests of outliers: few rows, far away, whatever the units."""

from __future__ import annotations

import numpy as np

from shardpress.outliers import largest_share, outliers
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
    assert largest_share(errors) == {"position": 7, "share": 1.0}
