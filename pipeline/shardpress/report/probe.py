"""Linear probe: a ridge classifier that is trained on some rows and tested on others."""

from __future__ import annotations

import numpy as np

from shardpress.ridge import ridge_weights


def are_correct(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return a mask of the test rows that a ridge classifier assigns to the correct class, bool (n_test,).

    The rows (n_rows, n_columns) are standardized like the training rows, which are all rows that are no test rows.
    `codes` (n_rows,) are the classes from 0 on. scikit-learn's `RidgeClassifierCV` is equally accurate, but importing
    it takes longer than making the whole report.
    """
    is_train = ~is_test
    x = standardized(rows, is_train)
    targets = np.eye(codes.max() + 1)[codes[is_train]]
    offset = targets.mean(axis=0)
    weights = ridge_weights(x[is_train], targets - offset)
    scores = x[is_test] @ weights + offset
    return np.asarray(scores.argmax(axis=1) == codes[is_test])


def standardized(rows: np.ndarray, is_train: np.ndarray) -> np.ndarray:
    """Standardize rows in float64, so that training rows have mean 0 and standard deviation 1 in each column.

    Columns that are constant in the training rows become 0.
    """
    x = rows.astype(np.float64)
    mean = x[is_train].mean(axis=0)
    deviation = x[is_train].std(axis=0)
    is_constant = deviation <= 1e-9 * max(deviation.max(), 1e-300)
    x -= mean
    x /= np.where(is_constant, np.inf, deviation)
    return x
