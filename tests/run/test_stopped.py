"""Tests of stopped (SIGSTOP) processes of a cluster: they keep their connections open and send nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clusters import Cluster, until
from tests.support.interpreters import REPOSITORY, environment
from tests.support.killing import features_of
from tests.support.logged import mentions
from tests.support.processes import DEADLINE, Small, arguments_of, descendants, ends_well, patch_program
from tests.support.soak_protocol import invalid_entries, leftovers
from tests.support.standin import Workspace
from tests.support.standin import features_of as features_of_standin

pytestmark = pytest.mark.process

SIZES = [16] * 6  # one part of rows each
SHORT_PATIENCE = "from shardpress.cluster import workers; workers._MAX_SILENCE = 3.0"
# A driver in a process of its own, with the stand-in as its device.
DRIVER = """
import sys
import pytest
from shardpress import cli
from tests.support.standin import install
{line}
install(pytest.MonkeyPatch())
sys.exit(cli.main("", sys.argv[1:]))
"""


@pytest.fixture
def wide(make_workspace: Callable[..., Workspace]) -> Workspace:
    """Return a workspace with six shards of one part each."""
    return make_workspace(*SIZES)


@contextmanager
def driver(workspace: Workspace, output: Path, cluster: Cluster, line: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Provide a run on the cluster, which must exit within the context; its log is ``driver.log``."""
    arguments = workspace.arguments(output, "--scheduler", str(cluster.file))
    command = [sys.executable, "-c", DRIVER.format(line=line), *arguments]
    with open(cluster.folder / "driver.log", "wb") as log:
        process = subprocess.Popen(command, env=environment(), cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def start_worker(cluster: Cluster, name: str) -> None:
    """Start a worker that delays each block, so that tests find it at work."""
    cluster.start_worker(name, "--preload", "tests.support.worker_faults", "--preload", "tests.support.slow")
    cluster.wait_for(name)


def has_parts(output: Path) -> Callable[[], bool]:
    return lambda: len(list(output.glob("parts/*.h5"))) >= 2


def test_a_stopped_scheduler_ends_the_run(wide: Workspace, tmp_path: Path) -> None:
    assert wide.run(tmp_path / "expected") == 0
    output = tmp_path / "out"
    with Cluster(tmp_path / "cluster") as cluster:
        start_worker(cluster, "w0")
        with driver(wide, output, cluster, SHORT_PATIENCE) as process:
            until(has_parts(output), "parts", DEADLINE)
            cluster.kill("scheduler", signal.SIGSTOP)
            assert process.wait(DEADLINE) == 75, cluster.output("driver")
        assert mentions(cluster.output("driver"), "TryAgain", "scheduler")
        assert "Traceback" not in cluster.output("driver")
        assert invalid_entries(output) == []
        # Without a cluster the same command resumes.
        assert wide.run(output) == 0
    assert features_of_standin(output) == features_of_standin(tmp_path / "expected")
    assert leftovers(output) == []


def test_a_scheduler_that_stops_at_the_start_ends_the_run(wide: Workspace, tmp_path: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster:
        # Without any worker, so that the run waits for one.
        with driver(wide, tmp_path / "out", cluster, SHORT_PATIENCE) as process:
            until(lambda: mentions(cluster.output("driver"), "cluster:", "worker"), "the run to wait", DEADLINE)
            cluster.kill("scheduler", signal.SIGSTOP)
            assert process.wait(DEADLINE) == 75, cluster.output("driver")
        assert mentions(cluster.output("driver"), "TryAgain", "scheduler")
        assert "Traceback" not in cluster.output("driver")


def test_a_signal_ends_a_run_whose_scheduler_is_stopped(wide: Workspace, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with Cluster(tmp_path / "cluster") as cluster:
        start_worker(cluster, "w0")
        with driver(wide, output, cluster) as process:
            until(has_parts(output), "parts", DEADLINE)
            cluster.kill("scheduler", signal.SIGSTOP)
            process.terminate()
            assert process.wait(DEADLINE) == 128 + signal.SIGTERM, cluster.output("driver")
        assert mentions(cluster.output("driver"), "ERROR", "SIGTERM")
        assert "Traceback" not in cluster.output("driver")


# A driver with local workers and small blocks, whose scheduler drops silent workers sooner than by default.
SHORT_TIMEOUT = """
import sys
sys.path.insert(0, "scripts")
import dask
refresh = dask.config.refresh
def refresh_and_set(*arguments, **named):
    refresh(*arguments, **named)
    dask.config.set({"distributed.scheduler.worker-ttl": "1s"})
dask.config.refresh = refresh_and_set
import extract
from shardpress.run import budget
budget._wanted_block_rows = lambda thread_bytes, row_bytes: 8
sys.exit(extract.main())
"""


def test_a_stopped_local_worker_is_replaced(small: Small, tmp_path: Path) -> None:
    """The worker is never continued."""
    process = patch_program(small, SHORT_TIMEOUT).start(tmp_path / "out", "--workers", "2")
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if b" INFO cluster: 2 workers: " in line:
                below = list(descendants(process.pid))
                nannies = {pid for pid, parent in below if parent == process.pid}
                children = [pid for pid, parent in below if parent in nannies]
                worker = next(pid for pid in children if "spawn_main" in " ".join(arguments_of(pid)))
                os.kill(worker, signal.SIGSTOP)
                break
        ends_well(process)
    finally:
        process.kill()
        process.stdout.close()
    assert features_of(tmp_path / "out") == small.features
    assert leftovers(tmp_path / "out") == []
