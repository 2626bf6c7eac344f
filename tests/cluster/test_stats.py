"""Tests of worker statistics: each result is counted once, for the process that computed it."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pytest

from shardpress.cluster.executor import compute, reduce
from shardpress.cluster.stats import WorkerStats, process_name


@dataclass(frozen=True)
class Result:
    process: str
    n_rows: int


def make(n_rows: int) -> Result:
    return Result(process_name(), n_rows)


def merge(found: list[Result]) -> Result:
    return Result("", sum(each.n_rows for each in found))


@pytest.mark.process
def test_results_count_for_the_process_that_made_them() -> None:
    stats = WorkerStats()
    found = list[Result]()
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        pool.stats = stats  # type: ignore[attr-defined]
        stats.begin("scan")
        merged = reduce([(make, i) for i in range(40)], merge, pool, 2)
        stats.begin("encoding")
        compute([(make, i) for i in range(10)], pool, 2, found.append)
    known = [{"name": "w0", "host": "here", "pid": 1, "device": "cpu"}]
    summaries = {f"{worker['host']}:{worker['pid']}": worker for worker in stats.summary(known)}
    assert summaries.pop("here:1") == {**known[0], "stages": {}}
    scan = [worker["stages"]["scan"] for worker in summaries.values() if "scan" in worker["stages"]]
    assert (sum(done["n_tasks"] for done in scan), sum(done["n_rows"] for done in scan)) == (40, merged.n_rows)
    for process in {result.process for result in found}:
        rows = [result.n_rows for result in found if result.process == process]
        encoding = summaries[process]["stages"]["encoding"]
        assert (encoding["n_tasks"], encoding["n_rows"]) == (len(rows), sum(rows))
    assert process_name() not in summaries
