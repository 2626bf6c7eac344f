"""Workers on this machine: processes that are made for a run, and end with it, however it ends."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler, Security, SpecCluster

from kernels.trust import UntrustedDirectory, private_directory
from pipeline import signals
from pipeline.childprocess import ChildProcess
from pipeline.cluster.checks import Question
from pipeline.cluster.connection import waited
from pipeline.cluster.device_check import Proof, proofs
from pipeline.cluster.devices import environment_of, named
from pipeline.cluster.gate import check
from pipeline.cluster.workers import Workers, hear
from pipeline.errors import CannotCreate, DeviceError, NotPermitted, SystemLimit, counted
from pipeline.settings.config import ClusterSettings

__all__ = ["local"]

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_ALLOWED_FAILURES = 2  # of workers at one task; with the third it is given up
_START = 300.0  # seconds for processes to start in
_PROOF = 600.0  # seconds for their devices: the first one may have to compile for all of them
_END = 10.0  # seconds for processes to end by themselves
_PATIENCE = 60.0  # seconds for one to be there again, where all have died


class _Unheard(Scheduler):
    """Without the HTTP server that Dask's own would listen with."""

    def start_http_server(self, *_arguments: Any, **_named: Any) -> None:
        """None."""


@contextmanager
def local(
    settings: ClusterSettings,
    n_threads: int,
    start: Callable[[], Any],
    ask: Callable[[], Question],
    requires_device: bool = False,
) -> Iterator[Workers]:
    """As many workers as the settings ask for, each on its device.

    They and the scheduler, which is in this process, listen on the loopback alone, and talk to nobody who has not the
    certificate that is made for the run.

    Parameters
    ----------
    n_threads : int
        Of all of them together.
    start : callable
        Takes the device that a process is set to: `pipeline.device.start_device`.
    ask : callable
        What workers are asked before they do anything.

    Raises
    ------
    ConfigError
        When devices are not there, or a worker would not do what this process does.
    DeviceError
        When no worker can use its device.
    SystemLimit
        When a process cannot be started.
    NotPermitted
        When no directory can be made that other users cannot replace.
    """
    environments = _environments(settings, requires_device)
    _check_semaphores()
    security = Security.temporary()
    with _scratch_directory() as scratch, _client(security, settings.dashboard, scratch) as client:
        address = client.scheduler_info(n_workers=0)["address"]
        asked = {
            "scheduler": address,
            "n_threads": -(-n_threads // len(environments)),
            "tls": {name: getattr(security, name) for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key")},
            "scratch": str(scratch),
        }
        with _processes(asked, environments) as processes:
            _wait(client, processes)
            check(client, ask())
            known = _proven(client, processes, named(settings.devices, os.environ), start, requires_device)
            hear(client)
            yield Workers(client, "workers", address, known, _PATIENCE, len(environments))


def _environments(settings: ClusterSettings, requires_device: bool) -> list[dict[str, str]]:
    """Of each worker."""
    devices = named(settings.devices, os.environ)
    n = settings.workers or len(devices)
    n_each = max(1, len(os.sched_getaffinity(0)) // n)
    found = [environment_of(devices[i % len(devices)] if devices else None, n_each, os.environ) for i in range(n)]
    if requires_device:  # also of one that is started anew
        for each in found:
            each["THEANO_FLAGS"] = ",".join(filter(None, [each.get("THEANO_FLAGS"), "force_device=True"]))
    return found


def _check_semaphores() -> None:
    """Raise `SystemLimit` where Dask's nannies could not make the semaphores that they share with workers."""
    try:
        # The name of one of this kind is removed at once. Others have Python start a process that would remove it.
        multiprocessing.get_context("fork").Lock()
    except OSError as error:
        raise SystemLimit(
            f"workers need semaphores, and none can be made: {error.strerror}. Make /dev/shm writable, or run without "
            "--workers and --devices."
        ) from error


@contextmanager
def _scratch_directory() -> Iterator[Path]:
    """Create a directory for the scheduler and the workers, which Dask has them import from.

    Dask's own default is a name in the temporary directory that another user can create first.
    """
    try:
        scratch = private_directory("shardpress-scratch-")
    except UntrustedDirectory as error:
        raise NotPermitted(f"workers import from their scratch directories, and {error}.") from error
    except OSError as error:
        raise CannotCreate(f"no temporary directory can be made for the workers: {error}. Set TMPDIR.") from error
    try:
        yield scratch
    finally:
        with signals.deferred():
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _client(security: Security, has_dashboard: bool, scratch: Path) -> Iterator[Client]:
    options: dict[str, Any] = {"host": _LOOPBACK, "protocol": "tls", "security": security}
    options["local_directory"] = str(scratch)
    options |= {"allowed_failures": _ALLOWED_FAILURES, "dashboard": has_dashboard}
    if has_dashboard:
        options["dashboard_address"] = f"{_LOOPBACK}:0"
    scheduler = {"cls": Scheduler if has_dashboard else _Unheard, "options": options}
    with signals.deferred():  # half of it would stay
        cluster = SpecCluster(scheduler=scheduler, security=security, silence_logs=False)
    try:
        with Client(cluster, security=security, set_as_default=False) as client:
            if has_dashboard:
                log.info("cluster: Dask's own page is at %s", client.dashboard_link)
            yield client
    finally:
        with signals.deferred():
            cluster.close()


@contextmanager
def _processes(asked: Mapping[str, Any], environments: list[dict[str, str]]) -> Iterator[dict[str, ChildProcess]]:
    """Processes by their names, until the context ends."""
    started: dict[str, ChildProcess] = {}
    try:
        for i, environment in enumerate(environments):
            started[str(i)] = _started({**asked, "name": str(i)}, environment)
        yield started
    finally:
        with signals.deferred():
            _end(started)


def _started(asked: Mapping[str, Any], environment: Mapping[str, str]) -> ChildProcess:
    module = "pipeline.cluster.child"
    try:
        with signals.deferred():
            process = ChildProcess(
                module, environment=environment, scratch=Path(asked["scratch"]), stdin=subprocess.PIPE, stdout=2
            )
    except OSError as error:
        raise SystemLimit(f"a worker's process cannot be started: {error}. Take fewer --workers.") from error
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died at once, which is looked for next
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
    return process


def _end(processes: Mapping[str, ChildProcess]) -> None:
    """Let processes end with their standard input, and kill those that do not."""
    for process in processes.values():
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + _END
    for process in processes.values():
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.end()  # with the worker that it has started


def _wait(client: Client, processes: Mapping[str, ChildProcess]) -> None:
    """Until all are there."""
    workers = counted(len(processes), "worker")

    def are_there() -> bool:
        for name, process in processes.items():
            if process.poll() is not None:
                raise SystemLimit(
                    f"worker {name} of {len(processes)} ended with {process.returncode} before it had begun. What "
                    "it said stands above; or take fewer --workers."
                )
        return bool(client.scheduler_info(n_workers=0)["n_workers"] == len(processes))

    if not waited(are_there, f"{workers} to start", _START):
        raise SystemLimit(f"{workers} did not start within {_START:.0f} s. Take fewer --workers.")


def _proven(
    client: Client,
    processes: dict[str, ChildProcess],
    devices: Sequence[str],
    start: Callable[[], Any],
    requires_device: bool,
) -> list[dict[str, Any]]:
    """What is known of the workers that can be used; the others end."""
    found, failed = proofs(client, start, _PROOF)
    failed |= {proof.name: proof.reason for proof in found if proof.reason} | _misplaced(found, devices)
    for name, why in failed.items():
        log.warning("worker %s of %d cannot be used: %s. Its work goes to the others.", name, len(processes), why)
    usable = [proof for proof in found if proof.name not in failed]
    if not usable or (failed and requires_device):
        _, why = next(iter(failed.items()))
        raise DeviceError(f"{counted(len(failed), 'worker')} of {len(processes)} cannot be used, the first: {why}")
    _end({name: processes.pop(name) for name in failed})
    log.info(
        "cluster: %s: %s", counted(len(usable), "worker"), ", ".join(f"{each.name} {each.device}" for each in usable)
    )
    return [proof.known for proof in usable]


def _misplaced(found: list[Proof], devices: Sequence[str]) -> dict[str, str]:
    """Workers that compute on a card which another one has, though each was given its own."""
    places: dict[str, tuple[str, str]] = {}
    wrong: dict[str, str] = {}
    for proof in found:
        if not devices or not proof.place:
            continue
        device = devices[int(proof.name) % len(devices)]
        first, of = places.setdefault(proof.place, (proof.name, device))
        if of != device:
            wrong[proof.name] = (
                f"it was given {device}, and computes where worker {first} does, on {of} ({proof.place})"
            )
    return wrong
