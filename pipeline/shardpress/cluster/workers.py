"""Pool of the workers of a Dask scheduler. Dask's failures are converted to errors and log messages of shardpress."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import Client, KilledWorker, Reschedule, Security, Worker, get_worker
from distributed import Future as DaskFuture
from distributed.comm.core import FatalCommClosedError
from distributed.versions import VersionMismatchWarning

from shardpress.base import signals
from shardpress.base.errors import ConfigError, DeviceLost, SystemLimit, TryAgain, printable, quantity
from shardpress.base.processcache import ProcessCache
from shardpress.base.signals import Stopped
from shardpress.cluster.checks import check_workers
from shardpress.cluster.probe import Probe
from shardpress.cluster.security import dask_security, scheduler_address
from shardpress.cluster.stats import KnownWorker, WorkerStats
from shardpress.result.facts import ClusterFacts
from shardpress.settings.config import ClusterSettings

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_MAX_SUBMITTED = 10_000
"""Maximum number of submitted tasks. It does not affect the scheduler's cost per task."""
_WATCH_INTERVAL = 0.5  # seconds
_LOG_INTERVAL = 30.0  # seconds
_MAX_SILENCE = 300.0  # seconds without an answer of the scheduler; Dask waits equally long for a worker
_PATIENCE = 1800.0  # seconds without any worker, because workers may wait in the queue of a batch system
_RETRY_SECONDS = 0.1
# These loggers report failures that shardpress also reports, and the end of connections that shardpress closes itself.
_QUIET_LOGGERS = ("distributed", "distributed.client", "distributed.gc", "distributed.scheduler", "tornado.application")

_leaving_workers = ProcessCache[str, bool]()  # True for each worker of this process (by address) that is retiring


@dataclass(frozen=True)
class Cluster:
    """A scheduler to connect to."""

    kind: str  # "workers" if this run has started the workers, otherwise "scheduler"
    address: str
    security: Security
    patience: float  # seconds without any worker after which the run ends
    n_local_processes: int = 0  # processes that share the cores and the memory of this machine


def existing_cluster(settings: ClusterSettings) -> Cluster:
    """Return the configured scheduler. If the scheduler file does not exist yet, wait for it."""
    scheduler = str(settings.scheduler)
    outage = _Outage(f"scheduler={printable(scheduler)} has not been written", _PATIENCE)
    while (address := scheduler_address(scheduler, settings.insecure_cluster)) is None:
        signals.check()
        outage.update(True)
        time.sleep(_RETRY_SECONDS)
    return Cluster("scheduler", address, dask_security(address), _PATIENCE)


@contextmanager
def cluster_pool(
    cluster: Cluster, probe: Probe, start_device: Callable[[], Device], requires_device: bool = False
) -> Iterator[ClusterPool]:
    """Connect to a scheduler, and provide its workers after a check. Workers can join and leave at any time."""
    with quiet_dask(), _client(cluster) as client, ClusterPool(client, cluster).watched() as pool:
        pool.check_workers(probe, start_device, requires_device)
        yield pool


@contextmanager
def _client(cluster: Cluster) -> Iterator[Client]:
    """Provide a client that is connected to the scheduler. Do not wait long at the end if it does not answer."""
    address = printable(cluster.address)
    log.info("cluster: connecting to %s", address)
    try:
        with warnings.catch_warnings():
            # Ignore Dask's warning, because `check_workers` refuses the differences that matter.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(cluster.address, security=cluster.security, timeout=_CONNECT_SECONDS, set_as_default=False)
    except FatalCommClosedError as error:
        raise ConfigError(
            f"scheduler: {address} and this process do not accept each other's certificates: {error}. Set certificates "
            "in Dask's configuration that match the certificates of the scheduler."
        ) from error
    except OSError as error:
        raise TryAgain(
            f"scheduler: cannot connect to {address} within {_CONNECT_SECONDS:.0f} s: {error}. Check that the "
            "scheduler is running, and whether it uses tcp:// or tls://. Then run the same command again."
        ) from error
    try:
        yield client
    finally:
        with suppress(OSError, RuntimeError):  # of a client whose connections have been closed
            client.close(timeout=_CLOSE_SECONDS)


