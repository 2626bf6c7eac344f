"""Tests of `shardpress export`: it writes a file that a runtime accepts, or reports that there is no model."""

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
    (tmp_path / "features/model.h5").write_bytes(found.to_hdf5())
    return found


def test_the_printed_line_runs_the_exported_file(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "encoder.onnx").write_text("an earlier one")
    assert main(["export", "features", "--onnx", "encoder.onnx"]) == 0
    text = capsys.readouterr().out
    assert mentions(text, "(n, 5) float32", "(n, 2) float32")
    (line,) = re.findall(r"onnxruntime\..*\)", text)
    rows = np.random.default_rng(1).integers(0, 4, (7, 5)).astype(np.float32)
    (features,) = eval(line, {"onnxruntime": onnxruntime, "rows": rows})
    np.testing.assert_allclose(features, model.encode(rows), atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.onnx", "features"]


def test_invalid_exports_are_refused(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code, words in [
        ([str(tmp_path / "nowhere"), "--onnx", "x.onnx"], 66, "nowhere: "),
        ([str(tmp_path / "features")], 64, "--onnx"),
        ([str(tmp_path / "features"), "--onnx", str(tmp_path / "no/x.onnx")], 74, "no/x.onnx"),
    ]:
        assert main(["export", *arguments]) == code
        assert words in capsys.readouterr().err
