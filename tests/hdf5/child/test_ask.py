"""Tests of failures of the child: each causes one clear error, and the next query gets a new child."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.child.ask import LIMITS, ask
from shardpress.shards.open import open_shards
from shardpress.shards.vet import Selection, vet
from tests.support.child import child_pid, plant, unusual
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


@pytest.mark.parametrize(
    ("act", "phrase"),
    [
        ("ctypes.string_at(0)", "signal 11"),
        ("while True: pass", "0 s"),
        ("time.sleep(10**6)", "0.5 s"),
        ("np.ones(2**27)", "512 MiB"),
        ('return fake(message(b\'{"answer": 1, "arrays": [["|O", [1]]]}\\n\' + bytes(8)))', ""),
        ('return fake(message(b\'{"answer": 1, "arrays": [["<i8", [1]]]}\\n\'))', ""),
        ("return fake(*[b'\\xff' * 2**20] * 1000)", "more metadata"),
        ("raise ValueError('\\x1b[31m\\n' + 'x' * 10**6)", "\\x1b[31m\\nxxx"),
    ],
)
def test_failure_of_the_child_affects_only_this_file(path, child_runs, act, phrase):
    child_runs("if dataset == 'evil':", f"    {act}", "return {}")
    limits = LIMITS
    if "while" in act:
        limits = replace(LIMITS, seconds=0)  # at most one second of processor time
    elif "sleep" in act:
        limits = replace(LIMITS, patience=0.5)
    with refused(65, f"file={path}", phrase):
        answer_about(path, "evil", limits)
    assert answer_about(path) == {}


def test_only_the_file_that_crashes_hdf5_is_left_out(tmp_path, child_runs):
    for i in range(4):
        unusual(tmp_path / f"{i}.h5", 3 + i)
    child_runs("if h5py.h5d.open(file, b'X').shape[0] == 5: ctypes.string_at(0)", HONEST)
    left_out = []
    shards = open_shards([str(tmp_path)], on_bad_shard=lambda path, error: left_out.append(path.name))
    assert [Path(shard.path).name for shard in shards] == ["0.h5", "1.h5", "3.h5"]
    assert left_out == ["2.h5"]


def test_rows_are_read_if_extras_crash_hdf5(path, child_runs):
    child_runs("if len(wanted) == 2: ctypes.string_at(0)", HONEST)  # a third argument leaves the extras out
    (shard,) = open_shards([path])
    assert (shard.shape, shard.extras) == ((3, 2), ())


def test_child_ignores_signals_and_is_restarted_when_killed(path, fresh):
    vet(Path(path))
    before = child_pid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(before, number)
        vet(Path(path))
        assert child_pid() == before
    os.kill(before, signal.SIGKILL)
    assert vet(Path(path)).shape == (3, 2)
    assert child_pid() != before


def test_killed_child_is_a_system_limit_and_no_fault_of_the_file(path, child_runs):
    child_runs("if dataset == 'evil': os.kill(os.getpid(), 9)", HONEST)
    with refused(71, f"file={path}", "twice"):
        vet(Path(path), Selection("evil"))
    assert vet(Path(path)).shape == (3, 2)


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
            vet(Path(path), Selection("slow"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert vet(Path(path)).shape == (3, 2)


def test_later_runs_of_a_process_start_no_other_child(path, fresh):
    ask_module.start_early()
    vet(path)
    pid = child_pid()
    ask_module.start_early()
    vet(path)
    assert child_pid() == pid


def test_fork_of_the_driver_has_its_own_child(path, fresh):
    vet(Path(path))
    before = child_pid()
    reader, writer = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            vet(Path(path))
            os.write(writer, str(child_pid()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        pid_in_fork = answer.read()
    os.waitpid(forked, 0)
    assert pid_in_fork
    assert int(pid_in_fork) != before
    assert vet(Path(path)).shape == (3, 2)
    assert child_pid() == before
