"""Preparation of rows on reading: each row is divided by its size, and values are transformed.

These steps come before the scaling of columns, which sees their results only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardpress.base import rowmath
from shardpress.base.errors import DataError, Problem

# Dtype of prepared rows. Equal values give equal results, whatever dtype stores them, and columns far from zero keep
# their digits.
PREPARED_DTYPE = np.dtype(np.float64)
_TOTAL = 10_000.0  # the usual total of the counts of a cell
_EXACT = 2**53  # float64 represents all integers up to this one exactly


@dataclass(frozen=True)
class Preparation:
    """Row scaling and transformation of values on reading."""

    # "total" scales each row to a sum of absolute values of 10,000. "median", "norm" and "max" divide each row by the
    # absolute value of its median, by its Euclidean norm, or by its largest absolute value. A row whose size is 0, not
    # finite, or so small that its factor would overflow stays as it is. NaN is ignored.
    row_scale: str | None = None
    transform: str | None = None  # "log1p" replaces each value x by sign(x) * log(1 + abs(x))

    def __str__(self) -> str:
        flags = {"--row-scale": self.row_scale, "--transform": self.transform}
        return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)

    @property
    def target(self) -> float:
        """Size of the scaled rows."""
        return _TOTAL if self.row_scale == "total" else 1.0

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return prepared rows for rows (n_rows, n_inputs) of any real dtype. Raise `DataError` as `check` does."""
        self.check(rows)
        prepared = rows.astype(PREPARED_DTYPE, order="C")
        self.apply_in_place(prepared)
        return prepared

    def apply_in_place(self, rows: np.ndarray) -> None:
        """Prepare contiguous rows (n_rows, n_inputs), float64, in place.

        The bits of a row depend on this row only, and are the same on all processors.
        """
        rowmath.prepare(rows, self.row_scale or "none", self.target, self.transform == "log1p")

    def check(self, rows: np.ndarray, where: object = "rows", first_row: int = 0) -> None:
        """Raise `DataError` if rows (n_rows, n_inputs) contain integers that row scaling would round.

        float64 represents integers exactly only up to 2^53, so small differences between larger ones would be lost.
        """
        if self.row_scale is None or rows.dtype.kind not in "iu" or rows.dtype.itemsize < 8 or not rows.size:
            return
        # Compare in the dtype of the rows: NumPy 1 would compare uint64 with a Python integer in float64.
        is_rounded = rows > rows.dtype.type(_EXACT)
        if rows.dtype.kind == "i":
            is_rounded |= rows < rows.dtype.type(-_EXACT)
        if not is_rounded.any():
            return
        row, column = np.argwhere(is_rounded)[0]
        raise DataError(
            Problem(
                str(where),
                f"found {rows[row, column]} in row {first_row + row}, column {column}, expected integers up to 2^53, "
                "because rows are scaled in float64",
                "Omit {row_scale}, or store smaller numbers, for example in a larger unit",
            )
        )

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """Undo the transformation of values in rows (n_rows, n_inputs), float64. Row scaling cannot be undone."""
        if self.transform == "log1p":
            with np.errstate(over="ignore"):
                return np.copysign(np.expm1(np.abs(rows)), rows)
        return rows


def preparation_of(row_scale: str, transform: str) -> Preparation | None:
    """Return the preparation for two settings, or None if both are ``none`` and rows stay as they are."""
    if row_scale == transform == "none":
        return None
    return Preparation(None if row_scale == "none" else row_scale, None if transform == "none" else transform)
