"""Settings of a test session: the variables TEST_CASES and TEST_ISA, and signals."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from scripts.benchmarks.instruction_sets import INSTRUCTION_SETS, missing, settings


def pytest_configure() -> None:
    """Prepare this process before tests are collected."""
    _restore_signals()
    _check_cases()
    name = os.environ.get("TEST_ISA")
    if name:
        _use_instruction_set(name)


def _restore_signals() -> None:
    """Handle signals that a shell ignores for background processes, because runs of tests would ignore them as well."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in handlers.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def _check_cases() -> None:
    cases = os.environ.get("TEST_CASES", "all")
    if cases != "all":
        raise pytest.UsageError(f"TEST_CASES={cases}, expected all")


def _use_instruction_set(name: str) -> None:
    """Compile for one instruction set in this process and its children, unless a test chooses another one."""
    if name not in INSTRUCTION_SETS:
        raise pytest.UsageError(f"TEST_ISA={name}, expected one of {', '.join(INSTRUCTION_SETS)}")
    lacks = missing(name)
    if lacks:
        raise pytest.UsageError(f"TEST_ISA={name}, but this machine's processor lacks {', '.join(lacks)}")
    folder = Path(tempfile.mkdtemp(prefix="shardpress-test-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "theanorc").write_text(settings(name))
    os.environ["THEANORC"] = f"{folder / 'theanorc'}:~/.theanorc"
    os.environ["OPENBLAS_CORETYPE"] = INSTRUCTION_SETS[name].openblas
