"""The lock on Theano's compile cache, kept by the kernel. It stands in the place of ``theano.gof.compilelock``.

Theano's own is a directory with a file in it. Where that file cannot be written its owner waits for itself, for ever,
and one that was killed on another machine is waited for until a time-out. The kernel's lock ends with its process; who
holds it is written down for the reader only.
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

__all__ = ["CompileLockHeld", "get_lock", "lock_ctx", "release_lock", "try_out"]

log = logging.getLogger(__name__)

_NAME = ".lock"
_STEP = 0.1  # seconds between two tries
_PATIENCE = 5.0  # seconds after which a wait is worth a line


class CompileLockHeld(RuntimeError):
    """One other process held the lock for longer than Theano's setting ``compile.timeout`` says."""


class _Lock:
    """Taken by the first of nested calls. Theano asks `n_lock` for their number."""

    def __init__(self) -> None:
        self.n_lock = 0
        self._descriptor = -1

    def __call__(self, lock_dir: object = None, **how: object) -> None:
        if self.n_lock == 0:
            self._descriptor = _taken()
        self.n_lock += 1

    def release(self) -> None:
        self.n_lock -= 1
        if self.n_lock == 0:
            os.close(self._descriptor)  # which unlocks; the file stays, or the next could lock another one


get_lock = _Lock()


def release_lock() -> None:
    """Undo one `get_lock`."""
    get_lock.release()


@contextmanager
def lock_ctx(lock_dir: object = None, keep_lock: bool = False, **how: object) -> Iterator[None]:
    """Hold the lock, and keep it afterwards if that is asked for and nothing has failed."""
    get_lock()
    try:
        yield
    except BaseException:
        release_lock()
        raise
    if not keep_lock:
        release_lock()


def try_out(directory: str) -> None:
    """Raise an `OSError` where the file system has no room for the lock's file, or no locks."""
    descriptor = _opened(directory)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _opened(directory: str) -> int:
    # No link is followed, which could lead to somebody's file; and no program that we start inherits the lock.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(os.path.join(directory, _NAME), flags, 0o600)


def _taken() -> int:
    """The lock's descriptor, once it is ours.

    Raises
    ------
    CompileLockHeld
    OSError
    """
    import theano

    config: Any = theano.config
    descriptor = _opened(config.compiledir)
    try:
        _wait(descriptor, config.compiledir, config.compile.timeout)
    except BaseException:
        os.close(descriptor)
        raise
    with suppress(OSError):  # on a full disk it stays unknown who holds it
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return descriptor


def _wait(descriptor: int, directory: str, seconds: float) -> None:
    begin = time.monotonic()
    told = False
    last = -1
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken = os.fstat(descriptor).st_mtime_ns
        now = time.monotonic()
        if taken != last:  # by the next in a queue that moves, however long it is
            start = now
            last = taken
        owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "an unknown process"
        if now - start > seconds:
            raise CompileLockHeld(
                f"the compile cache is locked: {owner} has held {directory} for more than {seconds:.0f} s. End that "
                "process, or set another base_compiledir in THEANO_FLAGS."
            )
        if now - begin > _PATIENCE and not told:
            log.info("waiting for %s, which compiles into the same cache", owner)
            told = True
        time.sleep(_STEP)
