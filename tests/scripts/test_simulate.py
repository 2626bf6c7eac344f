"""Tests of the cluster simulation: results match simple cases computed by hand, and stay within bounds."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import run, simulate
from scripts.benchmarks.simulate import Cluster, Costs, Job, Task, predict
from scripts.benchmarks.simulate import simulate as simulate_tasks

NO_COSTS = Costs(
    **dict.fromkeys(("driver_task", "driver_part", "scheduler_task", "scan_row", "encode_row", "train_row"), 0.0),
    **dict.fromkeys(("encode_part", "scan_task", "encode_wait", "scan_wait", "encode_end", "scan_end"), 0.0),
    **dict.fromkeys(("start", "shard", "meet"), 0.0),
    **dict.fromkeys(("row_bytes", "feature_bytes", "state_bytes"), 0),
)
COSTS = replace(
    NO_COSTS,
    **{"driver_task": 1e-3, "scheduler_task": 1e-3, "encode_row": 5e-6, "scan_row": 1e-6, "train_row": 1e-5},
    **{"row_bytes": 3136, "feature_bytes": 256, "encode_part": 1e-3},
)


def test_without_overhead_time_is_work_divided_by_cores() -> None:
    for n_workers, cores, threads, seconds in (
        (1, 1, 1, 60),
        (2, 1, 1, 30),
        (3, 2, 2, 10),
        (3, 2, 3, 10),
        (60, 1, 1, 1),
    ):
        found = simulate_tasks(Task(1.0), 60, Cluster(n_workers, cores, threads), NO_COSTS)
        assert found.seconds == pytest.approx(seconds), (n_workers, cores, threads)
        assert found.bottleneck == "cores"
    assert simulate_tasks(Task(1.0), 60, Cluster(4, 1, 1, shared_cores=2), NO_COSTS).seconds == pytest.approx(30)
    # While a thread waits for a disk, another thread can use its core.
    assert simulate_tasks(Task(1.0, wait=1.0), 60, Cluster(1, 1, 1), NO_COSTS).seconds == pytest.approx(120)
    assert simulate_tasks(Task(1.0, wait=1.0), 60, Cluster(1, 1, 2), NO_COSTS).seconds == pytest.approx(61)


@pytest.mark.slow
def test_serial_resource_bounds_the_time() -> None:
    # The busiest resource is never idle, and each task takes its minimal time.
    many_workers = Cluster(100, 2)
    for costs, task, cluster, name, least in (
        (replace(NO_COSTS, driver_task=0.01), Task(0.01), many_workers, "driver", 20.0),
        (replace(NO_COSTS, scheduler_task=0.01), Task(0.01), many_workers, "scheduler", 20.0),
        (NO_COSTS, Task(0.01, read_bytes=1e8), replace(many_workers, storage=1e10), "storage", 20.0),
        (NO_COSTS, Task(0.01, write_bytes=1e8), replace(many_workers, storage=1e10), "storage", 20.0),
    ):
        found = simulate_tasks(task, 2000, cluster, costs)
        assert found.bottleneck == name
        assert least <= found.seconds < 1.05 * least, name


def test_run_is_the_sum_of_stages_and_scales_with_workers() -> None:
    job = Job(10**8, 250_000, 1_250_000)
    lines = [predict(job, Cluster(n), COSTS) for n in (1, 4, 16)]
    for line in lines:
        assert line["total"] == pytest.approx(sum(line["seconds"].values()))
        assert line["worker_hours"] == pytest.approx(line["n_workers"] * line["total"] / 3600)
        assert line["seconds"]["encoding"] >= 10**8 * COSTS.encode_row / (2 * line["n_workers"])
    totals = [line["total"] for line in lines]
    assert totals == sorted(totals, reverse=True)
    # The first epoch uses one replica, so the time has a lower bound.
    assert totals[-1] > 10**8 * COSTS.train_row / 2


def test_check_reports_too_large_differences(tmp_path: Path, capsys: Any) -> None:
    common = {"n_tasks": 100, "n_rows": 10**6, "driver_seconds": 0.1, "scheduler_seconds": 0.1}
    stages = {
        "scan": {**common, "seconds": 1.0, "processor_seconds": 1.0},
        "encoding": {**common, "seconds": 5.1, "processor_seconds": 5.1},
    }
    costs = tmp_path / "costs.json"
    measured = tmp_path / "measured.json"
    costs.write_text(json.dumps({"costs": {"load": 0.1, "found": asdict(COSTS)}}))  # in the format of `scaling`
    for factor, code in ((1.0, 0), (1.3, 1)):
        stages["encoding"]["seconds"] = 5.1 * factor
        measured.write_text(json.dumps({"crowds": {"found": {"cores": 2, "by workers": {"1": stages}}}}))
        assert run.main(["simulate", "--costs", str(costs), "--check", str(measured)]) == code
        assert "| 1 | encoding |" in capsys.readouterr().out


@pytest.mark.process  # Matplotlib queries fc-list for fonts
def test_simulation_prints_a_table_and_draws_a_plot(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "WORKERS", (1, 2))
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps({"costs": asdict(COSTS)}))
    command = ["--costs", str(costs), "--rows", "1e6", "--plot", str(tmp_path / "plot.png")]
    assert run.main(["simulate", *command]) == 0
    assert "| 2 |" in capsys.readouterr().out
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
