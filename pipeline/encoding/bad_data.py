"""What becomes of rows that cannot be encoded like the others: bad ones, and ones outside a given model's range."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.shards.rows import bad_entries, bad_rows
from pipeline.shards.shard import Block

__all__ = ["BadData", "Judged", "Outside", "farthest"]

_COLUMNS_LISTED = 20
_WORST = 3
_NONE = np.empty(0, dtype=np.int64)


class Outside(NamedTuple):
    """How far rows lie outside a model's range in a column: the value that is farthest from its `low` and `high`."""

    column: int
    value: float
    low: float
    high: float

    @property
    def distance(self) -> float:
        """From the range, in ranges; 0 where the range is one value, since such a column becomes 0 whatever it is."""
        beyond = max(self.low - self.value, self.value - self.high)
        return beyond / (self.high - self.low) if self.high > self.low else 0.0

    def __str__(self) -> str:
        if self.high <= self.low:
            return f"column {self.column} ({self.value:g}, trained on {self.low:g} alone)"
        far = f"{self.distance:.3g} times that range away"
        return f"column {self.column} ({self.value:g}, trained on {self.low:g} to {self.high:g}, {far})"


def farthest(found: Iterable[Outside]) -> list[Outside]:
    """The columns in which rows lie farthest outside: the worst first, each once, and `_WORST` at most."""
    worst: dict[int, Outside] = {}
    for one in sorted(found, key=lambda one: (-one.distance, one)):
        worst.setdefault(one.column, one)
    return list(worst.values())[:_WORST]


@dataclass(frozen=True)
class Judged:
    """A block's rows as they may be encoded.

    Attributes
    ----------
    rows : ndarray of shape (n_rows, n_inputs)
    bad : ndarray of int64
        Positions of the rows whose features do not count.
    n_outside : int
        Good rows outside the model's range.
    reasons : list of dict
        With quarantine, ``row``, ``columns`` and ``reason`` of each bad row.
    outside : list of Outside
        The columns in which good rows lie farthest outside that range.
    """

    rows: np.ndarray
    bad: np.ndarray
    n_outside: int
    reasons: list[dict[str, Any]]
    outside: list[Outside] = field(default_factory=list)


