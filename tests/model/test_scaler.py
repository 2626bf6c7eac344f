"""Tests of scaling and clipping: in which dtypes rows are scaled, and extreme ranges."""

from dataclasses import replace
from itertools import product

import numpy as np

from shardpress.model.scaler import Cleaning, Scaler
from tests.support.cases import each

DTYPES = ["u1", "i2", "i8", "u8", "f4", "f8"]


def scaler_of(rows):
    wide = np.asarray(rows, dtype=np.float64)
    return Scaler(wide.min(axis=0), wide.max(axis=0))


@each(
    "dtype, low, high",
    [(np.float32, -3e38, 3e38), (np.float32, 0, 1e-45), (np.float64, 0, 1e-307), (np.int64, -(2**63), 2**63 - 1)],
)
def test_extreme_ranges_are_scaled_to_0_and_1(dtype, low, high):
    rows = np.array([[low], [high]], dtype)
    np.testing.assert_allclose(scaler_of(rows).transform(rows), [[0], [1]])
    without_inverse = np.array([[0.0], [1e-320]])
    np.testing.assert_array_equal(scaler_of(without_inverse).transform(without_inverse), [[0], [0]])


# -- cleaning ----------------------------------------------------------------------------------------------------


RANGE = (np.array([-1.5, 2.5]), np.array([7.5, 9.0]))


@each("dtype, seed", product(DTYPES, range(5)))
def test_equal_values_are_clipped_equally(dtype, seed):
    """Some limits have fractions or exceed the range of the dtype."""
    info = np.iinfo(dtype) if dtype[0] in "iu" else np.finfo(dtype)
    rng = np.random.default_rng(seed)
    scale = rng.choice([1, 100, 1e5])
    low, high = np.sort(rng.normal(0, scale, (2, 4)), axis=0)
    low[3] = -1e300
    high[3] = 1e300
    rows = np.clip(rng.normal(0, 3 * scale, (20, 4)), float(info.min), float(info.max)).astype(dtype)
    rows[0] = info.min
    rows[1] = info.max
    np.testing.assert_array_equal(
        Cleaning(Scaler(low, high), clips_drift=True).cleaned(rows), np.clip(rows.astype(np.float64), low, high)
    )


def test_rows_have_the_dtype_of_clipped_rows_before_the_clipping():
    """Otherwise the bits of a row's features would depend on the other rows of its block."""
    scaler = Scaler(*RANGE)
    for rows in (np.zeros((2, 2), np.uint8), np.full((2, 2), 90, np.uint8)):
        assert Cleaning(scaler).cleaned(rows) is rows
        assert Cleaning(scaler, clips_drift=True).filled(rows).dtype == "f4"


def test_indicators_keep_their_values_in_any_scaling():
    rows = np.array([[np.nan, 4], [1, 3]], np.float32)
    of_range = Scaler(*RANGE, fill=np.array([0.25, 3.5]))
    for plain in (of_range, replace(of_range, center=np.array([1.0, 2.0]), factor=np.array([0.5, 0]))):
        scaler = plain.with_indicators(np.array([0]))
        x = scaler.transform(rows)
        assert x[:, 2].tolist() == [1, 0]
        np.testing.assert_array_equal(scaler.restore(x), plain.restore(plain.transform(rows)))
        for name in ("minimum", "maximum", "center", "factor", "indicators"):
            np.testing.assert_array_equal(getattr(scaler.without_indicators(), name), getattr(plain, name))
