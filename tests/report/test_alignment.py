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
from shardpress.report.compare import compare
from shardpress.ridge import fit_ridge
from tests.support.helpers import refused
from tests.support.standin import Workspace


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def third(n_rows: int) -> np.ndarray:
    return np.arange(n_rows) % 3 == 2


def test_ridge_equals_scikit_learn(rng: np.random.Generator) -> None:
    x = rng.normal(size=(50, 6)) * 10.0 ** np.arange(-3, 3) + 5
    x[:, 2] = 7  # a constant feature
    y = rng.normal(size=(50, 3))
    z = np.divide(x - x.mean(axis=0), x.std(axis=0), out=np.zeros_like(x), where=x.std(axis=0) > 1e-9)
    for penalty in (1e-6, 1e-2, 3.0):
        W, b = fit_ridge(x, y, np.array([penalty]))
        expected = Ridge(alpha=penalty * 50).fit(z, y).predict(z)
        np.testing.assert_allclose(x @ W + b, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("n_from", [4, 7])
def test_a_rotation_is_undone(rng: np.random.Generator, n_from: int) -> None:
    target = rng.normal(size=(300, 4)).astype(np.float32) * np.float32([1, 10, 0.1, 1]) + 3
    mixed = (target @ rng.normal(size=(4, n_from)) - 2).astype(np.float32)
    found = fit_map(mixed.astype(float), target.astype(float), third(300), "b", "a")
    assert (found.n_rows, found.n_held_out) == (300, 100)
    assert found.r2.min() > 0.9999
    np.testing.assert_allclose(found.map.apply(mixed), target, atol=0.02)
    assert found.map.apply(mixed).dtype == np.float32
    row = np.full((1, n_from), np.nan, np.float32)
    assert np.isnan(found.map.apply(row)).all()


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


def test_constant_features_stay_constant(rng: np.random.Generator) -> None:
    source = rng.normal(size=(40, 3))
    source[:, 1] = 2
    target = np.hstack([source[:, :1], np.full((40, 1), 9.0)])
    found = fit_map(source, target, third(40), "b", "a")
    assert found.r2[0] > 0.999
    assert np.isnan(found.r2[1])
    np.testing.assert_allclose(found.map.apply(source)[:, 1], 9)


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
BAD_FILES = {
    "other": b"PK\x03\x04 not a map",
    "format": pack({"W": np.ones((2, 2)), "b": np.ones(2)}, {**ABOUT, "format": "shardpress-map/9"}),
    "no encoder": pack({"W": np.ones((2, 2)), "b": np.ones(2)}, {"format": "shardpress-map/1"}),
    "long encoder": pack({"W": np.ones((2, 2)), "b": np.ones(2)}, {**ABOUT, "encoder_to": "a" * 10**6}),
    "no text": pack({"W": np.ones((2, 2)), "b": np.ones(2)}, {**ABOUT, "encoder_to": 7}),
    "no constant": pack({"W": np.ones((2, 2))}, ABOUT),
    "shape": pack({"W": np.ones((2, 2)), "b": np.ones(3)}, ABOUT),
    "vector": pack({"W": np.ones(2), "b": np.ones(())}, ABOUT),
    "empty": pack({"W": np.ones((0, 2)), "b": np.ones(2)}, ABOUT),
    "dtype": pack({"W": np.ones((2, 2), np.int64), "b": np.ones(2)}, ABOUT),
    "infinite": pack({"W": np.full((2, 2), np.inf), "b": np.ones(2)}, ABOUT),
    "list": pack({"W": np.ones((2, 2)), "b": np.ones(2)}, ["a"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_map_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "map.npz").write_bytes(BAD_FILES[name])
    with refused(65, f"map={tmp_path}"):
        load_map(tmp_path / "map.npz")


def test_a_missing_map_file_is_reported(tmp_path: Path) -> None:
    with refused(66, f"map={tmp_path}"):
        load_map(tmp_path / "map.npz")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):  # reading a pipe would wait forever
        with refused(66, str(path)):
            load_map(path)


@pytest.mark.slow
def test_features_of_a_run_are_mapped_to_another_run(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    path = str(tmp_path / "map.npz")
    assert workspace.run(out) == 0
    assert workspace.run(other, "--seed", "5") == 0
    assert main(["compare", str(out), str(other), "--map", path]) == 0
    alignment = compare(str(out), str(other), with_map=True).alignment
    assert alignment is not None
    expected = alignment.map
    raw = open_features(other)
    mapped = open_features(other, as_of=path)
    np.testing.assert_array_equal(mapped.features.compute(), expected.apply(raw.features.compute()))
    assert mapped.features.dtype == np.float32
    assert mapped.manifest["model"] == open_features(out).manifest["model"] != raw.manifest["model"]
    assert mapped.extras.keys() == raw.extras.keys()
    twice = open_features([other, other], as_of=path)
    np.testing.assert_array_equal(twice.features[: len(raw.features)].compute(), mapped.features.compute())
    unchanged = open_features(out)
    np.testing.assert_array_equal(open_features(out, as_of=path).features.compute(), unchanged.features.compute())


@pytest.mark.slow
def test_runs_with_different_encoders_are_joined_after_a_map(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    third = tmp_path / "third"
    path = str(tmp_path / "map.npz")
    for directory, seed in ((out, "0"), (other, "5"), (third, "6")):
        assert workspace.run(directory, "--seed", seed) == 0
    assert main(["compare", str(out), str(other), "--map", path]) == 0
    with refused(65, str(out), str(other), "encoder", "--model", "as_of"):
        open_features([out, other])
    both = open_features([out, other], as_of=path)
    parts = [open_features(directory, as_of=path).features.compute() for directory in (out, other)]
    np.testing.assert_array_equal(both.features.compute(), np.concatenate(parts))
    with refused(65, str(third), "encoder"):
        open_features([out, third], as_of=path)


def test_a_map_of_the_same_run_changes_nothing(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    found = compare(str(out), str(out), with_map=True).alignment
    assert found is not None
    assert found.r2.min() > 0.9999
