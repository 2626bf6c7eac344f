"""Whose an output directory is: made, marked as ours, and held by one run at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from pipeline.errors import CannotCreate, NewerFormat, NotPermitted, ShardpressError, TryAgain, WriteFailed, shown
from pipeline.formats import seal
from pipeline.output.disk import Disk, GuardedDisk, publish, sync_directory
from pipeline.output.ledger import Ledger
from pipeline.output.records import FOLDERS, OUTPUT, PUBLISHED, check_limits, is_left, unsealed

__all__ = ["LOCK", "locked", "objection"]

log = logging.getLogger(__name__)

LOCK = ".lock"
_MARKER = ".shardpress"


@contextmanager
def locked(directory: Path, disk: Disk | None = None) -> Iterator[Ledger]:
    """Make `directory` ours for as long as the context lasts, or refuse before anything is read.

    The kernel holds the lock, and frees it when the process ends, however it ends: no lock is ever stale.

    Parameters
    ----------
    directory : Path
        Made with its parents when it is not there.

    Raises
    ------
    CannotCreate
        When it cannot be made, is no directory, or holds files that are not ours.
    NotPermitted
        When nothing can be written there.
    NewerFormat
        When a later version of shardpress has written there.
    TryAgain
        When another run holds it, or its file system knows no locks. Also within the context, before anything is
        changed, when the path no longer leads to the directory that was locked.
    SystemLimit
        When too many files are open.
    """
    disk = disk or Disk()
    where = f"output={shown(directory)}"
    try:
        _make(directory, disk)
        _mark(directory, disk)  # first, so that nothing is put where others' files lie
        _make_folders(directory, disk)
        descriptor = _lock(directory)
    except (PermissionError, NotPermitted) as error:
        raise NotPermitted(f"{where}: {error}. Choose an --output that you may write to.") from error
    except (OSError, CannotCreate, WriteFailed) as error:
        if isinstance(error, OSError):
            check_limits(error, directory)
        words = str(error).removesuffix(".")  # a sentence, or what the system calls it
        raise CannotCreate(f"{where}: {words}. Choose another --output.") from error
    check = partial(_check_held, directory, descriptor)
    try:
        yield Ledger(directory, GuardedDisk(disk, check))
    except ShardpressError as error:
        # What was read from another directory that lies there now looks like damage.
        with _notes_of(error):
            check()
        raise
    finally:
        # The lock goes with the descriptor, even when a failing disk says that closing it failed.
        with suppress(OSError):
            os.close(descriptor)


def objection(directory: Path) -> ShardpressError | None:
    """What would keep a run out of a directory, as far as a look can tell that changes nothing.

    Whether another run is at work there is not among it: to try the lock could keep that one out for a moment.
    """
    where = f"output={shown(directory)}"
    there = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        return CannotCreate(f"{where}: {shown(there)} is no directory. Choose another --output.")
    if not os.access(there, os.W_OK | os.X_OK):
        return NotPermitted(f"{where}: {shown(there)} may not be written. Choose an --output that you may write to.")
    if there != directory:
        return None
    try:
        _check_ours(directory)
    except CannotCreate as error:
        return CannotCreate(f"{where}: {error}. Choose another --output.")
    except NewerFormat as error:
        return error
    return None


def _make(directory: Path, disk: Disk) -> None:
    """A directory with its parents, each on the disk before the next."""
    if directory.is_dir():
        return
    _make(directory.parent, disk)
    try:
        disk.make_directory(directory)
    except FileExistsError:
        if not directory.is_dir():
            raise
    try:
        sync_directory(disk, directory.parent)
    except PermissionError as error:
        log.debug("output=%s: its parent may be written, but not read and synced: %s", shown(directory), error)


def _make_folders(directory: Path, disk: Disk) -> None:
    for name in (*FOLDERS, PUBLISHED):
        # What a run removes lies inside: a link would lead it to files of others.
        if (directory / name).is_symlink():
            raise CannotCreate(f"its {name} is a link, expected a directory")
    for name in FOLDERS:
        _make(directory / name, disk)


def _mark(directory: Path, disk: Disk) -> None:
    """Refuse what is not ours, and leave the sign that it is."""
    path = directory / _MARKER
    if not _check_ours(directory):  # empty, or a run died here before it had left its sign
        try:
            publish(disk, path, seal(OUTPUT, {}))
        except WriteFailed as error:
            # Another run may have left the sign by now, and swept this one away half-written.
            if not isinstance(error.__cause__, FileNotFoundError) or not path.exists():
                raise


def _check_ours(directory: Path) -> bool:
    """Whether the sign that it is ours is there; raises `CannotCreate` where it is not, and others' files are."""
    path = directory / _MARKER
    names = os.listdir(directory)  # first: another run may be leaving the sign just now, and its folders after it
    if path.exists():  # a damaged one, too, says whose directory it is
        try:
            unsealed(path)
        except ValueError:
            log.debug("output=%s: its marker is damaged", shown(directory))
        return True
    if not all(is_left(name) for name in names):
        raise CannotCreate("holds files that are not of shardpress, expected a new or empty directory")
    return False


def _lock(directory: Path) -> int:
    """Hold the run's lock. What the file says is for people; only the kernel's lock decides."""
    # No child inherits it: a child that outlives the run would keep the lock.
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            # It is emptied below.
            raise CannotCreate(f"its {LOCK} is a second name of another file, expected a file of its own")
        _take(directory, descriptor)
        _check_held(directory, descriptor)  # another run may have replaced the file before it was locked
        who = f"pid {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        with suppress(OSError):  # a full disk is no reason not to look what is there
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, who.encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _take(directory: Path, descriptor: int) -> None:
    """Lock an open file, or raise `TryAgain`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = shown(os.read(descriptor, 1000).decode(errors="replace").strip())
        raise TryAgain(
            f"output={shown(directory)}: another run is at work there ({holder}). Type the same command again when it "
            "has ended, or choose another --output."
        ) from error
    except OSError as error:
        raise TryAgain(
            f"output={shown(directory)}: cannot be locked: {error.strerror}. Choose an --output on a file system that "
            "knows locks."
        ) from error


def _check_held(directory: Path, descriptor: int) -> None:
    """Raise `TryAgain` unless the lock in `directory` is the file that this run has locked."""
    held = os.fstat(descriptor)
    try:
        found = os.stat(directory / LOCK, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or (found.st_dev, found.st_ino) != (held.st_dev, held.st_ino):
        what = "not there any more" if found is None else "another file"
        raise TryAgain(
            f"output={shown(directory)}: its {LOCK} is {what}, expected the file that this run has locked: the "
            "directory was moved away or replaced, or the lock was removed, while the run was at work. Nothing more is "
            "written. Keep the directory in its place, and type the same command again."
        )


@contextmanager
def _notes_of(error: ShardpressError) -> Iterator[None]:
    """Give the notes of `error` to the error that takes its place."""
    try:
        yield
    except TryAgain as lost:
        for note in getattr(error, "__notes__", ()):
            lost.add_note(note)
        raise lost from error
