"""Tests of the scaling benchmark: its tasks are like the tasks of a run, and its local cluster is removed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from distributed import Client

from scripts.benchmarks.cluster import local_cluster, processor_seconds
from scripts.benchmarks.scaling import index_of
from scripts.benchmarks.tasks import FINGERPRINT, compute_and_commit, empty_part
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding.encode import EncodeTask
from shardpress.encoding.parts import PartSize, plan_parts
from shardpress.encoding.worker import IN_MEMORY, EncodeSettings
from shardpress.output.lock import locked
from shardpress.result import Result
from tests.support.helpers import numbered_shards
from tests.support.parts import finished


def test_empty_parts_are_committed_like_those_of_a_run(tmp_path: Path) -> None:
    trained = Result.open(finished(tmp_path / "trained", 3))
    settings = EncodeSettings(str(tmp_path), IN_MEMORY, 4, 4, 1)
    planned = plan_parts(numbered_shards(tmp_path, 9), [], PartSize(4, 1, 4))
    tasks = [(empty_part, EncodeTask(pieces, settings)) for pieces in planned]
    with threads(1) as pool:
        compute_and_commit(tmp_path, tasks, pool, 1)
    with locked(tmp_path / "committed") as journal:
        parts = [record.part for record in journal.records("part", FINGERPRINT)]
        journal.commit(index_of(parts, trained))
    result = Result.open(tmp_path / "committed")
    assert [part.n_rows for part in result.parts] == [4, 4, 1]
    assert result.encoder == trained.encoder


@pytest.mark.process
def test_benchmark_cluster_listens_on_loopback_and_is_removed(tmp_path: Path) -> None:
    with local_cluster(tmp_path, 1) as cluster:
        with Client(cluster.address, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            assert compute([(abs, -i) for i in range(9)], client.get_executor(pure=False), 4) == [*range(9)]
        processes = [psutil.Process(pid) for pid in (cluster.scheduler, *cluster.workers)]
        connections = [each for process in processes for each in process.net_connections()]
        assert {each.laddr.ip for each in connections if each.status == "LISTEN"} == {"127.0.0.1"}
        assert processor_seconds(cluster.scheduler) > 0
    assert not any(psutil.pid_exists(process.pid) for process in processes)
