"""Tests of signals: the first signal stops the run at the next safe point, and a second one ends the process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from shardpress.signals import Stopped, check, deferred, stoppable

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_raises_stopped_and_handlers_are_restored(number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped, match=number.name) as caught, stoppable():
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.number, str(again)) == (Stopped, number, str(caught.value)), (
        "it can be sent to another process"
    )
    assert not isinstance(caught.value, Exception)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with stoppable():
        check()


# -- uninterruptible steps -----------------------------------------------------------------------------------------


def test_a_deferred_signal_waits_for_the_next_check() -> None:
    with stoppable(), deferred():
        with deferred():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            check()


def test_a_signal_after_deferred_work_raises_at_once() -> None:
    with stoppable():
        with contextlib.suppress(KeyError), deferred():
            raise KeyError
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)


def test_deferral_in_another_thread_does_not_affect_the_main_one() -> None:
    has_begun = threading.Event()
    may_end = threading.Event()

    def work() -> None:
        with deferred():
            has_begun.set()
            may_end.wait(60)

    thread = threading.Thread(target=work)
    with stoppable():
        thread.start()
        has_begun.wait(60)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        may_end.set()
        thread.join()


# -- the end of the process ------------------------------------------------------------------------------------------


LEAVE = """
import atexit, os, signal
from shardpress.signals import leave
atexit.register(print, "done", flush=True)
print("last")
leave({})
"""


@pytest.mark.process
@pytest.mark.parametrize(("code", "expected"), [(65, 65), (143, -signal.SIGTERM)])
def test_a_process_exits_after_handlers_and_all_output(code: int, expected: int) -> None:
    result = run(LEAVE.format(code))
    assert (result.returncode, result.stdout, result.stderr) == (expected, "last\ndone\n", "")


@pytest.mark.process
def test_output_that_cannot_be_written_at_exit_is_reported() -> None:
    with open("/dev/full", "w") as full:
        result = run(LEAVE.format(0), stdout=full, stderr=subprocess.PIPE)
    assert result.returncode != 0
    assert "No space left" in result.stderr


def run(program: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    streams = streams or {"capture_output": True}
    return subprocess.run([sys.executable, "-c", program], text=True, check=False, **streams)
