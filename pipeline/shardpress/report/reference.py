"""Reference for new rows: the statistics of a sample of earlier rows.

If possible, these are held-out rows, which the model was not trained on. The statistics are stored in a file, so that
later verdicts can use them again. Its values are checked when it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shardpress.errors import quantity
from shardpress.formats import pack, unpack
from shardpress.model import Model
from shardpress.report.moments import (
    MAX_DIRECTIONS,
    Whitening,
    estimate_mean,
    first_rows,
    group_rows,
    moments_of_halves,
)
from shardpress.report.sample import Sample

_MAX_STRETCHES = 128
_MAX_ROWS = 2**53
_HUGE = 1e100  # larger numbers in a file are refused, because their products could overflow
_ARCHIVE_BYTES = 2**14  # maximum size of a file in addition to its arrays


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of the rows that new rows are compared with.

    Attributes
    ----------
    n_rows : int
        Number of rows.
    n_groups : int
        Number of groups of rows. Rows of different groups count as independent.
    is_held_out : bool
        Whether the model was trained without these rows.
    error, error_variance : float
        Mean squared reconstruction error of scaled rows, and the variance of this mean.
    outside_share : float
        Expected share of other rows of the same distribution that are outside the training range.
    outside_rows : float
        Number of independent rows that would determine `outside_share` with the same accuracy.
    outside_cluster : float
        Mean number of neighbouring rows outside the range that count as one independent row.
    feature_mean : ndarray of shape (n_features,), float64
        Mean of the features.
    basis : ndarray of shape (n_features, p), float64
        Matrix that maps centred features to `p` whitened coordinates: the leading principal components, divided by
        their standard deviations.
    means : ndarray of shape (2, p), float64
        Means of the whitened coordinates of the even and of the odd groups.
    covariances : ndarray of shape (2, p, p), float64
        Covariances of the whitened coordinates of the even and of the odd groups.
    mean_noise, covariance_noise : ndarray of shape (2,), float64
        Noise of each of the `means` and `covariances`, see `shardpress.report.moments.HalfMoments`.
    column_mean, column_deviation : ndarray of shape (n_inputs,), float64
        Mean and standard deviation of each scaled column.
    column_error : ndarray of shape (n_inputs,), float64
        Mean squared reconstruction error of each column.
    mode_share : ndarray of shape (n_inputs,), float64
        Share of the most frequent value of each column among the first rows of the groups.
    change_share : ndarray of shape (n_inputs,), float64
        Share of the pairs of neighbouring rows whose values differ, for each column.
    """

    n_rows: int
    n_groups: int
    is_held_out: bool
    error: float
    error_variance: float
    outside_share: float
    outside_rows: float
    outside_cluster: float
    feature_mean: np.ndarray
    basis: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    mean_noise: np.ndarray
    covariance_noise: np.ndarray
    column_mean: np.ndarray
    column_deviation: np.ndarray
    column_error: np.ndarray
    mode_share: np.ndarray
    change_share: np.ndarray

    @classmethod
    def of(cls, sample: Sample, model: Model, is_held_out: bool, n_fitted: int | None = None) -> Reference:
        """Return the statistics of a sample.

        Parameters
        ----------
        sample : Sample
            Two rows or more.
        is_held_out : bool
            Whether the model was trained without these rows.
        n_fitted : int, optional
            Number of rows that determined the training range, including those of the sample. Without it, the expected
            share of rows outside the range is too large.

        Raises
        ------
        ValueError
            If there are fewer than two rows.
        """
        if len(sample.rows) < 2:
            raise ValueError(f"found {quantity(len(sample.rows), 'row')}, expected at least two")
        groups = group_rows(sample)
        squares = squared_errors(sample, model)
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

    def to_npz(self) -> bytes:
        """Return the statistics as the content of an NPZ file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return pack(arrays, numbers)

    @classmethod
    def from_npz(cls, data: bytes, model: Model) -> Reference:
        """Return the statistics that `to_npz` stored.

        Raises
        ------
        ValueError
            If the data are not valid statistics for the model.
        """
        n_most = cls.max_bytes(model)
        if len(data) > n_most:
            raise ValueError(f"is not a reference of this model: {len(data)} bytes, expected at most {n_most}")
        arrays, numbers = unpack(data)
        try:
            values: dict[str, Any] = {**numbers, **arrays}
            found = cls(**values)
        except TypeError as error:
            raise ValueError(f"is not a reference: {error}") from error
        wrong = [name for name, is_valid in _field_checks(found, model).items() if not is_valid]
        if wrong:
            raise ValueError(f"is not a reference of this model: invalid values of {', '.join(wrong)}")
        return found

    @staticmethod
    def max_bytes(model: Model) -> int:
        """Return the largest size of the file of a model's reference."""
        p = MAX_DIRECTIONS
        n_numbers = (1 + p) * model.n_features + 2 * p * (1 + p) + 4 + 5 * model.n_inputs
        return n_numbers * np.dtype(np.float64).itemsize + _ARCHIVE_BYTES


