"""Tests of the child processes and sockets of real runs, observed from beginning to end."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.killing import Program, Victim
from tests.support.processes import arguments_of, descendants


@dataclass
class Watch:
    """Observations of a run and its descendants, from beginning to end.

    Attributes
    ----------
    pid : int
        Process id of the run.
    times : list of float
        Times of the observations, in seconds from the start.
    parents : dict of int to int
        Parent of every descendant.
    commands : dict of int to list of str
        Last observed command line of every descendant.
    copies : Counter
        How often a child was observed as a fork of the run.
    sockets : set of str
        Lines of the kernel's tables, or inodes that are in none of them.
    """

    pid: int = 0
    times: list[float] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    commands: dict[int, list[str]] = field(default_factory=dict)
    copies: Counter[int] = field(default_factory=Counter)
    sockets: set[str] = field(default_factory=set)


class ObservedProgram(Program):
    """Observes every process that it starts until the process exits."""

    def start(self, output: Path, *flags: str, **options: object) -> subprocess.Popen[bytes]:
        process = super().start(output, *flags, **options)
        self.watch = Watch()
        self.watcher = threading.Thread(target=look, args=(process.pid, self.watch))
        self.watcher.start()
        return process


def look(pid: int, watch: Watch) -> None:
    """Observe a process until it exits."""
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
            if arguments == own:  # between fork and exec every child looks like that
                watch.copies[child] += 1
        time.sleep(0.005)


def sockets_of(pid: int) -> set[str]:
    """Return the open sockets of a process, as lines of the kernel's tables."""
    inodes = set()
    with suppress(OSError):  # it has exited
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # this one was closed meanwhile
                inodes |= set(re.findall(r"^socket:\[(\d+)\]$", os.readlink(path)))
    return {next((line for line in kernel_table() if inode in line.split()), inode) for inode in inodes}


def kernel_table() -> Iterator[str]:
    for name in ("tcp", "tcp6", "udp", "udp6", "unix"):
        path = Path(f"/proc/net/{name}")
        if path.exists():  # without IPv6 there is no table of it
            yield from (f"{name}: {line}" for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def watch(victim: Victim, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """Return the observations of a run that was seen in each of its phases; a busy machine needs several runs."""
    program = ObservedProgram([])
    program.command = victim.program.command
    program.environment = victim.program.environment
    for i in range(10):
        ended = program.run(tmp_path_factory.mktemp("watched") / str(i))
        program.watcher.join()
        assert ended.code == 0
        phases = list(pairwise(ended.phase_starts.values()))
        if all(any(start <= moment <= stop for moment in program.watch.times) for start, stop in phases):
            return program.watch
    pytest.fail(f"no run was observed in each phase: {ended.phase_starts}")


def test_the_watch_sees_a_listening_socket() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = f":{listening.getsockname()[1]:04X} "
        sockets = sockets_of(os.getpid()) & set(kernel_table())
    # Other tests of this process may have open sockets.
    assert [line for line in sockets if port in line and line.startswith("tcp: ")]


@pytest.mark.process
def test_the_run_forks_nothing_and_starts_only_readers_of_files(watch: Watch) -> None:
    assert all(n_looks < 300 for n_looks in watch.copies.values()), watch.copies
    readers = [pid for pid, words in watch.commands.items() if "shardpress.hdf5.child.server" in words]
    assert {watch.parents[pid] for pid in readers} == {watch.pid}
    # Theano starts compilers and system tools to query their versions; none of them is Python.
    pythons = [pid for pid, words in watch.commands.items() if Path(words[0]).name.startswith("python")]
    assert set(pythons) <= {*readers, *watch.copies}, watch.commands


@pytest.mark.process
def test_a_local_run_opens_no_socket_that_others_can_reach(watch: Watch) -> None:
    pairs = {line for line in watch.sockets if line.startswith("unix: ") and len(line.split()) == 8}  # without a path
    closed = set(filter(str.isdecimal, watch.sockets))  # before their lines were read
    assert watch.sockets - pairs - closed == set()
