"""Tests of principal components: as good as the exact ones with every method, and computed from training rows only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress.scan.scaler import Scaler
from shardpress.shards.conversion import AS_STORED
from shardpress.training import components
from shardpress.training.components import Components, principal_components, sampled
from shardpress.training.order import Order, slab_starts, spread_rows
from shardpress.training.rows import Reader, ResidentRows, StreamedRows
from tests.support.cases import case, each
from tests.support.helpers import numbered, numbered_shards


def rows_with(deviations: np.ndarray, n_rows: int, n_inputs: int) -> np.ndarray:
    """Return rows around 1/2 with these singular values, in random directions."""
    rng = np.random.default_rng(7)
    left, right = (np.linalg.qr(rng.standard_normal((n, len(deviations))))[0] for n in (n_rows, n_inputs))
    return (0.5 + (left * deviations) @ right.T).astype(np.float32)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small samples use every method, and incomplete blocks."""
    monkeypatch.setattr(components, "_SMALL", 100)
    monkeypatch.setattr(components, "_BLOCK_BYTES", 8 * 1000)


def found_of(x: np.ndarray, k: int, seed: int = 0) -> Components:
    return principal_components(x, k, np.random.default_rng(seed))


def error_of(x: np.ndarray, found: Components) -> float:
    """Return the mean squared error of the rows' reconstruction, by definition."""
    centred = x.astype(np.float64) - found.mean
    return float(np.square(centred - centred @ found.components @ found.components.T).mean())


def exact_error(x: np.ndarray, k: int) -> float:
    """Return the error of the best reconstruction."""
    values = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), compute_uv=False)
    return float(np.square(values[k:]).sum() / x.size)


def assert_orthonormal(found: Components, n_inputs: int, k: int) -> None:
    assert found.components.shape == (n_inputs, k)
    assert found.deviations.shape == (k,)
    np.testing.assert_allclose(found.components.T @ found.components, np.eye(k), atol=1e-12)


@pytest.fixture(params=["columns", "rows", "products"])
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Return the shape of a sample that uses each of the methods."""
    return {"columns": (300, 90), "rows": (90, 300), "products": (300, 200)}[request.param]


@pytest.mark.slow
def test_reconstructions_are_as_good_as_exact_ones(shape: tuple[int, int]) -> None:
    for power in (0.5, 0.75, 1.0):  # variances that decrease like 1 / i, 1 / i^1.5, 1 / i^2
        x = rows_with(np.arange(1, min(shape)) ** -power, *shape)
        for k in (1, 8, 40):
            with case(power, k):
                found = found_of(x, k)
                assert_orthonormal(found, shape[1], k)
                assert error_of(x, found) <= 1.001 * exact_error(x, k)


def test_deviations_along_the_components_decrease(shape: tuple[int, int]) -> None:
    x = rows_with(np.arange(1, 80) ** -1.0, *shape)
    found = found_of(x, 10)
    np.testing.assert_allclose(found.deviations, (x @ found.components).std(axis=0), rtol=1e-5)
    assert (np.diff(found.deviations) <= 0).all()
    np.testing.assert_allclose(found.mean, x.mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_rows_of_lower_rank_are_reconstructed_exactly(shape: tuple[int, int]) -> None:
    x = rows_with(np.ones(5), *shape)
    found = found_of(x, 12)
    assert_orthonormal(found, shape[1], 12)
    assert error_of(x, found) < 1e-12
    assert (found.deviations[6:] < 1e-6).all()


@each("n_rows, n_inputs, k", [(1, 4, 3), (1, 300, 5), (3, 300, 200), (200, 3, 3), (2, 2, 1)])
def test_components_exist_for_few_rows_and_columns(n_rows: int, n_inputs: int, k: int) -> None:
    x = np.random.default_rng(1).random((n_rows, n_inputs), dtype=np.float32)
    found = found_of(x, k)
    assert_orthonormal(found, n_inputs, k)
    assert error_of(x, found) <= exact_error(x, k) + 1e-12


def test_constant_rows_have_no_deviation(shape: tuple[int, int]) -> None:
    found = found_of(np.full(shape, 0.3, dtype=np.float32), 4)
    assert_orthonormal(found, shape[1], 4)
    assert (found.deviations < 1e-7).all()


def test_the_mean_of_many_rows_keeps_its_digits() -> None:
    x = np.full((300_000, 2), 0.1, dtype=np.float32)
    found = found_of(x, 1)
    np.testing.assert_allclose(found.mean, x[0].astype(np.float64), rtol=1e-9)
    assert (found.deviations < 1e-7).all()


def test_equal_seeds_give_equal_components_with_fixed_signs(shape: tuple[int, int]) -> None:
    x = rows_with(np.arange(1, 80) ** -1.0, *shape)
    one = found_of(x, 8)
    other = found_of(x, 8)
    third = found_of(-x, 8, seed=1)
    assert one.components.tobytes() == other.components.tobytes()
    assert one.deviations.tobytes() == other.deviations.tobytes()
    assert (one.components.max(axis=0) >= -one.components.min(axis=0)).all()
    np.testing.assert_allclose(third.components, one.components, atol=1e-3)  # signs of rows do not matter


# -- the sample --------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_sample_has_only_training_rows_and_ignores_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "_BLOCK_BYTES", 8 * 2 * 7)
    shards = numbered_shards(tmp_path, 40, 0, 1, 59)
    expected = numbered(100)
    scaler = Scaler(np.zeros(2), np.full(2, 1000.0))
    left_out = np.union1d(spread_rows(100, np.empty(0, dtype=np.int64), 20, 3), [0, 1, 99])
    order = Order(slab_starts(shards, AS_STORED), left_out, 1000, seed=3)
    for most in (1, 2, 30, order.n_rows, 1000):
        with case(most):
            reader = Reader(shards, AS_STORED, 2)
            one, other = (sampled(kind(reader), order, scaler, most) for kind in (ResidentRows.of, StreamedRows))
            assert one.tobytes() == other.tobytes()
            assert one.dtype == np.float32
            numbers = np.rint(one[:, 0] * 100).astype(int)
            np.testing.assert_array_equal(one, scaler.transform(expected[numbers]))
            assert len(set(numbers)) == len(numbers) == min(most, order.n_rows)
            assert not set(numbers) & set(left_out)
