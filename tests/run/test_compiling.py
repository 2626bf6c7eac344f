"""Tests of real processes whose compiler fails, or whose compile cache is unusable."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.support.killing import features_of, processes_of
from tests.support.processes import DEADLINE, Small

pytestmark = pytest.mark.process

# A compiler that fails if its arguments match a pattern, and the line of the run. The last one would be silently
# replaced by one for a generic processor, which changes the last bits of features.
BROKEN = {
    "fails": ("*-shared*", r"DeviceError: .* x\.cpp:0: error: number 0\. .*\brun\.log\b"),
    "hides the processor": ("*-march=native*", "march=native"),
}
ERRORS = [f"x.cpp:{i}: error: number {i}" for i in range(500)]


@pytest.mark.parametrize("kind", BROKEN)
def test_the_error_of_a_failing_compiler_is_quoted(small: Small, tmp_path: Path, kind: str) -> None:
    pattern, words = BROKEN[kind]
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    (tmp_path / "errors").write_text("\n".join(ERRORS))
    fails = f'case "$*" in {pattern}) cat {tmp_path}/errors >&2; exit 1;; esac'
    broken.write_text(f'#!/bin/sh\n{fails}\nexec /usr/bin/g++ "$@"\n')
    broken.chmod(0o755)
    program = small.program(THEANO_FLAGS=f"cxx={broken}", XDG_CACHE_HOME=tmp_path / "cache", TMPDIR=tmp_path / "bin")
    ended = program.run(tmp_path / "out")
    assert ended.code == 69, ended.lines
    assert ended.has_line(words)
    assert not ended.has_line("number 1|temporary file|command line")
    assert kind != "fails" or "number 499" in (tmp_path / "out" / "run.log").read_text()
    assert [path.name for path in broken.parent.iterdir()] == ["g++"], "no temporary files are left"


# -- the compile cache -------------------------------------------------------------------------------------------------


def test_a_run_succeeds_after_one_was_killed_while_compiling(small: Small, tmp_path: Path) -> None:
    program = small.program(XDG_CACHE_HOME=tmp_path / "cache")
    process = program.start(tmp_path / "out", *small.with_model)
    deadline = time.monotonic() + DEADLINE
    compilers: list[int] = []
    while not compilers and process.poll() is None and time.monotonic() < deadline:
        compilers = [pid for pid, command in processes_of(str(tmp_path)).items() if "mod.cpp" in command]
    for pid in (process.pid, *compilers):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE)
    assert compilers
    ended = program.run(tmp_path / "out", *small.with_model)
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features


def test_a_temporary_compile_cache_replaces_an_unusable_one(small: Small, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    program = small.program(XDG_CACHE_HOME="/proc/nowhere", TMPDIR=tmp_path / "tmp")
    ended = program.run(tmp_path / "out", *small.with_model)
    assert ended.code == 0, ended.lines
    (warning,) = [line for line in ended.lines if " WARNING " in line]
    assert re.search(rf" /proc/nowhere/.* {tmp_path}/tmp/shard", warning)
    assert features_of(tmp_path / "out") == small.features
    stopped = program.run(tmp_path / "stopped", at=" WARNING .* cache ", by=signal.SIGTERM)
    assert stopped.code == -signal.SIGTERM, stopped.lines
    assert list((tmp_path / "tmp").iterdir()) == []
