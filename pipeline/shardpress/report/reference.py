"""Reference for appended rows: statistics of rows that were held out from the training of the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from shardpress.model.encoder import Model
from shardpress.report.sampling import Sample
from shardpress.training.components import principal_components

MAX_DIRECTIONS = 32
"""Largest number of directions of the features that are compared."""

_ROWS_PER_DIRECTION = 10  # independent rows
_MIN_VARIANCE = 1e-6  # share of the largest variance; smaller variances are mostly rounding errors
_ROUNDING = 1e-6  # relative rounding error of float32, with a margin
_MAX_COORDINATE = 4.0  # standard deviations; otherwise, a few rows determine the covariances of heavy tails
# A row error counts at most as this multiple of the 99 % quantile, so that one damaged row in 1,000 changes little.
_MOST_ERROR = 10.0
_MIN_GROUPS = 4  # with fewer stretches, it is unknown how similar their rows are
_N_GROUPS = 64  # groups of rows if there are fewer stretches
_MIN_FILES = 8  # with fewer files, it is unknown how much they differ
_N_BLOCKS = 16  # blocks of rows if there are fewer files
_MIN_PAIRS = 8  # neighbouring rows of a block


class _Estimate(NamedTuple):
    """Mean of values (n_rows, k), and the noise of this mean.

    The noise (2,) is the trace and the Frobenius norm of the covariance matrix of the mean. Both are variances, and
    equal if k is 1.
    """

    mean: np.ndarray
    noise: np.ndarray


def estimate(values: np.ndarray, groups: np.ndarray) -> _Estimate:
    """Return the mean of values (n_rows, k), given the sorted number of the group of each row.

    Neighbouring rows resemble each other, so only rows of different groups count as independent. Source: Cochran,
    "Sampling techniques", 1977, chapter 9A, for the ratio of the totals and the sizes of groups.
    """
    mean = values.mean(axis=0)
    totals = np.add.reduceat(values - mean, _firsts(groups), axis=0)
    n_groups = len(totals)
    residuals = totals * (math.sqrt(n_groups / max(1, n_groups - 1)) / len(values))
    # The covariance matrix of the mean is ``residuals.T @ residuals``. This smaller one has the same trace and norm.
    matrix = residuals @ residuals.T
    return _Estimate(mean, np.array([np.trace(matrix), np.linalg.norm(matrix)]))


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics of held-out rows. Arrays are float64, and numbers of rows and blocks can be int64.

    Rows of one file, or of one block of a large file, resemble each other more than others. The variation between them
    is therefore noise for an append of a few files.
    """

    n_rows: np.ndarray  # (), rows of the sample
    most_error: np.ndarray  # (), limit of the error of a row
    center: np.ndarray  # (n_features,), which is subtracted from the features
    basis: np.ndarray  # (n_features, p), principal components divided by their standard deviations
    column_mean: np.ndarray  # (n_inputs,), of the scaled columns
    column_deviation: np.ndarray  # (n_inputs,)
    column_error: np.ndarray  # (n_inputs,), mean squared reconstruction errors
    change_share: np.ndarray  # (n_inputs,), share of neighbours with other values, in the block with the fewest ones
    outside_share: np.ndarray  # (), expected share of unchanged rows outside the training range
    outside_correlation: np.ndarray  # (), between rows of a block, of being outside
    n_fitted: np.ndarray  # (), rows that determined the training range
    n_blocks: np.ndarray  # ()
    block_rows: np.ndarray  # (), rows of a block in the input; 0 if each file is a block
    estimates: Mapping[str, _Estimate]  # of each measure, see `measured`
    between: Mapping[str, np.ndarray]  # (2,), noise of the mean of one block in addition to that of its rows

    @classmethod
    def of(
        cls, sample: Sample, model: Model, files: Sequence[str], n_rows: int, outside_share: float | None = None
    ) -> Reference:
        """Return the statistics of a sample of at least two of the `n_rows` rows of a run.

        `files` are the paths of the sources of the sample. `outside_share` is given if not all of these rows determined
        the training range.
        """
        squares = squared_errors(sample, model)
        errors = squares.mean(axis=1)
        most_error = np.array(_MOST_ERROR * np.quantile(errors, 0.99))
        groups = groups_of(sample)
        blocks, is_by_file = _blocks_of(sample, files)
        n_blocks = int(blocks[-1]) + 1
        is_usual = errors <= most_error
        center, basis = _directions(sample.features[is_usual], blocks[is_usual])
        estimates = {}
        between = {}
        for name, values in measured(sample.features, errors, most_error, center, basis).items():
            of_groups = estimate(values, groups)
            of_blocks = estimate(values, blocks)
            estimates[name] = _Estimate(of_groups.mean, np.maximum(of_groups.noise, of_blocks.noise))
            between[name] = n_blocks * np.maximum(of_blocks.noise - of_groups.noise, 0)
        expected_share, outside_correlation = _outside(sample.scaled[:, : model.n_columns], blocks, n_rows)
        scaled = sample.scaled[is_usual].astype(np.float64)
        return cls(
            n_rows=np.array(len(errors)),
            most_error=most_error,
            center=center,
            basis=basis,
            column_mean=scaled.mean(axis=0),
            column_deviation=scaled.std(axis=0),
            column_error=squares[is_usual].mean(axis=0),
            change_share=_least_change(sample, blocks),
            outside_share=np.array(expected_share if outside_share is None else outside_share),
            outside_correlation=np.array(outside_correlation),
            n_fitted=np.array(n_rows),
            n_blocks=np.array(n_blocks),
            block_rows=np.array(0.0 if is_by_file else n_rows / n_blocks),
            estimates=estimates,
            between=between,
        )

    def n_blocks_of(self, n_files: int, n_rows: int) -> float:
        """Return the number of blocks that new rows of these numbers correspond to."""
        return float(n_files) if self.block_rows == 0 else max(1.0, n_rows / float(self.block_rows))

    def stored(self) -> dict[str, np.ndarray]:
        """Return the arrays by their names in a file."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for name, (mean, noise) in self.estimates.items():
            arrays |= {f"{name}/mean": mean, f"{name}/noise": noise, f"{name}/between": self.between[name]}
        return arrays

    @classmethod
    def of_stored(cls, arrays: Mapping[str, np.ndarray]) -> Reference:
        names = {name.split("/")[0] for name in arrays if "/" in name}
        values: dict[str, Any] = {name: arrays[name] for name in _ARRAYS}
        values["estimates"] = {name: _Estimate(arrays[f"{name}/mean"], arrays[f"{name}/noise"]) for name in names}
        values["between"] = {name: arrays[f"{name}/between"] for name in names}
        return cls(**values)


_ARRAYS = tuple(field.name for field in fields(Reference) if field.type == "np.ndarray")


def measured(
    features: np.ndarray, errors: np.ndarray, most_error: np.ndarray, center: np.ndarray, basis: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the values (n_rows, k) whose means are compared: errors, whitened features, and products of the latter."""
    coordinates = np.clip((features - center) @ basis, -_MAX_COORDINATE, _MAX_COORDINATE)
    products = coordinates[:, :, None] * coordinates[:, None, :]
    return {
        "error": np.fmin(errors, most_error)[:, None],  # NaN is an error that overflows
        "mean": coordinates,
        "covariance": products.reshape(len(features), -1),
    }


