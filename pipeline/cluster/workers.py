"""A crew of processes: tasks go to the workers of a scheduler, and what befalls these is told in our words."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from distributed import Client, KilledWorker
from distributed import Future as DaskFuture

from pipeline import signals
from pipeline.cluster.connection import ask_all
from pipeline.cluster.device_check import at_work
from pipeline.cluster.pulse import Pulse
from pipeline.cluster.stats import Tally
from pipeline.errors import ShardpressError, SystemLimit, TryAgain, counted
from pipeline.signals import Stopped

__all__ = ["OURS", "ClusterExecutor", "Workers", "hear", "hushed"]

log = logging.getLogger(__name__)

OURS = ("pipeline", "kernels")  # whose loggers speak to the user
_MOST = 10_000  # tasks under way: what they cost the scheduler does not grow with their number
_LOOK = 0.5  # seconds
_TOLD_EVERY = 30.0  # seconds
# What they say of what is told here in other words, and of an end that was asked for.
_NOISY = ("distributed", "distributed.client", "distributed.gc", "distributed.scheduler", "tornado.application")
_AGAIN = "Type the same command again: what was finished stays."


class ClusterExecutor(Executor):
    """Tasks to the workers of a scheduler.

    Attributes
    ----------
    tally : Tally
        That is told of each result: see `pipeline.cluster.executor`.
    n_far : int
        As there: threads of the workers, by which tasks are counted off.
    """

    def __init__(self, client: Client, tally: Tally, n_far: int = 0) -> None:
        self.tally = tally
        self.n_far = n_far
        self._client = client
        self._asked = WeakSet[DaskFuture]()
        # Of one group, so that the scheduler keeps what no worker has room for: the death of one then touches few.
        self._group = f"task-{uuid4().hex}"
        self._numbers = count()
        self._waiting: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """A future, in whose place another one's error can be put."""
        told: Future[Any] = Future()
        self._waiting.add(told)
        told.add_done_callback(self._waiting.discard)
        asked = self._client.submit(at_work, function, *arguments, key=(self._group, next(self._numbers)), **named)
        self._asked.add(asked)
        loop: Any = self._client.loop  # which a client has that has been started
        loop.add_callback(_pass_on, told, function, asked)
        return told

    def fail(self, error: BaseException) -> None:
        """Have all that is under way end by this error."""
        for each in set(self._waiting):
            with suppress(InvalidStateError):  # its result has come meanwhile
                each.set_exception(error)

    def stop(self) -> None:
        """Take back what is under way; what a worker is at it goes on with, and nobody asks for its result."""
        if self._client.status == "running":
            self._client.cancel(list(self._asked))
        self.fail(_lost())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As every executor's."""
        if cancel_futures:
            self.stop()
        elif wait and self._client.status == "running":
            futures.wait(set(self._waiting))


async def _pass_on(told: Future[Any], function: Callable[..., Any], asked: DaskFuture) -> None:
    """What comes of a task, by the loop of the client.

    Dask's own executor looks at a future's state once it has the result; where the worker has died in between, that is
    not "finished" any more, and the result is taken for an error.
    """
    result: Any = None
    error: BaseException | None = None
    try:
        result = await asked.result()
    except Exception as raised:
        # What the task has raised is in the future's state. Of a scheduler that is lost one hears by a connection that
        # breaks while a result is asked for, and before that by a future that the client has cancelled.
        is_lost = asked.status != "error" and isinstance(raised, OSError | CancelledError)
        error = _lost() if is_lost else _in_our_words(raised, function)
    with suppress(InvalidStateError):  # it has been failed meanwhile
        if error is None:
            told.set_result(result)
        else:
            told.set_exception(error)


def _in_our_words(error: BaseException, function: Callable[..., Any]) -> BaseException:
    if not isinstance(error, KilledWorker):
        return error
    # Which of the tasks that a worker had before it has killed it, nobody knows: each of them is suspected.
    return SystemLimit(
        f"{function}: {counted(error.allowed_failures + 1, 'worker')} died, one after the other, while this was theirs "
        f"to do, the last one at {error.last_worker.address}: killed for want of memory, as a rule. Lower "
        "--memory-budget or --threads, or take fewer workers."
    )


def _lost() -> ShardpressError:
    return TryAgain(f"the connection to the scheduler is lost. {_AGAIN}")


class Workers:
    """Processes that do tasks for a scheduler.

    Parameters
    ----------
    kind : str
        Whose they are: ``workers`` of this run, or of a ``scheduler`` that was there.
    address : str
        Of the scheduler.
    known : sequence of dict
        Those that have been asked: ``name``, ``host``, ``pid`` and ``device``.
    patience : float
        Seconds without any worker after which a run gives up.
    n_sharing : int
        As `pipeline.cluster.pool.Crew`.
    """

    is_here = False

    def __init__(
        self,
        client: Client,
        kind: str,
        address: str,
        known: Sequence[dict[str, Any]],
        patience: float,
        n_sharing: int = 0,
    ) -> None:
        self.tally = Tally()
        self.n_sharing = n_sharing
        self._client = client
        self._kind = kind
        self._address = address
        self._known = known
        self._patience = patience

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        """What hands tasks to whichever workers are there."""
        n_far = self._n_threads()  # others may come, and have a share in what is left
        executor = ClusterExecutor(self._client, self.tally, n_far)
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(executor, over), daemon=True)
        watch.start()
        try:
            yield executor, _MOST
        except BaseException:
            executor.stop()
            raise
        finally:
            over.set()
            watch.join(_TOLD_EVERY)

    def facts(self) -> dict[str, Any]:
        """Their kind, where the scheduler is, and what each of them has done."""
        return {"kind": self._kind, "address": self._address, "workers": self.tally.told(self._known)}

    def _watch(self, executor: ClusterExecutor, over: threading.Event) -> None:
        """End what waits for results that cannot come: whoever waits for them looks at nothing else."""
        last = told = time.monotonic()
        pulse = Pulse(self._client)  # which never waits: a scheduler that says nothing must not keep a signal waiting
        while not over.wait(_LOOK):
            try:
                signals.check()
            except Stopped as stopped:
                return executor.fail(stopped)
            if self._client.status != "running":
                return executor.fail(_lost())
            now = time.monotonic()
            pulse.beat()
            if pulse.n_workers != 0:
                last = told = now
            elif now - last > self._patience:
                return executor.fail(
                    TryAgain(f"no worker has been there for {self._patience:.0f} s, expected one or more. {_AGAIN}")
                )
            elif now - told > _TOLD_EVERY:
                told = now
                log.warning("cluster: no worker is there; waiting for one, %.0f s so far", now - last)

    def _n_threads(self) -> int:
        """Return the number of the workers' threads; 0 where the connection is lost."""
        # Without a connection Dask raises an error or returns a description without numbers. `_watch` reports it.
        with suppress(OSError, RuntimeError, KeyError):
            return int(self._client.scheduler_info(n_workers=0)["total_threads"])
        return 0


@contextmanager
def hushed() -> Iterator[None]:
    """Within the context Dask's own loggers say next to nothing: of what befalls workers we speak ourselves."""
    before = {name: logging.getLogger(name).level for name in _NOISY}
    try:
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def hear(client: Client) -> None:
    """From now on what tasks warn of stands in the driver's log, as if they ran there.

    It is never taken back: that would wait for every worker, one that is stuck among them; and when the client has gone
    nobody is told any more.
    """
    for name in OURS:
        ask_all(partial(client.forward_logging, name, logging.WARNING), lambda: client.status == "running")
