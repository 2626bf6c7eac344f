"""Drift: what lies outside a range is counted by column, whatever pieces the rows come in."""

from __future__ import annotations

import numpy as np

from pipeline.columns import Columns
from pipeline.scan.drift import Outside, farthest, outside_of
from pipeline.scan.scaler import Scaler

RANGE = Scaler(np.array([0.0, -1.0, 5.0, 0.0]), np.array([1.0, 2.0, 5.0, 1.0]))


def test_values_are_counted_by_column_with_the_one_that_is_farthest() -> None:
    rows = np.random.default_rng(0).normal(size=(500, 4)) * 3
    rows[:, 3] = 0.5
    found = {one.column: one for one in outside_of(rows, RANGE)}
    assert sorted(found) == [0, 1, 2]
    for column, one in found.items():  # the slow way
        values, low, high = rows[:, column], RANGE.minimum[column], RANGE.maximum[column]
        out = [value for value in values if value < low or value > high]
        assert one.n_values == len(out)
        assert max(low - one.value, one.value - high) == max(max(low - value, value - high) for value in out)
    assert found[2].distance == 0  # of a column that was one value, there is no telling how far


def test_what_is_found_does_not_depend_on_how_it_is_gathered() -> None:
    rows = np.round(np.random.default_rng(1).normal(size=(60, 4)) * 2)  # with values that are as far as others
    expected = outside_of(rows, RANGE)
    for size in (1, 7, 30):
        pieces = [outside_of(rows[i : i + size], RANGE) for i in range(0, 60, size)]
        assert farthest(one for piece in reversed(pieces) for one in piece) == expected
    assert farthest(expected, 2) == expected[:2]


def test_it_is_said_in_words_and_in_ranges() -> None:
    nameless, named = Columns(), Columns(("a", "b", "c"))
    assert Outside(1, 8, -1, 2).described(nameless) == "column 1 (8, trained on -1 to 2, 2 times that range away)"
    assert Outside(2, 5, 0, 0).described(nameless) == "column 2 (5, trained on 0 alone)"
    assert Outside(2, 5, 0, 0).described(named) == "column 2 (c) (5, trained on 0 alone)"
