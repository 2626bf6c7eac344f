"""Tests of the executor on a scheduler's workers: results arrive, and failures of workers are reported clearly."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from distributed import Client as DaskClient
from distributed import Future as DaskFuture
from distributed import KilledWorker, LocalCluster
from distributed.comm import CommClosedError

from shardpress.cluster import connection, workers
from shardpress.cluster.device_check import run_or_retire
from shardpress.cluster.executor import compute
from shardpress.cluster.stats import WorkerStats
from shardpress.cluster.workers import ClusterExecutor, ClusterPool
from shardpress.errors import DataError
from shardpress.signals import Stopped, stoppable
from tests.support.helpers import refused
from tests.support.logged import mentions


class FakeFuture:
    """Future with the interface of Dask's futures."""

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.has_result = False  # if True, the result exists but cannot be fetched

    @property
    def status(self) -> str:
        if self.future.cancelled():
            return "cancelled"
        return "error" if self.future.exception() and not self.has_result else "finished"

    async def result(self) -> Any:
        return self.future.result()  # in a separate thread


class Client:
    """Client of a scheduler whose workers do nothing."""

    def __init__(self, n_workers: int = 1) -> None:
        self.status = "running"
        self.n_workers = n_workers
        self.has_cancelled = False
        self.loop = self  # runs each call in a separate thread
        self.scheduler = self

    def add_callback(self, function: Any, *arguments: Any) -> None:
        threading.Thread(target=lambda: asyncio.run(function(*arguments)), daemon=True).start()

    def submit(self, function: Any, /, call: Any, key: object) -> FakeFuture:
        assert function is run_or_retire
        pending = FakeFuture()
        self.work(pending.future, call)
        return pending

    def work(self, future: Future[Any], function: Any) -> None:
        pass

    def cancel(self, all_pending: list[FakeFuture]) -> None:
        self.has_cancelled = True
        for each in all_pending:
            each.future.cancel()

    def scheduler_info(self, n_workers: int) -> dict[str, int]:
        return {"n_workers": self.n_workers, "total_threads": self.n_workers}

    async def identity(self, n_workers: int) -> dict[str, int]:
        return self.scheduler_info(n_workers)


@pytest.fixture(autouse=True)
def watch_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (connection, workers):
        monkeypatch.setattr(module, "_WATCH_INTERVAL", 0.01)


def run(client: Any, n: int = 3, patience: float = 60.0) -> Any:
    pool = ClusterPool(client, "scheduler", "tls://10.0.0.7:8786", [], patience)
    with pool.executor(1) as where:
        return compute([(abs, -i) for i in range(n)], *where)


def test_a_scheduler_lost_without_an_answer_can_be_retried() -> None:
    """If a scheduler was killed between two rounds, the run used to end with a KeyError (exit code 70)."""

    class SilentClient(Client):
        def scheduler_info(self, n_workers: int) -> dict[str, int]:
            self.status = "closed"
            return {}

    with refused(75, "scheduler"):
        run(SilentClient())


def test_tasks_that_are_submitted_after_a_failure_fail_too() -> None:
    """A run waited forever if the connection was lost just before its first task was submitted."""
    executor = ClusterExecutor(Client(), WorkerStats())
    before = executor.submit(partial(abs, -1))
    executor.fail(ConnectionResetError())
    after = executor.submit(partial(abs, -2))
    for future in (before, after):
        assert isinstance(future.exception(timeout=0), ConnectionResetError)


def test_results_and_errors_are_passed_unchanged() -> None:
    class ComputingClient(Client):
        def work(self, future: Future[Any], function: Any) -> None:
            future.set_result(function())

    class FailingClient(Client):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def work(self, future: Future[Any], function: Any) -> None:
            future.set_exception(self.error)

    assert run(ComputingClient(), 40) == list(range(40))
    failing = FailingClient(DataError("bad"))
    with refused(65, "bad"):
        run(failing)
    assert failing.has_cancelled
    with pytest.raises(ConnectionResetError):  # a connection of the task itself, for example to a file server
        run(FailingClient(ConnectionResetError()))