_ARRAYS = tuple(field.name for field in fields(Reference) if field.type == "np.ndarray")
_NUMBERS = tuple(field.name for field in fields(Reference) if field.name not in _ARRAYS)


# -- choice of rows ------------------------------------------------------------------------------------------------


def held_out_stretches(rows: np.ndarray, n_wanted: int, max_stretches: int = _MAX_STRETCHES) -> list[tuple[int, int]]:
    """Choose stretches of held-out rows for `draw_sample`, evenly spread over all held-out rows.

    Parameters
    ----------
    rows : ndarray of shape (n_rows,), int64
        Sorted numbers of the held-out rows, counted over all parts. They can include bad rows.
    n_wanted : int
        Largest number of rows in all stretches together.
    max_stretches : int
        Largest number of stretches.

    Returns
    -------
    list of (int, int)
        First row of each stretch, and the row after its last one.
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
    """Return whether any value of a row is larger than in all other groups.

    The rows have shape (n_rows, n_columns), and the result has shape (n_rows,).
    """
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


# -- validation of a stored reference ------------------------------------------------------------------------------


def _field_checks(found: Reference, model: Model) -> dict[str, bool]:
    """Map each field to whether its value is valid."""
    p = -1
    if isinstance(found.basis, np.ndarray) and found.basis.ndim == 2:
        p = found.basis.shape[1]
    has_rows = _is_count(found.n_rows, 2, _MAX_ROWS)
    per_column = (model.n_inputs,)
    return {
        "n_rows": has_rows,
        "n_groups": has_rows and _is_count(found.n_groups, 2, found.n_rows),
        "is_held_out": type(found.is_held_out) is bool,
        "error": _is_between(found.error, 0, _HUGE),
        "error_variance": _is_between(found.error_variance, 0, _HUGE),
        "outside_share": _is_between(found.outside_share, 0, 1),
        "outside_rows": _is_between(found.outside_rows, 1, _HUGE),
        "outside_cluster": _is_between(found.outside_cluster, 1, _HUGE),
        "feature_mean": _is_array(found.feature_mean, (model.n_features,), -_HUGE, _HUGE),
        "basis": p <= MAX_DIRECTIONS and _is_array(found.basis, (model.n_features, p), -_HUGE, _HUGE),
        "means": _is_array(found.means, (2, p), -_HUGE, _HUGE),
        "covariances": _is_array(found.covariances, (2, p, p), -_HUGE, _HUGE),
        "mean_noise": _is_array(found.mean_noise, (2,), 0, _HUGE),
        "covariance_noise": _is_array(found.covariance_noise, (2,), 0, _HUGE),
        "column_mean": _is_array(found.column_mean, per_column, -_HUGE, _HUGE),
        "column_deviation": _is_array(found.column_deviation, per_column, 0, _HUGE),
        "column_error": _is_array(found.column_error, per_column, 0, _HUGE),
        "mode_share": _is_array(found.mode_share, per_column, 0, 1),
        "change_share": _is_array(found.change_share, per_column, 0, 1),
    }


def _is_count(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_between(value: object, low: float, high: float) -> bool:
    """Return whether a value is a float in a range. NaN is in no range."""
    return type(value) is float and low <= value <= high


def _is_array(array: object, shape: tuple[int, ...], low: float, high: float) -> bool:
    """Return whether an object is a float64 array of a shape, with values in a range. NaN is in no range."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float64 or array.shape != shape:
        return False
    return bool(((array >= low) & (array <= high)).all())
