"""Tests of drift: values outside a range are counted by column, for any pieces of the rows."""

from __future__ import annotations

import numpy as np

from shardpress.model.scaler import Scaler
from shardpress.scan.drift import farthest, outside_of

RANGE = Scaler(np.array([0.0, -1.0, 5.0, 0.0]), np.array([1.0, 2.0, 5.0, 1.0]))


def test_values_outside_are_counted_by_column_with_the_extreme() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 4)) * 3
    rows[:, 3] = 0.5
    found = {one.column: one for one in outside_of(rows, RANGE)}
    assert sorted(found) == [0, 1, 2]
    distances = np.maximum(RANGE.minimum - rows, rows - RANGE.maximum)
    for column, one in found.items():
        assert one.n_values == np.count_nonzero(distances[:, column] > 0)
        assert one.value == rows[distances[:, column].argmax(), column]
    assert found[2].distance == 0  # for a constant column the distance is undefined
    pieces = [outside_of(rows[i : i + 7], RANGE) for i in range(0, 500, 7)]
    assert farthest(one for piece in reversed(pieces) for one in piece) == outside_of(rows, RANGE)
