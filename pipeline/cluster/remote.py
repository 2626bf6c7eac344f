"""Workers of a scheduler that is there already: somebody else's, who starts and ends them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.comm.core import FatalCommClosedError
from distributed.versions import VersionMismatchWarning

from pipeline.cluster.checks import Question
from pipeline.cluster.connection import waited
from pipeline.cluster.device_check import proofs
from pipeline.cluster.gate import check
from pipeline.cluster.pulse import watched
from pipeline.cluster.security import address_in, checked, configured, is_written
from pipeline.cluster.workers import Workers, hear
from pipeline.errors import ConfigError, DeviceError, TryAgain, counted, shown, some
from pipeline.settings.config import ClusterSettings

__all__ = ["given"]

log = logging.getLogger(__name__)

_CONNECT = 30.0  # seconds
_CLOSE = 10.0  # seconds
_PATIENCE = 1800.0  # seconds without any worker: a batch system may take its time
_PROOF = 600.0  # seconds


@contextmanager
def given(
    settings: ClusterSettings, start: Callable[[], Any], ask: Callable[[], Question], requires_device: bool = False
) -> Iterator[Workers]:
    """The workers of the scheduler that the settings name, as they come and go.

    Parameters
    ----------
    start : callable
        Takes the device that a process is set to: `pipeline.device.start_device`.
    ask : callable
        What workers are asked before they do anything.

    Raises
    ------
    ConfigError
        When its address cannot be used, or not safely; when a worker would not do what this process does.
    TryAgain
        When it does not answer, or no worker comes.
    DeviceError
        When no worker has a device that can be used, or one of them has not and it is required.
    """
    address = settings.scheduler
    if not address:
        path = Path(settings.scheduler_file or "")
        _must_come(lambda: is_written(path), f"scheduler_file={shown(path)}")
        address = address_in(path)
    address = checked(address, settings.insecure_cluster)
    with _closing(_connected(address)) as client, watched(client):
        try:
            _must_come(lambda: client.scheduler_info(n_workers=0)["n_workers"], f"a worker of {shown(address)}")
            check(client, ask())
            known = _known(client, start, requires_device)
            if settings.dashboard:
                log.info("cluster: Dask's own page is at %s", client.dashboard_link)
            hear(client)
        except (OSError, CancelledError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "closed" not in str(error):
                raise  # Dask has no class of its own for a question over connections that were given up
            raise TryAgain(
                f"scheduler: {shown(address)} does not answer any more: {error}. See whether it is running, then type "
                "the same command again."
            ) from error
        yield Workers(client, "scheduler", address, known, _PATIENCE)


@contextmanager
def _closing(client: Client) -> Iterator[Client]:
    """Close a client at the end, but do not wait long for a scheduler that does not answer."""
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):
            client.close(timeout=_CLOSE)


def _connected(address: str) -> Client:
    security = configured(address)
    log.info("cluster: connecting to %s", shown(address))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # what matters of that is refused, in a sentence
            return Client(address, security=security, timeout=_CONNECT, set_as_default=False)
    except FatalCommClosedError as error:
        raise ConfigError(
            f"scheduler: {shown(address)} turns these certificates away, or they it: {error}. They are those of "
            "Dask's own configuration, expected such as the scheduler has."
        ) from error
    except OSError as error:
        raise TryAgain(
            f"scheduler: {shown(address)} cannot be talked to, after {_CONNECT:.0f} s at most: {error}. See whether it "
            "is running, and whether tcp:// or tls:// is its protocol; then type the same command again."
        ) from error


def _must_come(found: Callable[[], object], what: str) -> None:
    if not waited(found, what, _PATIENCE):
        raise TryAgain(f"waited {_PATIENCE:.0f} s for {what}, which has not come. Type the same command again.")


def _known(client: Client, start: Callable[[], Any], requires_device: bool) -> list[dict[str, Any]]:
    """What is known of the workers that are there."""
    found, failed = proofs(client, start, _PROOF)
    failed |= {proof.name: proof.reason for proof in found if proof.reason}
    for name, why in failed.items():
        log.warning("cluster: worker %s does not compute where it was to: %s", shown(name), why)
    if failed and (requires_device or not found):
        n = len(failed.keys() | {proof.name for proof in found})
        why = next(iter(failed.values()))
        raise DeviceError(f"{counted(len(failed), 'worker')} of {n} cannot be used, the first: {why}")
    workers = some((f"{shown(proof.name)} {proof.device}" for proof in found), 8)
    log.info("cluster: %s: %s", counted(len(found), "worker"), workers)
    return [proof.known for proof in found]
