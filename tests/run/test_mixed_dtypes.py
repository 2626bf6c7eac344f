"""Tests of features that do not depend on the dtypes of other shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardpress import load_model, open_features
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.process  # a given model is checked in a child

ROWS = 100 * np.random.default_rng(3).normal(size=(60, 4)) + 1000


@pytest.mark.parametrize(("first", "second"), [("f4", "f8"), ("f8", "f4"), ("u2", "f8"), ("u2", "i4"), ("f2", "f4")])
@pytest.mark.parametrize("flags", [(), ("--row-scale", "norm"), ("--transform", "log1p")], ids=str)
def test_an_append_equals_a_run_over_all_files(
    workspace: Workspace, out: Path, first: str, second: str, flags: tuple[str, ...]
) -> None:
    for path in workspace.shards.iterdir():
        path.unlink()
    workspace.add_shard("a.h5", ROWS[:40].astype(first))
    assert workspace.run(out, *flags) == 0
    workspace.add_shard("b.h5", ROWS[40:].astype(second))
    assert workspace.run(out, "--append") == 0
    other = workspace.folder / "other"
    assert workspace.run(other, "--model", str(out)) == 0
    assert features_of(out) == features_of(other)


def test_appended_integers_are_shifted_like_those_of_the_training(workspace: Workspace, out: Path) -> None:
    for path in workspace.shards.iterdir():
        path.unlink()
    rows = (1e6 * ROWS).astype(np.int64) + 2**60
    workspace.add_shard("a.h5", rows[:40])
    assert workspace.run(out) == 0
    workspace.add_shard("b.h5", rows[40:] - 10**9)
    assert workspace.run(out, "--append") == 0
    model = load_model(out)
    assert model.offset is not None
    stored = np.concatenate([rows[:40], rows[40:] - 10**9])
    expected = model.encode(stored - model.offset.astype(np.int64))
    assert np.allclose(open_features(out).features.compute(), expected, atol=1e-5)
