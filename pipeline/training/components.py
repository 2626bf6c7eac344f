"""Principal components of a bounded sample of the training rows, in plain NumPy, as start of the weights and baseline.

Halko, Martinsson and Tropp, "Finding structure with randomness: probabilistic algorithms for constructing approximate
matrix decompositions", SIAM Review 53 (2011), algorithms 4.4 and 5.3: where neither side of the sample is small, a few
products with it find the subspace of its largest components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.scan.scaler import Scaler
from pipeline.training.order import Order
from pipeline.training.rows import Rows

__all__ = ["NOTHING", "Baseline", "Components", "baseline_of", "blocks", "principal_components", "sampled"]

NOTHING = 1e-3
"""Share of the mean's error below which an error is treated as none: rows of low rank leave about as much."""

_MARGIN = 0.02  # of the components' error: trainings that differ in nothing but their seed differ by as much
_STANDARD_ERRORS = 2  # the mean error of a few rows is not exact
_SMALL = 1024  # a side of which the whole Gram matrix is made: its eigenvectors take a fifth of a second
_BLOCK_BYTES = 2**23  # of rows in float64, while they are scaled or multiplied

# Products with the sample, and directions beyond the `k` asked for: as many again, or these. With variances that fall
# like 1 / i the reconstruction's error is within 0.02 % of the exact one by that, with half of it within 0.2 %.
_N_ITERATIONS = 4
_OVERSAMPLING = 16


Product = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Components:
    """The directions in which rows vary most.

    Attributes
    ----------
    mean : ndarray of shape (n_inputs,), float64
    components : ndarray of shape (n_inputs, k), float64
        Orthonormal columns, the one of the largest deviation first; each one's largest entry is positive.
    deviations : ndarray of shape (k,), float64
        Standard deviation of the sample along each. 0, but for rounding, where it does not vary: there the direction
        means nothing.
    """

    mean: np.ndarray
    components: np.ndarray
    deviations: np.ndarray


def sampled(rows: Rows, order: Order, scaler: Scaler, most: int) -> np.ndarray:
    """A sample of the rows that are trained on, which depends on nothing but the seed and the size.

    Parameters
    ----------
    most : int
        The sample's size, 1 or more, where there are so many rows.

    Returns
    -------
    ndarray of shape (n_rows, n_inputs), float32
        Scaled, in the order of their numbers.
    """
    numbers = order.sample(most)
    scaled = np.empty((len(numbers), len(scaler.minimum)), dtype=np.float32)
    for block in blocks(*scaled.shape):  # beside the sample there is no room for all of its rows in their own dtype
        scaled[block] = scaler.transform(rows.take(numbers[block]))
    return scaled


def principal_components(x: np.ndarray, k: int, rng: np.random.Generator) -> Components:
    """The first `k` principal components of rows.

    The same for the same rows and generator, up to the rounding of BLAS, which may depend on how many threads it has.

    Parameters
    ----------
    x : ndarray of shape (n_rows, n_inputs), float32
        At least one row, scaled; fewer than `k` give orthonormal directions all the same.
    k : int
        From 1 to n_inputs.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    times_gram = _times_gram(x, mean)
    if len(x) <= _SMALL < x.shape[1]:
        directions = _of_few_rows(x, mean, k)
    else:
        directions = _directions(times_gram, x.shape[1], k, rng)
    # Once more within their span: orders them, and takes along what rounding has mixed.
    variances, turn = np.linalg.eigh(directions.T @ times_gram(directions))
    components = directions @ turn[:, ::-1][:, :k]
    largest = components[np.abs(components).argmax(axis=0), np.arange(k)]
    deviations = np.sqrt(np.maximum(variances[::-1][:k], 0) / len(x))
    return Components(mean, components * np.where(largest < 0, -1.0, 1.0), deviations)


def _directions(times_gram: Product, n_inputs: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Orthonormal columns (n_inputs, k or more) whose span holds the first `k` components, almost or exactly."""
    if n_inputs <= _SMALL:
        return np.asarray(np.linalg.eigh(times_gram(np.eye(n_inputs)))[1][:, -k:])
    found = rng.standard_normal((n_inputs, min(k + max(k, _OVERSAMPLING), n_inputs)))
    for _ in range(_N_ITERATIONS):
        found = np.linalg.qr(times_gram(found))[0]
    return found


