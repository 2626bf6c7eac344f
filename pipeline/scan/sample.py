"""A bounded sample of the rows, the same for any blocks and threads, and what it tells of each column.

One row is taken of each stratum of `stride` consecutive rows, wherever the stratum's number says: no block need know of
another one, and rows that resemble their neighbours in time are drawn from all over the data set. Where no row need be
left out, the stride is 1 and the sample is all of them.
"""

from __future__ import annotations

import numpy as np

from pipeline.scan.scaler import Scaler

__all__ = ["FEW", "INNER", "MANY", "between", "means", "sampled", "spread", "stride_of"]

FEW = 2**17  # values: 1 MiB, of which the spread of columns can be told
MANY = 2**22  # for what scales the rows: 32 MiB, and as much while two halves are put together

INNER = 0.1  # the inner values of a column are those between this quantile and the one as far from the other end

_OUTER = 0.001  # of a column's values, at either end, that do not count for its spread
_AT_ONCE = 2**18  # values that are copied to be sorted
_LEAST_ROWS = 32  # of a sample, however many columns they have


def stride_of(n_rows: int, n_inputs: int, n_values: int) -> int:
    """Of how many rows one is taken, so that a sample of `n_rows` rows holds about `n_values` values at most."""
    return max(1, -(-n_rows // max(_LEAST_ROWS, n_values // n_inputs)))


def sampled(first: int, n: int, stride: int) -> np.ndarray:
    """Which of the `n` rows from number `first` on belong to the sample: positions from 0, sorted, int64."""
    strata = np.arange(first // stride, -(-(first + n) // stride))
    numbers = strata * stride + (_mixed(strata) % np.uint64(stride)).astype(np.int64)
    return numbers[(numbers >= first) & (numbers < first + n)] - first


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A random number for each number, uint64: SplitMix64 (Steele, Lea and Flood 2014), whose seed is 0."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def between(sample: np.ndarray, q: float) -> np.ndarray:
    """The quantiles `q` and 1 - `q` of each column: values of the sample, the outer ones where they lie between two.

    That is what ``np.quantile`` calls ``lower`` and ``higher``.

    Parameters
    ----------
    sample : ndarray of shape (n, n_inputs), float64
        NaN counts for nothing.

    Returns
    -------
    ndarray of shape (2, n_inputs), float64
        NaN for columns without a value.
    """
    if not len(sample):
        return np.full((2, sample.shape[1]), np.nan)
    last = np.maximum(0, (~np.isnan(sample)).sum(axis=0) - 1)
    low = np.floor(q * last).astype(np.int64)
    places = np.stack([low, last - low])
    size = max(1, _AT_ONCE // len(sample))
    slabs = (slice(i, i + size) for i in range(0, sample.shape[1], size))
    # NaN is sorted behind all numbers.
    found = [np.take_along_axis(np.sort(sample[:, slab], axis=0), places[:, slab], axis=0) for slab in slabs]
    return np.concatenate(found, axis=1)


def means(sample: np.ndarray, scaler: Scaler) -> np.ndarray:
    """The mean of each column (n_inputs,), clipped to the range that it is scaled by; NaN for those without a value."""
    total = np.zeros(sample.shape[1])
    n = np.zeros(sample.shape[1], dtype=np.int64)
    size = max(1, _AT_ONCE // sample.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # of a range beyond float64, which is refused later
        for start in range(0, len(sample), size):
            values = np.clip(sample[start : start + size], scaler.minimum, scaler.maximum)
            n += (~np.isnan(values)).sum(axis=0)
            total += np.nansum((values - scaler.minimum) * scaler.scale, axis=0)  # scaled, so that no sum overflows
        share = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        return scaler.minimum + share * (scaler.maximum - scaler.minimum)


def spread(sample: np.ndarray, scaler: Scaler) -> np.ndarray:
    """The standard deviation of each scaled column, but for outliers: shape (n_inputs,), float64.

    The outermost thousandth at either end, one value at least, counts as the next one to it (Winsor's rule): else of a
    few rows one would make all the difference.
    """
    few = sample[:: max(1, sample.size // FEW)]
    if not len(few):
        return np.full(sample.shape[1], np.nan)
    values = np.clip(few, *between(few, max(_OUTER, 1.5 / len(few))))
    with np.errstate(over="ignore", invalid="ignore"):  # of a range beyond float64, which is refused later
        x = (np.clip(values, scaler.minimum, scaler.maximum) - scaler.minimum) * scaler.scale
        n = np.maximum(1, (~np.isnan(x)).sum(axis=0))
        mean = np.nansum(x, axis=0) / n
        return np.asarray(np.sqrt(np.nansum((x - mean) ** 2, axis=0) / n))
