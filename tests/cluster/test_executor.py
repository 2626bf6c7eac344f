"""Tests of executors: results are ordered and reported once in the calling thread, and no task outlives a call."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from shardpress.cluster import executor as module
from shardpress.cluster.executor import compute, reduce
from shardpress.cluster.threads import check, threads
from shardpress.scan.blocks import ScanSettings
from shardpress.scan.ranges import scan
from shardpress.signals import Stopped, stoppable
from tests.support.helpers import numbered_shards, scanned

SIZES = [0, 1, 2, 3, 15, 16, 17, 257]


def square(i: int) -> int:
    return i * i


def run(tasks: Sequence[Any], n: int, done: Callable[[Any], object] | None = None) -> list[Any]:
    with threads(n) as pool:
        return compute(tasks, pool, n, done)


# -- all executors -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Argument of a task: plain values, and lists that Dask would search for lazy values."""

    start: int
    names: list[str]
    others: tuple[Rows, ...] = ()


@dataclass(frozen=True)
class Summary:
    text: str
    rows: np.ndarray


def summarize(rows: Rows) -> Summary:
    return Summary(f"{rows.start}{''.join(rows.names)}", np.arange(rows.start, rows.start + len(rows.others)))


def join(found: Sequence[Summary]) -> Summary:
    return Summary("".join(each.text for each in found), np.concatenate([each.rows for each in found]))


def break_at(i: int) -> int:
    if i == 3:
        raise ValueError(f"broken at {i}")
    return i


def end_after_failure(where: tuple[str, int]) -> None:
    """Raise an error in task 1. In task 0, wait until task 1 is about to fail, and then create a file."""
    folder, i = where
    if i:
        Path(folder, "pipe").write_text("now")
        raise ValueError("broken")
    Path(folder, "pipe").read_text()
    Path(folder, "ended").touch()


@pytest.fixture(scope="module", params=["threads", "processes", "cluster"])
def executor(request: pytest.FixtureRequest) -> Iterator[Callable[[], Executor]]:
    """Return a function that returns executors of one kind. Each executor can be used until its first error."""
    if request.param == "threads":
        with ExitStack() as stack:
            yield lambda: stack.enter_context(threads(2))
    elif request.param == "processes":
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
            yield lambda: processes
    else:
        from distributed import Client, LocalCluster

        where = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "processes": True}
        with (
            mock.patch.dict(os.environ),  # Dask sets configuration for its workers here, which later runs would inherit
            LocalCluster(n_workers=1, threads_per_worker=2, **where) as cluster,
            Client(cluster) as client,
        ):
            yield lambda: client.get_executor(pure=False)


def test_every_executor_gives_the_same_results(executor: Callable[[], Executor]) -> None:
    rows = [Rows(i, [f"task-{i}", "x"], (Rows(0, []),) * (i % 3)) for i in range(40)]
    reported: list[str] = []
    found = compute([(summarize, each) for each in rows], executor(), 2, lambda each: reported.append(each.text))
    assert [each.text for each in found] == [f"{i}task-{i}x" for i in range(40)]
    assert sorted(reported) == sorted(each.text for each in found)
    merged = reduce([(summarize, each) for each in rows], join, executor(), 2)
    assert merged.text == "".join(each.text for each in found)
    assert np.array_equal(merged.rows, join(found).rows)
    with pytest.raises(ValueError, match="broken at 3"):
        compute([(break_at, i) for i in range(40)], executor(), 2)


