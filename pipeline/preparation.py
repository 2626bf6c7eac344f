"""Preparation of rows on reading: each row is divided by its size, and values are transformed.

These steps come before the scaling of columns, which sees their results only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["Preparation", "preparation_of"]

_TOTAL = 10_000.0  # the usual total of the counts of a cell
_CHUNK_BYTES = 2**19  # bytes of rows that all steps process at once; they stay in the cache of a core


def _total(rows: np.ndarray) -> np.ndarray:
    return _magnitudes(rows).sum(axis=1)


def _median(rows: np.ndarray) -> np.ndarray:
    return np.abs(np.median(rows, axis=1))


def _norm(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))


def _maximum(rows: np.ndarray) -> np.ndarray:
    return _magnitudes(rows).max(axis=1, initial=0)


def _magnitudes(rows: np.ndarray) -> np.ndarray:
    """Return absolute values, which are the rows themselves if nothing is negative or NaN."""
    if rows.min(initial=0) >= 0:
        return rows
    return np.abs(rows)


_SIZES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "total": _total,
    "median": _median,
    "norm": _norm,
    "max": _maximum,
}


@dataclass(frozen=True)
class Preparation:
    """Row scaling and transformation of values on reading.

    Attributes
    ----------
    row_scale : str or None
        ``total`` scales each row to a sum of absolute values of 10,000. ``median``, ``norm`` and ``max`` divide each
        row by the absolute value of its median, by its Euclidean norm, or by its largest absolute value. A row whose
        size is 0 or not finite stays as it is. NaN is ignored.
    transform : str or None
        ``log1p`` replaces each value ``x`` by ``sign(x) * log(1 + abs(x))``. ``rank`` only converts rows to floats:
        ranks need tables from the scan, which belong to the scaler (see `pipeline.scan.scaler.Scaler`).
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
        """Prepare rows (n_rows, n_inputs), float32 or float64, in place. The bits of a row depend on this row only."""
        row_bytes = max(1, rows.shape[1] * rows.itemsize)
        n_each = max(1, _CHUNK_BYTES // row_bytes)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(rows), n_each):
                self._apply_to_chunk(rows[start : start + n_each])

    def _apply_to_chunk(self, rows: np.ndarray) -> None:
        if self.row_scale is not None:
            rows *= self._factors(rows).astype(rows.dtype)[:, None]
        if self.transform == "log1p":
            _log1p_in_place(rows)

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """Undo the transformation of values in rows (n_rows, n_inputs), float64. Row scaling cannot be undone."""
        if self.transform == "log1p":
            with np.errstate(over="ignore"):
                return np.copysign(np.expm1(np.abs(rows)), rows)
        return rows

    def _factors(self, rows: np.ndarray) -> np.ndarray:
        """Return the factor of each row, shape (n_rows,), float64."""
        assert self.row_scale is not None
        size_of = _SIZES[self.row_scale]
        sizes = size_of(rows).astype(np.float64)
        for i in np.flatnonzero(np.isnan(sizes)):
            present = rows[i][~np.isnan(rows[i])]
            sizes[i] = size_of(present[None])[0] if len(present) else 0
        return np.divide(self.target, sizes, out=np.ones_like(sizes), where=np.isfinite(sizes) & (sizes > 0))


def preparation_of(row_scale: str | None, transform: str | None) -> Preparation | None:
    """Return the preparation for two settings; None if rows stay as they are."""
    if row_scale is None and transform is None:
        return None
    return Preparation(row_scale, transform)


def _log1p_in_place(rows: np.ndarray) -> None:
    if rows.min(initial=0) >= 0:
        np.log1p(rows, out=rows)
        return
    is_negative = rows < 0
    np.abs(rows, out=rows)
    np.log1p(rows, out=rows)
    np.negative(rows, out=rows, where=is_negative)
