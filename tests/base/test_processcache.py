"""Tests of the process cache: each value is made once for all threads, and is dropped when newer values replace it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardpress.base.processcache import ProcessCache


def test_a_value_is_made_once_by_all_threads() -> None:
    cache = ProcessCache[str, object](max_size=1)
    n_made = 0
    is_made = threading.Event()

    def make() -> object:
        nonlocal n_made
        n_made += 1
        is_made.wait(60)
        return object()

    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(cache.get_or_make, "model", make) for _ in range(4)]
        is_made.set()
        values = {each.result() for each in found}
    assert len(values) == n_made == 1


def test_the_value_that_was_used_least_recently_is_dropped() -> None:
    cache = ProcessCache[str, int](max_size=2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    assert cache.get_or_make("c", lambda: len(cache)) == 1, "a value is dropped before a new one is made"
    assert [cache.get(key) for key in "abc"] == [1, None, 1]
    assert [cache.put_if_new(key, 4) for key in "cdd"] == [False, True, False]
    assert [cache.pop_last(), cache.pop_last(), cache.pop_last()] == [4, 1, None]


@pytest.mark.process
def test_a_fork_finds_a_free_lock_and_the_values() -> None:
    # The process forks while another thread makes a value.
    cache = ProcessCache[str, int]()
    cache.put("a", 1)
    is_making = threading.Event()
    is_forked = threading.Event()

    def make() -> int:
        is_making.set()
        is_forked.wait(60)
        return 2

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(cache.get_or_make, "b", make)
        is_making.wait(60)
        pid = os.fork()
        if pid == 0:
            os._exit(cache.get("a") == 1)
        is_forked.set()
        _, status = os.waitpid(pid, 0)
        assert future.result() == 2
    assert os.waitstatus_to_exitcode(status) == 1
