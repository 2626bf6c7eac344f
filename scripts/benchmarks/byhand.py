"""A scheduler and workers as somebody types them into terminals: processes of their own, on the loopback alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
# A second port serves HTTP, with a dashboard or without, and listens on every interface unless it is told where.
_QUIETLY = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--no-dashboard")
_SECONDS = 60.0  # that a process may take to come and to go


@dataclass(frozen=True)
class ByHand:
    """A cluster under way.

    Attributes
    ----------
    file : Path
        What `dask scheduler --scheduler-file` has written.
    scheduler : Process
    workers : list of Process
    """

    file: Path
    scheduler: psutil.Process
    workers: list[psutil.Process]

    @property
    def scheduler_seconds(self) -> float:
        """Of the processor, that the scheduler has used."""
        return processor_seconds(self.scheduler)


@contextmanager
def by_hand(folder: Path, n_workers: int, n_threads: int = 1, **variables: str) -> Iterator[ByHand]:
    """`dask scheduler`, and `dask worker` so many times; all of it is gone when the context ends.

    Parameters
    ----------
    variables : str
        More of the workers' environment.
    """
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    with ExitStack() as stack:
        at = ("--scheduler-file", str(file))
        scheduler = stack.enter_context(_started(folder / "scheduler.log", "scheduler", "--port", "0", *at))
        _wait_for(file)
        how = ("--nthreads", str(n_threads), "--no-nanny", "--death-timeout", str(_SECONDS), "--memory-limit", "0")
        scratch = ("--local-directory", str(folder))  # a run refuses workers in directories of other users
        workers = [
            stack.enter_context(_started(folder / f"worker-{i}.log", "worker", *at, *how, *scratch, **variables))
            for i in range(n_workers)
        ]
        yield ByHand(file, scheduler, workers)


def processor_seconds(process: psutil.Process) -> float:
    """That it has used, in its own code and in the kernel's."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _started(said: Path, *command: str, **variables: str) -> Iterator[psutil.Process]:
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    with said.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *command, *_QUIETLY], stdout=log, stderr=log, env=environment, cwd=ROOT
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(file: Path) -> None:
    until = time.monotonic() + _SECONDS
    while not (file.exists() and file.stat().st_size):
        if time.monotonic() > until:
            raise TimeoutError(f"{file} is not there after {_SECONDS:.0f} s: see the log beside it")
        time.sleep(0.05)
