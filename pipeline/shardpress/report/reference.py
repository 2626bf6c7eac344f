"""Reference for new rows: the statistics of a sample of earlier rows.

If possible, these are held-out rows, which the model was not trained on. The statistics are stored with the result, so
that later verdicts can use them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shardpress.errors import quantity
from shardpress.model import Model
from shardpress.outliers import VERY_FAR, outliers
from shardpress.report.moments import (
    Whitening,
    estimate_mean,
    first_rows,
    group_rows,
    moments_of_halves,
)
from shardpress.report.sample import Sample

_MAX_STRETCHES = 128
_VERSION = 2  # of the statistics; those of another version are computed again


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the rows that new rows are compared with. All arrays are float64."""

    n_rows: int
    n_groups: int  # groups of rows; rows of different groups count as independent
    is_held_out: bool  # whether the model was trained without these rows
    error: float  # mean squared reconstruction error of scaled rows
    error_variance: float  # of this mean
    outside_share: float  # expected share of other rows of the same distribution outside the training range
    outside_rows: float  # independent rows that would determine `outside_share` as accurately
    outside_cluster: float  # mean number of neighbouring rows outside the range that count as one independent row
    feature_mean: np.ndarray  # (n_features,)
    basis: np.ndarray  # (n_features, p), see `Whitening`
    means: np.ndarray  # (2, p), of the whitened coordinates of the even and of the odd groups
    covariances: np.ndarray  # (2, p, p), of the same
    mean_noise: np.ndarray  # (2,), see `HalfMoments`
    covariance_noise: np.ndarray  # (2,)
    column_mean: np.ndarray  # (n_inputs,), of the scaled columns
    column_deviation: np.ndarray  # (n_inputs,)
    column_error: np.ndarray  # (n_inputs,), mean squared reconstruction errors
    mode_share: np.ndarray  # (n_inputs,), share of the most frequent value among the first rows of the groups
    change_share: np.ndarray  # (n_inputs,), share of the pairs of neighbouring rows whose values differ

    @classmethod
    def of(cls, sample: Sample, model: Model, is_held_out: bool, n_fitted: int | None = None) -> Reference:
        """Return the statistics of a sample without its outliers. Raise `ValueError` if it has fewer than two rows.

        `n_fitted` is the number of rows that determined the training range, including those of the sample. Without it,
        the expected share of rows outside the range is too large.
        """
        if len(sample.rows) < 2:
            raise ValueError(f"found {quantity(len(sample.rows), 'row')}, expected at least two")
        squares = squared_errors(sample, model)
        is_usual = ~outliers(squares.mean(axis=1), VERY_FAR)
        sample = sample.selected(is_usual)
        squares = squares[is_usual]
        groups = group_rows(sample)
        error = estimate_mean(squares.mean(axis=1), groups)
        outside = _expected_outside(sample.scaled[:, : model.n_columns], groups, n_fitted)
        whitening = Whitening.of(sample.features, groups)
        halves = moments_of_halves(whitening.apply(sample.features), groups)
        return cls(
            n_rows=len(sample.rows),
            n_groups=error.n_groups,
            is_held_out=is_held_out,
            error=error.value,
            error_variance=error.variance,
            outside_share=outside.share,
            outside_rows=outside.n_rows,
            outside_cluster=outside.cluster,
            feature_mean=whitening.mean,
            basis=whitening.basis,
            means=np.stack([half.mean for half in halves]),
            covariances=np.stack([half.covariance for half in halves]),
            mean_noise=np.array([half.mean_noise for half in halves]),
            covariance_noise=np.array([half.covariance_noise for half in halves]),
            column_mean=sample.scaled.mean(axis=0, dtype=np.float64),
            column_deviation=sample.scaled.std(axis=0, dtype=np.float64),
            column_error=squares.mean(axis=0),
            mode_share=_mode_shares(sample.scaled, groups),
            change_share=neighbours_differ(sample).mean(axis=0),
        )

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the arrays and the numbers of the statistics."""
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {name: getattr(self, name) for name in _ARRAYS}, {"version": _VERSION, **numbers}

    @classmethod
    def of_stored(cls, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, Any]) -> Reference | None:
        """Return the statistics from the result of `stored`; None if another version has computed them."""
        values: dict[str, Any] = {**numbers, **arrays}
        return cls(**values) if values.pop("version") == _VERSION else None


_ARRAYS = tuple(field.name for field in fields(Reference) if field.type == "np.ndarray")
_NUMBERS = tuple(field.name for field in fields(Reference) if field.name not in _ARRAYS)


# -- choice of rows ------------------------------------------------------------------------------------------------


def held_out_stretches(rows: np.ndarray, n_wanted: int, max_stretches: int = _MAX_STRETCHES) -> list[tuple[int, int]]:
    """Choose stretches of held-out rows for `draw_sample`, evenly spread over all held-out rows.

    `rows` (n_rows,), int64, are their sorted numbers, counted over all parts. They can include bad rows. Return the
    first row of each stretch, and the row after its last one; all stretches together have at most `n_wanted` rows.
    """
    n_most = min(max_stretches, n_wanted)
    if n_most < 1 or not len(rows):
        return []
    length = n_wanted // n_most
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    pieces = [run[start : start + length] for run in runs for start in range(0, len(run), length)]
    chosen = np.linspace(0, len(pieces) - 1, min(n_most, len(pieces))).astype(int)
    return [(int(pieces[i][0]), int(pieces[i][-1]) + 1) for i in chosen]


# -- statistics of a sample ----------------------------------------------------------------------------------------


def squared_errors(sample: Sample, model: Model) -> np.ndarray:
    """Return the squared reconstruction error of each scaled value, float64 (n_rows, n_inputs)."""
    return np.square(sample.scaled - model.decode(sample.features))


def neighbours_differ(sample: Sample) -> np.ndarray:
    """Return whether the values of neighbouring rows differ, bool (n_pairs, n_inputs).

    The rows of a pair belong to the same stretch. If all stretches have one row, they belong to consecutive stretches.
    """
    differs = sample.scaled[1:] != sample.scaled[:-1]
    is_pair = np.diff(sample.stretches) == 0
    return differs[is_pair] if is_pair.any() else differs


class _Outside(NamedTuple):
    """Expected rows outside the training range, see `Reference`."""

    share: float
    n_rows: float
    cluster: float


def _expected_outside(rows: np.ndarray, groups: np.ndarray, n_fitted: int | None) -> _Outside:
    """Return the expected share of other rows outside the range of the `n_fitted` training rows.

    The training range includes the rows of the sample, so each group is compared with the range of the other groups
    instead. The share is inversely proportional to the number of rows that determine the range.
    """
    n_rows = len(rows)
    is_outside = _is_extreme(rows, groups) | _is_extreme(-rows, groups)
    found = estimate_mean(is_outside.astype(np.float64), groups)
    spread = found.value * (1 - found.value)
    if spread == 0:
        return _Outside(found.value, float(n_rows), 1.0)
    cluster = max(1.0, found.variance * n_rows / spread)
    if n_fitted is None:
        return _Outside(found.value, n_rows / cluster, cluster)
    n_fitted = max(n_fitted, n_rows)
    return _Outside(found.value * n_rows / n_fitted, n_fitted / cluster, cluster)


def _is_extreme(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return whether any value of a row (n_rows, n_columns) is larger than in all other groups: bool (n_rows,)."""
    maxima = np.maximum.reduceat(rows, first_rows(groups), axis=0)
    largest_group = maxima.argmax(axis=0)
    second = np.partition(maxima, -2, axis=0)[-2]
    return ((rows > second) & (groups[:, None] == largest_group)).any(axis=1)


def _mode_shares(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the share of the most frequent value of each column among the first rows of the groups: (n_inputs,)."""
    values = np.sort(rows[first_rows(groups)], axis=0)
    n_equal = np.ones(values.shape[1])
    n_most = n_equal
    for before, value in pairwise(values):
        n_equal = np.where(value == before, n_equal + 1, 1)
        n_most = np.maximum(n_most, n_equal)
    return n_most / len(values)
