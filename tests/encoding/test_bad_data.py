"""Tests of bad data: which rows of a block are bad, and which are outside the range of a model.

Whole runs over such rows are in `tests/run/test_bad_rows.py` and `tests/run/test_outside.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shardpress.encoding.bad_data import BadData, RowFacts
from shardpress.hdf5.shard import Block, Shard
from shardpress.model.scaler import Scaler
from shardpress.result.records import BadValues
from tests.support.cases import case
from tests.support.helpers import refused

LOW = np.array([0.0, -1.0])
HIGH = np.array([1.0, 2.0])


def judge(bad_data: BadData, rows: Any) -> tuple[list[int], RowFacts]:
    """Return the positions of the bad rows among rows 100, 101 and so on, and facts about all rows."""
    array = np.array(rows, dtype=np.float32)
    block = Block(Shard("a.h5", "X", (1000, array.shape[1]), "<f4"), 100, 100 + len(array))
    facts = bad_data.judge(block, np.arange(100, block.stop), array, array)
    return [row.start - 100 for row in facts.bad], facts


def with_range(on_drift: str) -> BadData:
    return BadData("skip", on_drift=on_drift, trained_on=Scaler(LOW, HIGH))


def test_bad_rows_are_reported_with_their_place() -> None:
    rows = [[1, np.nan, 3], [np.inf, 5, np.nan], [1, 2, 3], [5, 3, 1]]
    bad, facts = judge(BadData("skip", missing=5), rows)
    assert bad == [0, 1, 3]
    assert facts.bad == [
        BadValues(100, 101, [1], "nan"),
        BadValues(101, 102, [0, 1, 2], "inf"),
        BadValues(103, 104, [0], "5.0"),
    ]
    with refused(65, "file=a.h5 dataset=X rows=100:104", "row 100, column 1"):
        judge(BadData(), rows)


def test_rows_below_or_above_the_range_are_counted() -> None:
    """Bad rows are never outside the range, and rows on its edge are inside."""
    for outside in ([-0.5, 0], [0.5, -2], [1.5, 0], [0.5, 3]):
        for on_drift in ("pass", "clip"):
            bad, facts = judge(with_range(on_drift), [LOW, outside, [np.nan, 9], HIGH, [7, np.inf]])
            with case(outside, on_drift):
                assert (facts.n_outside, bad) == (1, [2, 4])
    for rows in ([LOW, HIGH, [0.5, 0], [np.nan, 5]], [[7, np.inf]], np.empty((0, 2))):
        assert judge(with_range("raise"), rows)[1].n_outside == 0
