"""Tests of repeated runs and appends, which do not open files that have not changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.shards import kept
from shardpress.shards import open as open_module
from shardpress.shards.vet import InputFile, Master, Selection
from tests.support.standin import Workspace, features_of

Opened = list[str]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Return the names of the files that are opened."""
    names: Opened = []
    vet = open_module.vet

    def recorded(path: Path, selection: Selection) -> InputFile | Master:
        names.append(path.name)
        return vet(path, selection)

    monkeypatch.setattr(open_module, "vet", recorded)
    return names


def descriptions(output: Path) -> Path:
    (found,) = output.glob("work/descriptions-*")
    return found


def test_a_repeated_run_opens_no_file(workspace: Workspace, out: Path, opened: Opened) -> None:
    assert workspace.run(out) == 0
    assert sorted(opened) == sorted(path.name for path in workspace.shards.iterdir())
    before = features_of(out)
    opened.clear()
    assert workspace.run(out) == 0
    assert workspace.plan(out).problems == []
    assert workspace.run(out, "--retrain", "--seed", "1") == 0
    assert opened == []
    assert features_of(out) != before


def test_an_append_opens_only_new_files(workspace: Workspace, out: Path, opened: Opened) -> None:
    assert workspace.run(out) == 0
    opened.clear()
    workspace.add_shard("new.h5", np.ones((4, 4), np.float32))
    assert workspace.run(out, "--append") == 0
    assert workspace.run(out, "--append") == 0
    assert opened == ["new.h5"]


def _edit(path: Path) -> None:
    """Change a value, but neither the size nor the modification time."""
    status = path.stat()
    with h5py.File(path, "r+") as file:
        file["X"][0] += 1
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path) -> None:
    """Replace a file by a copy with the same times."""
    status = path.stat()
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(path)


@pytest.mark.parametrize("change", [_edit, _replace, os.utime, lambda path: path.chmod(0o600)])
def test_a_file_that_may_have_changed_is_opened(
    workspace: Workspace, out: Path, opened: Opened, change: Callable[[Path], object]
) -> None:
    assert workspace.run(out) == 0
    opened.clear()
    change(workspace.shards / "0.h5")
    assert workspace.run(out, "--append") == 0
    assert opened == ["0.h5"]


def test_a_removed_file_is_missed(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = sorted(workspace.shards.iterdir())
    assert workspace.run_on(files, out) == 0
    os.remove(files[0])
    assert workspace.run_on(files, out) == 66
    assert str(files[0]) in caplog.text


@pytest.mark.parametrize("flags", [("--dataset", "X"), ("--include", "y")])
def test_another_selection_opens_all_files(
    workspace: Workspace, out: Path, opened: Opened, flags: tuple[str, ...]
) -> None:
    assert workspace.run(out) == 0
    n_files = len(opened)
    opened.clear()
    assert workspace.run(out, *flags) == 0
    assert len(opened) == n_files


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [_truncate, _flip, os.remove, lambda path: path.write_bytes(b"")])
def test_lost_descriptions_cost_only_time(
    workspace: Workspace, out: Path, opened: Opened, damage: Callable[[Path], object]
) -> None:
    assert workspace.run(out) == 0
    before = features_of(out)
    content = descriptions(out).read_bytes()
    n_files = len(opened)
    opened.clear()
    damage(descriptions(out))
    assert workspace.run(out) == 0
    assert len(opened) == n_files
    assert features_of(out) == before
    assert descriptions(out).read_bytes() == content


def test_another_version_opens_all_files(
    workspace: Workspace, out: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert workspace.run(out) == 0
    n_files = len(opened)
    opened.clear()
    monkeypatch.setattr(kept, "version_of", lambda name: "0")
    assert workspace.run(out) == 0
    assert len(opened) == n_files


def test_files_that_may_still_be_changing_are_not_kept(
    workspace: Workspace, out: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_SETTLED_NS", 10**12)
    assert workspace.run(out) == 0
    assert list(out.glob("work/descriptions-*")) == []
    n_files = len(opened)
    opened.clear()
    assert workspace.run(out) == 0
    assert len(opened) == n_files
