"""What a training is measured by: the errors of as many principal components, and of predicting the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.scan.scaler import Scaler
from pipeline.training.components import Components, blocks

__all__ = ["NOTHING", "Baseline", "baseline_of"]

_MARGIN = 0.02  # of the components' error: trainings that differ in nothing but their seed differ by as much
NOTHING = 1e-3  # of the mean's error: what rows of low rank leave of it, as near to 0 as it is, is nobody's concern
_STANDARD_ERRORS = 2  # and so many: of a few rows the mean error says little


@dataclass(frozen=True)
class Baseline:
    """Mean squared errors of the watched rows, in scaled units.

    Attributes
    ----------
    n_components : int
        As many as there are features.
    components : ndarray of shape (n_rows,), float64
        Of each row's reconstruction from its principal components.
    mean : ndarray of shape (n_rows,), float64
        Where each row is taken for the mean one.
    """

    n_components: int
    components: np.ndarray
    mean: np.ndarray

    def beside(self, errors: np.ndarray) -> dict[str, Any]:
        """Plain values for reports, with whether features are worse whose errors (n_rows,) of the same rows these are.

        Since the rows are the same, it is the differences that are told from chance.
        """
        more = errors.astype(np.float64) - self.components
        by_chance = _STANDARD_ERRORS * more.std() / np.sqrt(len(more))
        components = float(self.components.mean())
        mean = float(self.mean.mean())
        is_worse = bool(more.mean() > max(_MARGIN * components, NOTHING * mean, by_chance))
        return {"n_components": self.n_components, "components": components, "mean": mean, "is_worse": is_worse}


def baseline_of(found: Components, rows: np.ndarray, scaler: Scaler) -> Baseline:
    """The errors of components that were found in other rows.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_inputs)
        Unscaled, one at least.
    """
    mean = np.empty(len(rows))
    left = np.empty(len(rows))
    for block in blocks(*rows.shape):
        centred = scaler.transform(rows[block]) - found.mean
        mean[block] = np.square(centred).mean(axis=1)
        # By Pythagoras, as they are orthonormal; of rows that they give back whole, rounding may leave less than 0.
        explained = np.square(centred @ found.components).sum(axis=1) / rows.shape[1]
        left[block] = np.maximum(mean[block] - explained, 0)
    return Baseline(found.components.shape[1], left, mean)
