"""Real processes: told to stop, left alone by whoever read their log, started twice, in a hostile environment.

Test names begin with the row of the project's list of faults that they hold.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import termios
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.support.faulty import forked, small_disk
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY
from tests.support.killing import Ended, Program, Victim, committed, features_of

DEADLINE = 240.0  # for what takes seconds on a machine that is not busy


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A data set large enough to be met at work."""
    return Victim(tmp_path_factory.mktemp("victim"))


@dataclass(frozen=True)
class Small:
    """A data set that is soon done with, and what an undisturbed run makes of it."""

    folder: Path
    features: str

    def program(self, **variables: str | Path | None) -> Program:
        return Program(["--input", str(self.folder / "shards"), "--epochs", "1", "--n-features", "4"], **variables)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    (folder / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
    for i in range(2):
        beside = {"nothing": h5py.Empty("f4")} if i else None  # by which this one needs the child
        write_shard(folder / "shards" / f"{i}.h5", rows[150 * i : 150 * (i + 1)], riders=beside)
    untouched = Small(folder, "")
    assert untouched.program().run(folder / "out").code == 0
    return Small(folder, features_of(folder / "out"))


def ends_well(process: subprocess.Popen[bytes]) -> str:
    """What a process said that ended with 0."""
    said, _ = process.communicate(timeout=DEADLINE)
    text = (said or b"").decode()
    assert process.returncode == 0, text[-2000:]
    return text


# -- told to stop ------------------------------------------------------------------------------------------------

LAST_LINE = re.compile(
    r" ERROR (Nothing was started|Not finished after [\d.]+ s in .*: stages done: .*; (\d+) of \d+ rows have committed "
    r"features)\. (Type|Mend what the line above says, then type) the same command again"
)


def told_while_encoding(victim: Victim, folder: Path, *numbers: int) -> tuple[Ended, Path]:
    """A run to which signals were sent when some, and not yet all, of its parts were committed."""
    for attempt in range(20):
        output = folder / str(attempt)
        process = victim.program.start(output)
        deadline = time.monotonic() + DEADLINE
        while not list(output.glob("commits/part-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.002)
        said, _ = process.communicate(timeout=DEADLINE)
        if process.returncode != 0:  # else it was already over
            return Ended(process.returncode, said.decode().splitlines(), {}, 0.0), output
    raise AssertionError("no run could be met while it was encoding")


def stopped_well(victim: Victim, folder: Path, number: signal.Signals) -> None:
    """It says how far it came, ends by the signal, and goes on from there."""
    ended, output = told_while_encoding(victim, folder, number)
    assert ended.code == -number, ended.lines
    assert ended.says(f" ERROR stopped by {number.name}: no half-written file is left behind")
    last = LAST_LINE.search(ended.lines[-1])
    assert last is not None, ended.lines
    assert 0 < int(last[2]) < victim.n_rows
    assert not ended.says("Traceback")
    assert list(output.rglob("*.writing")) == []
    victim.go_on(output)


def test_p3_sigterm_while_encoding(victim: Victim, tmp_path: Path) -> None:
    stopped_well(victim, tmp_path, signal.SIGTERM)


def test_p4_sigint_once(victim: Victim, tmp_path: Path) -> None:
    stopped_well(victim, tmp_path, signal.SIGINT)


def test_p4_sigint_twice_ends_at_once_and_can_go_on(victim: Victim, tmp_path: Path) -> None:
    ended, output = told_while_encoding(victim, tmp_path, signal.SIGINT, signal.SIGINT)
    assert ended.code == -signal.SIGINT
    assert not ended.says("Traceback")
    victim.go_on(output)


def test_p5_sigterm_in_training_saves_the_step_and_the_rest_is_the_same(victim: Victim, tmp_path: Path) -> None:
    # No other checkpoint than the signal's, in the middle of one of many epochs.
    flags = ("--epochs", "60", "--patience", "0", "--checkpoint-minutes", "60", "--verbose")
    reference, output = tmp_path / "reference", tmp_path / "out"
    assert victim.program.run(reference, *flags).code == 0
    ended = victim.program.run(output, *flags, at=" DEBUG epoch 7: ", by=signal.SIGTERM)
    assert ended.code == -signal.SIGTERM, ended.lines[-3:]
    assert ended.seconds - ended.sent < 20
    last = LAST_LINE.search(ended.lines[-1])
    assert last is not None, ended.lines
    assert last[2] == "0"
    steps = [int(key.split("-")[1]) for key in committed(output) if key.startswith("checkpoint")]
    assert steps[-1] > 7 * 31, "about 31 steps an epoch"
    again = victim.program.run(output, *flags)
    assert again.code == 0
    assert again.says(f"training: going on behind step {steps[-1]} of an earlier run")
    assert features_of(output) == features_of(reference)
    assert costs(output) == costs(reference)


def costs(output: Path) -> list[tuple[float, float]]:
    """The whole history of a training, but for the time it took."""
    history = json.loads((output / "report.json").read_text())["training"]["history"]
    return [(epoch["cost"], epoch["validation_cost"]) for epoch in history]


def on_terminal(victim: Victim, output: Path, *, ignoring_hangup: bool) -> tuple[subprocess.Popen[bytes], int]:
    """A run whose controlling terminal is ours to close."""
    ours, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        if ignoring_hangup:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
    process = victim.program.start(output, **streams, start_new_session=True, preexec_fn=take_terminal)
    os.close(terminal)
    shown = b""
    while b"training: " not in shown:
        assert select.select([ours], [], [], DEADLINE)[0], shown
        shown += os.read(ours, 2**12)
    return process, ours


def test_p6_when_its_terminal_is_closed_a_run_stops_and_can_go_on(victim: Victim, tmp_path: Path) -> None:
    process, ours = on_terminal(victim, tmp_path / "out", ignoring_hangup=False)
    os.close(ours)
    assert process.wait(DEADLINE) == -signal.SIGHUP
    log = (tmp_path / "out" / "run.log").read_text().splitlines()
    assert any("stopped by SIGHUP" in line for line in log)
    assert LAST_LINE.search(log[-1]), log
    victim.go_on(tmp_path / "out")


def test_p6_started_with_nohup_a_run_outlives_its_terminal(victim: Victim, tmp_path: Path) -> None:
    process, ours = on_terminal(victim, tmp_path / "out", ignoring_hangup=True)
    os.close(ours)
    assert process.wait(DEADLINE) == 0
    victim.check(tmp_path / "out")


# -- nobody reads the log ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["--quiet", "--no-quiet", "--verbose"])
def test_p7_whoever_read_the_log_has_gone(small: Small, tmp_path: Path, mode: str) -> None:
    process = small.program().start(tmp_path / "out", mode)
    assert process.stdout is not None
    if mode != "--quiet":
        assert b"input: 2 shards" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(DEADLINE) == 0
    assert features_of(tmp_path / "out") == small.features
    log = (tmp_path / "out" / "run.log").read_text()
    assert "Done: 300 rows" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("streams", [">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"])
def test_p7_streams_that_were_never_open_or_take_nothing(small: Small, tmp_path: Path, streams: str) -> None:
    program, output = small.program(), tmp_path / "out"
    shell = ["/bin/sh", "-c", f'exec "$@" {streams}', "sh", *program.command, "--output", str(output)]
    done = subprocess.run(shell, cwd=REPOSITORY, env=program.environment, check=False, timeout=DEADLINE)
    assert done.returncode == 0, (output / "run.log").read_text()
    assert features_of(output) == small.features


# -- the clock ---------------------------------------------------------------------------------------------------

BACKWARDS = """
import time
now, n = time.time, 0
def backwards():
    global n
    n += 1
    return now() - 100 * n
time.time = backwards
from scripts.extract import main
from pipeline.signals import leave
leave(main())
"""


def test_p12_a_clock_that_runs_backwards_changes_nothing(small: Small, tmp_path: Path) -> None:
    assert patched(small, BACKWARDS).run(tmp_path / "out").code == 0
    assert features_of(tmp_path / "out") == small.features
    assert patched(small, BACKWARDS).run(tmp_path / "out").says("^Already complete")


def patched(small: Small, program: str) -> Program:
    """The program, started by another one that comes between."""
    found = small.program()
    found.command[found.command.index("scripts/extract.py")] = "-c"
    found.command.insert(found.command.index("-c") + 1, program)
    return found


# -- two at once -------------------------------------------------------------------------------------------------


def test_c1_of_two_runs_with_one_output_the_second_is_told_who_is_at_work(victim: Victim, tmp_path: Path) -> None:
    processes = [victim.program.start(tmp_path / "out") for _ in range(2)]
    said = {process.pid: process.communicate(timeout=DEADLINE)[0].decode() for process in processes}
    codes = {process.returncode: process.pid for process in processes}
    assert sorted(codes) == [0, 75], said
    refusal = said[codes[75]].splitlines()
    assert f"another run is at work there (pid {codes[0]} on " in refusal[-2]
    assert refusal[-1].endswith(" ERROR Nothing was started. The line above says what there is to wait for.")
    victim.check(tmp_path / "out")


def test_c2_a_killed_run_locks_nobody_out(victim: Victim, tmp_path: Path) -> None:
    ended = victim.program.run(tmp_path / "out", at="scan")
    assert ended.code == -signal.SIGKILL
    assert (tmp_path / "out" / ".lock").read_text().startswith("pid "), "what the dead one left there decides nothing"
    victim.go_on(tmp_path / "out")


def test_c5_two_runs_fill_one_cold_compile_cache(small: Small, tmp_path: Path) -> None:
    program = small.program(XDG_CACHE_HOME=tmp_path / "cache")
    processes = [program.start(tmp_path / name) for name in ("a", "b")]
    for process in processes:
        ends_well(process)
    assert features_of(tmp_path / "a") == features_of(tmp_path / "b") == small.features


# -- children and sockets ----------------------------------------------------------------------------------------


@dataclass
class Watch:
    """What a run and its descendants were seen with, from beginning to end.

    Attributes
    ----------
    pid : int
        The run's.
    times : list of float
        When somebody looked, in seconds from the start.
    parents : dict of int to int
        Of every descendant.
    commands : dict of int to list of str
        What every descendant was last seen as.
    copies : Counter
        How often a child was seen as a mere copy of the run.
    sockets : set of str
        Lines of the kernel's tables, or inodes that stand in none.
    """

    pid: int = 0
    times: list[float] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    commands: dict[int, list[str]] = field(default_factory=dict)
    copies: Counter[int] = field(default_factory=Counter)
    sockets: set[str] = field(default_factory=set)


class Watched(Program):
    """Looks at every process that it starts until that has ended."""

    def start(self, output: Path, *flags: str, **how: object) -> subprocess.Popen[bytes]:
        process = super().start(output, *flags, **how)
        self.watch = Watch()
        self.watcher = threading.Thread(target=look, args=(process.pid, self.watch))
        self.watcher.start()
        return process


def look(pid: int, watch: Watch) -> None:
    """Until the process has gone."""
    watch.pid = pid
    start = time.monotonic()
    while own := arguments_of(pid):
        now = time.monotonic() - start
        watch.times.append(now)
        watch.sockets |= sockets_of(pid)
        for child, parent in descendants(pid):
            watch.parents[child] = parent
            watch.sockets |= sockets_of(child)
            arguments = arguments_of(child)
            if arguments:
                watch.commands[child] = arguments
            if arguments == own:  # between a fork and an exec everybody looks like that
                watch.copies[child] += 1
        time.sleep(0.005)


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(pid: int) -> Iterator[tuple[int, int]]:
    """Every process below one, each with its parent."""
    children: list[int] = []
    with suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # this thread has
                children += map(int, (path / "children").read_text().split())
    for child in children:
        yield child, pid
        yield from descendants(child)


def sockets_of(pid: int) -> set[str]:
    """The sockets that a process has open, as the kernel's tables tell of them."""
    inodes = set()
    with suppress(OSError):  # it has ended
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # this one was closed meanwhile
                inodes |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(path)))
    return {next((line for line in kernel_table() if inode in line.split()), inode) for inode in inodes}


def kernel_table() -> Iterator[str]:
    for name in ("tcp", "tcp6", "udp", "udp6", "unix"):
        path = Path(f"/proc/net/{name}")
        if path.exists():  # where there is no IPv6, there is no table of it
            yield from (f"{name}: {line}" for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def watch(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """A run that was looked at in each of its phases: one of a few, where the machine is busy."""
    program = Watched([])
    program.command, program.environment = victim.program.command, victim.program.environment
    for i in range(10):
        ended = program.run(tmp_path_factory.mktemp("watched") / str(i))
        program.watcher.join()
        assert ended.code == 0
        phases = list(pairwise(ended.begun.values()))
        if all(any(start <= moment <= stop for moment in program.watch.times) for start, stop in phases):
            return program.watch
    pytest.fail(f"nobody looked at each phase of a run: {ended.begun}")


def test_the_watch_sees_a_socket_that_listens() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        (line,) = sockets_of(os.getpid()) & set(kernel_table())
        assert f":{listening.getsockname()[1]:04X} " in line
        assert line.startswith("tcp: ")


def test_c7_the_only_child_is_the_gatekeeper_and_no_child_is_a_fork_of_the_run(watch: Watch) -> None:
    assert all(n_looks < 300 for n_looks in watch.copies.values()), watch.copies
    gatekeepers = [
        pid for pid, words in watch.commands.items() if "from pipeline.hdf5.child.server import main" in words[-1]
    ]
    # What forks is a gatekeeper, which has neither threads nor the run's memory.
    assert {watch.parents[pid] for pid in gatekeepers} - set(gatekeepers) == {watch.pid}
    # Theano asks compilers and the system who they are: programs, and none of them Python.
    pythons = [pid for pid, words in watch.commands.items() if Path(words[0]).name.startswith("python")]
    assert set(pythons) <= {*gatekeepers, *watch.copies}, watch.commands


def test_k10_a_local_run_has_no_socket_at_all(watch: Watch) -> None:
    assert watch.sockets == set()


# -- device, compiler, compile cache -----------------------------------------------------------------------------


def test_g3_a_device_that_is_not_there_ends_a_run_that_requires_it(small: Small, tmp_path: Path) -> None:
    ended = small.program(THEANO_FLAGS="device=cuda103").run(tmp_path / "out", "--require-device")
    assert ended.code == 69
    assert ended.says("DeviceError: device=cuda103 cannot be used: .* Mend it, or run on the CPU")
    assert LAST_LINE.search(ended.lines[-1])


def test_g3_else_the_cpu_stands_in_with_a_warning(small: Small, tmp_path: Path) -> None:
    ended = small.program(THEANO_FLAGS="device=cuda103").run(tmp_path / "out")
    assert ended.code == 0
    assert ended.says(" WARNING device=cuda103 cannot be used, running on the CPU instead: ")
    assert ended.says(" INFO environment: THEANO_FLAGS=device=cuda103$")
    assert features_of(tmp_path / "out") == small.features


def test_g5_without_a_compiler_a_run_does_not_start(small: Small, tmp_path: Path) -> None:
    ended = small.program(PATH="/nonexistent").run(tmp_path / "out")
    assert ended.code == 69
    assert ended.says(
        r"no C\+\+ compiler: g\+\+ was not found, .* looked for in PATH=/nonexistent\. Install them \(Debian:"
    )
    assert LAST_LINE.search(ended.lines[-1])


def test_g5_a_compiler_that_is_no_program_is_named(small: Small, tmp_path: Path) -> None:
    ended = small.program(THEANO_FLAGS="cxx=g+++").run(tmp_path / "out")
    assert ended.code == 69
    assert ended.says(r"DeviceError: THEANO_FLAGS or .theanorc: cxx=g\+\+\+: no such program\.")
    assert not ended.says("Traceback")


def test_g5_a_run_that_is_to_go_without_a_compiler_says_what_that_costs(small: Small, tmp_path: Path) -> None:
    warning = r" WARNING cxx is empty .*: without a C\+\+ compiler this run takes about a hundred times as long"
    ended = small.program(THEANO_FLAGS="cxx=").run(tmp_path / "out", at=warning, by=signal.SIGTERM)
    assert ended.code == -signal.SIGTERM, ended.lines
    assert not ended.says("training")


def test_g5_without_a_path_the_compiler_finds_its_linker(small: Small, tmp_path: Path) -> None:
    ended = small.program(PATH=None, XDG_CACHE_HOME=tmp_path / "cache").run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features


def test_g5_of_what_a_compiler_says_a_line_is_shown_and_the_rest_kept(small: Small, tmp_path: Path) -> None:
    lines = "\\n".join(["In file included from x:", *(f"x.cpp:{i}: error: number {i}" for i in range(500))])
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) printf "{lines}" >&2; exit 1;; esac\nexec /usr/bin/g++ "$@"\n'
    )
    broken.chmod(0o755)
    program = small.program(THEANO_FLAGS=f"cxx={broken}", XDG_CACHE_HOME=tmp_path / "cache", TMPDIR=tmp_path / "bin")
    ended = program.run(tmp_path / "out")
    assert ended.code == 69, ended.lines
    assert ended.says(
        r"DeviceError: the C\+\+ compiler has failed: x\.cpp:0: error: number 0\. .* stands in run\.log\.$"
    )
    assert not ended.says("number 1|temporary file|command line")
    assert "number 499" in (tmp_path / "out" / "run.log").read_text()
    assert [path.name for path in broken.parent.iterdir()] == ["g++"], "nothing is left among temporary files"


def test_g5_a_compiler_that_fails_is_quoted(small: Small, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text(
        '#!/bin/sh\ncase "$*" in *mod.cpp*) echo "g++: fatal error: cannot find cc1plus" >&2; exit 1;; esac\n'
        f'PATH={os.environ["PATH"]} exec g++ "$@"\n'
    )
    broken.chmod(0o755)
    program = small.program(PATH=f"{broken.parent}:{os.environ['PATH']}", XDG_CACHE_HOME=tmp_path / "cache")
    ended = program.run(tmp_path / "out")
    assert ended.code == 69, ended.lines
    assert ended.says(
        r"DeviceError: the C\+\+ compiler has failed: g\+\+: fatal error: cannot find cc1plus\. .* Install"
    )
    assert LAST_LINE.search(ended.lines[-1])


def test_g6_killed_while_it_compiles_the_next_run_ends_well(small: Small, tmp_path: Path) -> None:
    program = small.program(XDG_CACHE_HOME=tmp_path / "cache")
    process = program.start(tmp_path / "out")
    deadline = time.monotonic() + DEADLINE
    compilers: list[int] = []
    while not compilers and process.poll() is None and time.monotonic() < deadline:
        compilers = [pid for pid, _ in descendants(process.pid) if "mod.cpp" in " ".join(arguments_of(pid))]
    for pid in (process.pid, *compilers):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE)
    assert compilers
    ended = program.run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features


def test_g6_a_compile_cache_that_cannot_be_made_is_a_temporary_one(small: Small, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    ended = small.program(XDG_CACHE_HOME="/proc/nowhere", TMPDIR=tmp_path / "tmp").run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    warnings = [line for line in ended.lines if " WARNING " in line]
    assert len(warnings) == 1
    assert re.search(rf"cache /proc/nowhere/.* cannot be used: .*\. Compiling into {tmp_path}/tmp/shard", warnings[0])
    assert list((tmp_path / "tmp").iterdir()) == []
    assert features_of(tmp_path / "out") == small.features


def test_g6_a_temporary_compile_cache_is_removed_when_a_signal_ends_the_run(small: Small, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    program = small.program(XDG_CACHE_HOME="/proc/nowhere", TMPDIR=tmp_path / "tmp")
    ended = program.run(tmp_path / "out", at=" WARNING the compile cache ", by=signal.SIGTERM)
    assert ended.code == -signal.SIGTERM, ended.lines
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["XDG_CACHE_HOME", "TMPDIR"])
def test_g6_where_one_place_for_compiled_code_is_full_the_other_is_taken(
    small: Small, tmp_path: Path, name: str
) -> None:
    """On a file system with hardly any room, where the machine lets a process mount one."""
    (tmp_path / "full").mkdir()
    variables = {"XDG_CACHE_HOME": tmp_path / "cache", "TMPDIR": tmp_path, name: tmp_path / "full"}

    def act() -> object:
        if not small_disk(tmp_path / "full", 2**12):
            return "not allowed"
        return asdict(small.program(**variables).run(tmp_path / "out"))

    code, ended = forked(act)
    assert code == 0
    if ended != "not allowed":
        assert ended["code"] == 0, ended["lines"]
        warned = [line for line in ended["lines"] if "cannot be used: " in line]
        assert len(warned) == (name == "XDG_CACHE_HOME")
        assert features_of(tmp_path / "out") == small.features


def test_g6_a_compile_cache_that_is_full(small: Small, tmp_path: Path) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, 2**13))

    program = small.program(XDG_CACHE_HOME=tmp_path / "cache")
    process = program.start(tmp_path / "out", preexec_fn=limit_files)
    said = process.communicate(timeout=DEADLINE)[0].decode()
    assert process.returncode == 74, said
    assert "WriteFailed: the compile cache (base_compiledir in THEANO_FLAGS, " in said
    assert LAST_LINE.search(said.splitlines()[-1])


