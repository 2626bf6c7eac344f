"""Min-max scaling: rows in the unit interval, as the device and NumPy compute it alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Scaler"]


@dataclass(frozen=True)
class Scaler:
    """Min-max scaling of every column to [0, 1]: ``x = (r - minimum) * scale``; constant columns become 0.

    scikit-learn adds an offset to a product instead, which loses the digits of columns far from zero.

    Attributes
    ----------
    minimum, maximum : ndarray of shape (n_inputs,), float64
        Each column's range in the training rows.
    fill : ndarray of shape (n_inputs,), float64, or None
        What stands for a missing value of each column, within its range; None where rows that miss one are bad.
    clips : bool
        Whether values outside the range are moved to its edge.
    """

    minimum: np.ndarray
    maximum: np.ndarray
    fill: np.ndarray | None = None
    clips: bool = False

    @property
    def cleans(self) -> bool:
        """Whether rows may have to be filled or clipped before they are scaled."""
        return self.clips or self.fill is not None

    @property
    def scale(self) -> np.ndarray:
        """One over each column's range, 0 where that is 0: shape (n_inputs,), float64."""
        # Halved, since the range of a column from -1.7e308 to 1.7e308 is no float64, nor is one over a subnormal.
        half = self.maximum / 2 - self.minimum / 2
        return np.divide(0.5, half, out=np.zeros_like(half), where=half >= np.finfo(np.float64).tiny)

    def arrays(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """Minimum and scale in the dtype that rows of `dtype` are scaled in.

        float32 where it holds the rows, the range and the scale exactly enough; float64 otherwise.
        """
        scale = self.scale
        with np.errstate(over="ignore", under="ignore"):
            narrow_scale, narrow_range = scale.astype(np.float32), (self.maximum - self.minimum).astype(np.float32)
            exact = all(np.array_equal(a, a.astype(np.float32)) for a in (self.minimum, self.maximum))
        # Subnormal numbers have lost digits already, and processors are slow with them.
        sizes = np.concatenate([narrow_scale[scale > 0], narrow_range[scale > 0]])
        normal = np.isfinite(sizes).all() and (sizes >= np.finfo(np.float32).tiny).all()
        working = np.float32 if np.can_cast(dtype, np.float32) and exact and normal else np.float64
        return self.minimum.astype(working), scale.astype(working)

    def edges(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """The range in the rows' own dtype, so that what lies inside it keeps every bit; of whole numbers, inwards."""
        return _held(self.minimum, dtype, math.ceil), _held(self.maximum, dtype, math.floor)

    def cleaned(self, rows: np.ndarray, missed: np.ndarray | None = None) -> np.ndarray:
        """Rows (n_rows, n_inputs), filled and clipped in their own dtype: the same array where there is nothing to do.

        Inf is clipped as well: which rows are bad, whoever has read them knows.

        Parameters
        ----------
        missed : ndarray of shape (n_rows, n_inputs), bool, optional
            What is to be filled in; NaN without it.
        """
        if self.fill is not None:
            missed = np.isnan(rows) if missed is None else missed
            if missed.any():
                rows = np.where(missed, _held(self.fill, rows.dtype, round), rows)
        if self.clips:
            low, high = self.edges(rows.dtype)
            if (rows < low).any() or (rows > high).any():
                rows = np.maximum(rows, low)  # in half the time of np.clip, which no compiler makes into vectors
                np.minimum(rows, high, out=rows)
        return rows

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n_rows, n_inputs) of any real dtype, cleaned and scaled: float32.

        Bit for bit as the device scales them, where it does not fold the scaling into ``W``.
        """
        rows = self.cleaned(rows)
        minimum, scale = self.arrays(rows.dtype)
        return ((rows.astype(minimum.dtype) - minimum) * scale).astype(np.float32)


def _held(values: np.ndarray, dtype: np.dtype, to_whole: Callable[[float], int]) -> np.ndarray:
    """What a dtype holds in place of float64 values."""
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(dtype)
    # In Python's integers, since no float64 is the largest one of 64 bits.
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.array([min(max(to_whole(value), least), most) for value in values.tolist()], dtype=dtype)
