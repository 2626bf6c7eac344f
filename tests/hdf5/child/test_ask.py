"""Tests of failures of the child: each causes one clear error, and the next query gets a new child."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.base import signals
from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.child.ask import LIMITS, ask
from shardpress.shards.open import open_shards
from shardpress.shards.vet import Selection
from tests.support.cases import case
from tests.support.child import child_pid, plant, vet_by_child
from tests.support.faulty import forked
from tests.support.helpers import refused

pytestmark = pytest.mark.process

HONEST = "return honest(file, dataset, *wanted)"


def answer_about(path, dataset=None, limits=LIMITS):
    """Return the unchecked answer of the child about a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ask_module, "LIMITS", limits)
            return ask("describe", descriptor, [dataset], Any, f"file={path}")
    finally:
        os.close(descriptor)


# What the child executes about a file, and the exit code and a phrase of the error.
FAILURES = [
    ("ctypes.string_at(0)", 65, "signal 11"),
    ("while True: pass", 65, "0 s"),
    ("time.sleep(10**6)", 65, "0.5 s"),
    ("np.ones(2**27)", 65, "512 MiB"),
    ('fake(message(b\'{"answer": 1, "arrays": [["|O", [1]]]}\\n\' + bytes(8)))', 65, ""),
    ('fake(message(b\'{"answer": 1, "arrays": [["<i8", [1]]]}\\n\'))', 65, ""),
    ("fake(*[b'\\xff' * 2**20] * 1000)", 65, "more metadata"),
    ("raise ValueError('\\x1b[31m\\n' + 'x' * 10**6)", 65, "\\x1b[31m\\nxxx"),
    ("os.kill(os.getpid(), 9)", 71, "twice"),  # perhaps killed by the kernel, and no fault of the file
]


@pytest.mark.slow
def test_failure_of_the_child_affects_only_this_file(path, child_runs):
    child_runs("exec(dataset or '')", "return {}")
    for act, exit_code, phrase in FAILURES:
        limits = LIMITS
        if "while" in act:
            limits = replace(LIMITS, seconds=0)  # at most one second of processor time
        elif "sleep" in act:
            limits = replace(LIMITS, patience=0.5)
        with case(act), refused(exit_code, f"file={path}", phrase):
            answer_about(path, act, limits)
        assert answer_about(path) == {}


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_small_objects(path):
    """The cache of libhdf5 takes much more than it counts. With 100,000 groups, it exceeded the usual limit."""
    with h5py.File(path, "w") as file:
        for i in range(16_000):
            sample = file.create_group(f"sample_{i}")
            sample["x"] = np.zeros(4, "f4")
            sample.attrs["person"] = f"p{i % 5}"
    answer = answer_about(path, limits=replace(LIMITS, memory=160 * 2**20))
    assert answer["rows"]["shape"] == [16_000, 4]


@pytest.mark.slow
def test_datasets_that_end_children_are_given_up(path, child_runs, monkeypatch):
    """An earlier file can be the cause of a crash, but not of a long time: a slow dataset gets no second child."""
    started = []

    class CountedChild(ask_module._Child):
        def __init__(self):
            started.append(self)
            super().__init__()

    monkeypatch.setattr(ask_module, "_Child", CountedChild)
    monkeypatch.setattr(ask_module, "_MOST_ENDED", 3)
    child_runs("exec(dataset or '')", "return {}")
    limits = replace(LIMITS, seconds=0)
    for act, n_children in (("while True: pass", 1), ("ctypes.string_at(0)", 2)):
        for n in (*[n_children] * ask_module._MOST_ENDED, 0, 0):
            ask_module.retire()
            started.clear()
            with case(act, n), refused(65, f"file={path}"):
                answer_about(path, act, limits)
            assert len(started) == n
    assert answer_about(path) == {}
    os.utime(path, (0, 0))
    with refused(65, f"file={path}", "signal 11"):
        answer_about(path, "ctypes.string_at(0)")


def test_a_signal_ends_an_answer_in_any_thread(path, child_runs):
    child_runs(f"os.kill({os.getpid()}, 15); time.sleep(1000)", HONEST)
    with ThreadPoolExecutor(1) as pool, signals.stoppable():
        answer = pool.submit(answer_about, path, None, replace(LIMITS, patience=5))
        with pytest.raises(signals.Stopped):
            answer.result()
        assert isinstance(answer.exception(), signals.Stopped)


def test_rows_are_read_if_extras_crash_hdf5(path, child_runs):
    child_runs("if wanted[3]: ctypes.string_at(0)", HONEST)  # without the extras, the child does not crash
    (shard,) = open_shards([path])
    assert (shard.shape, shard.extras) == ((3, 2), ())


@pytest.mark.parametrize("program", ["raise SystemExit(3)", "import time; time.sleep(1000)"])
def test_child_that_cannot_start_is_a_system_limit(path, fresh, monkeypatch, tmp_path, program):
    plant(monkeypatch, tmp_path, program)
    limits = replace(LIMITS, start=0.1) if "sleep" in program else LIMITS
    with refused(71, f"file={path}", "twice"):
        answer_about(path, limits=limits)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with refused(71, f"file={path}", "ulimit"):
        answer_about(path)


def test_answer_to_an_interrupted_query_is_discarded(path, child_runs):
    child_runs(f"if dataset == 'slow': os.kill({os.getpid()}, 10); time.sleep(1000)", HONEST)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            vet_by_child(Path(path), Selection("slow"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert vet_by_child(Path(path)).shape == (3, 2)


def test_child_serves_all_runs_and_ignores_signals_until_it_is_killed(path, fresh):
    ask_module.start_early()
    vet_by_child(Path(path))
    before = child_pid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(before, number)
        ask_module.start_early()
        vet_by_child(Path(path))
        assert child_pid() == before
    os.kill(before, signal.SIGKILL)
    assert vet_by_child(Path(path)).shape == (3, 2)
    assert child_pid() != before


def test_fork_of_the_driver_has_its_own_child(path, fresh):
    vet_by_child(Path(path))
    before = child_pid()

    def vet_in_fork():
        vet_by_child(Path(path))
        return child_pid()

    _, pid_in_fork = forked(vet_in_fork)
    assert pid_in_fork not in (None, before)
    assert vet_by_child(Path(path)).shape == (3, 2)
    assert child_pid() == before
