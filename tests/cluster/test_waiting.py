"""Every wait has an end, and says what it waits for."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator

import pytest

from pipeline.cluster import waiting
from pipeline.cluster.waiting import waited
from pipeline.signals import Stopped, stoppable


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK", "_FIRST_TOLD", "_TOLD_EVERY"):
        monkeypatch.setattr(waiting, name, 0.001)


def test_what_is_found_ends_a_wait() -> None:
    looks: Iterator[str] = iter(["", "", "there"])
    assert waited(lambda: next(looks), "it", 60) == "there"
    assert waited(lambda: 7, "it", 0) == 7, "what is there already is not waited for"


def test_a_wait_has_an_end_and_says_what_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert waited(lambda: 0, "a worker of tls://10.0.0.7:8786", 0.05) == 0
    assert "cluster: waiting for a worker of tls://10.0.0.7:8786, 0 of 0 s" in caplog.messages


def test_a_signal_ends_a_wait() -> None:
    with stoppable(), pytest.raises(Stopped):
        waited(lambda: os.kill(os.getpid(), signal.SIGTERM), "nothing", 60)
