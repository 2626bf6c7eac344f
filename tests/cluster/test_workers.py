"""Tests of the pool of a scheduler's workers: results arrive, and lost connections and workers are handled.

`tests/run/test_worker_faults.py` kills and stops workers, and `tests/run/test_cuda.py` takes their cards away.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from distributed import Client, LocalCluster, Security
from distributed import Future as DaskFuture

from shardpress.base.errors import DataError
from shardpress.base.signals import Stopped, stoppable
from shardpress.cluster.executor import compute, reduce
from shardpress.cluster.probe import Probe
from shardpress.cluster.workers import Cluster, ClusterPool, quiet_dask
from tests.support.clusters import until
from tests.support.helpers import refused


@contextmanager
def pool_of(n_workers: int, patience: float = 60.0) -> Iterator[ClusterPool]:
    """Provide the pool of a scheduler and workers in this process."""
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "protocol": "tcp", "processes": False}
    with (
        mock.patch.dict(os.environ),  # Dask sets configuration for its workers
        quiet_dask(),
        LocalCluster(n_workers=n_workers, threads_per_worker=2, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
        ClusterPool(client, Cluster("scheduler", "tcp://127.0.0.1", Security(), patience)).watched() as pool,
    ):
        yield pool


def run(pool: ClusterPool, tasks: Sequence[tuple[Callable[[Any], Any], Any]]) -> list[Any]:
    with pool.executor(1) as where:
        return compute(tasks, *where)


def repeat(argument: tuple[int, list[str]]) -> list[str]:
    n, words = argument
    return words * n


def join(found: Sequence[list[str]]) -> list[str]:
    return [word for words in found for word in words]


def fail(kind: type[Exception]) -> None:
    raise kind("bad")


def test_results_and_errors_are_passed_unchanged() -> None:
    # If Dask searched the arguments, a text that equals the name of a task would be replaced by a result.
    tasks = [(repeat, (i % 3, [f"task-{10**12 - i}", "x"])) for i in range(1, 41)]
    expected = [repeat(argument) for _, argument in tasks]
    reported: list[str] = []
    with pool_of(1) as pool:
        assert run(pool, tasks) == expected
        assert reduce(tasks, join, pool, 10, reported.extend) == join(expected)
        assert sorted(reported) == sorted(join(expected))
        with refused(65, "bad"):
            run(pool, [(fail, DataError)])
    # A connection of the task itself, for example to a file server.
    with pool_of(1) as pool, pytest.raises(ConnectionResetError):
        run(pool, [(fail, ConnectionResetError)])


def test_tasks_that_are_submitted_after_a_failure_fail_too() -> None:
    """A run waited forever if the connection was lost just before its first task was submitted."""
    with pool_of(0) as pool:
        before = pool.submit(partial(abs, -1))
        pool.fail(ConnectionResetError())
        after = pool.submit(partial(abs, -2))
        for future in (before, after):
            assert isinstance(future.exception(timeout=0), ConnectionResetError)


def test_a_signal_ends_a_run_that_waits_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pool_of(0) as pool:
        submit = pool.submit

        def submit_and_interrupt(call: Any) -> Any:
            future = submit(call)
            os.kill(os.getpid(), signal.SIGTERM)
            return future

        monkeypatch.setattr(pool, "submit", submit_and_interrupt)
        with stoppable(), pytest.raises(Stopped):
            run(pool, [(abs, -1)])


def test_a_result_counts_even_if_its_worker_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part exists, but the run used to end with an internal error."""
    result = DaskFuture._result

    async def lose(self: DaskFuture, raiseit: bool = True) -> Any:
        found = await result(self, raiseit)
        self._state.lose()  # the scheduler makes the client do this
        return found

    monkeypatch.setattr(DaskFuture, "_result", lose)
    with pool_of(1) as pool:
        assert run(pool, [(abs, -i) for i in range(3)]) == [0, 1, 2]


def test_workers_may_be_absent_while_no_task_needs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch jobs of workers may end and be replaced while the driver trains for hours."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "work").mkdir()
    with pool_of(1, patience=0.0) as pool:
        probe = Probe(os.getcwd(), str(tmp_path), (), mixed_processors=True)
        pool.check_workers(probe, lambda: SimpleNamespace(reason=""), requires_device=False)
        cluster: Any = pool._client.cluster
        for n_workers in (0, 1):
            cluster.scale(n_workers)
            until(lambda n_workers=n_workers: pool.n_workers == n_workers, "workers to leave and join")
        assert run(pool, [(abs, -1)]) == [1]