@dataclass(frozen=True)
class BadData:
    """The settings that decide.

    Attributes
    ----------
    on_bad_data : str
        ``raise``, ``skip`` or ``quarantine``.
    missing : float or None
        A value that stands for a missing one.
    out_of_range : str
        ``allow``, ``clip`` or ``raise``.
    minimum, maximum : ndarray of shape (n_inputs,), float64, or None
        The range that the model was trained on, when rows may lie outside.
    """

    on_bad_data: str = "raise"
    missing: float | None = None
    out_of_range: str = "allow"
    minimum: np.ndarray | None = None
    maximum: np.ndarray | None = None

    @property
    def lists(self) -> bool:
        """Whether each bad row is listed."""
        return self.on_bad_data == "quarantine"

    def before(self, block: Block, rows: np.ndarray, suspects: np.ndarray | None = None) -> Judged:
        """Judge rows as they were read.

        Parameters
        ----------
        block : Block
        rows : ndarray of shape (len(block), n_inputs)
        suspects : ndarray of int, optional
            Positions of the rows to be looked at; all others hold finite numbers in the model's range.

        Raises
        ------
        DataError
            For a bad row, or one outside the range, when that is not allowed.
        """
        numbers, some = (np.arange(len(rows)), rows) if suspects is None else (suspects, rows[suspects])
        bad, reasons = _NONE, list[dict[str, Any]]()
        if self.missing is not None or rows.dtype.kind == "f":
            bad, reasons = self._bad(block, numbers, some)
        if self.minimum is None or self.maximum is None or len(bad) == len(some):
            return Judged(rows, numbers[bad], 0, reasons)
        outside = self._outside(block, numbers, some, bad, self.minimum, self.maximum)
        worst = _farthest(some[outside], self.minimum, self.maximum)
        if len(outside) and self.out_of_range == "clip":
            rows = np.clip(rows, *_edges(self.minimum, self.maximum, rows.dtype))
        return Judged(rows, numbers[bad], len(outside), reasons, worst)

    def after(self, block: Block, judged: Judged, features: np.ndarray, suspects: np.ndarray | None = None) -> Judged:
        """Judge rows by their features: finite rows so far away that they overflow float32 are no better than bad ones.

        Parameters
        ----------
        block : Block
        judged : Judged
            What `before` has found.
        features : ndarray of shape (len(block), n_features)
        suspects : ndarray of int, optional
            As for `before`: the features of all other rows are finite.

        Raises
        ------
        DataError
            For such a row, when bad rows are not allowed.
        """
        found = bad_rows(features) if suspects is None else suspects[bad_rows(features[suspects])]
        lost = np.setdiff1d(found, judged.bad)
        if not len(lost):
            return judged
        if self.on_bad_data == "raise":
            raise DataError(
                f"{block}: row {block.start + lost[0]} and {len(lost) - 1} more lie so far outside the range of the "
                "model's training rows that they overflow. Train a model on them, or use --on-bad-data skip."
            )
        reasons = [_reason(block.start + row, _NONE, "overflows float32") for row in lost]
        listed = judged.reasons + (reasons if self.lists else [])
        return replace(judged, bad=np.union1d(judged.bad, lost), reasons=listed)

    def _bad(self, block: Block, numbers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Which of these rows, with such positions in the block, are bad ones, and why."""
        entries = bad_entries(rows, self.missing, block.shard.stored_dtype)
        bad = np.flatnonzero(entries.any(axis=1))
        if len(bad) and self.on_bad_data == "raise":
            row, column = bad[0], int(np.flatnonzero(entries[bad[0]])[0])
            raise DataError(
                f"{block}: {rows[row, column]} in row {block.start + numbers[row]}, column {column}; {len(bad)} of "
                "these rows hold NaN, Inf or the missing value, expected finite numbers. Mend the file, or leave such "
                "rows out, however many there are, with --on-bad-data skip --max-bad-rows 100%."
            )
        reasons = []
        if self.lists:
            for row in bad:
                columns = np.flatnonzero(entries[row])
                reasons.append(_reason(block.start + numbers[row], columns, str(rows[row, columns[0]])))
        return bad, reasons

    def _outside(
        self, block: Block, numbers: np.ndarray, rows: np.ndarray, bad: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> np.ndarray:
        """Which good ones of these rows, with such positions in the block, lie outside the model's range."""
        good = np.delete(rows, bad, axis=0) if len(bad) else rows
        if (good.min(axis=0) >= low).all() and (good.max(axis=0) <= high).all():
            return _NONE
        entries = (rows < low) | (rows > high)
        entries[bad] = False
        outside = np.flatnonzero(entries.any(axis=1))
        if self.out_of_range == "raise":
            row, column = outside[0], int(np.flatnonzero(entries[outside[0]])[0])
            raise DataError(
                f"{block}: {rows[row, column]} in row {block.start + numbers[row]}, column {column}, expected "
                f"{low[column]:g} to {high[column]:g}, the range of the model's training rows; {len(outside)} of these "
                "rows lie outside. Train a model on them, or use --out-of-range clip."
            )
        return outside


def _farthest(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Outside]:
    if not len(rows):
        return []
    least, most = rows.min(axis=0), rows.max(axis=0)
    found = [
        Outside(int(column), float(value[column]), float(low[column]), float(high[column]))
        for value, is_out in ((least, least < low), (most, most > high))
        for column in np.flatnonzero(is_out)
    ]
    return farthest(found)


def _edges(low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A range in the rows' own dtype, so that what lies inside it keeps every bit."""
    if dtype.kind == "f":
        with np.errstate(over="ignore", under="ignore"):
            return low.astype(dtype), high.astype(dtype)
    # Inwards; and in Python's integers, since no float64 is the largest one of 64 bits.
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    lowest = [min(max(math.ceil(edge), least), most) for edge in low.tolist()]
    highest = [min(max(math.floor(edge), least), most) for edge in high.tolist()]
    return np.array(lowest, dtype=dtype), np.array(highest, dtype=dtype)


def _reason(row: int, columns: np.ndarray, reason: str) -> dict[str, Any]:
    return {"row": int(row), "columns": columns[:_COLUMNS_LISTED].tolist(), "reason": reason}
