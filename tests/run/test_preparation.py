"""Test of the preparation that a run chooses from a look at the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.bad_shards import Shards
from tests.support.standin import features_of

pytestmark = pytest.mark.process  # the model of an append is checked in a child


def test_a_run_prepares_its_rows_and_later_ones(
    shards: Shards, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(3)
    shards.add(np.exp(1.5 * rng.normal(size=(600, 4))))
    assert shards.run() == 0
    assert "heavy tails" in caplog.text
    assert shards.run("--transform", "log1p", output=tmp_path / "explicit") == 0
    assert features_of(tmp_path / "explicit") == features_of(shards.output)
    shards.add(1 + rng.random((100, 4)))
    assert shards.run("--append") == 0
    given = ("--model", str(shards.output))
    assert shards.run(*given, output=tmp_path / "given") == 0
    assert features_of(tmp_path / "given") == features_of(shards.output)
    assert shards.run(*given, "--transform", "none", "--overwrite", output=tmp_path / "given") == 78
