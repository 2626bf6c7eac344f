"""Being told to stop: SIGINT, SIGTERM and SIGHUP end a run at a safe point, and the process by the real signal."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["Stopped", "check", "deferred", "leave", "stoppable"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_caught: list[int] = []
_n_deferred = 0


class Stopped(KeyboardInterrupt):
    """The signal of this number asked for the end.

    Like `KeyboardInterrupt` it is no `Exception`, so that nothing takes it for an error.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)  # alone, since that is what pickle makes it of in another process
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn the first signal into `Stopped` as long as the context lasts. A second one ends the process at once.

    A signal that the process was started to ignore, as ``nohup`` does with SIGHUP, stays ignored.
    """
    _caught.clear()
    if threading.current_thread() is not threading.main_thread():
        yield  # Python delivers signals to the main thread only
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _caught.clear()


def check() -> None:
    """Raise `Stopped` when a signal has come; long loops call it.

    The handler raises as well, for what waits. But that is lost when it strikes inside one of h5py's callbacks, from
    which no exception comes through.
    """
    if _caught:
        raise Stopped(_caught[0])


@contextmanager
def deferred() -> Iterator[None]:
    """Within the context a signal raises in `check` only: for work that must not stop inside one of its steps."""
    global _n_deferred
    if threading.current_thread() is not threading.main_thread():
        yield  # where no handler ever runs
        return
    _n_deferred += 1
    try:
        yield
    finally:
        _n_deferred -= 1


def leave(code: int) -> NoReturn:
    """Exit with a code, or by the signal it stands for, so that whoever waits for the process sees why it ended."""
    if code > 128:
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        for number in (*heard, code - 128):
            signal.signal(number, signal.SIG_DFL)  # one more ends the process at once, with no traceback
        atexit._run_exitfuncs()  # which a signal passes over
        os.kill(os.getpid(), code - 128)
    sys.exit(code)


def _on_signal(number: int, _frame: object) -> None:
    for each in _SIGNALS:
        if signal.getsignal(each) == _on_signal:
            signal.signal(each, signal.SIG_DFL)
    _caught.append(number)
    if not _n_deferred:
        raise Stopped(number)
