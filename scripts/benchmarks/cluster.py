"""What `scaling` measures with: a scheduler and workers of Dask, and tasks that are empty or report their times.

The scheduler and the workers are processes as a user starts them, but listen on the loopback interface alone. Workers
import the tasks from this module.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import psutil

from pipeline.encoding import encode
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.parts import PartFacts
from pipeline.output.records import Entry
from scripts.benchmarks.common import ROOT

# A second port serves HTTP, with or without a dashboard, and listens on every interface by default.
_LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--no-dashboard")
_SECONDS = 60.0  # limit for the start and the end of a process
_clock = threading.local()


@dataclass(frozen=True)
class ByHand:
    """A running cluster; `file` is that of `dask scheduler --scheduler-file`."""

    file: Path
    scheduler: psutil.Process
    workers: list[psutil.Process]

    @property
    def scheduler_seconds(self) -> float:
        """Processor seconds of the scheduler so far."""
        return processor_seconds(self.scheduler)


@contextmanager
def by_hand(folder: Path, n_workers: int, n_threads: int = 1, **variables: str) -> Iterator[ByHand]:
    """Start `dask scheduler` and some `dask worker`, with more variables for the workers, and end them all."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    with ExitStack() as stack:
        common = ("--scheduler-file", str(file))
        scheduler = stack.enter_context(_started(folder / "scheduler.log", "scheduler", "--port", "0", *common))
        _wait_for(file)
        options = [*common, "--nthreads", str(n_threads), "--no-nanny", "--death-timeout", str(_SECONDS)]
        # A run refuses workers in directories of other users.
        options += ["--memory-limit", "0", "--local-directory", str(folder)]
        workers = []
        for i in range(n_workers):
            worker = _started(folder / f"worker-{i}.log", "worker", *options, **variables)
            workers.append(stack.enter_context(worker))
        yield ByHand(file, scheduler, workers)


def processor_seconds(process: psutil.Process) -> float:
    """Return the processor seconds of a process, in its own code and in the kernel."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def _started(log_file: Path, *command_line: str, **variables: str) -> Iterator[psutil.Process]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-m", "dask", *command_line, *_LOOPBACK]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
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


# -- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """An encoded part, the seconds of its task, and those that ``read``, ``compute`` and ``write`` took of them."""

    facts: PartFacts
    seconds: float
    spent: dict[str, float]

    @property
    def n_rows(self) -> int:
        return self.facts.n_rows


def empty(task: EncodeTask) -> PartFacts:
    """Do nothing, with an argument and a result of the size of an encoding task's."""
    source = task.part.source
    key = task.part.key
    entry = Entry(f"parts/{key}-{source.start:032x}.h5", 4 * len(source), "0" * 64)
    where = (source.shard.path, source.shard.dataset, source.start, source.stop)
    return PartFacts(entry, len(source), 0, 0, task.part.number, *where)


def timed_part(task: EncodeTask) -> Timed:
    """Encode a part as a run does, with clocks for reading, computing and writing."""
    _install()
    _clock.spent = Counter()
    start = time.perf_counter()
    facts = encode_part(task)
    return Timed(facts, time.perf_counter() - start, dict(_clock.spent))


def _install() -> None:
    """Add clocks to the functions that an encoding task calls, once for each process."""
    if hasattr(encode.read, "__wrapped__"):
        return
    for name, kind in (("read", "read"), ("read_riders", "read"), ("write_result", "write")):
        setattr(encode, name, _clocked(kind, getattr(encode, name)))
    worker_of = encode.worker_of

    def clocked_worker(settings: Any) -> Any:
        worker = worker_of(settings)
        if not hasattr(worker.encode, "__wrapped__"):
            worker.encode = _clocked("compute", worker.encode)
        return worker

    encode.worker_of = clocked_worker


def _clocked(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def clocked(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            _clock.spent[kind] += time.perf_counter() - start

    return clocked
