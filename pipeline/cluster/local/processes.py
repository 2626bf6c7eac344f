"""Workers on this machine: processes that are made for a run, and end with it, however it ends."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler, Security, SpecCluster

from pipeline import signals
from pipeline.cluster.checks import Question
from pipeline.cluster.gate import check
from pipeline.cluster.local.devices import environment_of, named
from pipeline.cluster.proof import Proof, proofs
from pipeline.cluster.waiting import waited
from pipeline.cluster.workers import Workers, hear
from pipeline.errors import DeviceError, SystemLimit, counted
from pipeline.settings.config import Config

__all__ = ["local"]

log = logging.getLogger(__name__)

_ROOT = str(Path(__file__).resolve().parents[3])
_PROGRAM = f"import sys; sys.path.insert(0, {_ROOT!r}); from pipeline.cluster.local.child import main; main()"
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
def local(config: Config, n_threads: int, start: Callable[[], Any], ask: Callable[[], Question]) -> Iterator[Workers]:
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
    """
    environments = _environments(config)
    security = Security.temporary()
    with _client(security, config.dashboard) as client:
        address = client.scheduler_info(n_workers=0)["address"]
        asked = {
            "scheduler": address,
            "n_threads": -(-n_threads // len(environments)),
            "tls": {name: getattr(security, name) for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key")},
        }
        with _processes(asked, environments) as processes:
            _wait(client, processes)
            check(client, ask())
            known = _proven(client, processes, config, start)
            hear(client)
            yield Workers(client, "workers", address, known, _PATIENCE, len(environments))


def _environments(config: Config) -> list[dict[str, str]]:
    """Of each worker."""
    devices = named(config.devices, os.environ)
    n = config.workers or len(devices)
    n_each = max(1, len(os.sched_getaffinity(0)) // n)
    found = [environment_of(devices[i % len(devices)] if devices else None, n_each, os.environ) for i in range(n)]
    if config.require_device:  # also of one that is started anew
        for each in found:
            each["THEANO_FLAGS"] = ",".join(filter(None, [each.get("THEANO_FLAGS"), "force_device=True"]))
    return found


@contextmanager
def _client(security: Security, has_dashboard: bool) -> Iterator[Client]:
    options: dict[str, Any] = {"host": _LOOPBACK, "protocol": "tls", "security": security}
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
def _processes(asked: Mapping[str, Any], environments: list[dict[str, str]]) -> Iterator[dict[str, subprocess.Popen]]:
    """Processes by their names, until the context ends."""
    started: dict[str, subprocess.Popen] = {}
    try:
        for i, environment in enumerate(environments):
            started[str(i)] = _started({**asked, "name": str(i)}, environment)
        yield started
    finally:
        with signals.deferred():
            _end(started)


def _started(asked: Mapping[str, Any], environment: Mapping[str, str]) -> subprocess.Popen:
    # In a session of its own: what is typed at the terminal is told to the driver, and the workers end after it.
    how: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": 2, "start_new_session": True}
    try:
        with signals.deferred():
            process = subprocess.Popen([sys.executable, "-c", _PROGRAM], env=environment, **how)
    except OSError as error:
        raise SystemLimit(f"a worker's process cannot be started: {error}. Take fewer --workers.") from error
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has died at once, which is looked for next
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
    return process


def _end(processes: Mapping[str, subprocess.Popen]) -> None:
    """Let processes end: with their standard input, or else by force."""
    for process in processes.values():
        with suppress(OSError):
            process.stdin.close()  # type: ignore[union-attr]
    deadline = time.monotonic() + _END
    for process in processes.values():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the worker that it has started
            process.wait()


def _wait(client: Client, processes: Mapping[str, subprocess.Popen]) -> None:
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
    client: Client, processes: dict[str, subprocess.Popen], config: Config, start: Callable[[], Any]
) -> list[dict[str, Any]]:
    """What is known of the workers that can be used; the others end."""
    found, failed = proofs(client, start, _PROOF)
    failed |= {proof.name: proof.reason for proof in found if proof.reason} | _misplaced(found, config)
    for name, why in failed.items():
        log.warning("worker %s of %d cannot be used: %s. Its work goes to the others.", name, len(processes), why)
    usable = [proof for proof in found if proof.name not in failed]
    if not usable or (failed and config.require_device):
        _, why = next(iter(failed.items()))
        raise DeviceError(f"{counted(len(failed), 'worker')} of {len(processes)} cannot be used, the first: {why}")
    _end({name: processes.pop(name) for name in failed})
    log.info(
        "cluster: %s: %s", counted(len(usable), "worker"), ", ".join(f"{each.name} {each.device}" for each in usable)
    )
    return [proof.known for proof in usable]


def _misplaced(found: list[Proof], config: Config) -> dict[str, str]:
    """Workers that compute on a card which another one has, though each was given its own."""
    devices, places, wrong = named(config.devices, os.environ), dict[str, tuple[str, str]](), dict[str, str]()
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
