"""Tests of linear maps between the features of two encoders: fits, and map files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from shardpress.base.formats import pack
from shardpress.base.ridge import fit_ridge
from shardpress.result.alignment import LinearMap, fit_map, load_map
from tests.support.cases import case, each
from tests.support.helpers import refused

PENALTIES = 10.0 ** np.arange(-3, 5)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def third(n_rows: int) -> np.ndarray:
    return np.arange(n_rows) % 3 == 2


@each("n_rows, n_columns, rank", [(50, 7, 7), (7, 30, 30), (40, 9, 3)])
def test_ridge_equals_scikit_learn_with_the_best_penalty(
    rng: np.random.Generator, n_rows: int, n_columns: int, rank: int
) -> None:
    """The best penalty minimizes the error of generalized cross-validation. One column is constant."""
    x = rng.normal(size=(n_rows, rank)) @ rng.normal(size=(rank, n_columns)) * 10.0 ** (np.arange(n_columns) % 5) + 5
    x[:, 2] = 7
    y = rng.normal(size=(n_rows, 2)) + x[:, :2]
    z = np.divide(x - x.mean(axis=0), x.std(axis=0), out=np.zeros_like(x), where=x.std(axis=0) > 1e-9)
    errors = []
    for penalty in PENALTIES:  # use the matrix that maps targets to predictions, which is slow
        inverse = np.linalg.inv(z.T @ z + penalty * n_rows * np.eye(n_columns))
        predict = z @ inverse @ z.T + 1 / n_rows
        residuals = y - predict @ y
        errors.append(n_rows * np.square(residuals).sum() / (n_rows - np.trace(predict)) ** 2)
    for penalties, best in ((PENALTIES, PENALTIES[np.argmin(errors)]), (np.array([0.1]), 0.1)):
        W, b = fit_ridge(x, y, penalties)
        expected = Ridge(alpha=best * n_rows).fit(z, y).predict(z)
        np.testing.assert_allclose(x @ W + b, expected, rtol=1e-6, atol=1e-6)
        assert not W[2].any()


def test_rows_that_are_held_out_choose_nothing(rng: np.random.Generator) -> None:
    """The rows are noise, so the penalty is large, and R2 is about 0 instead of far below."""
    x = rng.normal(size=(60, 50))
    y = rng.normal(size=(60, 3))
    expected = fit_map(x, y, third(60), "b", "a")
    assert np.abs(expected.r2).max() < 0.5
    x[third(60)] *= 100
    y[third(60)] += 7
    found = fit_map(x, y, third(60), "b", "a")
    np.testing.assert_array_equal(found.map.W, expected.map.W)
    np.testing.assert_array_equal(found.map.b, expected.map.b)
    predicted = x[third(60)] @ found.map.W + found.map.b
    np.testing.assert_allclose(found.r2, r2_score(y[third(60)], predicted, multioutput="raw_values"))


ABOUT = {"format": "shardpress-map/1", "encoder_from": "b" * 64, "encoder_to": "a" * 64}
ROWS = np.random.default_rng(3).normal(size=(30, 3))
SQUARE = {"W": np.ones((2, 2)), "b": np.ones(2)}
BAD_FILES = [
    b"PK\x03\x04 not a map",
    pack(SQUARE, {**ABOUT, "format": "shardpress-map/9"}),
    pack(SQUARE, {"format": "shardpress-map/1"}),
    pack(SQUARE, {**ABOUT, "encoder_to": 7}),
    pack(SQUARE, ["a"]),
    pack({"W": np.ones((2, 2))}, ABOUT),
    pack({"W": np.ones((2, 2)), "b": np.ones(3)}, ABOUT),
    pack({"W": np.ones((2, 2), np.int64), "b": np.ones(2)}, ABOUT),
    pack({"W": np.full((2, 2), np.inf), "b": np.ones(2)}, ABOUT),
]


def test_a_map_file_is_restored_unless_it_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "map.npz"
    expected = LinearMap(np.arange(6.0).reshape(3, 2), np.array([0.1, -1]), "b" * 64, "a" * 64)
    path.write_bytes(expected.to_npz())
    found = load_map(path)
    assert (found.encoder_from, found.encoder_to) == ("b" * 64, "a" * 64)
    with np.load(path) as stored:  # as docs/using.md says
        np.testing.assert_allclose(ROWS @ stored["W"] + stored["b"], found.apply(ROWS), rtol=1e-5, atol=1e-6)
    for number, content in enumerate(BAD_FILES):
        path.write_bytes(content)
        with case(number), refused(65, f"map={tmp_path}"):
            load_map(path)
    with refused(66, f"{tmp_path}/missing"):
        load_map(tmp_path / "missing")
