"""Run the program in real processes, send it a signal, rerun the command, and compare all results bit for bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress.base.formats import digest
from shardpress.result.finished import INDEX, USE, Result
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, environment
from tests.support.protocol import committed, invalid_entries, leftovers
from tests.support.standin import bits_of

# Log line at which each phase begins, in a first run and in one that resumes.
PHASES = {
    "start": r"^$",  # this phase begins without a log line
    "scan": r" INFO device: ",
    "training": r" INFO training: \d+ rows",
    "encoding": r" INFO training: ((\d+)/\2 rows|reusing the result of an earlier run)",
    "finishing": r" INFO encoding: (\d+)/\1 rows",
    "end": r"^(Done|Already complete): ",
}
# The preset has no validation rows, so that the errors of principal components are not a warning.
_SETTINGS = (
    *("--preset", "reference", "--n-features", "32", "--batch-size", "512", "--epochs", "2"),
    *("--memory-budget", "16MiB", "--threads", "2"),
)
# ``scripts/extract.py`` with a checkpoint after each step, several windows of rows per epoch, and small parts.
_WITH_CHECKPOINTS = """
import sys
sys.path.insert(0, "scripts")
import extract
from shardpress.run import budget, training_stage
training_stage._CHECKPOINT_SECONDS = 0.0
budget.SHUFFLE_WINDOW = 2**21
budget._PART_BYTES = 2**17
budget._SAMPLE_BYTES = 2**20
extract.leave(extract.main())
"""
_COMPLAINTS = re.compile(r" (WARNING|ERROR|CRITICAL) |^Traceback|^Exception ignored")
# Theano's message if a process was killed during compilation. Theano then continues at once.
_HARMLESS = re.compile(r"Overriding existing lock by dead process")
_SECONDS = 300.0  # time limit; afterwards a run is regarded as stuck
_SECONDS_TO_EXIT = 10.0  # for every process of a run after the end of the driver
_MARK = "MARK_OF_TEST_RUN"


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended."""

    code: int  # exit code, negative for a signal
    lines: list[str]  # of standard output and standard error
    phase_starts: dict[str, float]  # in seconds from the start of the run

    def has_line(self, pattern: str) -> bool:
        """Return whether a line matches a pattern."""
        return any(re.search(pattern, line) for line in self.lines)


class Program:
    """A program with its arguments, run in separate processes.

    `program` is its path, or ``-c`` and its text. `variables` are those of `tests.support.interpreters.environment`.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        program: Sequence[str] = ("scripts/extract.py",),
        **variables: str | Path | None,
    ) -> None:
        self.command = [sys.executable, "-W", "error", *program, *arguments]
        self.environment = environment(**variables)

    def start(self, output: Path, *flags: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process with all its output in one pipe. `options` are passed to ``Popen``."""
        usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [*self.command, "--output", str(output), *flags]
        return subprocess.Popen(command, cwd=REPOSITORY, **{**usual, "env": self.environment, **options})

    def run(
        self, output: Path, *flags: str, at: str | None = None, delay: float = 0, by: int = signal.SIGKILL
    ) -> EndedRun:
        """Run to the end, or send a signal. Raise `AssertionError` if the run is stuck, or leaves a running process.

        The signal `by` is sent `delay` seconds after the start of the phase `at`, or after a log line of that pattern.
        """
        start = time.monotonic()
        mark = uuid.uuid4().hex
        lines = []
        phase_starts = {"start": 0.0}
        process = self.start(output, *flags, env={**self.environment, _MARK: mark})
        watchdog = threading.Timer(_SECONDS, _kill_processes, (mark,))
        watchdog.start()
        assert process.stdout is not None
        with process.stdout:
            if at == "start":
                time.sleep(delay)
                process.send_signal(by)
                at = None
            # The pipe ends when the last process that can write to it has exited, so all children have exited as well.
            for raw in process.stdout:
                line = raw.decode(errors="replace").rstrip("\n")
                lines.append(line)
                phase = next((name for name, pattern in PHASES.items() if re.search(pattern, line)), None)
                if phase is not None:
                    phase_starts.setdefault(phase, time.monotonic() - start)
                if at is not None and re.search(PHASES.get(at, at), line):
                    time.sleep(delay)
                    process.send_signal(by)
                    at = None
        code = process.wait(_SECONDS)
        watchdog.cancel()
        seconds = time.monotonic() - start
        assert seconds <= _SECONDS, f"is stuck, or has left a running process, after {_SECONDS:.0f} s: {lines[-3:]}"
        _must_exit(mark)
        return EndedRun(code, lines, phase_starts)


