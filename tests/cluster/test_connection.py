"""Tests of waiting for a scheduler: every wait has a time limit, and the log reports the reason of the wait."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from shardpress.cluster.connection import retry_if_worker_lost, wait_until
from shardpress.signals import Stopped, stoppable
from tests.support.logged import mentions


class Clock:
    """A clock that advances only during sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_result_ends_a_wait(clock: Clock) -> None:
    results: Iterator[str] = iter(["", "", "found"])
    assert wait_until(lambda: next(results), "it", 60, clock.monotonic, clock.sleep) == "found"
    found = wait_until(lambda: 7, "it", 0, clock.monotonic, clock.sleep)
    assert found == 7, "an existing result needs no wait"


def test_a_wait_is_limited_and_logs_what_it_waits_for(caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    with caplog.at_level(logging.INFO, logger="shardpress"):  # a quiet run in another test may have raised the level
        what = "a worker of tls://10.0.0.7:8786"
        assert wait_until(lambda: 0, what, 70, clock.monotonic, clock.sleep) == 0
    for seconds, line in zip((3, 33, 63), caplog.messages, strict=True):
        assert mentions(line, "cluster:", "a worker of tls://10.0.0.7:8786", f"{seconds} of 70 s")
    assert clock.now == pytest.approx(70, abs=0.2)


def test_a_signal_ends_a_wait(clock: Clock) -> None:
    with stoppable(), pytest.raises(Stopped):
        wait_until(lambda: os.kill(os.getpid(), signal.SIGTERM), "nothing", 60, clock.monotonic, clock.sleep)


class FailingQuery:
    """Query that fails a number of times, like a query of all workers while one of them is lost."""

    def __init__(self, n_failures: int) -> None:
        self.n_left = n_failures

    def __call__(self) -> str:
        if self.n_left == 0:
            return "answer"
        self.n_left -= 1
        raise OSError("Stream is closed")


CLIENT: Any = SimpleNamespace(status="running")


def test_a_lost_worker_does_not_end_a_query_of_all_workers() -> None:
    assert retry_if_worker_lost(CLIENT, FailingQuery(0)) == "answer"
    assert retry_if_worker_lost(CLIENT, FailingQuery(4)) == "answer"


def test_a_query_is_not_repeated_forever() -> None:
    with pytest.raises(OSError, match="closed"):
        retry_if_worker_lost(CLIENT, FailingQuery(99))


def test_a_lost_scheduler_ends_a_query() -> None:
    client: Any = SimpleNamespace(status="closed")
    with pytest.raises(OSError, match="closed"):
        retry_if_worker_lost(client, FailingQuery(1))