@pytest.mark.slow
def test_an_error_waits_for_running_tasks(executor: Callable[[], Executor], tmp_path: Path) -> None:
    """After the error, the caller unlocks the output directory, and no task is allowed to write to it any more."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="broken"):
        compute([(end_after_failure, (str(tmp_path), i)) for i in range(2)], executor(), 2)
    assert (tmp_path / "ended").exists()


def test_arguments_are_passed_unchanged(executor: Callable[[], Executor]) -> None:
    """If Dask searched the argument, a text that equals the name of a task would be replaced by a result."""
    names = [f"task-{10**12 - i}" for i in range(1, 4)]
    assert compute([(tuple, names)] * 3, executor(), 2) == [tuple(names)] * 3


def test_a_scan_is_equal_on_every_executor(executor: Callable[[], Executor], tmp_path: Path) -> None:
    shards = numbered_shards(tmp_path, 9, 0, 4)
    reported = list[int]()
    found = scan(shards, ScanSettings(2, missing=41), executor(), 2, reported.append)
    assert found.to_npz() == scanned(shards, 2, missing=41).to_npz()
    assert (found.bad_rows.tolist(), sum(reported)) == ([4], 13)


# -- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_results_are_ordered_and_reported_once_in_the_caller(n_threads: int) -> None:
    for n_tasks in SIZES:
        reported: list[int] = []
        callers = set[threading.Thread]()

        def report(result: int, reported: list[int] = reported, callers: set[threading.Thread] = callers) -> None:
            reported.append(result)
            callers.add(threading.current_thread())

        results = run([(square, i) for i in range(n_tasks)], n_threads, report)
        assert results == [i * i for i in range(n_tasks)], f"{n_tasks} tasks"
        assert sorted(reported) == results, f"{n_tasks} tasks"
        assert callers <= {threading.current_thread()}


def test_tasks_start_in_order() -> None:
    """Files are then read from front to back, as read-ahead of disks and page caches expects."""
    for n_tasks in SIZES:
        started: list[int] = []
        run([(started.append, i) for i in range(n_tasks)], 1)
        assert started == list(range(n_tasks))


def test_a_result_is_reported_as_soon_as_it_exists() -> None:
    """Otherwise a run that is interrupted after ten hours would have committed nothing."""
    reported = threading.Event()

    def work(is_second: bool) -> None:
        assert not is_second or reported.wait(timeout=30), "reported only after all tasks were done"

    run([(work, False), (work, True)], 2, lambda _: reported.set())


def test_concurrent_computations_keep_their_results_apart() -> None:
    """One computation runs inside a callback of another, while a third computation runs in another thread."""
    reported: dict[str, list[int]] = {"outer": [], "inner": [], "aside": []}

    def report(result: int) -> None:
        reported["outer"].append(result)
        run([(square, i) for i in (7, 8)], 2, reported["inner"].append)

    other_thread = threading.Thread(target=lambda: run([(square, i) for i in range(50)], 2, reported["aside"].append))
    other_thread.start()
    run([(square, i) for i in range(5)], 2, report)
    other_thread.join()
    assert sorted(reported["outer"]) == [i * i for i in range(5)]
    assert sorted(reported["inner"]) == sorted([49, 64] * 5)
    assert sorted(reported["aside"]) == [i * i for i in range(50)]


# -- stopping ------------------------------------------------------------------------------------------------------


def run_until_stopped(has_begun: threading.Event) -> None:
    """Run until the task is stopped."""
    has_begun.set()
    while True:
        check()


def test_an_error_stops_running_tasks_at_their_next_check() -> None:
    has_begun = threading.Event()

    def fail(_: None) -> None:
        assert has_begun.wait(timeout=30)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run([(run_until_stopped, has_begun), (fail, None)], 2)


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


def test_the_first_error_stops_the_remaining_tasks() -> None:
    n_started = []

    def fail(_: int) -> None:
        n_started.append(1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        run([(fail, i) for i in range(1000)], 2)
    assert len(n_started) < 100


def test_an_error_of_the_callback_stops_the_remaining_tasks() -> None:
    reported = list[int]()
    n_started = list[int]()
    has_begun = threading.Event()

    def report(result: int) -> None:
        reported.append(result)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        run([(run_until_stopped, has_begun), *((n_started.append, i) for i in range(1000))], 2, report)
    assert (len(reported), len(n_started) < 100) == (1, True)


def test_a_signal_stops_and_waits_for_running_tasks() -> None:
    events = []

    def work(_: int) -> None:
        events.append(1)
        try:
            if len(events) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            while True:
                check()
        finally:
            events.append(-1)

    with stoppable(), pytest.raises(Stopped):
        run([(work, i) for i in range(20)], 2)
    assert sum(events) == 0


# -- batches -------------------------------------------------------------------------------------------------------


def test_small_or_many_tasks_are_sent_in_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A scheduler needs time for each message, but each thread should get several batches."""
    with threads(2) as pool:
        calls = list[str]()
        submit = pool.submit
        monkeypatch.setattr(pool, "submit", lambda call: calls.append(str(call)) or submit(call))
        monkeypatch.setattr(module, "_LARGE_GRAPH", 300)
        for n_tasks, n_remote, n_small, batch in (
            (1000, 0, 99, 1),
            (63, 2, 99, 1),
            (64, 2, 99, 2),
            (1000, 2, 99, 16),
            (1000, 12, 99, 5),
            (200, 2, 5, 5),
            (299, 2, 1, 1),
            (1000, 2, 1, 3),
            (1000, 2, 0, 3),  # large tasks are sent in batches as well if there are many
        ):
            reported = list[int]()
            calls.clear()
            pool.n_remote_threads = n_remote
            found = compute([(square, i) for i in range(n_tasks)], pool, 3, reported.append, n_small)
            assert found == [i * i for i in range(n_tasks)]
            assert sorted(reported) == [i * i for i in range(n_tasks)]
            assert len(calls) == -(-n_tasks // batch)
            assert calls[0] == "; ".join(map(str, range(batch)))
            assert n_remote == 0 or len(calls) >= min(n_tasks, 16 * n_remote), "batches per thread"


@pytest.mark.parametrize(("n_tasks", "batch"), [(1000, 3), (25, 3), (12, 2), (10, 1), (3, 1)])
def test_many_threads_get_batches_but_at_least_a_task_each(
    n_tasks: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SCHEDULER_CAPACITY", 4)
    assert module.batch_size(n_tasks, 10) == batch
    assert -(-n_tasks // batch) >= min(n_tasks, 5), "at least half of the threads have a batch"
    assert module.batch_size(n_tasks, 10, 0) == 1, "with longer tasks the scheduler keeps more threads busy"
    assert module.batch_size(n_tasks, 4) == 1


# -- merging -------------------------------------------------------------------------------------------------------


def test_results_are_merged_in_order_and_reported_once() -> None:
    for n_tasks in SIZES[1:]:
        letters = [chr(ord("a") + i % 26) for i in range(n_tasks)]
        reported = list[str]()
        with threads(3) as pool:
            merged = reduce([(str, letter) for letter in letters], "".join, pool, 3, reported.append)
        assert (merged, sorted(reported)) == ("".join(letters), sorted(letters))


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


# -- independence of the environment -------------------------------------------------------------------------------

HOSTILE = """
import sys, threading
from shardpress.cluster.executor import compute, reduce
from shardpress.cluster.threads import threads
names = set()
def task(i):
    names.add(threading.current_thread().name.split("_")[0])
    return 3
with threads(2) as pool:
    tasks = [(task, i) for i in range(20)]
    print(compute(tasks, pool, 2), reduce(tasks, sum, pool, 2), names, "distributed" in sys.modules)
    try:
        compute([(int, "x")], pool, 1)
    except ValueError:
        print("error raised")
"""


@pytest.mark.process
def test_the_environment_does_not_choose_the_executor() -> None:
    """Without an explicit executor, Dask would import distributed (0.1 s) to look up the name of a scheduler."""
    settings = {"SCHEDULER": "processes", "POOL": "3", "NUM_WORKERS": "99", "CHUNKSIZE": "50", "CACHE": "7"}
    environment = {**os.environ, **{f"DASK_{name}": value for name, value in settings.items()}}
    environment["DASK_RERUN_EXCEPTIONS_LOCALLY"] = "True"
    command = [sys.executable, "-c", HOSTILE]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.stdout.split("\n")[:2] == [f"{[3] * 20} 60 {{'dask'}} False", "error raised"], result.stderr


def test_threads_do_not_copy_arrays() -> None:
    rows = np.arange(6).reshape(2, 3)
    (found,) = run([(np.asarray, rows)], 1)
    assert found is rows
