"""Tests of killed real runs. With TEST_CASES=all, there are hundreds of them."""

from __future__ import annotations

import signal
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.support.cases import ALL_CASES
from tests.support.clusters import until
from tests.support.killing import Victim, processes_of, rounds
from tests.support.processes import Small

pytestmark = pytest.mark.process

PHASES = ("start", "scan", "training", "encoding", "finishing")


def test_a_run_killed_in_any_phase_resumes_with_the_same_bits(victim: Victim) -> None:
    n_rounds = 200 if ALL_CASES else len(PHASES)
    assert len(list(rounds(victim, n_rounds, seed=9))) == n_rounds


@pytest.mark.parametrize("n_processes", [2, 4, 5])
def test_no_child_outlives_a_killed_driver(small: Small, tmp_path: Path, n_processes: int) -> None:
    """Runs with two workers are killed while they start their processes, and with all of them."""
    mark = uuid.uuid4().hex
    program = small.program(TMPDIR=tmp_path, MARK_OF_TEST_RUN=mark)
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = program.start(tmp_path / "out", "--workers", "2", **output)
    until(lambda: process.poll() is not None or len(processes_of(mark)) >= n_processes, f"{n_processes} processes")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    until(lambda: not processes_of(mark), "all processes of the run to exit", 60)
    assert list(tmp_path.glob("*scratch*")) == []
