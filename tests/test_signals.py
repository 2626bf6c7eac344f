"""Tests of signals: the first signal stops the run at the next safe point, and a second one ends the process."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading

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


def test_a_suppressed_signal_is_raised_at_the_next_check() -> None:
    with stoppable():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            check()


def test_other_threads_are_stopped_by_a_signal_too() -> None:
    numbers = []

    def listen() -> None:
        try:
            check()
        except Stopped as stopped:
            numbers.append(stopped.number)

    with stoppable():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGHUP)
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
    assert numbers == [signal.SIGHUP]


def test_a_new_run_starts_unstopped() -> None:
    with stoppable(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGINT)
    with stoppable():
        check()


TWO_SIGNALS = """
import os, signal
from shardpress.signals import deferred, stoppable
with stoppable():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        print("still here")
"""


@pytest.mark.process
def test_a_second_signal_ends_the_process_at_once() -> None:
    result = subprocess.run([sys.executable, "-c", TWO_SIGNALS], capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGINT
    assert result.stdout == ""


# -- uninterruptible steps -----------------------------------------------------------------------------------------


def test_a_deferred_signal_waits_for_the_next_check() -> None:
    with stoppable(), deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            check()


def test_a_deferred_signal_is_raised_after_the_work() -> None:
    with stoppable():
        with deferred():
            os.kill(os.getpid(), signal.SIGHUP)
        with pytest.raises(Stopped, match="SIGHUP"):
            check()


def test_nested_deferral_ends_with_the_outer_one() -> None:
    with stoppable(), deferred():
        with deferred():
            pass
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("error", [None, KeyError])
def test_a_signal_after_deferred_work_raises_at_once(error: type[Exception] | None) -> None:
    with stoppable():
        with contextlib.suppress(KeyError), deferred():
            if error:
                raise error
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


@pytest.mark.process
def test_a_second_signal_ends_deferred_work_at_once() -> None:
    result = subprocess.run(
        [sys.executable, "-c", TWO_SIGNALS.replace("with stoppable():", "with stoppable(), deferred():")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == -signal.SIGINT
    assert result.stdout == ""


# -- from outside --------------------------------------------------------------------------------------------------


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
            check()
            with pytest.raises(Stopped, match="SIGTERM"):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)  # any other signal would end the process now
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.process
@pytest.mark.parametrize("code", [0, 65])
def test_an_exit_code_is_used_after_handlers_and_all_output(code: int) -> None:
    program = (
        "import atexit, sys\nfrom shardpress.signals import leave\natexit.register(print, 'done')\nprint('last')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{program}leave({code})"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (code, "last\ndone\n", "")


@pytest.mark.process
def test_output_that_cannot_be_written_at_exit_is_reported() -> None:
    program = "from shardpress.signals import leave\nprint('lost')\nleave(0)"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode != 0
    assert b"No space left" in result.stderr


@pytest.mark.process
def test_exit_handlers_run_before_a_signal_is_raised_again() -> None:
    code = "import atexit\nfrom shardpress.signals import leave\natexit.register(print, 'done', flush=True)\nleave(143)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (-signal.SIGTERM, "done\n")


@pytest.mark.process
def test_a_signal_during_exit_handlers_causes_no_traceback() -> None:
    code = """
import atexit, os, signal
from shardpress.signals import leave
atexit.register(print, "not reached")
atexit.register(os.kill, os.getpid(), signal.SIGINT)
leave(143)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")
