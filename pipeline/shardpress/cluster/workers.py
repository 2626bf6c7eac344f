"""Pool of the workers of a Dask scheduler. Dask's failures are converted to errors and log messages of shardpress."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from distributed import Client, KilledWorker
from distributed import Future as DaskFuture

from shardpress import signals
from shardpress.cluster.connection import SchedulerMonitor, retry_if_worker_lost
from shardpress.cluster.device_check import run_or_retire
from shardpress.cluster.stats import WorkerStats
from shardpress.errors import SystemLimit, TryAgain, quantity
from shardpress.signals import Stopped

log = logging.getLogger(__name__)

LOGGERS = ("shardpress", "shardpress_kernels")
"""Names of the loggers whose warnings are shown to users."""
_MAX_SUBMITTED = 10_000
"""Maximum number of submitted tasks. It does not affect the scheduler's cost per task."""
_WATCH_INTERVAL = 0.5  # seconds
_LOG_INTERVAL = 30.0  # seconds
# These loggers report failures that shardpress also reports, and the end of connections that shardpress closes itself.
_QUIET_LOGGERS = (
    "distributed",
    "distributed.client",
    "distributed.gc",
    "distributed.scheduler",
    "tornado.application",
)
_RESUME = "Run the same command again to resume; finished results are kept."