class ClusterPool(Executor):
    """Executor that sends tasks to all workers of a scheduler. It implements `shardpress.cluster.pool.WorkerPool`."""

    is_local = False

    def __init__(self, client: Client, cluster: Cluster) -> None:
        self.stats = WorkerStats()
        self.n_local_processes = cluster.n_local_processes
        self.n_workers = 0
        self.n_remote_threads = 0  # determines the size of batches
        self._client = client
        self._cluster = cluster
        self._known: list[KnownWorker] = []  # at the start
        # All tasks are in one group, so that the scheduler queues them until a thread is free. The death of a worker
        # therefore affects only a few tasks.
        self._group = f"task-{uuid4().hex}"
        self._numbers = count()
        self._pending: set[Future[Any]] = set()
        self._failure: BaseException | None = None
        self._is_aborted = False

    def facts(self) -> ClusterFacts:
        return ClusterFacts(self._cluster.kind, self.stats.facts(self._known), self._cluster.address)

    def check_workers(self, probe: Probe, start_device: Callable[[], Device], requires_device: bool) -> None:
        """Wait for a worker, and check all workers. See `checks.check_workers`."""
        probe = probe.marked()
        # A remote worker without its configured device is slower, but others decided to start it.
        keeps_others = self._cluster.kind == "scheduler"
        try:
            self.n_workers = self._client.scheduler_info(n_workers=0)["n_workers"]
            if self.n_workers == 0:
                log.info("cluster: waiting for a worker of %s", printable(self._cluster.address))
            while self.n_workers == 0:
                if self._failure is not None:
                    raise self._failure
                time.sleep(_RETRY_SECONDS)
            self._known = check_workers(self._client, probe, start_device, requires_device, keeps_others)
            if "dashboard" in self._client.scheduler_info(n_workers=0)["services"]:
                log.info("cluster: the Dask dashboard is at %s", self._client.dashboard_link)
        except (OSError, CancelledError, RuntimeError) as error:
            # Dask raises a plain RuntimeError for requests after the connections have been closed.
            if isinstance(error, RuntimeError) and self._client.status == "running" and not self._is_aborted:
                raise
            raise self._failure or _lost_connection() from error

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        if self._client.status == "closed":  # it cannot submit tasks any more
            raise _lost_connection()
        yield self, _MAX_SUBMITTED

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """Submit a task. The returned future is not a Dask future, so that `fail` can end it."""
        future: Future[Any] = Future()
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        if self._failure is not None:  # checked after the future was added, so that `fail` cannot miss it
            _end(future, self._failure)
            return future
        key = (self._group, next(self._numbers))
        dask_future = self._client.submit(_run_or_retire, function, *arguments, key=key, **named)
        loop: Any = self._client.loop  # not None, because the client has been started
        loop.add_callback(_copy_result, dask_future, future, function)
        return future

    def stop(self) -> None:
        """End all tasks. Workers finish the tasks that are already running, and the results are ignored."""
        self.fail(_lost_connection())

    def fail(self, error: BaseException) -> None:
        """End all pending tasks, and all tasks that are submitted later, with an error."""
        self._failure = self._failure or error
        for future in set(self._pending):
            _end(future, error)

    @contextmanager
    def watched(self) -> Iterator[ClusterPool]:
        """Within the context, fail if results can no longer arrive, even if the scheduler is only silent."""
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(ended,), name="scheduler-watch", daemon=True)
        watch.start()
        try:
            yield self
        finally:
            ended.set()
            watch.join()

    def _watch(self, ended: threading.Event) -> None:
        """Fail after a signal too, because the thread that waits for results cannot check for signals."""
        silence = _Outage("the scheduler has not answered", _MAX_SILENCE)
        absence = _Outage("no worker is available", self._cluster.patience)
        request = self._request_facts()
        try:
            while not ended.wait(_WATCH_INTERVAL):
                signals.check()
                # While this process trains alone, the workers or the connection may be lost, and return.
                is_needed = not self._known or bool(self._pending)
                if self._client.status != "running":
                    if is_needed:
                        raise _lost_connection()
                    silence.update(False)
                    continue
                has_answered = request.done() and not request.cancelled() and request.exception() is None
                silence.update(not has_answered)
                if has_answered:
                    facts = request.result()
                    self.n_workers = facts["n_workers"]
                    self.n_remote_threads = facts["total_threads"]
                    absence.update(self.n_workers == 0 and is_needed)
                if request.done():
                    request = self._request_facts()
        except (Stopped, TryAgain) as error:
            if silence.has_ended:
                self._abort_connections()  # first, because a failure makes the other thread close the client
            self.fail(error)

    def _request_facts(self) -> Future[dict[str, int]]:
        """Request facts about the scheduler without waiting for the answer."""
        client: Any = self._client
        return asyncio.run_coroutine_threadsafe(client.scheduler.identity(n_workers=0), client.loop.asyncio_loop)

    def _abort_connections(self) -> None:
        """Close the connections of the client, so that calls that wait for the scheduler raise an error."""
        client: Any = self._client
        self._is_aborted = True

        async def abort() -> None:
            if client.scheduler_comm is not None:
                client.scheduler_comm.abort()
            await client.rpc.close()

        with suppress(OSError, CancelledError, RuntimeError):
            asyncio.run_coroutine_threadsafe(abort(), client.loop.asyncio_loop).result(_CLOSE_SECONDS)


