"""Tests of `shardpress export`: it prints how to use a file, and replaces its own exports."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from shardpress.commands.registry import main
from shardpress.model.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.hostilemodels import model_of
from tests.support.logged import mentions


@pytest.mark.process
def test_the_printed_line_runs_the_exported_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(model_of(Network((5, 2))), scaler=Scaler(np.zeros(5), np.full(5, 3.0)))
    (tmp_path / "features").mkdir()
    (tmp_path / "features/index.h5").write_bytes(model.to_hdf5())
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
