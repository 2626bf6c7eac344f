"""Tests of limits before and during writing: space, system limits, and directories without permission."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from shardpress.output.lock import locked
from tests.support.faulty import BrokenDisk, RecordingDisk, forked, small_disk
from tests.support.interruptions import FullAfter
from tests.support.logged import STARTED_NOTHING, mentions
from tests.support.standin import Workspace


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


def test_committed_results_need_no_space_again(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    needed = [_needed(workspace, out, caplog)]
    assert workspace.run(out, disk=Small(needed[0] - 1)) == 74
    for kind, n_named in (("scan", 1), ("model", 1), ("part", 1), ("part", 1)):
        assert workspace.run(out, disk=FullAfter(kind, n_named)) == 74
        needed.append(_needed(workspace, out, caplog))
    assert needed == sorted(set(needed), reverse=True)
    assert workspace.run(out, disk=Small(needed[-1])) == 0
    assert workspace.run(out, disk=Small(0)) == 0
    assert workspace.run(out.with_name("another"), disk=Small(needed[0])) == 0


@pytest.mark.usefixtures("unread")
def test_an_unusable_output_is_reported_before_rows_are_read(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [(Small(0), 74), (BrokenDisk(errno.EROFS, "create"), 73), (BrokenDisk(errno.EACCES, "create"), 77)]
    for disk, code in cases:
        output = out.with_name(f"{code}")
        assert workspace.run(output, disk=disk) == code
        assert f"output={output}: " in caplog.text
        assert caplog.messages[-1].startswith(STARTED_NOTHING)
    with locked(out):
        assert workspace.run(out) == 75
    assert mentions(caplog.text, "TryAgain", f"output={out}", f"pid {os.getpid()}")


# -- real limits -----------------------------------------------------------------------------------------------------


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
