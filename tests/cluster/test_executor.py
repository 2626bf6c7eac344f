"""Tests of executors: no task outlives a call, and few results are held.

`test_workers.py` compares the results, their order and their reports.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any

import pytest

from shardpress.cluster import executor as module
from shardpress.cluster.executor import compute, reduce
from shardpress.cluster.threads import check, threads


def square(i: int) -> int:
    return i * i


def test_an_error_is_raised_after_the_end_of_the_last_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last task ends only after the caller has begun to wait for it."""
    has_begun = threading.Event()
    is_awaited = threading.Event()
    ended = []

    def wait_for(futures: set[Future[Any]]) -> object:
        is_awaited.set()
        return wait(futures)

    def fail(_: None) -> None:
        assert has_begun.wait(timeout=30)
        raise ValueError("broken")

    def end_late(_: None) -> None:
        has_begun.set()
        is_awaited.wait()
        ended.append(1)

    monkeypatch.setattr(module, "wait", wait_for)
    with threads(2) as pool:
        try:
            with pytest.raises(ValueError, match="broken"):
                compute([(end_late, None), (fail, None)], pool, 2)
            assert ended
        finally:
            is_awaited.set()


def test_an_error_of_the_callback_stops_the_remaining_tasks() -> None:
    started: list[int] = []
    has_begun = threading.Event()

    def run_until_stopped(_: None) -> None:
        has_begun.set()
        while True:
            check()

    def fail(_: object) -> None:
        assert has_begun.wait(timeout=30)
        raise ValueError("broken")

    tasks: list[Any] = [(run_until_stopped, None), *((started.append, i) for i in range(1000))]
    with threads(2) as pool, pytest.raises(ValueError, match="broken"):
        compute(tasks, pool, 2, fail)
    assert len(started) < 100


def test_a_batch_gives_the_results_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()
    reported = list[int]()
    with threads(2) as pool:
        submit = pool.submit
        monkeypatch.setattr(pool, "submit", lambda call: calls.append(str(call)) or submit(call))
        pool.n_remote_threads = 2
        assert compute([(square, i) for i in range(200)], pool, 3, reported.append, 5) == [i * i for i in range(200)]
    assert sorted(reported) == [i * i for i in range(200)]
    assert (len(calls), calls[0]) == (40, "0; 1; 2; 3; 4")


def test_few_results_are_held_while_merging() -> None:
    alive = set()
    most = []

    class Result:
        def __init__(self, _: object) -> None:
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    with threads(1) as pool:
        reduce([(Result, i) for i in range(1000)], Result, pool, 1)
    assert max(most) < 100, "results of 1000 tasks"
