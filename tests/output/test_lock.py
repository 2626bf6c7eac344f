"""Tests of ownership and lock: new directories are marked, foreign ones refused; one run at a time holds the lock."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardpress.output.disk import Disk
from shardpress.output.lock import locked
from shardpress.sealed import FORMAT
from tests.support.faulty import BrokenDisk, RecordingDisk
from tests.support.helpers import refused, without_privileges
from tests.support.journals import HEX, KEY, contents, fill


def lock_and_release(directory: Path, disk: Disk | None = None) -> None:
    """Lock a directory and release it at once."""
    with locked(directory, disk):
        pass


# -- ownership ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "new/and/deep", "with space\nand größe"])
def test_a_new_directory_is_created_with_its_parents(tmp_path: Path, name: str) -> None:
    lock_and_release(tmp_path / name)
    assert sorted(os.listdir(tmp_path / name)) == [".shardpress", "parts", "work"]


def test_new_directories_are_synced_before_they_are_used(tmp_path: Path) -> None:
    recording = RecordingDisk()
    synced = [tmp_path]
    lock_and_release(tmp_path / "new" / "out", recording)
    created = []
    for name, path in recording.calls:
        if name == "make_directory":
            assert Path(str(path)).parent in synced
            created.append(path)
        elif name == "sync_directory":
            synced += [each for each in created if Path(str(each)).parent == path]
    assert set(created) == set(synced) - {tmp_path} > {tmp_path / "new", tmp_path / "new" / "out"}


def test_an_empty_or_aborted_output_directory_is_accepted(tmp_path: Path) -> None:
    fill(tmp_path, f".shardpress.{HEX}.writing")
    lock_and_release(tmp_path)
    with locked(tmp_path) as journal:
        journal.sweep()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("names", [["thesis.tex"], ["index.h5"], [f"parts/{KEY}-{HEX}.h5"], ["model.h5", "index.h5"]])
def test_a_directory_with_foreign_files_is_refused_and_unchanged(tmp_path: Path, names: list[str]) -> None:
    before = fill(tmp_path, *names)
    with refused(73, f"output={tmp_path}", "--output"):
        lock_and_release(tmp_path)
    assert contents(tmp_path) == before
    assert not (tmp_path / ".shardpress").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_an_output_that_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    with refused(73, f"output={tmp_path / name}", "--output"):
        lock_and_release(tmp_path / name)
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.process
@pytest.mark.parametrize("name", ["", "below"])
def test_a_directory_without_permission_is_refused(open_path: Path, name: str) -> None:
    folder = open_path / "closed"
    folder.mkdir(mode=0o555)
    exit_code, sentence = without_privileges(lambda: lock_and_release(folder / name))
    assert exit_code == 77, sentence
    assert f"output={folder / name}" in sentence
    assert "--output" in sentence


@pytest.mark.parametrize("name", ["make_directory", "create"])
def test_an_output_that_cannot_be_created_is_an_error(tmp_path: Path, name: str) -> None:
    codes = {errno.EROFS: 73, errno.ENOSPC: 73, errno.EIO: 73, errno.EACCES: 77, errno.EPERM: 77}
    for code, exit_code in codes.items():
        with refused(exit_code, f"output={tmp_path / 'out'}", os.strerror(code), "--output"):
            lock_and_release(tmp_path / "out", BrokenDisk(code, name))


@pytest.mark.parametrize("name", ["create", "sync_directory"])
def test_too_many_open_files_are_a_system_limit(tmp_path: Path, name: str) -> None:
    with refused(71, str(tmp_path), os.strerror(errno.EMFILE), "ulimit -n"):
        lock_and_release(tmp_path / "out", BrokenDisk(errno.EMFILE, name))


def test_a_directory_that_cannot_be_synced_is_refused(tmp_path: Path) -> None:
    with refused(73, os.strerror(errno.EIO)):
        lock_and_release(tmp_path, BrokenDisk(errno.EIO, "sync_directory"))


@pytest.mark.process
def test_an_unreadable_parent_directory_is_accepted(open_path: Path) -> None:
    (open_path / "closed").mkdir()
    (open_path / "closed").chmod(0o333)
    assert without_privileges(lambda: lock_and_release(open_path / "closed" / "out")) == (0, "")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"another-format/1"])
def test_a_damaged_marker_still_marks_the_directory_as_ours(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, "notes.txt")
    (tmp_path / ".shardpress").write_bytes(content)
    lock_and_release(tmp_path)


@pytest.mark.parametrize("is_later", [True, False], ids=["later", "earlier"])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_directory_of_another_version_is_refused(tmp_path: Path, is_later: bool, restarts: bool) -> None:
    """Only the results of an earlier version can be discarded."""
    number = int(FORMAT.rpartition("/")[2])
    form = f"shardpress-output/{number + 1 if is_later else number - 1}"
    fill(tmp_path, "manifest.json")
    (tmp_path / ".shardpress").write_text(form)
    if restarts and not is_later:
        with locked(tmp_path, restarts=True) as journal:
            assert journal.base is None
        return
    with refused(76, str(tmp_path)), locked(tmp_path, restarts=restarts):
        pytest.fail("the directory was locked")
    assert contents(tmp_path) == {"manifest.json": b"manifest.json"}
    assert (tmp_path / ".shardpress").read_text() == form


# -- the lock ----------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_names_the_first(tmp_path: Path) -> None:
    who = (f"pid {os.getpid()}", platform.node(), time.strftime("%Y-"))
    with locked(tmp_path), refused(75, f"output={tmp_path}: ", *who):
        lock_and_release(tmp_path)
    lock_and_release(tmp_path)


def test_a_failed_run_releases_its_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    lock_and_release(tmp_path)


def test_a_run_that_cannot_start_releases_its_lock(tmp_path: Path) -> None:
    lock_and_release(tmp_path)
    (tmp_path / "parts").rmdir()
    with refused(73, os.strerror(errno.ENOSPC)):
        lock_and_release(tmp_path, BrokenDisk(errno.ENOSPC, "make_directory"))
    lock_and_release(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from shardpress.output.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.process
def test_a_killed_run_releases_its_lock(tmp_path: Path) -> None:
    """The kernel releases the lock, so no file has to be removed after a crash."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with refused(75, f"pid {holder.pid} "):
            lock_and_release(tmp_path)
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    lock_and_release(tmp_path)


