"""Comparison of the features of two runs.

The result states how similar the features are, and whether models trained on the first run work on the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shardpress.alignment import Alignment, fit_map
from shardpress.errors import DataError, printable, quantity
from shardpress.features import check_part
from shardpress.report.commonrows import (
    EncodedRows,
    common_pieces,
    default_rows,
    n_changed,
    read_pieces,
)
from shardpress.result import Result

_NEIGHBOURS = 10
_NEIGHBOUR_ROWS = 2048  # maximum number of rows in the search for neighbours, which computes all pairwise distances
_MIN_SPREAD = 0.01  # minimum spread of a column, relative to the spread of all columns

# Limits of the verdict, which are based on the measurements in docs/performance.md.
_SAME_CHANGE = 0.01
_NEARLY_SAME_CHANGE = 0.03
_SIMILAR_CKA = 0.9
_SIMILAR_NEIGHBOURS = 0.6


@dataclass(frozen=True)
class Likeness:
    """Similarity of features A and B of the same rows."""

    n_rows: int
    # Root mean square of B - A over all columns, relative to the standard deviations of the columns of A: 0 if A and B
    # are equal, and None if they have different numbers of columns.
    change: float | None
    # Linear centered kernel alignment, from 0 to 1. It compares similarities between rows, so it does not depend on the
    # order or rotation of the columns.
    cka: float
    # Mean share of the ten nearest neighbours of a row in A that are also among its ten nearest neighbours in B.
    neighbours: float


@dataclass(frozen=True)
class _Comparison:
    """Result of comparing the runs in two output directories."""

    a: str
    b: str
    n_features: tuple[int, int]
    n_common: int  # rows that have features in both runs
    n_changed: int  # input files with common rows that have changed between the runs
    likeness: Likeness  # of a selection of the common rows
    retrain: bool  # whether models trained on the features of A must be trained again on those of B
    verdict: str

    def __str__(self) -> str:
        changed = ""
        if self.n_changed:
            changed = f"; {quantity(self.n_changed, 'file')} of the input changed between the runs"
        n, m = self.n_features
        found = self.likeness
        change = "undefined, because the numbers of features differ"
        if found.change is not None:
            change = f"{found.change:.2g}"
        lines = [
            self.verdict,
            f"  rows                 {found.n_rows} of {self.n_common} common rows{changed}",
            f"  features             {n} in {printable(self.a)}, {m} in {printable(self.b)}",
            f"  change               {change} (RMS difference in standard deviations; 0: identical)",
            f"  linear CKA           {found.cka:.3f} (1: the same similarities between rows)",
            f"  nearest neighbours   {100 * found.neighbours:.1f} % of the ten nearest rows shared",
        ]
        return "\n".join(lines)


def verdict(found: Likeness) -> tuple[bool, str]:
    """Return whether downstream models must be trained again, and a text that explains the similarity measures."""
    keeps = "Models trained on A work on B unchanged."
    if found.change == 0:
        return False, f"The features are identical. {keeps}"
    if found.change is not None and found.change < _SAME_CHANGE:
        return False, f"The features agree up to rounding. {keeps}"
    if found.change is not None and found.change < _NEARLY_SAME_CHANGE:
        return False, f"The features nearly agree. {keeps} About one prediction in a hundred may change."
    retrain = "Retrain models on B"
    if found.cka >= _SIMILAR_CKA and found.neighbours >= _SIMILAR_NEIGHBOURS:
        return True, f"A and B carry similar information in different coordinates. {retrain}; expect similar accuracy."
    return True, f"A and B carry different information. {retrain}, and measure their accuracy."


# -- common rows ---------------------------------------------------------------------------------------------------


def compare(a: str, b: str, n_rows: int | None = None) -> _Comparison:
    """Compare the features of two output directories on up to `n_rows` common rows.

    Rows are common if they have the same number in input files with the same rows. Raise `NoInput` if a directory
    contains no finished run, and `DataError` if fewer than two rows have features in both runs, or if a part cannot be
    read.
    """
    results = (Result.open(a), Result.open(b))
    for result in results:
        check_part(result.directory, result.parts[0])  # the index may have been copied without its parts
    rows_a, rows_b = map(EncodedRows.of, results)
    pieces = common_pieces(rows_a, rows_b)
    n_features = (rows_a.n_features, rows_b.n_features)
    n_most = n_rows or default_rows(n_features)
    features_a, features_b = read_pieces(rows_a.directory, rows_b.directory, pieces, n_most)
    if len(features_a) < 2:
        n_found = quantity(len(features_a), "row")
        raise DataError(
            f"output={printable(a)} and output={printable(b)}: found {n_found} with features in both, "
            "expected at least two, from input files with the same rows. Compare runs on the same files."
        )
    found = likeness(features_a, features_b)
    retrain, sentence = verdict(found)
    return _Comparison(
        a=a,
        b=b,
        n_features=n_features,
        n_common=sum(piece.n_rows for piece in pieces),
        n_changed=n_changed(rows_a, rows_b),
        likeness=found,
        retrain=retrain,
        verdict=sentence,
    )


def align(a: str, b: str, n_rows: int | None = None) -> Alignment:
    """Fit a linear map from the features of B to those of A, on common rows. Raise the errors of `compare`."""
    return align_rows(EncodedRows.of(Result.open(a)), EncodedRows.of(Result.open(b)), n_rows)


def align_rows(a: EncodedRows, b: EncodedRows, n_rows: int | None = None) -> Alignment:
    """Fit a linear map from the features of B to those of A, as `align` does.

    Rows of files that have changed between the two runs are not used.
    """
    pieces = common_pieces(a, b)
    n_most = n_rows or default_rows((a.n_features, b.n_features))
    features_a, features_b = read_pieces(a.directory, b.directory, pieces, n_most)
    return fit_map(features_b, features_a, b.encoder, a.encoder)


# -- similarity ----------------------------------------------------------------------------------------------------


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare two sets of features of the same rows, with shapes (n_rows, n_features) and (n_rows, m_features)."""
    a = a.astype(np.float64)
    b = b.astype(np.float64)
    return Likeness(len(a), _change(a, b), linear_cka(a, b), neighbour_overlap(a, b))


