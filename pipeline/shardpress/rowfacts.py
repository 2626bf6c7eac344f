"""Rows of a finished run that have a value of an extra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardpress.features import Features


def rows_with_value(run: Features, name: str) -> np.ndarray:
    """Return a mask of the rows that have a value of an extra, bool (n_rows,).

    The other rows are those of shards without the extra, and those whose value could not be read. Their fill values can
    be values of other rows, too.
    """
    has_value = np.ones(len(run.extras[name]), dtype=bool)
    if run.result is None:
        return has_value
    mask = run.result.facts.masks.get(name)
    if mask is not None:
        has_value &= run.extras[mask].compute()
    first = 0
    for _, each in run.result.ranges:
        lost = each.lost.get(name)
        if lost:
            has_value[first : first + each.n_rows] &= ~in_ranges(np.arange(each.start, each.stop), lost)
        first += each.n_rows
    return has_value


def in_ranges(numbers: np.ndarray, ranges: Sequence[Sequence[int]]) -> np.ndarray:
    """Return whether each number is in one of the ranges, which are pairs of a first number and an end: bool (n,)."""
    found = np.zeros(len(numbers), dtype=bool)
    for first, end in ranges:
        found |= (numbers >= first) & (numbers < end)
    return found
