"""Tests of executors: results are ordered and reported once in the calling thread, and no task outlives a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import pytest

from shardpress.cluster import executor as module
from shardpress.cluster.executor import compute, reduce
from shardpress.cluster.threads import check, threads

SIZES = [0, 1, 2, 16, 17, 257]


def square(i: int) -> int:
    return i * i


def run(tasks: Sequence[Any], n: int, done: Callable[[Any], object] | None = None) -> list[Any]:
    with threads(n) as pool:
        return compute(tasks, pool, n, done)


def test_results_are_ordered_and_reported_once_in_the_caller() -> None:
    for n_tasks in SIZES:
        reported: list[tuple[int, threading.Thread]] = []

        def report(result: int, reported: list[tuple[int, threading.Thread]] = reported) -> None:
            reported.append((result, threading.current_thread()))

        results = run([(square, i) for i in range(n_tasks)], 3, report)
        assert results == [i * i for i in range(n_tasks)], f"{n_tasks} tasks"
        assert sorted(result for result, _ in reported) == results, f"{n_tasks} tasks"
        assert {thread for _, thread in reported} <= {threading.current_thread()}


def test_results_are_merged_in_order_and_reported_once() -> None:
    letters = [chr(ord("a") + i % 26) for i in range(257)]
    reported = list[str]()
    with threads(3) as pool:
        merged = reduce([(str, letter) for letter in letters], "".join, pool, 3, reported.append)
    assert merged == "".join(letters)
    assert sorted(reported) == sorted(letters)


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
    with pytest.raises(ValueError, match="broken"):
        run(tasks, 2, fail)
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
