"""Repeatedly kill and stop workers of a run, and then the scheduler. Rerun it, and compare all results bit for bit.

    python -m tests.support.chaos 5             number of rounds; a second number is the seed

A round starts the program on a scheduler with four workers, and causes faults in one worker after another. A worker is
killed, or stopped (SIGSTOP) permanently or for some seconds, and a new worker replaces each lost one. Sometimes the
scheduler is stopped for some seconds. In one of the stages the scheduler is killed and started again with four workers.
The same command is then run again, with more faults. The first failed check ends the program with exit code 1 and keeps
the directory.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.clusters import Cluster, until
from tests.support.killing import CheckFailed, Victim
from tests.support.processes import DEADLINE
from tests.support.soak_protocol import records

_WORKERS = 4
# Enough steps for two replicas, in rounds whose tasks go to the workers.
_REPLICAS = ("--replicas", "2", "--batch-size", "4", "--epochs", "3", "--memory-budget", "64MiB")
_PAUSES = (0.5, 2.0)  # seconds between two faults
_STOPPED = (1.0, 9.0)  # seconds; Dask declares a worker dead after 5
# Log lines after which the scheduler is killed, and the number of parts that must have been written before.
STAGES = {
    "scan": r" INFO cluster: \d+ workers?: ",
    "training": r" INFO training: \d+ rows",
    "encoding": r" INFO training: ((\d+)/\2 rows|reusing the result of an earlier run)",
}
_SLOW = ("--preload", "tests.support.slow")
_LOST = 75  # exit code if the run reached its time limit
_GIVEN_UP = 71  # exit code if a task also lost all its retries
_MOST = 8  # maximum number of times that a command is run


class _DisturbedRun:
    """A run on a cluster with repeated faults."""

    def __init__(self, victim: Victim, cluster: Cluster, rng: random.Random) -> None:
        self._program = victim.program
        self._cluster = cluster
        self._rng = rng
        self._running: list[str] = []  # names of the workers
        self._n_started = 0
        self._n_commands = 0
        self.n_faults = 0

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        """Start the program and four workers."""
        self._fill_up()
        with open(self._cluster.folder / "driver.log", "ab") as log:
            return self._program.start(output, "--scheduler", str(self._cluster.file), stdout=log, stderr=log)

    def disturb(self, process: subprocess.Popen[bytes], is_enough: Callable[[], bool]) -> None:
        """Cause faults in one worker after another while the program runs, after it has connected to some."""
        self._n_commands += 1
        until(
            lambda: process.poll() is not None or self._n_found() == self._n_commands,
            "the run to find workers",
            DEADLINE,
        )
        while not is_enough():
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._rng.uniform(*_PAUSES))
                return
            self._inject_fault()
            self._fill_up()
            # Leave more time for work than for faults, also on a busy machine.
            until(lambda: process.poll() is not None or self._has_all_workers(), "new workers", DEADLINE)

    def end_of(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of the program and return its exit code. Meanwhile, replace workers that exit.

        When a stopped scheduler continues, it considers all workers lost, and they exit.
        """

        def has_ended() -> bool:
            self._fill_up()
            return process.poll() is not None

        until(has_ended, "the program to end", DEADLINE)
        return process.wait()

    def lose_scheduler(self) -> None:
        """Replace the scheduler by a new one without workers."""
        for name in self._running:
            self._cluster.kill(name)
        self._running.clear()
        self._cluster.start_scheduler()

    def has_begun(self, stage: str) -> bool:
        """Return whether the last run has reached a stage."""
        last = re.split(STAGES["scan"], self._cluster.output("driver"))[self._n_commands :]
        return bool(last) and (stage == "scan" or re.search(STAGES[stage], "".join(last)) is not None)

    def _inject_fault(self) -> None:
        self.n_faults += 1
        what = self._rng.choice(["kill", "kill", "stop", "stop for good", "stop scheduler"])
        worker = self._rng.choice(self._running)
        if what == "kill":
            self._running.remove(worker)
            self._cluster.kill(worker)
            return
        name = "scheduler" if what == "stop scheduler" else worker
        self._cluster.kill(name, signal.SIGSTOP)
        if what == "stop for good":
            self._running.remove(worker)  # another worker replaces it; the scheduler drops this one
            return
        time.sleep(self._rng.uniform(*_STOPPED))
        self._cluster.kill(name, signal.SIGCONT)

    def _fill_up(self) -> None:
        """Replace the workers that are lost or have exited."""
        self._running = [name for name in self._running if not self._has_exited(name)]
        while len(self._running) < _WORKERS:
            name = f"w{self._n_started}"
            self._cluster.start_worker(name, *_SLOW)
            self._running.append(name)
            self._n_started += 1

    def _has_all_workers(self) -> bool:
        """Return whether all workers have connected or have exited."""
        return all("Registered to:" in self._cluster.output(each) or self._has_exited(each) for each in self._running)

    def _has_exited(self, name: str) -> bool:
        return self._cluster.processes[name].poll() is not None

    def _n_found(self) -> int:
        """Return the number of runs that have connected to workers."""
        return len(re.findall(r" INFO cluster: \d+ workers?: ", self._cluster.output("driver")))


def _round(victim: Victim, folder: Path, rng: random.Random) -> str:
    """Run one round, and return a description of its faults."""
    output = folder / "out"
    codes = list[int]()
    with Cluster(folder / "cluster", DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1s") as cluster:
        disturbed = _DisturbedRun(victim, cluster, rng)
        process = disturbed.start(output)
        try:
            stage = rng.choice(list(STAGES))
            n_parts = rng.randint(1, 30) if stage == "encoding" else 0
            disturbed.disturb(
                process, lambda: disturbed.has_begun(stage) and len(list(output.glob("parts/*.h5"))) >= n_parts
            )
            cluster.kill("scheduler")
            codes.append(process.wait(DEADLINE))
            disturbed.lose_scheduler()
            while codes[-1] != 0 and len(codes) < _MOST:
                process = disturbed.start(output)
                n_faults = disturbed.n_faults + rng.randint(1, 4)
                disturbed.disturb(process, lambda n_faults=n_faults: disturbed.n_faults >= n_faults)
                codes.append(disturbed.end_of(process))
        finally:
            process.kill()
            process.wait()
    if codes[-1] != 0 or set(codes[:-1]) - {_LOST, _GIVEN_UP}:
        raise CheckFailed(f"exit codes {codes}")
    victim.check(output)
    if twice := [key for key, n in Counter(record["key"] for record in records(output)).items() if n > 1]:
        raise CheckFailed(f"committed twice: {twice}")
    return f"{disturbed.n_faults} faults; the scheduler was killed in the {stage}; exit codes {codes}"


def main(arguments: Sequence[str]) -> int:
    """Run the number of rounds on the command line and print their faults."""
    n_rounds = int(arguments[0])
    seed = int(arguments[1]) if len(arguments) > 1 else 0
    folder = Path(tempfile.mkdtemp(prefix="shardpress-chaos-"))
    victim = Victim(folder, _REPLICAS)
    for number in range(n_rounds):
        place = folder / f"round-{number}"
        place.mkdir()
        try:
            print(f"round {number}: {_round(victim, place, random.Random(f'{seed} {number}'))}", flush=True)
        except (CheckFailed, subprocess.TimeoutExpired, AssertionError) as broken:
            print(f"BROKEN: round {number}, seed {seed}: {broken} (all files are in {folder})")
            return 1
        shutil.rmtree(place)
    shutil.rmtree(folder)
    print(f"{n_rounds} rounds, each with the bits of an undisturbed run, without duplicate or lost parts")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
