"""Tests of local workers: a run keeps only the workers that can use their devices."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardpress.cluster import processes
from shardpress.cluster.device_check import WorkerDevice
from shardpress.cluster.devices import device_names
from shardpress.cluster.processes import _environments, _keep_usable, _wait_for_start
from shardpress.settings.config import ClusterSettings
from tests.support.helpers import refused
from tests.support.logged import mentions


class Process:
    """Process that exits when its standard input is closed."""

    def __init__(self) -> None:
        self.stdin = self
        self.pid = 0
        self.is_over = False

    def close(self) -> None:
        self.is_over = True

    def wait(self, seconds: float) -> None:
        assert self.is_over

    def end(self) -> None:
        assert self.is_over


def device(i: int, reason: str = "", place: str = "") -> WorkerDevice:
    return WorkerDevice(f"{i}", f"host:{i}", "a device", reason, place)


def keep_usable(
    monkeypatch: pytest.MonkeyPatch,
    found: Any,
    settings: ClusterSettings,
    failed: Any = (),
    requires_device: bool = False,
) -> tuple[list[Any], set[str]]:
    """Return the names of the usable workers, and the names of the processes that are kept."""
    monkeypatch.setattr(processes, "check_devices", lambda *_: (list(found), dict(failed)))
    present: Any = {f"{i}": Process() for i in range(len(found) + len(failed))}
    all_processes = dict(present)
    usable_workers = _keep_usable(None, present, device_names(settings.devices, {}), lambda: None, requires_device)  # type: ignore[arg-type]
    assert {name for name, each in all_processes.items() if each.is_over} == all_processes.keys() - present.keys()
    return [each["name"] for each in usable_workers], set(present)


def test_workers_with_their_devices_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [device(0, place="0000:3b:00.0"), device(1, place="0000:5e:00.0"), device(2, place="0000:3b:00.0")]
    settings = ClusterSettings(workers=3, devices=("cuda0", "cuda1"))
    assert keep_usable(monkeypatch, found, settings) == (["0", "1", "2"], {"0", "1", "2"}), (
        "two workers share the first card"
    )


def test_a_worker_on_the_card_of_another_worker_is_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = [device(0, place="0000:3b:00.0"), device(1, place="0000:3b:00.0")]
    assert keep_usable(monkeypatch, found, ClusterSettings(devices=("cuda0", "cuda1"))) == (["0"], {"0"})
    assert mentions(caplog.text, "worker 1 of 2", "cuda1", "worker 0", "cuda0")


def test_a_worker_without_device_or_answer_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [device(0), device(1, reason="no driver")]
    settings = ClusterSettings(workers=3)
    assert keep_usable(monkeypatch, found, settings, {"2": "its process gave no answer"}) == (["0"], {"0"})


def test_a_run_with_too_few_workers_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(69, "1 worker of 1", ": no driver"):
        keep_usable(monkeypatch, [device(0, reason="no driver")], ClusterSettings(workers=1))
    with refused(69, "1 worker of 2", ": no driver"):
        keep_usable(
            monkeypatch, [device(0), device(1, reason="no driver")], ClusterSettings(workers=2), requires_device=True
        )


def test_restarted_workers_require_their_device_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("THEANO_FLAGS", "floatX=float32")
    settings = ClusterSettings(workers=3, devices=("cuda0", "opencl0:0"))
    flags = [each["THEANO_FLAGS"] for each in _environments(settings, requires_device=True)]
    assert flags == [f"floatX=float32,device={device},force_device=True" for device in ("cuda0", "opencl0:0", "cuda0")]


@pytest.mark.process
def test_a_process_that_ends_at_the_start_is_not_awaited() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    client: Any = SimpleNamespace(scheduler_info=lambda n_workers: {"n_workers": 0})
    with refused(71, "worker 0 of 1", " 3 "):
        _wait_for_start(client, {"0": process})


def test_workers_without_semaphores_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.get_context("fork").__class__, "Lock", refuse)
    with refused(71, "semaphores", os.strerror(errno.EROFS), "/dev/shm"):
        processes._check_semaphores()


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_scratch_directory_writable_by_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(mode)
    with refused(77, "TMPDIR", str(tmp_path)), processes._scratch_directory():
        pytest.fail("a process was started")
    tmp_path.chmod(0o700)
    with processes._scratch_directory() as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
