"""Signals: the first one is heard at the next safe point, a second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from pipeline.signals import Stopped, check, leave, stoppable

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_becomes_an_exception_that_names_it_and_the_handlers_come_back(number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped, match=f"stopped by {number.name}") as caught, stoppable():
        os.kill(os.getpid(), number)
    assert caught.value.number == number
    assert not isinstance(caught.value, Exception)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_signal_that_was_lost_on_the_way_is_found_by_the_next_check() -> None:
    with stoppable():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            check()


def test_other_threads_hear_of_it_too() -> None:
    heard = []

    def listen() -> None:
        try:
            check()
        except Stopped as stopped:
            heard.append(stopped.number)

    with stoppable():
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGHUP)
        thread = threading.Thread(target=listen)
        thread.start()
        thread.join()
    assert heard == [signal.SIGHUP]


def test_a_new_run_starts_unstopped() -> None:
    with stoppable(), pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGINT)
    with stoppable():
        check()


TWICE = """
import os, signal
from pipeline.signals import stoppable
with stoppable():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGINT)
        print("still here")
"""


def test_a_second_signal_ends_the_process_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == ""


@pytest.mark.parametrize("code", [0, 65])
def test_a_code_that_stands_for_no_signal_is_left_with(code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        leave(code)
    assert caught.value.code == code
