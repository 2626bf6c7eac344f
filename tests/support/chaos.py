"""Repeatedly kill and stop workers of a run, and then the scheduler. Rerun it, and compare all results bit for bit.

    python -m tests.support.chaos 5             number of rounds; a second number is the seed

A round starts the program on a scheduler with four workers, and causes faults in one worker after another. A worker is
killed, or stopped (SIGSTOP) permanently or for some seconds, and a new worker replaces each lost one. Sometimes the
scheduler is stopped for some seconds. In one of the stages the scheduler is killed and started again with four workers.
The same command is then run again, with more faults. The first failed check ends the program and keeps the directory.
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

from tests.support.cases import case
from tests.support.clusters import Cluster, until
from tests.support.killing import PHASES, Victim
from tests.support.processes import DEADLINE
from tests.support.protocol import records

_WORKERS = 4
# Enough steps for two replicas, in rounds whose tasks go to the workers.
_REPLICAS = ("--replicas", "2", "--batch-size", "4", "--epochs", "3", "--memory-budget", "64MiB")
_PAUSES = (0.5, 2.0)  # seconds between two faults
_STOPPED = (1.0, 9.0)  # seconds; Dask declares a worker dead after 5
# Log lines after which the scheduler is killed.
_STAGES = {"scan": r" INFO cluster: \d+ workers?: ", "training": PHASES["training"], "encoding": PHASES["encoding"]}
_SLOW = ("--preload", "tests.support.slow")
_RETRIED = {71, 75}  # exit codes if a task lost all its retries, or the run reached its time limit
_MOST = 8  # maximum number of times that a command is run


class _DisturbedRun:
    """A run of the program on a cluster with repeated faults."""

    def __init__(self, victim: Victim, cluster: Cluster, output: Path, rng: random.Random) -> None:
        self.n_faults = 0
        self._cluster = cluster
        self._rng = rng
        self._running: list[str] = []  # names of the workers
        self._replace_workers()
        self._log = output.with_suffix(".log")
        with open(self._log, "wb") as log:
            flags = ("--scheduler", str(cluster.file))
            self.process = victim.program.start(output, *flags, stdout=log, stderr=log)

    def disturb(self, is_enough: Callable[[], bool]) -> None:
        """Cause faults in one worker after another while the program runs, after it has connected to some."""
        until(lambda: self._has_ended() or self.has_begun("scan"), "the run to find workers", DEADLINE)
        while not is_enough():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(self._rng.uniform(*_PAUSES))
                return
            self.n_faults += 1
            self._inject_fault()
            # Leave more time for work than for faults, also on a busy machine.
            until(lambda: self._has_ended() or self._has_all_workers(), "new workers", DEADLINE)

    def end(self) -> int:
        """Wait for the end of the program, and return its exit code.

        Meanwhile, replace workers that exit: if a stopped scheduler continues, it considers all workers lost.
        """
        until(self._has_ended, "the program to end", DEADLINE)
        return self.process.wait()

    def has_begun(self, stage: str) -> bool:
        return re.search(_STAGES[stage], self._log.read_text(errors="replace"), re.MULTILINE) is not None

    def _inject_fault(self) -> None:
        what = self._rng.choice(["kill", "kill", "stop", "stop for good", "stop scheduler"])
        worker = self._rng.choice(self._running)
        if what == "kill":
            self._running.remove(worker)
            self._cluster.kill(worker)
        elif what == "stop for good":
            self._running.remove(worker)  # another worker replaces it; the scheduler drops this one
            self._cluster.kill(worker, signal.SIGSTOP)
        else:
            name = "scheduler" if what == "stop scheduler" else worker
            self._cluster.kill(name, signal.SIGSTOP)
            time.sleep(self._rng.uniform(*_STOPPED))
            self._cluster.kill(name, signal.SIGCONT)

    def _has_ended(self) -> bool:
        self._replace_workers()
        return self.process.poll() is not None

    def _replace_workers(self) -> None:
        """Replace the workers that are lost or have exited."""
        self._running = [name for name in self._running if self._cluster.processes[name].poll() is None]
        while len(self._running) < _WORKERS:
            name = f"w{time.monotonic_ns()}"
            self._cluster.start_worker(name, *_SLOW)
            self._running.append(name)

    def _has_all_workers(self) -> bool:
        return all("Registered to:" in self._cluster.output(name) for name in self._running)


def _round(victim: Victim, folder: Path, rng: random.Random) -> str:
    """Run one round, and return a description of its faults."""
    output = folder / "out"
    stage = rng.choice(list(_STAGES))
    n_parts = rng.randint(1, 30) if stage == "encoding" else 0
    n_faults = 0
    codes = list[int]()
    while len(codes) < _MOST and codes[-1:] != [0]:
        cluster_folder = folder / f"cluster-{len(codes)}"
        with Cluster(cluster_folder, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="1s") as cluster:
            run = _DisturbedRun(victim, cluster, output, rng)
            try:
                if codes:
                    n_more = rng.randint(1, 4)
                    run.disturb(lambda run=run, n_more=n_more: run.n_faults >= n_more)
                    codes.append(run.end())
                else:
                    run.disturb(
                        lambda run=run: run.has_begun(stage) and len(list(output.glob("parts/*.h5"))) >= n_parts
                    )
                    cluster.kill("scheduler")
                    codes.append(run.process.wait(DEADLINE))
            finally:
                run.process.kill()
                run.process.wait()
        n_faults += run.n_faults
    assert codes[-1] == 0, codes
    assert set(codes[:-1]) <= _RETRIED, codes
    victim.check(output)
    n_committed = Counter(record["key"] for record in records(output))
    assert set(n_committed.values()) <= {1}, n_committed
    return f"{n_faults} faults; the scheduler was killed in the {stage}; exit codes {codes}"


def main(arguments: Sequence[str]) -> None:
    """Run the number of rounds on the command line and print their faults."""
    n_rounds = int(arguments[0])
    seed = int(arguments[1]) if len(arguments) > 1 else 0
    folder = Path(tempfile.mkdtemp(prefix="shardpress-chaos-"))
    victim = Victim(folder, _REPLICAS)
    for number in range(n_rounds):
        place = folder / f"round-{number}"
        place.mkdir()
        with case(number=number, seed=seed, files=folder):
            print(f"round {number}: {_round(victim, place, random.Random(f'{seed} {number}'))}", flush=True)
    shutil.rmtree(folder)
    print(f"{n_rounds} rounds, each with the bits of an undisturbed run, without duplicate or lost parts")


if __name__ == "__main__":
    main(sys.argv[1:])
