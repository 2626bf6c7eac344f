"""All changes to the file system, and the order that makes them durable.

A file is written under a temporary name in the same directory, synced and then renamed; the directory is synced last. A
file is therefore either absent or complete under its own name, even after a power cut. Tests pass a `Disk` that fails,
or one that loses what was not synced. Two files that no result depends on are written without a `Disk`: the text in the
lock file, and the log.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardpress.base.errors import NotPermitted, ShardpressError, SystemLimit, WriteFailed, printable
from shardpress.base.processcache import ProcessCache

log = logging.getLogger(__name__)

TEMPORARY = ".writing"
PAGE = 4096
"""Alignment in bytes, in memory and in files, of direct I/O."""
_MIN_DIRECT_BYTES = 2**17  # for smaller writes, the copy into the page cache costs little
# Errors of file systems without reservation, sync of directories or direct I/O.
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM)


class Disk:
    """System calls that change the file system, one in each method. All of them raise `OSError`."""

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)

    def open_to_append(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)

    def reserve(self, descriptor: int, n_bytes: int) -> None:
        os.posix_fallocate(descriptor, 0, n_bytes)

    def bypass_cache(self, descriptor: int, bypasses: bool) -> None:
        # F_SETFL sets all changeable flags at once; `create` has set none.
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_DIRECT if bypasses else 0)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at least a part of the data, and return the number of bytes that were written."""
        return os.write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        os.unlink(path)

    def make_directory(self, path: Path) -> None:
        os.mkdir(path)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        return shutil.disk_usage(path).free


class AnonymousDisk(Disk):
    """Disk of `folder` whose files have no names, to measure writing; they are in memory if that is not possible."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def create(self, path: Path) -> int:
        if self._folder is not None:
            with suppress(OSError):  # not every file system supports it
                return os.open(self._folder, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        return os.memfd_create("shardpress", os.MFD_CLOEXEC)

    # There are no names that these calls could change or sync.
    def replace(self, source: Path, target: Path) -> None: ...

    def remove(self, path: Path) -> None: ...

    def make_directory(self, path: Path) -> None: ...

    def sync_directory(self, path: Path) -> None: ...


@dataclass(frozen=True)
class Content:
    """Content of a file that may be larger than memory. A piece is used before the next one is read."""

    n_bytes: int  # size of the file
    pieces: Iterable[bytes | memoryview]

    def __len__(self) -> int:
        return self.n_bytes


def publish(disk: Disk, path: Path, data: bytes | memoryview | Content, name_is_synced: bool = True) -> None:
    """Write a complete file, or replace an existing one atomically.

    If `name_is_synced` is False, the caller must sync the directory before it relies on the name.

    Raises
    ------
    WriteFailed, SystemLimit, NotPermitted
        If the file cannot be written. Then `path` is unchanged or holds the complete new file.
    """
    with changing(path, f"writing {len(data)} bytes"):
        with _renamed(disk, path) as temporary:
            _fill(disk, temporary, data)
        if name_is_synced:
            sync_directory(disk, path.parent)


def publish_from(disk: Disk, path: Path, write: Callable[[Path], object]) -> None:
    """Write a complete file with a library that needs a path, or replace an existing file atomically.

    `OSError` and `RuntimeError` of `write` mean that writing has failed; other errors are raised unchanged.
    """
    try:
        with changing(path, "writing it"):
            with _renamed(disk, path) as temporary:
                descriptor = disk.create(temporary)
                try:
                    write(temporary)
                    disk.sync(descriptor)
                finally:
                    disk.close(descriptor)
            sync_directory(disk, path.parent)
    except RuntimeError as error:  # from h5py, if closing the file fails
        raise WriteFailed(
            f"file={printable(path)}: {error}. Check the disk, then run the same command again."
        ) from error


@contextmanager
def _renamed(disk: Disk, path: Path) -> Iterator[Path]:
    """Provide a temporary name, and rename the file of this name to `path` unless the context raises an error."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        yield temporary
        disk.replace(temporary, path)
    except BaseException:  # also after a signal: no other process knows the name
        with suppress(OSError):
            disk.remove(temporary)
        raise


def remove(disk: Disk, path: Path) -> None:
    """Remove a file if it exists. The function raises the same errors as `publish`."""
    with changing(path, "removing it"), suppress(FileNotFoundError):
        disk.remove(path)


