"""Verdict on new rows of a finished run: whether they are like the rows that the model was trained on.

A sample of the new rows is compared with the statistics of earlier rows, see `shardpress.report.reference`. The
comparison covers the reconstruction error, the mean and the covariance of the features, the share of rows outside the
training range, and columns that no longer vary.

The sizes of the differences decide, because any difference is significant if there are enough rows. Differences that
the noise of the samples explains are ignored, and so are outliers, which can have almost all of the squared error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from shardpress.columns import Columns, with_name
from shardpress.errors import quantity, short_list
from shardpress.model import Model
from shardpress.outliers import MOST_OF_ALL, VERY_FAR, largest_share, outliers, place_of
from shardpress.report.moments import (
    HalfMoments,
    MeanEstimate,
    Whitening,
    estimate_mean,
    group_rows,
    moments_of_halves,
    share_interval,
    t_quantile,
)
from shardpress.report.reference import Reference, neighbours_differ, squared_errors
from shardpress.report.sample import Sample
from shardpress.training.components import NOTHING

_VERDICTS = ("keep", "watch", "retrain")

# Limits of each difference: above the first one the verdict is "watch", above the second one "retrain".
_ERROR_RATIOS = (1.1, 1.5)
# New rows can be like a part of the training rows, such as one class or one day. They need no other model. If this part
# is a share s of the training rows, its mean shift is at most sqrt(1 / s - 1), and its variances are at most 1 / s
# times as large as those of all rows. The second limits are these bounds for s = 0.1.
_MEAN_SHIFTS = (0.5, 3.0)
_COVARIANCE_SHIFTS = (1.0, 9.0)
_OUTSIDE_SHARES = (0.01, 0.1)  # in addition to the expected share

_NOISE_DEVIATIONS = 4.0  # squared shifts below this number of standard deviations are noise
_STUCK_PROBABILITY = 1e-4  # probability that any column of unchanged rows seems stuck
_MIN_ERROR = 1e-12  # mean squared error of scaled values that rounding can cause
_MAX_LOG = 100.0  # avoids an overflow of wide confidence intervals
_MAX_LISTED = 3  # columns in a reason


@dataclass(frozen=True)
class Verdict:
    """Verdict on new rows. Measures that cannot be estimated are None."""

    # ``keep`` if the new rows are like the training rows, ``watch`` if they differ, and ``retrain`` if they differ so
    # much that the model does not represent them well.
    verdict: str
    reasons: tuple[str, ...]  # sentences about the differences, or one sentence that there are none
    n_rows: int  # new good rows
    n_sampled: int = 0
    outside_share: float | None = None  # of the new rows, outside the training range
    reference_outside_share: float | None = None  # the expected share
    error_ratio: float | None = None  # mean reconstruction error divided by that of the reference
    error_ratio_low: float | None = None  # confidence interval of 95 %
    error_ratio_high: float | None = None
    mean_shift: float | None = None  # Euclidean distance between the means of the features, whitened
    covariance_shift: float | None = None  # Frobenius norm of the difference between their covariances, whitened
    stuck_columns: tuple[tuple[int, str | None], ...] = ()  # numbers and names of columns that no longer vary

    def facts(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        stuck = [{"column": column, "name": name} for column, name in self.stuck_columns]
        return {**asdict(self), "reasons": list(self.reasons), "stuck_columns": stuck}


def judge_new_rows(
    reference: Reference,
    sample: Sample | None,
    model: Model,
    columns: Columns,
    n_outside: int,
    n_rows: int,
    files: Sequence[str] = (),
) -> Verdict:
    """Return the verdict on `n_rows` new good rows, of which `n_outside` are outside the training range.

    `sample` contains some of the new rows. It is None if fewer than two of them are good. `files` are the paths of its
    sources.
    """
    if sample is None or len(sample.rows) < 2:
        return Verdict("keep", ("There are too few good new rows to judge.",), n_rows)
    n_sampled = len(sample.rows)
    errors = squared_errors(sample, model).mean(axis=1)
    is_outlier = outliers(errors, VERY_FAR)
    outlier = _describe_outlier(sample, errors, files) if is_outlier.any() else ()
    sample = sample.selected(~is_outlier)
    new = _NewRows.of(sample, model, reference)
    ratio = _error_ratio(reference, new.error)
    mean_shift, covariance_shift = _shifts(reference, new.halves)
    outside_share = n_outside / max(1, n_rows)
    stuck = _stuck_columns(reference, sample, model.n_columns)
    grown = _names_of_largest(new.column_error - reference.column_error, model, columns)
    shifted = _names_of_largest(_column_shifts(reference, new), model, columns)
    findings = [
        _describe_error(ratio, reference.is_held_out, grown),
        _describe_mean(mean_shift, shifted),
        _describe_covariance(covariance_shift),
        _describe_outside(outside_share, n_rows, reference),
        _describe_stuck(stuck, len(sample.rows), columns),
    ]
    return Verdict(
        verdict=_VERDICTS[max(finding.level for finding in findings)],
        reasons=(*_reasons(findings, ratio, n_sampled), *outlier),
        n_rows=n_rows,
        n_sampled=n_sampled,
        outside_share=outside_share,
        reference_outside_share=reference.outside_share,
        error_ratio=ratio.value,
        error_ratio_low=ratio.low,
        error_ratio_high=ratio.high,
        mean_shift=mean_shift.size,
        covariance_shift=covariance_shift.size,
        stuck_columns=tuple((column, columns.name_of(column)) for column in stuck),
    )


# -- comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _NewRows:
    """Measurements of a sample of new rows."""

    error: MeanEstimate  # mean squared reconstruction error
    halves: list[HalfMoments]  # moments of the whitened coordinates of the even and of the odd groups
    column_mean: np.ndarray  # float64 (n_inputs,), of the scaled columns
    column_error: np.ndarray  # float64 (n_inputs,), their mean squared reconstruction errors

    @classmethod
    def of(cls, sample: Sample, model: Model, reference: Reference) -> _NewRows:
        groups = group_rows(sample)
        squares = squared_errors(sample, model)
        whitening = Whitening(reference.feature_mean, reference.basis)
        return cls(
            error=estimate_mean(squares.mean(axis=1), groups),
            halves=moments_of_halves(whitening.apply(sample.features), groups),
            column_mean=sample.scaled.mean(axis=0, dtype=np.float64),
            column_error=squares.mean(axis=0),
        )


class _Ratio(NamedTuple):
    """Ratio of two means, and its confidence interval of 95 %."""

    value: float
    low: float
    high: float


def _error_ratio(reference: Reference, new: MeanEstimate) -> _Ratio:
    """Return the ratio of the mean errors. The interval is symmetric for the logarithm of the ratio.

    Errors below a negligible size are replaced by this size.
    """
    negligible = max(NOTHING * float(np.square(reference.column_deviation).mean()), _MIN_ERROR)
    new_error = max(new.value, negligible)
    old_error = max(reference.error, negligible)
    # The delta method: variances of the logarithms.
    new_variance = new.variance / new_error**2
    old_variance = reference.error_variance / old_error**2
    variance = new_variance + old_variance
    # The Welch-Satterthwaite equation: degrees of freedom of a sum of estimated variances.
    scatter = new_variance**2 / (new.n_groups - 1) + old_variance**2 / (reference.n_groups - 1)
    dof = math.inf
    if scatter > 0:
        dof = variance**2 / scatter
    factor = math.exp(min(t_quantile(dof) * math.sqrt(variance), _MAX_LOG))
    ratio = new_error / old_error
    return _Ratio(ratio, ratio / factor, ratio * factor)


class _Shift(NamedTuple):
    """Size of a shift, and whether it exceeds the noise. The size is None if it cannot be estimated."""

    size: float | None
    is_significant: bool


def _shifts(reference: Reference, halves: Sequence[HalfMoments]) -> tuple[_Shift, _Shift]:
    """Return the distances between the means and between the covariances of the whitened coordinates."""
    if not reference.basis.shape[1] or any(half.n_groups < 2 for half in halves):
        return _Shift(None, False), _Shift(None, False)
    means = np.array([half.mean for half in halves]) - reference.means
    mean_noises = np.array([half.mean_noise for half in halves]) + reference.mean_noise
    covariances = np.array([half.covariance for half in halves]) - reference.covariances
    covariance_noises = np.array([half.covariance_noise for half in halves]) + reference.covariance_noise
    return _shift(means, mean_noises), _shift(covariances, covariance_noises)


def _shift(differences: np.ndarray, noises: np.ndarray) -> _Shift:
    """Return the size of a shift that was estimated twice, from independent halves of the rows.

    The scalar product of the two estimates is an unbiased estimate of the squared size: noise does not add to it.
    Without a shift, its variance is the trace of the product of the covariance matrices of the estimates. This trace is
    at most the product of their norms, and `noises` are upper bounds of these norms.
    """
    square = float((differences[0] * differences[1]).sum())
    deviation = math.sqrt(noises[0] * noises[1])
    return _Shift(math.sqrt(max(0.0, square)), square > _NOISE_DEVIATIONS * deviation)


def _column_shifts(reference: Reference, new: _NewRows) -> np.ndarray:
    """Return the shift of the mean of each input, in standard deviations (n_inputs,)."""
    deviation = reference.column_deviation
    least = max(NOTHING * float(deviation.max()), _MIN_ERROR)  # for columns that are constant in the reference
    return np.abs(new.column_mean - reference.column_mean) / np.maximum(deviation, least)


def _excess_outside(reference: Reference, share: float, n_rows: int) -> float:
    """Return a lower bound of the share of rows outside the range, minus the expected share.

    Source: Newcombe, "Interval estimation for the difference between independent proportions", 1998, method 10.
    """
    expected = reference.outside_share
    low, _ = share_interval(share, n_rows / reference.outside_cluster)
    _, high = share_interval(expected, reference.outside_rows)
    return share - expected - math.hypot(share - low, high - expected)


def _stuck_columns(reference: Reference, sample: Sample, n_columns: int) -> list[int]:
    """Return the columns with one value in all sampled rows, if this is improbable for rows like the reference.

    A column that rarely changes from row to row, such as a date, can have one value in all new rows.
    """
    rows = sample.scaled[:, :n_columns]
    is_constant = (rows == rows[0]).all(axis=0)
    n_groups = int(group_rows(sample).max()) + 1
    n_pairs = len(neighbours_differ(sample))
    stuck = []
    for column in np.flatnonzero(is_constant).tolist():
        _, same = share_interval(float(reference.mode_share[column]), reference.n_groups)
        change, _ = share_interval(float(reference.change_share[column]), reference.n_groups)
        # Probabilities that an unchanged column has one value in the first rows of all groups, and in all pairs of
        # neighbours. The larger one decides: neighbours can be more alike than groups.
        probability = max(same**n_groups, (1 - change) ** n_pairs)
        if probability < _STUCK_PROBABILITY / len(reference.mode_share):
            stuck.append(column)
    return stuck


# -- findings in words ---------------------------------------------------------------------------------------------


class _Finding(NamedTuple):
    """Result of a comparison: the index of its verdict in `_VERDICTS`, and a description of the difference."""

    level: int
    reason: str


def _names_of_largest(sizes: np.ndarray, model: Model, columns: Columns) -> str:
    """Return the names of the inputs with the largest sizes (n_inputs,)."""
    order = np.argsort(-sizes, kind="stable")[:_MAX_LISTED]
    names = []
    for i in order.tolist():
        column, name = columns.name_of_input(i, model.n_columns, model.scaler.indicators)
        names.append(with_name(column, name))
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _reasons(findings: Sequence[_Finding], ratio: _Ratio, n_sampled: int) -> tuple[str, ...]:
    """Return the descriptions of all differences, or a sentence that there are none."""
    reasons = [finding.reason for finding in findings if finding.level]
    if not reasons:
        return (f"{quantity(n_sampled, 'sampled new row')}: no difference from the training rows was found.",)
    if ratio.high < _ERROR_RATIOS[0]:
        reasons.append(
            f"The mean reconstruction error is not larger: {ratio.value:.3g} times that of the training rows, at most "
            f"{ratio.high:.3g} times."
        )
    return tuple(reasons)


def _describe_outlier(sample: Sample, errors: np.ndarray, files: Sequence[str]) -> tuple[str, ...]:
    """Return a sentence about the row that has most of the squared errors (n_rows,), if there is one."""
    largest = largest_share(errors)
    if largest["share"] < MOST_OF_ALL:
        return ()
    i = largest["position"]
    place: dict[str, Any] = {"row": int(sample.rows[i])}
    if files:
        place["file"] = files[int(sample.sources[i])]
    share = f"{100 * largest['share']:.3g} %"
    return (
        f"One row ({place_of(place)}) has {share} of the squared error of all sampled new rows, and is left out. Check "
        "its values.",
    )


def _level(size: float, limits: tuple[float, float]) -> int:
    """Return how many limits a size exceeds."""
    return sum(size > limit for limit in limits)


def _describe_error(ratio: _Ratio, is_held_out: bool, grown: str) -> _Finding:
    level = _level(ratio.low, _ERROR_RATIOS)
    kind = "held-out training rows"
    note = ""
    if not is_held_out:
        # The errors of training rows can be small only because the model is overfitted to them.
        level = min(level, 1)
        kind = "training rows"
        note = " No rows were held out, so overfitting can explain this difference."
    reason = (
        f"The mean reconstruction error is {ratio.value:.3g} times that of {kind} (95 % confidence interval: "
        f"{ratio.low:.3g} to {ratio.high:.3g}). It has grown most in {grown}.{note}"
    )
    return _Finding(level, reason)


def _describe_mean(shift: _Shift, shifted: str) -> _Finding:
    if shift.size is None or not shift.is_significant:
        return _Finding(0, "")
    reason = (
        f"The mean of the features has shifted by {shift.size:.3g} standard deviations (Mahalanobis distance). The "
        f"means of the inputs have shifted most in {shifted}."
    )
    return _Finding(_level(shift.size, _MEAN_SHIFTS), reason)


def _describe_covariance(shift: _Shift) -> _Finding:
    if shift.size is None or not shift.is_significant:
        return _Finding(0, "")
    reason = (
        f"Variances and correlations of the features have changed by {shift.size:.3g}; 1 corresponds to a doubled "
        "variance in one direction."
    )
    return _Finding(_level(shift.size, _COVARIANCE_SHIFTS), reason)


def _describe_outside(share: float, n_rows: int, reference: Reference) -> _Finding:
    level = _level(_excess_outside(reference, share, n_rows), _OUTSIDE_SHARES)
    reason = (
        f"{100 * share:.3g} % of the new rows are outside the range of the training rows. If the rows had not changed, "
        f"about {100 * reference.outside_share:.3g} % would be."
    )
    return _Finding(level, reason)


def _describe_stuck(stuck: Sequence[int], n_sampled: int, columns: Columns) -> _Finding:
    # Retraining does not repair a broken sensor, so any number of columns leads to "watch".
    level = min(1, len(stuck))
    noun = "Column" if len(stuck) == 1 else "Columns"
    listed = short_list(columns.listed(stuck), _MAX_LISTED)
    reason = (
        f"{noun} {listed}: all {n_sampled} sampled new rows have the same value, but the training rows vary. Check the "
        "source of these values before you train again, because it can explain the other differences."
    )
    return _Finding(level, reason)
