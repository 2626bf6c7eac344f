"""Hints about rows that other settings would suit better, from the sample of a scan."""

from __future__ import annotations

import numpy as np

_MIN_ROWS = 20  # fewer sampled rows say little
_SENTINELS = (-9.0, -99.0, -999.0, -9999.0, -99999.0, 999.0, 9999.0, 99999.0, 999999.0)
_MIN_SENTINELS = 3  # sampled rows
_FAR = 3.0  # distance from the other values, in widths of their range
_MOST_VALUES = 2**20  # values to examine
_LEAST_INPUTS = 3  # columns; from fewer there is only one feature
_NARROW = 40  # columns; docs/performance.md compares features of narrow tables with their columns


def hints_of(sample: np.ndarray, n_good: int, n_bad: int) -> tuple[str, ...]:
    """Return sentences about rows that other settings would suit better.

    `sample` (n, n_inputs), float64, has been taken from `n_good` rows after their preparation, with NaN for missing
    values; `n_bad` rows were left out. If these are most, the only sentence says which rows were not examined.
    """
    step = max(1, sample.size // _MOST_VALUES)
    rows = sample[::step]
    if n_bad > n_good and len(rows):
        return (
            f"{n_bad} of {n_good + n_bad} rows are bad (with NaN or Inf, for example) and were not examined. No "
            f"settings are suggested, because the other {n_good} rows may differ from them",
        )
    if len(rows) < _MIN_ROWS:
        return ()
    with np.errstate(over="ignore", invalid="ignore"):  # of very large values
        hints = (_sentinels(rows), _width(rows))
    return tuple(hint for hint in hints if hint)


def _width(rows: np.ndarray) -> str:
    """Return a hint about rows with too few columns to compress."""
    n_inputs = rows.shape[1]
    if n_inputs >= _NARROW or n_inputs < _LEAST_INPUTS:
        return ""
    return (
        f"the rows have only {n_inputs} columns: a classifier may do better on the columns themselves, on wide "
        f"features (--output-layer hidden), or on more features (up to --n-features {n_inputs - 1})"
    )


def _sentinels(rows: np.ndarray) -> str:
    """Return a hint about values like -999 that are far from the other values of their column."""
    for value in _SENTINELS:
        columns = [column for column, values in enumerate(rows.T) if _is_sentinel(values, value)]
        if columns:
            return (
                f"the value {value:g} is far from the others in {len(columns)} columns, and may mark missing values: "
                f"--missing-value {value:g} --impute median replaces it"
            )
    return ""


def _is_sentinel(values: np.ndarray, value: float) -> bool:
    is_value = values == value
    if is_value.sum() < _MIN_SENTINELS:
        return False
    others = values[~is_value & ~np.isnan(values)]
    if len(others) < _MIN_SENTINELS:
        return False
    low = others.min()
    high = others.max()
    distance = low - value if value < low else value - high
    return bool(distance > _FAR * (high - low))
