"""Handling of bad rows, and of rows outside the range of a given model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from shardpress.base.errors import DataError
from shardpress.hdf5.columns import NO_COLUMNS, Columns
from shardpress.hdf5.shard import Block
from shardpress.model.scaler import Scaler, bad_entries, bad_rows
from shardpress.result.records import BadValues, Outside
from shardpress.scan.drift import farthest, outside_of

_MAX_LISTED_COLUMNS = 20  # columns to list per row, because a row can have thousands of bad values
NO_POSITIONS = np.empty(0, dtype=np.int64)


@dataclass
class RowFacts:
    """Bad rows and drift in a block, or in several blocks."""

    n_outside: int = 0  # good rows with values outside the model's range
    bad: list[BadValues] = field(default_factory=list)
    # columns in which good rows have values outside the model's range, the farthest first
    outside: list[Outside] = field(default_factory=list)

    def add(self, other: RowFacts) -> None:
        self.n_outside += other.n_outside
        self.bad += other.bad
        self.outside = farthest([*self.outside, *other.outside])


@dataclass(frozen=True)
class BadData:
    """Settings that define which rows are bad and how to handle them.

    Tasks do not include `trained_on` and `columns`, which are as large as a row: `shardpress.encoding.encode` adds
    them.
    """

    on_bad_data: str = "raise"  # ``raise`` or ``skip``
    missing: float | None = None  # value that marks missing entries, in addition to NaN
    on_drift: str = "pass"  # ``pass``, ``clip`` or ``raise``
    # scaler with the range of the model's training rows; None if no row can be outside this range
    trained_on: Scaler | None = None
    # the model imputes missing values: a row is bad only if it contains Inf, or if all values are missing
    fills: bool = False
    columns: Columns = NO_COLUMNS  # names of the model's columns, for messages about a shard without names

    @property
    def clips_drift(self) -> bool:
        """True if values outside the model's range are clipped to it."""
        return self.trained_on is not None and self.on_drift == "clip"

    def judge(self, block: Block, numbers: np.ndarray, rows: np.ndarray, cleaned: np.ndarray) -> RowFacts:
        """Return the bad rows among some rows of a block, and facts about those outside the model's range.

        `numbers` (n_rows,) are the numbers of the rows in the shard. They are given as they were read (n_rows,
        n_columns), and after cleaning (n_rows, n_inputs).

        Raise `DataError` if the settings do not allow a row.
        """
        bad, reasons = self._find_bad(block, numbers, rows)
        n_outside, columns = self._measure_drift(block, numbers, cleaned, bad)
        return RowFacts(n_outside, reasons, columns)

    def overflown(self, block: Block, numbers: np.ndarray, features: np.ndarray, judged: RowFacts) -> list[BadValues]:
        """Return the rows that are finite, but so far outside the range that their features overflow float32.

        Raise `DataError` if the settings do not allow a row.
        """
        not_finite = bad_rows(features)
        if not len(not_finite):
            return []
        overflown = np.setdiff1d(numbers[not_finite], [row.start for row in judged.bad])
        if len(overflown) > 0 and self.on_bad_data == "raise":
            first = block.shard.first_row + overflown[0]
            raise DataError(
                f"{block}: the features of row {first} and {len(overflown) - 1} more rows overflow float32, because "
                "the rows are too far outside the range of the model's training rows. Train a model on such rows, or "
                "skip them with --on-bad-data skip."
            )
        return [_bad_row(number, NO_POSITIONS, "overflows float32") for number in overflown]

    def _find_bad(self, block: Block, numbers: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, list[BadValues]]:
        """Return the positions of bad rows and the reasons. `numbers` are the row numbers in the shard."""
        if self.missing is None and rows.dtype.kind != "f":
            return NO_POSITIONS, []  # integers are always finite
        is_bad = bad_entries(rows, self.missing, block.shard.stored_dtype, self.fills)
        bad = np.flatnonzero(is_bad.any(axis=1))
        if len(bad) > 0 and self.on_bad_data == "raise":
            self._refuse_bad(block, numbers, rows, is_bad)
        return bad, [_first_reason(numbers[i], rows[i], is_bad[i]) for i in bad]

    def _refuse_bad(self, block: Block, numbers: np.ndarray, rows: np.ndarray, is_bad: np.ndarray) -> NoReturn:
        n_bad = np.count_nonzero(is_bad.any(axis=1))
        row, column = np.argwhere(is_bad)[0]
        where = self._place(block, numbers[row], column)
        contents = "Inf, or no value at all" if self.fills else "NaN, Inf or the missing value"
        raise DataError(
            f"{block}: found {rows[row, column]} in {where}, expected finite numbers. {n_bad} of these rows contain "
            f"{contents}. Fix the file, or skip any number of such rows with --on-bad-data skip --max-bad 100%."
        )

    def _measure_drift(
        self, block: Block, numbers: np.ndarray, rows: np.ndarray, bad: np.ndarray
    ) -> tuple[int, list[Outside]]:
        """Return the number of good rows outside the model's range, and the affected columns."""
        if self.trained_on is None or len(bad) == len(rows):
            return 0, []
        low = self.trained_on.minimum
        high = self.trained_on.maximum
        good = rows if len(bad) == 0 else np.delete(rows, bad, axis=0)
        # Compare the extremes of the columns first. This nearly always suffices, and takes less memory than comparing
        # all values.
        if (good.min(axis=0) >= low).all() and (good.max(axis=0) <= high).all():
            return 0, []
        is_outside = (rows < low) | (rows > high)
        is_outside[bad] = False
        outside = np.flatnonzero(is_outside.any(axis=1))
        if len(outside) == 0:
            return 0, []
        if self.on_drift == "raise":
            row, column = np.argwhere(is_outside)[0]
            expected = f"{low[column]:g} to {high[column]:g}, the range of the model's training rows"
            raise DataError(
                f"{block}: found {rows[row, column]} in {self._place(block, numbers[row], column)}, expected "
                f"{expected}. {len(outside)} of these rows are outside this range. Train a model on such rows, or clip "
                "them with --on-drift clip."
            )
        return len(outside), outside_of(rows[outside], self.trained_on)

    def _place(self, block: Block, number: int, column: np.integer[Any]) -> str:
        """Describe the row (number) and the column (number and name) for messages."""
        # Shards in worker processes have no column names, which keeps tasks small. The model has the same names.
        columns = block.shard.columns if block.shard.columns.has_names else self.columns
        return f"row {block.shard.first_row + number}, column {columns.numbered(int(column))}"


def _first_reason(number: int, row: np.ndarray, is_bad: np.ndarray) -> BadValues:
    """Return a record of a bad row with its bad columns, and the value in the first bad column as the reason."""
    columns = np.flatnonzero(is_bad)
    return _bad_row(number, columns, str(row[columns[0]]))


def _bad_row(number: int, columns: np.ndarray, reason: str) -> BadValues:
    return BadValues(int(number), int(number) + 1, columns[:_MAX_LISTED_COLUMNS].tolist(), reason)