# -- a hostile environment ---------------------------------------------------------------------------------------


def test_s19_what_the_environment_says_to_hdf5_and_dask_changes_nothing(small: Small, tmp_path: Path) -> None:
    hostile = {
        **{"DASK_SCHEDULER": "processes", "DASK_CACHE": "1", "DASK_POOL": "1", "DASK_CHUNKSIZE": "99"},
        **{"DASK_NUM_WORKERS": "1", "DASK_OPTIMIZATION__FUSE__DELAYED": "true", "DASK_DELAYED_PURE": "true"},
        **{"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "false", "DASK_RERUN_EXCEPTIONS_LOCALLY": "true"},
        **{"HDF5_DRIVER": "nonsense", "HDF5_VOL_CONNECTOR": "nonsense", "HDF5_USE_FILE_LOCKING": "TRUE"},
        **{"HDF5_VDS_PREFIX": "/nowhere", "HDF5_PLUGIN_PATH": str(tmp_path), "HDF5_DISABLE_VERSION_CHECK": "2"},
    }
    ended = small.program(**hostile).run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features


def test_s19_what_the_environment_says_to_theano_is_written_down(small: Small, tmp_path: Path) -> None:
    ended = small.program(THEANO_FLAGS="floatX=float64", OMP_NUM_THREADS="1").run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert ended.says(" INFO environment: THEANO_FLAGS=floatX=float64$")
    assert ended.says(" INFO environment: OMP_NUM_THREADS=1$")
    assert features_of(tmp_path / "out") == small.features


# -- the end -----------------------------------------------------------------------------------------------------


def test_u4_a_finished_run_is_soon_told_to_be_complete(victim: Victim) -> None:
    seconds = []
    for _ in range(3):  # of processor time, and the best of three: others are at work on this machine
        process = victim.program.start(victim.undisturbed)
        assert process.stdout is not None
        said = process.stdout.read().decode()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        assert process.returncode == 0
        assert said.splitlines()[-1].startswith(f"Already complete: {victim.n_rows} rows x 64 columns -> 32 ")
        seconds.append(used.ru_utime + used.ru_stime)
    assert min(seconds) < 2


IMPOSSIBLE = """
import pipeline.run.stages
from pipeline.signals import leave
from scripts.extract import main
def broken(*_):
    raise AssertionError("impossible")
pipeline.run.stages.fit = broken
leave(main())
"""


def test_u5_an_internal_assertion_asks_to_be_reported(small: Small, tmp_path: Path) -> None:
    ended = patched(small, IMPOSSIBLE).run(tmp_path / "out")
    assert ended.code == 70
    assert ended.says(" CRITICAL a fault of shardpress itself; please report it with these lines")
    assert LAST_LINE.search(ended.lines[-1])
    log = (tmp_path / "out" / "run.log").read_text()
    assert "please report it" in log
    assert "AssertionError: impossible" in log
    assert small.program().run(tmp_path / "out").code == 0
    assert features_of(tmp_path / "out") == small.features


def no_input(folder: Path) -> list[str]:
    return ["--input", str(folder / "nowhere")]


def no_shard(folder: Path) -> list[str]:
    (folder / "x.h5").write_text("<!DOCTYPE html>")
    return ["--input", str(folder / "x.h5")]


def bad_row(folder: Path) -> list[str]:
    rows = np.ones((50, 4))
    rows[3, 1] = np.nan
    return ["--input", write_shard(folder / "x.h5", rows)]


def foreign_output(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").touch()
    return ["--input", write_shard(folder / "x.h5", np.ones((50, 4)))]


@pytest.mark.parametrize(
    ("prepare", "code"), [(no_input, 66), (no_shard, 65), (bad_row, 65), (foreign_output, 73)], ids=lambda value: value
)
def test_every_failed_run_ends_with_how_far_it_came_and_what_to_do(
    tmp_path: Path, prepare: Callable[[Path], list[str]], code: int
) -> None:
    ended = Program(prepare(tmp_path)).run(tmp_path / "out")
    assert ended.code == code
    assert LAST_LINE.search(ended.lines[-1]), ended.lines
    assert not ended.says("Traceback")
