"""Tests of the cluster simulation: results match simple cases computed by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import run, simulate
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


@pytest.mark.process  # Matplotlib queries fc-list for fonts
def test_simulation_prints_a_table_and_draws_a_plot(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "WORKERS", (1, 2))
    costs = tmp_path / "costs.json"
    known = replace(NO_COSTS, driver_task=1e-3, encode_row=5e-6, train_row=1e-5, row_bytes=3136, feature_bytes=256)
    costs.write_text(json.dumps({"costs": asdict(known)}))
    command = ["--costs", str(costs), "--rows", "1e6", "--plot", str(tmp_path / "plot.png")]
    assert run.main(["simulate", *command]) == 0
    assert "| 2 |" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
