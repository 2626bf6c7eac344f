"""Comparison of the features of two runs.

The result states how similar the features are, and whether models trained on the first run work on the second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from shardpress.base.errors import printable, quantity
from shardpress.report.commonrows import EncodedRows, read_common_rows
from shardpress.result.alignment import Alignment, fit_map
from shardpress.result.features import check_part
from shardpress.result.finished import Result

_NEIGHBOURS = 10
_NEIGHBOUR_ROWS = 2048  # maximum number of rows in the search for neighbours, which computes all pairwise distances
_MIN_SPREAD = 0.01  # minimum spread of a column, relative to the spread of all columns

# Limits of the verdict, which are based on the measurements in docs/performance.md.
_SAME_CHANGE = 0.01
_NEARLY_SAME_CHANGE = 0.03
_SIMILAR_CKA = 0.9
_SIMILAR_NEIGHBOURS = 0.6


@dataclass(frozen=True)
class _Likeness:
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
    likeness: _Likeness  # of a selection of the common rows
    retrain: bool  # whether models trained on the features of A must be trained again on those of B
    verdict: str
    alignment: Alignment | None  # a map from the features of B to those of A, if requested

    def facts(self) -> dict[str, object]:
        """Return plain values for JSON."""
        facts: dict[str, object] = asdict(self)
        del facts["alignment"]
        facts["map"] = None
        if self.alignment is not None:
            facts["map"] = {
                "r2": self.alignment.known_r2,
                "n_rows": self.alignment.n_rows,
                "n_held_out": self.alignment.n_held_out,
            }
        return facts

    def __str__(self) -> str:
        changed = ""
        if self.n_changed:
            changed = f"; {quantity(self.n_changed, 'file')} of the input changed between the runs"
        n, m = self.n_features
        likeness = self.likeness
        change = "undefined, because the numbers of features differ"
        if likeness.change is not None:
            change = f"{likeness.change:.2g}"
        lines = [
            self.verdict,
            f"  rows                 {likeness.n_rows} of {self.n_common} common rows{changed}",
            f"  features             {n} in {printable(self.a)}, {m} in {printable(self.b)}",
            f"  change               {change} (RMS difference in standard deviations; 0: identical)",
            f"  linear CKA           {likeness.cka:.3f} (1: the same similarities between rows)",
            f"  nearest neighbours   {100 * likeness.neighbours:.1f} % of the ten nearest rows shared",
        ]
        if self.alignment is not None:
            lines.append(f"  linear map           {self.alignment}")
        return "\n".join(lines)


def _verdict(likeness: _Likeness) -> tuple[bool, str]:
    """Return whether downstream models must be trained again, and a text that explains the similarity measures."""
    keeps = "Models trained on A work on B unchanged."
    if likeness.change == 0:
        return False, f"The features are identical. {keeps}"
    if likeness.change is not None and likeness.change < _SAME_CHANGE:
        return False, f"The features agree up to rounding. {keeps}"
    if likeness.change is not None and likeness.change < _NEARLY_SAME_CHANGE:
        return False, f"The features nearly agree. {keeps} About one prediction in a hundred may change."
    retrain = "Retrain models on B"
    if likeness.cka >= _SIMILAR_CKA and likeness.neighbours >= _SIMILAR_NEIGHBOURS:
        return True, f"A and B carry similar information in different coordinates. {retrain}; expect similar accuracy."
    return True, f"A and B carry different information. {retrain}, and measure their accuracy."


def compare(a: str, b: str, n_rows: int | None = None, with_map: bool = False) -> _Comparison:
    """Compare the features of two output directories on up to `n_rows` common rows, and fit a map with `with_map`.

    Rows are common if they have the same number in input files with the same rows. Raise `NoInput` if a directory
    contains no finished run, and `DataError` if too few rows have features in both runs, or if a part cannot be read.
    """
    runs = []
    for directory in (a, b):
        result = Result.open(directory)
        check_part(result.directory, result.parts[0])  # the index may have been copied without its parts
        runs.append(EncodedRows.of(result))
    before, now = runs
    common = read_common_rows(before, now, n_rows)
    alignment = None
    if with_map:
        alignment = fit_map(common.b, common.a, common.is_held_out, now.encoder, before.encoder)
    likeness = _likeness(common.a, common.b)
    retrain, sentence = _verdict(likeness)
    n_features = (before.n_features, now.n_features)
    return _Comparison(a, b, n_features, common.n_rows, common.n_changed, likeness, retrain, sentence, alignment)


# -- similarity ----------------------------------------------------------------------------------------------------


def _likeness(a: np.ndarray, b: np.ndarray) -> _Likeness:
    """Compare features (n_rows, n_features) and other features (n_rows, m_features) of the same rows, float64."""
    return _Likeness(len(a), _change(a, b), _linear_cka(a, b), _neighbour_overlap(a, b))


def _change(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return `_Likeness.change`.

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


def _linear_cka(a: np.ndarray, b: np.ndarray) -> float:
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


def _neighbour_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Return `_Likeness.neighbours`, measured on at most 2,048 rows."""
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
