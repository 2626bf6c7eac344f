"""Whether a scheduler still answers. One that is stopped or cut off keeps its connections open and says nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client

__all__ = ["Pulse", "watched"]

log = logging.getLogger(__name__)

_LOOK = 0.5  # seconds
_SILENT = 300.0  # seconds without an answer, after which a scheduler counts as lost: Dask gives a worker as long
_TOLD_EVERY = 30.0  # seconds


class Pulse:
    """Asks a scheduler again and again, without ever waiting for it.

    Parameters
    ----------
    client : Client

    Attributes
    ----------
    n_workers : int or None
        Number of workers in the last answer; None before the first one.
    """

    def __init__(self, client: Client) -> None:
        self.n_workers: int | None = None
        self._client = client
        self._is_asking = False
        self._last = time.monotonic()

    def beat(self) -> float:
        """Ask, unless the last question is still open, and return the seconds since the last answer."""
        if not self._is_asking:
            self._is_asking = True
            _in_loop(self._client, self._ask)
        return time.monotonic() - self._last

    async def _ask(self) -> None:
        scheduler: Any = self._client.scheduler  # None where the client has been closed
        try:
            answer = await scheduler.identity(n_workers=0)
            self.n_workers = int(answer["n_workers"])
            self._last = time.monotonic()
        except Exception as error:  # the connection was lost; the client's status reports it
            log.debug("cluster: the scheduler gives no answer: %r", error)
        finally:
            self._is_asking = False


def _in_loop(client: Client, function: Callable[[], Awaitable[None]]) -> None:
    """Have the client's own thread call a function."""
    loop: Any = client.loop  # which a client has that has been started
    loop.add_callback(function)


@contextmanager
def watched(client: Client) -> Iterator[None]:
    """Give up the connection when the scheduler stops answering, for as long as the context lasts.

    Whatever waits for the scheduler then ends with an `OSError`, and the client's status is not ``running`` any more.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(client, over), name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(client: Client, over: threading.Event) -> None:
    pulse = Pulse(client)
    told = 0.0
    while not over.wait(_LOOK):
        silent = pulse.beat()
        if silent > _SILENT:
            log.warning("cluster: the scheduler has not answered for %.0f s; it counts as lost", silent)
            _give_up(client)
            return
        if silent < _TOLD_EVERY:
            told = 0.0
        elif silent - told > _TOLD_EVERY:
            told = silent
            log.warning("cluster: the scheduler has not answered for %.0f of %.0f s", silent, _SILENT)


def _give_up(client: Client) -> None:
    """Break all connections of a client."""

    async def abort() -> None:
        if client.scheduler_comm is not None:
            client.scheduler_comm.abort()
        await client.rpc.close()

    _in_loop(client, abort)
