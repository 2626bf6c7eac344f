"""Kill runs with two workers while they start, and check that none of their processes survives.

    python -m tests.support.orphans 40         number of moments; a second number is the seed

First an undisturbed run is observed. The events are the start of its first child, of the programs of its workers and of
the workers, and the connection to all workers. Each further run is killed (SIGKILL) some time after one of these
events, before the next one. An environment variable identifies the processes of a run, regardless of their current
parent. The first survivor ends the program with exit code 1.

`tests/run/test_orphans.py` kills one run at each event.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from tests.support.clusters import until
from tests.support.helpers import write_shard
from tests.support.killing import Program

SECONDS = 10.0  # time for every process to exit after the driver's death
_MARK = "MARK_OF_TEST_RUN"


class StartedRun:
    """A run in progress.

    Attributes
    ----------
    process : Popen
    temporary : Path
        Temporary directory that only this run uses.
    """

    def __init__(self, folder: Path, shards: Path) -> None:
        self._mark = uuid.uuid4().hex
        folder.mkdir()
        self._log = folder / "log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        arguments = ["--input", str(shards), "--epochs", "1", "--n-features", "2", "--workers", "2"]
        program = Program(arguments, TMPDIR=self.temporary, **{_MARK: self._mark})
        with open(self._log, "wb") as log:
            self.process = program.start(folder / "out", stdout=log, stderr=log)

    def output(self) -> str:
        """Return the output so far."""
        return self._log.read_text(errors="replace")

    def commands(self) -> dict[int, str]:
        """Return the command line of each process of the run, including the driver, by process id."""
        found = {}
        for folder in Path("/proc").iterdir():
            with suppress(OSError):  # the process has exited, or belongs to another user
                if folder.name.isdecimal() and self._mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def children(self) -> dict[int, str]:
        """Return the command line of each process of the run, except for the driver."""
        return {pid: command for pid, command in self.commands().items() if pid != self.process.pid}

    def n_running(self, words: str) -> int:
        """Return the number of children that have these words in their command lines."""
        return sum(words in command for command in self.children().values())


EVENTS: dict[str, Callable[[StartedRun], object]] = {
    "the first child": lambda run: run.children(),
    "the program of a worker": lambda run: run.n_running("shardpress.cluster.processes"),
    "a worker": lambda run: run.n_running("multiprocessing.spawn"),
    "all workers": lambda run: " INFO cluster: 2 workers: " in run.output(),
}


@contextmanager
def start(folder: Path, shards: Path) -> Iterator[StartedRun]:
    """Start a run. Kill all its processes at the end of the context."""
    run = StartedRun(folder, shards)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        for pid in run.commands():
            with suppress(ProcessLookupError):
                os.kill(pid, 9)


def write_input(folder: Path) -> Path:
    """Write a small shard."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_shard(folder / "a.h5", (rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6))).astype(np.float32))
    return folder


def kill_at(run: StartedRun, event: str, delay: float = 0.0) -> dict[int, str]:
    """Kill a run some seconds after an event. Return the processes that still run `SECONDS` later."""
    until(lambda: run.process.poll() is not None or EVENTS[event](run), event)
    with suppress(subprocess.TimeoutExpired):
        run.process.wait(delay)
    run.process.kill()
    run.process.wait()
    end = time.monotonic() + SECONDS
    while (survivors := run.commands()) and time.monotonic() < end:
        time.sleep(0.05)
    return survivors


def _delays(folder: Path, shards: Path) -> dict[str, float]:
    """Return the seconds between each event of an undisturbed run and the next event."""
    times = []
    with start(folder, shards) as run:
        for event, has_occurred in EVENTS.items():
            until(lambda has_occurred=has_occurred: has_occurred(run), event)
            times.append(time.monotonic())
        run.process.wait()
        times.append(time.monotonic())
    return {event: after - before for event, before, after in zip(EVENTS, times[:-1], times[1:], strict=True)}


def main() -> int:
    """Kill the number of runs on the command line and print the results."""
    n_moments = int(sys.argv[1])
    rng = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    folder = Path(tempfile.mkdtemp(prefix="shardpress-orphans-"))
    shards = write_input(folder / "shards")
    delays = _delays(folder / "undisturbed", shards)
    print("undisturbed:", ", ".join(f"{event} + {seconds:.1f} s" for event, seconds in delays.items()), flush=True)
    n_children = []
    for number in range(n_moments):
        event = list(EVENTS)[number % len(EVENTS)]
        delay = rng.uniform(0, delays[event])
        with start(folder / f"run-{number}", shards) as run:
            until(lambda event=event, run=run: run.process.poll() is not None or EVENTS[event](run), event)
            n_children.append(len(run.children()))
            survivors = kill_at(run, event, delay)
            if survivors:
                print(f"BROKEN: moment {number}, {delay:.2f} s after {event}: {survivors} (log: {folder})")
                return 1
    shutil.rmtree(folder)
    print(f"{n_moments} runs killed, each with {min(n_children)} to {max(n_children)} children: none survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
