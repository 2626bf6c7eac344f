"""The lock on the compile cache: nested, given back, never waited for without end."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernels import compilelock
from kernels.compilelock import CompileLockHeld, get_lock, lock_ctx, release_lock, try_out


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A compile cache for whose lock nobody waits."""
    config = SimpleNamespace(compiledir=str(tmp_path), compile=SimpleNamespace(timeout=0))
    monkeypatch.setitem(sys.modules, "theano", SimpleNamespace(config=config))  # type: ignore[arg-type]
    assert get_lock.n_lock == 0
    yield tmp_path
    assert get_lock.n_lock == 0


def is_locked(cache: Path) -> bool:
    descriptor = os.open(cache / ".lock", os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_the_outermost_of_nested_locks_holds(cache: Path) -> None:
    get_lock()
    with lock_ctx():
        assert is_locked(cache)
    assert is_locked(cache)
    release_lock()
    assert not is_locked(cache)


def test_a_lock_can_be_kept_and_is_given_back_after_an_error(cache: Path) -> None:
    with lock_ctx(keep_lock=True):
        pass
    assert is_locked(cache)
    release_lock()
    with pytest.raises(ZeroDivisionError), lock_ctx(keep_lock=True):
        1 / 0  # noqa: B018
    assert not is_locked(cache)


def test_a_wait_has_an_end_that_says_who_is_waited_for(cache: Path) -> None:
    holder = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT)
    os.write(holder, b"pid 7 on elsewhere")
    fcntl.flock(holder, fcntl.LOCK_EX)
    try_out(str(cache))  # which is no reason to take another cache
    with pytest.raises(CompileLockHeld, match=rf"pid 7 on elsewhere has held {cache} for more than 0 s. End that proc"):
        get_lock()
    os.close(holder)  # as when it dies
    with lock_ctx():
        assert (cache / ".lock").read_text() == f"pid {os.getpid()} on {os.uname().nodename}"


def test_a_wait_in_a_queue_that_moves_has_no_end(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of those before us may take as long as the setting says: all of them together take longer."""
    holder = os.open(cache / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    n_steps, n_owners = 0, 5
    monkeypatch.setattr(sys.modules["theano"].config.compile, "timeout", 1.5)

    def step(_: float) -> None:
        nonlocal n_steps
        n_steps += 1
        os.utime(holder, ns=(n_steps, n_steps))  # as when the next one writes down who it is
        if n_steps == n_owners:
            os.close(holder)

    clock = SimpleNamespace(monotonic=lambda: n_steps, sleep=step)
    monkeypatch.setattr(compilelock, "time", clock)
    with lock_ctx():
        assert n_steps == n_owners


def test_what_a_full_disk_says_comes_through_and_nothing_stays_locked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with lock_ctx():
            assert is_locked(cache), "who holds it is for the reader only"
        patched.setattr(os, "open", full)
        with pytest.raises(OSError, match="No space left"):
            get_lock()
    assert not is_locked(cache)
