"""Min-max scaling, the same on the device and in NumPy; search for bad entries, and cleaning of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pipeline.shards.shard import Block

__all__ = ["Cleaning", "Scaler", "bad_entries", "bad_rows", "missing_entries"]


@dataclass(frozen=True)
class Scaler:
    """Min-max scaling of every column to [0, 1]: ``x = (r - minimum) * scale``; constant columns become 0.

    scikit-learn adds an offset to a product instead, which loses the digits of columns far from zero.

    Attributes
    ----------
    minimum, maximum : ndarray of shape (n_inputs,), float64
        Each column's range in the training rows.
    fill : ndarray of shape (n_inputs,), float64, or None
        Replacement of missing values in each column, within its range. None if rows that miss a value are bad.
    clips : bool
        Whether values outside the range are moved to its edge.
    """

    minimum: np.ndarray
    maximum: np.ndarray
    fill: np.ndarray | None = None
    clips: bool = False

    @property
    def cleans(self) -> bool:
        """True if rows may have to be filled or clipped before they are scaled."""
        return self.clips or self.fill is not None

    @property
    def scale(self) -> np.ndarray:
        """Reciprocal of each column's range, 0 for a range of 0: shape (n_inputs,), float64."""
        # Half of the range is used, since a range from -1.7e308 to 1.7e308 overflows. The reciprocal of a subnormal
        # range also overflows.
        half = self.maximum / 2 - self.minimum / 2
        return np.divide(0.5, half, out=np.zeros_like(half), where=half >= np.finfo(np.float64).tiny)

    def arrays(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Return minimum and scale in the dtype in which rows of `dtype` are scaled.

        That is float32 if it holds the rows, the range and the scale exactly enough; otherwise float64.
        """
        scale = self.scale
        is_narrow = np.can_cast(dtype, np.float32) and self._fits_float32(scale)
        working = np.float32 if is_narrow else np.float64
        return self.minimum.astype(working), scale.astype(working)

    def _fits_float32(self, scale: np.ndarray) -> bool:
        """Return whether float32 holds minimum and maximum exactly, and ranges and scales as normal numbers."""
        varies = scale > 0
        with np.errstate(over="ignore", under="ignore"):
            is_exact = _are_exact_in_float32(self.minimum) and _are_exact_in_float32(self.maximum)
            scales = scale.astype(np.float32)[varies]
            ranges = (self.maximum - self.minimum).astype(np.float32)[varies]
        # Subnormal numbers have lost digits, and processors are slow with them.
        return is_exact and _are_normal(scales) and _are_normal(ranges)

    def edges(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Return the range in the rows' own dtype, so that values inside it keep every bit; integers round inwards."""
        return _to_dtype(self.minimum, dtype, math.ceil), _to_dtype(self.maximum, dtype, math.floor)

    def cleaned(self, rows: np.ndarray, to_fill: np.ndarray | None = None) -> np.ndarray:
        """Return rows (n_rows, n_inputs), filled and clipped in their own dtype; the same array if nothing changes.

        Inf is clipped as well, since bad rows have been found before, when the rows were read.

        Parameters
        ----------
        missed : ndarray of shape (n_rows, n_inputs), bool, optional
            The entries to fill in; by default, those that are NaN.
        """
        if self.fill is not None:
            is_missing = np.isnan(rows) if to_fill is None else to_fill
            if is_missing.any():
                rows = np.where(is_missing, _to_dtype(self.fill, rows.dtype, round), rows)
        if self.clips:
            return self._clipped(rows)
        return rows

    def _clipped(self, rows: np.ndarray) -> np.ndarray:
        low, high = self.edges(rows.dtype)
        if not ((rows < low).any() or (rows > high).any()):
            return rows
        # This takes half the time of np.clip, which compilers do not vectorize.
        clipped = np.maximum(rows, low)
        np.minimum(clipped, high, out=clipped)
        return clipped

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n_rows, n_inputs) of any real dtype, cleaned and scaled: float32.

        The bits are those of the device, if it does not fold the scaling into ``W``.
        """
        rows = self.cleaned(rows)
        minimum, scale = self.arrays(rows.dtype)
        return ((rows.astype(minimum.dtype) - minimum) * scale).astype(np.float32)


def _are_exact_in_float32(values: np.ndarray) -> bool:
    return np.array_equal(values, values.astype(np.float32))


def _are_normal(values: np.ndarray) -> bool:
    """Return whether all of these positive float32 values are finite and not subnormal."""
    return bool(np.isfinite(values).all() and (values >= np.finfo(np.float32).tiny).all())


@dataclass(frozen=True)
class Cleaning:
    """Filling of missing values, and clipping, of rows that have been read.

    Attributes
    ----------
    scaler : Scaler
        The fill values and the range.
    missing : float or None
        A value that marks missing values, as NaN does.
    """

    scaler: Scaler
    missing: float | None = None

    def cleaned(self, block: Block, rows: np.ndarray) -> np.ndarray:
        """Return a block's rows (len(block), n_inputs), in their own dtype; the same array if nothing changes."""
        to_fill = None
        if self.scaler.fill is not None and self.missing is not None:
            to_fill = missing_entries(rows, self.missing, block.shard.stored_dtype)
        return self.scaler.cleaned(rows, to_fill)


