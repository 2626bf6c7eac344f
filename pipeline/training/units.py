"""What has become of the features: how many of them say nothing, little, or what another one says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Units", "count_units"]

# A feature is dead when it varies less than this share of what the liveliest one does, or than by rounding alone.
_DEAD = 1e-3
_ROUNDING = 1e-6
# a sigmoid below or above is saturated: its slope is below a twenty-fifth of the steepest
_LOW = 0.01
_HIGH = 0.99
_SAME = 0.999  # correlation
_COLUMNS = 256  # features that are compared with all before them at once


@dataclass(frozen=True)
class Units:
    """Numbers of features, by what some rows make of them.

    Attributes
    ----------
    dead : int
        They hardly vary.
    saturated : int
        More than half of their activations are saturated; only sigmoids can be.
    duplicate : int
        Up to sign, scale and offset they say what one before them says.
    saturated_share : float
        Of all activations.
    """

    n_rows: int
    n_features: int
    dead: int
    saturated: int
    duplicate: int
    saturated_share: float


def count_units(features: np.ndarray, code: str) -> Units:
    """Look at features (n_rows, n_features), float32, of two rows or more, that come from such a code."""
    n_rows, n_features = features.shape
    ends = ((features < _LOW) | (features > _HIGH)).mean(axis=0) if code == "sigmoid" else np.zeros(n_features)
    deviations = features.std(axis=0, dtype=np.float64)
    is_dead = deviations <= max(_DEAD * deviations.max(), _ROUNDING)
    return Units(
        n_rows=n_rows,
        n_features=n_features,
        dead=int(is_dead.sum()),
        saturated=int((ends > 0.5).sum()),
        duplicate=_n_duplicates(features[:, ~is_dead]),
        saturated_share=float(ends.mean()),
    )


def _n_duplicates(features: np.ndarray) -> int:
    """How many features go along with one before them; a square of all correlations is never in memory."""
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred /= np.linalg.norm(centred, axis=0)
    n_found = 0
    for start in range(0, centred.shape[1], _COLUMNS):
        these = centred[:, start : start + _COLUMNS]
        among = np.triu(these.T @ these, 1)  # of two of them, one is before the other
        before = centred[:, :start].T @ these
        n_found += int(((np.abs(before) > _SAME).any(axis=0) | (np.abs(among) > _SAME).any(axis=0)).sum())
    return n_found
