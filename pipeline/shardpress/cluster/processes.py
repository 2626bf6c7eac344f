"""Local workers, which are processes that are started for a run and always end with it.

Each worker has a nanny in a separate process. `shardpress.childprocess` starts this process, which calls ``main`` of
this module. `SpecCluster` could start the nannies in this process, but then a killed run would leave orphans: compilers
that workers have started, and workers whose current task holds the GIL.
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

from shardpress import signals
from shardpress.childprocess import ChildProcess
from shardpress.cluster.checks import check_workers
from shardpress.cluster.connection import wait_until
from shardpress.cluster.device_check import check_devices
from shardpress.cluster.devices import add_theano_flag, device_names, worker_environment
from shardpress.cluster.probe import Probe
from shardpress.cluster.tls import IsolatedSecurity
from shardpress.cluster.workers import LOGGERS, ClusterPool, forward_logs
from shardpress.errors import CannotCreate, NotPermitted, SystemLimit, quantity
from shardpress.settings.config import ClusterSettings
from shardpress_kernels.trust import UntrustedDirectory, private_directory

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_ALLOWED_FAILURES = 2  # tolerated deaths of workers during the same task; the third death ends the run
_START_SECONDS = 300.0
_END_SECONDS = 10.0
_PATIENCE = 60.0  # seconds without any worker, while nannies restart dead workers

_CERTIFICATES = ("tls_ca_file", "tls_worker_cert", "tls_worker_key")  # parameters of `Security`
_QUIET = logging.CRITICAL  # the driver reports errors of tasks
_CLOSE_SECONDS = 2.0  # time for a worker to close; its unfinished tasks are not needed, or run on other workers


class _NoHttpScheduler(Scheduler):
    """Scheduler without Dask's HTTP server, which would open a port."""

    def start_http_server(self, *_arguments: Any, **_named: Any) -> None: ...


class _NoHttpWorker(Worker):
    """Worker without Dask's HTTP server, which would open a port. Only the driver logs the worker's warnings."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(logging.NullHandler())
        super().__init__(*arguments, **named)

    def start_http_server(self, *_arguments: Any, **_named: Any) -> None: ...


@contextmanager
def local_workers(
    settings: ClusterSettings,
    n_threads: int,
    start_device: Callable[[], Any],
    probe: Probe,
    requires_device: bool = False,
) -> Iterator[ClusterPool]:
    """Provide the configured number of workers on this machine, each with its device.

    The scheduler runs in this process. Scheduler and workers listen only on the loopback interface. They accept only
    connections with a certificate that is created for this run.
    """
    environments = _environments(settings, requires_device)
    _check_semaphores()
    security = IsolatedSecurity.temporary()
    with _scratch_directory() as scratch, _client(security, scratch) as client:
        address = client.scheduler_info(n_workers=0)["address"]
        options = {
            "scheduler": address,
            "n_threads": math.ceil(n_threads / len(environments)),
            "tls": {name: getattr(security, name) for name in _CERTIFICATES},
            "scratch": str(scratch),
        }
        with _processes(options, environments) as processes:
            _wait_for_start(client, processes)
            check_workers(client, probe)
            facts, failures = check_devices(client, start_device, requires_device)
            _end({name: processes.pop(name) for name in failures})
            forward_logs(client)
            yield ClusterPool(client, "workers", address, facts, _PATIENCE, len(environments))


def _environments(settings: ClusterSettings, requires_device: bool) -> list[dict[str, str]]:
    devices: Sequence[str | None] = device_names(settings.devices, os.environ)
    n_workers = settings.workers or len(devices)
    n_cores = len(os.sched_getaffinity(0))
    n_threads = max(1, n_cores // n_workers)
    environments = []
    for i in range(n_workers):
        device = devices[i % len(devices)] if devices else None
        environment = worker_environment(device, n_threads, os.environ)
        if requires_device:  # set in the environment, so that it also applies to restarted workers
            add_theano_flag(environment, "force_device=True")
        environments.append(environment)
    return environments


def _check_semaphores() -> None:
    """Raise `SystemLimit` if nannies could not create the semaphores that they share with workers."""
    try:
        # The "fork" context unlinks a lock at once. Other contexts start a process for that.
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        raise SystemLimit(
            f"workers need semaphores, but none can be created: {error.strerror}. Make /dev/shm writable, or run "
            "without --workers and --devices."
        ) from error


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """Provide a private directory for the scheduler and the workers, which import modules from it.

    By default Dask uses a fixed name in the temporary directory, and another user could create it first.
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
def _client(security: Security, scratch: Path) -> Iterator[Client]:
    """Start a scheduler without workers in this process, and provide a client of the scheduler."""
    options = {
        "host": _LOOPBACK,
        "protocol": "tls",
        "security": security,
        "local_directory": str(scratch),
        "allowed_failures": _ALLOWED_FAILURES,
        "dashboard": False,
    }
    scheduler = {"cls": _NoHttpScheduler, "options": options}
    with signals.deferred():  # otherwise an exception could leave a part of the cluster running
        cluster = SpecCluster(scheduler=scheduler, security=security, silence_logs=False)
    try:
        with Client(cluster, security=security, set_as_default=False) as client:
            yield client
    finally:
        with signals.deferred():
            cluster.close()


