"""Tests of signals: the first signal stops the run at the next safe point, and a second one ends the process."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys

import pytest

from shardpress.base.signals import Stopped, check, deferred, stoppable

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def test_a_signal_raises_stopped_and_handlers_are_restored() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Stopped, match="SIGHUP") as caught, stoppable():
        os.kill(os.getpid(), signal.SIGHUP)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.number) == (Stopped, signal.SIGHUP), "it can be sent to another process"
    assert not isinstance(caught.value, Exception)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    with stoppable():
        check()


def test_a_deferred_signal_waits_for_the_next_check() -> None:
    with stoppable(), deferred():
        with deferred():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            check()


LEAVE = """
import atexit, os, signal
from shardpress.base.signals import leave
atexit.register(print, "done", flush=True)
print("last")
leave({})
"""


@pytest.mark.process
def test_a_process_exits_after_handlers_and_all_output() -> None:
    command = [sys.executable, "-c"]
    for code, expected in ((65, 65), (143, -signal.SIGTERM)):
        ended = subprocess.run([*command, LEAVE.format(code)], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout, ended.stderr) == (expected, "last\ndone\n", "")
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*command, LEAVE.format(0)], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode != 0
    assert "No space left" in ended.stderr, "output that cannot be written is reported"
