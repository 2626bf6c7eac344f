"""A bounded sample of the rows, the same for any blocks and threads, and statistics of its columns.

The rows are divided into strata of `stride` consecutive rows. The sample contains one row of each stratum, at a
position that depends only on the stratum's number. Blocks are therefore sampled independently, and the sample covers
the whole data set even if rows resemble their neighbours. With a stride of 1 the sample contains all rows.
"""

from __future__ import annotations

import numpy as np

from pipeline.scan.scaler import Scaler

__all__ = ["INNER", "LARGE_SAMPLE", "SMALL_SAMPLE", "means", "quantiles", "sample_positions", "spread", "stride_of"]

SMALL_SAMPLE = 2**17
"""Values of a sample (1 MiB) that suffices for the spread of columns."""
LARGE_SAMPLE = 2**22
"""Values of a sample (32 MiB) that determines the scaling; a merge of two halves takes twice the memory."""

INNER = 0.1
"""Lower quantile of the inner values of a column; the upper one is 1 - INNER."""

_OUTER = 0.001  # share of a column's values that its spread excludes at either end
_SORTED_VALUES = 2**18  # values that are copied and sorted at once
_LEAST_ROWS = 32  # rows of a sample, whatever the number of columns


def stride_of(n_rows: int, n_inputs: int, n_values: int) -> int:
    """Return the size of a stratum with which a sample of `n_rows` rows holds at most about `n_values` values."""
    n_sampled = max(_LEAST_ROWS, n_values // n_inputs)
    return max(1, -(-n_rows // n_sampled))


def sample_positions(first: int, n: int, stride: int) -> np.ndarray:
    """Return which of the `n` rows from number `first` on belong to the sample: positions from 0, sorted, int64."""
    strata = np.arange(first // stride, -(-(first + n) // stride))
    numbers = strata * stride + (_hash(strata) % np.uint64(stride)).astype(np.int64)
    return numbers[(numbers >= first) & (numbers < first + n)] - first


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Return a hash of each number, uint64: SplitMix64 (Steele, Lea and Flood 2014) with seed 0."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def quantiles(sample: np.ndarray, q: float) -> np.ndarray:
    """Return the quantiles `q` and 1 - `q` of each column, as ``np.quantile`` with methods ``lower`` and ``higher``.

    Parameters
    ----------
    sample : ndarray of shape (n, n_inputs), float64
        NaN is ignored.

    Returns
    -------
    ndarray of shape (2, n_inputs), float64
        NaN for columns without a value.
    """
    if not len(sample):
        return np.full((2, sample.shape[1]), np.nan)
    n_values = (~np.isnan(sample)).sum(axis=0)
    last = np.maximum(0, n_values - 1)
    low = np.floor(q * last).astype(np.int64)
    return _values_at(sample, np.stack([low, last - low]))


def _values_at(sample: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return the values at some positions (n, n_inputs) of each column in ascending order, some columns at a time."""
    size = max(1, _SORTED_VALUES // len(sample))
    found = []
    for start in range(0, sample.shape[1], size):
        columns = slice(start, start + size)
        # NaN is sorted after all numbers.
        in_order = np.sort(sample[:, columns], axis=0)
        found.append(np.take_along_axis(in_order, positions[:, columns], axis=0))
    return np.concatenate(found, axis=1)


def means(sample: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Return the mean of each column (n_inputs,), clipped to its range; NaN for columns without values."""
    n_inputs = sample.shape[1]
    total = np.zeros(n_inputs)
    n = np.zeros(n_inputs, dtype=np.int64)
    size = max(1, _SORTED_VALUES // n_inputs)
    with np.errstate(over="ignore", invalid="ignore"):  # a range may overflow float64; it is refused later
        for start in range(0, len(sample), size):
            values = np.clip(sample[start : start + size], scaler.minimum, scaler.maximum)
            n += (~np.isnan(values)).sum(axis=0)
            # The values are scaled, so that no sum overflows.
            total += np.nansum((values - scaler.minimum) * scaler.scale, axis=0)
        scaled_means = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        return scaler.minimum + scaled_means * (scaler.maximum - scaler.minimum)


def spread(sample: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Return the standard deviation of each scaled column without outliers: shape (n_inputs,), float64.

    The outermost thousandth at either end, at least one value, is replaced by the next value (winsorizing). Otherwise
    a single row of a small sample could determine the result.
    """
    step = max(1, sample.size // SMALL_SAMPLE)
    subset = sample[::step]
    if not len(subset):
        return np.full(sample.shape[1], np.nan)
    low, high = quantiles(subset, max(_OUTER, 1.5 / len(subset)))
    values = np.clip(subset, low, high)
    with np.errstate(over="ignore", invalid="ignore"):  # a range may overflow float64; it is refused later
        scaled = (np.clip(values, scaler.minimum, scaler.maximum) - scaler.minimum) * scaler.scale
        return _standard_deviation(scaled)


def _standard_deviation(values: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each column, NaN ignored; 0 for columns without values."""
    n = np.maximum(1, (~np.isnan(values)).sum(axis=0))
    mean = np.nansum(values, axis=0) / n
    return np.asarray(np.sqrt(np.nansum((values - mean) ** 2, axis=0) / n))
