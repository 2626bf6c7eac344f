"""What each worker computes on: asked of it by a task, as the work itself will come; without it, the worker leaves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from uuid import uuid4

from distributed import Client, Future, Reschedule, Worker, get_worker

from pipeline.cluster.connection import waited
from pipeline.cluster.stats import who
from pipeline.errors import DeviceLost, counted, shown
from pipeline.processcache import ProcessCache

__all__ = ["Proof", "at_work", "proofs", "wait_for_answers", "workers_of"]

log = logging.getLogger(__name__)

_SOON = 0.1  # seconds

_leaving = ProcessCache[str, bool]()  # by address of a worker of this process: whether it is leaving


class _Device(Protocol):
    """As `pipeline.device.start_device` gives it."""

    reason: str
    place: str


@dataclass(frozen=True)
class Proof:
    """What a worker has said of itself.

    Attributes
    ----------
    name : str
        The scheduler's for it.
    by : str
        Its process: see `pipeline.cluster.stats.who`.
    device : str
        What it computes on.
    reason : str
        Why that is not what it was to compute on; empty when it is.
    place : str
        Where that device is, if it is a card.
    """

    name: str
    by: str
    device: str
    reason: str
    place: str = ""

    @property
    def known(self) -> dict[str, Any]:
        """Plain values for reports."""
        host, _, pid = self.by.rpartition(":")
        return {"name": self.name, "host": host, "pid": int(pid), "device": self.device}


def _prove(start: Callable[[], _Device]) -> tuple[str, str, str, str]:
    device = start()
    return who(), str(device), device.reason, device.place


def proofs(client: Client, start: Callable[[], _Device], seconds: float) -> tuple[list[Proof], dict[str, str]]:
    """Have every worker that is there take its device.

    Parameters
    ----------
    start : callable
        Takes it: `pipeline.device.start_device`.
    seconds : float
        How long to wait: a worker may be at work for others.

    Returns
    -------
    list of Proof
        Of those that answered.
    dict of str to str
        The names of the others, and why.
    """
    workers = workers_of(client)
    asked = {
        address: client.submit(_prove, start, key=f"prove-{uuid4().hex}", workers=[address], pure=False)
        for address in workers
    }
    wait_for_answers(client, asked, seconds)
    answers = list[Proof]()
    failed = dict[str, str]()
    for address, future in asked.items():
        name = str(workers[address]["name"])
        if future.status == "finished":
            answers.append(Proof(name, *future.result()))
        else:
            failed[name] = f"{future.exception()}" if future.status == "error" else "its process gave no answer"
    client.cancel(list(asked.values()))
    return answers, failed


def wait_for_answers(client: Client, asked: Mapping[str, Future], seconds: float) -> None:
    """Until all have answered that can: a task that is bound to a worker which has died waits for ever.

    Parameters
    ----------
    asked : mapping of str to Future
        What each worker, by its address, is to answer.
    seconds : float
        At most.
    """

    def all_told() -> bool:
        waiting = {address for address, future in asked.items() if not future.done()}
        return not waiting or _gone(client, waiting) == waiting

    waited(all_told, f"the answers of {counted(len(asked), 'worker')}", seconds)


def workers_of(client: Client) -> dict[str, dict[str, Any]]:
    """What the scheduler knows of each worker that is there, by its address.

    Asked of it directly: what `Client.scheduler_info` has been told the client may have replaced, before it returns, by
    what it asks for every other second, which is of no worker.
    """
    answer = client.sync(client.scheduler.identity, n_workers=-1)  # type: ignore[union-attr]
    return dict(answer["workers"])


def _gone(client: Client, addresses: Iterable[str]) -> set[str]:
    return set(addresses) - set(workers_of(client))


def at_work(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a worker does for a task: calls the function; if its device is lost by that, it leaves.

    Raises
    ------
    Reschedule
        By which the scheduler gives the task to whichever worker is there.
    """
    try:
        return function(*arguments)
    except DeviceLost as error:
        worker = get_worker()
        # Tasks of other threads meet with the same, and so may one that comes before the scheduler has heard of it.
        if _leaving.put_if_new(worker.address, True):
            name = shown(worker.name)
            why = shown(error.why)
            log.warning("cluster: worker %s leaves, its work goes to the others: %s", name, why)
            worker.loop.add_callback(partial(_leave, worker))
        raise Reschedule from error


async def _leave(worker: Worker) -> None:
    """As one that has come to its end, which counts as nobody's death."""
    address = worker.address
    # While it is the only one, the results that it still has can be given to nobody; the driver fetches them soon.
    while address not in await worker.scheduler.retire_workers(
        workers=[address], close_workers=True, stimulus_id="device-lost"
    ):
        await asyncio.sleep(_SOON)
