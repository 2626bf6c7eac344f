"""Tests of the process cache: each value is made once for all threads, and is dropped when newer values replace it."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardpress.processcache import ProcessCache


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
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]
    cache.put("c", 4)
    assert (len(cache), cache.get("a"), cache.get("c")) == (2, 1, 4)


def test_a_value_is_dropped_before_a_new_one_is_made() -> None:
    cache = ProcessCache[str, int](max_size=1)
    cache.put("a", 1)
    assert cache.get_or_make("b", lambda: len(cache)) == 0
    assert cache.get("a") is None


def test_a_value_that_cannot_be_made_leaves_the_lock_free() -> None:
    cache = ProcessCache[str, int]()

    def fail() -> int:
        raise ValueError("not now")

    with pytest.raises(ValueError, match="not now"):
        cache.get_or_make("a", fail)
    assert cache.get_or_make("a", lambda: 2) == 2


def test_pop_last_removes_the_newest_value() -> None:
    cache = ProcessCache[str, int]()
    cache.put("a", 1)
    cache.put("b", 2)
    assert [cache.pop_last(), cache.pop_last(), cache.pop_last()] == [2, 1, None]
    cache.put("a", 1)
    cache.clear()
    assert len(cache) == 0


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


def test_a_key_is_new_once() -> None:
    cache = ProcessCache[int, bool]()
    assert [cache.put_if_new(each, True) for each in (1, 1, 2, 1)] == [True, False, True, False]
    assert len(cache) == 2
