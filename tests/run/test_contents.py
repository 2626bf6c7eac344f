"""Tests of input files changed in place with a restored modification time, and of changed attributes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5 import shard
from shardpress.records import ShardFacts
from shardpress.run import inputs
from shardpress.run.digests import with_content
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.scan_stage import ScanStage
from tests.support.appends import add_extra
from tests.support.interruptions import results, stamps, undisturbed_features
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.slow


def change_in_place(path: Path) -> None:
    """Change one value of the rows without changing size and modification time."""
    status = path.stat()
    with h5py.File(path, "r+") as file:
        file["X"][0, 0] += 1
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.fixture
def digested_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of files whose digests are computed by themselves."""
    paths: list[str] = []

    def digest_and_count(facts: ShardFacts, *arguments: Any) -> ShardFacts:
        paths.append(facts.path)
        return with_content(facts, *arguments)

    monkeypatch.setattr(inputs, "with_content", digest_and_count)
    return paths


def test_without_digests_only_sizes_and_times_are_compared(
    workspace: Workspace, out: Path, digested_paths: list[str]
) -> None:
    assert workspace.run(out) == 0
    before = stamps(out)
    change_in_place(workspace.shards / "0.h5")
    assert workspace.run(out, "--verify", "sizes") == 0
    assert stamps(out) == before
    assert digested_paths == []
    workspace.add_shard("3.h5", np.ones((5, 4), np.float32))
    assert workspace.run(out, "--append", "--verify", "sizes") == 0
    assert workspace.run(out) == 78  # later runs notice the change nevertheless
    assert workspace.run(out, "--append") == 0
    assert features_of(out) == undisturbed_features(workspace, "--model", str(out))


def test_copied_files_are_recognized_by_rows_and_extras(
    workspace: Workspace, out: Path, digested_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extras are read as a whole or piece by piece, and some files lack an extra. Each digest is computed once."""
    monkeypatch.setattr(shard, "WIDE_BYTES", 1000)
    for number, n in enumerate((20, 0, 35)):
        path = workspace.shards / f"{number}.h5"
        add_extra(path, "texts", ["größer" * (i % 3) for i in range(n)])
        add_extra(path, "long_texts", ["x" * 1000 * (i % 3) for i in range(n)])
        if number != 2:
            add_extra(path, "numbers", np.where(np.arange(n) % 3, np.nan, 0.5).astype(">f4"))
    assert workspace.run(out) == 0
    before = results(stamps(out))
    for number in range(3):
        path = workspace.shards / f"{number}.h5"
        copy = path.with_suffix(".copy")
        shutil.copyfile(path, copy)
        copy.replace(path)
    for flags in ([], [], ["--append"]):
        assert workspace.run(out, *flags) == 0
        assert len(digested_paths) == 3
    assert results(stamps(out)) == before
    with h5py.File(workspace.shards / "2.h5", "r+") as file:
        file["texts"][34] = "another"
    assert workspace.run(out) == 78


@pytest.mark.parametrize("stage", [ScanStage, EncodingStage])
@pytest.mark.parametrize("is_restored", [False, True])
def test_contents_that_change_during_a_run_stop_it(
    workspace: Workspace,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: Any,
    is_restored: bool,
) -> None:
    path = workspace.shards / "0.h5"
    shutil.copy2(path, workspace.folder / "copy.h5")
    make = stage.make

    def make_and_change(*arguments: Any) -> Any:
        found = make(*arguments)
        change_in_place(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(stage, "make", make_and_change)
        assert workspace.run(out) == 65
    assert re.search(rf"DataError: file={path}: .*\bcontents\b", caplog.text)
    if is_restored:
        shutil.copy2(workspace.folder / "copy.h5", path)
    assert workspace.run(out) == 0
    assert features_of(out) == undisturbed_features(workspace)
