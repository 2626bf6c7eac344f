"""Tests of the bottleneck of a run, which the watch derives from the states of the threads."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from shardpress import watch as module
from shardpress.watch import Watch, watching
from tests.support.cases import each


@each(
    "found, n_device_calls, expected",
    [
        ({}, 0, None),
        ({}, 1, None),
        ({"S": 9}, 0, "other"),
        ({"S": 9}, 1, "device"),
        ({"R": 1}, 0, "processor"),
        ({"R": 1, "D": 1}, 0, "disk"),
        ({"D": 3, "S": 1}, 0, "disk"),
        ({"R": 2, "D": 7}, 0, "processor"),
        ({"R": 2, "D": 7}, 2, "device"),
    ],
)
def test_the_bottleneck_is_the_resource_that_threads_wait_for(
    found: dict[str, int], n_device_calls: int, expected: str | None
) -> None:
    assert module._bottleneck(found, n_device_calls, n_cores=2) == expected


def test_states_are_read_for_any_thread_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_thread = threading.get_native_id()
    names = {str(own_thread): "me", "1": "python", "2": ") D (", "3": ")))"}
    for (thread, name), state in zip(names.items(), "RSDR", strict=True):
        (tmp_path / thread).mkdir()
        (tmp_path / thread / "stat").write_text(f"{thread} ({name}) {state} 1 2 3\n")
    (tmp_path / "4").mkdir()  # a thread that has ended meanwhile
    monkeypatch.setattr(module, "_TASKS", tmp_path)
    assert module._thread_states() == {"S": 1, "D": 1, "R": 1}
    monkeypatch.setattr(module, "_TASKS", tmp_path / "none")
    assert module._thread_states() == {}


def test_shares_cover_the_time_since_the_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INTERVAL", 0.0)
    bottlenecks = iter(["disk"] * 30 + ["device"] * 10 + [None] * 5 + ["processor"] * 9)
    has_looked = threading.Event()
    may_continue = threading.Event()
    n_looks = Counter[str]()

    def sample() -> str | None:
        n_looks["all"] += 1
        if n_looks["all"] == 46:
            has_looked.set()
            may_continue.wait()
        found = next(bottlenecks, None)
        if n_looks["all"] == 60:
            has_looked.set()
        return found

    watch = Watch(sample)
    assert has_looked.wait(60)
    assert watch.take_shares() == {"device": 0.25, "processor": 0.0, "disk": 0.75, "other": 0.0}
    has_looked.clear()
    may_continue.set()
    assert has_looked.wait(60)
    watch.stop()
    assert watch.take_shares() == {}  # nine samples are too few


def test_a_watch_ends_with_its_context_after_an_error() -> None:
    n_threads = threading.active_count()

    def raise_in_context() -> None:
        with watching(lambda: 0, lambda: False):
            assert threading.active_count() == n_threads + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        raise_in_context()
    assert threading.active_count() == n_threads