@contextmanager
def _processes(
    options: Mapping[str, Any], environments: Sequence[Mapping[str, str]]
) -> Iterator[dict[str, ChildProcess]]:
    """Provide a process for each environment. Keys are the names of the workers."""
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
    try:
        with signals.deferred():
            process = ChildProcess(
                __name__,  # its `main`
                environment=environment,
                scratch=Path(options["scratch"]),
                stdin=subprocess.PIPE,
                stdout=2,  # stderr, because standard output is for the results of the run
            )
    except OSError as error:
        raise SystemLimit(f"a worker process cannot be started: {error}. Use fewer --workers.") from error
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # the process has already died, and `_wait_for_start` reports this
        process.stdin.write(json.dumps(options).encode() + b"\n")
        process.stdin.flush()
    return process


def _end(processes: Mapping[str, ChildProcess]) -> None:
    """Close the standard input of processes to make them exit, and kill processes that do not exit in time."""
    for process in processes.values():
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + _END_SECONDS
    for process in processes.values():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.end()  # this also ends the worker that the process has started


def _wait_for_start(client: Client, processes: Mapping[str, ChildProcess]) -> None:
    """Wait until all workers have joined. Raise `SystemLimit` if a process exits or the time limit is exceeded."""
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


# -- child process -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Run a nanny until the end of standard input. The nanny starts a worker, and restarts the worker if it dies.

    The first line of standard input contains the options as JSON. They include the private key of the certificate,
    which other processes cannot read from standard input.
    """
    logging.getLogger("distributed").setLevel(_QUIET)
    # Disable the variables that Dask sets for workers. One of them makes malloc use new pages for every large array.
    dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
    asyncio.run(_run_nanny(json.loads(sys.stdin.readline())))


async def _run_nanny(options: Mapping[str, Any]) -> None:
    input_ended = _input_ended()
    nanny = Nanny(
        options["scheduler"],
        security=IsolatedSecurity(require_encryption=True, **options["tls"]),
        nthreads=options["n_threads"],
        name=options["name"],
        host=_LOOPBACK,
        protocol="tls",
        worker_class=_NoHttpWorker,
        memory_limit=0,  # --memory-budget limits memory
        silence_logs=_QUIET,
        local_directory=options["scratch"],
    )
    async with nanny:
        ends = [asyncio.create_task(input_ended.wait()), asyncio.create_task(nanny.finished())]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        await nanny.close(timeout=_CLOSE_SECONDS)


def _input_ended() -> asyncio.Event:
    """Return an event of the running event loop that is set at the end of standard input."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)  # nothing follows the options
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=wait, daemon=True).start()
    return ended
