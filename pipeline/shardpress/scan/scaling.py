"""The scaling of columns, computed from the sample of a scan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shardpress.model.scaler import Scaler

# Standard deviation of scaled columns. It is about that of values spread evenly over [0, 1], so that the defaults of
# the training fit all scalings.
_DEVIATION = 0.25
# Largest width of a range in standard deviations. For a wider range, a larger deviation is assumed, because training
# could diverge on very large values.
_LARGEST = 20.0
# A column that uses its range has a standard deviation of at least this share of it: 0.29 if its values are spread
# evenly, 0.1 or more if they are normal. With the ranges of counts and of other heavy tails, ordinary values differ
# little. docs/performance.md has the measurements.
_USES_RANGE = 0.1
_SIMILAR = 5.0  # ratio of the deviations of columns of one kind, such as the channels of a spectrum
_MOST = 0.9  # share of columns
_CLOSE = 0.01  # tolerated error of a center in standard deviations, if float32 holds the rounded center


def scaled_as(scale: str, scaler: Scaler, mean: np.ndarray, deviation: np.ndarray) -> Scaler:
    """Return the scaler for a setting `scale`, from the ranges of a scaler and from the columns' `moments`.

    ``range`` scales each column's range to [0, 1]. ``std`` scales each column to mean 0 and a standard deviation of
    1/4. ``common`` subtracts the means, and multiplies all columns by one factor, so that the root mean square of their
    standard deviations is 1/4. ``none`` leaves the columns as they are.
    """
    is_constant = scaler.minimum == scaler.maximum
    if scale == "range" or is_constant.all():
        return scaler
    if scale == "none":
        center = np.zeros(len(scaler.minimum))
        factor = np.where(is_constant, 0.0, 1.0)
        return replace(scaler, center=center, factor=factor)
    deviation = np.maximum(deviation, (scaler.maximum - scaler.minimum) / _LARGEST)
    if scale == "common":
        deviation = np.where(is_constant, deviation, _root_mean_square(deviation[~is_constant]))
    is_usable = ~is_constant & (deviation >= np.finfo(np.float64).tiny)  # otherwise the factor could overflow
    factor = np.divide(_DEVIATION, deviation, out=np.zeros_like(deviation), where=is_usable)
    return replace(scaler, center=_short(mean, deviation), factor=factor)


def chosen_scale(scaler: Scaler, deviation: np.ndarray, sample: np.ndarray) -> str:
    """Return the scaling of `scaled_as` that suits columns with these deviations and sampled rows (n, n_inputs).

    It is ``range`` if the median column uses its range. Otherwise it is ``common`` for columns of one kind, like
    spectra, whose differences in size are information, and ``std`` for counts and for other columns. But if `scaled_as`
    would assume a larger deviation for almost all columns other than counts, ``std`` would only stretch the ranges, so
    it is ``range``.
    """
    width = scaler.maximum - scaler.minimum
    varies = width > 0
    if not varies.any():
        return "range"
    if np.median(deviation[varies] / width[varies]) >= _USES_RANGE:
        return "range"
    if _are_counts(scaler.minimum[varies], sample):
        return "std"
    low, high = np.quantile(deviation[varies], (1 - _MOST, _MOST))
    if high <= _SIMILAR * low:
        return "common"
    is_wide = width[varies] > _LARGEST * deviation[varies]
    return "range" if np.mean(is_wide) >= _MOST else "std"


def _are_counts(minimum: np.ndarray, sample: np.ndarray) -> bool:
    """Return whether nearly all columns have the minimum 0, and all sampled values are whole numbers."""
    if np.mean(minimum == 0) < _MOST:
        return False
    return bool(np.array_equal(sample, np.rint(sample), equal_nan=True))


def _root_mean_square(values: np.ndarray) -> np.float64:
    largest = values.max()  # squares of very large or small values would overflow or vanish
    return np.float64(largest * np.sqrt(np.square(values / largest).mean()))


def _short(center: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Round centers to float32 where this hardly matters: rows of float32 are then scaled in float32."""
    with np.errstate(over="ignore"):
        rounded = center.astype(np.float32).astype(np.float64)
    is_close = np.abs(rounded - center) <= _CLOSE * deviation
    return np.where(is_close, rounded, center)
