"""Tests of failures of the child: each causes one clear error, and the next query gets a new child."""

import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress.hdf5.child import ask as ask_module
from shardpress.hdf5.child.ask import LIMITS, ask
from shardpress.hdf5.shard import Block
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.vet import Selection, vet
from tests.support.child import DRIVER, ROOT, child_pid, plant, unusual
from tests.support.helpers import numbered, refused, write_shard

pytestmark = pytest.mark.process


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
        ("os.abort()", "signal 6"),
        ("os._exit(3)", "exit code 3"),
        ("while True: pass", "1 s"),
        ("np.ones(2**27)", "512 MiB"),
        ("os._exit(0)", "exit code 0"),
        ("return fake(message(b''))", ""),
        ("return fake(message(b'[]\\n'))", ""),
        ("return fake(message(b'{' * 10**6 + b'\\n'))", ""),
        ("return fake(message(b'[' * 10**6 + b'\\n'))", ""),
        ('return fake(message(b\'{"answer": 1, "arrays": [["|O", [1]]]}\\n\' + bytes(8)))', ""),
        ('return fake(message(b\'{"answer": 1, "arrays": [["<i8", [1]]]}\\n\'))', ""),
        ("return fake(*[b'\\xff' * 2**20] * 1000)", "more metadata"),
        ("raise ValueError('\\x1b[31m\\n')", "\\x1b[31m\\n"),
        ("raise ValueError('x' * 10**6)", "xxx..."),
    ],
)
def test_failure_of_the_child_affects_only_this_file(path, child_runs, act, phrase):
    child_runs("if dataset == 'evil':", f"    {act}", "return {}")
    with refused(65, f"file={path}", phrase):
        answer_about(path, "evil", replace(LIMITS, seconds=1))
    assert answer_about(path) == {}


def test_complete_answer_above_the_size_limit_is_refused(path, child_runs):
    child_runs('return fake(message(b\'{"answer": 1, "arrays": []}\'.ljust(1000) + b"\\n"))')
    with refused(65, f"file={path}"):
        answer_about(path, limits=replace(LIMITS, answer_bytes=1000))


def test_child_that_only_sleeps_is_stopped(path, child_runs):
    """Elapsed time alone would not suffice: a busy machine also takes long for valid files."""
    child_runs("if dataset == 'evil':", "    time.sleep(10**6)", "return honest(file, dataset, *wanted)")
    limits = replace(LIMITS, patience=0.5)
    with refused(65, f"file={path}", "0.5 s"):
        answer_about(path, "evil", limits)
    assert vet(Path(path)).shape == (3, 2)


def test_time_limit_grows_with_the_file_size():
    for n_bytes, seconds, patience in ((0, 10, 100), (22_000, 10, 100), (50 * 2**20, 60, 600), (2**40, 120, 1200)):
        limits = ask_module._limits_of(n_bytes)
        assert limits.seconds == pytest.approx(seconds, rel=0.01), n_bytes
        assert limits.patience == pytest.approx(patience, rel=0.01), n_bytes
        assert limits.memory == LIMITS.memory


def test_slow_file_is_named_in_the_log(path, child_runs, caplog):
    caplog.set_level("INFO", "shardpress")
    child_runs("return honest(file, dataset, *wanted)")
    found = answer_about(path, limits=replace(LIMITS, silent=0.0))
    assert found["shape"] == [3, 2]
    assert f"file={path}" in caplog.text


def test_only_the_file_that_crashes_hdf5_is_left_out(tmp_path, child_runs):
    for i in range(4):
        unusual(tmp_path / f"{i}.h5", 3 + i)
    child_runs(
        "if h5py.h5d.open(file, b'X').shape[0] == 5: ctypes.string_at(0)",
        "return honest(file, dataset, *wanted)",
    )
    left_out = []
    shards = open_shards([str(tmp_path)], on_bad_shard=lambda path, error: left_out.append((path.name, str(error))))
    assert [Path(shard.path).name for shard in shards] == ["0.h5", "1.h5", "3.h5"]
    ((name, sentence),) = left_out
    assert name == "2.h5"
    assert "signal 11" in sentence


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_child_ignores_signals(path, fresh, number):
    vet(Path(path))
    before = child_pid()
    os.kill(before, number)
    vet(Path(path))
    assert child_pid() == before


