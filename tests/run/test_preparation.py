"""Test of the preparation that a run chooses from a look at the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress.result import Result
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.process  # the model of an append is checked in a child

_RNG = np.random.default_rng(3)
TAILS = np.exp(1.5 * _RNG.normal(size=(600, 4)))  # the look takes them for numbers with heavy tails


@pytest.fixture
def tails(workspace: Workspace) -> Workspace:
    for path in workspace.shards.iterdir():
        path.unlink()
    workspace.add_shard("a.h5", TAILS)
    return workspace


def test_a_run_prepares_its_rows_and_later_ones(tails: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tails.run(out) == 0
    assert "heavy tails" in caplog.text
    result = Result.open(out)
    explicit = tails.folder / "explicit"
    assert tails.run(explicit, "--transform", "log1p") == 0
    assert features_of(explicit) == features_of(out)
    assert tails.run(out) == 0
    assert Result.open(out).digest == result.digest
    tails.add_shard("b.h5", 1 + _RNG.random((100, 4)))
    assert tails.run(out, "--append") == 0
    given = tails.folder / "given"
    assert tails.run(given, "--model", str(out)) == 0
    assert features_of(given) == features_of(out)
    assert tails.run(given, "--model", str(out), "--transform", "none", "--overwrite") == 78
