"""Tests of a moved directory or replaced lock: the run that held the lock adds no line, commits and removes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest

from shardpress.base.errors import DataError, TryAgain
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import locked
from tests.support.cases import each
from tests.support.helpers import refused
from tests.support.journals import NOW, OTHER, add, contents, index_of


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
