"""Workers of an existing scheduler, which this run neither starts nor ends."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client
from distributed.comm.core import FatalCommClosedError
from distributed.versions import VersionMismatchWarning

from shardpress.cluster.checks import check_workers
from shardpress.cluster.connection import disconnect_if_silent, wait_until
from shardpress.cluster.device_check import check_devices
from shardpress.cluster.probe import Probe
from shardpress.cluster.security import check_address, dask_security, is_written, read_address, scheduler_file
from shardpress.cluster.workers import ClusterPool, forward_logs
from shardpress.errors import ConfigError, TryAgain, printable
from shardpress.settings.config import ClusterSettings

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 30.0
_CLOSE_SECONDS = 10.0
_PATIENCE = 1800.0  # seconds without any worker, because workers may wait in the queue of a batch system


@contextmanager
def remote_workers(
    settings: ClusterSettings,
    start_device: Callable[[], Any],
    probe: Probe,
    requires_device: bool = False,
) -> Iterator[ClusterPool]:
    """Provide the workers of the configured scheduler. Workers can join and leave at any time."""
    address = _address(settings)
    with _client(address) as client, disconnect_if_silent(client):
        with _explain_lost_scheduler(address):
            _wait_for(lambda: client.scheduler_info(n_workers=0)["n_workers"], f"a worker of {printable(address)}")
            check_workers(client, probe)
            # A worker without its configured device is slower, but others decided to start it.
            facts, _ = check_devices(client, start_device, requires_device, keeps_others=True)
            if "dashboard" in client.scheduler_info(n_workers=0)["services"]:
                log.info("cluster: the Dask dashboard is at %s", client.dashboard_link)
            forward_logs(client)
        yield ClusterPool(client, "scheduler", address, facts, _PATIENCE)


def _address(settings: ClusterSettings) -> str:
    """Return the address of the scheduler. If the scheduler file does not exist yet, wait for it."""
    address = str(settings.scheduler)
    path = scheduler_file(address)
    if path is not None:
        _wait_for(lambda: is_written(path), f"scheduler={printable(path)}")
        address = read_address(path)
    return check_address(address, settings.insecure_cluster)


@contextmanager
def _client(address: str) -> Iterator[Client]:
    """Provide a client that is connected to the scheduler. Do not wait long at the end if it does not answer."""
    security = dask_security(address)
    log.info("cluster: connecting to %s", printable(address))
    try:
        with warnings.catch_warnings():
            # Ignore Dask's warning, because `check_workers` refuses the differences that matter.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(address, security=security, timeout=_CONNECT_SECONDS, set_as_default=False)
    except FatalCommClosedError as error:
        raise ConfigError(
            f"scheduler: {printable(address)} and this process do not accept each other's certificates: {error}. "
            "Set certificates in Dask's configuration that match the certificates of the scheduler."
        ) from error
    except OSError as error:
        raise TryAgain(
            f"scheduler: cannot connect to {printable(address)} within {_CONNECT_SECONDS:.0f} s: {error}. Check that "
            "the scheduler is running, and whether it uses tcp:// or tls://. Then run the same command again."
        ) from error
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):
            client.close(timeout=_CLOSE_SECONDS)


@contextmanager
def _explain_lost_scheduler(address: str) -> Iterator[None]:
    """Raise `TryAgain` instead of Dask's errors for a lost connection."""
    try:
        yield
    except (OSError, CancelledError, RuntimeError) as error:
        # Dask raises a plain RuntimeError for requests after `disconnect_if_silent` has closed the connections.
        if isinstance(error, RuntimeError) and "closed" not in str(error):
            raise
        raise TryAgain(
            f"scheduler: {printable(address)} no longer answers: {error}. Check that it is running, then run the same "
            "command again."
        ) from error


def _wait_for(condition: Callable[[], object], description: str) -> None:
    if not wait_until(condition, description, _PATIENCE):
        raise TryAgain(f"waited {_PATIENCE:.0f} s for {description} without success. Run the same command again.")
