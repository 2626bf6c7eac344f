"""Test of the whole program on the CPU with its default settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scripts.extract import main
from shardpress.result import load_model
from tests.support.helpers import write_shard
from tests.support.logged import mentions

pytestmark = pytest.mark.compiler


def test_the_default_settings_learn_and_quiet_prints_only_the_summary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(3000, 3)) @ rng.normal(size=(3, 12)) + 0.1 * rng.normal(size=(3000, 12))
    x = (20 * rows + 100).clip(0, 255).astype(np.float32)
    flags = ["--input", write_shard(tmp_path / "x.h5", x), "--output", str(tmp_path / "out"), "--quiet"]
    assert main([*flags, "--validation-fraction", "0"]) == 0  # otherwise the baseline can cause a warning
    assert mentions(capsys.readouterr().out, 3000, 12)
    assert not caplog.records
    model = load_model(tmp_path / "out")
    scaled = model.scaler.transform(x)
    y = model.decode(model.encode(x))
    assert np.mean((y - scaled) ** 2) < 0.2 * scaled.var(axis=0).mean()
