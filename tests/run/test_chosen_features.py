"""Tests of features that a user chooses: the first ones of a nested code, and the outputs of the last hidden layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from shardpress import cli
from shardpress.base.errors import DataError
from shardpress.commands.registry import main
from shardpress.report.summary import report_of
from shardpress.result.features import open_features
from shardpress.result.finished import Result, load_model
from tests.support.helpers import write_shard
from tests.support.standin import Workspace

ROWS = load_digits().data
NESTED = ["--nested", "yes", "--n-features", "24", "--epochs", "10", "--scale", "range"]
HIDDEN = ["--output-layer", "hidden", "--hidden", "48", "--n-features", "6", "--epochs", "4"]


def run(folder: Path, output: str, *flags: str) -> np.ndarray:
    """Return the features of the digits."""
    source = folder / "digits.h5"
    if not source.exists():
        write_shard(source, ROWS)
    assert cli.main("", ["--input", str(source), "--output", str(folder / output), *flags]) == 0
    return open_features(folder / output).features.compute()


@pytest.mark.compiler
@pytest.mark.process
@pytest.mark.slow
def test_first_features_can_be_used_alone_and_are_better_than_components(tmp_path: Path) -> None:
    features = run(tmp_path, "out", *NESTED)
    model = load_model(tmp_path / "out")
    scaled = model.scaler.transform(ROWS).astype(np.float64)
    pca = PCA(24).fit(scaled)
    scores = pca.transform(scaled)
    for n in (8, 16, 24):
        first = np.where(np.arange(24) < n, features, 0)
        error = np.square(model.decode(first) - scaled).mean()
        of_components = np.square(scores[:, :n] @ pca.components_[:n] + pca.mean_ - scaled).mean()
        assert error < 0.97 * of_components
    np.testing.assert_array_equal(open_features(tmp_path / "out", n_features=8).features.compute(), features[:, :8])
    with pytest.raises(DataError, match="24"):
        open_features(tmp_path / "out", n_features=25)
    written = run(tmp_path, "first", "--model", str(tmp_path / "out"), "--n-features", "8")
    np.testing.assert_allclose(written, features[:, :8], atol=1e-5)
    assert main(["verify", str(tmp_path / "first")]) == 0


@pytest.mark.process
def test_first_features_of_another_model_are_refused(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    with pytest.raises(DataError, match="--nested"):
        open_features(out, n_features=1)
    assert workspace.run(out.with_name("less"), "--model", str(out), "--n-features", "1") == 78


@pytest.mark.compiler
@pytest.mark.process
@pytest.mark.slow
def test_one_model_can_write_the_hidden_layer_or_the_code(tmp_path: Path) -> None:
    features = run(tmp_path, "out", *HIDDEN)
    model = load_model(tmp_path / "out")
    assert (model.network.widths, model.n_features) == ((64, 48, 6), 48)
    x = model.scaler.transform(ROWS).astype(np.float64)
    hidden = np.maximum(x @ model.parameters["W_1"] + model.parameters["b_hidden_1"], 0)
    np.testing.assert_allclose(features, hidden, rtol=0, atol=1e-5)
    report = report_of(Result.open(tmp_path / "out"))
    error = np.square(model.decode(features) - x).mean()
    assert error == pytest.approx(report.facts.rows.sample.mean_error, rel=0.1)
    assert (report.summary.n_features, report.summary.n_components) == (48, 6)
    assert main(["verify", str(tmp_path / "out")]) == 0
    code = run(tmp_path, "code", "--model", str(tmp_path / "out"), "--output-layer", "code")
    expected = hidden @ model.parameters["W_2"] + model.parameters["b_hidden_2"]
    np.testing.assert_allclose(code, expected, rtol=0, atol=1e-5)
    again = run(tmp_path, "again", "--model", str(tmp_path / "code"), "--output-layer", "hidden")
    np.testing.assert_array_equal(again, features)
