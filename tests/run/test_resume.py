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

    def fail(record: Record) -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):  # a failure of the system drops no result
        earlier.latest("checkpoint", 64 * "a", fail, COMPLAINT)
    assert len(checkpoints(earlier)) == 3
    assert earlier.latest("checkpoint", 64 * "a", read, COMPLAINT) == b"step 2"
    assert COMPLAINT % "3: no such step" in caplog.text
    assert [int(record.key[-1]) for record in checkpoints(earlier)] == [1, 2]


def test_damaged_results_are_named_and_dropped_with_their_files(
    earlier: EarlierResults, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = checkpoints(earlier)
    files = [earlier.journal.directory / record.entry.file for record in (first, second, third)]
    files[0].unlink()
    files[2].write_bytes(b"step 4")
    planned = EarlierResults(earlier.journal, n_threads=1, compares_digests=True, is_readonly=True)
    assert planned.records("checkpoint", 64 * "a") == [second]
    assert checkpoints(earlier) == [first, second, third], "a plan leaves them in place"
    assert not caplog.records
    assert earlier.records("checkpoint", 64 * "a") == [second] == checkpoints(earlier)
    assert n_recomputed(caplog.text) == 2
    assert [file.exists() for file in files] == [False, True, False]
    files[1].write_bytes(b"step 9")
    assert earlier.records("checkpoint", 64 * "a") == [second], "each file is checked once"


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
