"""Tests of the cache of compiled modules: modules are reused, and locks never block forever."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardpress_kernels import modulecache
from shardpress_kernels.modulecache import CompileLockHeld, check_lockable
from tests.support.interpreters import run_python

COMPILE = """
from shardpress_kernels import backend
theano = backend.load()
symbol = theano.tensor.fvector()
expressions = {"plus": symbol + 1, "times": symbol * 3}
for name in NAMES:
    facts[name] = theano.function([symbol], expressions[name])([2]).tolist()
"""


def compile_in(cache: Path, *names: str) -> dict[str, Any]:
    """Compile the named expressions in a new process."""
    flags = f"base_compiledir={cache}"
    return dict(run_python(f"NAMES = {names!r}\n" + COMPILE.strip(), THEANO_FLAGS=flags).facts)


def libraries(cache: Path) -> dict[Path, int]:
    """Return the inode of each module in a cache by its path."""
    return {library: library.stat().st_ino for library in cache.glob("*/module-*/*.so")}


@pytest.mark.process
@pytest.mark.compiler
def test_modules_are_reused_and_damaged_or_old_ones_are_replaced(tmp_path: Path) -> None:
    assert compile_in(tmp_path, "plus", "times") == {"plus": [3], "times": [6]}
    first = libraries(tmp_path)
    assert compile_in(tmp_path, "times") == {"times": [6]}
    assert libraries(tmp_path) == first, "nothing is compiled again"
    long_ago = time.time() - 100 * 24 * 60 * 60
    for library in first:
        library.write_bytes(b"")
        os.utime(library.parent, (long_ago, long_ago))
    assert compile_in(tmp_path, "plus") == {"plus": [3]}
    others = libraries(tmp_path)
    assert 0 < len(others) < len(first), "modules without recent use are removed"
    assert all(library.stat().st_size > 0 for library in others), "damaged modules are replaced"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / ".lock-ab"


def test_wait_ends_with_the_holder_of_the_lock(lock: Path) -> None:
    holder = os.open(lock, os.O_RDWR | os.O_CREAT)
    os.write(holder, b"pid 7 on elsewhere")
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(CompileLockHeld, match=rf"pid 7 on elsewhere.*{lock}.* 0 s"), modulecache._locked(lock, 0):
        pass
    os.close(holder)  # the system closes the file when the holder ends
    with modulecache._locked(lock, 0):
        assert lock.read_text() == f"pid {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(CompileLockHeld), modulecache._locked(lock, 0):
            pass
    with modulecache._locked(lock, 0):
        pass


def test_lock_that_is_held_does_not_make_the_cache_unusable(tmp_path: Path) -> None:
    with modulecache._locked(tmp_path / ".lock", 0):
        check_lockable(tmp_path)


def test_process_waits_until_the_module_is_compiled(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = os.open(lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    times = iter(range(10))
    clock = SimpleNamespace(monotonic=lambda: next(times), sleep=lambda _: os.close(holder))
    monkeypatch.setattr(modulecache, "time", clock)
    with modulecache._locked(lock, 5):
        pass
