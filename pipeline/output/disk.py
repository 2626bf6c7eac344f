"""Every change that a run makes to the file system goes through one small object, and is durable before it counts.

A file is written whole under a temporary name beside its target, synced, and only then given its name; the directory is
synced after it. So under its own name a file is either not there or complete, whenever the power goes. Tests hand in a
`Disk` that fails, and one that forgets what was not synced. Two files that no result depends on are written past it:
the lock's words and the log.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.errors import NotPermitted, ShardpressError, SystemLimit, TryAgain, WriteFailed, shown
from pipeline.processcache import ProcessCache

__all__ = [
    "PAGE",
    "TEMPORARY",
    "UNSUPPORTED",
    "Disk",
    "GuardedDisk",
    "Pieces",
    "free_inodes",
    "publish",
    "publish_copy",
    "publish_link",
    "remove",
    "sync_directory",
    "temporary_name",
    "write_error",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

TEMPORARY = ".writing"
PAGE = 4096  # bytes: what begins in memory at a multiple of it can be written past the page cache
_WORTH_BYPASSING = 2**17  # bytes: of less, the copy costs little
# What file systems answer that know no reservation, no syncing of directories, no links, or no way past the cache.
UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM)


class Disk:
    """The system calls that change something, one method each; all of them raise `OSError`."""

    def create(self, path: Path) -> int:
        """Open a file that is not there yet, for writing; nothing that lies in its place is followed or emptied."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def reserve(self, descriptor: int, n_bytes: int) -> None:
        """Have the space before the first byte."""
        os.posix_fallocate(descriptor, 0, n_bytes)

    def bypass_cache(self, descriptor: int, bypasses: bool) -> None:
        """Have what is written from now on go past the page cache, or through it again."""
        # Of the flags that can be changed later, `create` sets none.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT if bypasses else 0)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of it; how many bytes."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Bring a file's content to the disk."""
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        """Let go of a file."""
        os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file, over whatever has the name."""
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        """Take a file's name away."""
        os.unlink(path)

    def link(self, source: Path, path: Path) -> None:
        """Give a regular file a second name; a symbolic link is not followed."""
        os.link(source, path, follow_symlinks=False)

    def symlink(self, target: str, path: Path) -> None:
        """Make a symbolic link; nothing that has the name is replaced."""
        os.symlink(target, path)

    def make_directory(self, path: Path) -> None:
        """Make one directory."""
        os.mkdir(path)

    def remove_directory(self, path: Path) -> None:
        """Remove one empty directory."""
        os.rmdir(path)

    def sync_directory(self, path: Path) -> None:
        """Bring a directory's names to the disk."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        """What may still be written there."""
        return shutil.disk_usage(path).free

    def free_inodes(self, path: Path) -> int | None:
        """Return how many files may still be created; None where the file system has no such limit."""
        return free_inodes(path)

    def check(self) -> None:
        """Raise `TryAgain` if nothing may be changed any more; a plain disk always allows changes."""


class GuardedDisk(Disk):
    """A disk that calls `check` before each change of a name.

    Parameters
    ----------
    disk : Disk
        The disk that makes the changes.
    check : callable
        Raises `TryAgain` when the path no longer leads to the directory in which the run began.
    """

    def __init__(self, disk: Disk, check: Callable[[], None]) -> None:
        self._disk = disk
        self._check = check

    def check(self) -> None:
        """Raise `TryAgain` if nothing may be changed any more."""
        self._disk.check()
        self._check()

    def create(self, path: Path) -> int:
        """Check, then open a new file."""
        return self._guarded(self._disk.create, path)

    def reserve(self, descriptor: int, n_bytes: int) -> None:
        """Reserve space for an open file."""
        self._disk.reserve(descriptor, n_bytes)

    def bypass_cache(self, descriptor: int, bypasses: bool) -> None:
        """Write past the page cache, or through it again."""
        self._disk.bypass_cache(descriptor, bypasses)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write to an open file."""
        return self._disk.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        """Sync an open file."""
        self._disk.sync(descriptor)

    def close(self, descriptor: int) -> None:
        """Close a file."""
        self._disk.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Check, then rename."""
        self._guarded(self._disk.replace, source, target)

    def remove(self, path: Path) -> None:
        """Check, then remove a name."""
        self._guarded(self._disk.remove, path)

    def link(self, source: Path, path: Path) -> None:
        """Check, then make a hard link."""
        self._guarded(self._disk.link, source, path)

    def symlink(self, target: str, path: Path) -> None:
        """Check, then make a symbolic link."""
        self._guarded(self._disk.symlink, target, path)

    def make_directory(self, path: Path) -> None:
        """Check, then make a directory."""
        self._guarded(self._disk.make_directory, path)

    def remove_directory(self, path: Path) -> None:
        """Check, then remove a directory."""
        self._guarded(self._disk.remove_directory, path)

    def sync_directory(self, path: Path) -> None:
        """Sync a directory."""
        self._guarded(self._disk.sync_directory, path)

    def free_bytes(self, path: Path) -> int:
        """Return how many bytes can still be written."""
        return self._disk.free_bytes(path)

    def free_inodes(self, path: Path) -> int | None:
        """Return how many files can still be created; None where the file system has no such limit."""
        return self._disk.free_inodes(path)

    def _guarded(self, call: Callable[..., T], *arguments: object) -> T:
        self.check()
        try:
            return call(*arguments)
        except FileNotFoundError:
            self.check()  # the directory may have been moved since the first check
            raise


@dataclass(frozen=True)
class Pieces:
    """The content of a file that may be larger than memory: its size, and its pieces in their order."""

    n_bytes: int
    pieces: Iterable[bytes | memoryview]

    def __len__(self) -> int:
        return self.n_bytes


def publish(disk: Disk, path: Path, data: bytes | memoryview | Pieces, name_is_synced: bool = True) -> None:
    """Put a whole file at `path`, in place of whatever has that name.

    Parameters
    ----------
    data : bytes, memoryview or Pieces
        An error of ours that a piece raises goes through.
    name_is_synced : bool
        Otherwise only the content is on the disk for good, and whoever counts on the name syncs the directory first.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted
        When it cannot be written; nothing stands at `path` then that was not there before, or the whole new file.
    """
    temporary = temporary_name(path)
    try:
        try:
            _fill(disk, temporary, data)
            disk.replace(temporary, path)
        except BaseException:  # of a signal, too: nobody else knows its name until the next run sweeps
            with suppress(OSError, TryAgain):
                disk.remove(temporary)
            raise
        if name_is_synced:
            sync_directory(disk, path.parent)
    except OSError as error:
        raise write_error(error, path, f"writing {len(data)} bytes") from error


def publish_link(disk: Disk, target: str, path: Path) -> None:
    """Make `path` a symbolic link to `target`, in place of whatever has that name; its name is not synced.

    Raises
    ------
    OSError
    """
    temporary = temporary_name(path)
    try:
        disk.symlink(target, temporary)
        disk.replace(temporary, path)
    except BaseException:
        with suppress(OSError, TryAgain):
            disk.remove(temporary)
        raise


def publish_copy(disk: Disk, source: Path, path: Path) -> None:
    """Give a finished file a second name that is not taken yet; without hard links, copy it. The name is not synced.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted
    """
    try:
        disk.link(source, path)
    except OSError as error:
        if error.errno not in (*UNSUPPORTED, errno.EMLINK, errno.EXDEV):
            raise write_error(error, path, f"linking {source.name} to it") from error
        publish(disk, path, _content(source), name_is_synced=False)


def _content(path: Path) -> Pieces:
    def pieces() -> Iterator[bytes]:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                yield piece

    return Pieces(path.stat().st_size, pieces())


def temporary_name(path: Path) -> Path:
    """Return a unique name beside `path`, for a file that will be renamed to it."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")


