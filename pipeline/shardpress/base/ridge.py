"""Eigenvectors, and ridge regression with a penalty that is chosen by generalized cross-validation."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

_PENALTIES = 10.0 ** np.arange(-3, 5)  # relative to the variance of a column times the number of rows


def fit_ridge(x: np.ndarray, y: np.ndarray, penalties: np.ndarray = _PENALTIES) -> tuple[np.ndarray, np.ndarray]:
    """Fit a ridge regression of targets on standardized columns: ``x @ W + b``.

    Source: Hoerl and Kennard, "Ridge regression: biased estimation for nonorthogonal problems", 1970, equation 2.1.

    Parameters
    ----------
    x : ndarray of shape (n_rows, n_columns)
    y : ndarray of shape (n_rows, n_targets), float64
        All targets share a penalty, so they must have comparable variances.
    penalties : ndarray of shape (n_penalties,)
        Candidates. Generalized cross-validation on these rows chooses one.

    Returns
    -------
    W : ndarray of shape (n_columns, n_targets), float64
        Constant columns have the weight 0.
    b : ndarray of shape (n_targets,), float64
    """
    mean = x.mean(axis=0, dtype=np.float64)
    scale = inverse_of_deviations(x.std(axis=0, dtype=np.float64))
    offset = y.mean(axis=0)
    W = scale[:, None] * _weights((x - mean) * scale, y - offset, penalties)
    return W, offset - mean @ W


def inverse_of_deviations(deviation: np.ndarray) -> np.ndarray:
    """Return the inverse of each standard deviation, or 0 for constant columns: float64."""
    is_constant = deviation <= 1e-9 * deviation.max(initial=0)
    return _divide(np.ones_like(deviation), np.where(is_constant, 0, deviation))


def _weights(x: np.ndarray, targets: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return the weights (n_columns, n_targets) of a ridge regression on centred columns.

    The eigenvectors of the smaller Gram matrix are computed once for all penalties. This takes a fifth of the time of
    a singular value decomposition, but loses half of the digits.
    """
    if len(x) >= x.shape[1]:
        squares, right = _significant(x.T @ x)
        sizes = np.sqrt(squares)[:, None]
        projected = _divide(right.T @ (x.T @ targets), sizes)
        shrunk = _shrunk(squares, projected, targets, penalties)
        return np.asarray(right @ _divide(shrunk, sizes))
    squares, left = _significant(x @ x.T)
    projected = left.T @ targets
    shrunk = _shrunk(squares, projected, targets, penalties)
    return np.asarray(x.T @ (left @ _divide(shrunk, squares[:, None])))


def _significant(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors. Eigenvalues that are only rounding errors are set to 0."""
    values, vectors = eigenvectors(gram)
    return np.where(values > 1e-12 * values[-1], values, 0), vectors


def _shrunk(squares: np.ndarray, projected: np.ndarray, targets: np.ndarray, penalties: np.ndarray) -> np.ndarray:
    """Return the predictions (n, n_targets) in the basis of the singular vectors, shrunk with the best penalty.

    `squares` (n,) are the squared singular values of the rows, and `projected` (n, n_targets) the targets in the basis
    of the left singular vectors.
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


def eigenvectors(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues and the eigenvectors of a symmetric matrix (n, n), float64.

    The eigenvalues (n,) increase. The eigenvectors are the orthonormal columns of an array (n, n). One thread computes,
    which takes a fifth of a second for 800 rows, and three seconds for 2,000.
    """
    # BLAS threads wait for each other after each of thousands of small products. On a busy machine, each wait takes
    # milliseconds: two threads needed 16 seconds where one needs a fifth of a second.
    with threadpool_limits(1, "blas"):
        values, vectors = np.linalg.eigh(matrix)
    return values, vectors
