"""Values outside a model's range: in which columns, how many, and how far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pipeline.columns import Columns
from pipeline.scan.scaler import Scaler

__all__ = ["Outside", "farthest", "outside_of"]


class Outside(NamedTuple):
    """How rows lie outside a model's range in a column: the value that is farthest from its `low` and `high`.

    `n_values` of them are outside; 0 where an earlier version has not counted.
    """

    column: int
    value: float
    low: float
    high: float
    n_values: int = 0

    @property
    def distance(self) -> float:
        """From the range, in ranges; 0 where the range is one value, since such a column becomes 0 whatever it is."""
        if self.high <= self.low:
            return 0.0
        return max(self.low - self.value, self.value - self.high) / (self.high - self.low)

    def described(self, columns: Columns) -> str:
        """Return the column with its name, its farthest value and the model's range."""
        where = f"column {columns.numbered(self.column)}"
        if self.high <= self.low:
            return f"{where} ({self.value:g}, trained on {self.low:g} alone)"
        far = f"{self.distance:.3g} times that range away"
        return f"{where} ({self.value:g}, trained on {self.low:g} to {self.high:g}, {far})"


def farthest(found: Iterable[Outside], most: int | None = None) -> list[Outside]:
    """The columns in which rows lie outside, each once with all its values: the farthest first, and `most` at most."""
    worst: dict[int, Outside] = {}
    n_values: Counter[int] = Counter()
    for one in sorted(found, key=lambda one: (-one.distance, one)):  # all of it, so that no order of blocks shows
        worst.setdefault(one.column, one)
        n_values[one.column] += one.n_values
    return [one._replace(n_values=n_values[one.column]) for one in worst.values()][:most]


def outside_of(rows: np.ndarray, trained_on: Scaler) -> list[Outside]:
    """Every column in which rows (n_rows, n_inputs), one at least, lie outside a range, the farthest first."""
    low = trained_on.minimum
    high = trained_on.maximum
    below = np.count_nonzero(rows < low, axis=0)
    above = np.count_nonzero(rows > high, axis=0)
    found = []
    for extreme, n_values in ((rows.min(axis=0), below), (rows.max(axis=0), above)):
        for column in np.flatnonzero(n_values).tolist():
            found.append(
                Outside(
                    column=column,
                    value=float(extreme[column]),
                    low=float(low[column]),
                    high=float(high[column]),
                    n_values=int(n_values[column]),
                )
            )
    return farthest(found)
