"""Handling of rows that cannot be encoded as they are: bad rows, and rows outside the range of a given model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from pipeline.columns import NO_COLUMNS, Columns
from pipeline.errors import DataError
from pipeline.scan.drift import Outside, outside_of
from pipeline.scan.scaler import Scaler, bad_entries, bad_rows
from pipeline.shards.shard import Block

__all__ = ["BadData", "Judgement"]

_MAX_LISTED_COLUMNS = 20  # listed columns of a row; otherwise a row with thousands of bad values would fill the list
_NO_POSITIONS = np.empty(0, dtype=np.int64)

_Encode = Callable[[np.ndarray, np.ndarray], object]


@dataclass(frozen=True)
class Judgement:
    """Result of `BadData.judge` for one block.

    Attributes
    ----------
    bad : ndarray of int64
        Positions of the bad rows in the block.
    n_outside : int
        Number of good rows outside the model's range.
    reasons : list of dict
        ``row``, ``columns`` and ``reason`` of each bad row; empty without quarantine.
    outside : list of Outside
        The columns in which good rows lie outside that range.
    """

    bad: np.ndarray
    n_outside: int
    reasons: list[dict[str, Any]]
    outside: list[Outside]


@dataclass(frozen=True)
class BadData:
    """Settings that decide which rows are bad and how they are handled.

    Attributes
    ----------
    on_bad_data : str
        ``raise``, ``skip`` or ``quarantine``.
    missing : float or None
        A value that marks missing data.
    on_drift : str
        ``pass``, ``clip`` or ``raise``.
    trained_on : Scaler or None
        Range of the model's training rows, if rows may lie outside it. Tasks do not include it, because it is as large
        as a row.
    fills : bool
        Whether the model imputes missing values. Then only Inf, and rows without any value, are bad.
    columns : Columns
        Names of the model's columns, for messages about a shard without names. Tasks do not include them either.
    """

    on_bad_data: str = "raise"
    missing: float | None = None
    on_drift: str = "pass"
    trained_on: Scaler | None = None
    fills: bool = False
    columns: Columns = NO_COLUMNS

    @property
    def lists_rows(self) -> bool:
        """Whether each bad row is listed with a reason."""
        return self.on_bad_data == "quarantine"

    def judge(
        self,
        block: Block,
        rows: tuple[np.ndarray, np.ndarray],
        features: np.ndarray,
        encode: _Encode,
        suspects: np.ndarray | None = None,
    ) -> Judgement:
        """Find bad rows and rows outside the model's range, and set the features of bad rows to NaN.

        Finite rows are bad as well if they are so far outside the range that their features overflow float32.

        Parameters
        ----------
        block : Block
            Position of the rows in their shard.
        rows : pair of ndarray of shape (len(block), n_inputs)
            The rows as read, and as cleaned for the model. Both are the same array if nothing had to be cleaned.
        features : ndarray of shape (len(block), n_features), float32
            Features of these rows; changed in place.
        encode : callable
            Called with rows and an array; encodes the rows again, and writes their features into the array.
        suspects : ndarray of int, optional
            Positions of the rows to examine; all others hold finite numbers in the model's range.

        Raises
        ------
        DataError
            For a row that the settings do not allow.
        """
        read, cleaned = rows
        selected = slice(None) if suspects is None else suspects  # a slice makes no copy
        numbers = np.arange(block.start, block.stop)[selected]
        bad, reasons = self._find_bad(block, numbers, read[selected])

        n_outside, columns = self._measure_drift(block, numbers, cleaned[selected], bad)
        if n_outside > 0 and self.on_drift == "clip":
            # All rows are encoded again, since clipping changes no others. This is rare; a check of each row before its
            # encoding would always take time.
            encode(self._clip(cleaned), features)
        overflown = np.setdiff1d(bad_rows(features[selected]), bad)
        reasons += self._describe_overflown(block, numbers[overflown])
        bad = numbers[np.union1d(bad, overflown)] - block.start
        features[bad] = np.nan
        return Judgement(bad=bad, n_outside=n_outside, reasons=reasons, outside=columns)

    def _find_bad(self, block: Block, numbers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the positions of bad rows, whose numbers in the shard are `numbers`, and the reasons."""
        if self.missing is None and rows.dtype.kind != "f":
            return _NO_POSITIONS, []  # integers are always finite
        is_bad = bad_entries(rows, self.missing, block.shard.stored_dtype, self.fills)
        bad = np.flatnonzero(is_bad.any(axis=1))
        if len(bad) > 0 and self.on_bad_data == "raise":
            self._refuse_bad(block, numbers, rows, is_bad)
        if not self.lists_rows:
            return bad, []
        return bad, [_first_reason(numbers[i], rows[i], is_bad[i]) for i in bad]

    def _refuse_bad(self, block: Block, numbers: np.ndarray, rows: np.ndarray, is_bad: np.ndarray) -> NoReturn:
        n_bad = np.count_nonzero(is_bad.any(axis=1))
        row, column = np.argwhere(is_bad)[0]
        where = self._place(block, numbers[row], column)
        contents = "Inf, or no value at all" if self.fills else "NaN, Inf or the missing value"
        raise DataError(
            f"{block}: {rows[row, column]} in {where}; {n_bad} of these rows hold {contents}, expected finite numbers. "
            "Fix the file, or leave out any number of such rows with --on-bad-data skip --max-bad-rows 100%."
        )

    def _describe_overflown(self, block: Block, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Return the reasons for rows, given by their numbers in the shard, whose features are not finite."""
        if len(numbers) > 0 and self.on_bad_data == "raise":
            raise DataError(
                f"{block}: row {numbers[0]} and {len(numbers) - 1} more are so far outside the range of the model's "
                "training rows that they overflow. Train a model on them, or use --on-bad-data skip."
            )
        if not self.lists_rows:
            return []
        return [_reason(number, _NO_POSITIONS, "overflows float32") for number in numbers]

    def _measure_drift(
        self, block: Block, numbers: np.ndarray, rows: np.ndarray, bad: np.ndarray
    ) -> tuple[int, list[Outside]]:
        """Return the number of good rows outside the model's range, and the columns in which they lie outside."""
        if self.trained_on is None or len(bad) == len(rows):
            return 0, []
        outside = self._find_outside(block, numbers, rows, bad, self.trained_on)
        if len(outside) == 0:
            return 0, []
        return len(outside), outside_of(rows[outside], self.trained_on)

    def _clip(self, rows: np.ndarray) -> np.ndarray:
        if self.trained_on is None:
            return rows
        low, high = self.trained_on.edges(rows.dtype)
        return np.clip(rows, low, high)

    def _find_outside(
        self, block: Block, numbers: np.ndarray, rows: np.ndarray, bad: np.ndarray, trained_on: Scaler
    ) -> np.ndarray:
        """Return the positions of good rows that lie outside the model's range."""
        low = trained_on.minimum
        high = trained_on.maximum
        good = rows if len(bad) == 0 else np.delete(rows, bad, axis=0)
        # The extremes of the columns come first: they nearly always suffice, and comparing all values takes memory.
        if (good.min(axis=0) >= low).all() and (good.max(axis=0) <= high).all():
            return _NO_POSITIONS
        is_outside = (rows < low) | (rows > high)
        is_outside[bad] = False
        outside = np.flatnonzero(is_outside.any(axis=1))
        if self.on_drift == "raise":
            row, column = np.argwhere(is_outside)[0]
            expected = f"{low[column]:g} to {high[column]:g}, the range of the model's training rows"
            raise DataError(
                f"{block}: {rows[row, column]} in {self._place(block, numbers[row], column)}, expected {expected}; "
                f"{len(outside)} of these rows lie outside. Train a model on them, or use --on-drift clip."
            )
        return outside

    def _place(self, block: Block, number: int, column: np.integer[Any]) -> str:
        """Return the number of a row, and the number and name of a column, for messages."""
        # A shard in a worker process has no names, which keeps tasks small. The model contains the same names.
        columns = block.shard.columns if block.shard.columns.is_known else self.columns
        return f"row {number}, column {columns.numbered(int(column))}"


def _first_reason(number: int, row: np.ndarray, is_bad: np.ndarray) -> dict[str, Any]:
    """Return the reason for a bad row: its bad columns, and the value in the first one."""
    columns = np.flatnonzero(is_bad)
    return _reason(number, columns, str(row[columns[0]]))


def _reason(row: int, columns: np.ndarray, reason: str) -> dict[str, Any]:
    listed = columns[:_MAX_LISTED_COLUMNS].tolist()
    return {"row": int(row), "columns": listed, "reason": reason}