_warned = ProcessCache[int, bool]()  # keys are the device numbers of file systems whose warning was logged


def sync_directory(disk: Disk, directory: Path) -> None:
    """Flush the names in a directory to the disk; warn once if the file system cannot do that."""
    if _is_supported(disk.sync_directory, directory):
        return
    file_system = os.stat(directory).st_dev
    if _warned.put_if_new(file_system, True):  # one warning for all parts
        log.warning(
            "output=%s: this file system cannot sync directories, so durability after a power cut is not guaranteed",
            printable(directory),
        )


def _is_supported(call: Callable[..., object], *arguments: object) -> bool:
    """Make a call, and return whether the file system supports it."""
    try:
        call(*arguments)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


@contextmanager
def changing(path: Path, doing: str) -> Iterator[None]:
    """Raise the error of `write_error` for an `OSError` in the context."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path, doing) from error


def write_error(error: OSError, path: Path, doing: str) -> ShardpressError:
    """Return the error for a failed change, with the operation and advice for the user."""
    where = f"file={printable(path)}: {error.strerror} while {doing}"
    retry = "then run the same command again; finished results are kept."
    if isinstance(error, PermissionError):
        return NotPermitted(f"{where}. Make the directory writable for this user, {retry}")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return SystemLimit(f"{where}. Raise the limit (ulimit -n 4096), {retry}")
    advice = {
        errno.ENOSPC: _advice_when_full(path),
        errno.EDQUOT: "Your disk quota is used up. Free some space",
        errno.EFBIG: "The file-size limit is too low. Raise it (ulimit -f unlimited)",
        errno.EROFS: "The file system is read-only. Make it writable",
    }
    first_step = advice.get(error.errno or 0, "Check the disk")
    return WriteFailed(f"{where}. {first_step}, {retry}")


def _free_inodes(path: Path) -> int | None:
    """Return how many files can still be created, or None if the file system has no such limit."""
    status = os.statvfs(path)
    # Btrfs and others report no total, since they create inodes on demand.
    return status.f_favail if status.f_files > 0 else None


def _advice_when_full(path: Path) -> str:
    try:
        n_files = os.statvfs(path.parent).f_files
        if _free_inodes(path.parent) == 0:
            return f"There are no free inodes ({n_files} files at most). Remove files that are not needed"
        return f"{shutil.disk_usage(path.parent).free} bytes are free. Free some space"
    except OSError:
        return "The number of free bytes is unknown. Free some space"


def _fill(disk: Disk, path: Path, data: bytes | memoryview | Content) -> None:
    pieces = data.pieces if isinstance(data, Content) else [data]
    descriptor = disk.create(path)
    try:
        _is_supported(disk.reserve, descriptor, len(data))  # if it is unsupported, a write reports a full disk
        for piece in pieces:
            rest = memoryview(piece)
            rest = rest[_write_directly(disk, descriptor, rest) :]
            write_all(disk, descriptor, rest)
        # Never sync again after a failure: the kernel may have dropped the pages, and a second sync would succeed.
        disk.sync(descriptor)
    finally:
        disk.close(descriptor)


def write_all(disk: Disk, descriptor: int, rest: memoryview) -> None:
    while rest:
        rest = rest[_write_some(disk, descriptor, rest) :]


def _write_some(disk: Disk, descriptor: int, data: memoryview) -> int:
    n_written = disk.write(descriptor, data)
    if not n_written:
        raise OSError(errno.EIO, "no byte was written")
    return n_written


def _write_directly(disk: Disk, descriptor: int, data: memoryview) -> int:
    """Write whole pages by direct I/O as far as the file system supports it, and return the number of bytes.

    For large files the copy into the page cache, and writing from there, take several times as much processor time.
    """
    n_bytes = len(data) // PAGE * PAGE
    if n_bytes < _MIN_DIRECT_BYTES:
        return 0
    is_aligned = np.frombuffer(data, dtype=np.uint8).ctypes.data % PAGE == 0
    if not is_aligned or not _is_supported(disk.bypass_cache, descriptor, True):
        return 0
    n_written = 0
    try:
        while n_written < n_bytes and n_written % PAGE == 0:
            n_written += _write_some(disk, descriptor, data[n_written:n_bytes])
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the file system requires another alignment
            raise
    disk.bypass_cache(descriptor, False)
    return n_written
