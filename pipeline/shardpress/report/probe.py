"""Linear probe: a ridge classifier, or a ridge regression, that is trained on some rows and tested on others."""

from __future__ import annotations

import numpy as np

from shardpress.ridge import fit_ridge


def are_correct(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return a mask of the test rows that a ridge classifier assigns to the correct class, bool (n_test,).

    All other rows train the classifier. The rows have shape (n_rows, n_columns), and `codes` (n_rows,) are their
    classes, from 0 on. scikit-learn's `RidgeClassifierCV` is equally accurate, but importing it takes longer than
    making the whole report.
    """
    scores = _predictions(rows, np.eye(codes.max() + 1)[codes], is_test)
    return np.asarray(scores.argmax(axis=1) == codes[is_test])


def regression_errors(rows: np.ndarray, numbers: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return the squared errors of a ridge regression of `numbers` (n_rows,) on the test rows, float64 (n_test,).

    The rows are those of `are_correct`. Predictions are limited to the range of the training rows. Otherwise, a column
    that hardly varies in the training rows can make a prediction arbitrarily large.
    """
    known = numbers[~is_test]
    predictions = _predictions(rows, numbers[:, None], is_test)[:, 0]
    return np.square(np.clip(predictions, known.min(), known.max()) - numbers[is_test])


def _predictions(rows: np.ndarray, targets: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return the predictions (n_test, n_targets) for the test rows of a ridge regression on the other rows."""
    W, b = fit_ridge(rows[~is_test], targets[~is_test])
    return np.asarray(rows[is_test] @ W + b)
