"""Check that tests do only what their marks permit.

The marks select the tests of `make check`, which needs neither a compiler nor another process. When tests are selected
by marks, a test fails if it starts a process or loads Theano without the corresponding mark. The process that describes
files is permitted.
"""

from __future__ import annotations

import sys
from collections.abc import Generator

import numpy.testing  # noqa: F401  It starts a process when it is loaded, so it is loaded before tests are checked.
import pytest

_STARTS_A_PROCESS = ("subprocess.Popen", "os.fork", "os.posix_spawn")
_READER = "shardpress.hdf5.child.server"  # the process that describes files, which tests share

_marks: set[str] | None = None
"""Marks of the running test, or None if nothing is checked."""


def pytest_configure() -> None:
    """Install the audit hook of this process, which cannot be removed."""
    sys.addaudithook(_check)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Check a test and its fixtures, if the tests of this session are selected by marks."""
    global _marks
    if item.config.getoption("markexpr"):
        _marks = {mark.name for mark in item.iter_markers()}
    try:
        return (yield)
    finally:
        _marks = None


def _check(event: str, arguments: tuple[object, ...]) -> None:
    if _marks is None:
        return
    if event in _STARTS_A_PROCESS and not _marks & {"process", "compiler"} and not _is_reader(arguments):
        raise AssertionError("starts a process, so it must be marked with pytest.mark.process")
    if event == "import" and arguments[0] == "theano" and "compiler" not in _marks:
        raise AssertionError("loads Theano, which compiles, so it must be marked with pytest.mark.compiler")


def _is_reader(arguments: tuple[object, ...]) -> bool:
    command = arguments[1] if len(arguments) > 1 else ()
    return isinstance(command, list) and _READER in command
