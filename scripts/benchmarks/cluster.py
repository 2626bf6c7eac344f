"""A Dask scheduler and workers in separate processes, on the loopback interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import psutil
from distributed import Client, Security
from distributed.deploy.subprocess import SubprocessCluster

from scripts.benchmarks.harness import ROOT
from shardpress.cluster.workers import Cluster, ClusterPool

# The HTTP server would listen on every interface by default.
_DASHBOARD = "127.0.0.1:0"


@dataclass(frozen=True)
class LocalCluster:
    """Address and process ids of a running scheduler and its single-threaded workers."""

    address: str
    scheduler: int
    workers: list[int]


@contextmanager
def local_cluster(folder: Path, n_workers: int, **variables: str) -> Iterator[LocalCluster]:
    """Start a scheduler and workers with additional environment variables; end them with the context."""
    # A run refuses workers in directories that other users can write.
    options = {"dashboard_address": _DASHBOARD, "local_directory": str(folder.resolve()), "memory_limit": 0}
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT), **variables}):
        cluster = SubprocessCluster(
            dashboard_address=_DASHBOARD,
            worker_class="distributed.Worker",
            n_workers=n_workers,
            threads_per_worker=1,
            worker_kwargs=options,
        )
    with cluster:
        workers = [worker.process.pid for worker in cluster.workers.values()]
        yield LocalCluster(cluster.scheduler_address, cluster.scheduler.process.pid, workers)


@contextmanager
def executor_on(cluster: LocalCluster, n_remote_threads: int = 0) -> Iterator[Executor]:
    """Connect to a cluster; without `n_remote_threads` tasks are sent one by one."""
    with Client(cluster.address) as client:
        client.wait_for_workers(len(cluster.workers), timeout=60)
        pool = ClusterPool(client, Cluster("scheduler", cluster.address, Security(), patience=60.0))
        pool.n_remote_threads = n_remote_threads
        yield pool


def processor_seconds(*pids: int) -> float:
    """Return the processor seconds of some processes so far, in user mode and in the kernel."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(each.user + each.system for each in times))
