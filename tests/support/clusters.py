"""Start a Dask scheduler and workers as separate processes, as a user or a batch system would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.support.interpreters import REPOSITORY, environment

_HERE = "127.0.0.1"
_DASK = (sys.executable, "-m", "dask")
_SECONDS = 240.0  # time limit for one operation on an idle machine


def until(condition: Callable[[], object], description: str, seconds: float = _SECONDS) -> None:
    """Wait until a condition holds. If it does not, raise an error that contains the description."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {description}"
        time.sleep(0.02)


class Cluster:
    """A running cluster as a context. Its processes write their output to files in the folder.

    `processes` are its processes by name, one of which is ``scheduler``. `file` is the value of ``--scheduler``.
    `variables` are those of `tests.support.interpreters.environment`.
    """

    def __init__(self, folder: Path, **variables: str | Path | None) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.file = folder / "scheduler.json"
        self._variables = variables
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self.start_scheduler()
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(list(self.processes)):  # kill the scheduler last, because it would log lost workers
            self.kill(name)

    def start_scheduler(self) -> None:
        """Start a scheduler without workers. It replaces an existing scheduler."""
        if "scheduler" in self.processes:
            self.kill("scheduler")
        self.file.unlink(missing_ok=True)
        where = ("--host", _HERE, "--port", "0", "--scheduler-file", str(self.file))
        command = [*_DASK, "scheduler", *where, "--no-dashboard", "--no-show"]
        # A run refuses a scheduler that imports from a directory of another user.
        self._run("scheduler", command, DASK_TEMPORARY_DIRECTORY=str(self.folder))
        until(lambda: self.file.exists() and self.file.stat().st_size, f"the scheduler: {self.output('scheduler')}")

    def start_worker(self, name: str, *flags: str, directory: Path | None = None, **variables: str) -> None:
        """Start a worker with one thread. It has no nanny, unless a flag requests one, and exits with its scheduler."""
        where = ("--scheduler-file", str(self.file), "--host", _HERE, "--no-dashboard", "--death-timeout", "120")
        nanny = () if "--nanny" in flags else ("--no-nanny",)
        scratch = ("--local-directory", str(self.folder))
        flags = (*where, *nanny, *scratch, "--nthreads", "1", "--name", name, *flags)
        self._run(name, [*_DASK, "worker", *flags], directory, **variables)

    def wait_for(self, *names: str) -> None:
        """Wait until the scheduler knows these workers."""
        for name in names:
            until(lambda name=name: "Registered to:" in self.output(name), f"worker {name}")

    def kill(self, name: str, by: int = signal.SIGKILL) -> None:
        """Send a signal to a process. If the signal kills it, wait for its end."""
        process = self.processes[name]
        with suppress(ProcessLookupError):
            os.kill(process.pid, by)
        if by == signal.SIGKILL:
            process.wait(_SECONDS)
            del self.processes[name]

    def output(self, name: str) -> str:
        """Return the output of a process so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _run(self, name: str, command: Sequence[str], directory: Path | None = None, **variables: str) -> None:
        env = environment(**{**self._variables, **variables})
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=directory or REPOSITORY, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
