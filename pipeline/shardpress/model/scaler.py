"""Scaling of columns with equal results on the device and in NumPy, cleaning of rows, and detection of bad entries."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scaler:
    """Affine scaling of every input of the network: ``x = (r - shift) * scale``. Constant columns become 0.

    The inputs are the columns of the rows. If there are missing indicators, they follow the columns: each is 1 where
    the value of a column is missing, and 0 elsewhere.

    By default, each column's range is scaled to [0, 1]. scikit-learn computes ``r * scale + offset`` instead, which
    loses digits in columns with values far from zero.

    """

    minimum: np.ndarray  # (n_inputs,), float64, in the training rows; 0 for an indicator
    maximum: np.ndarray  # (n_inputs,), float64; 1 for an indicator
    fill: np.ndarray | None = None  # (n_columns,), float64, within the range. None if missing values make a row bad
    clips: bool = False  # True if values outside the range are clipped
    # Shift and scale of each input (n_inputs,), float64, which replace those of the range; 0 and 1 for an indicator.
    center: np.ndarray | None = None
    factor: np.ndarray | None = None  # 0 for constant columns
    indicators: np.ndarray | None = None  # int64, sorted numbers of the columns that have one

    @property
    def n_inputs(self) -> int:
        """Number of columns and indicators."""
        return len(self.minimum)

    @property
    def n_columns(self) -> int:
        return self.n_inputs if self.indicators is None else self.n_inputs - len(self.indicators)

    def with_indicators(self, indicators: np.ndarray | None) -> Scaler:
        """Return a scaler with an indicator of each of these columns. `self` must have no indicators."""
        if indicators is None:
            return self
        zeros = np.zeros(len(indicators))
        ones = np.ones(len(indicators))
        center = self.center
        factor = self.factor
        if center is not None and factor is not None:
            center = np.concatenate([center, zeros])
            factor = np.concatenate([factor, ones])
        return replace(
            self,
            minimum=np.concatenate([self.minimum, zeros]),
            maximum=np.concatenate([self.maximum, ones]),
            center=center,
            factor=factor,
            indicators=indicators,
        )

    def without_indicators(self) -> Scaler:
        if self.indicators is None:
            return self
        n = self.n_columns
        return replace(
            self,
            minimum=self.minimum[:n],
            maximum=self.maximum[:n],
            center=None if self.center is None else self.center[:n],
            factor=None if self.factor is None else self.factor[:n],
            indicators=None,
        )

    @property
    def scale_setting(self) -> str:
        """Value of the setting ``scale`` that gives this scaling, see `shardpress.scan.scaling.scaled_as`."""
        if self.center is None or self.factor is None:
            return "range"
        n = self.n_columns
        varies = self.factor[:n] != 0
        factors = np.unique(self.factor[:n][varies])
        if len(factors) > 1:
            return "std"
        return "common" if self.center[:n].any() else "none"

    @property
    def cleans(self) -> bool:
        """True if values are filled in or clipped before the scaling."""
        return self.clips or self.fill is not None

    @property
    def shift(self) -> np.ndarray:
        """Value of each input that becomes 0: (n_inputs,), float64."""
        return self.minimum if self.center is None else self.center

    @property
    def scale(self) -> np.ndarray:
        """Factor of each input: (n_inputs,), float64. It is 0 for constant columns."""
        if self.factor is not None:
            return self.factor
        # Use half the range, because a range from -1.7e308 to 1.7e308 overflows. The reciprocal of a subnormal range
        # overflows as well.
        half = self.maximum / 2 - self.minimum / 2
        return np.divide(0.5, half, out=np.zeros_like(half), where=half >= np.finfo(np.float64).tiny)

    def arrays(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Return `shift` and `scale` in the dtype in which rows of `dtype` are scaled.

        The dtype is float32 if it holds rows, ranges and fill values exactly and scales as normal numbers. Otherwise it
        is float64.
        """
        scale = self.scale
        is_narrow = np.can_cast(dtype, np.float32) and self._fits_float32(scale)
        working = np.float32 if is_narrow else np.float64
        return self.shift.astype(working), scale.astype(working)

    def _fits_float32(self, scale: np.ndarray) -> bool:
        """Return whether float32 holds all values of the columns exactly, and ranges and scales as normal numbers."""
        varies = scale > 0
        values = [self.minimum, self.maximum, self.shift]
        if self.fill is not None:
            values.append(self.fill)
        is_exact = all(_are_exact(np.dtype(np.float32), array) for array in values)
        with np.errstate(over="ignore", under="ignore"):
            scales = scale.astype(np.float32)[varies]
            ranges = (self.maximum - self.minimum).astype(np.float32)[varies]
        # Subnormal numbers have fewer digits, and processors handle them slowly.
        return is_exact and _are_normal(scales) and _are_normal(ranges)

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Clean and scale rows (n_rows, n_columns) of any real dtype. Return float32 of shape (n_rows, n_inputs)."""
        return self.scaled(Cleaning(self).cleaned(rows))

    def scaled(self, rows: np.ndarray) -> np.ndarray:
        """Scale cleaned rows (n_rows, n_inputs) of any real dtype, and return them as float32.

        The result has the same bits as on the device, unless the device folds the scaling into ``W``.
        """
        shift, scale = self.arrays(rows.dtype)
        return ((rows.astype(shift.dtype) - shift) * scale).astype(np.float32)

    def restore(self, x: np.ndarray) -> np.ndarray:
        """Return unscaled rows (n_rows, n_columns), float64, for scaled rows (n_rows, n_inputs).

        Constant columns get their value.
        """
        columns = self.without_indicators()
        width = columns.maximum - columns.minimum
        if columns.factor is not None:
            width = np.divide(1, columns.factor, out=np.zeros_like(columns.factor), where=columns.factor > 0)
        return np.asarray(x[:, : self.n_columns] * width + columns.shift)


def _are_exact(dtype: np.dtype, values: np.ndarray) -> bool:
    """Return whether a dtype holds finite float64 values exactly."""
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return np.array_equal(values, values.astype(dtype))
    if dtype.kind == "b":
        return False
    limits = np.iinfo(dtype)
    # float64 holds all powers of two, but not the largest 64-bit integers.
    is_inside = (values >= float(limits.min)) & (values < float(limits.max + 1))
    return bool((is_inside & (values == np.rint(values))).all())


def _are_normal(values: np.ndarray) -> bool:
    """Return whether positive float32 numbers are normal numbers."""
    return bool(np.isfinite(values).all() and (values >= np.finfo(np.float32).tiny).all())


@dataclass(frozen=True)
class Cleaning:
    """Filling and clipping of rows before they are scaled, and their extension by missing indicators.

    The caller finds bad rows in the rows as they were read, because clipping also replaces Inf.
    """

    scaler: Scaler
    missing: float | None = None  # marks missing entries, in addition to NaN
    clips_drift: bool = False  # whether values outside the range are clipped although the model does not require it

    def dtype_of(self, dtype: np.dtype) -> np.dtype:
        """Return the dtype of cleaned rows, for rows of `dtype`.

        It is `dtype` itself if it holds the fill values and the limits exactly. Otherwise it is float32 or float64, so
        that equal values are replaced by equal values, whatever dtype stores them. It does not depend on the rows,
        because the bits of features can depend on the dtype.
        """
        new_values = [] if self.scaler.fill is None else [self.scaler.fill]
        if self._clips:
            new_values += [self.scaler.minimum, self.scaler.maximum]
        candidates = [dtype, *(np.dtype(wider) for wider in ("f4", "f8") if np.can_cast(dtype, wider))]
        for candidate in candidates:
            if all(_are_exact(candidate, values) for values in new_values):
                return candidate
        return np.dtype(np.float64)

    def cleaned(self, rows: np.ndarray, stored: str | None = None) -> np.ndarray:
        """Fill and clip rows (n_rows, n_columns), and append the indicators: (n_rows, n_inputs).

        The result has the dtype `dtype_of`, and is the same array if nothing changes. `stored` is the dtype in which a
        file stores the rows, and thus the value that marks missing entries.
        """
        return self.clipped(self.filled(rows, stored))

    def filled(self, rows: np.ndarray, stored: str | None = None) -> np.ndarray:
        """Return rows like `cleaned`, in the same dtype, but without clipping them."""
        fill = self.scaler.fill
        indicators = self.scaler.indicators
        dtype = self.dtype_of(rows.dtype)
        if fill is None:
            return rows.astype(dtype, copy=False)
        is_missing = missing_entries(rows, self.missing, stored)
        rows = rows.astype(dtype, copy=False)
        if is_missing.any():
            rows = np.where(is_missing, fill.astype(dtype), rows)
        if indicators is not None:
            rows = np.concatenate([rows, is_missing[:, indicators]], axis=1, dtype=dtype)
        return rows

    def clipped(self, filled: np.ndarray) -> np.ndarray:
        """Clip filled rows (n_rows, n_inputs) to the range. Return the same array if nothing changes."""
        if not self._clips:
            return filled
        low = self.scaler.minimum.astype(filled.dtype)
        high = self.scaler.maximum.astype(filled.dtype)
        if not ((filled < low).any() or (filled > high).any()):
            return filled
        # This takes half as long as np.clip, which compilers do not vectorize.
        clipped = np.maximum(filled, low)
        np.minimum(clipped, high, out=clipped)
        return clipped

    @property
    def _clips(self) -> bool:
        return self.clips_drift or self.scaler.clips


# -- bad entries -----------------------------------------------------------------------------------------------


def bad_rows(
    rows: np.ndarray, missing: float | None = None, stored: str | None = None, fills: bool = False
) -> np.ndarray:
    """Return the positions (int64) of the rows with bad entries."""
    return np.flatnonzero(bad_entries(rows, missing, stored, fills).any(axis=1))


def bad_entries(
    rows: np.ndarray, missing: float | None = None, stored: str | None = None, fills: bool = False
) -> np.ndarray:
    """Return a mask, in the shape of the rows, of bad entries: NaN, Inf, and the missing value as `stored` holds it.

    If missing values are filled in (`fills`), Inf is bad, and all entries of a row are bad if the row has no value.
    """
    if fills:
        return _unfillable_entries(rows, missing, stored)
    is_float = rows.dtype.kind == "f"
    if missing is None:
        return ~np.isfinite(rows) if is_float else np.zeros(rows.shape, dtype=bool)
    is_missing = missing_entries(rows, missing, stored)
    if is_float:
        return ~np.isfinite(rows) | is_missing
    return is_missing


def _unfillable_entries(rows: np.ndarray, missing: float | None, stored: str | None) -> np.ndarray:
    """Return a mask of the entries that are Inf, or are in a row without values."""
    is_empty = missing_entries(rows, missing, stored).all(axis=1, keepdims=True)
    if rows.dtype.kind == "f":
        return np.isinf(rows) | is_empty
    return np.broadcast_to(is_empty, rows.shape)


def missing_entries(rows: np.ndarray, missing: float | None = None, stored: str | None = None) -> np.ndarray:
    """Return a mask of the entries that are NaN, or equal to the missing value converted to the dtype `stored`."""
    value = None
    if missing is not None:
        value = _value_in(np.dtype(stored or rows.dtype), missing)
    is_float = rows.dtype.kind == "f"
    if value is None:
        return np.isnan(rows) if is_float else np.zeros(rows.shape, dtype=bool)
    is_value = rows == rows.dtype.type(value)
    if is_float:
        return np.isnan(rows) | is_value
    return is_value


def _value_in(dtype: np.dtype, missing: float) -> Any:
    """Convert the missing value to a dtype. Return None if the dtype cannot hold it."""
    if dtype.kind == "f":
        return _rounded_value(dtype, missing)
    low = 0
    high = 1
    if dtype.kind != "b":
        low = np.iinfo(dtype).min
        high = np.iinfo(dtype).max
    # Integer dtypes cannot hold fractions or values outside their range. For example, no uint8 file contains 255.5.
    if low <= missing <= high and missing == int(missing):
        return int(missing)
    return None


def _rounded_value(dtype: np.dtype, missing: float) -> Any:
    """Round the missing value to a float dtype, as in a file. For example, float32 does not hold -999.9 exactly.

    Return None if the value overflows to Inf or underflows to 0.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float64(missing).astype(dtype)
    if np.isfinite(rounded) and bool(rounded) == bool(missing):
        return rounded
    return None
