"""Kill and stop workers of a run every moment, then its scheduler: typed again, it ends with the same bits.

    python -m tests.support.chaos 5             this many rounds; a second number is the seed
    python -m tests.support.chaos 5 0 hosts     each worker on a host of its own, which is cut off now and then (root)

A round starts the program on a scheduler with four workers and harms one of them after the other: it is killed, or
stopped (SIGSTOP) for good or for some seconds, and a new one starts in the place of one that has gone. The scheduler
itself is stopped for some seconds now and then. In one of the stages it is killed, started anew with four workers, and
the same command is typed again, with more harm. The first thing that is not as promised ends it all with exit code 1,
and its directory is kept.
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
from tests.support.killing import Broken, Victim, committed
from tests.support.processes import DEADLINE
from tests.support.soak_protocol import records

__all__ = ["Round", "rounds"]

_WORKERS = 4
# So many steps that two replicas train, in rounds whose tasks go to the workers.
_REPLICAS = ("--replicas", "2", "--batch-size", "4", "--epochs", "3", "--memory-budget", "64MiB")
_PAUSES = (0.5, 2.0)  # seconds between two deaths
_CUT_OFF = (1.0, 9.0)  # seconds: Dask takes a worker for dead after 5
# Lines of the log after which the scheduler dies, and parts that must have been written by then.
STAGES = {
    "scan": r" INFO cluster: \d+ workers?: ",
    "training": r" INFO training: \d+ rows",
    "encoding": r" INFO training: ((\d+)/\2 rows|reusing the result of an earlier run)",
}
_SLOW = ("--preload", "tests.support.slow")
_LOST, _GIVEN_UP = 75, 71  # by which a run may end; the second when one task has met with every death
_MOST = 8  # times that a command is typed


@dataclass(frozen=True)
class Round:
    """What came of one.

    Attributes
    ----------
    n_killed, n_cut_off, n_stopped : int
        Workers; and of those that were stopped, also the scheduler.
    stage : str
        In which the scheduler was killed.
    n_parts : int
        Committed when the scheduler was killed.
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


