"""Tests of limits before and during writing: space, system limits, and directories without permission."""

from __future__ import annotations

import errno
import re
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.support.cases import sample
from tests.support.faulty import BrokenDisk, RecordingDisk, forked, small_disk
from tests.support.interruptions import FullAfter
from tests.support.logged import STARTED_NOTHING
from tests.support.protocol import invalid_entries, leftovers
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


def test_an_unusable_output_is_reported_before_rows_are_read(
    workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [(Small(0), 74), (BrokenDisk(errno.EROFS, "create"), 73), (BrokenDisk(errno.EACCES, "create"), 77)]
    for disk, code in cases:
        output = out.with_name(f"{code}")
        assert workspace.run(output, disk=disk) == code
        assert f"output={output}: " in caplog.text
        assert caplog.messages[-1].startswith(STARTED_NOTHING)


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
            codes = [problem.exit_code for problem in workspace.plan(folder / "out", *flags).problems]
            found.append([codes, workspace.run(folder / "out", *flags)])
        return found

    code, found = forked(runs)
    if found is None:
        pytest.skip("missing on this machine: the right to mount a file system")
    assert (code, found) == (0, [[[74], 74], [[], 0]])


LIMITS = [
    *((resource.RLIMIT_NOFILE, n_more, (0, 71)) for n_more in sample(range(4, 12), 3)),
    *((resource.RLIMIT_FSIZE, n_bytes, (0, 73, 74)) for n_bytes in sample([0, 1, 100, 3000, 10_000, 40_000], 3)),
]


@pytest.mark.process
@pytest.mark.parametrize(("limit", "value", "codes"), LIMITS)
def test_a_low_system_limit_ends_a_run(
    workspace: Workspace, out: Path, limit: int, value: int, codes: tuple[int, ...]
) -> None:
    """The same command then succeeds without the limit."""
    if limit == resource.RLIMIT_NOFILE:
        value += len(list(Path("/proc/self/fd").iterdir()))

    def run() -> int:
        resource.setrlimit(limit, (value, value))
        return workspace.run(out)

    code, exit_code = forked(run)
    assert code == 0, "the process ended without an exit code of the program"
    assert exit_code in codes
    assert workspace.run(out) == 0
    assert invalid_entries(out) == leftovers(out) == []