def squared_errors(sample: Sample, model: Model) -> np.ndarray:
    """Return the squared reconstruction error of each scaled value, float64 (n_rows, n_inputs)."""
    return np.square(sample.scaled - model.decode(sample.features))


def groups_of(sample: Sample) -> np.ndarray:
    """Return the sorted number of the group of each row, int64 (n_rows,): stretches, or blocks if they are too few."""
    stretches, groups = np.unique(sample.stretches, return_inverse=True)
    if len(stretches) >= _MIN_GROUPS:
        return groups
    n_rows = len(sample.rows)
    return np.arange(n_rows) // max(1, n_rows // _N_GROUPS)


def neighbours(stretches: np.ndarray) -> np.ndarray:
    """Return the pairs of neighbouring rows, each given by its first row, int64 (n_pairs,).

    The rows of a pair are in one of the stretches (n_rows,) unless most stretches have one row.
    """
    n_rows = len(stretches)
    pairs = np.flatnonzero(np.diff(stretches) == 0)
    return pairs if len(pairs) >= n_rows // 2 else np.arange(n_rows - 1)


def _firsts(groups: np.ndarray) -> np.ndarray:
    """Return the index of the first row of each group, int64 (n_groups,)."""
    return np.flatnonzero(np.diff(groups, prepend=-1))


