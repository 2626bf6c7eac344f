"""Tests of input files changed in place with a restored modification time, and of changed attributes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.features import open_features
from shardpress.hdf5 import shard
from shardpress.hdf5.files import opened
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


def change_attributes(path: Path) -> None:
    """Change only the change time (ctime), as chmod, hard links and backups do."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:  # a clock may tick slowly
        path.chmod(path.stat().st_mode ^ 0o020)


@pytest.fixture
def digested_paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list of files whose digests are computed by themselves."""
    paths: list[str] = []

    def digest_and_count(facts: ShardFacts, *arguments: Any) -> ShardFacts:
        paths.append(facts.path)
        return with_content(facts, *arguments)

    monkeypatch.setattr(inputs, "with_content", digest_and_count)
    return paths


def test_changed_attributes_are_confirmed_once(workspace: Workspace, out: Path, digested_paths: list[str]) -> None:
    assert workspace.run(out) == 0
    before = results(stamps(out))
    path = workspace.shards / "0.h5"
    change_attributes(path)
    os.link(path, workspace.folder / "backup.h5")
    for flags in ([], [], ["--append"]):
        assert workspace.run(out, *flags) == 0
        assert digested_paths == [str(path)]
    assert results(stamps(out)) == before


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


KINDS_OF_EXTRAS: dict[str, Callable[[int], object]] = {
    "integers": lambda n: np.arange(n),
    "numbers": lambda n: np.where(np.arange(n) % 3, np.nan, 0.5).astype(">f4"),
    "booleans": lambda n: np.arange(n) % 2 == 0,
    "bytes": lambda n: np.array([b"ab%d" % i for i in range(n)]),
    "texts": lambda n: ["größer" * (i % 3) for i in range(n)],
    "long_texts": lambda n: ["x" * 1000 * (i % 3) for i in range(n)],
}


def test_files_with_all_kinds_of_extras_are_recognized(
    workspace: Workspace, out: Path, digested_paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Extras are read as a whole or piece by piece, and some files lack an extra."""
    monkeypatch.setattr(shard, "WIDE_BYTES", 1000)
    n_rows = (20, 0, 35)
    for name, values in KINDS_OF_EXTRAS.items():
        for number, n in enumerate(n_rows):
            if name != "numbers" or number != 2:
                add_extra(workspace.shards / f"{number}.h5", name, values(n))
    assert workspace.run(out) == 0
    assert {"texts", "long_texts", "numbers_present"} <= set(open_features(out).extras)
    before = results(stamps(out))
    for number in range(3):
        path = workspace.shards / f"{number}.h5"
        copy = path.with_suffix(".copy")
        shutil.copyfile(path, copy)
        copy.replace(path)
    assert workspace.run(out) == 0
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


def test_a_file_truncated_during_a_run_is_a_bad_shard(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ScanStage.make

    def scan_after_truncation(*arguments: Any) -> Any:
        path = workspace.shards / "2.h5"
        os.truncate(path, path.stat().st_size - 1)
        return make(*arguments)

    monkeypatch.setattr(ScanStage, "make", scan_after_truncation)
    assert workspace.run(out, "--on-bad-data", "skip", "--max-bad", "90%") == 0


def test_attributes_that_change_during_a_read_cause_a_retry(workspace: Workspace) -> None:
    path = workspace.shards / "0.h5"
    with pytest.raises(BlockingIOError), opened(str(path)):  # EAGAIN
        change_attributes(path)