def remove(disk: Disk, path: Path) -> None:
    """Take a file away; what is not there is no error. Raises like `publish`."""
    try:
        disk.remove(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise write_error(error, path, "removing it") from error


_warned = ProcessCache[int, bool]()  # by file system: whether its warning was logged


def sync_directory(disk: Disk, directory: Path) -> None:
    """Bring a directory's names to the disk, or raise `OSError`; where the file system cannot do that, say so once."""
    if _is_supported(disk.sync_directory, directory):
        return
    file_system = os.stat(directory).st_dev
    if _warned.put_if_new(file_system, True):  # once, not for each part
        log.warning(
            "output=%s: this file system cannot sync a directory: durability after a power cut is not guaranteed",
            shown(directory),
        )


def _is_supported(call: Callable[..., object], *arguments: object) -> bool:
    """Whether the file system knows a call, which is done then."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True


def write_error(error: OSError, path: Path, doing: str) -> ShardpressError:
    """The error of ours that says what it means that `doing` something failed, and what to do."""
    where = f"file={shown(path)}: {error.strerror} while {doing}"
    again = "then type the same command again: what was finished stays."
    if isinstance(error, PermissionError):
        return NotPermitted(f"{where}. Make the directory writable for you, {again}")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return SystemLimit(f"{where}. Raise the limit (ulimit -n 4096), {again}")
    advice = {
        errno.ENOSPC: _full(path),
        errno.EDQUOT: "Your disk quota is used up. Free some space",
        errno.EFBIG: "The file-size limit is too low. Raise it (ulimit -f unlimited)",
        errno.EROFS: "The file system is read-only. Make it writable",
    }.get(error.errno or 0, "Check the disk")
    return WriteFailed(f"{where}. {advice}, {again}")


def free_inodes(path: Path) -> int | None:
    """Return how many files may still be created at a path; None where the file system has no such limit.

    Raises
    ------
    OSError
        If the path cannot be examined.
    """
    status = os.statvfs(path)
    # Btrfs and others report no total: they create inodes as they need them.
    return status.f_favail if status.f_files > 0 else None


def _full(path: Path) -> str:
    """Return what is used up on the file system of `path`, inodes or bytes, and what to do about it."""
    try:
        n_files = os.statvfs(path.parent).f_files
        if free_inodes(path.parent) == 0:
            return f"There are no free inodes ({n_files} files at most). Remove files that are not needed"
        return f"{shutil.disk_usage(path.parent).free} bytes are free there. Free some space"
    except OSError:
        return "It is unknown how many bytes are free there. Free some space"


def _fill(disk: Disk, path: Path, data: bytes | memoryview | Pieces) -> None:
    descriptor = disk.create(path)
    try:
        _is_supported(disk.reserve, descriptor, len(data))  # else, and of nothing at all, the writes will tell
        for piece in data.pieces if isinstance(data, Pieces) else [data]:
            rest = memoryview(piece)
            rest = rest[_written_past_cache(disk, descriptor, rest) :]
            while rest:
                rest = rest[_written(disk, descriptor, rest) :]
        # Once: after a failed fsync the kernel may have dropped the pages, and a second one would say all is well.
        disk.sync(descriptor)
    except BaseException:
        with suppress(OSError):
            disk.close(descriptor)
        raise
    disk.close(descriptor)


def _written(disk: Disk, descriptor: int, data: memoryview) -> int:
    """How many bytes were taken, one at least."""
    while True:
        try:
            n_written = disk.write(descriptor, data)
        except InterruptedError:
            continue
        if not n_written:
            raise OSError(errno.EIO, "nothing was taken")
        return n_written


def _written_past_cache(disk: Disk, descriptor: int, data: memoryview) -> int:
    """Write whole pages straight to the disk, as many as the file system takes that way; how many bytes.

    A large file's copy into the page cache, and the way from there to the disk, cost the processor several times as
    much as this does.
    """
    n_bytes = len(data) // PAGE * PAGE
    if n_bytes < _WORTH_BYPASSING or np.frombuffer(data, dtype=np.uint8).ctypes.data % PAGE:
        return 0
    if not _is_supported(disk.bypass_cache, descriptor, True):
        return 0
    n_written = 0
    try:
        while n_written < n_bytes and not n_written % PAGE:
            n_written += _written(disk, descriptor, data[n_written:n_bytes])
    except OSError as error:
        if error.errno != errno.EINVAL:  # it wants other multiples
            raise
    disk.bypass_cache(descriptor, False)
    return n_written
