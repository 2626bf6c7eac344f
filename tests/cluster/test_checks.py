"""Tests of the worker checks: a worker that differs is refused, and one without its device is not used."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from shardpress.base.errors import ConfigError
from shardpress.cluster.checks import check_workers
from shardpress.cluster.probe import Probe
from tests.support.clusters import Cluster, until
from tests.support.helpers import refused
from tests.support.interpreters import search_path
from tests.support.logged import mentions

HERE = "/proc/self/cwd"  # processes with different working directories find different files under this path


def start_device() -> Any:
    return SimpleNamespace(reason=os.environ.get("WITHOUT_DEVICE", ""))


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Return the probe of a driver in the folder `here`."""
    for folder in ("here", "there"):
        (tmp_path / folder / "work").mkdir(parents=True)
        (tmp_path / folder / "a.h5").write_bytes(b"rows")
    monkeypatch.chdir(tmp_path / "here")
    return Probe(HERE, HERE, (f"{HERE}/a.h5",)).marked()


@pytest.fixture
def older(tmp_path: Path) -> dict[str, Any]:
    """Return settings of a worker that finds another version of h5py, because of a file in its import path."""
    (tmp_path / "other/h5py-0.1.dist-info").mkdir(parents=True)
    (tmp_path / "other/h5py-0.1.dist-info/METADATA").write_text("Name: h5py\nVersion: 0.1\n")
    return {"directory": tmp_path / "here", "PYTHONPATH": f"{tmp_path / 'other'}:{search_path()}"}


@pytest.mark.process
def test_workers_that_differ_or_lack_their_device_are_refused(
    probe: Probe, older: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:

    def check(client: Client, requires_device: bool = False, keeps_others: bool = False) -> set[str]:
        workers = check_workers(client, probe, start_device, requires_device, keeps_others)
        return {worker.name for worker in workers}

    with Cluster(tmp_path / "cluster") as cluster, _client(cluster) as client:
        cluster.start_worker("good", directory=tmp_path / "here")
        cluster.start_worker("bare", directory=tmp_path / "here", WITHOUT_DEVICE="no driver")
        cluster.start_worker("elsewhere", directory=tmp_path / "there")
        cluster.start_worker("older", **older)
        client.wait_for_workers(4, timeout=240)
        with pytest.raises(ConfigError) as caught:
            check(client)
        message = str(caught.value)
        assert mentions(message, "2 of 5 processes")
        assert mentions(message, "older", "h5py 0.1")
        assert mentions(message, "elsewhere", f"file={HERE}/a.h5")
        assert "good" not in message
        for name in ("elsewhere", "older"):
            cluster.kill(name)
        until(lambda: _n_workers(client) == 2, "dead workers to be noticed")
        with refused(69, "1 worker of 2", "no driver"):
            check(client, requires_device=True)
        assert check(client, keeps_others=True) == {"good", "bare"}
        assert check(client) == {"good"}
        assert cluster.processes["bare"].wait(240) == 0
        with caplog.at_level(logging.WARNING):
            cluster.start_worker("late", "--nanny", **older)
            until(lambda: mentions(caplog.text, "late"), f"a warning about it: {cluster.output('late')}")
        assert cluster.processes["late"].wait(240) == 0
        assert _n_workers(client) == 1
        client.close()  # the run has ended, so workers that join later are not checked
        cluster.start_worker("later", **older)
        with _client(cluster) as another:
            another.wait_for_workers(2, timeout=240)


def _client(cluster: Cluster) -> Client:
    return Client(scheduler_file=str(cluster.file), set_as_default=False, timeout=240)


def _n_workers(client: Client) -> int:
    return int(client.scheduler_info(n_workers=0)["n_workers"])
