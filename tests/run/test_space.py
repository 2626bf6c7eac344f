"""Tests of limits before and during writing: space, system limits, and directories without permission."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardpress import runlog
from shardpress.errors import WriteFailed
from shardpress.output.disk import Disk, publish
from shardpress.output.lock import locked
from shardpress.run import engine
from tests.support.faulty import BrokenDisk, RecordingDisk, forked, small_disk
from tests.support.interruptions import STEPS, FullAfter
from tests.support.logged import STARTED_NOTHING, mentions
from tests.support.soak_protocol import (
    invalid_entries,
    leftovers,
    records,
)
from tests.support.standin import Workspace, features_of


@pytest.mark.slow
@pytest.mark.parametrize("name", ["work/journal", "work/scan", "checkpoint", "model", "parts/", "index.h5"])
def test_a_run_resumes_after_a_disk_was_full(
    workspace: Workspace, out: Path, expected: Callable[..., bytes], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    class Full(RecordingDisk):
        def between(self, number: int, call: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
            if call == "create" and name in str(arguments[0].relative_to(out)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return do(*arguments)

    assert workspace.run(out, *STEPS, disk=Full()) == 74
    assert re.search(rf"WriteFailed: file={out}/\S.*: {os.strerror(errno.ENOSPC)}\b.* \d+ bytes\b", caplog.text)
    assert invalid_entries(out) == []
    assert workspace.run(out, *STEPS) == 0
    assert features_of(out) == expected()


def test_a_log_on_a_full_disk_does_not_stop_the_run(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(self: runlog.RunLog, directory: Path) -> None:
        self._descriptor = os.open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(runlog.RunLog, "start", start)
    assert workspace.run(out) == 0


class Small(RecordingDisk):
    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self._n_bytes = n_bytes

    def free_bytes(self, path: Path) -> int:
        return self._n_bytes


def _needed(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> int:
    """Return how many bytes a run needs according to its message on a full disk."""
    caplog.clear()
    assert workspace.run(out, disk=Small(0)) == 74
    return int(re.findall(r"expected at least (\d+)", caplog.text)[-1])


@pytest.mark.usefixtures("unread")
def test_too_little_space_is_reported_before_rows_are_read(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = _needed(workspace, out, caplog)
    assert workspace.run(out, disk=Small(needed - 1)) == 74
    assert mentions(caplog.text, "WriteFailed", f"output={out}", needed - 1, needed)


def test_sufficient_space_is_accepted(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert workspace.run(out, disk=Small(_needed(workspace, out, caplog))) == 0


def test_committed_results_need_no_space_again(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = [_needed(workspace, out, caplog)]
    for kind, n_named in (("scan", 1), ("model", 1), ("part", 1), ("part", 1)):
        assert workspace.run(out, disk=FullAfter(kind, n_named)) == 74
        needed.append(_needed(workspace, out, caplog))
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) == len(needed)
    assert workspace.run(out, disk=Small(needed[-1])) == 0


@pytest.mark.process
def test_a_plan_finds_that_a_real_disk_is_too_small(workspace: Workspace, tmp_path: Path) -> None:
    """The space that a plan reports is at most a tenth less than that with which a run succeeds."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def runs() -> Any:
        if not small_disk(folder, 2**30):
            return None
        flags = ["--epochs", "4", "--hidden", "none"]
        needed = workspace.plan(folder / "out", *flags).disk["n_bytes"]
        found = []
        for share in (0.97, 1.1):
            assert small_disk(folder, int(share * needed))
            codes = [problem["exit_code"] for problem in workspace.plan(folder / "out", *flags).problems]
            found.append([codes, workspace.run(folder / "out", *flags)])
        return found

    code, found = forked(runs)
    if found is None:
        pytest.skip("missing on this machine: the right to mount a file system")
    assert (code, found) == (0, [[[74], 74], [[], 0]])


def test_a_finished_run_needs_no_space(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(out, disk=Small(0)) == 0


@pytest.mark.process
def test_a_run_resumes_after_a_real_disk_was_full(
    workspace: Workspace, expected: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the machine does not allow mounts, a disk that returns the error replaces it."""
    monkeypatch.setattr(engine, "check_space", lambda journal, prepared: None)
    whole = expected()
    folder = tmp_path / "disk"
    folder.mkdir()

    def runs() -> list[Any]:
        is_real = small_disk(folder, 150 * 2**10)
        first = workspace.run(folder / "out", *STEPS, disk=None if is_real else FullAfter("part", 1))
        broken = invalid_entries(folder / "out")
        committed = len(records(folder / "out"))
        if is_real:
            assert small_disk(folder, 10 * 2**20)
        second = workspace.run(folder / "out", *STEPS)
        same = features_of(folder / "out") == whole
        return [first, broken, committed > 2, second, same, leftovers(folder / "out")]

    assert forked(runs) == (0, [74, [], True, 0, True, []])


@pytest.mark.process
def test_a_lack_of_inodes_is_not_reported_as_a_lack_of_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()

    def fill() -> Any:
        if not small_disk(folder, 2**20, n_inodes=5):
            return None
        try:
            for number in range(5):
                publish(Disk(), folder / str(number), b"x")
        except WriteFailed as error:
            return mentions(str(error), "inodes", 5), str(error).count("bytes") > 1
        return "no error"

    code, found = forked(fill)
    if found is None:
        pytest.skip("missing on this machine: the right to mount a file system")
    assert (code, found) == (0, [True, False])


@pytest.mark.process
def test_a_run_resumes_after_a_real_limit_of_file_sizes(
    workspace: Workspace, out: Path, expected: Callable[..., bytes]
) -> None:

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return workspace.run(out)

    assert forked(run) == (0, 74), "SIGXFSZ did not end the process"
    assert "ulimit -f" in (out / "run.log").read_text()
    assert invalid_entries(out) == []
    assert len(records(out)) == 2, "the scan and the model are small"
    assert workspace.run(out) == 0
    assert features_of(out) == expected()


@pytest.mark.process
def test_a_run_opens_few_files(workspace: Workspace, out: Path, expected: Callable[..., bytes]) -> None:
    n_open = len(os.listdir("/proc/self/fd"))  # of earlier tests

    def run() -> int:
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 40, n_open + 40))
        return workspace.run(out, "--threads", "4")

    assert forked(run) == (0, 0)
    assert features_of(out) == expected()


@pytest.mark.usefixtures("unread")
def test_an_unwritable_output_is_reported_before_rows_are_read(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert workspace.run(out, disk=BrokenDisk(errno.EROFS, "create")) == 73
    assert workspace.run(out, disk=BrokenDisk(errno.EACCES, "create")) == 77
    assert caplog.text.count(f"output={out}: ") == 2
    assert caplog.records[-1].message.startswith(STARTED_NOTHING)


@pytest.mark.usefixtures("unread")
def test_a_foreign_directory_is_reported_before_rows_are_read(workspace: Workspace, out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_bytes(b"precious")
    for flags in ([], ["--overwrite"], ["--restart"]):
        assert workspace.run(out, *flags) == 73
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("thesis.tex", b"precious")]


@pytest.mark.usefixtures("unread")
def test_an_active_run_is_reported_before_rows_are_read(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(out):
        assert workspace.run(out) == 75
    assert mentions(caplog.text, "TryAgain", f"output={out}", f"pid {os.getpid()}")
    assert caplog.records[-1].message.startswith(STARTED_NOTHING)