def _blocks_of(sample: Sample, files: Sequence[str]) -> tuple[np.ndarray, bool]:
    """Return the sorted number of the block of each row, int64 (n_rows,), and whether each file is a block."""
    paths = np.array(files)[sample.sources]
    numbers = np.cumsum(np.append(False, paths[1:] != paths[:-1]))
    if numbers[-1] + 1 >= _MIN_FILES:
        return numbers, True
    n_rows = len(paths)
    return np.arange(n_rows) * min(_N_BLOCKS, n_rows) // n_rows, False


def _directions(features: np.ndarray, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of features (n_rows, n_features), and a basis in which they are uncorrelated with variance 1.

    There are only as many directions as a few independent rows can determine.
    """
    components = principal_components(features, min(MAX_DIRECTIONS, features.shape[1]), np.random.default_rng(0))
    largest_mean = float(np.abs(components.mean).max())
    least = max(math.sqrt(_MIN_VARIANCE) * components.deviations[0], _ROUNDING * largest_mean)
    n_varying = int((components.deviations > least).sum())
    variance = float(np.square(features - components.mean).sum()) / len(features)
    variance_of_mean = max(float(estimate(features - components.mean, blocks).noise[0]), variance / len(features))
    n_independent = variance / variance_of_mean if variance_of_mean > 0 else 0.0
    p = min(n_varying, int(n_independent // _ROWS_PER_DIRECTION))
    return components.mean, components.components[:, :p] / components.deviations[:p]


def _least_change(sample: Sample, blocks: np.ndarray) -> np.ndarray:
    """Return the smallest share of neighbours whose values differ in a block with enough of them, (n_inputs,)."""
    pairs = neighbours(sample.stretches)
    differ = sample.scaled[pairs + 1] != sample.scaled[pairs]
    firsts = _firsts(blocks[pairs])
    n_pairs = np.diff([*firsts, len(pairs)])
    shares = np.add.reduceat(differ, firsts, axis=0, dtype=np.float64) / n_pairs[:, None]
    is_large = n_pairs >= _MIN_PAIRS
    return shares[is_large].min(axis=0) if is_large.any() else np.zeros(differ.shape[1])


def _outside(rows: np.ndarray, blocks: np.ndarray, n_fitted: int) -> tuple[float, float]:
    """Return the expected share of other rows outside the range of `n_fitted` rows, and the correlation in a block.

    The training range includes the rows of the sample, so each block is compared with the range of the others instead.
    The share is inversely proportional to the number of independent rows that determine the range.
    """
    is_outside = _is_extreme(rows, blocks) | _is_extreme(-rows, blocks)
    n_rows = len(rows)
    n_blocks = int(blocks[-1]) + 1
    mean, noise = estimate(is_outside.astype(np.float64)[:, None], blocks)
    share = float(mean[0])
    variance = share * (1 - share) / n_rows  # of the share of independent rows
    if variance == 0:
        return 0.0, 0.0
    correlation = (float(noise[0]) / variance - 1) / max(1.0, n_rows / n_blocks - 1)
    correlation = min(1.0, max(0.0, correlation))
    n_independent = _n_independent(n_rows, n_blocks, correlation)
    return share * min(1.0, n_independent / _n_independent(n_fitted, n_blocks, correlation)), correlation


def _n_independent(n_rows: int, n_blocks: int, correlation: float) -> float:
    """Return the number of independent rows that determine a mean as well as rows that are correlated in a block."""
    return n_rows / (1 + max(0.0, n_rows / n_blocks - 1) * correlation)


def _is_extreme(rows: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return whether any value of a row (n_rows, n_columns) is larger than in all other blocks: bool (n_rows,)."""
    maxima = np.maximum.reduceat(rows, _firsts(blocks), axis=0)
    if len(maxima) < 2:
        return np.zeros(len(rows), dtype=bool)
    largest_block = maxima.argmax(axis=0)
    second = np.partition(maxima, -2, axis=0)[-2]
    return ((rows > second) & (blocks[:, None] == largest_block)).any(axis=1)
