"""Kill workers of a run every moment, then its scheduler: typed again, it ends with the same bits all the same.

    python -m tests.support.chaos 5         so many rounds; a second number is the seed

A round starts the program on a scheduler with four workers, kills one of them after the other and starts new ones in
their places, kills the scheduler, starts that anew with four workers, and types the same command again, with more
deaths. The first thing that is not as promised ends it all with exit code 1, and its directory is kept.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.support.clusters import Cluster, until
from tests.support.killing import Broken, Victim, committed
from tests.support.processes import DEADLINE
from tests.support.soak_protocol import records

__all__ = ["Round", "rounds"]

_WORKERS = 4
_PAUSES = (0.5, 2.0)  # seconds between two deaths
_SLOW = ("--preload", "tests.support.slow")
_LOST, _GIVEN_UP = 75, 71  # by which a run may end; the second when one task has met with every death
_MOST = 8  # times that a command is typed


@dataclass(frozen=True)
class Round:
    """What came of one.

    Attributes
    ----------
    n_killed : int
        Workers.
    n_parts : int
        Committed when the scheduler was killed.
    codes : list of int
        Exit codes, the last one 0.
    """

    n_killed: int
    n_parts: int
    codes: list[int]


class _Night:
    """A run on a cluster in which something dies all the time."""

    def __init__(self, victim: Victim, cluster: Cluster, output: Path, rng: random.Random) -> None:
        self._victim, self._cluster, self._output, self._rng = victim, cluster, output, rng
        self.n_killed = self._n_started = self._n_typed = 0

    def start(self) -> subprocess.Popen[bytes]:
        """The program, and four workers for it."""
        while len(self._workers()) < _WORKERS:
            self._start_worker()
        with open(self._cluster.folder / "driver.log", "ab") as said:
            return self._victim.program.start(
                self._output, "--scheduler-file", str(self._cluster.file), stdout=said, stderr=said
            )

    def disturb(self, process: subprocess.Popen[bytes], is_enough: Callable[[], bool]) -> None:
        """Kill one worker after the other as long as it runs, from when it has found some."""
        self._n_typed += 1
        until(
            lambda: process.poll() is not None or self._n_found() == self._n_typed, "the run to find workers", DEADLINE
        )
        while not is_enough():
            try:
                process.wait(self._rng.uniform(*_PAUSES))
                return
            except subprocess.TimeoutExpired:
                self._cluster.kill(self._rng.choice(self._workers()))
                self._start_worker()
                self.n_killed += 1

    def has_killed(self, n: int) -> bool:
        """Whether so many workers have died."""
        return self.n_killed >= n

    def lose_scheduler(self) -> None:
        """A new one, to which no worker has come."""
        for name in self._workers():
            self._cluster.kill(name)
        self._cluster.start_scheduler()

    def _n_found(self) -> int:
        """How many runs have found workers."""
        return len(re.findall(r" INFO cluster: \d+ workers?: ", self._cluster.said("driver")))

    def _workers(self) -> list[str]:
        return [name for name in self._cluster.processes if name != "scheduler"]

    def _start_worker(self) -> None:
        self._cluster.start_worker(f"w{self._n_started}", *_SLOW)
        self._n_started += 1


def _round(victim: Victim, folder: Path, rng: random.Random) -> Round:
    output, codes = folder / "out", list[int]()
    with Cluster(folder / "cluster") as cluster:
        night = _Night(victim, cluster, output, rng)
        process = night.start()
        try:
            n_parts = rng.randint(1, 30)
            night.disturb(process, lambda: len(list(output.glob("parts/*.h5"))) >= n_parts)
            cluster.kill("scheduler")
            codes.append(process.wait(DEADLINE))
            n_parts = sum(key.startswith("part") for key in committed(output))
            night.lose_scheduler()
            while codes[-1] != 0 and len(codes) < _MOST:
                process = night.start()
                n_killed = night.n_killed + rng.randint(1, 4)
                night.disturb(process, partial(night.has_killed, n_killed))
                codes.append(process.wait(DEADLINE))
        finally:
            process.kill()
            process.wait()
    if codes[-1] != 0 or set(codes[:-1]) - {_LOST, _GIVEN_UP}:
        raise Broken(f"exit codes {codes}")
    victim.check(output)
    if twice := [key for key, n in Counter(record["key"] for record in records(output)).items() if n > 1]:
        raise Broken(f"committed twice: {twice}")
    return Round(night.n_killed, n_parts, codes)


def rounds(victim: Victim, n_rounds: int, seed: int) -> Iterator[Round]:
    """As many rounds.

    Raises
    ------
    Broken
        With the directory that shows it.
    """
    for number in range(n_rounds):
        folder = victim.folder / f"round-{number}"
        folder.mkdir()
        try:
            yield _round(victim, folder, random.Random(f"{seed} {number}"))
        except (Broken, subprocess.TimeoutExpired, AssertionError) as broken:
            raise Broken(f"round {number}, seed {seed}: {broken}. Kept: {folder}") from broken
        shutil.rmtree(folder)


def main() -> int:
    """Print what came of as many rounds as the command line asks for."""
    n_rounds, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="shardpress-chaos-"))
    try:
        for number, found in enumerate(rounds(Victim(folder), n_rounds, seed)):
            print(
                f"round {number}: {found.n_killed} workers killed; {found.n_parts} parts committed when the scheduler "
                f"was; exit codes {found.codes}; {time.monotonic() - start:.0f} s so far",
                flush=True,
            )
    except Broken as broken:
        print(f"BROKEN: {broken} (everything is in {folder})")
        return 1
    shutil.rmtree(folder)
    print(f"{n_rounds} rounds, each with the bits of an undisturbed run, no part twice and none lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
