"""Tests of ranks: they equal those of SciPy at the knots, and increase with the values in between."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from shardpress import rowmath
from shardpress.scan.ranks import MAX_KNOTS, RankTables, are_tables, rank_tables
from tests.support.cases import case


def columns_of(n: int) -> np.ndarray:
    """Return columns of several kinds: normal, far from zero, few values, many zeros, constant, with gaps, empty."""
    rng = np.random.default_rng(n)
    rows = np.stack(
        [
            rng.normal(size=n),
            1e9 + rng.random(n),
            rng.integers(0, 3, n),
            rng.gamma(0.3, 100, n) * (rng.random(n) < 0.2),
            np.full(n, 7.0),
            np.where(rng.random(n) < 0.5, np.nan, rng.normal(size=n)),
            np.full(n, np.nan),
        ],
        axis=1,
    )
    return rows.astype(np.float64)


def slow_ranks(values: np.ndarray) -> np.ndarray:
    """Return the mean position of equal values, divided by the last position."""
    is_present = ~np.isnan(values)
    found = np.full(len(values), np.nan)
    if is_present.sum() > 1:
        found[is_present] = (rankdata(values[is_present]) - 1) / (is_present.sum() - 1)
    else:
        found[is_present] = 0.5
    return found


def test_small_samples_have_the_ranks_of_scipy() -> None:
    for n in (1, 2, 3, MAX_KNOTS - 1, MAX_KNOTS):
        with case(n):
            rows = columns_of(n)
            found = rank_tables(rows).apply(rows)
            np.testing.assert_allclose(found, np.apply_along_axis(slow_ranks, 0, rows), atol=1e-7)


def test_large_samples_have_nearly_the_ranks_of_scipy() -> None:
    for n in (MAX_KNOTS + 1, 5000):
        rows = columns_of(n)
        tables = rank_tables(rows)
        assert tables.knots.shape == tables.ranks.shape == (7, MAX_KNOTS)
        assert are_tables(tables.knots, tables.ranks)
        found = tables.apply(rows)
        expected = np.apply_along_axis(slow_ranks, 0, rows)
        np.testing.assert_allclose(found, expected, atol=3 / MAX_KNOTS)
        for column in (2, 4):  # few values
            np.testing.assert_allclose(found[:, column], expected[:, column], atol=1e-7)


def test_ranks_are_interpolated_as_documented() -> None:
    """docs/using.md describes the tables of `encoder.npz` by `np.interp`."""
    for n, dtype in ((5, np.float32), (200, np.float64), (5000, np.float32), (5000, np.float64)):
        sample = columns_of(n)
        tables = rank_tables(sample)
        rows = np.concatenate([sample, 1.5 * columns_of(3000), np.full((1, 7), np.inf), np.full((1, 7), -np.inf)])
        rows = rows.astype(dtype)
        found = tables.apply(rows)
        for i in range(7):
            expected = np.interp(rows[:, i], tables.knots[i], tables.ranks[i], left=0, right=1).astype(dtype)
            expected[np.isnan(rows[:, i])] = np.nan
            with case(n, dtype.__name__, i):
                np.testing.assert_allclose(found[:, i], expected, rtol=4 * np.finfo(dtype).eps)


def test_unsuitable_tables_are_refused() -> None:
    rows = np.ones((4, 3))
    knots = np.zeros((3, 5))
    for wrong in (knots[:2], np.zeros((3, 0)), np.zeros((3, 4)), np.zeros((4, 5))):
        with pytest.raises(ValueError, match="3 columns"):
            rowmath.replace_by_ranks(rows, knots, wrong)
        with pytest.raises(ValueError, match="3 columns"):
            rowmath.replace_by_ranks(rows, wrong, knots)
    for wrong in (knots.astype(np.float32), knots[0], None):
        with pytest.raises(TypeError):
            rowmath.replace_by_ranks(rows, knots, wrong)
        with pytest.raises(TypeError):
            rowmath.replace_by_ranks(rows, wrong, knots)
    np.testing.assert_array_equal(rows, np.ones((4, 3)))


def test_an_empty_sample_has_tables() -> None:
    tables = rank_tables(np.empty((0, 3)))
    assert are_tables(tables.knots, tables.ranks)
    assert tables.apply(np.array([[-1.0, 0, 1]])).tolist() == [[0, 0.5, 1]]


def test_nan_stays_nan() -> None:
    rows = np.array([[np.nan, 1.0, 2], [1, np.nan, 2], [2, 1, np.nan]])
    for dtype in (np.float32, np.float64):
        found = rank_tables(rows).apply(rows.astype(dtype))
        np.testing.assert_array_equal(np.isnan(found), np.isnan(rows))


def test_ranks_increase_with_the_values() -> None:
    sample = columns_of(3000)
    tables = rank_tables(sample)
    for column in (0, 1, 2, 3, 4, 5):
        present = sample[:, column][~np.isnan(sample[:, column])]
        width = np.ptp(present) + 1
        values = np.sort(np.concatenate([present, np.linspace(present.min() - width, present.max() + width, 9999)]))
        rows = np.zeros((len(values), 7))
        rows[:, column] = values
        found = tables.apply(rows)[:, column]
        assert (np.diff(found) >= -1e-15).all()
        assert (found.min(), found.max()) == (0, 1)


def test_values_outside_the_sample_get_0_or_1() -> None:
    tables = rank_tables(np.array([[0.0, 5], [0, 6], [1, 7]]))
    rows = np.array([[-1e300, 4.9], [1.1, 1e300], [-np.inf, np.inf], [0.5, np.nan]])
    np.testing.assert_array_equal(tables.apply(rows), [[0, 0], [1, 1], [0, 1], [0.625, np.nan]])


def test_the_ranks_of_a_row_depend_on_this_row_only() -> None:
    rows = columns_of(2000)
    tables = rank_tables(rows[::3])
    for dtype in (np.float32, np.float64):
        typed = rows.astype(dtype)
        expected = tables.apply(typed)
        assert expected.dtype == dtype
        for n in (1, 2, 300):
            found = np.concatenate([tables.apply(typed[i : i + n]) for i in range(0, len(rows), n)])
            np.testing.assert_array_equal(found, expected)
        assert tables.apply(typed[:0]).shape == (0, 7)


def test_values_are_restored() -> None:
    rows = columns_of(2000)
    tables = rank_tables(rows)
    for column in (0, 1, 2, 4):
        restored = tables.restore(tables.apply(rows))[:, column]
        np.testing.assert_allclose(restored, rows[:, column], rtol=1e-6, atol=1e-4)
    outside = tables.restore(np.tile([[-1.0], [2.0]], 7))
    np.testing.assert_allclose(outside[:, 0], [rows[:, 0].min(), rows[:, 0].max()])


def test_extreme_values_have_ranks() -> None:
    tiny = np.finfo(np.float64).smallest_subnormal
    largest = np.finfo(np.float64).max
    for values in ([-largest, 0, largest], [0, tiny, 3 * tiny], [-largest, 0, tiny, 1e-300, largest]):
        sample = np.array(values)[:, None]
        tables = rank_tables(sample)
        found = tables.apply(sample)
        with case(values):
            assert ((found >= 0) & (found <= 1)).all()
            assert (np.diff(found[:, 0]) >= 0).all()
            restored = tables.restore(np.linspace(0, 1, 11)[:, None])
            assert np.isfinite(restored).all()


def test_unordered_tables_are_invalid() -> None:
    knots = np.array([[0.0, 1, 2], [3, 4, 4]])
    ranks = np.array([[0.0, 0.5, 1], [0, 0.5, 0.5]])
    assert are_tables(knots, ranks)
    for i, j, value in ((0, 1, 5.0), (0, 1, np.nan), (1, 2, np.inf)):
        other = knots.copy()
        other[i, j] = value
        assert not are_tables(other, ranks)
    for i, j, value in ((0, 0, -0.1), (0, 1, 2.0), (1, 1, 0.9), (0, 2, 1.1), (0, 2, np.nan)):
        other = ranks.copy()
        other[i, j] = value
        assert not are_tables(knots, other)
    assert RankTables(knots, ranks).apply(np.array([[0.5, 4.0]])).tolist() == [[0.25, 0.5]]


def test_ranks_hardly_depend_on_rounding_errors():
    """Values that are equal up to rounding errors had different ranks, and values below the first knot had rank 0."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, (3000, 7)).astype(np.float64)
    counts[:, 5] = 3
    counts[:, 6] += 10_000
    size = counts.max(axis=1, keepdims=True)
    multiplied = counts * (1 / size)
    divided = counts / size
    assert (multiplied != divided).any(axis=0).all()
    tables = rank_tables(multiplied, is_rounded=True)
    np.testing.assert_allclose(tables.apply(divided), tables.apply(multiplied), rtol=0, atol=1e-6)
    exact = rank_tables(divided)
    is_count = np.arange(7) < 6
    np.testing.assert_allclose(tables.apply(divided)[:, is_count], exact.apply(divided)[:, is_count], rtol=0, atol=0.02)
