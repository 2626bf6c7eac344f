"""Make system calls on files fail, one after another, in whole runs of the stand-in.

    python -m tests.support.failing_calls           every call of each kind; prints the number of runs
    python -m tests.support.failing_calls 7         every seventh call

`tests.support.faulty` makes methods of `Disk` fail. This module works below that level: a library that is loaded before
libc makes any call on files of a folder fail, from Python or from other libraries. `tests/run/test_system_faults.py`
runs a sample.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.interpreters import REPOSITORY, environment

_SOURCE = Path(__file__).with_suffix(".c")
_TIME_LIMIT = 120.0  # seconds until a run is regarded as stuck
_TRACES = re.compile(r"^Traceback|^Exception ignored|internal error of shardpress|Fatal Python error", re.MULTILINE)
_LAST_LINE = re.compile(r" ERROR (Nothing was started|Stopped after) ?.*$")
ALLOWED = (0, 65, 66, 71, 73, 74, 75, 77)
"""Exit codes of runs whose storage fails. 65: the rows of an input end too early; 66: an input is missing."""


def build(folder: Path) -> Path:
    """Compile the library that makes calls fail."""
    library = folder / "failing_calls.so"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(_SOURCE), "-ldl"], check=True, capture_output=True)
    return library


@dataclass(frozen=True)
class Fault:
    """The system calls that fail in a run.

    Attributes
    ----------
    prefix : str
        Path prefix of the files.
    kinds : str
        Kinds of calls, separated by commas: see ``failing_calls.c``.
    number : int
        Number of the call that fails, counted from 0 over the calls of these kinds, or -1 for none.
    code : int
        Error number, or 0 for a transfer of half the bytes.
    always : bool
        True if all later calls fail as well.
    """

    prefix: str = ""
    kinds: str = ""
    number: int = -1
    code: int = errno.EIO
    always: bool = False

    def variables(self, library: Path) -> dict[str, str]:
        """Return the environment variables of a process in which the calls fail."""
        return {
            "LD_PRELOAD": str(library),
            "FAULT_PREFIX": self.prefix,
            "FAULT_CALLS": self.kinds,
            "FAULT_NUMBER": str(self.number),
            "FAULT_ERRNO": str(self.code),
            "FAULT_ALWAYS": str(int(self.always)),
        }

    def __str__(self) -> str:
        name = errno.errorcode[self.code] if self.code else "half the bytes"
        return f"{self.kinds} {self.number}: {name} {'always' if self.always else 'once'} under {self.prefix}"


@dataclass(frozen=True)
class EndedRun:
    """A run that has ended.

    Attributes
    ----------
    code : int
        Exit code, or a negative number for a signal.
    n_calls : int
        Number of calls of the fault's kinds on the fault's files.
    text : str
        Standard output and standard error of the run.
    """

    code: int
    n_calls: int
    text: str


def problem_of(ended: EndedRun, allowed: Sequence[int] = ALLOWED) -> str:
    """Return a problem if a run ended without a clear message and an expected exit code, or otherwise an empty text."""
    if _TRACES.search(ended.text):
        return f"a traceback: {_summary_of_traceback(ended.text)}"
    if ended.code not in allowed:
        return f"exit code {ended.code}: {ended.text[-2000:]}"
    lines = ended.text.splitlines()
    # An error before the log exists is a single line: invalid settings, or limits under which Python cannot start.
    if ended.code and len(lines) != 1 and not any(_LAST_LINE.search(line) for line in lines):
        return f"exit code {ended.code} without a last line: {ended.text[-2000:]}"
    return ""


def _summary_of_traceback(text: str) -> str:
    """Return the positions in the package and the errors that a traceback names."""
    lines = text.splitlines()
    errors = [line for line in lines if re.match(r"\w+(\.\w+)*(Error|Limit|Failed|Exception)\b", line)]
    places = re.findall(r'File ".*/((?:pipeline|kernels)/.*)", line (\d+), in (\w+)', text)
    return "; ".join([" ".join(place) for place in places[-3:]] + errors[-2:]) or text[-1000:]


# -- runs ------------------------------------------------------------------------------------------------------------


class Runs:
    """Runs of the stand-in, each in a fork of one process that has loaded all modules and the library.

    Parameters
    ----------
    folder : Path
        Folder of the library.
    """

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-W", "error", "-m", "tests.support.failing_calls", "serve"]
        variables = {"LD_PRELOAD": str(build(folder))}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen(command, cwd=REPOSITORY, env=environment(**variables), text=True, **pipes)

    def run(
        self, arguments: list[str], fault: Fault | None = None, limits: Mapping[str, int] | None = None
    ) -> EndedRun:
        """Run the program once.

        Parameters
        ----------
        arguments : list of str
            Command line arguments.
        fault : Fault, optional
        limits : mapping of str to int, optional
            Resource limits of the process, by their names in `resource`, for example ``RLIMIT_NOFILE``.
        """
        request = {
            "arguments": arguments,
            "fault": asdict(fault or Fault()),
            "limits": dict(limits or {}),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return EndedRun(answer["code"], answer["n_calls"], answer["text"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def started_runs(folder: Path) -> Iterator[Runs]:
    """Provide `Runs` in a context."""
    runs = Runs(folder)
    try:
        yield runs
    finally:
        runs.close()


def _serve() -> None:
    """Serve run requests from standard input, one per line. Each run is in a fork, and does not change this process."""
    import pytest

    from shardpress import cli  # noqa: F401  # loaded once for all forks
    from shardpress.hdf5.files import FILES
    from shardpress.run import engine  # noqa: F401
    from tests.support.standin import install

    install(pytest.MonkeyPatch())
    FILES.sleep = lambda seconds: None
    for line in sys.stdin:
        request = json.loads(line)
        reader, writer = os.pipe()
        reading_end, writing_end = os.pipe()  # a pipe, because a file may be limited to a size of 0
        child = os.fork()
        if not child:
            _run(request, writer, writing_end)
        os.close(writer)
        os.close(writing_end)
        text = _output_of(reading_end, child)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with os.fdopen(reader) as pipe:
            n_calls = int(pipe.read() or -1)
        print(json.dumps({"code": code, "n_calls": n_calls, "text": text}), flush=True)


def _run(request: Mapping[str, Any], writer: int, stream: int) -> None:
    """Run the program in this process, which then exits."""
    import resource

    from tests.support.fields import run_with_sizes

    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.close(stream)
    os.close(nothing)
    library = ctypes.CDLL(None)
    fault = Fault(**request["fault"])
    for name, value in request["limits"].items():
        number = getattr(resource, name)
        resource.setrlimit(number, (value, value))
    library.fault_arm(os.fsencode(fault.prefix), fault.kinds.encode(), fault.number, fault.code, int(fault.always))
    code = 99
    try:
        code = run_with_sizes(request["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        n_calls = library.fault_count()
        library.fault_arm(b"", b"", -1, 0, 0)
        with suppress(OSError):
            os.write(writer, str(n_calls).encode())
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _output_of(descriptor: int, child: int) -> str:
    """Return all output of a child and its children. Kill the child if it takes too long."""
    deadline = time.monotonic() + _TIME_LIMIT
    data = b""
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return data.decode(errors="replace") + f"\nstuck for {_TIME_LIMIT:.0f} s"
            piece = pipe.read(2**16)
            if not piece:
                return data.decode(errors="replace")
            data += piece


# -- scenarios -------------------------------------------------------------------------------------------------------


STEPS = ("checkpoint_seconds=0", "--epochs", "1", "--batch-size", "12")
SCENARIOS = ("new", "resumed", "finished", "given model", "threads")


class Scenario:
    """A kind of run in which calls fail, and a check of the output that it leaves.

    Parameters
    ----------
    runs : Runs
    folder : Path
    kind : str
        ``new``: an empty output directory. ``resumed``: scan, checkpoint and some parts of an interrupted run.
        ``finished``: results of a finished run. ``given model``: ``--model`` of another run. ``threads``: three
        threads.

    Attributes
    ----------
    shards, output : str
        Input and output of each run.
    """

    def __init__(self, runs: Runs, folder: Path, kind: str) -> None:
        from tests.support.standin import Workspace, features_of

        folder.mkdir()
        self._runs = runs
        self.kind = kind
        self._folder = folder
        self._workspace = Workspace(folder, 20, 0, 15, 9)
        self.shards = str(self._workspace.shards)
        self._path = folder / "out"
        self.output = str(self._path)
        self._flags: list[str] = list(STEPS)
        if kind == "given model":
            self._expect_success(self._runs.run(self._workspace.arguments(folder / "model", *STEPS)))
            self._flags = ["--model", str(folder / "model")]
        if kind == "threads":
            self._flags += ["--threads", "3"]
        self._before: Path | None = None
        self._expect_success(self.run())
        self.expected = features_of(self._path)
        if kind in ("resumed", "finished"):
            self._before = folder / "before"
            if kind == "resumed":
                self._interrupt()
            self._path.rename(self._before)
        self.reset()

    def _interrupt(self) -> None:
        """Create the output of a run that failed when it renamed its third and last part."""
        shutil.rmtree(self._path)
        n_renames = self.run(Fault(self.output, "rename")).n_calls
        shutil.rmtree(self._path)
        ended = self.run(Fault(self.output, "rename", n_renames - 4, errno.ENOSPC, always=True))
        assert ended.code == 74, ended
        assert len(committed_parts(self._path)) == 2

    @staticmethod
    def _expect_success(ended: EndedRun) -> None:
        assert ended.code == 0, ended.text

    def reset(self) -> None:
        """Reset the output directory to its state before a run."""
        shutil.rmtree(self._path, ignore_errors=True)
        if self._before is not None:
            shutil.copytree(self._before, self._path, symlinks=True)

    def run(self, fault: Fault | None = None, **limits: int) -> EndedRun:
        """Run the program once."""
        return self._runs.run(self._workspace.arguments(self._path, *self._flags), fault, limits)

    def run_and_rerun(self, fault: Fault | None = None, **limits: int) -> tuple[int, str]:
        """Run with a fault and then without it. Return the first exit code, and a description of any problem."""
        from tests.support.soak_protocol import invalid_entries, leftovers
        from tests.support.standin import features_of

        self.reset()
        before = committed_parts(self._path)
        ended = self.run(fault, **limits)
        wrong = problem_of(ended)
        if not wrong and (broken := invalid_entries(self._path)):
            wrong = f"not as recorded: {broken}"
        after = committed_parts(self._path)
        if not wrong and ended.code and before.keys() - after.keys():
            lost = sorted(before.keys() - after.keys())
            wrong = f"lost: {lost}: {ended.text[-2000:]}"
        again = self.run()
        if not wrong and again.code:
            wrong = f"rerun: exit code {again.code}: {again.text[-2000:]}"
        if not wrong and features_of(self._path) != self.expected:
            wrong = "rerun: different features"
        if not wrong and (unreferenced := leftovers(self._path)):
            wrong = f"rerun: unreferenced files: {unreferenced}"
        if not wrong and (lost := after.items() - committed_parts(self._path).items()):
            wrong = f"rerun: parts were recomputed: {sorted(lost)}"
        return ended.code, wrong


def committed_parts(output: Path) -> dict[str, str]:
    """Return the file of each part that the journal or the index names."""
    from tests.support.soak_protocol import committed

    return {key: file for key, file in committed(output).items() if key.startswith("part")}


# Kinds of calls on the output or the input, error numbers, and whether the call fails once or permanently.
_EVERY_WRITE = ("write", "fsync", "close", "rename", "reserve", "unlink", "open", "mkdir")
_EVERY_READ = ("read", "open", "stat", "list")
SWEEPS: list[tuple[str, str, int, bool]] = [
    *(("output", kind, errno.EIO, always) for kind in _EVERY_WRITE for always in (False, True)),
    *(("output", kind, errno.EIO, always) for kind in ("read", "stat", "list") for always in (False, True)),
    *(("output", kind, errno.ENOSPC, True) for kind in ("write", "fsync", "reserve", "open", "rename")),
    ("output", ",".join(_EVERY_WRITE), errno.EROFS, True),
    ("output", ",".join({*_EVERY_WRITE, *_EVERY_READ}), errno.EIO, True),
    ("output", "write", 0, True),
    ("output", "read", 0, True),
    *(("shards", kind, errno.EIO, always) for kind in _EVERY_READ for always in (False, True)),
    *(("shards", kind, errno.ESTALE, False) for kind in _EVERY_READ),
    ("shards", "read", 0, True),
]


def sweep(
    scenario: Scenario, where: str, kinds: str, code: int, always: bool, every: int = 1
) -> tuple[Counter[int], list[str]]:
    """Make one call after another fail. Return the number of runs by exit code, and all problems."""
    folder = scenario.output if where == "output" else scenario.shards
    scenario.reset()
    n_calls = scenario.run(Fault(folder, kinds)).n_calls
    codes = Counter[int]()
    wrong = []
    for number in range(0, n_calls, every):
        fault = Fault(folder, kinds, number, code, always)
        exit_code, words = scenario.run_and_rerun(fault)
        codes[exit_code] += 1
        if words:
            wrong.append(f"{scenario.kind}: {fault}: {words}")
    return codes, wrong


def main() -> int:
    """Print the results of each sweep."""
    if sys.argv[1:] == ["serve"]:
        _serve()
        return 0
    every = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    start = time.monotonic()
    n_cases = 0
    n_wrong = 0
    with tempfile.TemporaryDirectory(prefix="shardpress-calls-") as name, started_runs(Path(name)) as runs:
        for kind in SCENARIOS:
            scenario = Scenario(runs, Path(name) / kind, kind)
            for where, kinds, code, always in SWEEPS:
                codes, wrong = sweep(scenario, where, kinds, code, always, every)
                n_cases += codes.total()
                n_wrong += len(wrong)
                label = f"{kind}: {where}: {Fault('', kinds, every, code, always)}"
                print(f"{label.removesuffix(' under ')}: {dict(codes)}", flush=True)
                for words in wrong:
                    print(f"  WRONG {words}", flush=True)
    print(f"{n_cases} runs in {time.monotonic() - start:.0f} s, {n_wrong} of them with problems")
    return int(n_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
