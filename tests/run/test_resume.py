"""Tests of earlier results: the latest usable one is reused, and damaged ones are removed."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardpress.output.files import unique_name
from shardpress.output.journal import Record
from shardpress.output.lock import locked
from shardpress.result import INDEX
from shardpress.run.resume import EarlierResults
from tests.support.faulty import RecordingDisk
from tests.support.logged import n_recomputed
from tests.support.standin import Workspace

COMPLAINT = "checkpoint %s; the one before it is taken"


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[EarlierResults]:
    """Return the earlier results of an output directory with three checkpoints."""
    with locked(tmp_path / "out") as journal:
        for step in (1, 2, 3):
            entry = journal.write(unique_name("work/checkpoint", ".npz"), b"step %d" % step)
            journal.add(Record(f"checkpoint-{step:012d}", 64 * "a", entry))
        yield EarlierResults(journal, n_threads=2, compares_digests=True)


def checkpoints(earlier: EarlierResults) -> list[Record]:
    return earlier.journal.records("checkpoint", 64 * "a")


def test_the_last_readable_result_is_used_and_later_ones_dropped(
    earlier: EarlierResults, caplog: pytest.LogCaptureFixture
) -> None:
    def read(record: Record) -> bytes:
        data = earlier.journal.load(record)
        if data == b"step 3":
            raise ValueError("3: no such step")
        return data

    assert earlier.latest("checkpoint", 64 * "a", read, COMPLAINT) == b"step 2"
    assert COMPLAINT % "3: no such step" in caplog.text
    assert [int(record.key[-1]) for record in checkpoints(earlier)] == [1, 2]


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
    files = [earlier.journal.directory / record.entry.file for record in (first, second, third)]
    files[0].unlink()
    files[2].write_bytes(b"step 4")
    assert earlier.records("checkpoint", 64 * "a") == [second] == checkpoints(earlier)
    assert n_recomputed(caplog.text) == 2
    assert [file.exists() for file in files] == [False, True, False]


def test_a_plan_leaves_damaged_results_in_place(earlier: EarlierResults, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = checkpoints(earlier)
    (earlier.journal.directory / third.entry.file).unlink()
    readonly = EarlierResults(earlier.journal, n_threads=1, compares_digests=False, is_readonly=True)
    assert readonly.records("checkpoint", 64 * "a") == [first, second]
    readonly.withdraw(first)
    assert checkpoints(earlier) == [first, second, third]
    assert not caplog.records


def test_each_file_is_checked_once(earlier: EarlierResults) -> None:
    assert len(earlier.records("checkpoint", 64 * "a")) == 3
    (earlier.journal.directory / checkpoints(earlier)[0].entry.file).write_bytes(b"step 9")
    assert len(earlier.records("checkpoint", 64 * "a")) == 3


class NoSpaceForTheIndex(RecordingDisk):
    """Disk that is full when the index is written, after all parts."""

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        if name == "create" and arguments[0].name.startswith(INDEX):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return do(*arguments)


def test_the_error_counts_reused_features(workspace: Workspace, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        caplog.clear()
        assert workspace.run(out, disk=NoSpaceForTheIndex()) == 74
        assert re.search(r"\b([1-9]\d*) of \1 rows\b", caplog.text)
