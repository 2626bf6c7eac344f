"""Tests of `shardpress export`: it prints how to use a file, shows progress, and replaces its own exports only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from shardpress.commands.table import main
from shardpress.model import Model
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.logged import mentions


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Return a model whose file is in an output directory."""
    network = Network((5, 2))
    rng = np.random.default_rng(0)
    parameters = {name: rng.normal(size=shape).astype(np.float32) for name, shape in network.shapes.items()}
    found = Model(Scaler(np.zeros(5), np.full(5, 3.0)), network, parameters)
    (tmp_path / "features").mkdir()
    (tmp_path / "features/index.h5").write_bytes(found.to_hdf5())
    return found


@pytest.mark.process
def test_the_printed_line_runs_the_exported_file(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["export", "--to", "onnx"]) == 0
    text = capsys.readouterr().out
    assert mentions(text, "(n, 5) float32", "(n, 2) float32")
    line = re.findall(r"onnxruntime\..*\)", text)[-1]
    rows = np.random.default_rng(1).integers(0, 4, (7, 5)).astype(np.float32)
    (features,) = eval(line, {"onnxruntime": onnxruntime, "rows": rows})
    np.testing.assert_allclose(features, model.encode(rows), atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == ["encoder.onnx", "index.h5"]
    (tmp_path / "features/index.h5").rename(tmp_path / "other.h5")
    assert main(["export", "other.h5", "--to", "npz"]) == 0
    assert np.load("encoder.npz")["exported_from"] == "other.h5"


@pytest.mark.process
@pytest.mark.usefixtures("model")
def test_invalid_exports_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "features")
    for arguments, code, words in [
        ([output, "--to", "hdf5"], 66, "only a model"),
        ([output, "--to", "csv"], 64, "parquet"),
        ([output, "--to", "npz", "--output", str(tmp_path / "features")], 73, "features"),
    ]:
        assert main(["export", *arguments]) == code, arguments
        assert words in capsys.readouterr().err
