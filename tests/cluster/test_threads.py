"""Tests of a thread pool: stopping it from one of its threads, and its state after the end."""

from __future__ import annotations

import threading

import pytest

from shardpress.cluster.threads import check, stop, threads


def run_until_stopped(has_begun: threading.Event) -> None:
    has_begun.set()
    while True:
        check()


def test_no_thread_is_running_after_an_error() -> None:
    futures = []

    def fail() -> None:
        has_begun = threading.Event()
        with threads(2) as pool:
            futures.append(pool.submit(run_until_stopped, has_begun))
            assert has_begun.wait(timeout=30)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    assert isinstance(futures[0].exception(), InterruptedError)
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("dask")] == []


def test_stopping_a_pool_stops_no_other_thread() -> None:
    with threads(1) as one, threads(1) as other:
        stop(one)
        assert isinstance(one.submit(check).exception(), InterruptedError)
        assert other.submit(check).exception() is None
        check()
