"""Checks of workers before their first task: the same packages, files and kind of processor, and a working device."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from distributed import Client, Worker, WorkerPlugin

from shardpress.base.errors import ConfigError, DeviceError, TryAgain, printable, quantity, short_list
from shardpress.cluster.probe import Probe, differences, packages
from shardpress.cluster.stats import KnownWorker, process_name

if TYPE_CHECKING:
    from shardpress_kernels.backend import Device

log = logging.getLogger(__name__)

LOGGERS = ("shardpress", "shardpress_kernels")
"""Names of the loggers whose warnings are shown to users."""
_DEVICE_SECONDS = 600.0  # workers may compile kernels
_RETRY_SECONDS = 0.5
_MAX_LISTED = 8  # workers to list in a log message
_MAX_REFUSED = 3  # workers to list for each reason


class _Check(WorkerPlugin):
    """Comparison of a process with the driver. As a plugin, it checks workers that join later, and retires some."""

    def __init__(self, probe: Probe, client: str) -> None:
        self.name = f"shardpress-{client}"
        self._probe = probe
        self._driver = probe.facts()
        self._client = client  # id of the driver's client; after it has disconnected, no worker is checked

    def problems(self) -> list[str]:
        """Return how this process differs from the driver."""
        return differences(self._driver, self._probe.facts())

    async def setup(self, worker: Worker) -> None:
        """Check a worker. This blocks its event loop, but for less time than the scheduler waits for a heartbeat."""
        if not await self._is_running(worker):
            return
        problems = self.problems()
        if problems:
            log.warning("cluster: rejected worker %s: %s", printable(worker.name), "; ".join(problems))
            # Let the scheduler retire the worker, so that this does not count as a death. `worker.close()` would cause
            # a deadlock, because it waits for the nanny, and the nanny waits for this method.
            await worker.scheduler.retire_workers(workers=[worker.address], close_workers=True, stimulus_id=self.name)

    async def _is_running(self, worker: Worker) -> bool:
        events = await worker.scheduler.events(topic=self._client)
        if not events:
            return False
        return all(event.get("action") != "remove-client" for _, event in events)


@dataclass(frozen=True)
class _Answer:
    """Report of a process about itself."""

    name: str
    process: str = ""
    problems: tuple[str, ...] = ()  # differences from the driver, which refuse the worker
    device: str = ""
    failure: str = ""  # why the worker does not use its configured device


def check_workers(
    client: Client, probe: Probe, start_device: Callable[[], Device], requires_device: bool, keeps_others: bool
) -> list[KnownWorker]:
    """Check the scheduler and all its workers, and later those that join. Return the workers to use.

    Workers without their configured device are retired, unless `keeps_others`.

    Raises
    ------
    ConfigError
        If workers could compute different results from this process.
    DeviceError
        If no worker can be used or, with `requires_device`, if a worker does not use its configured device.
    """
    check = _Check(probe, client.id)
    results = client.run(_examine, check, start_device, on_error="return")
    # The connection to a worker that was lost meanwhile raises an `OSError`.
    answers = {
        address: _answer_of(address, result) for address, result in results.items() if not isinstance(result, OSError)
    }
    _refuse([_examine_scheduler(client), *answers.values()])
    failures = {address: answer for address, answer in answers.items() if answer.failure}
    for answer in failures.values():
        log.warning("cluster: worker %s cannot use its configured device: %s", printable(answer.name), answer.failure)
    usable = [answer for answer in answers.values() if answer.device and (keeps_others or not answer.failure)]
    if not answers:
        raise TryAgain("all workers were lost while they were checked. Run the same command again.")
    if failures and (requires_device or not usable):
        first = next(iter(failures.values()))
        raise DeviceError(
            f"{quantity(len(failures), 'worker')} of {len(answers)} cannot be used. The first reason is: "
            f"{first.failure}"
        )
    names = short_list((f"{printable(answer.name)} {answer.device}" for answer in usable), _MAX_LISTED)
    log.info("cluster: %s: %s", quantity(len(usable), "worker"), names)
    if failures and not keeps_others:
        client.retire_workers(list(failures), close_workers=True)
    for name in LOGGERS:
        _retry(client, partial(client.forward_logging, name, logging.WARNING))
    _retry(client, partial(client.register_plugin, check))
    return [KnownWorker(answer.process, answer.name, answer.device) for answer in usable]


def _examine_scheduler(client: Client) -> _Answer:
    try:
        problems = differences(packages(), client.run_on_scheduler(packages))
    except OSError:  # the connection is lost
        raise
    except Exception as error:  # the packages of the scheduler can raise any exception
        problems = [_no_answer(error)]
    return _Answer("scheduler", problems=tuple(problems))


async def _examine(check: _Check, start_device: Callable[[], Device], dask_worker: Worker) -> _Answer:
    """Compare a worker with the driver, and start its device. The thread leaves the worker's event loop free."""
    name = str(dask_worker.name)
    try:
        return await asyncio.wait_for(asyncio.to_thread(_examine_in_thread, name, check, start_device), _DEVICE_SECONDS)
    except TimeoutError:
        return _Answer(name, failure=f"it did not start within {_DEVICE_SECONDS:.0f} s")


def _examine_in_thread(name: str, check: _Check, start_device: Callable[[], Device]) -> _Answer:
    problems = check.problems()
    if problems:
        return _Answer(name, problems=tuple(problems))
    try:
        device = start_device()
    except Exception as error:
        return _Answer(name, failure=str(error))
    return _Answer(name, process_name(), device=str(device), failure=device.reason)


def _answer_of(address: str, result: _Answer | Exception) -> _Answer:
    if isinstance(result, _Answer):
        return result
    return _Answer(address, problems=(_no_answer(result),))


def _no_answer(error: BaseException) -> str:
    return f"it cannot be queried ({type(error).__name__}: {printable(' '.join(str(error).split()))})"


def _refuse(answers: Sequence[_Answer]) -> None:
    """Raise an error that lists each problem once with the affected processes, if a process has a problem."""
    names_by_problem: dict[str, list[str]] = {}
    for answer in answers:
        if answer.problems:
            names_by_problem.setdefault("; ".join(answer.problems), []).append(printable(answer.name))
    if not names_by_problem:
        return
    lists = ". ".join(f"{short_list(names, _MAX_REFUSED)}: {text}" for text, names in names_by_problem.items())
    n_refused = sum(map(len, names_by_problem.values()))
    raise ConfigError(
        f"{n_refused} of {len(answers)} processes of the cluster differ from this process. {lists}. "
        "Start the scheduler and all workers with the same packages and paths. Processors of several kinds are allowed "
        "with --mixed-processors."
    )


def _retry(client: Client, request: Callable[[], object]) -> None:
    """Send a request to all workers. Repeat it while it fails because a worker, not the scheduler, is lost."""
    while client.status == "running":
        with suppress(OSError):
            request()
            return
        time.sleep(_RETRY_SECONDS)
    request()