def test_a_task_that_kills_its_workers_is_named() -> None:
    class DyingWorkers(Client):
        def work(self, future: Future[Any], function: Any) -> None:
            if str(function) == "-1":
                last: Any = SimpleNamespace(address="tls://10.0.0.8:1")
                future.set_exception(KilledWorker(("task-1", 3), last, allowed_failures=2))

    with refused(71, "-1: ", "3 workers", "tls://10.0.0.8:1"):
        run(DyingWorkers())


def test_a_lost_scheduler_ends_the_run_which_can_be_resumed() -> None:
    class LosingScheduler(Client):
        def work(self, future: Future[Any], function: Any) -> None:
            self.status = "connecting"
            future.cancel()  # Dask's client does this

    with refused(75, "scheduler"):
        run(LosingScheduler())

    class LosingResults(Client):
        def submit(self, *arguments: Any, key: object) -> FakeFuture:
            pending = super().submit(*arguments, key=key)
            pending.has_result = True
            return pending

        def work(self, future: Future[Any], function: Any) -> None:
            future.set_exception(CommClosedError("in <TCP (closed) ConnectionPool.gather>: Connection reset by peer"))

    with refused(75, "scheduler"):
        run(LosingResults())
    silent = Client()
    silent.status = "closed"  # without a notification
    with refused(75, "scheduler"):
        run(silent)


def test_a_run_without_workers_waits_for_a_limited_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_LOG_INTERVAL", 0.02)
    with refused(75, "worker", "0 s"):
        run(Client(n_workers=0), patience=0.4)
    assert mentions(caplog.text, "cluster:", "worker")


def test_a_signal_ends_a_run_that_waits_for_workers() -> None:
    class InterruptedClient(Client):
        def scheduler_info(self, n_workers: int) -> dict[str, int]:
            if threading.current_thread() is not threading.main_thread():  # the thread that polls while the run waits
                os.kill(os.getpid(), signal.SIGTERM)
            return {"n_workers": 0, "total_threads": 0}

    client = InterruptedClient()
    with stoppable(), pytest.raises(Stopped):
        run(client)
    assert client.has_cancelled


def test_a_result_counts_even_if_its_worker_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The part exists, but the run used to end with an internal error."""
    result = DaskFuture._result

    async def lose(self: DaskFuture, raiseit: bool = True) -> Any:
        found = await result(self, raiseit)
        self._state.lose()  # the scheduler makes the client do this
        return found

    monkeypatch.setattr(DaskFuture, "_result", lose)
    where = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "protocol": "tcp", "processes": False}
    with (
        mock.patch.dict(os.environ),  # Dask sets configuration for its workers
        LocalCluster(n_workers=1, threads_per_worker=1, **where) as cluster,
        DaskClient(cluster) as client,
    ):
        assert run(client) == [0, 1, 2]


class SilentClient(Client):
    """Client of a scheduler that receives queries but never answers, as if its process were suspended."""

    def __init__(self) -> None:
        super().__init__()
        self.is_aborted = threading.Event()
        self.scheduler_comm = self.rpc = self

    async def identity(self, n_workers: int) -> dict[str, int]:
        self.is_aborted.wait(60)
        raise CommClosedError("aborted")

    def abort(self) -> None:
        self.status = "connecting"
        self.is_aborted.set()

    async def close(self) -> None:
        pass


def test_a_scheduler_that_does_not_answer_counts_as_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = SilentClient()
    monkeypatch.setattr(connection, "_MAX_SILENCE", 0.05)
    with connection.disconnect_if_silent(client), refused(75, "scheduler"):
        run(client)
    assert client.is_aborted.is_set()
    assert mentions(caplog.text, "cluster:", "scheduler")


def test_a_signal_ends_a_run_whose_scheduler_does_not_answer() -> None:
    class InterruptedClient(SilentClient):
        def work(self, future: Future[Any], function: Any) -> None:
            if str(function) == "0":  # a second signal would end the process
                os.kill(os.getpid(), signal.SIGTERM)

    with stoppable(), pytest.raises(Stopped):
        run(InterruptedClient())
