"""Tests of schedulers that a run refuses."""

from __future__ import annotations

from pathlib import Path

from shardpress.cluster.pool import check_settings
from shardpress.cluster.security import _check_address
from shardpress.settings.config import ClusterSettings
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


def test_the_address_in_a_scheduler_file_is_checked_before_connecting(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    settings = ClusterSettings(scheduler=str(file))
    check_settings(settings)  # the scheduler may write the file later
    for text, words in (("{", str(file)), ('{"address": "tcp://10.0.0.7:8786"}', "tcp://10.0.0.7:8786")):
        file.write_text(text)
        with refused(78, words):
            check_settings(settings)
