"""Tests of input files changed in place with a restored modification time, and of changed attributes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import h5py
import pytest

from shardpress.hdf5.files import opened
from shardpress.hdf5.values import file_digest
from shardpress.run import digests
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.scan_stage import ScanStage
from tests.support.interruptions import STEPS, FullAfter, results, stamps, undisturbed_features
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
    """Return the list of files whose digests are computed."""
    paths: list[str] = []

    def digest_and_count(path: str, identity: Any) -> str:
        paths.append(path)
        return file_digest(path, identity)

    monkeypatch.setattr(digests, "file_digest", digest_and_count)
    return paths


def test_a_finished_run_notices_contents_changed_in_place(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out) == 0
    before = features_of(out)
    change_in_place(workspace.shards / "0.h5")
    caplog.clear()
    assert workspace.run(out) == 78
    assert re.search(r"ConfigError: .* 0\.h5 \(.*\bcontents\b", caplog.text)
    assert workspace.run(out, "--overwrite") == 0
    assert features_of(out) == undisturbed_features(workspace) != before
    stamps_before = stamps(out)
    assert workspace.run(out) == 0
    assert stamps(out) == stamps_before


def test_an_unfinished_run_notices_contents_changed_in_place(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, *STEPS, disk=FullAfter("checkpoint", 2)) == 74
    change_in_place(workspace.shards / "0.h5")
    assert workspace.run(out, *STEPS) == 0
    assert features_of(out) == undisturbed_features(workspace, *STEPS)


def test_an_interrupted_encoding_with_a_given_model_notices_contents_changed_in_place(
    workspace: Workspace, out: Path
) -> None:
    model = workspace.folder / "model"
    assert workspace.run(model) == 0
    flags = ("--model", str(model))
    assert workspace.run(out, *flags, disk=FullAfter("part", 1)) == 74
    change_in_place(workspace.shards / "0.h5")
    assert workspace.run(out, *flags, "--overwrite") == 0
    assert features_of(out) == undisturbed_features(workspace, *flags)


def test_an_interrupted_append_notices_contents_changed_in_place(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    path = workspace.shards / "0.h5"
    change_in_place(path)
    os.utime(path)
    assert workspace.run(out, "--append", disk=FullAfter("part", 1)) == 74
    change_in_place(path)
    assert workspace.run(out, "--append") == 0
    assert features_of(out) == undisturbed_features(workspace, "--model", str(out))


def test_changed_attributes_are_confirmed_once(workspace: Workspace, out: Path, digested_paths: list[str]) -> None:
    assert workspace.run(out) == 0
    before = results(stamps(out))
    path = workspace.shards / "0.h5"
    change_attributes(path)
    os.link(path, workspace.folder / "backup.h5")
    digested_paths.clear()
    for expected in ([str(path)], []):
        assert workspace.run(out) == 0
        assert digested_paths == expected
        digested_paths.clear()
    assert results(stamps(out)) == before


def test_without_digests_contents_are_not_compared(workspace: Workspace, out: Path, digested_paths: list[str]) -> None:
    assert workspace.run(out, "--verify", "sizes") == 0
    assert digested_paths == []
    change_in_place(workspace.shards / "0.h5")
    assert workspace.run(out) == 0  # its earlier content is unknown


def test_contents_that_change_during_a_run_stop_it(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make = EncodingStage.make

    def encode_and_change(*arguments: Any) -> Any:
        found = make(*arguments)
        change_in_place(workspace.shards / "0.h5")
        return found

    monkeypatch.setattr(EncodingStage, "make", encode_and_change)
    assert workspace.run(out) == 65
    assert re.search(rf"DataError: file={workspace.shards}/0\.h5: .*\bcontents\b", caplog.text)
    monkeypatch.setattr(EncodingStage, "make", make)
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
    flags = ["--on-bad-data", "skip", "--max-bad", "90%"]
    assert workspace.run(out, *flags) == 0


def test_attributes_that_change_during_a_read_cause_a_retry(workspace: Workspace) -> None:
    path = workspace.shards / "0.h5"
    with pytest.raises(BlockingIOError), opened(str(path)):  # EAGAIN
        change_attributes(path)
