"""Functions that wait for a scheduler and its workers, with time limits, log messages and handling of signals."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from distributed import Client, Future

from shardpress import signals
from shardpress.errors import quantity

log = logging.getLogger(__name__)

T = TypeVar("T")

_WAIT_INTERVAL = 0.1  # seconds
_WATCH_INTERVAL = 0.5  # seconds
_FIRST_LOG = 3.0  # seconds
_LOG_INTERVAL = 30.0  # seconds
_MAX_TRIES = 5
_MAX_SILENCE = 300.0  # seconds without an answer; Dask waits equally long for a worker


def wait_until(
    condition: Callable[[], T],
    description: str,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call a function until its result is true. Return the result, which is false after the time limit."""
    start = clock()
    next_log = start + _FIRST_LOG
    while not (result := condition()):
        signals.check()
        now = clock()
        if now - start > seconds:
            break
        if now > next_log:
            log.info("cluster: waiting for %s, %.0f of %.0f s", description, now - start, seconds)
            next_log = now + _LOG_INTERVAL
        sleep(_WAIT_INTERVAL)
    return result


def retry_if_worker_lost(client: Client, request: Callable[[], T]) -> T:
    """Send a request to all workers. Repeat it if it raises `OSError` because a worker, not the scheduler, is lost."""
    for _ in range(_MAX_TRIES - 1):
        try:
            return request()
        except OSError as error:
            if client.status != "running":
                raise
            log.debug("cluster: a worker was lost during a request: %s", error)
    return request()


def submit_to_each(
    client: Client, workers: Iterable[str], function: Callable[[Any], Any], argument: object, priority: int = 0
) -> dict[str, Future]:
    """Submit a call to each worker, and return the futures by address. Other tasks have priority 0."""
    futures = {}
    for address in workers:
        futures[address] = client.submit(
            function, argument, workers=[address], allow_other_workers=False, pure=False, priority=priority
        )
    return futures


def wait_for_answers(client: Client, futures: Mapping[str, Future], seconds: float) -> None:
    """Wait until all futures of `submit_to_each` are done, except futures of lost workers, which remain pending."""

    def is_over() -> bool:
        pending = {address for address, future in futures.items() if not future.done()}
        return not pending or pending.isdisjoint(workers_of(client))

    wait_until(is_over, f"the answers of {quantity(len(futures), 'worker')}", seconds)


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """Return the scheduler's facts about its current workers. Keys are the addresses of the workers.

    This function does not use `Client.scheduler_info`. The client periodically requests the same information without
    the workers, and such an answer can replace the complete one before the method returns.
    """
    answer = client.sync(client.scheduler.identity, n_workers=-1)  # type: ignore[union-attr]
    return dict(answer["workers"])


class SchedulerMonitor:
    """Monitor that polls a scheduler without waiting for the answers.

    It detects schedulers that are suspended or cut off from the network. Their connections remain open, but they do not
    answer.
    """

    def __init__(self, client: Client) -> None:
        self.n_workers: int | None = None  # None before the first answer
        self._client = client
        self._is_waiting = False
        self._last_answer = time.monotonic()

    def poll(self) -> float:
        """Send a request unless an earlier one is pending, and return the seconds since the last answer."""
        if not self._is_waiting:
            self._is_waiting = True
            _call_in_loop(self._client, self._request_answer)
        return time.monotonic() - self._last_answer

    async def _request_answer(self) -> None:
        scheduler: Any = self._client.scheduler  # None if the client has been closed
        try:
            answer = await scheduler.identity(n_workers=0)
            self.n_workers = int(answer["n_workers"])
            self._last_answer = time.monotonic()
        except Exception as error:  # the connection is lost, and the client's status also shows this
            log.debug("cluster: the scheduler does not answer: %r", error)
        finally:
            self._is_waiting = False


@contextmanager
def disconnect_if_silent(client: Client) -> Iterator[None]:
    """Within the context, close the connections of a client if the scheduler stops answering for five minutes.

    After that, calls that wait for the scheduler raise `OSError`, and the status of the client is no longer
    ``running``.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, ended), name="scheduler-monitor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(client: Client, ended: threading.Event) -> None:
    monitor = SchedulerMonitor(client)
    last_log = 0.0  # seconds of silence at the last log message
    while not ended.wait(_WATCH_INTERVAL):
        silence = monitor.poll()
        if silence > _MAX_SILENCE:
            log.warning("cluster: the scheduler has not answered for %.0f s; treating it as lost", silence)
            _abort_connections(client)
            return
        if silence < _LOG_INTERVAL:
            last_log = 0.0
        elif silence - last_log > _LOG_INTERVAL:
            last_log = silence
            log.warning("cluster: the scheduler has not answered for %.0f of %.0f s", silence, _MAX_SILENCE)


def _abort_connections(client: Client) -> None:
    async def abort() -> None:
        if client.scheduler_comm is not None:
            client.scheduler_comm.abort()
        await client.rpc.close()

    _call_in_loop(client, abort)


def _call_in_loop(client: Client, function: Callable[[], Awaitable[None]]) -> None:
    """Call a function in the event loop of a client, which runs in a separate thread."""
    loop: Any = client.loop  # not None, because the client has been started
    loop.add_callback(function)
