"""Tests of the worker checks: a worker that differs is refused, and one without its device is not used."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client

from shardpress.cluster import checks
from shardpress.cluster.checks import check_workers
from shardpress.cluster.probe import Probe, packages
from shardpress.errors import ConfigError
from tests.support.clusters import Cluster, until
from tests.support.helpers import refused
from tests.support.interpreters import search_path
from tests.support.logged import mentions

HERE = "/proc/self/cwd"  # processes with different working directories find different files under this path


def start_device() -> Any:
    return SimpleNamespace(reason="")


@pytest.fixture(autouse=True)
def restore_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the working directory, and hide scratch directories of schedulers in other tests from `sys.path`."""
    before = os.getcwd()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "dask-scratch-space" not in entry])
    yield
    os.chdir(before)


@pytest.mark.process
def test_a_worker_with_other_packages_or_another_disk_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder / "work").mkdir(parents=True)
        (tmp_path / folder / "a.h5").write_bytes(b"rows")
    os.chdir(tmp_path / "here")
    for folder in ("other", "open"):
        (tmp_path / folder).mkdir()
    # With this file in its import path, a worker finds another version of h5py.
    (tmp_path / "other/h5py-0.1.dist-info").mkdir()
    (tmp_path / "other/h5py-0.1.dist-info/METADATA").write_text("Name: h5py\nVersion: 0.1\n")
    (tmp_path / "open").chmod(0o777)
    older = {"directory": tmp_path / "here", "PYTHONPATH": f"{tmp_path / 'other'}:{search_path()}"}
    probe = Probe(HERE, HERE, (f"{HERE}/a.h5",)).marked()

    def check(client: Client) -> list[str]:
        return [each["name"] for each in check_workers(client, probe, start_device, False, True)]

    with Cluster(tmp_path / "cluster") as cluster, _client(cluster) as client:
        cluster.start_worker("good", directory=tmp_path / "here")
        cluster.start_worker("elsewhere", directory=tmp_path / "there")
        cluster.start_worker("older", **older)
        cluster.start_worker("exposed", "--local-directory", str(tmp_path / "open"), directory=tmp_path / "here")
        client.wait_for_workers(4, timeout=240)
        with pytest.raises(ConfigError) as caught:
            check(client)
        message = str(caught.value)
        assert mentions(message, "3 of 5 processes")
        assert mentions(message, "older", "h5py 0.1")
        assert mentions(message, "elsewhere", f"file={HERE}/a.h5")
        assert mentions(message, "exposed", tmp_path / "open", "0777")
        assert "good" not in message
        for name in ("elsewhere", "older", "exposed"):
            cluster.kill(name)
        until(lambda: _n_workers(client) == 1, "dead workers to be noticed")
        assert check(client) == ["good"]
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


class FakeClient:
    """Client of a scheduler whose workers answer with a device, or with an error."""

    id = "client"
    status = "running"

    def __init__(self, **answers: str | Exception) -> None:
        self.answers = answers
        self.retired = list[str]()
        self.scheduler: dict[str, str] = {}

    def run(self, function: Any, check: Any, start_device: Callable[[], Any], on_error: str) -> dict[str, Any]:
        found = {}
        for name, answer in self.answers.items():
            if isinstance(answer, str):
                failure = "" if answer == "card" else "no driver"
                answer = checks._Answer(name, "host:1", device=answer, failure=failure)
            found[name] = answer
        return found

    def run_on_scheduler(self, function: Callable[[Any], Any], driver: Any) -> Any:
        return function({**driver, **self.scheduler})

    def retire_workers(self, addresses: list[str], close_workers: bool) -> None:
        self.retired += addresses

    def forward_logging(self, name: str, level: int) -> None: ...

    def register_plugin(self, plugin: Any) -> None: ...


def names(client: Any, tmp_path: Path, requires_device: bool = False, keeps_others: bool = False) -> list[str]:
    probe = Probe(".", str(tmp_path), (), mixed_processors=True)
    return [each["name"] for each in check_workers(client, probe, start_device, requires_device, keeps_others)]


def test_workers_without_their_device_are_used_only_on_request(tmp_path: Path) -> None:
    client = FakeClient(a="card", b="cpu", lost=OSError("closed"))
    assert names(client, tmp_path) == ["a"]
    assert client.retired == ["b"]
    assert names(client, tmp_path, keeps_others=True) == ["a", "b"]
    with refused(69, "1 worker of 1", "no driver"):
        names(FakeClient(a="cpu"), tmp_path)
    with refused(69, "1 worker of 2", "no driver"):
        names(FakeClient(a="card", b="cpu"), tmp_path, requires_device=True)
    with refused(75, "workers"):
        names(FakeClient(lost=OSError("closed")), tmp_path)
    client = FakeClient(a="card", b=ModuleNotFoundError("No module named\n'shardpress'"))
    client.scheduler = {"dask": "2020.1"}
    with refused(78, "2 of 3", "scheduler", f"dask {packages()['dask']}, expected 2020.1", "b", "ModuleNotFoundError"):
        names(client, tmp_path)
