"""Sample of the rows, and statistics of the sampled columns.

The rows are divided into strata of `stride` consecutive rows. The sample contains one row of each stratum. The position
of the row depends only on the number of the stratum, so the sample does not depend on blocks or threads. It covers the
whole data set even if neighbouring rows are similar. If the stride is 1, the sample contains all rows.
"""

from __future__ import annotations

import numpy as np

from shardpress.model.scaler import Scaler

SAMPLED_VALUES = 2**22  # values (32 MiB) in a sample; a merge of two halves takes twice the memory
INNER = 0.1  # lower quantile of the central values of a column; the upper one is 1 - INNER

_OUTER = 0.001  # fraction of each column's values that are outliers at either end
_SORTED_VALUES = 2**18  # number of values to copy and sort at once
_LEAST_ROWS = 32  # smallest number of sampled rows, for any number of columns


def stride_of(n_rows: int, n_inputs: int, n_values: int) -> int:
    """Return the stratum size for which a sample of `n_rows` rows has about `n_values` values at most."""
    n_sampled = max(_LEAST_ROWS, n_values // n_inputs)
    return max(1, -(-n_rows // n_sampled))


def sample_positions(first: int, n: int, stride: int) -> np.ndarray:
    """Return the sorted positions (int64, from 0) of the sampled rows among `n` rows that start at number `first`."""
    strata = np.arange(first // stride, -(-(first + n) // stride))
    numbers = strata * stride + (_hash(strata) % np.uint64(stride)).astype(np.int64)
    return numbers[(numbers >= first) & (numbers < first + n)] - first


def _hash(numbers: np.ndarray) -> np.ndarray:
    """Return a uint64 hash of each number. It is SplitMix64 (Steele, Lea and Flood 2014) with seed 0."""
    z = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def quantiles(sample: np.ndarray, q: float) -> np.ndarray:
    """Return the quantiles `q` and 1 - `q` of each column (2, n_inputs), float64; NaN for columns without values.

    They are the results of ``np.quantile`` with the methods ``lower`` and ``higher``. NaN in the sample is ignored.
    """
    if not len(sample):
        return np.full((2, sample.shape[1]), np.nan)
    n_values = (~np.isnan(sample)).sum(axis=0)
    last = np.maximum(0, n_values - 1)
    low = np.floor(q * last).astype(np.int64)
    return _values_at(sample, np.stack([low, last - low]))


def _values_at(sample: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Sort each column, and return the values at `positions` (n, n_inputs). Process some columns at a time."""
    size = max(1, _SORTED_VALUES // len(sample))
    values = []
    for start in range(0, sample.shape[1], size):
        columns = slice(start, start + size)
        # NumPy sorts NaN after all numbers.
        in_order = np.sort(sample[:, columns], axis=0)
        values.append(np.take_along_axis(in_order, positions[:, columns], axis=0))
    return np.concatenate(values, axis=1)


def means(sample: np.ndarray, scaler: Scaler) -> np.ndarray:
    """Return the mean of each column's clipped values, shape (n_inputs,). It is NaN for columns without values."""
    n_inputs = sample.shape[1]
    total = np.zeros(n_inputs)
    n = np.zeros(n_inputs, dtype=np.int64)
    size = max(1, _SORTED_VALUES // n_inputs)
    with np.errstate(over="ignore", invalid="ignore"):  # a range may overflow float64; it is refused later
        for start in range(0, len(sample), size):
            values = np.clip(sample[start : start + size], scaler.minimum, scaler.maximum)
            n += (~np.isnan(values)).sum(axis=0)
            # Add scaled values, so that no sum overflows.
            total += np.nansum((values - scaler.minimum) * scaler.scale, axis=0)
        scaled_means = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
        return scaler.minimum + scaled_means * (scaler.maximum - scaler.minimum)


def moments(sample: np.ndarray, scaler: Scaler) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each column without outliers, both (n_inputs,), float64.

    Outliers are winsorized, unless the other values are equal: the outermost thousandth of the values at either end,
    but at least one value, is replaced by the next value. Otherwise a single row of a small sample could determine the
    result. A column that varies has a deviation above 0: if its values in the sample are equal, the deviation is the
    width of the range.
    """
    mean = np.zeros(sample.shape[1])
    deviation = np.zeros(sample.shape[1])
    size = max(1, _SORTED_VALUES // max(1, len(sample)))
    for start in range(0, sample.shape[1], size):
        columns = slice(start, start + size)
        values = sample[:, columns]
        ranges = Scaler(scaler.minimum[columns], scaler.maximum[columns])
        if len(values):
            low, high = _inner_bounds(values)
            mean[columns], deviation[columns] = _moments(np.clip(values, low, high), ranges)
            plain_mean, plain_deviation = _moments(values, ranges)
            # If nearly all values are equal, rounding errors can leave a deviation above 0.
            is_rare = (low == high) | (deviation[columns] == 0)
            mean[columns][is_rare] = plain_mean[is_rare]
            deviation[columns][is_rare] = plain_deviation[is_rare]
    deviation[deviation == 0] = 1
    width = scaler.maximum - scaler.minimum
    return scaler.minimum + mean * width, deviation * width


def _inner_bounds(values: np.ndarray) -> np.ndarray:
    """Return the range (2, n_columns) of the values without the outermost thousandth at either end, at least one."""
    return quantiles(values, max(_OUTER, 1.5 / len(values)))


def _moments(values: np.ndarray, scaler: Scaler) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each scaled column; 0 for columns without values. Ignore NaN."""
    n = np.maximum(1, (~np.isnan(values)).sum(axis=0))
    with np.errstate(over="ignore", invalid="ignore"):  # a range may overflow float64; it is refused later
        scaled = (np.clip(values, scaler.minimum, scaler.maximum) - scaler.minimum) * scaler.scale
        mean = np.nansum(scaled, axis=0) / n
        return mean, np.sqrt(np.nansum((scaled - mean) ** 2, axis=0) / n)
