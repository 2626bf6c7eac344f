"""Workers on this machine: processes that are started for a run and always end with it.

Each worker has a nanny in a separate process, which `pipeline.childprocess` starts with ``main`` of this module.
`SpecCluster` could start the nannies in this process, but then a killed run leaves orphans: compilers that workers have
started, and workers whose current task holds the GIL.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, Worker

from kernels.trust import UntrustedDirectory, private_directory
from pipeline import signals
from pipeline.childprocess import ChildProcess
from pipeline.cluster.checks import Probe, check_workers
from pipeline.cluster.connection import wait_until
from pipeline.cluster.device_check import WorkerDevice, check_devices, unusable_workers, wrong_devices
from pipeline.cluster.devices import add_theano_flag, device_names, worker_environment
from pipeline.cluster.workers import LOGGERS, ClusterPool, forward_logs
from pipeline.errors import CannotCreate, NotPermitted, SystemLimit, quantity
from pipeline.settings.config import ClusterSettings

__all__ = ["NoHttpWorker", "local_workers", "main"]

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_ALLOWED_FAILURES = 2  # workers that may die while they run one task; the third death ends the run
_START_SECONDS = 300.0
_DEVICE_SECONDS = 600.0  # the first worker may have to compile for all workers
_END_SECONDS = 10.0
_PATIENCE = 60.0  # seconds without any worker, while nannies restart those that have died

_QUIET = logging.CRITICAL  # errors of tasks are reported by the driver
_CLOSE_SECONDS = 2.0  # for a worker to close; its unfinished tasks are no longer needed, or run on others


class _NoHttpScheduler(Scheduler):
    """A scheduler without Dask's HTTP server, which would open a port."""

    def start_http_server(self, *_arguments: Any, **_named: Any) -> None:
        """Do nothing."""


