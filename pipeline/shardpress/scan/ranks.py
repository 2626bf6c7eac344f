"""Ranks of values in their columns, from tables that are computed from the sample of a scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardpress import rowmath

MAX_KNOTS = 256  # of a column

_BITS = 32
_MARGIN = 2.0**-30  # relative; more than the rounding to `_BITS` bits
_SMALL = 2.0**-32  # factor of knots, because their distance divided by that of their ranks could overflow


@dataclass(frozen=True, eq=False)
class RankTables:
    """A piecewise linear function of each column, from values to ranks between 0 and 1."""

    # Increasing values of each column: (n_columns, n_knots), float64. A column with fewer knots repeats the last one.
    knots: np.ndarray
    # Rank of each knot: (n_columns, n_knots), float64. Ranks are rounded to float32, so that rows of both dtypes have
    # the same range.
    ranks: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return the ranks of rows (n_rows, n_columns), float32 or float64, in their dtype. NaN stays NaN.

        Values below the first knot get 0, and values above the last knot get 1.
        """
        found = np.array(rows, order="C")
        rowmath.replace_by_ranks(found, np.ascontiguousarray(self.knots), np.ascontiguousarray(self.ranks))
        return found

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """Return values, float64, for ranks (n_rows, n_columns), float64. They lie between the first and last knot."""
        found = np.empty_like(rows)
        lengths = 1 + (np.diff(self.knots, axis=1) > 0).sum(axis=1)  # without repeated knots
        for column, n in enumerate(lengths):
            knots = self.knots[column, :n] * _SMALL
            found[:, column] = np.interp(rows[:, column], self.ranks[column, :n], knots) / _SMALL
        return found


def rank_tables(sample: np.ndarray, is_rounded: bool = False) -> RankTables:
    """Return the tables of a sample (n, n_columns), float64, in which NaN is ignored.

    The knots of a column are its different values, or quantiles if there are more than 256. The rank of a knot is the
    mean position of the values that are equal to it, in the sorted sample, divided by the last position. The rank of
    the smallest and largest value is therefore 0 and 1, if they occur once. This is the rule of `scipy.stats.rankdata`
    with the method ``average``.

    If the values have rounding errors (`is_rounded`), values that are equal up to such errors, such as 1 and
    49 * (1 / 49), get one knot, and the first and last knot are a little lower and higher. Ranks then hardly depend on
    rounding errors, so that other programs get the same ranks.
    """
    tables = [_table(values, is_rounded) for values in sample.T]
    n_knots = max((len(knots) for knots, _ in tables), default=1)
    return RankTables(
        knots=np.array([_padded(knots, n_knots) for knots, _ in tables]).reshape(len(tables), n_knots),
        ranks=np.array([_padded(ranks, n_knots) for _, ranks in tables]).reshape(len(tables), n_knots),
    )


def are_tables(knots: np.ndarray, ranks: np.ndarray) -> bool:
    """Return whether the knots and ranks of each column are finite and increase, and ranks are between 0 and 1."""
    is_finite = np.isfinite(knots).all() and np.isfinite(ranks).all()
    increases = (knots[:, 1:] >= knots[:, :-1]).all() and (ranks[:, 1:] >= ranks[:, :-1]).all()
    return bool(is_finite and increases and (ranks[:, 0] >= 0).all() and (ranks[:, -1] <= 1).all())


def _table(values: np.ndarray, is_rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the knots and ranks of a column, whose sampled values (n,) can contain NaN."""
    in_order = np.sort(values[~np.isnan(values)])
    if not len(in_order):
        return np.zeros(1), np.full(1, 0.5)
    if is_rounded:
        in_order = _shortened(in_order)
    knots = _knots(in_order)
    first = np.searchsorted(in_order, knots, side="left")
    last = np.searchsorted(in_order, knots, side="right") - 1
    n_steps = len(in_order) - 1
    ranks = (first + last) / (2 * n_steps) if n_steps else np.full(1, 0.5)
    ranks = ranks.astype(np.float32).astype(np.float64)
    return _with_margins(knots, ranks) if is_rounded else (knots, ranks)


def _shortened(values: np.ndarray) -> np.ndarray:
    """Round values to `_BITS` bits."""
    mantissas, exponents = np.frexp(values)
    return np.ldexp(np.rint(mantissas * 2.0**_BITS), exponents - _BITS)


def _with_margins(knots: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the first knot down and the last one up. A single knot is repeated."""
    if len(knots) == 1:
        knots = np.repeat(knots, 2)
        ranks = np.repeat(ranks, 2)
    margins = _MARGIN * np.abs(knots)
    knots = knots.copy()
    knots[0] -= margins[0]
    knots[-1] += margins[-1]
    return knots, ranks


def _knots(in_order: np.ndarray) -> np.ndarray:
    """Return at most `MAX_KNOTS` increasing values of a sorted array."""
    knots = np.unique(in_order)
    if len(knots) > MAX_KNOTS:
        positions = np.rint(np.linspace(0, len(in_order) - 1, MAX_KNOTS)).astype(np.int64)
        knots, n_positions = np.unique(in_order[positions], return_counts=True)
        # Values next to a frequent value have a far higher or lower rank. Its repetitions leave room for two knots.
        frequent = knots[n_positions >= 3]
        below = np.searchsorted(in_order, frequent, side="left") - 1
        above = np.searchsorted(in_order, frequent, side="right")
        neighbours = np.concatenate([below, above]).clip(0, len(in_order) - 1)
        knots = np.union1d(knots, in_order[neighbours])
    # With a subnormal distance between two knots, the slope could overflow.
    is_distant = np.diff(knots / 2) >= np.finfo(np.float64).tiny
    return knots[np.concatenate([[True], is_distant])]


def _padded(values: np.ndarray, n: int) -> np.ndarray:
    return np.pad(values, (0, n - len(values)), mode="edge")