def _to_dtype(values: np.ndarray, dtype: np.dtype, to_whole: Callable[[float], int]) -> np.ndarray:
    """Return float64 values in a dtype; for integers, they are rounded by `to_whole` and limited to its range."""
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(dtype)
    # Use Python's integers, since float64 does not hold the largest integer of 64 bits.
    limits = np.iinfo(dtype)
    whole = [min(max(to_whole(value), limits.min), limits.max) for value in values.tolist()]
    return np.array(whole, dtype=dtype)


# -- bad entries -----------------------------------------------------------------------------------------------


def bad_rows(
    rows: np.ndarray, missing: float | None = None, stored: str | None = None, fills: bool = False
) -> np.ndarray:
    """Return the positions, int64, of the rows that hold bad entries."""
    return np.flatnonzero(bad_entries(rows, missing, stored, fills).any(axis=1))


def bad_entries(
    rows: np.ndarray, missing: float | None = None, stored: str | None = None, fills: bool = False
) -> np.ndarray:
    """Return which entries make a row bad: NaN, Inf, or the missing value as the dtype `stored` has it; bool.

    If missing values are filled in (`fills`): Inf, and all entries of a row without any value.
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
    """Return which entries are Inf, or in a row without any value."""
    is_empty = missing_entries(rows, missing, stored).all(axis=1, keepdims=True)
    if rows.dtype.kind == "f":
        return np.isinf(rows) | is_empty
    return np.broadcast_to(is_empty, rows.shape)


def missing_entries(rows: np.ndarray, missing: float | None = None, stored: str | None = None) -> np.ndarray:
    """Return which entries are NaN, or the missing value as the dtype `stored` has it: bool, of the rows' shape."""
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
    """Return the missing value in a dtype; None if the dtype cannot hold it."""
    if dtype.kind == "f":
        return _rounded_value(dtype, missing)
    low = 0
    high = 1
    if dtype.kind != "b":
        low = np.iinfo(dtype).min
        high = np.iinfo(dtype).max
    # Integers hold neither fractions nor values outside their range: 255.5 is in no file of uint8.
    if low <= missing <= high and missing == int(missing):
        return int(missing)
    return None


def _rounded_value(dtype: np.dtype, missing: float) -> Any:
    """Return the missing value rounded to a float dtype, as files store it: float32 does not hold -999.9 exactly.

    None if the result is Inf, or 0 for a tiny number.
    """
    with np.errstate(over="ignore", under="ignore"):
        rounded = np.float64(missing).astype(dtype)
    if np.isfinite(rounded) and bool(rounded) == bool(missing):
        return rounded
    return None
