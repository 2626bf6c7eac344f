"""Whose an output directory is: a new one is made ours, others' are left alone, and one run at a time holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats import seal
from pipeline.output import lock as module
from pipeline.output.disk import Disk
from pipeline.output.ledger import Ledger
from pipeline.output.lock import locked
from pipeline.output.records import MANIFEST
from tests.support.faulty import Broken, Watched
from tests.support.helpers import as_nobody, refused
from tests.support.ledgers import (
    HEX,
    KEY,
    NOW,
    contents,
    fill,
    reopened,
)


def lock_and_let_go(directory: Path, disk: Disk | None = None) -> None:
    """Lock a directory and let go of it at once."""
    with locked(directory, disk):
        pass


# -- whose directory it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "new/and/deep", "with space\nand größe"])
def test_a_new_directory_is_made_with_its_parents(tmp_path: Path, name: str) -> None:
    lock_and_let_go(tmp_path / name)
    assert sorted(os.listdir(tmp_path / name)) == [".lock", ".shardpress", "commits", "parts", "stages"]


def test_p8_every_new_directory_is_on_the_disk_before_anything_is_put_into_it(tmp_path: Path) -> None:
    watched, synced = Watched(), [tmp_path]
    lock_and_let_go(tmp_path / "new" / "out", watched)
    waiting = []
    for name, path in watched.calls:
        if name == "make_directory":
            assert Path(str(path)).parent in synced
            waiting.append(path)
        elif name == "sync_directory":
            synced += [each for each in waiting if Path(str(each)).parent == path]
    assert set(waiting) == set(synced) - {tmp_path} > {tmp_path / "new", tmp_path / "new" / "out"}


def test_an_empty_directory_is_taken_and_so_is_one_where_a_run_died_at_once(tmp_path: Path) -> None:
    fill(tmp_path, f".shardpress.{HEX}.writing")
    lock_and_let_go(tmp_path)
    with locked(tmp_path) as ledger:
        ledger.sweep()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("names", [["thesis.tex"], [MANIFEST], [f"parts/{KEY}-{HEX}.h5"], ["model.h5", "index.h5"]])
def test_d13_a_directory_with_files_of_others_is_refused_and_left_alone(tmp_path: Path, names: list[str]) -> None:
    there = fill(tmp_path, *names)
    with refused(73, f"output={tmp_path}", "files that are not of shardpress", "--output"):
        lock_and_let_go(tmp_path)
    assert contents(tmp_path) == there
    assert not (tmp_path / ".shardpress").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_what_cannot_be_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    with refused(73, f"output={tmp_path / name}", "--output"):
        lock_and_let_go(tmp_path / name)
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.process
@pytest.mark.parametrize("name", ["", "below"])
def test_d6_a_directory_that_may_not_be_written_is_refused(open_path: Path, name: str) -> None:
    folder = open_path / "closed"
    folder.mkdir(mode=0o555)
    exit_code, sentence = as_nobody(lambda: lock_and_let_go(folder / name))
    assert exit_code == 77, sentence
    assert f"output={folder / name}" in sentence
    assert "Choose an --output that you may write to" in sentence


@pytest.mark.parametrize("name", ["make_directory", "create"])
def test_d6_what_cannot_be_made_is_an_error_before_the_work_starts(tmp_path: Path, name: str) -> None:
    codes = {errno.EROFS: 73, errno.ENOSPC: 73, errno.EIO: 73, errno.EACCES: 77, errno.EPERM: 77}
    for code, exit_code in codes.items():
        with refused(exit_code, f"output={tmp_path / 'out'}", os.strerror(code), "--output"):
            lock_and_let_go(tmp_path / "out", Broken(code, name))


@pytest.mark.parametrize("name", ["create", "sync_directory"])
def test_d14_too_many_open_files_say_nothing_about_the_directory(tmp_path: Path, name: str) -> None:
    with refused(71, str(tmp_path), "Too many open files", "ulimit -n"):
        lock_and_let_go(tmp_path / "out", Broken(errno.EMFILE, name))


def test_p8_a_folder_whose_name_is_not_on_the_disk_is_no_place_for_records(tmp_path: Path) -> None:
    with refused(73, "Input/output error"):
        lock_and_let_go(tmp_path, Broken(errno.EIO, "sync_directory"))


@pytest.mark.process
def test_a_parent_that_cannot_be_read_cannot_be_synced_and_that_is_no_error(open_path: Path) -> None:
    (open_path / "closed").mkdir()
    (open_path / "closed").chmod(0o333)
    assert as_nobody(lambda: lock_and_let_go(open_path / "closed" / "out")) == (0, "")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", seal("shardpress-output/0", {})])
def test_d12_a_damaged_marker_still_says_whose_directory_it_is(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, "notes.txt")
    (tmp_path / ".shardpress").write_bytes(content)
    lock_and_let_go(tmp_path)


@pytest.mark.parametrize("name", [".shardpress", MANIFEST, f"commits/part-{NOW[:32]}.json"])
def test_d12_what_a_later_version_wrote_is_refused_and_left_alone(ledger: Ledger, name: str) -> None:
    form = "shardpress-commits/2" if name.startswith("commits") else "shardpress-output/2"
    (ledger.directory / name).write_bytes(seal(form, {"brand": "new"}))
    before = contents(ledger.directory)
    with refused(76, str(ledger.directory), "later version", "Upgrade"):
        module._mark(ledger.directory, ledger.disk)
        reopened(ledger).sweep()
    assert contents(ledger.directory) == before


# -- the lock ----------------------------------------------------------------------------------------------------


def test_c1_a_second_run_is_told_who_is_at_work(tmp_path: Path) -> None:
    who = f"pid {os.getpid()} on {platform.node()} since {time.strftime('%Y')}-"
    with locked(tmp_path), refused(75, f"output={tmp_path}: another run is at work there", who, "same command again"):
        lock_and_let_go(tmp_path)
    lock_and_let_go(tmp_path)


def test_c1_a_run_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    lock_and_let_go(tmp_path)


def test_c1_a_run_that_cannot_even_begin_lets_go(tmp_path: Path) -> None:
    lock_and_let_go(tmp_path)
    (tmp_path / "commits").rmdir()
    with refused(73, "No space left"):
        lock_and_let_go(tmp_path, Broken(errno.ENOSPC, "make_directory"))
    lock_and_let_go(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from pipeline.output.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.process
def test_c2_a_killed_run_leaves_no_lock_behind(tmp_path: Path) -> None:
    """The kernel frees it: nobody has to remove a file after a crash."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with refused(75, f"pid {holder.pid} on "):
            lock_and_let_go(tmp_path)
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    lock_and_let_go(tmp_path)


