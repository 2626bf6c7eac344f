"""Handling of SIGINT, SIGTERM and SIGHUP: stop the run at a safe point, then end the process with the same signal."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_caught: list[int] = []
_n_deferred = 0


class Stopped(KeyboardInterrupt):
    """Request to stop, caused by a signal.

    The base class is `KeyboardInterrupt`, not `Exception`, so that the request is not handled as an error.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)  # pass only the number, because pickle calls the class with these arguments
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` for the first signal within the context. A second signal ends the process at once.

    If a signal was already ignored when the process started, it stays ignored. For example, ``nohup`` ignores SIGHUP.
    """
    _caught.clear()
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers only in the main thread
        return
    handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _caught.clear()


def check() -> None:
    """Raise `Stopped` if a signal has been received. Long loops call this function.

    The signal handler also raises `Stopped`, to interrupt waiting. This function is also needed, because h5py
    loses exceptions that are raised within its callbacks.
    """
    if _caught:
        raise Stopped(_caught[0])


@contextmanager
def deferred() -> Iterator[None]:
    """Raise `Stopped` only in `check` while the context is active, for steps that must not be interrupted."""
    global _n_deferred
    if threading.current_thread() is not threading.main_thread():
        yield  # signal handlers run only in the main thread
        return
    _n_deferred += 1
    try:
        yield
    finally:
        _n_deferred -= 1


def leave(code: int) -> NoReturn:
    """Exit with a code. Above 128, the process ends with a signal, which informs the parent process.

    Python does not free its modules, which would take a tenth of a second.
    """
    if code > 128:
        handled = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        for number in (*handled, code - 128):
            signal.signal(number, signal.SIG_DFL)  # another signal ends the process at once, without a traceback
        atexit._run_exitfuncs()  # Python does not call exit functions if a signal ends the process
        os.kill(os.getpid(), code - 128)
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):
        sys.exit(code)  # reports output that cannot be written
    os._exit(code)


def _on_signal(number: int, _frame: object) -> None:
    for other in _SIGNALS:
        if signal.getsignal(other) == _on_signal:
            signal.signal(other, signal.SIG_DFL)
    _caught.append(number)
    if not _n_deferred:
        raise Stopped(number)
