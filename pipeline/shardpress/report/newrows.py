"""Verdict on appended rows: whether they are like the held-out rows of the training.

The sizes of the differences decide, because any difference is significant if there are enough rows. Only what exceeds
the noise of a difference counts: see `shardpress.report.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import numpy as np

from shardpress.base.errors import printable, quantity, short_list
from shardpress.base.outliers import MOST_OF_ALL, largest_share
from shardpress.hdf5.columns import Columns, with_name
from shardpress.model.encoder import Model
from shardpress.report.reference import Reference, estimate, groups_of, measured, neighbours, squared_errors
from shardpress.report.sampling import Sample
from shardpress.result.facts import Level, StuckColumn, Verdict
from shardpress.training.components import NOTHING

# Limits of each difference: above the first one the verdict is "watch", above the second one "retrain".
_ERROR_GROWTHS = (0.1, 0.5)  # relative to the error of the reference
# New rows can be like a part of the training rows, such as one class or one day. They need no other model. If this part
# is a share s of the training rows, its mean shift is at most sqrt(1 / s - 1), and its variances are at most 1 / s
# times as large as those of all rows. The second limits are these bounds for s = 0.1.
_MEAN_SHIFTS = (0.5, 3.0)
_COVARIANCE_SHIFTS = (1.0, 9.0)
_OUTSIDE_SHARES = (0.01, 0.1)  # in addition to the expected share

# The square of a difference without a cause is about the trace of its covariance matrix, and its deviation is at most
# 1.41 times the norm of this matrix.
_NOISE_NORMS = 8.0
_STUCK_PROBABILITY = 1e-4  # probability that any column of unchanged rows seems stuck
_MIN_ERROR = 1e-12  # mean squared error of scaled values that rounding can cause
_MAX_LISTED = 3  # columns in a reason
_LEVELS: tuple[Level, ...] = get_args(Level)


def judge_new_rows(
    reference: Reference,
    sample: Sample | None,
    model: Model,
    columns: Columns,
    n_outside: int,
    n_rows: int,
    files: Sequence[str],
) -> Verdict:
    """Return the verdict on `n_rows` new good rows, of which `n_outside` are outside the training range.

    `sample` contains some of the new rows. It is None if fewer than two of them are good. `files` are the paths of its
    sources.
    """
    if sample is None or len(sample.rows) < 2:
        return Verdict("keep", ["There are too few good new rows to judge."], n_rows, n_sampled=0)
    n_sampled = len(sample.rows)
    squares = squared_errors(sample, model)
    errors = squares.mean(axis=1)
    n_blocks = reference.n_blocks_of(len(set(files)), n_rows)
    error, mean, covariance = _differences(reference, sample, errors, n_blocks)
    outside_share = n_outside / max(1, n_rows)
    is_usual = errors <= max(float(reference.most_error), float(np.median(errors)))
    stuck = _stuck_columns(reference, sample.scaled[is_usual, : model.n_columns], sample.stretches[is_usual])
    grown = squares[is_usual].mean(axis=0) - reference.column_error
    shifts = _column_shifts(reference, sample.scaled[is_usual])
    findings = [
        (
            _level(error.excess, _ERROR_GROWTHS),
            f"The mean reconstruction error is {1 + error.size:.3g} times that of the held-out rows. It has grown most "
            f"in {_names_of_largest(grown, model, columns)}.",
        ),
        (
            _level(mean.excess, _MEAN_SHIFTS),
            f"The mean of the features has shifted by {mean.size:.3g} standard deviations (Mahalanobis distance). The "
            f"means of the inputs have shifted most in {_names_of_largest(shifts, model, columns)}.",
        ),
        (
            _level(covariance.excess, _COVARIANCE_SHIFTS),
            f"Variances and correlations of the features have changed by {covariance.size:.3g}; 1 corresponds to a "
            "doubled variance in one direction.",
        ),
        _describe_outside(reference, outside_share, n_rows, n_blocks),
        _describe_stuck(stuck, n_sampled, columns),
    ]
    reasons = [reason for level, reason in findings if level]
    if not reasons:
        reasons = [f"{quantity(n_sampled, 'sampled new row')}: no difference from the held-out rows was found."]
    has_directions = reference.basis.shape[1] > 0
    return Verdict(
        level=_LEVELS[max(level for level, _ in findings)],
        reasons=[*reasons, *_describe_outlier(sample, errors, files)],
        n_rows=n_rows,
        n_sampled=n_sampled,
        outside_share=outside_share,
        reference_outside_share=float(reference.outside_share),
        error_ratio=1 + error.size,
        mean_shift=mean.size if has_directions else None,
        covariance_shift=covariance.size if has_directions else None,
        stuck_columns=[StuckColumn(column, columns.name_of(column)) for column in stuck],
    )


# -- comparison ----------------------------------------------------------------------------------------------------


class _Difference(NamedTuple):
    """Size of a difference, and the part of it that noise does not explain."""

    size: float
    excess: float


def _difference(vector: np.ndarray, noise: np.ndarray) -> _Difference:
    """Return the length of a vector without the length that noise (see `reference._Estimate`) is expected to add."""
    square = float(vector @ vector)
    trace, norm = noise.tolist()
    return _Difference(_root(square - trace), _root(square - trace - _NOISE_NORMS * norm))


def _root(square: float) -> float:
    return math.sqrt(max(0.0, square))


def _differences(
    reference: Reference, sample: Sample, errors: np.ndarray, n_blocks: float
) -> tuple[_Difference, _Difference, _Difference]:
    """Return the relative growth of the error, and the shifts of the mean and of the covariance of the features."""
    values = measured(sample.features, errors, reference.most_error, reference.center, reference.basis)
    groups = groups_of(sample)
    differences = {}
    noises = {}
    for name, of_rows in values.items():
        mean, noise = estimate(of_rows, groups)
        differences[name] = mean - reference.estimates[name].mean
        noises[name] = noise + reference.estimates[name].noise + reference.between[name] / n_blocks
    shift = differences["mean"]
    products = differences["covariance"] - np.outer(shift, shift).ravel()
    negligible = max(NOTHING * float(np.square(reference.column_deviation).mean()), _MIN_ERROR)
    before = max(float(reference.estimates["error"].mean[0]), negligible)
    growth = (before + differences["error"]).clip(negligible) / before - 1
    of_error = _Difference(float(growth[0]), 0.0)
    if growth[0] > 0:
        of_error = of_error._replace(excess=_difference(growth, noises["error"] / before**2).excess)
    return of_error, _difference(shift, noises["mean"]), _difference(products, noises["covariance"])


def _excess_outside(reference: Reference, share: float, n_rows: int, n_blocks: float) -> float:
    """Return the share of rows outside the range, minus the expected share and what noise explains."""
    expected = float(reference.outside_share)
    correlation = float(reference.outside_correlation)
    noise = share * (1 - share) * (1 / max(1, n_rows) + correlation / n_blocks)
    noise += expected * (1 - expected) * (1 / float(reference.n_fitted) + correlation / float(reference.n_blocks))
    growth = max(0.0, share - expected)
    return _difference(np.array([growth]), np.array([noise, noise])).excess


def _column_shifts(reference: Reference, scaled: np.ndarray) -> np.ndarray:
    """Return the shift of the mean of each input, in standard deviations (n_inputs,)."""
    deviation = reference.column_deviation
    least = max(NOTHING * float(deviation.max()), _MIN_ERROR)  # for columns that are constant in the reference
    return np.abs(scaled.mean(axis=0, dtype=np.float64) - reference.column_mean) / np.maximum(deviation, least)


def _stuck_columns(reference: Reference, rows: np.ndarray, stretches: np.ndarray) -> list[int]:
    """Return the columns with one value in all sampled rows, if this is improbable for rows like the reference.

    The rows (n_rows, n_columns) are in `stretches` (n_rows,). A column that rarely changes from row to row, such as a
    date, can have one value in all new rows.
    """
    n_columns = rows.shape[1]
    is_constant = (rows == rows[0]).all(axis=0)
    probability = (1 - reference.change_share[:n_columns]) ** len(neighbours(stretches))
    is_improbable = probability < _STUCK_PROBABILITY / n_columns
    return np.flatnonzero(is_constant & is_improbable).tolist()


# -- findings in words ---------------------------------------------------------------------------------------------


def _describe_outside(reference: Reference, share: float, n_rows: int, n_blocks: float) -> tuple[int, str]:
    expected = 100 * float(reference.outside_share)
    reason = (
        f"{100 * share:.3g} % of the new rows are outside the range of the training rows. If the rows had not changed, "
        f"about {expected:.3g} % would be."
    )
    return _level(_excess_outside(reference, share, n_rows, n_blocks), _OUTSIDE_SHARES), reason


def _describe_stuck(stuck: Sequence[int], n_sampled: int, columns: Columns) -> tuple[int, str]:
    reason = (
        f"Column {short_list(columns.listed(stuck), _MAX_LISTED)}: all {n_sampled} sampled new rows have the same "
        "value, but the training rows vary. Check the source of these values before you train again, because it can "
        "explain the other differences."
    )
    return min(1, len(stuck)), reason  # retraining does not repair a broken sensor


def _level(size: float, limits: tuple[float, float]) -> int:
    """Return how many limits a size exceeds."""
    return sum(size > limit for limit in limits)


def _names_of_largest(sizes: np.ndarray, model: Model, columns: Columns) -> str:
    """Return the names of the inputs with the largest sizes (n_inputs,)."""
    order = np.argsort(-sizes, kind="stable")[:_MAX_LISTED]
    names = []
    for i in order.tolist():
        column, name = columns.name_of_input(i, model.n_columns, model.scaler.indicators)
        names.append(with_name(column, name))
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _describe_outlier(sample: Sample, errors: np.ndarray, files: Sequence[str]) -> Iterator[str]:
    """Yield a sentence about the row that has most of the squared errors (n_rows,), if there is one."""
    largest, share = largest_share(errors)
    if share < MOST_OF_ALL:
        return
    place = f"file={printable(files[int(sample.sources[largest])])} row={int(sample.rows[largest])}"
    yield (f"One row ({place}) has {100 * share:.3g} % of the squared error of all sampled new rows. Check its values.")
