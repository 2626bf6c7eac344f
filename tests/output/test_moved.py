"""Tests of a moved directory or replaced lock: the run that held the lock makes no more changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from shardpress.errors import DataError, TryAgain
from shardpress.output.disk import Disk, GuardedDisk, publish
from shardpress.output.ledger import Ledger
from shardpress.output.lock import locked
from shardpress.output.records import Record, read_manifest
from tests.support.helpers import refused
from tests.support.ledgers import KEY, NOW, OTHER, commit, contents


def finish(ledger: Ledger, data: bytes) -> None:
    """Commit a part and publish it."""
    record = commit(ledger, data=data)
    publication = ledger.publication()
    entry = publication.write("model.h5", data)
    manifest = {"parts": [vars(record.entry)], "files": [vars(entry)]}
    ledger.finish({}, manifest, publication)
    ledger.sweep(NOW)


def move(directory: Path) -> None:
    """Move a directory away, and finish another run in its place."""
    directory.rename(directory.with_name("moved"))
    with locked(directory) as other:
        finish(other, b"of the other run")


def move_only(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def replace_lock(directory: Path) -> None:
    """Remove the lock, and finish another run in the same directory."""
    (directory / ".lock").unlink()
    with locked(directory) as other:
        other.forget()
        finish(other, b"of the other run")


CHANGES: dict[str, Callable[[Ledger, Record], object]] = {
    "write": lambda ledger, record: ledger.write(f"parts/{KEY}", ".h5", b"late"),
    "commit": lambda ledger, record: ledger.commit(Record(OTHER, NOW, record.entry)),
    "drop": lambda ledger, record: ledger.drop(record),
    "finish": lambda ledger, record: finish(ledger, b"late"),
    "publish": lambda ledger, record: ledger.finish({}, {"parts": [], "files": []}),
    "forget": lambda ledger, record: ledger.forget(),
    "request": lambda ledger, record: ledger.set_request({"epochs": 3}),
    "check": lambda ledger, record: ledger.check(),
}


@pytest.mark.parametrize("lose", [move, move_only, replace_lock])
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_lost_its_directory_changes_nothing(
    tmp_path: Path, change: str, lose: Callable[[Path], None]
) -> None:
    directory = tmp_path / "out"
    with locked(directory) as ledger:
        record = commit(ledger)
        lose(directory)
        before = contents(tmp_path)
        with refused(75, str(directory), ".lock"):
            CHANGES[change](ledger, record)
    assert contents(tmp_path) == before


def test_a_moved_run_keeps_the_results_of_the_other_run(tmp_path: Path) -> None:
    """This sequence once failed: both runs finished, and the first one removed the parts of the second."""
    directory = tmp_path / "out"
    with locked(directory) as first:
        move(directory)
        with pytest.raises(TryAgain):
            finish(first, b"of the first run")
    (part,) = read_manifest(directory)["parts"]
    assert (directory / part["file"]).read_bytes() == b"of the other run"
    assert (directory / "model.h5").read_bytes() == b"of the other run"


def test_an_error_in_a_lost_directory_is_reported_as_the_loss(tmp_path: Path) -> None:
    directory = tmp_path / "out"
    with refused(75, ".lock"), locked(directory):
        move(directory)
        error = DataError("a part is missing")
        error.add_note("progress of the run")
        raise error


def test_reporting_the_loss_keeps_notes_of_the_error(tmp_path: Path) -> None:
    def run() -> None:
        with locked(tmp_path / "out"):
            move_only(tmp_path / "out")
            error = DataError("a part is missing")
            error.add_note("progress of the run")
            raise error

    with pytest.raises(TryAgain) as caught:
        run()
    assert caught.value.__notes__ == ["progress of the run"]


def test_a_lock_that_is_replaced_while_locking_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path):
        pass
    opened = os.open

    def open_and_replace(path: Path, *arguments: int, **more: int) -> int:
        descriptor = opened(path, *arguments, **more)
        if Path(path).name == ".lock":
            monkeypatch.undo()
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").write_bytes(b"of another run")
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    with refused(75, ".lock"), locked(tmp_path):
        pytest.fail("the directory was locked")
    assert (tmp_path / ".lock").read_bytes() == b"of another run"


def test_a_directory_that_moves_after_the_check_is_detected(tmp_path: Path) -> None:
    """The call fails because the directory does not exist, which is not a fault of the disk."""
    folder = tmp_path / "parts"
    folder.mkdir()

    class Moving(Disk):
        def replace(self, source: Path, target: Path) -> None:
            folder.rename(tmp_path / "moved")
            super().replace(source, target)

    def check() -> None:
        if not folder.exists():
            raise TryAgain("moved")

    with refused(75, "moved"):
        publish(GuardedDisk(Moving(), check), folder / "part.h5", b"data")
