"""Ownership of an output directory: it is created, marked, and locked by one run at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from shardpress.base.errors import (
    CannotCreate,
    NotPermitted,
    OtherVersion,
    ShardpressError,
    TryAgain,
    WriteFailed,
    printable,
)
from shardpress.base.formats import check_version
from shardpress.hdf5.files import writers
from shardpress.hdf5.sealed import FORMAT
from shardpress.output.disk import Disk, publish, sync_directory
from shardpress.output.folder import FOLDERS, MARKER, WORK, check_limits, is_ours
from shardpress.output.journal import Journal
from shardpress.result.finished import Result

log = logging.getLogger(__name__)

LOCK = f"{WORK}/lock"


@contextmanager
def locked(
    directory: Path,
    disk: Disk | None = None,
    restarts: bool = False,
    extends: bool = False,
    earlier: Result | None = None,
) -> Iterator[Journal]:
    """Create, mark and lock an output directory for as long as the context lasts.

    The kernel holds the lock and releases it when the process ends, however it ends, so no lock is ever stale.

    Raises
    ------
    CannotCreate
        If the directory cannot be created, or holds files that shardpress did not write, or the path is no directory.
    NotPermitted
        If the directory cannot be written.
    OtherVersion
        If another version of shardpress has written to the directory.
    DataError
        If the earlier result is damaged, unless the run `restarts`.
    TryAgain
        If another run holds the lock, or the file system does not support locks. The journal raises it as well, before
        it grows and before the commit, if the path no longer refers to the locked directory.
    """
    disk = disk or Disk()
    where = f"output={printable(directory)}"
    try:
        _make_directory(directory, disk)
        _mark(directory, disk)  # the first write, because it refuses directories that contain other files
        _check_folders(directory)
        for name in FOLDERS:
            _make_directory(directory / name, disk)
        descriptor = _lock(directory)
    except (PermissionError, NotPermitted) as error:
        raise NotPermitted(f"{where}: {error}. Choose an --output that you can write to.") from error
    except (OSError, CannotCreate, WriteFailed) as error:
        if isinstance(error, OSError):
            check_limits(error, directory)
        words = str(error).removesuffix(".")
        raise CannotCreate(f"{where}: {words}. Choose another --output.") from error
    check = partial(_check_lock, directory, descriptor)
    try:
        yield Journal(directory, disk, restarts, extends, check, earlier)
    except ShardpressError as error:
        # The error may come from a directory that replaced this one; if so, report the replacement.
        try:
            check()
        except TryAgain as loss:
            for note in getattr(error, "__notes__", ()):
                loss.add_note(note)
            raise loss from error
        raise
    finally:
        # The kernel releases the lock even if a failing disk makes `close` fail.
        with suppress(OSError):
            os.close(descriptor)


def check_directory(directory: Path) -> None:
    """Raise the errors that `locked` would raise, as far as they can be determined without changes.

    The lock is not taken, since this could make another run fail.
    """
    where = f"output={printable(directory)}"
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise CannotCreate(f"{where}: {printable(existing)} is not a directory. Choose another --output.")
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = "Choose an --output that you can write to."
        raise NotPermitted(f"{where}: {printable(existing)} is not writable. {advice}")
    if existing != directory:
        return
    try:
        _is_marked(directory)
        _check_folders(directory)
    except CannotCreate as error:
        raise CannotCreate(f"{where}: {error}. Choose another --output.") from error
    with suppress(OSError):
        status = os.stat(directory / LOCK)
        pid = writers().get((status.st_dev, status.st_ino))
        if pid is not None:
            advice = "Wait until it has ended, or choose another --output."
            raise TryAgain(f"{where}: another run (process {pid}) is using this directory. {advice}")


def _make_directory(directory: Path, disk: Disk) -> None:
    """Create a directory and its parents, each synced before the next is created."""
    if directory.is_dir():
        return
    _make_directory(directory.parent, disk)
    try:
        disk.make_directory(directory)
    except FileExistsError:
        if not directory.is_dir():
            raise
    try:
        sync_directory(disk, directory.parent)
    except PermissionError as error:
        log.debug(
            "output=%s: its parent directory is writable, but cannot be read and synced: %s",
            printable(directory),
            error,
        )


def _check_folders(directory: Path) -> None:
    """Raise `CannotCreate` if folders are links, because a run must not remove files elsewhere."""
    for name in FOLDERS:
        if (directory / name).is_symlink():
            raise CannotCreate(f"its {name} is a symbolic link, expected a directory")


def _mark(directory: Path, disk: Disk) -> None:
    """Mark a directory as an output of shardpress, or refuse one that holds other files."""
    if _is_marked(directory):
        return
    try:
        publish(disk, directory / MARKER, f"{FORMAT}\n".encode())
    except WriteFailed as error:
        # Another run may have written the marker meanwhile, and removed the temporary file of this one.
        if not isinstance(error.__cause__, FileNotFoundError) or not (directory / MARKER).exists():
            raise


def _is_marked(directory: Path) -> bool:
    """Return whether a directory has the marker; raise `CannotCreate` if it has none and holds user files."""
    path = directory / MARKER
    names = os.listdir(directory)  # list first, because another run may be creating the marker and other files
    if path.exists():
        version = re.search(r"shardpress-output/[0-9]+", path.read_text(errors="replace"))
        if version is None:
            log.debug("output=%s: its marker is damaged", printable(directory))
            return True
        try:
            check_version(FORMAT, version[0], "Choose another --output, or delete the directory.")
        except OtherVersion as error:
            raise OtherVersion(f"file={printable(path)}: {error}") from error
        return True
    if not all(is_ours(name) for name in names):
        raise CannotCreate("contains files that shardpress did not write, expected a new or empty directory")
    return False


def _lock(directory: Path) -> int:
    """Return the descriptor that holds the lock. The text in the file only informs users."""
    # O_CLOEXEC: a child process that outlives the run must not keep the lock.
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        _flock(directory, descriptor)
        _check_lock(directory, descriptor)  # another run may have replaced the file before it was locked
        owner = f"pid {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        with suppress(OSError):  # a full disk must not prevent a run
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, owner.encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _flock(directory: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = printable(os.read(descriptor, 1000).decode(errors="replace").strip())
        raise TryAgain(
            f"output={printable(directory)}: another run is using this directory ({holder}). Run the same command "
            "again when it has ended, or choose another --output."
        ) from error
    except OSError as error:
        raise TryAgain(
            f"output={printable(directory)}: cannot be locked: {error.strerror}. Choose an --output on a file system "
            "that supports locks."
        ) from error


def _check_lock(directory: Path, descriptor: int) -> None:
    """Raise `TryAgain` unless the lock in `directory` is the file that this run has locked."""
    own = os.fstat(descriptor)
    try:
        now = os.stat(directory / LOCK, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        now = None
    if now is None or (now.st_dev, now.st_ino) != (own.st_dev, own.st_ino):
        state = "missing" if now is None else "a different file"
        raise TryAgain(
            f"output={printable(directory)}: its {LOCK} is {state}, expected the file that this run locked. During the "
            "run, the directory was moved or replaced, or the lock was removed. Nothing more is written. If the "
            "directory was moved, move it back. Then run the same command again."
        )
