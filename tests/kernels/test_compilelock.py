"""Tests of the locks on the compile cache: they can be nested, are released, and never block forever."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardpress_kernels import compilelock
from shardpress_kernels.compilelock import (
    CompileLockHeld,
    check_lockable,
    compiling,
    get_lock,
    lock_ctx,
    release_lock,
    released,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a compile cache whose lock has a timeout of 0 s."""
    config = SimpleNamespace(compiledir=str(tmp_path), compile=SimpleNamespace(timeout=0))
    monkeypatch.setitem(sys.modules, "theano", SimpleNamespace(config=config))  # type: ignore[arg-type]
    assert get_lock.n_lock == 0
    yield tmp_path
    assert get_lock.n_lock == 0


def is_locked(cache: Path, name: str = ".lock") -> bool:
    descriptor = os.open(cache / name, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_outermost_of_nested_locks_decides_and_an_error_releases(cache: Path) -> None:
    get_lock()
    with lock_ctx(keep_lock=True):
        assert is_locked(cache)
    assert is_locked(cache)
    release_lock()
    assert is_locked(cache)
    release_lock()
    assert not is_locked(cache)
    with pytest.raises(ZeroDivisionError), lock_ctx(keep_lock=True):
        1 / 0  # noqa: B018
    assert not is_locked(cache)


def test_compiler_runs_under_the_lock_of_its_module_alone(cache: Path) -> None:
    with compiling("m12ab"):
        with lock_ctx(), lock_ctx():
            with released():
                assert not is_locked(cache)
                assert is_locked(cache, ".lock-ab")
            assert get_lock.n_lock == 2
            assert is_locked(cache)
        assert not is_locked(cache)
    assert not is_locked(cache, ".lock-ab")
    with lock_ctx(), compiling("m12ab"), released():
        # The holder of the other lock may wait for this one, so this process does not wait for the other lock.
        assert is_locked(cache)
        assert not is_locked(cache, ".lock-ab")


def test_lock_that_cannot_be_taken_again_is_not_held(cache: Path) -> None:
    holder = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT)
    with pytest.raises(CompileLockHeld), compiling("m12ab"), lock_ctx(), released():
        fcntl.flock(holder, fcntl.LOCK_EX)
    os.close(holder)
    with lock_ctx():
        assert is_locked(cache)


def test_wait_ends_with_the_holder_of_the_lock(cache: Path) -> None:
    holder = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT)
    os.write(holder, b"pid 7 on elsewhere")
    fcntl.flock(holder, fcntl.LOCK_EX)
    check_lockable(str(cache))  # a lock that is held does not make the cache unusable
    with pytest.raises(CompileLockHeld, match=rf"pid 7 on elsewhere.*{cache}.* 0 s"):
        get_lock()
    os.close(holder)  # the system closes the file when the holder ends
    with lock_ctx():
        assert (cache / ".lock").read_text() == f"pid {os.getpid()} on {os.uname().nodename}"


def test_wait_is_unlimited_while_the_holder_changes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each holder can keep the lock for as long as the setting allows, so the whole wait can be longer.
    holder = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    n_steps = 0
    n_owners = 5
    monkeypatch.setattr(sys.modules["theano"].config.compile, "timeout", 1.5)

    def step(_: float) -> None:
        nonlocal n_steps
        n_steps += 1
        os.utime(holder, ns=(n_steps, n_steps))  # the next holder changes the time when it writes its name
        if n_steps == n_owners:
            os.close(holder)

    clock = SimpleNamespace(monotonic=lambda: n_steps, sleep=step)
    monkeypatch.setattr(compilelock, "time", clock)
    with lock_ctx():
        assert n_steps == n_owners