class NoHttpWorker(Worker):
    """A worker without Dask's HTTP server, which would open a port; only the driver logs its warnings."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(logging.NullHandler())
        super().__init__(*arguments, **named)

    def start_http_server(self, *_arguments: Any, **_named: Any) -> None:
        """Do nothing."""


@contextmanager
def local_workers(
    settings: ClusterSettings,
    n_threads: int,
    start_device: Callable[[], Any],
    make_probe: Callable[[], Probe],
    requires_device: bool = False,
) -> Iterator[ClusterPool]:
    """Provide the configured number of workers on this machine, each with its device.

    The scheduler runs in this process. Scheduler and workers listen on the loopback interface only, and accept
    connections only with a certificate that is created for this run.

    Parameters
    ----------
    settings : ClusterSettings
        Number of workers and their devices.
    n_threads : int
        Number of threads of all workers together.
    start_device : callable
        Initializes the device that is configured for a process: `pipeline.device.start_device`.
    make_probe : callable
        Returns the `Probe` of the files that workers must see. It is called before they run any task.
    requires_device : bool
        Whether each worker must use the device that is configured for it.

    Raises
    ------
    ConfigError
        If there is no such device, or if a worker would compute something different from this process.
    DeviceError
        If no worker can use its device.
    SystemLimit
        If a process cannot be started.
    NotPermitted
        If no directory can be created that is safe from other users.
    """
    environments = _environments(settings, requires_device)
    devices = device_names(settings.devices, os.environ)
    _check_semaphores()
    security = Security.temporary()
    with _scratch_directory() as scratch, _client(security, settings.dashboard, scratch) as client:
        address = client.scheduler_info(n_workers=0)["address"]
        options = {
            "scheduler": address,
            "n_threads": math.ceil(n_threads / len(environments)),
            "tls": _worker_certificates(security),
            "scratch": str(scratch),
        }
        with _processes(options, environments) as processes:
            _wait_for_start(client, processes)
            check_workers(client, make_probe())
            facts = _keep_usable(client, processes, devices, start_device, requires_device)
            forward_logs(client)
            yield ClusterPool(client, "workers", address, facts, _PATIENCE, len(environments))


def _environments(settings: ClusterSettings, requires_device: bool) -> list[dict[str, str]]:
    """Return the environment variables of each worker."""
    devices: Sequence[str | None] = device_names(settings.devices, os.environ)
    n_workers = settings.workers or len(devices)
    n_cores = len(os.sched_getaffinity(0))
    n_threads = max(1, n_cores // n_workers)
    environments = []
    for i in range(n_workers):
        device = devices[i % len(devices)] if devices else None
        environment = worker_environment(device, n_threads, os.environ)
        if requires_device:  # in the environment, so that a restarted worker requires it as well
            add_theano_flag(environment, "force_device=True")
        environments.append(environment)
    return environments


def _worker_certificates(security: Security) -> dict[str, Any]:
    """Return the parameters of `Security` that workers need."""
    names = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")
    return {name: getattr(security, name) for name in names}


def _check_semaphores() -> None:
    """Raise `SystemLimit` if nannies could not create the semaphores that they share with workers."""
    try:
        # A lock of the "fork" context is unlinked at once. Other contexts start a process that would unlink it.
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        raise SystemLimit(
            f"workers need semaphores, but none can be created: {error.strerror}. Make /dev/shm writable, or run "
            "without --workers and --devices."
        ) from error


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """Provide a directory for the scheduler and the workers, which import from it.

    Dask's default is a fixed name in the temporary directory, which another user can create first.
    """
    try:
        scratch = private_directory("shardpress-scratch-")
    except UntrustedDirectory as error:
        raise NotPermitted(
            f"workers import from their scratch directories, but {error}. Set TMPDIR to a private directory."
        ) from error
    except OSError as error:
        raise CannotCreate(
            f"a temporary directory for the workers cannot be created: {error}. Set TMPDIR to a writable directory."
        ) from error
    try:
        yield scratch
    finally:
        with signals.deferred():
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _client(security: Security, has_dashboard: bool, scratch: Path) -> Iterator[Client]:
    """Provide a client of a scheduler in this process, which has no workers yet."""
    options = {
        "host": _LOOPBACK,
        "protocol": "tls",
        "security": security,
        "local_directory": str(scratch),
        "allowed_failures": _ALLOWED_FAILURES,
        "dashboard": has_dashboard,
    }
    if has_dashboard:
        options["dashboard_address"] = f"{_LOOPBACK}:0"
    scheduler = {"cls": Scheduler if has_dashboard else _NoHttpScheduler, "options": options}
    with signals.deferred():  # an exception raised here would leave a part of the cluster running
        cluster = SpecCluster(scheduler=scheduler, security=security, silence_logs=False)
    try:
        with Client(cluster, security=security, set_as_default=False) as client:
            if has_dashboard:
                log.info("cluster: the Dask dashboard is at %s", client.dashboard_link)
            yield client
    finally:
        with signals.deferred():
            cluster.close()


@contextmanager
def _processes(
    options: Mapping[str, Any], environments: Sequence[Mapping[str, str]]
) -> Iterator[dict[str, ChildProcess]]:
    """Provide a process for each environment, by the name of its worker."""
    processes: dict[str, ChildProcess] = {}
    try:
        for i, environment in enumerate(environments):
            name = str(i)
            processes[name] = _start({**options, "name": name}, environment)
        yield processes
    finally:
        with signals.deferred():
            _end(processes)


def _start(options: Mapping[str, Any], environment: Mapping[str, str]) -> ChildProcess:
    """Start one process with these options of `main`."""
    try:
        with signals.deferred():
            process = ChildProcess(
                __name__,  # its `main`
                environment=environment,
                scratch=Path(options["scratch"]),
                stdin=subprocess.PIPE,
                stdout=2,  # standard output is for results of the run
            )
    except OSError as error:
        raise SystemLimit(f"a worker process cannot be started: {error}. Use fewer --workers.") from error
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # the process died at once, which `_wait_for_start` reports
        process.stdin.write(json.dumps(options).encode() + b"\n")
        process.stdin.flush()
    return process


def _end(processes: Mapping[str, ChildProcess]) -> None:
    """Ask processes to end by closing their standard input, and kill those that do not."""
    for process in processes.values():
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + _END_SECONDS
    for process in processes.values():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.end()  # this also ends the worker that it has started


def _wait_for_start(client: Client, processes: Mapping[str, ChildProcess]) -> None:
    """Wait until all workers have joined; raise `SystemLimit` if a process ends or the time is up."""
    n_workers = len(processes)
    workers = quantity(n_workers, "worker")

    def have_joined() -> bool:
        for name, process in processes.items():
            if process.poll() is not None:
                raise SystemLimit(
                    f"worker {name} of {n_workers} exited with code {process.returncode} during its start. See its "
                    "output above, or use fewer --workers."
                )
        return bool(client.scheduler_info(n_workers=0)["n_workers"] == n_workers)

    if not wait_until(have_joined, f"{workers} to start", _START_SECONDS):
        raise SystemLimit(f"{workers} did not start within {_START_SECONDS:.0f} s. Use fewer --workers.")


def _keep_usable(
    client: Client,
    processes: dict[str, ChildProcess],
    devices: Sequence[str],
    start_device: Callable[[], Any],
    requires_device: bool,
) -> list[dict[str, Any]]:
    """End the workers that cannot use their devices, and return facts about the others.

    Parameters
    ----------
    processes : dict of str to ChildProcess
        Processes by the names of their workers. Processes that are ended are removed from it.
    devices : sequence of str
        The configured devices, which the workers use in turn; empty if none are configured.
    """
    found, failures = check_devices(client, start_device, _DEVICE_SECONDS)
    failures |= wrong_devices(found) | _misplaced_workers(found, devices)
    usable = [device for device in found if device.worker not in failures]
    n_workers = len(processes)
    for name, reason in failures.items():
        log.warning("worker %s of %d cannot be used: %s. Its work goes to the others.", name, n_workers, reason)
    if not usable or (failures and requires_device):
        raise unusable_workers(failures, n_workers)
    _end({name: processes.pop(name) for name in failures})
    workers = ", ".join(f"{device.worker} {device.device}" for device in usable)
    log.info("cluster: %s: %s", quantity(len(usable), "worker"), workers)
    return [device.facts() for device in usable]


def _misplaced_workers(found: Sequence[WorkerDevice], devices: Sequence[str]) -> dict[str, str]:
    """Return the workers that compute on the card of another configured device, each with a description."""
    if not devices:
        return {}
    misplaced: dict[str, str] = {}
    first_by_place: dict[str, tuple[str, str]] = {}  # worker and configured device, by the location of the card
    for device in found:
        if not device.place:
            continue
        configured = devices[int(device.worker) % len(devices)]
        first_worker, first_configured = first_by_place.setdefault(device.place, (device.worker, configured))
        if configured != first_configured:
            misplaced[device.worker] = (
                f"it was assigned {configured}, but uses the same device as worker {first_worker}, which was "
                f"assigned {first_configured} ({device.place})"
            )
    return misplaced


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run a nanny, which starts a worker and restarts it if it dies, until the end of standard input.

    The first line of standard input contains its options as JSON, including the key of the certificate, which no other
    process can read there.
    """
    logging.getLogger("distributed").setLevel(_QUIET)
    # Dask sets variables for its workers. One of them makes malloc return fresh pages for every large array.
    dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
    asyncio.run(_run_nanny(json.loads(sys.stdin.readline())))


async def _run_nanny(options: Mapping[str, Any]) -> None:
    input_ended = _input_ended()
    nanny = Nanny(
        options["scheduler"],
        security=Security(require_encryption=True, **options["tls"]),
        nthreads=options["n_threads"],
        name=options["name"],
        host=_LOOPBACK,
        protocol="tls",
        worker_class=NoHttpWorker,
        memory_limit=0,  # --memory-budget limits memory
        silence_logs=_QUIET,
        local_directory=options["scratch"],
    )
    async with nanny:
        ends = [asyncio.create_task(input_ended.wait()), asyncio.create_task(nanny.finished())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await nanny.close(timeout=_CLOSE_SECONDS)


def _input_ended() -> asyncio.Event:
    """Return an event of the running loop that is set at the end of standard input."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing follows the options
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, daemon=True).start()
    return ended
