"""Principal components of a sample of the training rows, for the initial weights and as a baseline.

Halko, Martinsson and Tropp, "Finding structure with randomness: probabilistic algorithms for constructing approximate
matrix decompositions", SIAM Review 53 (2011), algorithms 4.4 and 5.3: if neither side of the sample is small, a few
products with it find the subspace of its largest components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from shardpress.base.outliers import Outlier, largest_share, outliers
from shardpress.base.ridge import eigenvectors
from shardpress.model.about import BaselineErrors
from shardpress.model.scaler import Scaler
from shardpress.training.feed import Rows
from shardpress.training.order import Order

NOTHING = 1e-3
"""Share of the error of the mean below which an error is negligible: the error of low-rank rows is about this small."""

_MARGIN = 0.02  # share of the components' error; training runs with different seeds differ by that much
_STANDARD_ERRORS = 2  # tolerance in standard errors, since the mean error of few rows is not exact
_SMALL = 1024  # side up to which the Gram matrix is computed; its eigenvectors then take a fifth of a second
_BLOCK_BYTES = 2**23  # bytes of rows in float64 that are scaled or multiplied at once

# Number of products with the sample, and least number of directions in addition to the `k` requested ones. With `k`
# additional directions, and variances that fall like 1 / i, the error of the reconstruction is within 0.02 % of the
# exact one; with `k / 2` additional directions it is within 0.2 %.
_N_ITERATIONS = 4
_OVERSAMPLING = 16


@dataclass(frozen=True)
class Components:
    """Directions in which rows vary most.

    Attributes
    ----------
    mean : ndarray of shape (n_inputs,), float64
    components : ndarray of shape (n_inputs, k), float64
        Orthonormal columns, by decreasing deviation. The largest entry of each is positive.
    deviations : ndarray of shape (k,), float64
        Standard deviation of the sample along each direction. It is 0, apart from rounding, if the sample does not vary
        there; the direction is then arbitrary.
    n_rows : int
        Number of rows of the sample.
    """

    mean: np.ndarray
    components: np.ndarray
    deviations: np.ndarray
    n_rows: int

    def coordinates(self, rows: np.ndarray, n: int) -> np.ndarray:
        """Return the coordinates of rows (n_rows, n_inputs) in the first `n` directions, float64 (n_rows, n)."""
        return np.asarray((rows - self.mean) @ self.components[:, :n])


def sampled(rows: Rows, order: Order, scaler: Scaler, most: int) -> np.ndarray:
    """Return scaled rows (n, n_inputs), float32, in the order of their numbers: `most` training rows, or all if fewer.

    The choice depends only on the seed and on `most`.
    """
    numbers = order.sample(most)
    scaled = np.empty((len(numbers), len(scaler.minimum)), dtype=np.float32)
    # Scale in blocks, since the memory does not hold a second copy of the sample in its own dtype.
    for block in blocks(len(scaled), scaled.shape[1]):
        scaled[block] = scaler.scaled(rows.take(numbers[block]))
    return scaled


def principal_components(x: np.ndarray, k: int, rng: np.random.Generator, is_exact: bool = True) -> Components:
    """Return the first `k` principal components of rows.

    The components depend only on the rows and the generator, except for the rounding of BLAS, which may depend on the
    number of its threads.

    Parameters
    ----------
    x : ndarray of shape (n_rows, n_inputs), float32
        At least one row, scaled. The directions are orthonormal even if there are fewer than `k` rows.
    k : int
        Number of components, from 1 to n_inputs.
    is_exact : bool
        False for a picture, which needs no more than the products that are used if neither side is small.
    """
    mean = x.mean(axis=0, dtype=np.float64)
    gram = _Gram(x, mean)
    if len(x) <= _SMALL < x.shape[1] and is_exact:
        directions = _directions_of_few_rows(x, mean, k)
    elif gram.matrix is not None and is_exact:
        directions = eigenvectors(gram.matrix)[1][:, -k:]
    else:
        directions = _directions_of_products(gram, x.shape[1], k, rng)
    return _components_within(directions, gram, k)


def errors_of_components(x: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Return the mean squared errors of rows (n, n_inputs) when reconstructed from numbers of principal components.

    The numbers are 0 (the mean row), powers of two from 8 on, and `k`.
    """
    components = principal_components(x, k, np.random.default_rng(0))
    variance = float(x.var(axis=0, dtype=np.float64).sum())
    explained = np.cumsum([0.0, *components.deviations**2])
    powers = takewhile(lambda n: n < k, (2**i for i in range(3, 64)))
    return [(n, max(0.0, variance - float(explained[n])) / x.shape[1]) for n in (0, *powers, k)]


def _components_within(directions: np.ndarray, gram: _Gram, k: int) -> Components:
    """Return the first `k` components within the span of orthonormal columns, which rounding may have mixed."""
    variances, rotation = eigenvectors(directions.T @ gram.times(directions))
    components = directions @ rotation[:, ::-1][:, :k]
    largest = components[np.abs(components).argmax(axis=0), np.arange(k)]
    signs = np.where(largest < 0, -1.0, 1.0)
    deviations = np.sqrt(np.maximum(variances[::-1][:k], 0) / gram.n_rows)
    return Components(gram.mean, components * signs, deviations, gram.n_rows)