@pytest.mark.process
def test_a_child_that_outlives_a_run_does_not_keep_its_lock(tmp_path: Path) -> None:
    """It inherits every descriptor that may be inherited."""
    with locked(tmp_path):
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        lock_and_let_go(tmp_path)
    finally:
        child.communicate()


@pytest.mark.process
def test_c1_of_many_runs_one_gets_the_directory(tmp_path: Path) -> None:
    lock_and_let_go(tmp_path)
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
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


@pytest.mark.parametrize("is_before", [True, False], ids=["before it looks", "after it has looked"])
def test_c1_a_run_that_begins_at_the_same_moment_is_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_before: bool
) -> None:
    def listing(directory: Path) -> list[str]:
        monkeypatch.undo()
        names = os.listdir(directory)
        lock_and_let_go(tmp_path)
        return os.listdir(directory) if is_before else names

    monkeypatch.setattr(os, "listdir", listing)
    lock_and_let_go(tmp_path)


def test_c1_a_run_that_sweeps_away_what_another_was_about_to_name_leaves_it_a_sign(tmp_path: Path) -> None:
    class Late(Watched):
        """The other run comes between when it gives its first name."""

        def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
            if name == "replace":
                with locked(tmp_path) as ledger:
                    ledger.sweep()
            return do(*arguments)

    lock_and_let_go(tmp_path, Late())
    assert contents(tmp_path) == {}
    assert (tmp_path / ".shardpress").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_c3_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with refused(75, "cannot be locked", os.strerror(code), "knows locks"):
        lock_and_let_go(tmp_path)


@pytest.mark.parametrize("name", ["ftruncate", "pwrite"])
def test_d2_a_full_disk_does_not_keep_anybody_from_looking_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only the kernel's lock decides; the words in the file are for people."""

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lock_and_let_go(tmp_path)
    monkeypatch.setattr(os, name, fail)
    with locked(tmp_path), refused(75, "another run is at work"):
        lock_and_let_go(tmp_path)


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_s13_a_link_in_the_locks_place_is_refused_and_its_target_stays(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    lock_and_let_go(tmp_path / "out")
    (tmp_path / "out" / ".lock").unlink()
    make(victim, tmp_path / "out" / ".lock")
    with refused(73, f"output={tmp_path / 'out'}", ".lock", "Choose another --output"):
        lock_and_let_go(tmp_path / "out")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["parts", "stages", "commits"])
@pytest.mark.parametrize("is_there", [True, False], ids=["elsewhere", "dangling"])
def test_s13_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, is_there: bool) -> None:
    victim = tmp_path / "victim"
    if is_there:
        fill(victim, f"{KEY}-{HEX}.h5")
    lock_and_let_go(tmp_path / "out")
    (tmp_path / "out" / name).rmdir()
    (tmp_path / "out" / name).symlink_to(victim)
    with refused(73, f"output={tmp_path / 'out'}: its {name} is a link, expected a directory"):
        lock_and_let_go(tmp_path / "out")
    assert victim.exists() == is_there
    if is_there:
        assert set(contents(victim)) == {f"{KEY}-{HEX}.h5"}


def test_s13_the_output_itself_may_be_a_link_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "parts").symlink_to("large")
    lock_and_let_go(tmp_path / "parts")
    lock_and_let_go(tmp_path / "parts" / "below")
    assert (tmp_path / "large" / "below" / ".shardpress").exists()
