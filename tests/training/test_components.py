"""Tests of principal components: as good as exact ones, of training rows only; and of baselines made of them."""

from __future__ import annotations

import numpy as np
import pytest

from shardpress.model.scaler import Scaler
from shardpress.training.components import Components, baseline_of, principal_components
from tests.support.cases import case, each

SHAPES = {"columns": (1500, 90), "rows": (90, 1100), "products": (1040, 1030)}
"""Shapes of a sample for each of the methods, the last one with two blocks of rows."""


def rows_with(deviations: np.ndarray, n_rows: int, n_inputs: int) -> np.ndarray:
    """Return rows around 1/2 whose deviations from the mean have these singular values, in random directions."""
    rng = np.random.default_rng(7)
    left = rng.standard_normal((n_rows, len(deviations)))
    left = np.linalg.qr(left - left.mean(axis=0))[0]
    right = np.linalg.qr(rng.standard_normal((n_inputs, len(deviations))))[0]
    return (0.5 + (left * deviations) @ right.T).astype(np.float32)


def error_of(x: np.ndarray, found: Components) -> float:
    """Return the mean squared error of the rows' reconstruction, by definition."""
    centred = x.astype(np.float64) - found.mean
    return float(np.square(centred - centred @ found.components @ found.components.T).mean())


def found_of(x: np.ndarray, k: int, seed: int = 0) -> Components:
    """Return components, which are orthonormal, have fixed signs and are in the order of their deviations."""
    found = principal_components(x, k, np.random.default_rng(seed))
    components = found.components
    assert components.shape == (x.shape[1], k)
    np.testing.assert_allclose(components.T @ components, np.eye(k), atol=1e-12)
    assert (components.max(axis=0) >= -components.min(axis=0)).all()
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(found.deviations, (x @ components).std(axis=0), rtol=1e-5, atol=1e-6)
    assert (np.diff(found.deviations) <= 0).all()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_reconstructions_are_as_good_as_exact_ones(shape: tuple[int, int]) -> None:
    values = np.arange(1, min(*shape, 300)) ** -0.5
    x = rows_with(values, *shape)
    for k in (1, 40):
        with case(k):
            assert error_of(x, found_of(x, k)) <= 1.001 * np.square(values[k:]).sum() / x.size
    x = rows_with(values**2, *shape)
    np.testing.assert_allclose(found_of(-x, 8, seed=1).components, found_of(x, 8).components, atol=1e-3)
    for rank in (0, 5):
        x = rows_with(np.ones(rank), *shape)
        assert error_of(x, found_of(x, 12)) < 1e-12


@each("n_rows, n_inputs, k", [(1, 1100, 5), (3, 1100, 40), (200, 3, 3)])
def test_components_exist_for_few_rows_and_columns(n_rows: int, n_inputs: int, k: int) -> None:
    x = np.random.default_rng(1).random((n_rows, n_inputs), dtype=np.float32)
    values = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), compute_uv=False)
    assert error_of(x, found_of(x, k)) <= np.square(values[k:]).sum() / x.size + 1e-12


def test_the_mean_of_many_rows_keeps_its_digits() -> None:
    x = np.full((300_000, 2), 0.1, dtype=np.float32)
    found = found_of(x, 1)
    np.testing.assert_allclose(found.mean, x[0].astype(np.float64), rtol=1e-9)
    assert (found.deviations < 1e-7).all()


# -- baselines ---------------------------------------------------------------------------------------------------------


def test_baseline_errors_equal_those_of_reconstructions() -> None:
    rng = np.random.default_rng(0)
    trained, validation = (rng.integers(0, 256, (n, 6)).astype(np.uint8) for n in (80, 31))
    scaler = Scaler(np.zeros(6), np.full(6, 255.0))
    found = principal_components(scaler.transform(trained), 2, rng)
    baseline = baseline_of(found, validation, scaler)
    x = validation / 255
    mean = (trained / 255).mean(axis=0)
    back = mean + (x - mean) @ found.components @ found.components.T
    np.testing.assert_allclose(baseline.components, np.square(x - back).mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(baseline.mean, np.square(x - mean).mean(axis=1), rtol=1e-5)
    exact = baseline_of(principal_components(scaler.transform(trained), 6, rng), validation, scaler).components
    assert 0 <= exact.min() <= exact.max() < 1e-12