def _end(future: Future[Any], error: BaseException) -> None:
    with suppress(InvalidStateError):  # the result has just arrived
        future.set_exception(error)


async def _copy_result(dask_future: DaskFuture, future: Future[Any], function: Callable[..., Any]) -> None:
    """Copy the outcome of a task from Dask's future to our future, in the event loop of the client.

    Dask's own executor is not used, because it reads the status of a future after the result. If the worker dies in
    between, the status is no longer "finished", and that executor mistakes the result for an error.
    """
    try:
        result = await dask_future.result()
    except Exception as error:
        # An error in the task itself sets the status to "error". If the scheduler is lost, the status is different:
        # either the connection breaks while the result is fetched, or the client cancels its futures.
        is_lost = dask_future.status != "error" and isinstance(error, OSError | CancelledError)
        _end(future, _lost_connection() if is_lost else _explain(error, function))
    else:
        with suppress(InvalidStateError):  # `fail` has already ended the future
            future.set_result(result)


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
    return TryAgain(
        "the connection to the scheduler is lost. Run the same command again to resume; finished results are kept."
    )


class _Outage:
    """Timer for the time during which something is not available."""

    def __init__(self, problem: str, patience: float) -> None:
        self._problem = problem
        self._patience = patience
        self._start = time.monotonic()
        self._next_log = _LOG_INTERVAL
        self.has_ended = False  # whether the patience has ended

    def update(self, is_out: bool) -> None:
        """Raise `TryAgain` if the outage has lasted too long."""
        now = time.monotonic()
        if not is_out:
            self._start = now
            self._next_log = _LOG_INTERVAL
            return
        seconds = now - self._start
        if seconds > self._patience:
            self.has_ended = True
            raise TryAgain(
                f"{self._problem} for {self._patience:.0f} s. Run the same command again to resume; finished results "
                "are kept."
            )
        if seconds > self._next_log:
            self._next_log += _LOG_INTERVAL
            log.warning("cluster: %s for %.0f of %.0f s", self._problem, seconds, self._patience)


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


# -- on a worker -------------------------------------------------------------------------------------------------------


def _run_or_retire(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task on a worker. If the device is lost, retire the worker, so that another worker runs the task."""
    try:
        return function(*arguments)
    except DeviceLost as error:
        worker = get_worker()
        # Other threads fail in the same way, and new tasks arrive until the scheduler retires the worker. Only the
        # first failure starts the retirement.
        if _leaving_workers.put_if_new(worker.address, True):
            name = printable(worker.name)
            reason = printable(error.why)
            log.warning("cluster: retiring worker %s: %s; other workers run its tasks", name, reason)
            worker.loop.add_callback(partial(_leave, worker))
        raise Reschedule from error


async def _leave(worker: Worker) -> None:
    """Retire a worker. In contrast to a worker's death, this does not count as a failure of its tasks."""
    address = worker.address
    # The scheduler refuses to retire the last worker until the driver has fetched its results, because no other worker
    # could hold them.
    while address not in await worker.scheduler.retire_workers(
        workers=[address], close_workers=True, stimulus_id="device-lost"
    ):
        await asyncio.sleep(_RETRY_SECONDS)
