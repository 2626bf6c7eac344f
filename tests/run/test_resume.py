"""Tests of earlier results: the latest usable one is reused, and damaged ones are removed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpress.output.lock import locked
from shardpress.output.records import Record
from shardpress.run.resume import EarlierResults
from tests.support.interruptions import FullDisk
from tests.support.logged import n_recomputed
from tests.support.standin import Workspace

COMPLAINT = "checkpoint %s; the one before it is taken"


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[EarlierResults]:
    """Return the earlier results of an output directory with three checkpoints."""
    with locked(tmp_path / "out") as ledger:
        for step in (1, 2, 3):
            entry = ledger.write("stages/checkpoint", ".npz", b"step %d" % step)
            ledger.commit(Record(f"checkpoint-{step:012d}", 64 * "a", entry))
        yield EarlierResults(ledger, n_threads=2, compares_digests=True)


def checkpoints(earlier: EarlierResults) -> list[Record]:
    return earlier.ledger.records("checkpoint", 64 * "a")


def test_the_last_readable_result_is_used_and_later_ones_dropped(
    earlier: EarlierResults, caplog: pytest.LogCaptureFixture
) -> None:
    def read(record: Record) -> bytes:
        data = earlier.ledger.load(record)
        if data == b"step 3":
            raise ValueError("3: no such step")
        return data

    assert earlier.latest("checkpoint", 64 * "a", read, COMPLAINT) == b"step 2"
    assert COMPLAINT % "3: no such step" in caplog.text
    assert [int(record.key[-1]) for record in checkpoints(earlier)] == [1, 2]


def test_there_is_no_result_if_none_can_be_read(earlier: EarlierResults) -> None:
    def read(record: Record) -> bytes:
        raise ValueError(record.key)

    assert earlier.latest("checkpoint", 64 * "a", read, COMPLAINT) is None
    assert checkpoints(earlier) == []
    assert earlier.latest("model", 64 * "a", read, COMPLAINT) is None


def test_a_failure_of_the_system_drops_no_result(earlier: EarlierResults) -> None:
    def read(record: Record) -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):
        earlier.latest("checkpoint", 64 * "a", read, COMPLAINT)
    assert len(checkpoints(earlier)) == 3


def test_damaged_results_are_named_and_dropped_with_their_files(
    earlier: EarlierResults, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = checkpoints(earlier)
    files = [earlier.ledger.directory / record.entry.file for record in (first, second, third)]
    files[0].unlink()
    files[2].write_bytes(b"step 4")
    assert earlier.records("checkpoint", 64 * "a") == [second] == checkpoints(earlier)
    assert n_recomputed(caplog.text) == 2
    assert [file.exists() for file in files] == [False, True, False]


def test_a_plan_leaves_damaged_results_in_place(earlier: EarlierResults, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = checkpoints(earlier)
    (earlier.ledger.directory / third.entry.file).unlink()
    readonly = EarlierResults(earlier.ledger, n_threads=1, compares_digests=False, is_readonly=True)
    assert readonly.records("checkpoint", 64 * "a") == [first, second]
    readonly.drop(first)
    assert checkpoints(earlier) == [first, second, third]
    assert not caplog.records


def test_each_file_is_checked_once(earlier: EarlierResults) -> None:
    assert len(earlier.records("checkpoint", 64 * "a")) == 3
    (earlier.ledger.directory / checkpoints(earlier)[0].entry.file).write_bytes(b"step 9")
    assert len(earlier.records("checkpoint", 64 * "a")) == 3


def test_the_error_counts_reused_features(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All parts are committed, and the disk is full when their index is written, in the first and in the second run."""
    for _ in range(2):
        caplog.clear()
        assert workspace.run(out, disk=FullDisk("published", 1)) == 74
        assert re.search(r"\b([1-9]\d*) of \1 rows\b", caplog.text)