def test_killed_child_is_restarted(path, fresh):
    vet(Path(path))
    before = child_pid()
    os.kill(before, signal.SIGKILL)
    assert vet(Path(path)).shape == (3, 2)
    assert child_pid() != before


def test_killed_child_is_a_system_limit_and_no_fault_of_the_file(path, child_runs, tmp_path):
    child_runs("if dataset == 'evil': os.kill(os.getpid(), 9)", "return honest(file, dataset, *wanted)")
    with refused(71, f"file={path}", "twice"):
        vet(Path(path), Selection("evil"))
    assert vet(Path(path)).shape == (3, 2)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(3)",
        "pass",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_repeatedly_dying_child_is_a_system_limit(path, fresh, monkeypatch, tmp_path, program):
    plant(monkeypatch, tmp_path, program)
    with refused(71, f"file={path}", "dmesg"):
        vet(Path(path))


def test_failed_start_of_the_child_names_the_limits_to_raise(path, fresh, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with refused(71, f"file={path}", "ulimit"):
        vet(Path(path))


@pytest.mark.parametrize("n", [3, 4])
def test_child_without_descriptors_is_a_system_limit(path, fresh, monkeypatch, tmp_path, n):
    limited = f"def main():\n    resource.setrlimit(resource.RLIMIT_NOFILE, ({n}, {n}))\n    server.main()\n"
    plant(monkeypatch, tmp_path, f"import resource\nfrom shardpress.hdf5.child import server\n{limited}")
    with refused(71, f"file={path}"):
        vet(Path(path))


def test_hanging_child_is_stopped(path, fresh, monkeypatch, tmp_path):
    plant(monkeypatch, tmp_path, "import time; time.sleep(1000)")
    with refused(71, f"file={path}", "twice"):
        answer_about(path, limits=replace(LIMITS, start=0.1))


def test_answer_to_an_interrupted_query_is_discarded(path, child_runs):
    child_runs(
        f"if dataset == 'slow': os.kill({os.getpid()}, 10); time.sleep(1000)",
        "return honest(file, dataset, *wanted)",
    )

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            vet(Path(path), Selection("slow"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert vet(Path(path)).shape == (3, 2)


@pytest.mark.parametrize("cause", ["exit", "SIGKILL", "SIGTERM"])
def test_child_ends_with_its_driver(path, cause):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = os.pidfd_open(int(driver.stdout.readline()))
    try:
        if cause != "exit":
            driver.send_signal(getattr(signal, cause))
        driver.communicate()
        assert select.select([child], [], [], 60)[0], "the child is still alive"
    finally:
        os.close(child)


def test_child_is_no_fork_and_needs_no_lock_of_the_driver(path, fresh, monkeypatch):
    def no_fork():
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", no_fork)
    has_lock = threading.Event()
    may_end = threading.Event()

    def hold():
        with h5py._hl.base.phil:
            has_lock.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        has_lock.wait()
        (shard,) = open_shards([path])
        np.testing.assert_array_equal(read(Block(shard, 0, 3)), numbered(3))
    finally:
        may_end.set()
        thread.join()


def test_concurrent_queries_are_answered_concurrently(tmp_path, fresh):
    text = np.array(["one", "two", "three"], object)
    shards = open_shards([write_shard(tmp_path / f"{i}.h5", numbered(3), extras={"t": text}) for i in range(8)])
    found = {}

    def take(i):
        found[i] = [read_extras(Block(shards[i], j, j + 1))["t"][0].decode() for j in range(3)]

    threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: text.tolist() for i in range(8)}
    assert 1 <= len(ask_module._idle) <= 8


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
