"""Columns with values outside the range on which a model was trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from shardpress.model.scaler import Scaler
from shardpress.result.records import Outside

MAX_LISTED_COLUMNS = 20
"""Largest number of columns outside the range to store in a range's record. A run can have thousands of records."""


def farthest(columns: Iterable[Outside], most: int | None = None) -> list[Outside]:
    """Merge the summaries of each column, and return at most `most` summaries, the farthest first."""
    worst: dict[int, Outside] = {}
    n_values: Counter[int] = Counter()
    # Sort by all fields, so that the result does not depend on the order of the blocks.
    for one in sorted(columns, key=lambda one: (-one.distance, one)):
        worst.setdefault(one.column, one)
        n_values[one.column] += one.n_values
    columns = [one._replace(n_values=n_values[one.column]) for one in worst.values()]
    return columns[:most]


def outside_of(rows: np.ndarray, trained_on: Scaler) -> list[Outside]:
    """Return the columns of rows (n_rows, n_inputs) with values outside the model's range, the farthest first."""
    low = trained_on.minimum
    high = trained_on.maximum
    below = np.count_nonzero(rows < low, axis=0)
    above = np.count_nonzero(rows > high, axis=0)
    return farthest(
        [
            *_outside_columns(rows.min(axis=0), below, trained_on),
            *_outside_columns(rows.max(axis=0), above, trained_on),
        ]
    )


def _outside_columns(extremes: np.ndarray, n_outside: np.ndarray, trained_on: Scaler) -> list[Outside]:
    """Return the columns with values outside one end of the range, given the extreme value of each column."""
    columns_outside = []
    for column in np.flatnonzero(n_outside).tolist():
        outside = Outside(
            column=column,
            value=float(extremes[column]),
            low=float(trained_on.minimum[column]),
            high=float(trained_on.maximum[column]),
            n_values=int(n_outside[column]),
        )
        columns_outside.append(outside)
    return columns_outside
