"""Rows with far larger errors than all others, for example damaged ones. Judgments leave them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from shardpress.errors import printable

MOST_OF_ALL = 0.5
"""Share of all errors from which a message names the row that has it."""
_MOST = 100  # one row of this number of rows can be an outlier
_LEAST_ROWS = 20  # with fewer rows, none is an outlier
_FAR = 100  # times the mean of the other squares, that is ten times as far


def outliers(squares: np.ndarray) -> np.ndarray:
    """Return a mask of the rows whose squared errors, or squared distances, are far above the mean of the others.

    Parameters
    ----------
    squares : ndarray of shape (n_rows,)
        Squared error, or squared distance from the mean, of each row.

    Returns
    -------
    ndarray of shape (n_rows,), bool
        True for at most one row, or 1 % of the rows.
    """
    is_outlier = np.zeros(len(squares), dtype=bool)
    if len(squares) < _LEAST_ROWS:
        return is_outlier
    n_most = max(1, len(squares) // _MOST)
    order = np.argsort(squares)
    largest = order[-n_most:]
    limit = _FAR * squares[order[:-n_most]].mean(dtype=np.float64)
    is_outlier[largest] = squares[largest] > limit
    return is_outlier


def largest_share(errors: np.ndarray) -> dict[str, Any]:
    """Return the position of the row with the largest of the errors (n_rows,), and its share of their sum."""
    largest = int(errors.argmax())
    total = errors.sum(dtype=np.float64)
    share = float(errors[largest] / total) if np.isfinite(total) else 1.0
    return {"position": largest, "share": share}


def place_of(outlier: Mapping[str, Any]) -> str:
    """Return the location of a row for a message: its file, if it is known, and its number."""
    if "file" not in outlier:
        return f"row={outlier['row']}"
    return f"file={printable(outlier['file'])} row={outlier['row']}"
