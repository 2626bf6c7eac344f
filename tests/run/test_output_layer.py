"""Tests of `--output-layer`: the outputs of the last hidden layer can be written instead of the code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from shardpress import cli
from shardpress.commands.table import main
from shardpress.features import open_features
from shardpress.result import Result, load_model
from tests.support.helpers import write_shard

pytestmark = [pytest.mark.compiler, pytest.mark.process, pytest.mark.slow]

ROWS = load_digits().data
SETTINGS = ["--hidden", "48", "--n-features", "6", "--epochs", "4"]
HIDDEN = ["--output-layer", "hidden"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a shard of digits, and the output of a run that writes its hidden layer."""
    folder = tmp_path_factory.mktemp("hidden")
    write_shard(folder / "digits.h5", ROWS, extras={"y": load_digits().target})
    assert run(folder, "out", *HIDDEN, *SETTINGS) == 0
    return folder


def run(folder: Path, output: str, *flags: str) -> int:
    return cli.main("", ["--input", str(folder / "digits.h5"), "--output", str(folder / output), *flags])


def features_of(output: Path) -> bytes:
    return bytes(open_features(output).features.compute().tobytes())


def test_features_are_outputs_of_the_hidden_layer(folder: Path) -> None:
    model = load_model(folder / "out")
    assert (model.network.widths, model.n_features) == ((64, 48, 6), 48)
    features = open_features(folder / "out").features.compute()
    x = model.scaler.transform(ROWS).astype(np.float64)
    expected = np.maximum(x @ model.parameters["W_1"] + model.parameters["b_hidden_1"], 0)
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)
    error = np.square(model.decode(features) - x).mean()
    report = Result.open(folder / "out").report()
    assert error == pytest.approx(report["sample"]["mean_error"], rel=0.1)
    assert (report["summary"]["n_features"], report["summary"]["n_components"]) == (48, 6)
    assert main(["verify", str(folder / "out")]) == 0


def test_one_model_can_write_both_layers(folder: Path) -> None:
    assert run(folder, "plain", *SETTINGS) == 0
    assert run(folder, "code", "--model", str(folder / "out"), "--output-layer", "code") == 0
    assert features_of(folder / "code") == features_of(folder / "plain")
    assert run(folder, "hidden", "--model", str(folder / "plain"), *HIDDEN) == 0
    assert features_of(folder / "hidden") == features_of(folder / "out")
    assert run(folder, "none", *HIDDEN, "--hidden", "none") == 64
