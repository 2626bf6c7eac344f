"""How much two sets of features of the same rows are alike: numbers, and nothing of files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Likeness", "likeness", "linear_cka", "matched", "neighbour_overlap"]

_NEIGHBOURS = 10
_LEAST_SPREAD = 0.01  # of the other columns'
_NEIGHBOUR_ROWS = 2048  # among which they are looked for: the distances take the square of it


@dataclass(frozen=True)
class Likeness:
    """What was measured of features A and B.

    Attributes
    ----------
    n_rows : int
        Rows.
    change : float or None
        The root mean square of B - A in standard deviations of A's columns, over all of these: 0 where B is A. None
        where there are more columns in one.
    correlation, least_correlation : float
        Mean and smallest size of the correlation of units that are matched one to one, so that the mean is largest.
    n_units, n_in_place : int
        Units that are matched, and how many of them have the same number in both.
    cka : float
        Linear centered kernel alignment, from 0 to 1: whether rows differ from each other in the same ways, whatever
        the units.
    neighbours : float
        Which share of the ten nearest rows of a row in A are among the ten nearest in B.
    """

    n_rows: int
    change: float | None
    correlation: float
    least_correlation: float
    n_units: int
    n_in_place: int
    cka: float
    neighbours: float


def likeness(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare features (n_rows, n_features) and (n_rows, m_features) of the same rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    first, second, sizes = matched(a, b)
    return Likeness(
        n_rows=len(a),
        change=_change(a, b) if a.shape == b.shape else None,
        correlation=float(sizes.mean()),
        least_correlation=float(sizes.min()),
        n_units=len(sizes),
        n_in_place=int((first == second).sum()),
        cka=linear_cka(a, b),
        neighbours=neighbour_overlap(a, b),
    )


def _change(a: np.ndarray, b: np.ndarray) -> float:
    """Columns that hardly vary beside the others count by a hundredth of these, so that no rounding is much of them."""
    spread = a.std(axis=0)
    least = max(_LEAST_SPREAD * float(np.sqrt(np.mean(spread**2))), float(np.finfo(float).tiny))
    return float(np.sqrt(np.mean(((b - a) / np.maximum(spread, least)) ** 2)))


def matched(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Units of A and of B, matched one to one by the Hungarian method, and the sizes of their correlations.

    Source: Li, Yosinski, Clune, Lipson and Hopcroft, "Convergent learning", 2015, section 3. Units that never vary
    correlate with none.
    """
    from scipy.optimize import linear_sum_assignment  # here, since it takes as long to load as all else takes

    a, b = _centered(a), _centered(b)
    lengths = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    correlations = np.divide(np.abs(a.T @ b), lengths, out=np.zeros(lengths.shape), where=lengths > 0)
    first, second = linear_sum_assignment(correlations, maximize=True)
    return first, second, np.minimum(correlations[first, second], 1)


def linear_cka(a: np.ndarray, b: np.ndarray) -> float:
    """``|B' A|^2 / (|A' A| |B' B|)`` in Frobenius norms, of centered features.

    Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of neural network representations revisited", 2019,
    equation 5 with section 3. With fewer rows than features it says too much.
    """
    a, b = _centered(a), _centered(b)
    return _share(np.linalg.norm(b.T @ a) ** 2, np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))


def neighbour_overlap(a: np.ndarray, b: np.ndarray) -> float:
    """The mean share of a row's nearest rows in A that are among its nearest in B; of 2,048 rows at most."""
    n = min(len(a), _NEIGHBOUR_ROWS)
    k = min(_NEIGHBOURS, n - 1)
    if k < 1:
        return 1.0
    first, second = (_nearest(each[np.arange(n) * len(a) // n], k) for each in (a, b))
    return float((first & second).sum() / (n * k))


def _nearest(features: np.ndarray, k: int) -> np.ndarray:
    """Which rows are the `k` nearest of each: (n, n), bool. Of equally near ones those that come first."""
    features = _centered(features)
    squares = (features**2).sum(axis=1)
    distances = squares[:, None] + squares - 2 * features @ features.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.zeros(distances.shape, dtype=bool)
    np.put_along_axis(nearest, np.argsort(distances, axis=1, kind="stable")[:, :k], True, axis=1)
    return nearest


def _centered(features: np.ndarray) -> np.ndarray:
    return np.asarray(features - features.mean(axis=0))


def _share(part: Any, whole: Any) -> float:
    """0 / 0 is 0: of features that never vary there is nothing to be alike in."""
    return float(part / whole) if whole > 0 else float(part > 0)