def processes_of(mark: str) -> dict[int, str]:
    """Return the command line of each process with a mark in its environment, whatever its current parent."""
    found = {}
    for folder in Path("/proc").iterdir():
        with suppress(OSError):  # the process has exited, or belongs to another user
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def _kill_processes(mark: str) -> None:
    for pid in processes_of(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _must_exit(mark: str) -> None:
    """Check that the processes of a run exit soon after their driver."""
    end = time.monotonic() + _SECONDS_TO_EXIT
    while (survivors := processes_of(mark)) and time.monotonic() < end:
        time.sleep(0.05)
    _kill_processes(mark)
    assert not survivors, f"processes outlive their driver: {survivors}"


# -- runs to kill -----------------------------------------------------------------------------------------------------


class Victim:
    """A data set with the results of an undisturbed run, and runs to kill.

    `program` takes a checkpoint after each step, unlike `usual_program`. `undisturbed` is the output of the undisturbed
    run, and `features` their digest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.undisturbed = folder / "undisturbed"
        _write_shards(folder / "shards")
        arguments = ["--input", str(folder / "shards"), *_SETTINGS]
        # Without smaller windows, the training needs more memory.
        self.usual_program = Program([*arguments, "--memory-budget", "64MiB"])
        self.program = Program(arguments, ("-c", _WITH_CHECKPOINTS))
        self._must_end(self.program.run(folder / "first"), folder / "first")  # this run may have to compile
        ended = self.program.run(self.undisturbed)
        self._must_end(ended, self.undisturbed)
        self.features = features_of(self.undisturbed)
        self.n_rows = Result.open(self.undisturbed).n_rows
        assert features_of(folder / "first") == self.features, "two undisturbed runs differ"
        self.seconds = {phase: stop - start for (phase, start), (_, stop) in pairwise(ended.phase_starts.items())}

    def resume(self, output: Path, *flags: str) -> EndedRun:
        """Run the same command, with the same additional flags, again to its end, and check its results."""
        before = committed(output)
        ended = self.program.run(output, *flags)
        self._must_end(ended, output)
        self.check(output)
        _must_use(before, ended, output)
        return ended

    def check(self, output: Path) -> None:
        """Check that a finished output has the bits of the undisturbed output, and no other files."""
        damaged = invalid_entries(output)
        assert damaged == [], f"damaged results: {damaged}"
        unreferenced = leftovers(output)
        assert unreferenced == [], f"unreferenced files: {unreferenced}"
        assert features_of(output) == self.features, "the features differ from the features of an undisturbed run"

    def _must_end(self, ended: EndedRun, output: Path) -> None:
        assert ended.code == 0, f"exit code {ended.code} in {output}: {ended.lines[-3:]}"
        complaints = [line for line in ended.lines if _COMPLAINTS.search(line) and not _HARMLESS.search(line)]
        assert complaints == [], f"warnings or errors: {complaints[:5]}"


def _write_shards(folder: Path) -> None:
    """Write many small shards with labels, for runs with many parts. Some are compressed, and one needs the child."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(5, 64))
    for i in range(40):
        rows = rng.normal(size=(int(rng.integers(320, 520)), 5)) @ directions
        options = {"chunks": (64, 64), "compression": "gzip"} if i % 3 == 0 else {}
        shard_extras = {"y": np.arange(len(rows)) % 7, **({"nothing": h5py.Empty("f4")} if i == 7 else {})}
        write_shard(folder / f"{i:02d}.h5", rows, extras=shard_extras, **options)


def features_of(output: Path) -> str:
    """Return a digest of all values of a finished run, except for the use of the rows: it differs for a given model."""
    with h5py.File(output / INDEX) as file:
        names = [name for name, item in sorted(file.items()) if isinstance(item, h5py.Dataset) and name != USE]
    return digest([bits_of(output, names)])


def _must_use(before: Mapping[str, str], ended: EndedRun, output: Path) -> None:
    """Check that finished results were not computed again."""
    if ended.has_line("^Already complete"):
        return
    parts = {part.file for part in Result.open(output).parts}
    recomputed = [file for key, file in before.items() if key.startswith("part") and file not in parts]
    assert recomputed == [], f"parts recomputed: {recomputed}"
    last = max((int(key.split("-")[1]) for key in before if key.startswith("checkpoint")), default=0)
    expected = {
        "scan": "scan: reusing the result of an earlier run",
        "model": "training: reusing the result of an earlier run",
    }
    words = [expected[key] for key in before if key in expected]
    if last and "model" not in before:
        words.append(f"training: resuming after step {last} ")
    missing = [sentence for sentence in words if not ended.has_line(re.escape(sentence))]
    assert missing == [], f"missing log lines: {missing}"
