"""Tasks in threads: results in order, each told once to the thread that asked, and nothing at work afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

from pipeline.cluster.threads import compute, reduce
from pipeline.signals import Stopped, check, stoppable

SIZES = [0, 1, 2, 3, 15, 16, 17, 257]


def square(i: int) -> int:
    return i * i


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("n_tasks", SIZES)
def test_results_come_in_the_order_of_the_tasks(n_tasks: int, n_threads: int) -> None:
    assert compute([partial(square, i) for i in range(n_tasks)], n_threads) == [i * i for i in range(n_tasks)]


@pytest.mark.parametrize("n_tasks", SIZES)
def test_tasks_begin_in_their_order(n_tasks: int) -> None:
    """So that files are read from front to back, which disks and page caches look ahead for."""
    begun: list[int] = []
    compute([partial(begun.append, i) for i in range(n_tasks)], 1)
    assert begun == list(range(n_tasks))


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("n_tasks", SIZES)
def test_each_result_is_told_once_in_the_thread_that_asked(n_tasks: int, n_threads: int) -> None:
    told = []
    tasks = [partial(square, i) for i in range(n_tasks)]
    results = compute(tasks, n_threads, lambda result: told.append((result, threading.current_thread())))
    assert results == [i * i for i in range(n_tasks)]
    assert sorted(result for result, _ in told) == results
    assert {thread for _, thread in told} <= {threading.current_thread()}


def test_a_result_is_told_as_soon_as_it_is_there() -> None:
    """Else a run that is interrupted in its tenth hour would have committed nothing."""
    told = threading.Event()

    def first() -> None:
        pass

    def second() -> None:
        assert told.wait(timeout=30), "told only after everything was done"

    compute([first, second], 2, lambda _: told.set())


def test_results_of_computations_at_one_time_are_not_mixed_up() -> None:
    """One runs inside the other's callback, and a third in another thread meanwhile."""
    told: dict[str, list[int]] = {"outer": [], "inner": [], "aside": []}

    def tell(result: int) -> None:
        told["outer"].append(result)
        compute([partial(square, i) for i in (7, 8)], 2, told["inner"].append)

    aside = threading.Thread(target=lambda: compute([partial(square, i) for i in range(50)], 2, told["aside"].append))
    aside.start()
    compute([partial(square, i) for i in range(5)], 2, tell)
    aside.join()
    assert sorted(told["outer"]) == [i * i for i in range(5)]
    assert sorted(told["inner"]) == sorted([49, 64] * 5)
    assert sorted(told["aside"]) == [i * i for i in range(50)]


def test_an_error_waits_for_what_is_under_way() -> None:
    """Whoever lets go of the output directory afterwards must not find a thread that still writes there."""
    stop, started, ended = threading.Event(), threading.Event(), threading.Event()

    def slow() -> None:
        started.set()
        assert stop.wait(timeout=30)
        ended.set()

    def fail() -> None:
        assert started.wait(timeout=30)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        compute([slow, fail], 2, stop=stop)
    assert ended.is_set()


def test_the_first_error_stops_the_rest() -> None:
    n_started = []

    def fail() -> None:
        n_started.append(1)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        compute([fail] * 1000, 2)
    assert len(n_started) < 100


def test_an_error_of_whoever_is_told_stops_the_rest_too() -> None:
    n_started, told, stop = [], [], threading.Event()

    def tell(result: int) -> None:
        told.append(result)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        compute([partial(n_started.append, i) for i in range(1000)], 2, tell, stop)
    assert stop.is_set()
    assert (len(told), len(n_started) < 100) == (1, True)


def test_without_an_error_nobody_is_stopped() -> None:
    stop = threading.Event()
    compute([partial(square, 3)] * 5, 2, stop=stop)
    assert not stop.is_set()


def test_a_signal_stops_the_rest_and_waits_for_what_is_under_way() -> None:
    at_work = []

    def task() -> None:
        at_work.append(1)
        try:
            if len(at_work) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            while True:
                check()
        finally:
            at_work.append(-1)

    with stoppable(), pytest.raises(Stopped):
        compute([task] * 20, 2)
    assert sum(at_work) == 0


@pytest.mark.parametrize("n_tasks", SIZES[1:])
def test_results_are_merged_in_order(n_tasks: int) -> None:
    def merge(texts: list[str]) -> str:
        return "".join(texts)

    letters = [chr(ord("a") + i % 26) for i in range(n_tasks)]
    assert reduce([partial(str, letter) for letter in letters], merge, 3) == "".join(letters)


def test_few_results_are_held_at_once_while_they_are_merged() -> None:
    alive, most = set(), []

    class Result:
        def __init__(self) -> None:
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    reduce([Result] * 1000, lambda _: Result(), 1)
    assert max(most) < 100, "of 1000"


HOSTILE = """
import threading
from pipeline.cluster.threads import compute, reduce
names = set()
def task():
    names.add(threading.current_thread().name.split("_")[0])
    return 3
print(compute([task] * 20, 2), reduce([task] * 20, sum, 2), names)
try:
    compute([lambda: 1 / 0], 2)
except ZeroDivisionError:
    print("as it was")
"""


def test_s19_the_environment_does_not_choose_where_tasks_run() -> None:
    settings = {"SCHEDULER": "processes", "POOL": "3", "NUM_WORKERS": "99", "CHUNKSIZE": "50"}
    environment = {**os.environ, **{f"DASK_{name}": value for name, value in settings.items()}}
    environment["DASK_RERUN_EXCEPTIONS_LOCALLY"] = "True"
    command = [sys.executable, "-c", HOSTILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.split("\n")[:2] == [f"{[3] * 20} 60 {{'dask'}}", "as it was"], done.stderr


def test_tasks_run_without_what_other_kinds_of_workers_would_need() -> None:
    """Dask imports distributed, in 0.1 s, where it looks up a scheduler's name."""
    program = (
        "import sys; from pipeline.cluster.threads import compute; "
        "compute([int], 2); print('distributed' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"


def test_arrays_come_through_as_they_are() -> None:
    rows = np.arange(6).reshape(2, 3)
    (found,) = compute([lambda: rows], 1)
    assert found is rows
