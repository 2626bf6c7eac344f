"""Tests of local workers: failures of their start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardpress.cluster import processes
from tests.support.helpers import refused


@pytest.mark.process
def test_workers_that_cannot_be_started_end_the_run(tmp_path: Path) -> None:
    options = {"dask": {}, "scheduler": {"no such option": 1}, "workers": []}
    with refused(71, "no such option"), processes._child_process(options, os.environ, tmp_path):
        pytest.fail("the scheduler was started")
