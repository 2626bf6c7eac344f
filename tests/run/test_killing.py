"""Tests of real runs that are killed at random moments, with equal bits after the same command.

A round kills a run in one of its phases, checks the output directory and that no process of the run is left, and
repeats the command until it ends. Every third round also kills the repeated runs, and every fourth one has two workers.
Sample: three rounds; with TEST_CASES=all, there are 60 rounds.
"""

from __future__ import annotations

import random
import signal
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.cases import ALL_CASES, case
from tests.support.clusters import until
from tests.support.killing import Victim, processes_of
from tests.support.processes import Small
from tests.support.protocol import invalid_entries, run_seen_by_readers

pytestmark = pytest.mark.process

PHASES = ("start", "scan", "training", "encoding", "finishing")
ATTEMPTS = 20


@pytest.mark.parametrize("number", range(60) if ALL_CASES else (1, 2, 3))
def test_a_run_killed_in_any_phase_resumes_with_the_same_bits(victim: Victim, tmp_path: Path, number: int) -> None:
    flags = ("--workers", "2") if number % 4 == 3 else ()
    for attempt in range(ATTEMPTS):
        rng = random.Random(f"{number} {attempt}")
        more = rng.choices(PHASES, k=rng.randint(1, 3)) if number % 3 == 2 else []
        output = tmp_path / f"{attempt}"
        with case(attempt=attempt):
            is_killed = kill(victim, output, flags, [PHASES[number % len(PHASES)], *more], rng)
            victim.resume(output, *flags)
        if is_killed:  # otherwise the run ended before it was killed
            return
    raise AssertionError("the run always ended before it was killed")


def kill(victim: Victim, output: Path, flags: Sequence[str], phases: Sequence[str], rng: random.Random) -> bool:
    """Kill one run after another in these phases, until one ends by itself. Return whether any was killed.

    A resumed run may skip a phase, and a chosen moment may be after the end of a run.
    """
    for number, phase in enumerate(phases):
        ended = victim.program.run(output, *flags, at=phase, delay=rng.random() * victim.seconds[phase])
        if ended.code == 0:
            return number > 0
        assert ended.code == -signal.SIGKILL, ended.lines[-3:]
        assert invalid_entries(output) == []
        run_seen_by_readers(output)
    return True


@pytest.mark.parametrize("n_processes", [3, 5])
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
