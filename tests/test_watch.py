"""Tests of the bottleneck of a run, which the watch derives from the states of the threads."""

from __future__ import annotations

import threading

import pytest

from shardpress import watch as module
from shardpress.watch import watching
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


def test_a_watch_ends_with_its_context_after_an_error() -> None:
    n_threads = threading.active_count()

    def raise_in_context() -> None:
        with watching(lambda: 0, lambda: False):
            assert threading.active_count() == n_threads + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        raise_in_context()
    assert threading.active_count() == n_threads
