"""Check of the devices of workers before a run, and retirement of workers whose device is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from distributed import Client, Future, Reschedule, Worker, get_worker

from shardpress.cluster.connection import submit_to_each, wait_for_answers, workers_of
from shardpress.cluster.stats import facts_of, process_name
from shardpress.errors import DeviceError, DeviceLost, printable, quantity, short_list
from shardpress.processcache import ProcessCache

log = logging.getLogger(__name__)

_SECONDS = 600.0  # workers may finish tasks of other clients first, and compile kernels
_RETRY_SECONDS = 0.1
_MAX_LISTED = 8  # workers to list in a log message

_leaving_workers = ProcessCache[str, bool]()  # True for each worker of this process (by address) that is retiring


class _Device(Protocol):
    """Interface of the devices that `shardpress.device.start_device` returns."""

    reason: str  # why the process does not use the configured device; empty if it does


def check_devices(
    client: Client, start_device: Callable[[], _Device], requires_device: bool, keeps_others: bool = False
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Make every current worker initialize its device in a task.

    Returns
    -------
    facts : list of dict
        Facts about the workers to use (see `stats.facts_of`). With `keeps_others`, they include the workers that use a
        different device from the configured one.
    failures : dict of str to str
        Why workers do not use their configured devices. Keys are the names of the workers.

    Raises
    ------
    DeviceError
        If no worker can be used or, with `requires_device`, if there are failures.
    """
    workers = workers_of(client)
    futures = submit_to_each(client, workers, _describe_device, start_device)
    wait_for_answers(client, futures, _SECONDS)
    facts = []
    failures = {}
    for address, future in futures.items():
        name = str(workers[address]["name"])
        if future.status != "finished":
            failures[name] = _failure_of(future)
            continue
        process, device, reason = future.result()
        if reason:
            failures[name] = reason
        if keeps_others or not reason:
            facts.append(facts_of(process, name, device))
    client.cancel(list(futures.values()))
    for name, reason in failures.items():
        log.warning("cluster: worker %s cannot use its configured device: %s", printable(name), reason)
    if failures and (requires_device or not facts):
        first = next(iter(failures.values()))
        raise DeviceError(
            f"{quantity(len(failures), 'worker')} of {len(futures)} cannot be used. The first reason is: {first}"
        )
    names = short_list((f"{printable(each['name'])} {each['device']}" for each in facts), _MAX_LISTED)
    log.info("cluster: %s: %s", quantity(len(facts), "worker"), names)
    return facts, failures


def _describe_device(start_device: Callable[[], _Device]) -> tuple[str, str, str]:
    device = start_device()
    return process_name(), str(device), device.reason


def _failure_of(future: Future) -> str:
    if future.status == "error":
        return f"{future.exception()}"
    return "its process did not answer"


def run_or_retire(function: Callable[..., Any], *arguments: Any) -> Any:
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
