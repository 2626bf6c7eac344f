"""Rows that are far from all others, for example damaged ones: by their errors, or by their features.

Judgments leave out rows with far larger errors than all others. A row that is far enough away gets features of its own,
and then has a small error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shardpress.base.errors import printable
from shardpress.base.formats import Facts

MOST_OF_ALL = 0.5
"""Share of all errors from which a message names the row that has it."""
MOST_OWNERS = 4
"""Number of rows that can have most of the variance of a feature."""
_MOST = 100  # one row of this number of rows can be an outlier
_LEAST_ROWS = 20  # with fewer rows, none is an outlier
_FAR = 100  # times the mean of the other squares, that is ten times as far
_LARGE_SHARE = 0.1  # of the variance of a feature
_ROUNDING = 1e-6  # deviation, relative to the mean, that rounding errors can cause


def outliers(squares: np.ndarray) -> np.ndarray:
    """Return a mask of the rows whose squared errors, or squared distances, are far above the mean of the others.

    Parameters
    ----------
    squares : ndarray of shape (n_rows,)
        Squared error, or squared distance from the mean, of each row.

    Returns
    -------
    ndarray of shape (n_rows,), bool
        True for at most one row, or 1 % of the rows.
    """
    is_outlier = np.zeros(len(squares), dtype=bool)
    if len(squares) < _LEAST_ROWS:
        return is_outlier
    n_most = max(1, len(squares) // _MOST)
    order = np.argsort(squares)
    largest = order[-n_most:]
    limit = _FAR * squares[order[:-n_most]].mean(dtype=np.float64)
    is_outlier[largest] = squares[largest] > limit
    return is_outlier


class Outlier(Facts, frozen=True):
    """The row with the largest error, and the mean errors of all rows without outliers."""

    row: int
    share: float  # of all errors
    cost: float
    mean: float  # for the column means
    components: float | None = None  # for principal components
    file: str | None = None

    @property
    def has_most(self) -> bool:
        """Whether messages name the row, because it has most of the squared error."""
        return self.share >= MOST_OF_ALL

    def __str__(self) -> str:
        """Return the location of the row for a message: its file, if it is known, and its number."""
        where = "" if self.file is None else f"file={printable(self.file)} "
        return f"{where}row={self.row}"


def largest_share(errors: np.ndarray) -> tuple[int, float]:
    """Return the position of the row with the largest of the errors (n_rows,), and its share of their sum."""
    largest = int(errors.argmax())
    total = errors.sum(dtype=np.float64)
    share = float(errors[largest] / total) if np.isfinite(total) else 1.0
    return largest, share


# -- leverage --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """Mean and variance of features over all rows."""

    n_rows: int
    mean: np.ndarray  # (n_features,), float64
    squares: np.ndarray  # (n_features,), sums of the squared differences from the mean

    @classmethod
    def of(cls, blocks: Iterable[np.ndarray]) -> Spread:
        """Return the spread of blocks of features (n_rows, n_features)."""
        n_rows = 0
        mean = np.zeros(1)
        squares = np.zeros(1)
        for features in blocks:
            if not len(features):
                continue
            n_all = n_rows + len(features)
            block_mean = features.mean(axis=0, dtype=np.float64)
            difference = block_mean - mean
            squares = squares + np.square(features - block_mean).sum(axis=0)
            squares += np.square(difference) * (n_rows * len(features) / n_all)
            mean = mean + difference * (len(features) / n_all)
            n_rows = n_all
        return cls(n_rows, mean, squares)

    def shares(self, features: np.ndarray) -> np.ndarray:
        """Return the share of the variance of each feature that each row has (n_rows, n_features)."""
        varies = self.squares > self.n_rows * np.square(_ROUNDING * self.mean)
        squares = np.square(features - self.mean)
        return np.divide(squares, self.squares, out=np.zeros_like(squares), where=varies)


def worst_first(errors: np.ndarray, leverage: np.ndarray, n_rows: int) -> np.ndarray:
    """Return the order of some of `n_rows` rows: those with a large leverage, then those with the largest errors.

    `leverage` (n,) is the largest share that a row has of the variance of a feature. It is large above a tenth, and
    above a hundred times the mean share.
    """
    is_large = leverage > max(_LARGE_SHARE, _FAR / n_rows)
    return np.lexsort((-errors, -np.where(is_large, leverage, 0.0)))


def owners(shares: np.ndarray, n_rows: int) -> np.ndarray:
    """Return the positions of rows that, alone or together, have more than half of the variance of a feature.

    For each feature, these are at most four rows, and at most 1 % of all `n_rows` rows. `shares` (n, n_features) are
    those of the rows with the largest ones.
    """
    n_most = min(MOST_OWNERS, n_rows // _MOST)
    largest = np.argsort(-shares, axis=0, kind="stable")[:n_most]
    sums = np.cumsum(np.take_along_axis(shares, largest, axis=0), axis=0)
    is_needed = sums - np.take_along_axis(shares, largest, axis=0) <= MOST_OF_ALL
    is_owned = (sums > MOST_OF_ALL).any(axis=0)
    return np.unique(largest[is_needed & is_owned])
