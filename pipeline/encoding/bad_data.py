"""What becomes of rows that cannot be encoded like the others: bad ones, and ones outside a given model's range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.columns import NO_COLUMNS, Columns
from pipeline.errors import DataError
from pipeline.scan.drift import Outside, outside_of
from pipeline.scan.scaler import Scaler, bad_entries, bad_rows
from pipeline.shards.shard import Block

__all__ = ["BadData"]

_COLUMNS_LISTED = 20  # of a row: enough to see which, and a row of thousands does not fill the list
_NONE = np.empty(0, dtype=np.int64)

_Encode = Callable[[np.ndarray, np.ndarray], object]


@dataclass(frozen=True)
class _Judged:
    """What is to be said of a block's rows.

    Attributes
    ----------
    bad : ndarray of int64
        Positions of the rows whose features do not count.
    n_outside : int
        Good rows outside the model's range.
    reasons : list of dict
        With quarantine, ``row``, ``columns`` and ``reason`` of each bad row.
    outside : list of Outside
        The columns in which good rows lie outside that range.
    """

    bad: np.ndarray
    n_outside: int
    reasons: list[dict[str, Any]]
    outside: list[Outside]


@dataclass(frozen=True)
class BadData:
    """The settings that decide.

    Attributes
    ----------
    on_bad_data : str
        ``raise``, ``skip`` or ``quarantine``.
    missing : float or None
        A value that stands for a missing one.
    on_drift : str
        ``pass``, ``clip`` or ``raise``.
    trained_on : Scaler or None
        The range of the model's training rows, when rows may lie outside. No task carries it: it is as large as a row.
    fills : bool
        Whether the model fills in what is missing, so that only Inf, and rows without any value, are bad.
    columns : Columns
        Names of the model's columns, for messages about a shard that carries none. Tasks do not carry them either.
    """

    on_bad_data: str = "raise"
    missing: float | None = None
    on_drift: str = "pass"
    trained_on: Scaler | None = None
    fills: bool = False
    columns: Columns = NO_COLUMNS

    @property
    def lists(self) -> bool:
        """Whether each bad row is listed."""
        return self.on_bad_data == "quarantine"

    def judge(
        self,
        block: Block,
        rows: tuple[np.ndarray, np.ndarray],
        features: np.ndarray,
        encode: _Encode,
        suspects: np.ndarray | None = None,
    ) -> _Judged:
        """Judge rows as they were read, and as they were encoded; the features of bad ones become NaN.

        Finite rows so far away that they overflow float32 are no better than bad ones.

        Parameters
        ----------
        rows : pair of ndarray of shape (len(block), n_inputs)
            As they were read, and cleaned for the model: one array where that is the same.
        features : ndarray of shape (len(block), n_features), float32
            Of these rows.
        encode : callable
            Given rows to be encoded again, and where their features go.
        suspects : ndarray of int, optional
            Positions of the rows to be looked at; all others hold finite numbers in the model's range.

        Raises
        ------
        DataError
            For a row that is not allowed.
        """
        which = slice(None) if suspects is None else suspects  # all of them, and no copy
        numbers, (read, cleaned) = np.arange(block.start, block.stop)[which], rows
        bad, reasons = self._bad(block, numbers, read[which])
        some = cleaned[which]
        outside = _NONE
        worst = list[Outside]()
        if self.trained_on is not None and len(bad) < len(some):
            outside = self._outside(block, numbers, some, bad, self.trained_on)
            if len(outside):
                worst = outside_of(some[outside], self.trained_on)
                if self.on_drift == "clip":
                    # All rows, since no other is changed by it; and twice, as that is rarer than a look before.
                    encode(np.clip(cleaned, *self.trained_on.edges(cleaned.dtype)), features)
        lost = np.setdiff1d(bad_rows(features[which]), bad)  # of a bad row all is said already
        reasons += self._overflown(block, numbers[lost])
        bad = numbers[np.union1d(bad, lost)] - block.start
        features[bad] = np.nan  # whatever Inf or a missing value has made of them
        return _Judged(bad, len(outside), reasons, worst)

    def _bad(self, block: Block, numbers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Which of these rows, with such numbers in the shard, are bad ones, and why."""
        if self.missing is None and rows.dtype.kind != "f":
            return _NONE, []  # integers are all finite
        entries = bad_entries(rows, self.missing, block.shard.stored_dtype, self.fills)
        bad = np.flatnonzero(entries.any(axis=1))
        if len(bad) and self.on_bad_data == "raise":
            row, column = np.argwhere(entries)[0]
            where = f"row {numbers[row]}, column {self._named(block, column)}"
            held = "Inf, or no value at all" if self.fills else "NaN, Inf or the missing value"
            raise DataError(
                f"{block}: {rows[row, column]} in {where}; {len(bad)} of these rows hold {held}, expected finite "
                "numbers. Mend the file, or leave such rows out, however many there are, with --on-bad-data skip "
                "--max-bad-rows 100%."
            )
        listed = ((row, np.flatnonzero(entries[row])) for row in (bad if self.lists else _NONE))
        return bad, [_reason(numbers[row], columns, str(rows[row, columns[0]])) for row, columns in listed]

    def _overflown(self, block: Block, lost: np.ndarray) -> list[dict[str, Any]]:
        """What is said of rows, by their numbers in the shard, whose features are no numbers."""
        if len(lost) and self.on_bad_data == "raise":
            raise DataError(
                f"{block}: row {lost[0]} and {len(lost) - 1} more lie so far outside the range of the "
                "model's training rows that they overflow. Train a model on them, or use --on-bad-data skip."
            )
        return [_reason(row, _NONE, "overflows float32") for row in lost] if self.lists else []

    def _outside(
        self, block: Block, numbers: np.ndarray, rows: np.ndarray, bad: np.ndarray, trained_on: Scaler
    ) -> np.ndarray:
        """Which good ones of these rows, with such numbers in the shard, lie outside the model's range."""
        low = trained_on.minimum
        high = trained_on.maximum
        good = np.delete(rows, bad, axis=0) if len(bad) else rows
        # Two passes over the columns first: nearly always that is all, and comparing every entry costs memory.
        if (good.min(axis=0) >= low).all() and (good.max(axis=0) <= high).all():
            return _NONE
        entries = (rows < low) | (rows > high)
        entries[bad] = False
        outside = np.flatnonzero(entries.any(axis=1))
        if self.on_drift == "raise":
            row, column = np.argwhere(entries)[0]
            raise DataError(
                f"{block}: {rows[row, column]} in row {numbers[row]}, column {self._named(block, column)}, expected "
                f"{low[column]:g} to {high[column]:g}, the range of the model's training rows; {len(outside)} of these "
                "rows lie outside. Train a model on them, or use --on-drift clip."
            )
        return outside

    def _named(self, block: Block, column: np.integer[Any]) -> str:
        """Return the number and the name of a column."""
        # In a worker process a shard has no names, so that tasks stay small; but the model has the same ones.
        columns = block.shard.columns if block.shard.columns.is_known else self.columns
        return columns.numbered(int(column))


def _reason(row: int, columns: np.ndarray, reason: str) -> dict[str, Any]:
    return {"row": int(row), "columns": columns[:_COLUMNS_LISTED].tolist(), "reason": reason}
