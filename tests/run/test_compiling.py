"""Real processes without the device, the compiler or the compile cache that they would have.

Test names begin with the row of the project's list of faults that they hold.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.support.faulty import forked, small_disk
from tests.support.killing import features_of
from tests.support.processes import DEADLINE, LAST_LINE, Small, arguments_of, descendants

pytestmark = pytest.mark.process


def test_g3_a_device_that_is_not_there_ends_a_run_that_requires_it(small: Small, tmp_path: Path) -> None:
    ended = small.program(THEANO_FLAGS="device=cuda103").run(tmp_path / "out", "--require-device")
    assert ended.code == 69
    assert ended.says("DeviceError: device=cuda103 cannot be used: .* `shardpress doctor` says .* or run on the CPU")
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
    program = small.program(PATH=None, XDG_CACHE_HOME=tmp_path / "cache")
    ended = program.run(tmp_path / "out", *small.with_model)
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features
    assert sum("INFO compiling for this machine, once: " in line for line in ended.lines) == 1
    assert ended.says(r"Time: .*, compiling for this machine, once, [\d.]+ s\.")
    second = program.run(tmp_path / "second", *small.with_model)
    assert not second.says("compiling for this machine"), "what is compiled is kept"


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


def test_g5_a_compiler_that_hides_the_processor_is_refused(small: Small, tmp_path: Path) -> None:
    """Theano would compile for any processor without a word, which gives features other last bits."""
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text('#!/bin/sh\ncase "$*" in *-march=native*) exit 1;; esac\nexec /usr/bin/g++ "$@"\n')
    broken.chmod(0o755)
    program = small.program(THEANO_FLAGS=f"cxx={broken}", XDG_CACHE_HOME=tmp_path / "cache")
    ended = program.run(tmp_path / "out")
    assert ended.code == 69, ended.lines
    assert ended.says("march=native.*ulimit -u")


def test_g6_killed_while_it_compiles_the_next_run_ends_well(small: Small, tmp_path: Path) -> None:
    program = small.program(XDG_CACHE_HOME=tmp_path / "cache")
    process = program.start(tmp_path / "out", *small.with_model)
    deadline = time.monotonic() + DEADLINE
    compilers: list[int] = []
    while not compilers and process.poll() is None and time.monotonic() < deadline:
        compilers = [pid for pid, _ in descendants(process.pid) if "mod.cpp" in " ".join(arguments_of(pid))]
    for pid in (process.pid, *compilers):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=DEADLINE)
    assert compilers
    ended = program.run(tmp_path / "out", *small.with_model)
    assert ended.code == 0, ended.lines
    assert features_of(tmp_path / "out") == small.features


def test_g6_a_compile_cache_that_cannot_be_made_is_a_temporary_one(small: Small, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    program = small.program(XDG_CACHE_HOME="/proc/nowhere", TMPDIR=tmp_path / "tmp")
    ended = program.run(tmp_path / "out", *small.with_model)
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
        return asdict(small.program(**variables).run(tmp_path / "out", *small.with_model))

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
