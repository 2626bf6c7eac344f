"""Tests of retiring workers: a worker whose device is lost leaves, and other workers run its tasks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from distributed import Client, LocalCluster, get_worker

from shardpress.cluster.connection import workers_of
from shardpress.cluster.executor import compute
from shardpress.cluster.workers import ClusterPool, quiet_dask
from shardpress.errors import DeviceLost
from tests.support.clusters import until
from tests.support.helpers import refused
from tests.support.logged import mentions

HAS_FAILED = threading.Event()  # set when worker 0 fails; other workers wait for this, so that worker 0 gets tasks


def work(i: int) -> tuple[int, object]:
    """Return a square and the name of the worker. On worker 0, fail from task 6 on, as if the card were lost."""
    worker = get_worker()
    if worker.name == 0 and i > 5:
        HAS_FAILED.set()
        lost = DeviceLost(f"{worker.name}: its card is lost. Run the same command again.")
        lost.why = "the device is lost: CUDA_ERROR_ECC_UNCORRECTABLE"
        raise lost
    if i > 5:
        assert HAS_FAILED.wait(60)
    return i * i, worker.name


@contextmanager
def cluster_of(n_workers: int) -> Iterator[Client]:
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "protocol": "tcp", "processes": False}
    with (
        mock.patch.dict(os.environ),  # Dask sets configuration for its workers
        quiet_dask(),
        LocalCluster(n_workers=n_workers, threads_per_worker=2, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def clear_failure() -> None:
    HAS_FAILED.clear()


@pytest.mark.slow
def test_tasks_of_a_worker_that_lost_its_device_move_to_others(caplog: pytest.LogCaptureFixture) -> None:
    with cluster_of(3) as client, ClusterPool(client, "scheduler", "tcp://127.0.0.1", [], 60.0).executor(1) as options:
        found = compute([(work, i) for i in range(200)], *options)
        assert [each for each, _ in found] == [i * i for i in range(200)]
        assert {by for i, (_, by) in enumerate(found) if i > 5} == {1, 2}
        until(lambda: {entry["name"] for entry in workers_of(client).values()} == {1, 2}, "worker 0 to leave")
    reports = [mentions(line, "worker 0", "CUDA_ERROR_ECC_UNCORRECTABLE") for line in caplog.messages]
    assert sum(reports) == 1, "independent of the number of failed tasks"


@pytest.mark.slow
def test_a_run_without_any_worker_left_can_be_resumed() -> None:
    with (
        cluster_of(1) as client,
        ClusterPool(client, "scheduler", "tcp://127.0.0.1", [], 0.1).executor(1) as options,
        refused(75, "worker"),
    ):
        compute([(work, i) for i in range(200)], *options)
