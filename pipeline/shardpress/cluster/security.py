"""Checks of the addresses of schedulers, and certificates for encrypted connections to them."""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from shardpress.base.errors import ConfigError, Problem, printable

if TYPE_CHECKING:
    from distributed import Security

_TLS = "distributed.comm.tls"
_ADDRESS = re.compile(r"((?P<protocol>tcp|tls)://)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\]):[0-9]+")


def _check_address(address: str, is_insecure: bool) -> str:
    """Return an address with its protocol. Raise `ConfigError` if other machines could read or change the traffic."""
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        words = f"{printable(address)}, expected an address like tls://host:8786 or tcp://127.0.0.1:8786"
        raise ConfigError(Problem(("scheduler",), words))
    complete = address if parts["protocol"] else f"tcp://{address}"
    if parts["protocol"] != "tls" and not _is_loopback(parts["host"].strip("[]")) and not is_insecure:
        words = f"{printable(complete)} is on another machine, where anyone can run code as this user without TLS"
        remedy = "Use tls:// (docs/scaling.md), or {insecure_cluster} on a private network"
        raise ConfigError(Problem(("scheduler",), words, remedy))
    return complete


def scheduler_address(scheduler: str, is_insecure: bool) -> str | None:
    """Return the checked address that a setting contains, or that is in the file of a scheduler.

    Return None if the file has not been written yet. A scheduler creates it before it writes to it.
    """
    if "://" in scheduler or _ADDRESS.fullmatch(scheduler):
        return _check_address(scheduler, is_insecure)
    path = Path(scheduler)
    if not path.is_file() or not path.stat().st_size:
        return None
    try:
        address = str(json.loads(path.read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"scheduler={printable(path)}: {error!r}, expected a file that `dask scheduler --scheduler-file` writes. "
            "Start the scheduler with that option, or give its address."
        ) from error
    return _check_address(address, is_insecure)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a host name, which other machines resolve
        return host == "localhost"


def dask_security(address: str) -> Security:
    """Return the certificates in Dask's configuration, from its files and from ``DASK_`` variables.

    This process ignores the rest of Dask's configuration.
    """
    # Imported here, because runs without a cluster check settings but do not connect.
    import dask.config

    from shardpress.cluster.tls import IsolatedSecurity

    if not address.startswith("tls://"):
        return IsolatedSecurity(require_encryption=False)
    configuration = dask.config.collect()
    certificates: dict[str, str | None] = {
        "tls_ca_file": dask.config.get(f"{_TLS}.ca-file", None, configuration),
        "tls_client_cert": dask.config.get(f"{_TLS}.client.cert", None, configuration),
        "tls_client_key": dask.config.get(f"{_TLS}.client.key", None, configuration),
    }
    if not certificates["tls_ca_file"] or not certificates["tls_client_cert"]:
        words = f"{printable(address)} requires a certificate, but Dask's configuration names none"
        remedy = (
            "Set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...__CLIENT__CERT and ...__CLIENT__KEY, or distributed.comm.tls "
            "in ~/.config/dask"
        )
        raise ConfigError(Problem(("scheduler",), words, remedy))
    try:
        security = IsolatedSecurity(require_encryption=True, **certificates)
        security.get_connection_args("client")  # reads the files
    except OSError as error:
        files = ", ".join(printable(path) for path in certificates.values() if path)
        raise ConfigError(
            f"the certificates in Dask's configuration ({files}) cannot be used: {error}. Check these files."
        ) from error
    return security
