"""Tests of output directories as input: the rows are those of the result in its order, even if parts have dead rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from shardpress.hdf5.shard import Block
from shardpress.report.verify import verify
from shardpress.result.features import open_features
from shardpress.result.finished import Result
from shardpress.run import encoding_stage
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.helpers import refused, whole
from tests.support.interruptions import FullAfter
from tests.support.protocol import edit
from tests.support.standin import Workspace, install

pytestmark = pytest.mark.process


def workspace_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    install(monkeypatch)
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 9)
    return Workspace(folder, 20, 3, 3, 3, 35, 3, 3, 3)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for tests that change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        return make_first(workspace_in(tmp_path_factory.mktemp("parts"), patch))


def make_first(workspace: Workspace) -> Path:
    """Return a directory with dead rows, and with ranges that are in another order than in their parts."""
    first = workspace.folder / "first"
    model = workspace.folder / "model"
    assert workspace.run(model) == 0
    n_parts = len(Result.open(model).parts)
    assert workspace.run(first, "--model", str(model), disk=FullAfter("part", n_parts)) == 74
    paths = sorted(workspace.shards.iterdir(), reverse=True)
    assert workspace.run_on(paths, first, "--model", str(model)) == 0
    edit(workspace.shards / "4.h5")
    (workspace.shards / "6.h5").unlink()
    assert workspace.run(first, "--model", str(model), "--append", "--drop-missing") == 0
    return first


def test_rows_and_extras_are_those_of_open_features(unchanged: Path) -> None:
    found = open_features(unchanged)
    shards = open_shards([str(unchanged)])
    places = [(shard.path, shard.first_row) for shard in shards]
    assert sorted(places) != places
    assert len({path for path, _ in places}) < len(places)
    assert open_shards([str(unchanged / "index.h5")]) == shards
    np.testing.assert_array_equal(np.concatenate([whole(shard) for shard in shards]), found.features)
    extras = [read_extras(Block(shard, 0, shard.n_rows))["y"] for shard in shards]
    np.testing.assert_array_equal(np.concatenate(extras), found.extras["y"])


def test_a_part_with_dead_rows_is_counted_once(unchanged: Path) -> None:
    parts = sorted({str(unchanged / file) for file in Result.open(unchanged).files})
    for inputs in ([unchanged, unchanged / "index.h5"], [unchanged, *parts], [*parts, unchanged]):
        with refused(65, "given twice"):
            open_shards([str(path) for path in inputs])


def test_a_damaged_part_with_dead_rows_is_refused(unchanged: Path, tmp_path: Path) -> None:
    first = shutil.copytree(unchanged, tmp_path / "first")
    part = max(Result.open(first).parts, key=lambda part: len(part.ranges))
    path = first / part.file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with refused(65, f"file={path}", "BLAKE3"):
        open_shards([str(first)])
    left_out: list[Path] = []
    shards = open_shards([str(first)], on_bad_shard=lambda path, error: left_out.append(path))
    assert left_out == [path]
    assert sum(shard.n_rows for shard in shards) == Result.open(first).n_rows - part.n_live


def test_a_run_on_parts_follows_their_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = workspace_in(tmp_path, monkeypatch)
    first = tmp_path / "first"
    second = tmp_path / "second"
    flags = ("--n-features", "1")
    assert workspace.run(first) == 0
    assert workspace.run_on([first], second, *flags) == 0
    before = Result.open(second).files
    edit(workspace.shards / "0.h5")
    (workspace.shards / "2.h5").unlink()
    workspace.add_shard("9.h5", np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32))
    assert workspace.run(first, "--append", "--drop-missing") == 0
    assert workspace.run_on([first], second, *flags, "--append", "--drop-missing") == 0
    found = verify(str(second), 1000)
    assert (found.faults, found.unchecked, found.rows.n_rows) == ([], [], Result.open(first).n_rows)
    assert before & Result.open(second).files, "most rows stay"
    y = [sorted(open_features(output).extras["y"].compute()) for output in (first, second)]
    assert y[0] == y[1]
