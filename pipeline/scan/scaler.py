"""Min-max scaling: rows in the unit interval, as the device and NumPy compute it alike."""

from __future__ import annotations

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
    """

    minimum: np.ndarray
    maximum: np.ndarray

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

    def transform(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n_rows, n_inputs) of any real dtype, scaled: float32.

        Bit for bit as the device scales them, where it does not fold the scaling into ``W``.
        """
        minimum, scale = self.arrays(rows.dtype)
        return ((rows.astype(minimum.dtype) - minimum) * scale).astype(np.float32)
