"""What an earlier run has left: of several results the last that can be used is taken, and no damaged one stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.output.lock import locked
from pipeline.output.records import Record
from pipeline.run.earlier import intact, latest
from pipeline.settings.config import Config
from tests.support.logged import n_recomputed

COMPLAINT = "checkpoint %s; the one before it is taken"


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Any]:
    """As much of a job as these look at, with three checkpoints in its output directory."""
    with locked(tmp_path / "out") as ledger:
        for step in (1, 2, 3):
            entry = ledger.write("stages/checkpoint", ".npz", b"step %d" % step)
            ledger.commit(Record(f"checkpoint-{step:012d}", 64 * "a", entry))
        yield SimpleNamespace(ledger=ledger, config=Config.of(verify="digests"), budget=SimpleNamespace(n_threads=2))


def checkpoints(job: Any) -> list[Record]:
    return job.ledger.records("checkpoint", 64 * "a")


def test_the_last_readable_result_is_used_and_later_ones_dropped(job: Any, caplog: pytest.LogCaptureFixture) -> None:
    def read(record: Record) -> bytes:
        data = job.ledger.load(record)
        if data == b"step 3":
            raise ValueError("3: no such step")
        return data

    assert latest(job, "checkpoint", 64 * "a", read, COMPLAINT) == b"step 2"
    assert COMPLAINT % "3: no such step" in caplog.text
    assert [int(record.key[-1]) for record in checkpoints(job)] == [1, 2]


def test_there_is_no_result_if_none_can_be_read(job: Any) -> None:
    def read(record: Record) -> bytes:
        raise ValueError(record.key)

    assert latest(job, "checkpoint", 64 * "a", read, COMPLAINT) is None
    assert checkpoints(job) == []
    assert latest(job, "model", 64 * "a", read, COMPLAINT) is None


def test_a_failure_of_the_system_drops_no_result(job: Any) -> None:
    def read(record: Record) -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):
        latest(job, "checkpoint", 64 * "a", read, COMPLAINT)
    assert len(checkpoints(job)) == 3


def test_damaged_results_are_named_and_dropped_with_their_files(job: Any, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = checkpoints(job)
    files = [job.ledger.directory / record.entry.file for record in (first, second, third)]
    files[0].unlink()
    files[2].write_bytes(b"step 4")
    assert intact(job, [first, second, third]) == [second] == checkpoints(job)
    assert n_recomputed(caplog.text) == 2
    assert [file.exists() for file in files] == [False, True, False]
