"""Tests of the certificates for a connection to a scheduler, and of schedulers that a run refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.cluster.security import _check_address, dask_security
from tests.support.cases import case
from tests.support.helpers import refused


def test_only_this_machine_is_allowed_without_tls() -> None:
    for address in ("tcp://localhost:8786", "tcp://[::1]:8786", "tcp://127.8.9.1:1", "tls://10.0.0.7:8786"):
        assert _check_address(address, is_insecure=False) == address
    assert _check_address("127.0.0.1:8786", is_insecure=False) == "tcp://127.0.0.1:8786"
    for address in ("tcp://10.0.0.7:8786", "tcp://head-node:8786", "tcp://[fe80::1]:8786", "tcp://0.0.0.0:8786"):
        with case(address):
            with refused(78, "tls://", "--insecure-cluster"):
                _check_address(address, is_insecure=False)
            assert _check_address(address, is_insecure=True) == address
    for address in ("tls://", "http://head-node:8786", "tls://head-node:x", "tls://[::1"):
        with case(address), refused(78, "tls://host:8786"):
            _check_address(address, is_insecure=True)


def test_certificates_come_from_the_configuration_of_dask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(78, "tls://head-node:8786", "DASK_DISTRIBUTED__COMM__TLS__CA_FILE"):
        dask_security("tls://head-node:8786")
    for name in ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY"):
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(tmp_path / "nowhere.pem"))
    with refused(78, str(tmp_path / "nowhere.pem"), "No such file"):
        dask_security("tls://head-node:8786")
    assert dask_security("tcp://127.0.0.1:8786").require_encryption is False, "tcp needs no certificates"
