"""Linear probe: a ridge classifier, or a ridge regression, that is trained on some rows and tested on others."""

from __future__ import annotations

import numpy as np

from shardpress.ridge import ridge_weights


def are_correct(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return a mask of the test rows that a ridge classifier assigns to the correct class, bool (n_test,).

    The rows (n_rows, n_columns) are standardized like the training rows, which are all rows that are no test rows.
    `codes` (n_rows,) are the classes from 0 on. scikit-learn's `RidgeClassifierCV` is equally accurate, but importing
    it takes longer than making the whole report.
    """
    targets = np.eye(codes.max() + 1)[codes[~is_test]]
    scores = _predictions(rows, targets, is_test)
    return np.asarray(scores.argmax(axis=1) == codes[is_test])


def regression_errors(rows: np.ndarray, numbers: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return the squared errors of a ridge regression of `numbers` (n_rows,) on the test rows, float64 (n_test,).

    The rows are those of `are_correct`. Predictions are limited to the range of the training rows. Otherwise, a column
    that hardly varies in the training rows can make a prediction arbitrarily large.
    """
    known = numbers[~is_test]
    predictions = _predictions(rows, known[:, None], is_test)[:, 0]
    return np.square(np.clip(predictions, known.min(), known.max()) - numbers[is_test])


def _predictions(rows: np.ndarray, targets: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return the predictions (n_test, n_targets) of a ridge regression, given the targets of the training rows."""
    is_train = ~is_test
    x = standardized(rows, is_train)
    offset = targets.mean(axis=0)
    weights = ridge_weights(x[is_train], targets - offset)
    return np.asarray(x[is_test] @ weights + offset)


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
