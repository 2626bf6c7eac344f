"""Pool that executes the tasks of a run, with threads of this process or with workers in other processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeAlias

from shardpress.cluster.probe import Probe
from shardpress.cluster.security import scheduler_address
from shardpress.cluster.stats import WorkerStats
from shardpress.cluster.threads import threads
from shardpress.cluster.worker_devices import device_names, worker_environment
from shardpress.result.facts import ClusterFacts
from shardpress.settings.config import ClusterSettings

if TYPE_CHECKING:
    from shardpress.cluster.workers import Cluster, ClusterPool
    from shardpress_kernels.backend import Device

WorkerPool: TypeAlias = "_LocalPool | ClusterPool"


class _LocalPool:
    """Pool of threads in this process. It opens no sockets and does not import `distributed`."""

    is_local = True  # whether this process executes the tasks itself
    n_local_processes = 1  # processes that share the cores and the memory of this machine; 0 for a scheduler

    def __init__(self) -> None:
        self.stats = WorkerStats()  # remains empty without worker processes

    @contextmanager
    def executor(self, n_threads: int) -> Iterator[tuple[Executor, int]]:
        """Provide an executor, and the maximum number of tasks to submit to it at once.

        `n_threads` applies if this process executes the tasks. One more task than threads can be submitted, so that a
        free thread does not wait. Workers use their own number of threads.
        """
        with threads(n_threads) as pool:
            yield pool, n_threads + 1

    def facts(self) -> ClusterFacts:
        return ClusterFacts("threads", [])


def check_settings(settings: ClusterSettings) -> None:
    """Raise `ConfigError` if no pool can be created with these settings, as far as known without a connection."""
    if settings.scheduler is not None:
        scheduler_address(settings.scheduler, settings.insecure_cluster)
    for device in device_names(settings.devices, os.environ):
        worker_environment(device, 1, os.environ)


@contextmanager
def open_pool(
    settings: ClusterSettings,
    n_threads: int,
    start_device: Callable[[], Device],
    probe: Probe,
    requires_device: bool = False,
) -> Iterator[WorkerPool]:
    """Provide the configured pool within the context.

    All local workers together have `n_threads`. `start_device` is `shardpress.model.device.start_device`. With
    `requires_device`, each worker must use its configured device. Raise `ConfigError` if workers could compute
    different results from this process, and `DeviceError`, `SystemLimit` or `TryAgain` if they cannot be used.
    """
    if not settings.has_workers:
        yield _LocalPool()
        return
    # These modules import distributed, which a run with threads does not need.
    from shardpress.cluster.processes import local_cluster
    from shardpress.cluster.workers import cluster_pool, existing_cluster

    context: AbstractContextManager[Cluster]
    if settings.scheduler:
        context = nullcontext(existing_cluster(settings))
    else:
        context = local_cluster(settings, n_threads, requires_device)
    with context as cluster, cluster_pool(cluster, probe, start_device, requires_device) as pool:
        yield pool
