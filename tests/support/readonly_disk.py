"""Make the disk read-only in the middle of a run, as ext4 does after an error. This needs root and a loop device.

    python -m tests.support.readonly_disk         before each disk call of a run; prints the number of runs by exit code
    python -m tests.support.readonly_disk 20      before every twentieth call

The file system is a real one: ext4 in a file, in a separate mount namespace. ``mount -o remount,abort`` aborts the
journal. Afterwards the file system is checked (e2fsck) and mounted again, and the same command is run again.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardpress.output.disk import Disk
from tests.support.failing_calls import committed_parts
from tests.support.faulty import RecordingDisk, forked
from tests.support.soak_protocol import invalid_entries, leftovers
from tests.support.standin import Workspace, features_of, install

_MIB = 64  # size of the file system
_STEPS = ("--quiet", "checkpoint_seconds=0", "--epochs", "1", "--batch-size", "12")
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS of Linux
_PRIVATE = 0x44000  # MS_REC | MS_PRIVATE of Linux


def reason_to_skip() -> str:
    """Return the reason why this machine cannot run the test, or an empty text if it can."""
    if os.getuid() != 0:
        return "only root can mount a file system"
    lacking = [name for name in ("mkfs.ext4", "e2fsck", "mount", "umount") if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)}: no such program"
    if not Path("/dev/loop-control").exists():
        return "no loop devices"
    with tempfile.TemporaryDirectory(prefix="shardpress-abort-") as folder:
        code, _ = forked(lambda: bool(_FileSystem(Path(folder))))
    return "" if code == 0 else "a loop device cannot be mounted here"


class _FileSystem:
    """An ext4 file system in a file, mounted only for this process."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None):
            raise OSError(ctypes.get_errno(), "no mount namespace")
        self._image = folder / "disk.ext4"
        self.path = folder / "disk"
        self.path.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(_MIB * 2**20)
        _run("mkfs.ext4", "-q", "-F", str(self._image))
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.path))

    def abort(self) -> None:
        """Make the file system read-only, as after a disk error."""
        _run("mount", "-o", "remount,abort", str(self.path))

    def repair(self) -> None:
        """Check the file system and mount it again, as after a restart."""
        _run("umount", str(self.path))
        checked = subprocess.run(["e2fsck", "-p", str(self._image)], capture_output=True, check=False)
        assert checked.returncode in (0, 1), checked.stdout.decode()  # exit code 1: repaired
        self.mount()


class _Aborting(RecordingDisk):
    """Disk whose file system becomes read-only right before call number `number`.

    Attributes
    ----------
    committed : dict of str to str
        Results that were committed before the abort, as returned by `committed_parts`.
    """

    def __init__(self, disk: _FileSystem, output: Path, number: int) -> None:
        super().__init__()
        self._disk = disk
        self._output = output
        self._number = number
        self.committed: dict[str, str] = {}

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if number == self._number:
            self._disk.abort()
        if name not in ("sync", "sync_directory"):
            return do(*arguments)
        found = getattr(Disk, name)(self, *arguments)  # use real syncs here
        if name == "sync" and os.readlink(f"/proc/self/fd/{arguments[0]}").endswith("journal.jsonl"):
            self.committed = committed_parts(self._output)  # lines that are not synced yet may be lost
        return found


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def abort_at_calls(folder: Path, every: int) -> dict[str, int]:
    """Abort the file system of one run after another. Return the number of runs by exit code.

    The file system is mounted in this process, so call this function in a fork.
    """
    with pytest.MonkeyPatch.context() as monkeypatch:
        install(monkeypatch)
        return _aborted(folder, every)


def _aborted(folder: Path, every: int) -> dict[str, int]:
    workspace = Workspace(folder, 20, 0, 15)
    disk = _FileSystem(folder)
    output = disk.path / "out"
    recording = RecordingDisk()
    assert workspace.run(output, *_STEPS, disk=recording) == 0
    expected = features_of(output)
    codes = Counter[str]()
    for number in range(1, len(recording.calls), every):
        shutil.rmtree(output)
        label = f"before call {number}, {recording.calls[number]}"
        aborting = _Aborting(disk, output, number)
        code = workspace.run(output, *_STEPS, disk=aborting)
        before = aborting.committed
        assert code in (73, 74), f"{label}: exit code {code}"
        disk.repair()
        assert before.items() <= committed_parts(output).items(), f"{label}: lost"
        assert invalid_entries(output) == [], label
        assert workspace.run(output, *_STEPS) == 0, label
        assert before.items() <= committed_parts(output).items(), f"{label}: recomputed"
        assert features_of(output) == expected, label
        assert leftovers(output) == [], label
        codes[str(code)] += 1
    return dict(codes)


def main() -> int:
    """Print the number of runs by exit code."""
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    if why := reason_to_skip():
        print(f"skipped: {why}")
        return 0
    logging.getLogger().addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(prefix="shardpress-aborted-") as folder:
        code, codes = forked(lambda: abort_at_calls(Path(folder), every))
    print(f"the disk turned read-only before {sum((codes or {}).values())} calls; exit codes {codes}")
    return code


if __name__ == "__main__":
    sys.exit(main())
