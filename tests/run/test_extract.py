"""Tests of the whole program on the CPU: features are those of the NumPy encoder, and rows are learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.extract import main
from shardpress.features import open_features
from shardpress.result import load_model
from tests.support.helpers import write_shard
from tests.support.logged import mentions
from tests.support.tolerances import TOLERANCES

pytestmark = pytest.mark.compiler


@pytest.fixture
def rows() -> np.ndarray:
    """Return rows with structure to learn: three directions and a little noise."""
    rng = np.random.default_rng(1)
    found = rng.normal(size=(3000, 3)) @ rng.normal(size=(3, 12)) + 0.1 * rng.normal(size=(3000, 12))
    return (20 * found + 100).clip(0, 255)


def test_features_of_a_deep_network_equal_the_numpy_encoder(tmp_path: Path, rows: np.ndarray) -> None:
    x = rows.astype(np.uint8)
    deep = ["--hidden", "12,11", "--activation", "leaky-relu", "--code-activation", "sigmoid", "--corruption", "0.2"]
    arguments = ["--input", write_shard(tmp_path / "x.h5", x), "--epochs", "3", "--n-features", "5", *deep]
    features = []
    for seed in ("0", "1"):
        output = tmp_path / seed
        assert main([*arguments, "--output", str(output), "--seed", seed]) == 0
        features.append(open_features(output).features.compute())
        model = load_model(output)
        assert model.network.n_layers == 3
        assert np.allclose(features[-1], model.encode(x), rtol=0, atol=TOLERANCES["cpu", "float32", "features"])
    assert not np.array_equal(*features)


def test_the_default_settings_learn_and_quiet_prints_only_the_summary(
    tmp_path: Path, rows: np.ndarray, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    x = rows.astype(np.float32)
    flags = ["--input", write_shard(tmp_path / "x.h5", x), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*flags, "--validation-fraction", "0"]) == 0  # otherwise the baseline can cause a warning
    assert mentions(capsys.readouterr().out, 3000, 12)
    assert not caplog.records
    model = load_model(tmp_path / "out")
    scaled = model.scaler.transform(x)
    y = model.decode(model.encode(x))
    assert np.mean((y - scaled) ** 2) < 0.2 * scaled.var(axis=0).mean()
