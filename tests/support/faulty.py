"""Disks and input files that fail, and processes that are killed.

Each disk is a `Disk` that counts its calls. These disks do not wait for the real one, because syncs matter only in a
power cut.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, NoReturn
from unittest.mock import patch

from shardpress.base.formats import digest
from shardpress.hdf5.files import FILES
from shardpress.output.disk import Disk

_CALLS = (
    "create",
    "open_to_append",
    "reserve",
    "bypass_cache",
    "write",
    "sync",
    "close",
    "replace",
    "remove",
    "make_directory",
    "sync_directory",
    "free_bytes",
)
_READS = ("stat", "open", "fstat", "preadv")
# Linux: CLONE_NEWNS, MS_REC | MS_PRIVATE, MS_REMOUNT.
_NEW_MOUNTS = 0x20000
_PRIVATE = 0x44000
_REMOUNT = 0x20


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


class RecordingDisk(Disk):
    """Disk that records its calls. Subclasses override `between` to change the calls."""

    def __init__(self) -> None:
        # Method and last argument of each call. The last argument is the path, if the call has a path.
        self.calls: list[tuple[str, object]] = []
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the called methods, in order."""
        return [name for name, _ in self.calls]

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        """Do call number `number` (from 0). Subclasses may replace the call."""
        return do(*arguments)

    def sync(self, descriptor: int) -> None:
        os.fstat(descriptor)

    def sync_directory(self, path: Path) -> None:
        os.stat(path)


def _through_between(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: RecordingDisk, *arguments: Any) -> Any:
        with self._lock:
            number = len(self.calls)
            self.calls.append((name, arguments[-1]))
        return self.between(number, name, arguments, lambda *given: original(self, *given))

    return call


for _name in _CALLS:
    setattr(RecordingDisk, _name, _through_between(_name, getattr(RecordingDisk, _name)))


class FailingDisk(RecordingDisk):
    """Disk whose call `first` fails. If `is_permanent` is set, all later calls fail as well.

    If `takes_effect` is set, a call is done before it fails.
    """

    def __init__(self, first: int, code: int, is_permanent: bool = False, takes_effect: bool = False) -> None:
        super().__init__()
        self._first = first
        self._code = code
        self._is_permanent = is_permanent
        self._takes_effect = takes_effect

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if number < self._first or (number > self._first and not self._is_permanent):
            return do(*arguments)
        # A descriptor is released even when closing it fails.
        if self._takes_effect or name == "close":
            do(*arguments)
        _fail(self._code)


class BrokenDisk(RecordingDisk):
    """Disk on which the methods of the given names always fail."""

    def __init__(self, code: int, *names: str) -> None:
        super().__init__()
        self._code = code
        self._broken = names

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if name not in self._broken:
            return do(*arguments)
        _fail(self._code)


class ShortWriteDisk(RecordingDisk):
    """Disk whose write number `first` is short. Later writes succeed, or fail with `code`."""

    def __init__(self, first: int, code: int = 0) -> None:
        super().__init__()
        self._first = first
        self._code = code

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        n_writes = self.names[:number].count("write")
        if name != "write" or n_writes < self._first:
            return do(*arguments)
        if n_writes == self._first:
            descriptor, data = arguments
            return do(descriptor, data[: max(1, len(data) // 2)])
        if self._code:
            _fail(self._code)
        return do(*arguments)


class KillingDisk(RecordingDisk):
    """Disk that kills the process right before or right after call number `number`."""

    def __init__(self, number: int, after: bool) -> None:
        super().__init__()
        self._number = number
        self._after = after

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if number != self._number:
            return do(*arguments)
        if self._after:
            with suppress(OSError):  # the call itself may fail, like the removal of a file that does not exist
                do(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


@contextmanager
def failing_reads(first: int, code: int, is_permanent: bool = False) -> Iterator[Callable[[], int]]:
    """Make call `first` of `FILES`, which reads all input, fail. If `is_permanent` is set, later calls fail as well.

    Yield a function that returns the number of calls so far.
    """
    numbers = itertools.count()
    n_calls = 0

    def failing(read: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal n_calls
            number = next(numbers)
            n_calls = number + 1
            if number == first or (is_permanent and number > first):
                _fail(code)
            return read(*arguments)

        return call

    calls = {name: failing(getattr(FILES, name)) for name in _READS}
    with patch.dict(vars(FILES), {"sleep": lambda seconds: None, **calls}):
        yield lambda: n_calls


def forked(act: Callable[[], object]) -> tuple[int, Any]:
    """Call `act` in a fork. Return the exit code (negative for a signal), and the result of `act`."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            os.write(writer, json.dumps(act()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), json.loads(answer or "null")


def small_disk(folder: Path, n_bytes: int) -> bool:
    """Mount a file system of this size on a folder for this process. Return False if the machine does not allow it.

    Another call on the same folder changes the size.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = b"size=%d,nr_inodes=0" % n_bytes
    if os.path.ismount(folder):
        return libc.mount(b"tmpfs", bytes(folder), b"tmpfs", _REMOUNT, options) == 0
    # The mounts of this process must be separate from those of others.
    if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None):
        return False
    return libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, options) == 0


# -- the journal, read without the code of the program ---------------------------------------------------------------


def journal_lines(data: bytes) -> list[dict[str, Any]]:
    """Return the valid lines of a journal."""
    lines = []
    for line in data.splitlines(keepends=True):
        stored, _, text = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or digest([text])[:32].encode() != stored:
            break
        lines.append(json.loads(text))
    return lines


def journal_records(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the results that a journal names."""
    records: list[dict[str, Any]] = []
    for line in lines:
        if line["type"] == "result":
            records.append(dict(line))
        elif line["type"] == "part":
            entry = line["part"]["entry"]
            records.append({"key": PurePath(entry["file"]).stem, "entry": entry})
        elif line["type"] == "withdrawn":
            records = [record for record in records if record["entry"]["file"] not in line["files"]]
    return records
