"""Check of the devices of workers before a run, and retirement of workers whose device is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from distributed import Client, Future, Reschedule, Worker, get_worker

from shardpress.cluster.connection import submit_to_each, wait_for_answers, workers_of
from shardpress.cluster.stats import process_name
from shardpress.errors import DeviceError, DeviceLost, printable, quantity
from shardpress.processcache import ProcessCache

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.1  # seconds

_leaving_workers = ProcessCache[str, bool]()  # True for each worker of this process (by address) that is retiring


class _Device(Protocol):
    """Interface of the devices that `shardpress.device.start_device` returns."""

    reason: str
    place: str


@dataclass(frozen=True)
class WorkerDevice:
    """Device that a worker has reported.

    Attributes
    ----------
    worker : str
        Name of the worker in the scheduler.
    process : str
        Name of the worker's process (see `shardpress.cluster.stats.process_name`).
    device : str
        Description of the device.
    reason : str
        Reason why the worker does not use the configured device. Empty if it uses the configured device.
    place : str
        Location of the device if it is a card, otherwise empty.
    """

    worker: str
    process: str
    device: str
    reason: str
    place: str = ""

    def facts(self) -> dict[str, Any]:
        """Return plain values for reports."""
        host, _, pid = self.process.rpartition(":")
        return {"name": self.worker, "host": host, "pid": int(pid), "device": self.device}


def check_devices(
    client: Client, start_device: Callable[[], _Device], seconds: float
) -> tuple[list[WorkerDevice], dict[str, str]]:
    """Make every current worker initialize its device in a task.

    Parameters
    ----------
    client : Client
        Client of the scheduler.
    start_device : callable
        Function that initializes the device of a process (`shardpress.device.start_device`).
    seconds : float
        Time limit. Workers may first have to finish tasks of other clients.

    Returns
    -------
    devices : list of WorkerDevice
        Devices of the workers that answered. Some may differ from the configured devices (see `wrong_devices`).
    failures : dict of str to str
        Errors of the other workers. Keys are the names of the workers.
    """
    workers = workers_of(client)
    futures = submit_to_each(client, workers, _describe_device, start_device)
    wait_for_answers(client, futures, seconds)
    devices = []
    failures = {}
    for address, future in futures.items():
        name = str(workers[address]["name"])
        if future.status == "finished":
            devices.append(WorkerDevice(name, *future.result()))
        else:
            failures[name] = _failure_of(future)
    client.cancel(list(futures.values()))
    return devices, failures


def wrong_devices(devices: Sequence[WorkerDevice]) -> dict[str, str]:
    """Map the name of each worker that does not use its configured device to the reason."""
    return {device.worker: device.reason for device in devices if device.reason}


def unusable_workers(failures: Mapping[str, str], n_workers: int) -> DeviceError:
    """Return an error with the number of failed workers and the first failure."""
    reason = next(iter(failures.values()))
    return DeviceError(
        f"{quantity(len(failures), 'worker')} of {n_workers} cannot be used. The first reason is: {reason}"
    )


def _describe_device(start_device: Callable[[], _Device]) -> tuple[str, str, str, str]:
    """Return the fields of a `WorkerDevice` after the first one. This function runs on the worker."""
    device = start_device()
    return process_name(), str(device), device.reason, device.place


def _failure_of(future: Future) -> str:
    if future.status == "error":
        return f"{future.exception()}"
    return "its process did not answer"


def run_or_retire(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a task on a worker. If the device is lost, retire the worker, so that another worker runs the task.

    Raises
    ------
    Reschedule
        If the device is lost. The scheduler then assigns the task to any worker.
    """
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