class _Night:
    """A run on a cluster in which something dies all the time."""

    def __init__(self, victim: Victim, cluster: Cluster, hosts: Hosts | None, rng: random.Random) -> None:
        self._cluster, self._hosts, self._rng = cluster, hosts, rng
        self._places = hosts.places if hosts else [HERE] * (_WORKERS + 1)
        self._program = copy(victim.program)
        self._program.command = [*self._places[0].command, *self._program.command]
        self._there: dict[int, str] = {}  # workers, by the host that they are on
        self.n_killed = self.n_cut_off = self.n_stopped = self._n_started = self._n_typed = 0

    def start(self, output: Path) -> subprocess.Popen[bytes]:
        """The program, and four workers for it."""
        self._fill_up()
        flags = ("--scheduler-file", str(self._cluster.file), *(("--insecure-cluster",) if self._hosts else ()))
        with open(self._cluster.folder / "driver.log", "ab") as said:
            return self._program.start(output, *flags, stdout=said, stderr=said)

    def disturb(self, process: subprocess.Popen[bytes], is_enough: Callable[[], bool]) -> None:
        """Harm one worker after the other as long as it runs, from when it has found some."""
        self._n_typed += 1
        until(
            lambda: process.poll() is not None or self._n_found() == self._n_typed, "the run to find workers", DEADLINE
        )
        while not is_enough():
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._rng.uniform(*_PAUSES))
                return
            self._harm(self._rng.randint(1, _WORKERS))
            self._fill_up()
            # On a machine that is busy, too, there is more work than death.
            until(lambda: process.poll() is not None or self._is_manned(), "new workers", DEADLINE)

    def end_of(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of the program, and return its exit code; workers that end meanwhile are replaced.

        A scheduler that was stopped takes all workers for lost when it continues, and they end.
        """

        def has_ended() -> bool:
            self._fill_up()
            return process.poll() is not None

        until(has_ended, "the program to end", DEADLINE)
        return process.wait()

    def lose_scheduler(self) -> None:
        """A new one, to which no worker has come."""
        for i in list(self._there):
            self._kill(i)
        self._cluster.start_scheduler()

    def has_harmed(self, n: int) -> bool:
        """Whether so many workers have died or were cut off."""
        return self.n_killed + self.n_cut_off + self.n_stopped >= n

    def has_begun(self, stage: str) -> bool:
        """Return whether the last run has come to a stage."""
        last = re.split(STAGES["scan"], self._cluster.said("driver"))[self._n_typed :]
        return bool(last) and (stage == "scan" or re.search(STAGES[stage], "".join(last)) is not None)

    def _harm(self, i: int) -> None:
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
        name = "scheduler" if what == "stop scheduler" else self._there[i]
        self._cluster.kill(name, signal.SIGSTOP)
        self.n_stopped += 1
        if what == "stop for good":
            del self._there[i]  # another one takes its place; the scheduler gives up this one
            return
        time.sleep(self._rng.uniform(*_CUT_OFF))
        self._cluster.kill(name, signal.SIGCONT)

    def _kill(self, i: int) -> None:
        self._cluster.kill(self._there.pop(i))

    def _fill_up(self) -> None:
        for i in range(1, _WORKERS + 1):
            if i not in self._there or self._has_gone(self._there[i]):
                self._there[i] = f"w{self._n_started}"
                self._cluster.start_worker(self._there[i], *_SLOW, place=self._places[i])
                self._n_started += 1

    def _is_manned(self) -> bool:
        """Whether all workers have come, or have gone again."""
        names = self._there.values()
        return all("Registered to:" in self._cluster.said(each) or self._has_gone(each) for each in names)

    def _has_gone(self, name: str) -> bool:
        return self._cluster.processes[name].poll() is not None

    def _n_found(self) -> int:
        """How many runs have found workers."""
        return len(re.findall(r" INFO cluster: \d+ workers?: ", self._cluster.said("driver")))


def _round(victim: Victim, folder: Path, hosts: Hosts | None, rng: random.Random) -> Round:
    output, codes = folder / "out", list[int]()
    settings = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "1s"}
    with Cluster(folder / "cluster", hosts.places[0] if hosts else HERE, **settings) as cluster:
        night = _Night(victim, cluster, hosts, rng)
        process = night.start(output)
        try:
            stage = rng.choice(list(STAGES))
            n_parts = rng.randint(1, 30) if stage == "encoding" else 0
            night.disturb(process, lambda: night.has_begun(stage) and len(list(output.glob("parts/*.h5"))) >= n_parts)
            cluster.kill("scheduler")
            codes.append(process.wait(DEADLINE))
            n_parts = sum(key.startswith("part") for key in committed(output))
            night.lose_scheduler()
            while codes[-1] != 0 and len(codes) < _MOST:
                process = night.start(output)
                n_harmed = night.n_killed + night.n_cut_off + rng.randint(1, 4)
                night.disturb(process, partial(night.has_harmed, n_harmed))
                codes.append(night.end_of(process))
        finally:
            process.kill()
            process.wait()
    if codes[-1] != 0 or set(codes[:-1]) - {_LOST, _GIVEN_UP}:
        raise Broken(f"exit codes {codes}")
    victim.check(output)
    if twice := [key for key, n in Counter(record["key"] for record in records(output)).items() if n > 1]:
        raise Broken(f"committed twice: {twice}")
    return Round(night.n_killed, night.n_cut_off, night.n_stopped, stage, n_parts, codes)


def rounds(victim: Victim, n_rounds: int, seed: int, hosts: Hosts | None = None) -> Iterator[Round]:
    """As many rounds, across hosts where there are such.

    Raises
    ------
    Broken
        With the directory that shows it.
    """
    for number in range(n_rounds):
        folder = victim.folder / f"round-{number}"
        folder.mkdir()
        try:
            yield _round(victim, folder, hosts, random.Random(f"{seed} {number}"))
        except (Broken, subprocess.TimeoutExpired, AssertionError) as broken:
            raise Broken(f"round {number}, seed {seed}: {broken}. Kept: {folder}") from broken
        shutil.rmtree(folder)


def main() -> int:
    """Print what came of as many rounds as the command line asks for."""
    n_rounds, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="shardpress-chaos-"))
    try:
        with Hosts(_WORKERS) if "hosts" in sys.argv else nullcontext() as hosts:
            for number, found in enumerate(rounds(Victim(folder, _REPLICAS), n_rounds, seed, hosts)):
                print(f"round {number}: {found}; {time.monotonic() - start:.0f} s so far", flush=True)
    except Broken as broken:
        print(f"BROKEN: {broken} (everything is in {folder})")
        return 1
    shutil.rmtree(folder)
    print(f"{n_rounds} rounds, each with the bits of an undisturbed run, no part twice and none lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
