"""Disks and input files that fail, processes that are killed, and power cuts.

Each disk is a `Disk` that counts its calls. These disks do not wait for the real one, because syncs matter only in a
power cut, and power cuts are simulated.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NoReturn
from unittest.mock import patch

from shardpress.formats import digest
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
# Linux: CLONE_NEWNS, MS_REC | MS_PRIVATE, MS_REMOUNT, MS_BIND.
_NEW_MOUNTS = 0x20000
_PRIVATE = 0x44000
_REMOUNT = 0x20
_BIND = 0x1000


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
        if name == "close":
            do(*arguments)
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
    with patch.multiple(FILES, sleep=lambda seconds: None, **calls):
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


def small_disk(folder: Path, n_bytes: int, n_inodes: int = 0) -> bool:
    """Mount a file system of this size on a folder for this process. Return False if the machine does not allow it.

    Another call on the same folder changes the size. If `n_inodes` is 0, the number of files is not limited.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    options = b"size=%d,nr_inodes=%d" % (n_bytes, n_inodes)
    if os.path.ismount(folder):
        return libc.mount(b"tmpfs", bytes(folder), b"tmpfs", _REMOUNT, options) == 0
    return _has_own_mounts() and libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, options) == 0


def bind(source: Path, target: Path) -> bool:
    """Bind-mount a file or folder, only for this process. Return False if the machine does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    return _has_own_mounts() and libc.mount(bytes(source), bytes(target), None, _BIND, None) == 0


def _has_own_mounts() -> bool:
    """Separate the mounts of this process from those of others. Return False if the machine does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    return libc.unshare(_NEW_MOUNTS) == 0 and libc.mount(b"none", b"/", None, _PRIVATE, None) == 0


# -- power ---------------------------------------------------------------------------------------------------------


@dataclass
class _Content:
    """Content of a file, independent of its names: the written bytes, and the bytes that are on the disk."""

    written: bytes = b""
    place: int = 0  # offset of the next write, which overwrites reserved zeros
    synced: bytes | None = None

    @property
    def n_unsynced(self) -> int:
        return len(self.written) - len(self.synced or b"")


Remains = dict[PurePath, bytes | None]
"""State after a power cut: the bytes of a file, or None for a directory."""

_Names = dict[PurePath, _Content | None]  # content of each path, or None for a directory
_Change = tuple[PurePath, PurePath | None, _Content | None]  # a new name, the name before it, and the content
_GONE = _Content()


def _apply(names: _Names, path: PurePath, moved_from: PurePath | None, content: _Content | None) -> None:
    """Change a name. A rename is one change of two names."""
    if moved_from is not None:
        names.pop(moved_from, None)
    if content is _GONE:
        names.pop(path, None)
    else:
        names[path] = content


@dataclass
class _State:
    """State of the kernel and of the disk, and the changes of names that are not synced yet, in order."""

    now: _Names
    durable: _Names
    pending: list[_Change] = field(default_factory=list)

    def play(self, name: str, path: PurePath, argument: Any) -> None:
        """Do a recorded call."""
        if name == "create":
            self._change(path, None, _Content())
        elif name == "open_to_append":
            self._file(path).place = len(self._file(path).written)
        elif name == "reserve":
            self._file(path).written = bytes(argument)
        elif name == "write":
            content = self._file(path)
            stop = content.place + len(argument)
            content.written = content.written[: content.place] + argument + content.written[stop:]
            content.place = stop
        elif name == "sync":
            self._file(path).synced = self._file(path).written
        elif name == "replace":
            self._change(argument, path, self.now[path])
        elif name == "remove":
            self._change(path, None, _GONE)
        elif name == "make_directory":
            self._change(path, None, None)
        elif name == "sync_directory":
            for change in [change for change in self.pending if change[0].parent == path]:
                _apply(self.durable, *change)
                self.pending.remove(change)

    def _change(self, *change: Any) -> None:
        _apply(self.now, *change)
        self.pending.append(change)  # type: ignore[arg-type]

    def _file(self, path: PurePath) -> _Content:
        content = self.now[path]
        assert content is not None
        return content