class ClusterExecutor(Executor):
    """Executor that sends tasks to the workers of a scheduler."""

    def __init__(self, client: Client, stats: WorkerStats, n_remote_threads: int = 0) -> None:
        self.stats = stats
        self.n_remote_threads = n_remote_threads  # determines the size of batches
        self._client = client
        self._dask_futures = WeakSet[DaskFuture]()
        # All tasks are in one group, so that the scheduler queues them until a thread is free. The death of a worker
        # therefore affects only a few tasks.
        self._group = f"task-{uuid4().hex}"
        self._numbers = count()
        self._pending: set[Future[Any]] = set()
        self._failure: BaseException | None = None

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Submit a task. The returned future is not a Dask future, so that `fail` can end it."""
        future: Future[Any] = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if self._failure is not None:  # checked after the future was added, so that `fail` cannot miss it
            self._end(future, self._failure)
            return future
        key = (self._group, next(self._numbers))
        dask_future = self._client.submit(run_or_retire, function, *arguments, key=key, **named)
        self._dask_futures.add(dask_future)
        loop: Any = self._client.loop  # not None, because the client has been started
        loop.add_callback(_copy_result, dask_future, future, function)
        return future

    def fail(self, error: BaseException) -> None:
        """End all pending tasks, and all tasks that are submitted later, with an error."""
        self._failure = error
        for future in set(self._pending):
            self._end(future, error)

    def _end(self, future: Future[Any], error: BaseException) -> None:
        with suppress(InvalidStateError):  # the result has just arrived
            future.set_exception(error)

    def stop(self) -> None:
        """Cancel all tasks. Workers finish the tasks that are already running, and the results are ignored."""
        if self._client.status == "running":
            self._client.cancel(list(self._dask_futures))
        self.fail(_lost_connection())


async def _copy_result(dask_future: DaskFuture, future: Future[Any], function: Callable[..., Any]) -> None:
    """Copy the outcome of a task from Dask's future to our future, in the event loop of the client.

    Dask's own executor is not used, because it reads the status of a future after the result. If the worker dies in
    between, the status is no longer "finished", and that executor mistakes the result for an error.
    """
    result: Any = None
    error: BaseException | None = None
    try:
        result = await dask_future.result()
    except Exception as raised:
        # An error in the task itself sets the status to "error". If the scheduler is lost, the status is different:
        # either the connection breaks while the result is fetched, or the client cancels its futures.
        is_lost = dask_future.status != "error" and isinstance(raised, OSError | CancelledError)
        error = _lost_connection() if is_lost else _explain(raised, function)
    with suppress(InvalidStateError):  # `fail` has already ended the future
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _explain(error: BaseException, function: Callable[..., Any]) -> BaseException:
    if not isinstance(error, KilledWorker):
        return error
    # Dask cannot know which of several tasks has killed a worker, so it counts the death for each of these tasks.
    return SystemLimit(
        f"{function}: {quantity(error.allowed_failures + 1, 'worker')} died one after another while running this "
        f"task, the last one at {error.last_worker.address}. The usual cause is a lack of memory. Lower "
        "--memory-budget or --threads, or use fewer workers."
    )


def _lost_connection() -> TryAgain:
    return TryAgain(f"the connection to the scheduler is lost. {_RESUME}")


class ClusterPool:
    """Pool of the workers of a scheduler. It implements `shardpress.cluster.pool.WorkerPool`."""

    is_local = False

    def __init__(
        self,
        client: Client,
        kind: str,
        address: str,
        known: Sequence[dict[str, Any]],
        patience: float,
        n_local_processes: int = 0,
    ) -> None:
        self.stats = WorkerStats()
        self.n_local_processes = n_local_processes
        self._client = client
        self._kind = kind  # "workers" if this run has started the workers, otherwise "scheduler"
        self._address = address
        self._known = known  # facts about the workers at the start of the run (see `stats.facts_of`)
        self._patience = patience  # seconds without any worker after which the run ends

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        """Provide an executor that sends tasks to all workers, including workers that join later."""
        executor = ClusterExecutor(self._client, self.stats, self._n_threads())
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(executor, ended), daemon=True)
        watch.start()
        try:
            yield executor, _MAX_SUBMITTED
        except BaseException:
            executor.stop()
            raise
        finally:
            ended.set()
            watch.join(_LOG_INTERVAL)

    def facts(self) -> dict[str, Any]:
        return {"kind": self._kind, "address": self._address, "workers": self.stats.summary(self._known)}

    def _watch(self, executor: ClusterExecutor, ended: threading.Event) -> None:
        """Fail all tasks if their results can no longer arrive. The thread that waits for results cannot check this."""
        monitor = SchedulerMonitor(self._client)  # does not block, so that a silent scheduler does not delay signals
        absence = _Absence(self._patience)
        while not ended.wait(_WATCH_INTERVAL):
            try:
                signals.check()
                if self._client.status != "running":
                    raise _lost_connection()
                monitor.poll()
                absence.update(monitor.n_workers)
            except (Stopped, TryAgain) as error:
                executor.fail(error)
                return

    def _n_threads(self) -> int:
        # Without a connection, Dask raises an error or returns a description without numbers. `_watch` reports the lost
        # connection.
        with suppress(OSError, RuntimeError, KeyError):
            return int(self._client.scheduler_info(n_workers=0)["total_threads"])
        return 0


class _Absence:
    """Timer for the time without any worker."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._start = time.monotonic()
        self._last_log = self._start

    def update(self, n_workers: int | None) -> None:
        """Update the number of workers (None if unknown). Raise `TryAgain` after too much time without any worker."""
        now = time.monotonic()
        if n_workers != 0:
            self._start = now
            self._last_log = now
            return
        seconds = now - self._start
        if seconds > self._patience:
            raise TryAgain(f"no worker has been available for {self._patience:.0f} s, expected at least one. {_RESUME}")
        if now - self._last_log > _LOG_INTERVAL:
            self._last_log = now
            log.warning("cluster: no worker is available; waiting for one, %.0f s so far", seconds)


@contextmanager
def quiet_dask() -> Iterator[None]:
    """Silence Dask's loggers except for critical messages, because shardpress reports failures of workers itself."""
    levels = {name: logging.getLogger(name).level for name in _QUIET_LOGGERS}
    try:
        for name in _QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def forward_logs(client: Client) -> None:
    """Make all workers forward their warnings to the log of this process.

    The forwarding is not undone at the end, because that would wait for every worker, even if a worker does not
    respond. Workers stop forwarding when the client disconnects.
    """
    for name in LOGGERS:
        forward = partial(client.forward_logging, name, logging.WARNING)
        retry_if_worker_lost(client, forward)
