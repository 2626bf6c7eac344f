"""Linear probe: find the extra dataset with the labels, and measure the accuracy of a ridge classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.formats import missing_value

__all__ = ["NONE", "Labels", "accuracy", "labels_of"]

NONE = -1
"""Code of a row without a label."""
_USUAL_NAMES = ("y", "label", "labels", "target", "targets", "class", "classes")
_MAX_LABELS = 50  # more labels could not be distinguished on a page
_PENALTIES = 10.0 ** np.arange(-3, 5)  # relative to the variance of a column times the number of rows


@dataclass(frozen=True)
class Labels:
    """Labels of rows.

    Attributes
    ----------
    name : str
        Name of the dataset.
    names : tuple of str
        Distinct labels in sorted order.
    codes : ndarray of shape (n_rows,), int64
        For each row, the index of its label in `names`, or `NONE`.
    """

    name: str
    names: tuple[str, ...]
    codes: np.ndarray

    def name_of(self, row: int) -> str | None:
        """Return the label of a row, or None if the row has no label."""
        code = int(self.codes[row])
        if code == NONE:
            return None
        return self.names[code]


# -- labels --------------------------------------------------------------------------------------------------------


def labels_of(extras: Mapping[str, np.ndarray], categories: Mapping[str, np.ndarray]) -> Labels | None:
    """Find labels in the extra datasets.

    Datasets with a usual name, such as ``y``, are tried first, then the others in the order of their names.

    Parameters
    ----------
    extras : mapping of str to ndarray of shape (n_rows,)
        Values of the extra datasets.
    categories : mapping of str to ndarray
        Categories of the extra datasets that are stored as codes.

    Returns
    -------
    Labels or None
        None if no dataset contains labels.
    """
    for name in sorted(extras, key=lambda name: (_rank(name), name)):
        if name.endswith("_present"):
            continue
        labels = _labels(name, extras[name], categories.get(name))
        if labels is not None:
            return labels
    return None


def _rank(name: str) -> int:
    plain = name.rsplit("/", 1)[-1].lower()
    if plain in _USUAL_NAMES:
        return _USUAL_NAMES.index(plain)
    return len(_USUAL_NAMES)


def _labels(name: str, values: np.ndarray, categories: np.ndarray | None) -> Labels | None:
    """Return the values as labels, or None if they look like measurements or identifiers."""
    if values.dtype.kind not in "biufO" or not len(values) or _has_fractions(values):
        return None
    has_label = _has_label(values, is_code=categories is not None)
    distinct, indices = np.unique(values[has_label], return_inverse=True)
    # Each identifier occurs only once or twice.
    if not 2 <= len(distinct) <= min(_MAX_LABELS, len(values) // 3):
        return None
    codes = np.full(len(values), NONE)
    codes[has_label] = indices
    names = tuple(_label_text(value, categories) for value in distinct.tolist())
    return Labels(name, names, codes)


def _has_fractions(values: np.ndarray) -> bool:
    return values.dtype.kind == "f" and not np.array_equal(values, np.rint(values), equal_nan=True)


def _has_label(values: np.ndarray, is_code: bool) -> np.ndarray:
    """Return a mask of the values that are not missing, bool (n_rows,)."""
    if values.dtype.kind == "b":
        return np.ones(len(values), dtype=bool)
    if values.dtype.kind == "f":
        return ~np.isnan(values)
    if values.dtype == object:
        return np.asarray(values != "")
    if is_code:
        return np.asarray(values != -1)
    return np.asarray(values != missing_value(values.dtype))


def _label_text(value: object, categories: np.ndarray | None) -> str:
    if categories is not None and isinstance(value, int) and value < len(categories):
        value = categories[value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float):
        return str(int(value))
    return str(value)


# -- the classifier ------------------------------------------------------------------------------------------------


def accuracy(rows: np.ndarray, codes: np.ndarray, is_test: np.ndarray) -> float:
    """Return the share of test rows that a ridge classifier assigns to the correct class.

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
    x = _standardized(rows, is_train)
    targets = np.eye(codes.max() + 1)[codes[is_train]]
    offset = targets.mean(axis=0)
    weights = _ridge_weights(x[is_train], targets - offset)
    scores = x[is_test] @ weights + offset
    return float((scores.argmax(axis=1) == codes[is_test]).mean())


def _standardized(rows: np.ndarray, is_train: np.ndarray) -> np.ndarray:
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
