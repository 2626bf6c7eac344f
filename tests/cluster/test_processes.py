"""Tests of local workers: their environments, their scratch directory, and failures of their start."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from shardpress.cluster import processes
from tests.support.helpers import refused


@pytest.mark.process
def test_workers_that_cannot_be_started_end_the_run(tmp_path: Path) -> None:
    options = {"dask": {}, "scheduler": {"no such option": 1}, "workers": []}
    with refused(71, "no such option"), processes._child_process(options, os.environ, tmp_path):
        pytest.fail("the scheduler was started")


def test_a_scratch_directory_writable_by_others_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o770)
    with refused(77, "TMPDIR", str(tmp_path)), processes._scratch_directory():
        pytest.fail("a process was started")
    tmp_path.chmod(0o700)
    with processes._scratch_directory() as scratch:
        assert scratch.stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []
