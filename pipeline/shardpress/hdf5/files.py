"""Open and read input files, and explain failed system calls.

All system calls that read input go through `FILES`, so that tests can make each call fail. A storage failure is never
reported as bad data, because a run may skip bad data.
"""

import errno
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Self, TypeVar

from shardpress.base.errors import DataError, NoInput, NotPermitted, ReadFailed, ShardpressError, SystemLimit, printable

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = 4  # spread over 1.4 seconds, because some failures are temporary
_MOST_LOCKS = 2**18  # characters to read from /proc/locks
_PAUSE = 0.2  # seconds before the second try; the pause doubles after each try
_NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL)
_LOCK = re.compile(r"^\d+: (?:FLOCK|POSIX|OFDLCK) +\S+ +WRITE +(-?\d+) (\w+):(\w+):(\d+) ", re.MULTILINE)


# With these flags, opening a file never blocks. A FIFO would otherwise wait for a writer.
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
FILES = SimpleNamespace(
    stat=os.stat,
    open=lambda path: os.open(path, _FLAGS),
    fstat=os.fstat,
    preadv=lambda descriptor, buffer, offset: os.preadv(descriptor, [buffer], offset),
    close=os.close,
    sleep=time.sleep,
)


@dataclass(frozen=True)
class Identity:
    """Facts that identify a file and reveal whether it was modified, from `os.stat`."""

    device: int = field(compare=False)  # hosts number shared file systems differently
    inode: int
    size: int
    mtime_ns: int
    # Not compared, because chmod, hard links and backups change it. If it differs, a run compares digests of the rows.
    ctime_ns: int = field(default=0, compare=False)

    @classmethod
    def of(cls, descriptor: int) -> Self:
        return cls.from_status(FILES.fstat(descriptor))

    @classmethod
    def from_status(cls, status: os.stat_result) -> Self:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def opened(path: str, expected: Identity | None = None) -> Iterator[tuple[int, Identity]]:
    """Open a regular file, and yield the descriptor and the identity.

    Raises
    ------
    DataError
        If the identity is not `expected`, or changes while the file is open.
    NoInput
        If the path is not a regular file.
    OSError
        If a system call fails, or if the file's ctime changes during the read. `with_retries` then repeats the read.
    """
    if expected is None:  # check before opening the file, because opening a device can have side effects
        _check_regular(path, FILES.stat(path))
    descriptor = FILES.open(path)
    try:
        status = FILES.fstat(descriptor)
        _check_regular(path, status)
        identity = Identity.from_status(status)
        _check_same(path, identity, expected or identity)
        try:
            yield descriptor, identity
        except (OSError, DataError):
            _check_same(path, Identity.of(descriptor), identity)  # a modified file would explain the error
            raise
        current = Identity.of(descriptor)
        _check_same(path, current, identity)
        # Removing the last hard link also changes the ctime, but not the contents of the open file.
        if current.ctime_ns != identity.ctime_ns and FILES.fstat(descriptor).st_nlink > 0:
            raise OSError(errno.EAGAIN, "the file or its attributes changed while it was read")
    finally:
        FILES.close(descriptor)


def writers() -> dict[tuple[int, int], int]:
    """Map the device and inode of each file that is locked for writing, as HDF5 does, to the PID with the lock."""
    # Trying to lock a file instead could block a writer briefly, or wait for a file server.
    try:
        with open("/proc/locks") as file:
            lines = file.read(_MOST_LOCKS)
    except (OSError, ValueError):
        return {}
    pids = {}
    for pid, major, minor, inode in _LOCK.findall(lines):
        device = os.makedev(int(major, 16), int(minor, 16))
        pids[device, int(inode)] = int(pid)
    return pids


def read_into(descriptor: int, buffer: memoryview, offset: int) -> None:
    """Fill a buffer from an offset, with repeated reads if needed. Raise `OSError` if the file ends too early."""
    while buffer:
        n_read = FILES.preadv(descriptor, buffer, offset)
        if not n_read:
            raise OSError(errno.EIO, f"the file ends at byte {offset}")
        buffer = buffer[n_read:]
        offset += n_read


def read_at(descriptor: int, offset: int, n_bytes: int) -> bytes:
    """Return `n_bytes` bytes from an offset. Raise `OSError` if the file ends too early."""
    buffer = bytearray(n_bytes)
    read_into(descriptor, memoryview(buffer), offset)
    return bytes(buffer)


def with_retries(read: Callable[[], T], where: str) -> T:
    """Call `read`, which opens a file, and repeat the call if the storage fails. Messages begin with `where`.

    Raises
    ------
    ReadFailed
        If every try fails.
    SystemLimit, NotPermitted
        If a system limit or the file permissions prevent the read. These errors are not retried.
    """
    for i in range(_TRIES):
        try:
            return read()
        except OSError as error:
            failure = error
            meaning = translated_error(error, where)
            if isinstance(meaning, (SystemLimit, NotPermitted)):
                raise meaning from error
        if i + 1 < _TRIES:
            log.warning("%s: %s; trying again", where, failure.strerror)
            FILES.sleep(_PAUSE * 2**i)
    raise ReadFailed(
        f"{where}: {failure.strerror}, {_TRIES} times in a row. Check the storage, then run the same command again."
    ) from failure


def translated_error(error: OSError, where: str) -> ShardpressError:
    """Return the `ShardpressError` that explains a failed system call and says what to do."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return SystemLimit(
            f"{where}: {error.strerror}. Raise the limit (ulimit -n 4096), then run the same command again."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return NotPermitted(f"{where}: no permission to read the file. As its owner, run chmod u+r on it.")
    if error.errno in _NO_SUCH_FILE:
        return NoInput(f"{where}: {error.strerror}, expected an HDF5 file. Check the path.")
    return ReadFailed(f"{where}: {error.strerror}. Check the storage, then run the same command again.")


def _check_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NoInput(f"file={printable(path)}: not a regular file, expected an HDF5 file. Check the path.")


def _check_same(path: str, current: Identity, expected: Identity) -> None:
    if current != expected:
        change = f"{current.size} bytes now"
        if current.inode != expected.inode:
            change = "another file now"
        raise DataError(
            f"file={printable(path)}: changed during the run ({change}, {expected.size} bytes before), expected input "
            "that does not change. Run the same command again when no process writes to the file."
        )
