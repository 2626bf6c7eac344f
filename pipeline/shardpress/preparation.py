"""Preparation of rows on reading: each row is divided by its size, and values are transformed.

These steps come before the scaling of columns, which sees their results only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardpress import rowmath

__all__ = ["Preparation", "preparation_of"]

_TOTAL = 10_000.0  # the usual total of the counts of a cell


@dataclass(frozen=True)
class Preparation:
    """Row scaling and transformation of values on reading.

    Attributes
    ----------
    row_scale : str or None
        ``total`` scales each row to a sum of absolute values of 10,000. ``median``, ``norm`` and ``max`` divide each
        row by the absolute value of its median, by its Euclidean norm, or by its largest absolute value. A row whose
        size is 0, not finite, or so small that its factor would overflow stays as it is. NaN is ignored.
    transform : str or None
        ``log1p`` replaces each value ``x`` by ``sign(x) * log(1 + abs(x))``. ``rank`` only converts rows to floats:
        ranks need tables from the scan, which belong to the scaler (see `shardpress.scan.scaler.Scaler`).
    """

    row_scale: str | None = None
    transform: str | None = None

    @property
    def target(self) -> float:
        """Size of the scaled rows."""
        return _TOTAL if self.row_scale == "total" else 1.0

    def dtype(self, stored: np.dtype) -> np.dtype:
        """Return the dtype of prepared rows: float32 if it holds the values that are read, otherwise float64."""
        return np.dtype(np.float32 if np.can_cast(stored, np.float32) else np.float64)

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return the prepared rows of rows (n_rows, n_inputs) of any real dtype. `rows` is not changed."""
        prepared = rows.astype(self.dtype(rows.dtype), order="C")
        self.apply_in_place(prepared)
        return prepared

    def apply_in_place(self, rows: np.ndarray) -> None:
        """Prepare contiguous rows (n_rows, n_inputs), float32 or float64, in place.

        The bits of a row depend on this row only, and are the same on all processors.
        """
        rowmath.prepare(rows, self.row_scale or "none", self.target, self.transform == "log1p")

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """Undo the transformation of values in rows (n_rows, n_inputs), float64. Row scaling cannot be undone."""
        if self.transform == "log1p":
            with np.errstate(over="ignore"):
                return np.copysign(np.expm1(np.abs(rows)), rows)
        return rows


def preparation_of(row_scale: str | None, transform: str | None) -> Preparation | None:
    """Return the preparation for two settings; None if rows stay as they are."""
    if row_scale is None and transform is None:
        return None
    return Preparation(row_scale, transform)
