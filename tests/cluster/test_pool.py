"""The pool of a run: settings that are refused before a connection, and the default pool."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.cluster import pool as module
from pipeline.cluster.executor import compute
from pipeline.cluster.pool import LocalPool, check_settings, open_pool
from pipeline.settings.config import ClusterSettings
from tests.support.helpers import refused


def test_what_cannot_be_is_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_settings(ClusterSettings(workers=2, devices=("cpu", "opencl0:0")))
    with refused(78, "tcp://10.0.0.7:8786 is another machine"):
        check_settings(ClusterSettings(scheduler="tcp://10.0.0.7:8786"))
    file = tmp_path / "scheduler.json"
    check_settings(ClusterSettings(scheduler_file=str(file)))  # which may come
    for text, words in (
        ("{", "expected what `dask scheduler"),
        ('{"address": "tcp://10.0.0.7:8786"}', "another machine"),
    ):
        file.write_text(text)
        with refused(78, words):
            check_settings(ClusterSettings(scheduler_file=str(file)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with refused(78, "devices: cuda1, but CUDA_VISIBLE_DEVICES=3 lets 1 be seen"):
        check_settings(ClusterSettings(devices=("cuda0", "cuda1")))
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with refused(78, "dashboard", "pip install bokeh"):
        check_settings(ClusterSettings(workers=2, dashboard=True))


def test_threads_are_who_works_unless_told_otherwise() -> None:
    with open_pool(ClusterSettings(), 2, lambda: None, lambda: None) as found:  # type: ignore[arg-type, return-value]
        assert isinstance(found, LocalPool)


@pytest.mark.process
def test_a_run_of_threads_loads_no_scheduler() -> None:
    program = "import sys, pipeline.run.engine; print('distributed' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "False\n"


def test_threads_have_work_while_the_driver_is_busy_with_a_result() -> None:
    begun = [threading.Event() for _ in range(3)]
    seen: list[bool] = []
    with LocalPool().executor(1) as (pool, n_at_once):
        tasks = [(threading.Event.set, each) for each in begun]
        compute(tasks, pool, n_at_once, lambda _: seen.append(begun[min(len(seen) + 1, 2)].wait(60)))
    assert seen == [True] * 3
