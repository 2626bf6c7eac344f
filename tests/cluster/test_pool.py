"""Tests of worker pools: settings that are refused before connecting, and the default pool."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from shardpress.cluster.executor import compute
from shardpress.cluster.pool import _LocalPool, check_settings
from shardpress.settings.config import ClusterSettings
from tests.support.helpers import refused


def test_invalid_cluster_settings_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    check_settings(ClusterSettings(scheduler=str(file)))  # the scheduler may write the file later
    file.touch()
    check_settings(ClusterSettings(scheduler=str(file)))  # the scheduler has not written to it yet
    for text, words in (("{", str(file)), ('{"address": "tcp://10.0.0.7:8786"}', "tcp://10.0.0.7:8786")):
        file.write_text(text)
        with refused(78, words):
            check_settings(ClusterSettings(scheduler=str(file)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    with refused(78, "devices: cuda1", "CUDA_VISIBLE_DEVICES=3"):
        check_settings(ClusterSettings(devices=("cuda0", "cuda1")))


def test_threads_work_while_the_driver_handles_a_result() -> None:
    events = [threading.Event() for _ in range(3)]
    states: list[bool] = []
    with _LocalPool().executor(1) as (pool, n_at_once):
        tasks = [(threading.Event.set, each) for each in events]
        compute(tasks, pool, n_at_once, lambda _: states.append(events[min(len(states) + 1, 2)].wait(60)))
    assert states == [True] * 3