def _directions_of_products(gram: _Gram, n_inputs: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return orthonormal columns (n_inputs, k or more) whose span holds almost all of the first `k` components."""
    n_columns = min(k + max(k, _OVERSAMPLING), n_inputs)
    directions = rng.standard_normal((n_inputs, n_columns))
    for _ in range(_N_ITERATIONS):
        directions = np.linalg.qr(gram.times(directions))[0]
    return directions


def _directions_of_few_rows(x: np.ndarray, mean: np.ndarray, k: int) -> np.ndarray:
    """Return orthonormal columns (n_inputs, k) that span the first `k` components, from the products of rows."""
    weights = eigenvectors(_products_of_rows(x, mean))[1][:, ::-1][:, :k]
    directions = np.zeros((len(mean), k))
    for block in blocks(len(mean), len(x)):
        centred = x[:, block] - mean[block]
        directions[block, : weights.shape[1]] = centred.T @ weights
    return np.linalg.qr(directions)[0]  # adds arbitrary directions if there are fewer rows than components


def _products_of_rows(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the scalar products (n_rows, n_rows) of all pairs of centred rows."""
    products = np.zeros((len(x), len(x)))
    for block in blocks(len(mean), len(x)):
        centred = x[:, block] - mean[block]
        products += centred @ centred.T
    return products


class _Gram:
    """Gram matrix (n_inputs, n_inputs) of the centred rows, which is computed only if it is small."""

    def __init__(self, x: np.ndarray, mean: np.ndarray) -> None:
        self.mean = mean
        self.n_rows = len(x)
        self.matrix: np.ndarray | None = None
        self._x = x
        n_inputs = x.shape[1]
        if n_inputs <= _SMALL:
            self.matrix = np.zeros((n_inputs, n_inputs))
            for block in self._centred():
                self.matrix += block.T @ block

    def times(self, columns: np.ndarray) -> np.ndarray:
        """Return the product of the matrix with columns (n_inputs, n)."""
        if self.matrix is not None:
            return np.asarray(self.matrix @ columns)
        product = np.zeros_like(columns)
        for block in self._centred():
            product += block.T @ (block @ columns)
        return product

    def _centred(self) -> Iterator[np.ndarray]:
        """Yield blocks of rows minus their mean in float64: float32 would lose components of small deviation."""
        for block in blocks(len(self._x), self._x.shape[1]):
            yield self._x[block] - self.mean


def blocks(n: int, width: int) -> Iterator[slice]:
    """Yield slices of `n` rows, whose float64 numbers take at most 8 MiB if a slice has several rows."""
    size = max(1, _BLOCK_BYTES // (8 * width))
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@dataclass(frozen=True)
class Baseline:
    """Mean squared errors, in scaled units, of validation rows predicted from components or by the mean row."""

    n_components: int
    n_fitted: int  # rows that the components were computed from
    components: np.ndarray  # (n_rows,), float64: error of each row's reconstruction from its components
    mean: np.ndarray  # (n_rows,), float64: error of each row if it is predicted by the mean row

    def comparison(self, errors: np.ndarray) -> BaselineErrors:
        """Return mean errors, and whether features with `errors` (n_rows,) are worse than components.

        All errors belong to the same rows, so the test uses their differences. It leaves out outliers, of which the
        largest one is named by its position.
        """
        errors = errors.astype(np.float64)
        is_usual = ~(outliers(errors) | outliers(self.mean))
        components = float(self.components[is_usual].mean())
        mean = float(self.mean[is_usual].mean())
        excess = (errors - self.components)[is_usual]
        tolerance = _STANDARD_ERRORS * excess.std() / np.sqrt(len(excess))
        outlier = None
        if not is_usual.all():
            row, share = largest_share(errors)
            outlier = Outlier(row, share, float(errors[is_usual].mean()), mean, components)
        return BaselineErrors(
            n_components=self.n_components,
            n_fitted=self.n_fitted,
            components=float(self.components.mean()),
            mean=float(self.mean.mean()),
            is_worse=bool(excess.mean() > max(_MARGIN * components, NOTHING * mean, tolerance)),
            outlier=outlier,
        )


def baseline_of(components: Components, rows: np.ndarray, scaler: Scaler) -> Baseline:
    """Return the errors of components for other cleaned `rows` (n_rows, n_inputs), at least one."""
    mean = np.empty(len(rows))
    residual = np.empty(len(rows))
    for block in blocks(len(rows), rows.shape[1]):
        centred = scaler.scaled(rows[block]) - components.mean
        mean[block] = np.square(centred).mean(axis=1)
        # By Pythagoras, since components are orthonormal. Rounding may make the residual of explained rows negative.
        explained = np.square(centred @ components.components).sum(axis=1) / rows.shape[1]
        residual[block] = np.maximum(mean[block] - explained, 0)
    return Baseline(components.components.shape[1], components.n_rows, residual, mean)