def _of_few_rows(x: np.ndarray, mean: np.ndarray, k: int) -> np.ndarray:
    """As `_directions`, from the products of each two rows."""
    columns = list(blocks(len(mean), len(x)))
    gram = np.zeros((len(x), len(x)))
    for block in columns:
        centred = x[:, block] - mean[block]
        gram += centred @ centred.T
    weights = np.linalg.eigh(gram)[1][:, ::-1][:, :k]
    found = np.zeros((len(mean), k))
    for block in columns:
        found[block, : weights.shape[1]] = (x[:, block] - mean[block]).T @ weights
    return np.linalg.qr(found)[0]  # which makes up directions where there are fewer rows than are asked for


def _times_gram(x: np.ndarray, mean: np.ndarray) -> Product:
    """What multiplies columns by the centred rows' Gram matrix (n_inputs, n_inputs), which is made if it is small."""
    n_inputs = x.shape[1]
    if n_inputs <= _SMALL:
        gram = sum((block.T @ block for block in _centred(x, mean)), np.zeros((n_inputs, n_inputs)))
        return lambda columns: gram @ columns
    return lambda columns: sum((block.T @ (block @ columns) for block in _centred(x, mean)), np.zeros_like(columns))


def _centred(x: np.ndarray, mean: np.ndarray) -> Iterator[np.ndarray]:
    """The rows less their mean, block by block, in float64: float32 would lose components of small deviation."""
    return (x[block] - mean for block in blocks(*x.shape))


def blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of `n` rows, each of so many float64 numbers that not too many are in memory at once."""
    size = max(1, _BLOCK_BYTES // (8 * width))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@dataclass(frozen=True)
class Baseline:
    """Mean squared errors of the validation rows by components and by the mean, in scaled units.

    Attributes
    ----------
    n_components : int
        Number of components: that of the features.
    components : ndarray of shape (n_rows,), float64
        Error of each row's reconstruction from its principal components.
    mean : ndarray of shape (n_rows,), float64
        Error of each row if it is predicted by the mean row.
    """

    n_components: int
    components: np.ndarray
    mean: np.ndarray

    def beside(self, errors: np.ndarray) -> dict[str, Any]:
        """Return plain values for reports, and whether features with these errors are worse than components.

        The rows are the same, so it is the differences of the errors that are tested.

        Parameters
        ----------
        errors : ndarray of shape (n_rows,)
            Mean squared error of each row's reconstruction from its features.
        """
        more = errors.astype(np.float64) - self.components
        by_chance = _STANDARD_ERRORS * more.std() / np.sqrt(len(more))
        components = float(self.components.mean())
        mean = float(self.mean.mean())
        is_worse = bool(more.mean() > max(_MARGIN * components, NOTHING * mean, by_chance))
        return {"n_components": self.n_components, "components": components, "mean": mean, "is_worse": is_worse}


def baseline_of(found: Components, rows: np.ndarray, scaler: Scaler) -> Baseline:
    """Return the errors of components that were found in other rows.

    Parameters
    ----------
    rows : ndarray of shape (n_rows, n_inputs)
        Unscaled rows, one at least.
    """
    mean = np.empty(len(rows))
    left = np.empty(len(rows))
    for block in blocks(*rows.shape):
        centred = scaler.transform(rows[block]) - found.mean
        mean[block] = np.square(centred).mean(axis=1)
        # By Pythagoras, since components are orthonormal. Rounding may leave less than 0 of rows that they explain.
        explained = np.square(centred @ found.components).sum(axis=1) / rows.shape[1]
        left[block] = np.maximum(mean[block] - explained, 0)
    return Baseline(found.components.shape[1], left, mean)