class PowerLog(RecordingDisk):
    """Disk that records all changes below a folder, so that a power cut can be simulated after each call.

    The current content of the folder is regarded as synced to the disk.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._one_at_a_time = threading.Lock()
        self._log: list[tuple[str, PurePath, Any]] = []
        self._descriptors: dict[int, PurePath] = {}
        self._before: _Names = {path.relative_to(folder): _content_of(path) for path in folder.rglob("*")}

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        with self._one_at_a_time:  # calls are recorded in the order in which they are done
            result = do(*arguments)
            if name in ("create", "open_to_append"):
                self._descriptors[result] = self._inside(arguments[0])
            if name != "free_bytes":
                self._log.append((name, self._file_of(arguments[0]), self._argument_of(name, arguments, result)))
            return result

    def _file_of(self, file: Any) -> PurePath:
        return self._descriptors[file] if isinstance(file, int) else self._inside(file)

    def _argument_of(self, name: str, arguments: tuple[Any, ...], result: Any) -> Any:
        if name == "write":
            return bytes(arguments[1][:result])
        if name == "replace":
            return self._inside(arguments[1])
        return arguments[-1]

    def _inside(self, path: Path) -> PurePath:
        # Directories above the folder existed before.
        return path.relative_to(self.folder) if path.is_relative_to(self.folder) else PurePath("/", path)

    def cuts(self, n_random: int, seed: int = 0) -> Iterator[tuple[int, str, Remains]]:
        """Yield each possible state after a power cut once: the number of the call, the kind, and the files.

        ``lost``: everything that was not synced is lost. ``empty`` and ``zeros``: names that were not synced exist, but
        the data that were not synced are missing or zeros. ``mixed``: a random subset of the names and the beginning of
        the data, `n_random` times after each call.

        Raise `AssertionError` if a line of the journal is on the disk before the file that it names.
        """
        rng = random.Random(seed)
        state = _State(now=dict(self._before), durable=dict(self._before))
        seen: set[frozenset[tuple[PurePath, bytes | None]]] = set()
        lost_before = _lost_files(_remains(state.durable, _nothing))  # by an earlier power cut

        def beginning(content: _Content) -> bytes:
            start = len(content.synced or b"")
            return content.written[start:][: rng.randrange(content.n_unsynced + 1)]

        for number, (name, path, argument) in enumerate(self._log):
            state.play(name, path, argument)
            found = [
                ("lost", _remains(state.durable, _nothing)),
                ("empty", _remains(state.now, _nothing)),
                ("zeros", _remains(state.now, lambda content: bytes(content.n_unsynced))),
            ]
            lost = _lost_files(found[0][1]) - lost_before
            assert lost == set(), f"power cut after call {number}, {name}: the journal names {lost}"
            for _ in range(n_random if state.pending or name == "write" else 0):
                names = dict(state.durable)
                for change in state.pending:
                    if rng.random() < 0.5:
                        _apply(names, *change)
                found.append(("mixed", _remains(names, beginning)))
            for kind, remains in found:
                key = frozenset(remains.items())
                if key not in seen:
                    seen.add(key)
                    yield number, kind, remains


def _nothing(content: _Content) -> bytes:
    return b""


def _content_of(path: Path) -> _Content | None:
    if not path.is_file():
        return None
    data = path.read_bytes()
    return _Content(data, synced=data)


def _remains(names: _Names, unsynced: Callable[[_Content], bytes]) -> Remains:
    """Return files and directories with their remaining content. Files in a lost directory are lost."""
    remains: Remains = {}
    for path, content in sorted(names.items(), key=lambda item: len(item[0].parts)):
        if path.parent != PurePath() and path.parent not in remains:  # the directory was lost
            continue
        remains[path] = None if content is None else (content.synced or b"") + unsynced(content)
    return remains


def materialize(remains: Remains, folder: Path) -> None:
    """Write the state after a power cut to a new folder."""
    folder.mkdir()
    for path, data in remains.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


# -- the journal, read without the code of the program ---------------------------------------------------------------


def _lost_files(remains: Remains) -> set[PurePath]:
    """Return the files that the journal names, but that do not exist."""
    lost: set[PurePath] = set()
    for path, data in remains.items():
        if path.name == "journal.jsonl" and data is not None:
            lost |= {path.parents[1] / record["entry"]["file"] for record in journal_records(journal_lines(data))}
    return lost - remains.keys()


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
        elif line["type"] == "withdrawn":
            records = [record for record in records if record["entry"]["file"] not in line["files"]]
    return records
