"""Local workers, which are processes that are started for a run and always end with it.

One child process runs the scheduler and a nanny for each worker. Dask could run them in this process, but then a killed
run would leave orphans: compilers that workers have started, and workers whose current task holds the GIL.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, Worker

from shardpress.base import signals
from shardpress.base.childprocess import ChildProcess
from shardpress.base.errors import CannotCreate, SystemLimit
from shardpress.cluster.checks import LOGGERS
from shardpress.cluster.tls import IsolatedSecurity
from shardpress.cluster.worker_devices import add_theano_flag, device_names, worker_environment
from shardpress.cluster.workers import Cluster, quiet_dask
from shardpress.settings.config import ClusterSettings

_ALLOWED_FAILURES = 2  # tolerated deaths of workers during the same task; the third death ends the run
_START_SECONDS = 300.0
_END_SECONDS = 10.0
_PATIENCE = 60.0  # seconds without any worker, while nannies restart dead workers
_CLOSE_SECONDS = 2.0  # time for a worker to close; its unfinished tasks are not needed


class _LocalScheduler(Scheduler):
    """Scheduler without Dask's HTTP server, which would open a port."""

    def start_http_server(self, *_arguments: object, **_named: object) -> None: ...


class _LocalWorker(Worker):
    """Worker without Dask's HTTP server, which would open a port. Only the driver logs the worker's warnings."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        for name in LOGGERS:
            logging.getLogger(name).addHandler(logging.NullHandler())
        super().__init__(*arguments, **named)

    def start_http_server(self, *_arguments: object, **_named: object) -> None: ...


@contextmanager
def local_cluster(settings: ClusterSettings, n_threads: int, requires_device: bool) -> Iterator[Cluster]:
    """Provide a scheduler with the configured number of workers on this machine, each with its device.

    They listen only on the loopback interface. They accept only connections with a certificate that is created for
    this run.
    """
    devices: list[str | None] = [*device_names(settings.devices, os.environ)] or [None]
    n_workers = settings.workers or len(devices)
    n_cores = max(1, len(os.sched_getaffinity(0)) // n_workers)
    environments = [_environment(devices[i % len(devices)], n_cores, requires_device) for i in range(n_workers)]
    security = IsolatedSecurity.temporary()
    with _scratch_directory() as scratch:
        common = {"host": "127.0.0.1", "protocol": "tls", "security": security, "local_directory": str(scratch)}
        worker = {
            **common,
            "nthreads": math.ceil(n_threads / n_workers),
            "worker_class": _LocalWorker,
            "memory_limit": 0,  # --memory-budget limits memory
            "silence_logs": logging.CRITICAL,  # the driver reports errors of tasks
            "death_timeout": _START_SECONDS,
        }
        options = {
            "scheduler": {**common, "allowed_failures": _ALLOWED_FAILURES, "dashboard": False},
            "workers": [{**worker, "name": str(i), "env": variables} for i, variables in enumerate(environments)],
            "dask": dask.config.config,
        }
        with _child_process(options, worker_environment(None, n_cores, os.environ), scratch) as address:
            yield Cluster("workers", address, security, _PATIENCE, n_workers)


def _environment(device: str | None, n_cores: int, requires_device: bool) -> dict[str, str]:
    environment = worker_environment(device, n_cores, os.environ)
    if requires_device:  # set in the environment, so that it also applies to restarted workers
        add_theano_flag(environment, "force_device=True")
    return environment


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """Provide a directory for the scheduler and the workers, which import modules from it.

    By default Dask uses a fixed name in the temporary directory, and another user could create it first.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix="shardpress-scratch-"))
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
def _child_process(options: Mapping[str, Any], environment: Mapping[str, str], scratch: Path) -> Iterator[str]:
    """Start the scheduler and the workers, and provide the scheduler's address."""
    try:
        with signals.deferred():
            process = ChildProcess(
                __name__,  # its `main`
                environment=environment,
                scratch=scratch,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
    except OSError as error:
        raise SystemLimit(f"a process for the workers cannot be started: {error}. Use fewer --workers.") from error
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # the process has died, and its answer is empty
            pickle.dump(options, process.stdin)
            process.stdin.flush()
        answer = process.stdout.readline().decode().strip()
        if not answer.startswith("tls://"):
            raise SystemLimit(
                f"the workers cannot be started: {answer or 'their process has died'}. Use fewer --workers, and check "
                "the limits on processes, memory and semaphores (/dev/shm)."
            )
        yield answer
    finally:
        with signals.deferred():
            with suppress(OSError):
                process.stdin.close()  # ends the child process
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.end()  # this also ends the workers
            process.stdout.close()


# -- child process -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Run a scheduler and nannies until the end of standard input. A nanny starts a worker, and restarts a dead one.

    Standard input contains the options, with the private key of the certificate, which other processes cannot read
    there. The first line of standard output is the scheduler's address, or an error.
    """
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)  # what workers print, because standard output of the driver is for the results of the run
        options = pickle.load(sys.stdin.buffer)
        dask.config.set(options["dask"])
        # Disable the variables that Dask sets for workers. One of them makes malloc use new pages for large arrays.
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
        with quiet_dask():
            try:
                asyncio.run(_serve(options, answer))
            except Exception as error:
                answer.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")


async def _serve(options: Mapping[str, Any], answer: Any) -> None:
    async with _LocalScheduler(**options["scheduler"]) as scheduler:
        nannies = await asyncio.gather(*(Nanny(scheduler.address, **worker) for worker in options["workers"]))
        print(scheduler.address, file=answer, flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)
        await asyncio.gather(*(nanny.close(timeout=_CLOSE_SECONDS) for nanny in nannies))