def _change(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return `Likeness.change`.

    The spread of a column counts as at least a hundredth of the root mean square of all spreads. Otherwise rounding
    errors in columns that hardly vary would look like large changes.
    """
    if a.shape != b.shape:
        return None
    spread = a.std(axis=0)
    root_mean_square = float(np.sqrt(np.mean(spread**2)))
    min_spread = max(_MIN_SPREAD * root_mean_square, float(np.finfo(float).tiny))
    changes = (b - a) / np.maximum(spread, min_spread)
    return float(np.sqrt(np.mean(changes**2)))


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """Return the linear centered kernel alignment (CKA) of two sets of features.

    It is ``|B' A|^2 / (|A' A| |B' B|)`` for centered features, in Frobenius norms. If there are fewer rows than
    features, the result is too large. Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network
    representations revisited", 2019, equation 5 with section 3.
    """
    a = _centered(a)
    b = _centered(b)
    common = float(np.linalg.norm(b.T @ a) ** 2)
    whole = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    if whole > 0:
        return common / whole
    return float(common > 0)  # 0 for constant features; norms of tiny features may underflow


def neighbour_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return `Likeness.neighbours`, measured on at most 2,048 rows."""
    n = min(len(a), _NEIGHBOUR_ROWS)
    k = min(_NEIGHBOURS, n - 1)
    if k < 1:
        return 1.0
    rows = np.arange(n) * len(a) // n
    n_shared = (_nearest(a[rows], k) & _nearest(b[rows], k)).sum()
    return float(n_shared / (n * k))


def _nearest(features: np.ndarray, k: int) -> np.ndarray:
    """Return a mask of the `k` nearest rows of each row, bool (n, n). If distances are equal, earlier rows are used."""
    features = _centered(features)
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1, kind="stable")
    nearest = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(nearest, order[:, :k], True, axis=1)
    return nearest


def _centered(features: np.ndarray) -> np.ndarray:
    return np.asarray(features - features.mean(axis=0))
