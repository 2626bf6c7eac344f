"""Linear probe: a ridge classifier that is trained on some rows and tested on others."""

from __future__ import annotations

import numpy as np

__all__ = ["are_correct", "standardized"]

_PENALTIES = 10.0 ** np.arange(-3, 5)  # relative to the variance of a column times the number of rows


def are_correct(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> np.ndarray:
    """Return a mask of the test rows that a ridge classifier assigns to the correct class, bool (n_test,).

    scikit-learn's `RidgeClassifierCV` is equally accurate, but importing it takes longer than making the whole report.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_columns)
        Rows. They are standardized with the mean and standard deviation of the training rows.
    codes : ndarray of shape (n_rows,), int64
        Class of each row. The first class is 0.
    is_test : ndarray of shape (n_rows,), bool
        Mask of the test rows. All other rows are training rows.
    """
    is_train = ~is_test
    x = standardized(rows, is_train)
    targets = np.eye(codes.max() + 1)[codes[is_train]]
    offset = targets.mean(axis=0)
    weights = _ridge_weights(x[is_train], targets - offset)
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


def _ridge_weights(x: np.ndarray, targets: np.ndarray, penalties: np.ndarray = _PENALTIES) -> np.ndarray:
    """Return the weights (n_columns, n_classes) of a ridge regression on centred columns.

    The eigenvectors of the smaller Gram matrix are computed once for all penalties. This takes a fifth of the time of
    a singular value decomposition, but loses half of the digits.

    Parameters
    ----------
    x : ndarray of shape (n_rows, n_columns), float64
    targets : ndarray of shape (n_rows, n_classes), float64
    penalties : ndarray of shape (n_penalties,)
        Candidates. The weights are computed with the best candidate.
    """
    if len(x) >= x.shape[1]:
        squares, right = _eigenvectors(x.T @ x)
        sizes = np.sqrt(squares)[:, None]
        projected = _divide(right.T @ (x.T @ targets), sizes)
        shrunk = _shrunk(squares, projected, targets, penalties)
        return np.asarray(right @ _divide(shrunk, sizes))
    squares, left = _eigenvectors(x @ x.T)
    projected = left.T @ targets
    shrunk = _shrunk(squares, projected, targets, penalties)
    return np.asarray(x.T @ (left @ _divide(shrunk, squares[:, None])))


def _eigenvectors(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors. Eigenvalues that are only rounding errors are set to 0."""
    values, vectors = np.linalg.eigh(gram)
    return np.where(values > 1e-12 * values[-1], values, 0), vectors


def _shrunk(squares: np.ndarray, projected: np.ndarray, targets: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return the predictions (n, n_classes) in the basis of the singular vectors, shrunk with the best penalty.

    Parameters
    ----------
    squares : ndarray of shape (n,)
        Squared singular values of the rows.
    projected : ndarray of shape (n, n_classes)
        Targets in the basis of the left singular vectors.
    targets : ndarray of shape (n_rows, n_classes)
    penalties : ndarray of shape (n_penalties,)
    """
    factors = [squares / (squares + penalty * len(targets)) for penalty in penalties]
    errors = [_validation_error(factor, projected, targets) for factor in factors]
    best = factors[int(np.argmin(errors))]
    return np.asarray(best[:, None] * projected)


def _validation_error(shrinkage: np.ndarray, projected: np.ndarray, targets: np.ndarray) -> float:
    """Estimate the mean squared error on new rows by generalized cross-validation.

    Source: Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter",
    Technometrics 21 (1979), equation 1.4.
    """
    n_rows = len(targets)
    explained = (shrinkage * (2 - shrinkage)) @ np.square(projected)
    residual = np.square(targets).sum() - explained.sum()
    n_parameters = shrinkage.sum() + 1  # the mean is one more parameter
    return float(n_rows * residual / max(n_rows - n_parameters, 1e-9) ** 2)


def _divide(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Divide elementwise. The result is 0 where the divisor is 0."""
    return np.divide(values, by, out=np.zeros_like(values), where=by > 0)
