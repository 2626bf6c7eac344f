"""Tests of linear maps between the features of two encoders: fits, map files, and mapped features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from shardpress.alignment import fit_map, load_map
from shardpress.commands.table import main
from shardpress.features import open_features
from shardpress.formats import pack
from shardpress.ridge import fit_ridge
from tests.support.cases import case, each
from tests.support.helpers import refused
from tests.support.standin import Workspace

PENALTIES = 10.0 ** np.arange(-3, 5)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def third(n_rows: int) -> np.ndarray:
    return np.arange(n_rows) % 3 == 2


@each("n_rows, n_columns, rank", [(50, 7, 7), (9, 9, 9), (7, 30, 30), (40, 9, 3), (9, 40, 3)])
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


@each("n_from", [4, 7])
def test_a_rotation_is_undone(rng: np.random.Generator, n_from: int) -> None:
    target = rng.normal(size=(300, 4)).astype(np.float32) * np.float32([1, 10, 0.1, 1]) + 3
    mixed = (target @ rng.normal(size=(4, n_from)) - 2).astype(np.float32)
    found = fit_map(mixed.astype(float), target.astype(float), third(300), "b", "a")
    assert (found.n_rows, found.n_held_out) == (300, 100)
    assert found.r2.min() > 0.9999
    np.testing.assert_allclose(found.map.apply(mixed), target, atol=0.02)
    assert found.map.apply(mixed).dtype == np.float32
    assert np.isnan(found.map.apply(np.full((1, n_from), np.nan, np.float32))).all()


def test_noise_is_not_fitted(rng: np.random.Generator) -> None:
    """The penalty is large if the features have nothing in common; R2 is then about 0, instead of far below."""
    for n_rows in (60, 90, 600):
        found = fit_map(rng.normal(size=(n_rows, 50)), rng.normal(size=(n_rows, 3)), third(n_rows), "b", "a")
        assert (np.abs(found.r2) < 0.5).all()
        assert np.abs(found.map.W).max() < 0.2


def test_rows_that_are_held_out_choose_nothing(rng: np.random.Generator) -> None:
    x = rng.normal(size=(60, 50))
    y = rng.normal(size=(60, 3))
    expected = fit_map(x, y, third(60), "b", "a")
    x[third(60)] *= 100
    y[third(60)] += 7
    found = fit_map(x, y, third(60), "b", "a")
    np.testing.assert_array_equal(found.map.W, expected.map.W)
    np.testing.assert_array_equal(found.map.b, expected.map.b)
    predicted = x[third(60)] @ found.map.W + found.map.b
    np.testing.assert_allclose(found.r2, r2_score(y[third(60)], predicted, multioutput="raw_values"))


def test_a_map_file_is_restored(tmp_path: Path, rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 3))
    expected = fit_map(x, x[:, :2], third(30), "b" * 64, "a" * 64).map
    (tmp_path / "map.npz").write_bytes(expected.to_npz())
    found = load_map(tmp_path / "map.npz")
    assert (found.encoder_from, found.encoder_to) == ("b" * 64, "a" * 64)
    np.testing.assert_array_equal(found.apply(x), expected.apply(x))
    with np.load(tmp_path / "map.npz") as stored:  # as docs/using.md says
        np.testing.assert_allclose(x @ stored["W"] + stored["b"], found.apply(x), rtol=1e-5, atol=1e-6)


ABOUT = {"format": "shardpress-map/1", "encoder_from": "b" * 64, "encoder_to": "a" * 64}
SQUARE = {"W": np.ones((2, 2)), "b": np.ones(2)}
BAD_FILES = [
    b"PK\x03\x04 not a map",
    pack(SQUARE, {**ABOUT, "format": "shardpress-map/9"}),
    pack(SQUARE, {"format": "shardpress-map/1"}),
    pack(SQUARE, {**ABOUT, "encoder_to": "a" * 10**6}),
    pack(SQUARE, {**ABOUT, "encoder_to": 7}),
    pack(SQUARE, ["a"]),
    pack({"W": np.ones((2, 2))}, ABOUT),
    pack({"W": np.ones((2, 2)), "b": np.ones(3)}, ABOUT),
    pack({"W": np.ones(2), "b": np.ones(())}, ABOUT),
    pack({"W": np.ones((0, 2)), "b": np.ones(2)}, ABOUT),
    pack({"W": np.ones((2, 2), np.int64), "b": np.ones(2)}, ABOUT),
    pack({"W": np.full((2, 2), np.inf), "b": np.ones(2)}, ABOUT),
]


def test_a_bad_or_missing_map_file_is_refused(tmp_path: Path) -> None:
    for number, content in enumerate(BAD_FILES):
        (tmp_path / "map.npz").write_bytes(content)
        with case(number), refused(65, f"map={tmp_path}"):
            load_map(tmp_path / "map.npz")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe"):  # reading a pipe would wait forever
        with case(path), refused(66, str(path)):
            load_map(path)


@pytest.mark.slow
def test_runs_with_different_encoders_are_joined_after_a_map(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    third = tmp_path / "third"
    path = tmp_path / "map.npz"
    for directory, seed in ((out, "0"), (other, "5"), (third, "6")):
        assert workspace.run(directory, "--seed", seed) == 0
    assert main(["compare", str(out), str(other), "--map", str(path)]) == 0
    raw = open_features(other)
    mapped = open_features(other, as_of=path)
    np.testing.assert_array_equal(mapped.features.compute(), load_map(path).apply(raw.features.compute()))
    assert mapped.features.dtype == np.float32
    assert mapped.manifest["model"] == open_features(out).manifest["model"] != raw.manifest["model"]
    assert mapped.extras.keys() == raw.extras.keys()
    with refused(65, str(out), str(other), "as_of"):
        open_features([out, other])
    both = open_features([out, other], as_of=path)
    unchanged = open_features(out)
    np.testing.assert_array_equal(both.features, np.concatenate([unchanged.features, mapped.features]))
    with refused(65, str(third)):
        open_features([out, third], as_of=path)
