"""Tests of ownership and lock: new directories are marked, foreign ones refused; one run at a time holds the lock."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from shardpress.base.errors import DataError, TryAgain
from shardpress.hdf5.sealed import FORMAT
from shardpress.output.disk import Disk
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import locked
from tests.support.cases import each
from tests.support.faulty import RecordingDisk
from tests.support.helpers import refused, without_privileges
from tests.support.journals import HEX, KEY, NOW, OTHER, add, contents, fill, index_of


def lock_and_release(directory: Path, disk: Disk | None = None) -> None:
    """Lock a directory and release it at once."""
    with locked(directory, disk):
        pass


# -- ownership ---------------------------------------------------------------------------------------------------


def test_an_empty_or_aborted_output_directory_is_accepted(tmp_path: Path) -> None:
    fill(tmp_path, f".shardpress.{HEX}.writing")
    lock_and_release(tmp_path)
    with locked(tmp_path) as journal:
        journal.sweep()
    assert contents(tmp_path) == {}


@each("name", ["thesis.tex", f"parts/{KEY}-{HEX}.h5", f".shardpress.{HEX}.writing.bak"])
def test_a_directory_with_foreign_files_is_refused_and_unchanged(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name.replace("/", "-")
    before = fill(folder, name)
    with refused(73, f"output={folder}", "--output"):
        lock_and_release(folder)
    with refused(73, f"output={folder / name}", "--output"):
        lock_and_release(folder / name)  # which is a file
    assert contents(folder) == before
    assert not (folder / ".shardpress").exists()


@pytest.mark.process
def test_an_unreadable_parent_directory_is_accepted(open_path: Path) -> None:
    (open_path / "closed").mkdir()
    (open_path / "closed").chmod(0o333)
    assert without_privileges(lambda: lock_and_release(open_path / "closed" / "out")) == (0, "")


@pytest.mark.parametrize("content", [b"", b"\xff", b"another-format/1"])
def test_a_damaged_marker_still_marks_the_directory_as_ours(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, "notes.txt")
    (tmp_path / ".shardpress").write_bytes(content)
    lock_and_release(tmp_path)


def test_a_directory_of_another_version_is_refused(tmp_path: Path) -> None:
    number = int(FORMAT.rpartition("/")[2])
    for other in (number - 1, number + 1):
        (tmp_path / ".shardpress").write_text(f"shardpress-output/{other}")
        with refused(76, str(tmp_path)), locked(tmp_path, restarts=True):
            pytest.fail("the directory was locked")
    assert os.listdir(tmp_path) == [".shardpress"]


# -- the lock ----------------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path):
            with refused(75, f"output={tmp_path}: ", f"pid {os.getpid()}", platform.node()):
                lock_and_release(tmp_path)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
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


def test_a_run_that_starts_at_the_same_moment_is_not_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listing(directory: Path) -> list[str]:
        """Let another run mark the directory before it is listed."""
        monkeypatch.undo()
        lock_and_release(tmp_path)
        return os.listdir(directory)

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


def test_a_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    lock_and_release(tmp_path / "out")
    (tmp_path / "out/work/lock").unlink()
    (tmp_path / "out/work/lock").symlink_to(victim)
    with refused(73, f"output={tmp_path / 'out'}", "work/lock", "--output"):
        lock_and_release(tmp_path / "out")
    assert victim.read_bytes() == b"precious"


def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    before = fill(victim, f"{KEY}-{HEX}.h5")
    lock_and_release(tmp_path / "out")
    shutil.rmtree(tmp_path / "out/parts")
    (tmp_path / "out/parts").symlink_to(victim)
    with refused(73, f"output={tmp_path / 'out'}: ", "parts", "link"):
        lock_and_release(tmp_path / "out")
    assert contents(victim) == before


# -- a directory that is moved, or whose lock is replaced ------------------------------------------------------------


def finish(journal: Journal, data: bytes) -> None:
    """Write a part and publish it."""
    journal.commit(index_of(add(journal, OTHER, data=data)))
    journal.sweep()


def move(directory: Path) -> None:
    """Move a directory away, and finish another run in its place."""
    directory.rename(directory.with_name("moved"))
    with locked(directory) as other:
        finish(other, b"of the other run")


def remove_work(directory: Path) -> None:
    shutil.rmtree(directory / "work")


CHANGES: dict[str, Callable[[Journal, Record], object]] = {
    "add": lambda journal, record: journal.add(Record("scan", NOW, record.entry)),
    "commit": lambda journal, record: journal.commit(index_of(record)),
    "sweep": lambda journal, record: journal.sweep(),
}


@each("change, lose", product(CHANGES, [move, remove_work]))
def test_a_run_that_lost_its_directory_changes_nothing(
    tmp_path: Path, change: str, lose: Callable[[Path], None]
) -> None:
    directory = tmp_path / f"{change} {lose.__name__}" / "out"
    with locked(directory) as journal:
        record = add(journal)
        lose(directory)
        before = contents(tmp_path)
        with refused(75, str(directory), "work/lock"):
            CHANGES[change](journal, record)
    assert contents(tmp_path) == before


def test_an_error_in_a_lost_directory_is_reported_as_the_loss(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "out"):
            (tmp_path / "out").rename(tmp_path / "moved")
            error = DataError("a part is missing")
            error.add_note("progress of the run")
            raise error

    with pytest.raises(TryAgain) as caught:
        fail()
    assert caught.value.__notes__ == ["progress of the run"]


def test_a_lock_that_is_replaced_while_locking_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path):
        pass
    opened = os.open

    def open_and_replace(path: Path, *arguments: int, **more: int) -> int:
        descriptor = opened(path, *arguments, **more)
        if Path(path).name == "lock":
            monkeypatch.undo()
            (tmp_path / "work/lock").unlink()
            (tmp_path / "work/lock").write_bytes(b"of another run")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    with refused(75, "work/lock"), locked(tmp_path):
        pytest.fail("the directory was locked")
    assert (tmp_path / "work/lock").read_bytes() == b"of another run"
