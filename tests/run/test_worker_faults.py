"""Tests of runs on a cluster whose workers or scheduler are lost or stopped (SIGSTOP): finished results are kept.

The driver and every worker use the stand-in device; the tests check which process does which task, and that each result
counts once.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from shardpress.cluster import workers
from shardpress.result.finished import Result
from tests.support.clusters import Cluster, until
from tests.support.killing import features_of as digest_of
from tests.support.killing import processes_of
from tests.support.logged import mentions
from tests.support.processes import Small, ends_well
from tests.support.protocol import committed, invalid_entries, leftovers
from tests.support.standin import Workspace, features_of, install

pytestmark = pytest.mark.process

SIZES = [16] * 10  # one part of rows each
PRELOAD = ("--preload", "tests.support.worker_faults")


@pytest.fixture
def wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a workspace with ten shards of one part each."""
    install(monkeypatch)
    monkeypatch.chdir(".")  # the probe of the cluster changes the directory; this restores it
    return Workspace(tmp_path, *SIZES)


def worker_faults(once: Path | None = None, **faults: str) -> dict[str, str]:
    """Return a worker's environment with the fault for each shard number, once or each time."""
    variables = {"WORKER_FAULTS": json.dumps({f"{name.removeprefix('at')}.h5": each for name, each in faults.items()})}
    if once is not None:
        once.mkdir(exist_ok=True)
        variables["WORKER_FAULTS_ONCE"] = str(once)
    return variables


def check(output: Path, expected: Path) -> None:
    """Check that a finished run has every part once, and the same bits as the expected one."""
    assert features_of(output) == features_of(expected)
    assert invalid_entries(output) == []
    assert len(Result.open(output).parts) == len(SIZES)


def committed_parts(output: Path) -> set[str]:
    """Return the files of the parts that the journal or the index names."""
    return {file for file in committed(output).values() if file.startswith("parts/")}


def test_killed_crashed_stopped_or_silent_workers_are_replaced(wide: Workspace, tmp_path: Path) -> None:
    """The scheduler notices some faults at once and others later; a part that arrives late is unreferenced."""
    assert wide.run(tmp_path / "expected") == 0
    faults = worker_faults(tmp_path / "once", at5="killed", at6="crashes", at7="stopped", at8="keeps the lock")
    with Cluster(tmp_path / "cluster", DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1s") as cluster:
        for i in range(5):
            cluster.start_worker(f"w{i}", *PRELOAD, **faults)
        output = tmp_path / "out"
        assert wide.run(output, "--scheduler", str(cluster.file)) == 0
        check(output, tmp_path / "expected")
        assert len(list((tmp_path / "once").iterdir())) == 4, "each fault has happened"
        ended = {name: process.poll() for name, process in cluster.processes.items()}
        assert {-signal.SIGKILL, -signal.SIGSEGV} <= set(ended.values())
        (stopped,) = (name for name, code in ended.items() if code is None and is_stopped(cluster.processes[name].pid))
        cluster.kill(stopped, signal.SIGCONT)  # its present task ends now, if it can
        until(lambda: cluster.processes[stopped].poll() is not None, "the scheduler to refuse the worker")
        assert wide.run(output) == 0
        assert leftovers(output) == []
        check(output, tmp_path / "expected")


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("fault", ["kills its scheduler", "stops its scheduler"])
def test_a_run_resumes_after_losing_all_workers_or_its_scheduler(
    wide: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 3.0)
    monkeypatch.setattr(workers, "_MAX_SILENCE", 3.0)
    assert wide.run(tmp_path / "expected") == 0
    output = tmp_path / "out"
    with Cluster(tmp_path / "cluster") as cluster:
        flags = ("--scheduler", str(cluster.file))
        for i in range(2):
            cluster.start_worker(f"w{i}", *PRELOAD, **worker_faults(at4="killed"))
        cluster.wait_for("w0", "w1")
        assert wide.run(output, *flags) == 75
        assert mentions(caplog.text, "TryAgain", "worker", "3 s")
        first = committed_parts(output)
        scheduler = {"SCHEDULER": str(cluster.processes["scheduler"].pid)}
        cluster.start_worker("w2", *PRELOAD, **scheduler, **worker_faults(at4=fault))
        cluster.wait_for("w2")
        assert wide.run(output, *flags) == 75
        assert re.search(r"TryAgain: .*\bscheduler\b", caplog.text)
        second = committed_parts(output)
        cluster.start_scheduler()
        cluster.start_worker("w3", *PRELOAD)
        cluster.wait_for("w3")
        assert wide.run(output, *flags) == 0
        check(output, tmp_path / "expected")
        assert len(first) > 0, "finished results are kept"
        assert first <= second <= committed_parts(output)
        assert leftovers(output) == []


def test_a_killed_local_worker_is_replaced(small: Small, tmp_path: Path) -> None:
    process = small.program(MARK_OF_TEST_RUN=tmp_path).start(tmp_path / "out", "--workers", "2")
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if b" INFO cluster: 2 workers: " in line:
                commands = processes_of(str(tmp_path))
                worker = next(pid for pid, command in commands.items() if "spawn_main" in command)
                os.kill(worker, signal.SIGKILL)
                break
        ends_well(process)
    finally:
        process.kill()
        process.stdout.close()
    assert digest_of(tmp_path / "out") == small.features
    assert leftovers(tmp_path / "out") == []
