"""Whom a run talks to: which addresses it may use, and by whose certificates."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dask.config

from pipeline.errors import ConfigError, shown

if TYPE_CHECKING:
    from distributed import Security

__all__ = ["address_in", "checked", "configured", "is_written"]

_TLS = "distributed.comm.tls"


def checked(address: str, is_insecure: bool) -> str:
    """An address of a scheduler, with its protocol.

    Raises
    ------
    ConfigError
        For what is none, and for one beyond this machine that anybody on the way could read and change.
    """
    whole = address if "://" in address else f"tcp://{address}"
    try:
        parts = urlsplit(whole)
        host = parts.hostname
        port = parts.port
    except ValueError:
        host = None
        port = None
    if not host or not port or parts.scheme not in ("tcp", "tls"):
        raise ConfigError(
            f"scheduler: {shown(address)}, expected an address like tls://host:8786, or tcp://127.0.0.1:8786"
        )
    if parts.scheme == "tcp" and not _is_loopback(host) and not is_insecure:
        raise ConfigError(
            f"scheduler: {shown(whole)} is another machine, and without TLS whoever comes between can have this user's "
            "programs do what he likes. Use tls:// (docs/scaling.md), or, where nobody else is on that network, "
            "--insecure-cluster."
        )
    return whole


def is_written(path: Path) -> bool:
    """Whether a file is there, and not as empty as a scheduler begins it."""
    return path.is_file() and path.stat().st_size > 0


def address_in(path: Path) -> str:
    """The address in the file that a scheduler writes when it has started.

    Raises
    ------
    ConfigError
        When it is no such file.
    """
    try:
        return str(json.loads(path.read_text())["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"scheduler_file={shown(path)}: {error!r}, expected what `dask scheduler --scheduler-file` writes"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, of which another machine tells what it means
        return host == "localhost"


def configured(address: str) -> Security:
    """What Dask's own configuration says of certificates, in its files and ``DASK_`` variables.

    Nothing else of it counts: this process has read none of it.

    Raises
    ------
    ConfigError
        When there is no certificate, and the address asks for one.
    """
    from distributed import Security  # an address is looked at before a run begins, which may need no more

    found = dask.config.collect()
    tls: dict[str, Any] = {
        "tls_ca_file": dask.config.get(f"{_TLS}.ca-file", None, found),
        "tls_client_cert": dask.config.get(f"{_TLS}.client.cert", None, found),
        "tls_client_key": dask.config.get(f"{_TLS}.client.key", None, found),
    }
    if not address.startswith("tls://"):
        return Security(require_encryption=False)
    if not tls["tls_ca_file"] or not tls["tls_client_cert"]:
        raise ConfigError(
            f"scheduler: {shown(address)} asks for a certificate, and Dask's configuration names none. Set "
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...__CLIENT__CERT and ...__CLIENT__KEY, or distributed.comm.tls in "
            "~/.config/dask."
        )
    try:
        security = Security(require_encryption=True, **tls)
        security.get_connection_args("client")  # which reads them
    except OSError as error:
        files = ", ".join(shown(each) for each in tls.values() if each)
        raise ConfigError(
            f"the certificates that Dask's configuration names ({files}) cannot be used: {error}"
        ) from error
    return security
