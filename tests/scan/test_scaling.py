"""Tests of the sample, its quantiles, and the choice of factors, which equal those of NumPy and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from shardpress.model.scaler import Scaler
from shardpress.scan.column_sample import moments, quantiles, sample_positions
from shardpress.scan.scaling import chosen_scale, scaled_as
from tests.support.cases import case

DEVIATION = 0.25  # of scaled columns


def rows_of(n_rows: int = 500) -> np.ndarray:
    """Return columns of different sizes; the last one is constant."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n_rows, 5)) * [1, 30, 0.01, 5, 0] + [0, 1000, 3, -7, 42]


def scaler_for(rows: np.ndarray, scale: str) -> Scaler:
    wide = rows.astype(np.float64)
    ranges = Scaler(wide.min(axis=0), wide.max(axis=0))
    return scaled_as(scale, ranges, *moments(wide, ranges))


def test_std_equals_scikit_learn_and_common_uses_one_factor() -> None:
    rows = rows_of()
    expected = StandardScaler().fit_transform(rows[:, :4])
    found = scaler_for(rows, "std").transform(rows)
    assert found.dtype == np.float32
    # The outermost values are winsorized, which changes the moments of 500 normal values by less than 2 %.
    np.testing.assert_allclose(found[:, :4], DEVIATION * expected, rtol=0.02, atol=0.02)
    np.testing.assert_array_equal(found[:, 4], 0)
    scaler = scaler_for(rows, "common")
    assert len(set(scaler.scale[:4])) == 1
    assert scaler.scale[4] == 0
    x = scaler.transform(rows).astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=0.01)
    np.testing.assert_allclose(np.sqrt(x[:, :4].var(axis=0).mean()), DEVIATION, rtol=0.02)


def test_outliers_hardly_change_the_factors() -> None:
    rows = rows_of(5000)
    factors = scaler_for(rows, "std").scale[:4]
    deviations = rows.std(axis=0)
    rows[17] = rows[18] + 12 * deviations
    np.testing.assert_allclose(scaler_for(rows, "std").scale[:4], factors, rtol=0.02)
    rows[17] = rows[18] + 100 * deviations
    largest = np.abs(scaler_for(rows, "std").transform(rows)).max()
    assert largest <= 20 * DEVIATION, "rare values stay bounded"


def test_three_rows_have_the_deviation_of_all_their_values() -> None:
    """Without the outermost values, one value would remain, and its deviation would be a rounding error."""
    rows = np.random.default_rng(0).random((3, 40))
    _, deviation = moments(rows, Scaler(rows.min(axis=0), rows.max(axis=0)))
    np.testing.assert_allclose(deviation, rows.std(axis=0))


def test_auto_chooses_a_scale_that_suits_the_columns() -> None:
    """Rare counts have ranges that are wider than 20 deviations."""
    rng = np.random.default_rng(0)
    rare = rng.poisson(0.002, (2000, 50))
    rare[:2] = 2
    cases = [
        ("range", "units", rng.normal(size=(500, 20)) * 10.0 ** np.arange(-10, 10)),
        ("range", "extremes", rng.standard_t(2, (5000, 8)) * 10.0 ** np.arange(8)),
        ("common", "spectra", rng.lognormal(0, 1.5, (2000, 1)) * (2 + rng.normal(size=(2000, 50)))),
        ("std", "different counts", rng.poisson(rng.gamma(0.2, rng.gamma(0.5, size=50) * 10, (2000, 50)))),
        ("std", "rare counts", rare),
        ("std", "tails", rng.standard_t(4, (5000, 8)) * 10.0 ** np.arange(8)),
        ("std", "frequencies", rng.lognormal(0, 1, (5000, 8)) * (rng.random((5000, 8)) < 0.2) * 2.0 ** np.arange(8)),
    ]
    for expected, name, rows in cases:
        wide = rows.astype(np.float64)
        with case(name):
            ranges = Scaler(wide.min(axis=0), wide.max(axis=0))
            assert chosen_scale(ranges, moments(wide, ranges)[1], wide) == expected


@pytest.mark.parametrize("dtype", ["i8", "f8"])
def test_columns_far_from_zero_keep_their_digits(dtype: str) -> None:
    rows = np.arange(1_600_000_000, 1_600_000_101).astype(dtype)[:, None]
    x = scaler_for(rows, "std").transform(rows)[:, 0]
    np.testing.assert_allclose(np.diff(x), np.diff(x).mean(), rtol=1e-4)


# -- the sample of a scan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 7, 1000])
def test_the_sample_does_not_depend_on_the_blocks(stride: int) -> None:
    n = 3001
    whole = sample_positions(0, n, stride)
    rng = np.random.default_rng(0)
    for n_cuts in (1, 5, 60):
        cuts = np.unique([0, *rng.integers(0, n, n_cuts), n])
        pieces = [first + sample_positions(first, stop - first, stride) for first, stop in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("n", [1, 11, 101, 1001])  # NumPy rounds the places for other sizes
def test_quantiles_equal_numpy(n: int) -> None:
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
