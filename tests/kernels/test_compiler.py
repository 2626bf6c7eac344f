"""Tests of the processor's flags, which the compiler reports once for all processes."""

from pathlib import Path

import pytest

from tests.support.interpreters import run_python

pytestmark = pytest.mark.process

LOAD = """
from shardpress_kernels import backend
facts["flags"] = backend.load().gof.cmodule.GCC_compiler.compile_args()
"""


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """Return a compiler that writes its arguments to the file ``calls``, which is next to it."""
    path = tmp_path / "g++"
    path.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\nexec /usr/bin/g++ "$@"\n')
    path.chmod(0o755)
    return path


def calls_while_loading(compiler: Path, *flags: str) -> tuple[list[str], list[str]]:
    """Load Theano in a new process. Return the flags for kernels, and the arguments of all calls of the compiler."""
    calls = compiler.parent / "calls"
    calls.write_text("")
    variables = {"THEANO_FLAGS": ",".join([f"cxx={compiler}", *flags]), "XDG_CACHE_HOME": compiler.parent / "cache"}
    facts = run_python(LOAD, **variables).facts
    return facts["flags"], calls.read_text().splitlines()


def queries(calls: list[str]) -> int:
    return sum("-march=native" in call for call in calls)


def test_only_the_first_process_queries_the_processor(compiler: Path) -> None:
    flags, calls = calls_while_loading(compiler)
    assert queries(calls) > 0
    assert any(flag.startswith("-march=") for flag in flags)
    later_flags, later = calls_while_loading(compiler)
    assert later_flags == flags
    assert later == ["-dumpversion"]


def test_the_processor_is_queried_again_if_it_can_have_other_flags(compiler: Path) -> None:
    calls_while_loading(compiler)
    assert queries(calls_while_loading(compiler, "gcc.cxxflags=-O2")[1]) > 0, "other flags"
    compiler.write_text(compiler.read_text() + "# updated\n")
    assert queries(calls_while_loading(compiler)[1]) > 0, "another compiler"
    assert queries(calls_while_loading(compiler)[1]) == 0
    for stored in compiler.parent.rglob("processor-flags-*"):
        stored.write_text("[1")
    assert queries(calls_while_loading(compiler)[1]) > 0, "damaged files"
