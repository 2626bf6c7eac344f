"""Locks on Theano's compile cache that use flock; they replace the module ``theano.gof.compilelock``.

Theano's own lock is a directory with a file. If that file cannot be written, its owner waits for itself forever. If the
owner was killed on another machine, other processes wait until a timeout. A flock ends with its process. The name of
the owner in the file is for error messages only.

Theano holds its lock while the compiler runs. Here, processes that compile different modules do not wait for each
other: `compiling` locks the module instead, and `released` releases the cache while the compiler runs.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

log = logging.getLogger(__name__)

_NAME = ".lock"
_SECONDS_BETWEEN_TRIES = 0.1
_SECONDS_BEFORE_LOGGING = 5.0


class CompileLockHeld(RuntimeError):
    """Another process held the lock for longer than Theano's setting ``compile.timeout``."""


class _Lock:
    """A reentrant lock: only the outermost of nested calls takes it."""

    def __init__(self, name: str = _NAME) -> None:
        self.n_lock = 0
        self.is_releasable = False  # whether another lock protects the module that this process compiles
        self._name = name
        self._descriptor = -1

    def __call__(self, lock_dir: object = None, **options: object) -> None:
        """Take the lock. The arguments are Theano's, and are ignored."""
        if self.n_lock == 0:
            self._descriptor = _take_lock(self._name)
        self.n_lock += 1

    def release(self) -> None:
        """Undo one call. The file is not removed, because two processes could then lock different files."""
        if self.n_lock == 0:
            return  # `released` could not take it again
        self.n_lock -= 1
        if self.n_lock == 0:
            os.close(self._descriptor)  # this unlocks


get_lock = _Lock()


def release_lock() -> None:
    """Undo one `get_lock`."""
    get_lock.release()


@contextmanager
def lock_ctx(lock_dir: object = None, keep_lock: bool = False, **options: object) -> Iterator[None]:
    """Hold the lock; keep it afterwards if `keep_lock` is set and there was no error."""
    get_lock()
    try:
        yield
    except BaseException:
        release_lock()
        raise
    if not keep_lock:
        release_lock()


@contextmanager
def compiling(code_hash: str) -> Iterator[None]:
    """Hold a lock on all modules whose hashes end like this one; `released` then releases the lock on the cache."""
    lock = _Lock(f"{_NAME}-{code_hash[-2:]}")
    # If this process holds the lock on the cache, the holder of the other lock may be waiting for it.
    is_first = get_lock.n_lock == 0
    if is_first:
        lock()
    get_lock.is_releasable = is_first
    try:
        yield
    finally:
        get_lock.is_releasable = False
        lock.release()


@contextmanager
def released() -> Iterator[None]:
    """Release the lock on the cache and take it again, if `compiling` holds another lock."""
    n_lock = get_lock.n_lock
    if not get_lock.is_releasable or n_lock == 0:
        yield
        return
    get_lock.n_lock = 1
    get_lock.release()
    try:
        yield
    finally:
        get_lock()
        get_lock.n_lock = n_lock


def check_lockable(directory: str) -> None:
    """Raise `OSError` if the file system of a directory does not support locks, or has no space for the lock's file."""
    descriptor = _open_file(directory, _NAME)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _open_file(directory: str, name: str) -> int:
    # A link is not followed, because it could lead to another file. Child processes do not inherit the lock.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(os.path.join(directory, name), flags, 0o600)


def _take_lock(name: str) -> int:
    """Wait for a lock; return the descriptor of its file."""
    import theano

    config: Any = theano.config
    descriptor = _open_file(config.compiledir, name)
    try:
        _wait(descriptor, config.compiledir, config.compile.timeout)
    except BaseException:
        os.close(descriptor)
        raise
    with suppress(OSError):  # on a full disk the name of the owner remains unknown
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _wait(descriptor: int, directory: str, seconds: float) -> None:
    """Wait until the file is locked, or raise `CompileLockHeld` if one other process holds it for `seconds`.

    The total wait can be longer if several processes take the lock before this one.
    """
    begin = time.monotonic()
    start = begin  # when the current owner took the lock
    last_taken_at = None
    is_logged = False
    while not _try_lock(descriptor):
        now = time.monotonic()
        taken_at = os.fstat(descriptor).st_mtime_ns  # each owner writes its name into the file
        if taken_at != last_taken_at:
            start = now
            last_taken_at = taken_at
        owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "an unknown process"
        if now - start > seconds:
            raise CompileLockHeld(
                f"the compile cache is locked: {owner} has held {directory} for more than {seconds:.0f} s. End that "
                "process, or set another base_compiledir in THEANO_FLAGS."
            )
        if now - begin > _SECONDS_BEFORE_LOGGING and not is_logged:
            log.info("waiting for %s, which compiles into the same cache", owner)
            is_logged = True
        time.sleep(_SECONDS_BETWEEN_TRIES)


def _try_lock(descriptor: int) -> bool:
    """Lock a file if no other process has locked it; return whether it is locked now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
