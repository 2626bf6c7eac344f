"""Tests of runs on a cluster that loses its workers, its scheduler or its driver: finished results are kept.

The driver and every worker use the stand-in device; the tests check which process does which task, and that each result
counts once.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardpress.cluster import workers
from shardpress.result import INDEX, Result
from tests.support.clusters import Cluster, until
from tests.support.interpreters import REPOSITORY, environment
from tests.support.logged import mentions
from tests.support.processes import DEADLINE, Small, arguments_of, descendants
from tests.support.soak_protocol import invalid_entries, leftovers, records
from tests.support.standin import Workspace, features_of

pytestmark = pytest.mark.process

SIZES = [16] * 10  # one part of rows each
PRELOAD = ("--preload", "tests.support.worker_faults")


@pytest.fixture
def wide(make_workspace: Callable[..., Workspace]) -> Workspace:
    """Return a workspace with ten shards of one part each."""
    return make_workspace(*SIZES)


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


def committed(output: Path) -> set[str]:
    """Return the files of the parts that the journal or the index names."""
    if (output / INDEX).exists():
        return {*Result.open(output).files}
    return {record["entry"]["file"] for record in records(output) if record["key"].startswith("part")}


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


def test_a_worker_that_reconnects_changes_nothing(wide: Workspace, tmp_path: Path) -> None:
    """Another worker encodes its part meanwhile, and the late result is ignored."""
    assert wide.run(tmp_path / "expected") == 0
    with Cluster(tmp_path / "cluster", DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1s") as cluster:
        scheduler_file = cluster.start_between("network")
        once = tmp_path / "once"
        faults = worker_faults(once, **{f"at{i}": "is cut off" for i in range(10)})
        between = {"BETWEEN": str(cluster.processes["network"].pid)}
        cluster.start_worker("far", *PRELOAD, "--scheduler-file", str(scheduler_file), **faults, **between)
        # This keeps the run at work until the far worker is connected again.
        cluster.start_worker("near", *PRELOAD, **worker_faults(**{f"at{i}": "takes its time" for i in range(6, 10)}))
        cluster.wait_for("far", "near")
        assert wide.run(tmp_path / "out", "--scheduler", str(cluster.file)) == 0
        assert list(once.iterdir()), "it was cut off"
        until(lambda: cluster.processes["far"].poll() is not None, "the scheduler to refuse the worker")
        check(tmp_path / "out", tmp_path / "expected")


def test_a_shard_that_kills_worker_after_worker_is_named(
    wide: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = "DASK_DISTRIBUTED__SCHEDULER__"
    # No worker has a second part when it dies, since both parts would be suspected.
    settings = {f"{scheduler}ALLOWED_FAILURES": "1", f"{scheduler}WORKER_SATURATION": "1.0"}
    with Cluster(tmp_path / "cluster", **settings) as cluster:
        for i in range(3):
            cluster.start_worker(f"w{i}", *PRELOAD, **worker_faults(at3="killed"))
        cluster.wait_for("w0", "w1", "w2")
        assert wide.run(tmp_path / "out", "--scheduler", str(cluster.file)) == 71
    assert f"{wide.shards}/3.h5" in caplog.text


def test_a_run_resumes_after_losing_all_workers_or_its_scheduler(
    wide: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_PATIENCE", 3.0)
    assert wide.run(tmp_path / "expected") == 0
    output = tmp_path / "out"
    with Cluster(tmp_path / "cluster") as cluster:
        flags = ("--scheduler", str(cluster.file))
        for i in range(2):
            cluster.start_worker(f"w{i}", *PRELOAD, **worker_faults(at4="killed"))
        cluster.wait_for("w0", "w1")
        assert wide.run(output, *flags) == 75
        assert mentions(caplog.text, "TryAgain", "worker", "3 s")
        first = committed(output)
        scheduler = {"SCHEDULER": str(cluster.processes["scheduler"].pid)}
        cluster.start_worker("w2", *PRELOAD, **scheduler, **worker_faults(at4="loses its scheduler"))
        cluster.wait_for("w2")
        assert wide.run(output, *flags) == 75
        assert re.search(r"TryAgain: .*\bconnection\b.*\bscheduler\b", caplog.text)
        second = committed(output)
        cluster.start_scheduler()
        cluster.start_worker("w3", *PRELOAD)
        cluster.wait_for("w3")
        assert wide.run(output, *flags) == 0
        check(output, tmp_path / "expected")
        assert len(first) > 0, "finished results are kept"
        assert first <= second <= committed(output)
        assert leftovers(output) == []


# A driver in a process of its own that writes its process id to a file.
DRIVER = """
import os, sys
import pytest
from pathlib import Path
from shardpress import cli
from tests.support.standin import install
Path(os.environ["DRIVER"]).write_text(str(os.getpid()))
install(pytest.MonkeyPatch())
sys.exit(cli.main("", sys.argv[1:]))
"""


def test_a_part_written_after_the_driver_died_is_ignored(wide: Workspace, tmp_path: Path) -> None:
    assert wide.run(tmp_path / "expected") == 0
    output = tmp_path / "out"
    driver = {"DRIVER": str(tmp_path / "driver")}
    with Cluster(tmp_path / "cluster") as cluster:
        flags = ("--scheduler", str(cluster.file))
        cluster.start_worker("w", *PRELOAD, **driver, **worker_faults(tmp_path / "once", at4="loses its driver"))
        command = [sys.executable, "-c", DRIVER, *wide.arguments(output, *flags)]
        result = subprocess.run(command, env=environment(**driver), cwd=REPOSITORY, capture_output=True, timeout=120)
        assert result.returncode == -signal.SIGKILL, result.stderr.decode()
        until(lambda: "part-000004" in str(uncommitted_parts(output)), "the part that the worker was at")
        uncommitted = uncommitted_parts(output)
        assert wide.run(output, *flags) == 0
        assert not any((output / name).exists() for name in uncommitted)
        assert leftovers(output) == []
        check(output, tmp_path / "expected")


def uncommitted_parts(output: Path) -> list[str]:
    """Return the parts that are not committed."""
    return sorted({f"parts/{path.name}" for path in output.glob("parts/*.h5")} - committed(output))


def test_local_workers_end_with_a_killed_driver(small: Small, tmp_path: Path) -> None:
    process = small.program().start(tmp_path / "out", "--workers", "2")
    assert process.stdout is not None
    below: dict[int, int] = {}
    try:
        for line in process.stdout:
            if b" INFO cluster: 2 workers: " in line:
                below = dict(descendants(process.pid))
                process.kill()
        process.wait(DEADLINE)
        # The pipe has ended, so all processes that could write to it have exited; and the others have no remains.
        until(lambda: not any(arguments_of(pid) for pid in below), "the workers to end")
    finally:
        process.kill()
        process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    assert len(below) >= 3, "two workers and their parent"
