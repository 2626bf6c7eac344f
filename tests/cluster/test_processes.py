"""Tests of local workers: their environments, and failures of their start."""

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
from shardpress.cluster.processes import _environments, _wait_for_start
from shardpress.settings.config import ClusterSettings
from tests.support.helpers import refused


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
