"""Tests of the whole program on the CPU: the same rows give the same features in every way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.extract import main
from shardpress.features import open_features
from shardpress.result import Result, load_model
from tests.support.fields import run_with_sizes, set_fields
from tests.support.helpers import write_shard
from tests.support.logged import mentions
from tests.support.tolerances import TOLERANCES

pytestmark = pytest.mark.compiler

QUICK = ["--epochs", "3", "--n-features", "5"]


def rows(n_rows: int, n_inputs: int = 12, dtype: Any = np.float32, seed: int = 1) -> np.ndarray:
    """Return rows with structure to learn: three directions and a little noise."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(n_rows, 3)) @ rng.normal(size=(3, n_inputs)) + 0.1 * rng.normal(size=(n_rows, n_inputs))
    return (20 * found + 100).clip(0, 255).astype(dtype)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two shards, longer than a tile of the encoder, with labels."""
    folder = tmp_path_factory.mktemp("shards")
    x = rows(3500)
    for i, part in enumerate((x[:2100], x[2100:])):
        write_shard(folder / f"{i}.h5", part, extras={"y": np.arange(len(part)) % 3})
    return folder


def features(folder: Path, output: Path, *flags: str) -> np.ndarray:
    assert run_with_sizes(["--input", str(folder), "--output", str(output), *QUICK, *flags]) == 0
    return features_in(output)


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a finished run over the shards, which tests only read."""
    output = tmp_path_factory.mktemp("finished") / "out"
    features(shards, output)
    return output


def features_in(output: Path) -> np.ndarray:
    return np.asarray(open_features(output).features.compute())


# -- the same features -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags", [["--threads", "1"], ["block_rows=1"], ["block_rows=1500", "--threads", "5"]], ids=" ".join
)
def test_repetition_blocks_and_threads_do_not_change_a_bit(
    shards: Path, finished: Path, tmp_path: Path, flags: list[str]
) -> None:
    first = features_in(finished)
    assert features(shards, tmp_path / "b", *flags).tobytes() == first.tobytes()
    assert not np.array_equal(features(shards, tmp_path / "c", *flags, "--seed", "1"), first)


def test_streamed_and_resident_rows_give_equal_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_fields(monkeypatch, start="random")
    x = rows(6000, 500)  # 12 MB, more than half of the smaller budget
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        write_shard(folder / f"{i}.h5", x[2000 * i : 2000 * (i + 1)])
    window = [f"shuffle_window={2**20}", "--hidden", "64"]  # sizes that fit into both budgets
    resident = features(folder, tmp_path / "a", *window)
    assert "rows in memory" in caplog.text
    streamed = features(folder, tmp_path / "b", *window, "--memory-budget", "20MiB")
    assert "rows streamed" in caplog.text
    assert resident.tobytes() == streamed.tobytes()


def test_a_given_model_gives_the_same_features_without_training(shards: Path, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copy(finished / "index.h5", tmp_path / "copy.h5")
    for i, model in enumerate((finished, copy)):
        encoded = features(shards, tmp_path / str(i), "--model", str(model))
        assert features_in(finished).tobytes() == encoded.tobytes()
        assert "training" not in Result.open(tmp_path / str(i)).report()


# -- correct features --------------------------------------------------------------------------------------------

DEEP = ["--hidden", "12,11", "--activation", "leaky-relu", "--code-activation", "sigmoid", "--corruption", "0.2"]


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_features_of_a_deep_network_equal_the_numpy_encoder(tmp_path: Path, dtype: str) -> None:
    x = rows(1500, dtype=dtype)
    write_shard(tmp_path / "x.h5", x)
    found = features(tmp_path / "x.h5", tmp_path / "out", *DEEP)
    model = load_model(tmp_path / "out")
    assert model.network.n_layers == 3
    assert np.allclose(found, model.encode(x), rtol=0, atol=TOLERANCES["cpu", "float32", "features"])


def test_the_default_settings_learn_and_quiet_prints_only_the_summary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    x = rows(3000)
    write_shard(tmp_path / "x.h5", x)
    flags = ["--input", str(tmp_path / "x.h5"), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*flags, "--validation-fraction", "0"]) == 0  # otherwise the baseline can cause a warning
    assert mentions(capsys.readouterr().out, 3000, 12)
    assert not caplog.records
    model = load_model(tmp_path / "out")
    scaled = model.scaler.transform(x)
    y = model.decode(model.encode(x))
    assert np.mean((y - scaled) ** 2) < 0.2 * scaled.var(axis=0).mean()