@pytest.mark.process
def test_a_child_that_outlives_a_run_does_not_keep_its_lock(tmp_path: Path) -> None:
    """A child inherits every descriptor that can be inherited."""
    with locked(tmp_path):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        lock_and_release(tmp_path)
    finally:
        child.communicate()


@pytest.mark.process
def test_only_one_of_many_runs_gets_the_directory(tmp_path: Path) -> None:
    lock_and_release(tmp_path)
    descriptor = os.open(tmp_path / "work/lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                with locked(tmp_path):
                    os._exit(0)
            except BaseException as error:
                os._exit(getattr(error, "exit_code", 1))
        children.append(child)
    assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} == {75}
    os.close(descriptor)


@pytest.mark.parametrize("is_before", [True, False], ids=["before the listing", "after the listing"])
def test_a_run_that_starts_at_the_same_moment_is_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    def listing(directory: Path) -> list[str]:
        monkeypatch.undo()
        names = os.listdir(directory)
        lock_and_release(tmp_path)
        return os.listdir(directory) if is_before else names

    monkeypatch.setattr(os, "listdir", listing)
    lock_and_release(tmp_path)


def test_sweeping_during_the_start_of_another_run_is_harmless(tmp_path: Path) -> None:
    class Late(RecordingDisk):
        """Disk on which another run locks the directory before this run's first rename."""

        def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
            if name == "replace":
                with locked(tmp_path) as journal:
                    journal.sweep()
            return do(*arguments)

    lock_and_release(tmp_path, Late())
    assert contents(tmp_path) == {}
    assert (tmp_path / ".shardpress").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with refused(75, f"output={tmp_path}: ", os.strerror(code)):
        lock_and_release(tmp_path)


@pytest.mark.parametrize("name", ["ftruncate", "pwrite"])
def test_a_full_disk_does_not_prevent_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Only the kernel's lock matters; the text in the file only informs users."""

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lock_and_release(tmp_path)
    monkeypatch.setattr(os, name, fail)
    with locked(tmp_path), refused(75, f"output={tmp_path}: "):
        lock_and_release(tmp_path)


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path, make: Callable[[Path, Path], None]) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    lock_and_release(tmp_path / "out")
    (tmp_path / "out/work/lock").unlink()
    make(victim, tmp_path / "out/work/lock")
    with refused(73, f"output={tmp_path / 'out'}", "work/lock", "--output"):
        lock_and_release(tmp_path / "out")
    assert victim.read_bytes() == b"precious"


def test_a_fifo_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    lock_and_release(tmp_path / "out")
    (tmp_path / "out/work/lock").unlink()
    os.mkfifo(tmp_path / "out/work/lock")
    with refused(73, f"output={tmp_path / 'out'}", "work/lock"):
        lock_and_release(tmp_path / "out")


@pytest.mark.parametrize("name", ["parts", "work"])
@pytest.mark.parametrize("target_exists", [True, False], ids=["elsewhere", "dangling"])
def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path, name: str, target_exists: bool) -> None:
    victim = tmp_path / "victim"
    if target_exists:
        fill(victim, f"{KEY}-{HEX}.h5")
    lock_and_release(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / name)
    (tmp_path / "out" / name).symlink_to(victim)
    with refused(73, f"output={tmp_path / 'out'}: ", name, "link"):
        lock_and_release(tmp_path / "out")
    assert victim.exists() == target_exists
    if target_exists:
        assert set(contents(victim)) == {f"{KEY}-{HEX}.h5"}


def test_the_output_itself_can_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "parts").symlink_to("large")
    lock_and_release(tmp_path / "parts")
    lock_and_release(tmp_path / "parts" / "below")
    assert (tmp_path / "large" / "below" / ".shardpress").exists()
