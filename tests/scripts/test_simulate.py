"""Tests of the cluster simulation: results match simple cases computed by hand."""

from __future__ import annotations

import pytest

from scripts.benchmarks import simulate
from scripts.benchmarks.simulate import Cluster, Costs, Task

NO_COSTS = Costs(
    **dict.fromkeys(("driver_task", "driver_part", "scheduler_task", "scan_row", "encode_row", "train_row"), 0.0),
    **dict.fromkeys(("encode_part", "scan_task", "encode_wait", "scan_wait", "encode_end", "scan_end"), 0.0),
    **dict.fromkeys(("start", "shard", "meet"), 0.0),
    **dict.fromkeys(("row_bytes", "feature_bytes", "state_bytes"), 0),
)


def test_time_is_work_divided_by_cores() -> None:
    for n_workers, cores, threads, seconds in ((1, 1, 1, 60), (3, 2, 2, 10), (3, 2, 3, 10), (60, 1, 1, 1)):
        found = simulate.simulate(Task(1.0), 60, Cluster(n_workers, cores, threads), NO_COSTS)
        assert found.seconds == pytest.approx(seconds), (n_workers, cores, threads)
    # While a thread waits for a disk, another thread can use its core.
    found = simulate.simulate(Task(1.0, wait=1.0), 60, Cluster(1, 1, 2), NO_COSTS)
    assert found.seconds == pytest.approx(61)
