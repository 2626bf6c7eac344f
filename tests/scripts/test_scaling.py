"""Tests of the scaling benchmark: its tasks are like the tasks of a run, and its local cluster is removed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import psutil
import pytest
from distributed import Client

from scripts.benchmarks.cluster import local_cluster, processor_seconds
from scripts.benchmarks.scaling import index_of, seconds_per_replica
from scripts.benchmarks.tasks import FINGERPRINT, compute_and_commit, empty_part
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding.encode import EncodeTask, encode_part
from shardpress.encoding.parts import PartSize, plan_parts
from shardpress.encoding.worker import IN_MEMORY, EncodeSettings, serving
from shardpress.model import Model
from shardpress.output.disk import Disk
from shardpress.output.lock import locked
from shardpress.result import Result
from shardpress.scan.scaler import Scaler
from shardpress_kernels.network import Network
from tests.support.helpers import numbered_shards
from tests.support.parts import finished


def test_empty_and_real_tasks_have_results_of_similar_size(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    shards = numbered_shards(tmp_path, 9)
    settings = EncodeSettings(str(tmp_path), IN_MEMORY, 4, 9, 1)
    (pieces,) = plan_parts(shards, [], PartSize(9, 1, 4))
    task = EncodeTask(pieces, settings)

    def double(rows: np.ndarray, out: np.ndarray) -> None:
        out[:] = 2 * rows[:, :2]

    model = Model(Scaler(np.zeros(2), np.full(2, 100.0)), Network((2, 2)), {})
    with serving(settings, model, double, Disk()):
        facts = encode_part(task)
    sizes = [len(pickle.dumps(each)) for each in (facts, empty_part(task))]
    assert abs(sizes[0] - sizes[1]) < 50


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


def test_time_of_averaging_replicas_is_measured() -> None:
    network = Network((5, 3, 2))
    parameters = {name: np.ones(shape, np.float32) for name, shape in network.shapes.items()}
    assert seconds_per_replica(Model(Scaler(np.zeros(5), np.ones(5)), network, parameters)) > 0


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
