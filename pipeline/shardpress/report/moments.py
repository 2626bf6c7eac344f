"""Means and covariances of a sample of rows, and how accurate they are.

Neighbouring rows resemble each other, so estimates from them are less accurate than from the same number of independent
rows. The noise of an estimate is therefore computed from groups of neighbouring rows, which count as independent. A
group is usually one stretch of the sample, see `shardpress.report.sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shardpress.report.sample import Sample
from shardpress.training.components import principal_components

MAX_DIRECTIONS = 32
"""Largest number of whitened coordinates."""

_MIN_GROUPS = 4  # with fewer stretches, it is unknown how similar their rows are
_N_BLOCKS = 64  # approximate number of blocks if there are too few stretches
_ROWS_PER_DIRECTION = 10  # independent rows
_MIN_VARIANCE = 1e-6  # share of the largest variance; smaller variances are mostly rounding errors
_ROUNDING = 1e-6  # relative rounding error of float32, with a margin
_MAX_COORDINATE = 4.0  # see `Whitening.apply`

_QUANTILE_95 = 1.96  # normal quantile of two-sided intervals of 95 %
_QUANTILE_997 = 3.0  # normal quantile of two-sided intervals of 99.7 %


# -- groups --------------------------------------------------------------------------------------------------------


def group_rows(sample: Sample) -> np.ndarray:
    """Return the number of the group of each row, int64 (n_rows,), sorted.

    The groups are the stretches. If there are fewer than `_MIN_GROUPS` stretches, the groups are blocks of neighbouring
    rows instead. In small samples, each block is a single row.
    """
    stretches, groups = np.unique(sample.stretches, return_inverse=True)
    if len(stretches) >= _MIN_GROUPS:
        return groups
    n_rows = len(sample.rows)
    return np.arange(n_rows) // max(1, n_rows // _N_BLOCKS)


def first_rows(groups: np.ndarray) -> np.ndarray:
    """Return the index of the first row of each group, int64 (n_groups,)."""
    return np.flatnonzero(np.diff(groups, prepend=-1))


def _group_residuals(deviations: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return residuals R (n_groups, n) of deviations (n_rows, n) from a mean, whose covariance matrix is ``R.T @ R``.

    Source: Cochran, "Sampling techniques", 1977, chapter 9A, for the ratio of the totals and the sizes of groups.
    """
    totals = np.add.reduceat(deviations, first_rows(groups), axis=0)
    n_groups = len(totals)
    return totals * (math.sqrt(n_groups / max(1, n_groups - 1)) / len(deviations))


# -- means and covariances -----------------------------------------------------------------------------------------


class MeanEstimate(NamedTuple):
    """Mean of values, and the estimated variance of this mean."""

    value: float
    variance: float
    n_groups: int


def estimate_mean(values: np.ndarray, groups: np.ndarray) -> MeanEstimate:
    """Return the mean of values (n_rows,), given the group of each row."""
    mean = float(values.mean())
    residuals = _group_residuals((values - mean)[:, None], groups)
    return MeanEstimate(mean, float(np.square(residuals).sum()), len(residuals))


@dataclass(frozen=True, eq=False)
class HalfMoments:
    """Moments of the whitened coordinates of one half of the groups."""

    mean: np.ndarray  # float64 (p,)
    covariance: np.ndarray  # float64 (p, p)
    mean_noise: float  # Frobenius norm of the covariance matrix of the estimation error of `mean`
    covariance_noise: float  # the same for the entries of `covariance`
    n_groups: int


def moments_of_halves(coordinates: np.ndarray, groups: np.ndarray) -> list[HalfMoments]:
    """Return the moments of the coordinates (n_rows, p) of the even groups, and those of the odd groups."""
    halves = []
    for parity in (0, 1):
        is_in_half = groups % 2 == parity
        halves.append(_moments(coordinates[is_in_half], groups[is_in_half] // 2))
    return halves


def _moments(coordinates: np.ndarray, groups: np.ndarray) -> HalfMoments:
    """Return the moments of coordinates (n_rows, p), given the group of each row."""
    n_rows, p = coordinates.shape
    mean = coordinates.mean(axis=0)
    deviations = coordinates - mean
    covariance = deviations.T @ deviations / n_rows
    products = deviations[:, :, None] * deviations[:, None, :] - covariance
    mean_residuals = _group_residuals(deviations, groups)
    covariance_residuals = _group_residuals(products.reshape(n_rows, p * p), groups)
    variance_of_mean = mean_residuals.T @ mean_residuals
    return HalfMoments(
        mean=mean,
        covariance=covariance + variance_of_mean,  # deviations from the estimated mean are too small by this variance
        mean_noise=float(np.linalg.norm(variance_of_mean)),
        # R R^T and R^T R have the same norm, and R R^T is the smaller matrix.
        covariance_noise=float(np.linalg.norm(covariance_residuals @ covariance_residuals.T)),
        n_groups=len(mean_residuals),
    )


# -- whitened coordinates ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Whitening:
    """Map from features to whitened coordinates."""

    mean: np.ndarray  # float64 (n_features,), which is subtracted first
    basis: np.ndarray  # float64 (n_features, p), principal components divided by their standard deviations

    @classmethod
    def of(cls, features: np.ndarray, groups: np.ndarray) -> Whitening:
        """Return the map for features (n_rows, n_features), float32, given the group of each row."""
        n_most = min(MAX_DIRECTIONS, features.shape[1])
        found = principal_components(features, n_most, np.random.default_rng(0))
        largest_mean = float(np.abs(found.mean).max())
        least = max(math.sqrt(_MIN_VARIANCE) * found.deviations[0], _ROUNDING * largest_mean)
        n_varying = int((found.deviations > least).sum())
        # The variances of many directions cannot be estimated from a few rows.
        n_estimable = int(_n_independent(features - found.mean, groups) // _ROWS_PER_DIRECTION)
        p = min(n_varying, n_estimable)
        return cls(found.mean, found.components[:, :p] / found.deviations[:p])

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return the coordinates (n_rows, p) of features (n_rows, n_features).

        Large coordinates are clipped. Otherwise, the covariances of features with heavy tails depend on a few rows.
        """
        coordinates = (features - self.mean) @ self.basis
        return np.clip(coordinates, -_MAX_COORDINATE, _MAX_COORDINATE)


def _n_independent(deviations: np.ndarray, groups: np.ndarray) -> float:
    """Return the number of independent rows that would determine the mean as accurately, at most `n_rows`."""
    n_rows = len(deviations)
    variance = float(np.square(deviations).sum()) / n_rows
    variance_of_mean = float(np.square(_group_residuals(deviations, groups)).sum())
    if variance_of_mean * n_rows <= variance:
        return float(n_rows)
    return variance / variance_of_mean


# -- confidence intervals ------------------------------------------------------------------------------------------


def share_interval(share: float, n: float) -> tuple[float, float]:
    """Return the confidence interval of 99.7 % for a share of `n` independent rows.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    square = _QUANTILE_997**2 / max(1.0, n)
    center = share + square / 2
    width = math.sqrt(square * share * (1 - share) + square**2 / 4)
    low = max(0.0, (center - width) / (1 + square))
    high = min(1.0, (center + width) / (1 + square))
    return low, high


def t_quantile(dof: float) -> float:
    """Return the quantile of Student's t distribution for two-sided intervals of 95 %. The `dof` can be infinite.

    Source: Abramowitz and Stegun, "Handbook of mathematical functions", 1964, equation 26.7.5.
    """
    z = _QUANTILE_95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / dof + second / dof**2 + third / dof**3
