"""Repeatedly kill and stop workers of a run, and then the scheduler. Rerun it, and compare all results bit for bit.

    python -m tests.support.chaos 5             number of rounds; a second number is the seed
    python -m tests.support.chaos 5 0 hosts     each worker on its own host, which is sometimes cut off (needs root)

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
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.clusters import Cluster, until
from tests.support.hosts import HERE, Hosts
from tests.support.killing import CheckFailed, Victim, committed
from tests.support.processes import DEADLINE
from tests.support.soak_protocol import records

_WORKERS = 4
# Enough steps for two replicas, in rounds whose tasks go to the workers.
_REPLICAS = ("--replicas", "2", "--batch-size", "4", "--epochs", "3", "--memory-budget", "64MiB")
_PAUSES = (0.5, 2.0)  # seconds between two faults
_CUT_OFF = (1.0, 9.0)  # seconds; Dask declares a worker dead after 5
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


@dataclass(frozen=True)
class Round:
    """Counts of one round.

    Attributes
    ----------
    n_killed, n_cut_off, n_stopped : int
        Number of workers killed, cut off and stopped. `n_stopped` includes the scheduler.
    stage : str
        Stage in which the scheduler was killed.
    n_parts : int
        Number of parts that were committed when the scheduler was killed.
    codes : list of int
        Exit codes, the last one 0.
    """

    n_killed: int
    n_cut_off: int
    n_stopped: int
    stage: str
    n_parts: int
    codes: list[int]

    def __str__(self) -> str:
        return (
            f"{self.n_killed} workers killed, {self.n_cut_off} cut off, {self.n_stopped} processes stopped; "
            f"{self.n_parts} parts committed when the scheduler was killed ({self.stage}); exit codes {self.codes}"
        )


class _DisturbedRun:
    """A run on a cluster with repeated faults."""

    def __init__(self, victim: Victim, cluster: Cluster, hosts: Hosts | None, rng: random.Random) -> None:
        self._cluster = cluster
        self._hosts = hosts
        self._rng = rng
        self._places = hosts.places if hosts else [HERE] * (_WORKERS + 1)
        self._program = copy(victim.program)
        self._program.command = [*self._places[0].command, *self._program.command]
        self._running: dict[int, str] = {}  # name of the worker on each host, by host number
        self.n_killed = self.n_cut_off = self.n_stopped = self._n_started = self._n_commands = 0

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        """Start the program and four workers."""
        self._fill_up()
        flags = ("--scheduler", str(self._cluster.file), *(("--insecure-cluster",) if self._hosts else ()))
        with open(self._cluster.folder / "driver.log", "ab") as log:
            return self._program.start(output, *flags, stdout=log, stderr=log)

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
            self._inject_fault(self._rng.randint(1, _WORKERS))
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
        for i in list(self._running):
            self._kill(i)
        self._cluster.start_scheduler()

    def has_injected(self, n: int) -> bool:
        """Return whether at least `n` processes were killed, cut off or stopped."""
        return self.n_killed + self.n_cut_off + self.n_stopped >= n

    def has_begun(self, stage: str) -> bool:
        """Return whether the last run has reached a stage."""
        last = re.split(STAGES["scan"], self._cluster.output("driver"))[self._n_commands :]
        return bool(last) and (stage == "scan" or re.search(STAGES[stage], "".join(last)) is not None)

    def _inject_fault(self, i: int) -> None:
        if self._hosts and self._rng.random() < 0.5:
            self._hosts.pull(i)
            time.sleep(self._rng.uniform(*_CUT_OFF))
            self._hosts.plug(i)
            self.n_cut_off += 1
            return
        what = self._rng.choice(["kill", "kill", "stop", "stop for good", "stop scheduler"])
        if what == "kill":
            self._kill(i)
            self.n_killed += 1
            return
        name = "scheduler" if what == "stop scheduler" else self._running[i]
        self._cluster.kill(name, signal.SIGSTOP)
        self.n_stopped += 1
        if what == "stop for good":
            del self._running[i]  # another worker replaces it; the scheduler drops this one
            return
        time.sleep(self._rng.uniform(*_CUT_OFF))
        self._cluster.kill(name, signal.SIGCONT)

    def _kill(self, i: int) -> None:
        self._cluster.kill(self._running.pop(i))

    def _fill_up(self) -> None:
        for i in range(1, _WORKERS + 1):
            if i not in self._running or self._has_exited(self._running[i]):
                self._running[i] = f"w{self._n_started}"
                self._cluster.start_worker(self._running[i], *_SLOW, place=self._places[i])
                self._n_started += 1

    def _has_all_workers(self) -> bool:
        """Return whether all workers have connected or have exited."""
        names = self._running.values()
        return all("Registered to:" in self._cluster.output(each) or self._has_exited(each) for each in names)

    def _has_exited(self, name: str) -> bool:
        return self._cluster.processes[name].poll() is not None

    def _n_found(self) -> int:
        """Return the number of runs that have connected to workers."""
        return len(re.findall(r" INFO cluster: \d+ workers?: ", self._cluster.output("driver")))


def _round(victim: Victim, folder: Path, hosts: Hosts | None, rng: random.Random) -> Round:
    output = folder / "out"
    codes = list[int]()
    settings = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1s"}
    with Cluster(folder / "cluster", hosts.places[0] if hosts else HERE, **settings) as cluster:
        disturbed = _DisturbedRun(victim, cluster, hosts, rng)
        process = disturbed.start(output)
        try:
            stage = rng.choice(list(STAGES))
            n_parts = rng.randint(1, 30) if stage == "encoding" else 0
            disturbed.disturb(
                process, lambda: disturbed.has_begun(stage) and len(list(output.glob("parts/*.h5"))) >= n_parts
            )
            cluster.kill("scheduler")
            codes.append(process.wait(DEADLINE))
            n_parts = sum(key.startswith("part") for key in committed(output))
            disturbed.lose_scheduler()
            while codes[-1] != 0 and len(codes) < _MOST:
                process = disturbed.start(output)
                n_faults = disturbed.n_killed + disturbed.n_cut_off + rng.randint(1, 4)
                disturbed.disturb(process, partial(disturbed.has_injected, n_faults))
                codes.append(disturbed.end_of(process))
        finally:
            process.kill()
            process.wait()
    if codes[-1] != 0 or set(codes[:-1]) - {_LOST, _GIVEN_UP}:
        raise CheckFailed(f"exit codes {codes}")
    victim.check(output)
    if twice := [key for key, n in Counter(record["key"] for record in records(output)).items() if n > 1]:
        raise CheckFailed(f"committed twice: {twice}")
    return Round(disturbed.n_killed, disturbed.n_cut_off, disturbed.n_stopped, stage, n_parts, codes)


def rounds(victim: Victim, n_rounds: int, seed: int, hosts: Hosts | None = None) -> Iterator[Round]:
    """Run `n_rounds` rounds, across `hosts` if given.

    Raises
    ------
    CheckFailed
        If a check fails. The message names the directory.
    """
    for number in range(n_rounds):
        folder = victim.folder / f"round-{number}"
        folder.mkdir()
        try:
            yield _round(victim, folder, hosts, random.Random(f"{seed} {number}"))
        except (CheckFailed, subprocess.TimeoutExpired, AssertionError) as broken:
            raise CheckFailed(f"round {number}, seed {seed}: {broken}. Kept: {folder}") from broken
        shutil.rmtree(folder)


def main() -> int:
    """Run the number of rounds on the command line and print their counts."""
    n_rounds = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="shardpress-chaos-"))
    try:
        with Hosts(_WORKERS) if "hosts" in sys.argv else nullcontext() as hosts:
            for number, found in enumerate(rounds(Victim(folder, _REPLICAS), n_rounds, seed, hosts)):
                print(f"round {number}: {found}; {time.monotonic() - start:.0f} s so far", flush=True)
    except CheckFailed as broken:
        print(f"BROKEN: {broken} (all files are in {folder})")
        return 1
    shutil.rmtree(folder)
    print(f"{n_rounds} rounds, each with the bits of an undisturbed run, without duplicate or lost parts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
