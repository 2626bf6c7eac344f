"""Hints about rows that other settings would suit better, from the sample of a scan."""

from __future__ import annotations

import numpy as np

_MIN_ROWS = 20  # fewer sampled rows say little
_MIN_COUNTED = 50  # columns; narrower tables of whole numbers are rarely counts of many kinds
_MIN_ZEROS = 0.5  # share of zeros among the counts of single cells, words or reads
_MAX_SATURATED = 0.05  # share of columns that reach the largest value; pixels do, counts do not
_MIN_CODED = 64  # largest whole number; counts up to fewer have few different values
_LARGE = 0.05  # share of a column's values above 0; in tables of counts, less than 0.005 exceed half of the largest
_MIN_COLUMNS = 0.25  # share of columns with large values; bits that are rarely set leave some columns without them
_SENTINELS = (-9.0, -99.0, -999.0, -9999.0, -99999.0, 999.0, 9999.0, 99999.0, 999999.0)
_MIN_SENTINELS = 3  # sampled rows
_FAR = 3.0  # distance from the other values, in widths of their range
_MIN_CHANNELS = 100  # columns of a spectrum
_SMOOTH = 0.9  # correlation of neighbouring channels
_BRIGHTER = 2.0  # ratio between the medians of bright and of faint rows
_MOST = 0.9  # share of rows
_MOST_VALUES = 2**20  # values to examine
# Largest distance from the median of a column, in standard deviations, that is a heavy tail. In 10 public tables, at
# most a quarter of the columns exceed it; in a table of word frequencies almost all do.
_HEAVY = 10.0
_MIN_HEAVY = 0.5  # share of columns
_SHORTER = 0.7  # ratio of the median tails after and before a logarithm that helps
_LEAST_INPUTS = 3  # columns; from fewer there is only one feature
_NARROW = 40  # columns; docs/performance.md compares features of narrow tables with their columns


def hints_of(sample: np.ndarray, n_rows: int, n_good: int, n_bad: int, are_flat: bool) -> tuple[str, ...]:
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
        # The columns of rows of higher rank are not channels of one spectrum or counts of one kind.
        form = _form(rows) if are_flat else ""
        hints = (_sentinels(rows), form, _width(rows, n_rows))
    return tuple(hint for hint in hints if hint)


def _form(rows: np.ndarray) -> str:
    if _are_spectra(rows):
        return "the rows look like spectra of different brightness: --row-scale median usually gives better features"
    if _are_codes(rows):
        return ""
    if _are_counts(rows):
        zeros = np.mean(rows == 0)
        return (
            f"the rows look like counts (whole numbers, {100 * zeros:.0f} % zeros): --row-scale total --transform "
            "log1p usually gives better features"
        )
    if _have_heavy_tails(rows):
        return (
            "most columns have a few values that are far larger than the others: --transform log1p usually gives "
            "better features"
        )
    return ""


def _width(rows: np.ndarray, n_rows: int) -> str:
    """Return a hint about rows with too few columns to compress, or too few rows to hold some out."""
    n_inputs = rows.shape[1]
    if n_rows < n_inputs:
        # Features of rows that were not trained on vary less, so that new rows resemble them more than the others.
        return (
            f"there are fewer rows ({n_rows}) than columns ({n_inputs}): --validation-fraction 0 trains on all rows, "
            "and usually gives better features for nearest neighbours"
        )
    if n_inputs >= _NARROW or n_inputs < _LEAST_INPUTS:
        return ""
    return (
        f"the rows have only {n_inputs} columns: a classifier may do better on the columns themselves, on wide "
        f"features (--output-layer hidden), or on more features (up to --n-features {n_inputs - 1})"
    )


def _are_codes(rows: np.ndarray) -> bool:
    """Return whether large whole numbers are about as frequent as small ones, as in packed bits and uniform bytes."""
    if not _are_whole(rows):
        return False
    largest = np.nanmax(rows)
    if largest < _MIN_CODED:
        return False
    n_large = (rows >= largest / 2).sum(axis=0)
    n_positive = (rows > 0).sum(axis=0)
    return bool(np.mean(n_large > _LARGE * n_positive) >= _MIN_COLUMNS)


def _are_whole(rows: np.ndarray) -> bool:
    """Return whether the values are whole numbers from 0, or NaN."""
    present = rows[~np.isnan(rows)]
    return bool(present.size and present.min() >= 0 and np.array_equal(present, np.rint(present)))


def _are_counts(rows: np.ndarray) -> bool:
    if rows.shape[1] < _MIN_COUNTED or not _are_whole(rows):
        return False
    is_present = ~np.isnan(rows)
    if np.mean(rows[is_present] == 0) < _MIN_ZEROS:
        return False
    largest = rows.max(axis=0, where=is_present, initial=0)
    return bool(np.mean(largest == largest.max()) <= _MAX_SATURATED)


def _are_spectra(rows: np.ndarray) -> bool:
    """Return whether neighbouring columns are similar, and positive rows differ in brightness."""
    if rows.shape[1] < _MIN_CHANNELS or np.isnan(rows).any():
        return False
    medians = np.median(rows, axis=1)
    low, high = np.quantile(medians, (1 - _MOST, _MOST))
    if low <= 0 or high < _BRIGHTER * low:
        return False
    shapes = rows / np.where(medians > 0, medians, 1)[:, None]
    similarities = [_correlation(shapes[:, i], shapes[:, i + 1]) for i in range(shapes.shape[1] - 1)]
    return bool(np.median(similarities) >= _SMOOTH)


def _have_heavy_tails(rows: np.ndarray) -> bool:
    """Return whether most columns have rare values far from the others, which a logarithm would bring closer."""
    tails = _tails(rows)
    shorter = _tails(np.log1p(np.abs(rows)) * np.sign(rows))
    return bool(np.mean(tails > _HEAVY) >= _MIN_HEAVY and np.median(shorter) <= _SHORTER * np.median(tails))


def _tails(rows: np.ndarray) -> np.ndarray:
    """Return the largest distance of a value from the median of its column, in standard deviations (n_inputs,)."""
    tails = np.zeros(rows.shape[1])
    for column, values in enumerate(rows.T):
        present = values[~np.isnan(values)]
        deviation = present.std() if len(present) >= _MIN_ROWS else 0.0
        if np.isfinite(deviation) and deviation > 0:
            tails[column] = np.abs(present - np.median(present)).max() / deviation
    return tails


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    left = left - left.mean()
    right = right - right.mean()
    size = np.sqrt(np.square(left).sum() * np.square(right).sum())
    return float(left @ right / size) if size > 0 else 0.0


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
