"""Tests of group commits: frequent results share a record file, rare ones are committed at once, and none is lost."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpress.errors import WriteFailed
from shardpress.output.groupcommit import GroupCommit
from shardpress.output.ledger import Ledger
from shardpress.output.lock import locked
from shardpress.output.records import Record
from tests.support.faulty import RecordingDisk

NOW = "0" * 64


class Clock:
    """A clock that advances only when a test changes it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Slow(RecordingDisk):
    """Disk on which a commit takes 1/64 s: half to sync the names of results, half to sync the name of the record."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def sync_directory(self, path: Path) -> None:
        self._clock.now += 1 / 128


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with locked(tmp_path / "out", Slow(clock)) as found:
        yield found


def make_record(ledger: Ledger, i: int) -> Record:
    key = f"part-{i:06d}-000000000000"
    return Record(key, NOW, ledger.write(f"parts/{key}", ".h5", b"data"))


def n_committed(ledger: Ledger) -> int:
    """Return the number of committed parts that a later run finds."""
    return len(Ledger(ledger.directory, ledger.disk).records("part", NOW))


def n_files(ledger: Ledger) -> int:
    return len(os.listdir(ledger.directory / "commits"))


def test_slow_results_are_committed_at_once(ledger: Ledger, clock: Clock) -> None:
    with GroupCommit(ledger, clock.monotonic) as group:
        for i in range(5):
            group.add(make_record(ledger, i))
            assert n_committed(ledger) == i + 1
            clock.now += 0.2
    assert n_files(ledger) == 5


@pytest.mark.slow
def test_fast_results_share_a_record_file(ledger: Ledger, clock: Clock) -> None:
    start = clock.now
    commits = 0.0
    with GroupCommit(ledger, clock.monotonic) as group:
        for i in range(200):
            record = make_record(ledger, i)
            before = clock.now
            group.add(record)
            commits += clock.now - before
            # The first result is committed at once, later ones after at most ten times the duration of a commit.
            assert i + 1 - n_committed(ledger) <= 10
            clock.now += 1 / 64
    assert n_committed(ledger) == 200
    assert n_files(ledger) == 1 + 199 // 10 + 1
    assert commits <= (clock.now - start) / 10


def test_no_result_waits_longer_than_a_second(ledger: Ledger, clock: Clock) -> None:
    with GroupCommit(ledger, clock.monotonic) as group:
        record = make_record(ledger, 0)
        ledger.disk = VerySlow(clock)
        group.add(record)
        group.add(make_record(ledger, 1))
        clock.now += 1
        group.add(make_record(ledger, 2))
        assert n_committed(ledger) == 3


class VerySlow(Slow):
    """Disk on which a commit takes a minute."""

    def sync_directory(self, path: Path) -> None:
        self._clock.now += 30


def test_a_fast_result_after_a_slow_one_waits_for_the_next(ledger: Ledger, clock: Clock) -> None:
    with GroupCommit(ledger, clock.monotonic) as group:
        group.add(make_record(ledger, 0))
        group.add(make_record(ledger, 1))
        assert n_committed(ledger) == 1
        clock.now += 100
        group.add(make_record(ledger, 2))
        assert n_committed(ledger) == 3


def fail_after_three(ledger: Ledger, clock: Clock, error: BaseException) -> None:
    with GroupCommit(ledger, clock.monotonic) as group:
        for i in range(3):
            group.add(make_record(ledger, i))
        raise error


@pytest.mark.parametrize("error", [ValueError("a fault"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_waiting_results_are_committed_if_the_run_fails(ledger: Ledger, clock: Clock, error: BaseException) -> None:
    with pytest.raises(type(error)):
        fail_after_three(ledger, clock, error)
    assert n_committed(ledger) == 3


class Full(Slow):
    """Disk with space for only one record."""

    n_records = 0

    def create(self, path: Path) -> int:
        if path.parent.name == "commits":
            self.n_records += 1
            if self.n_records > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().create(path)


def test_a_failed_record_does_not_hide_an_earlier_error(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(tmp_path, Full(clock)) as ledger:
        with pytest.raises(ValueError, match="a fault"):
            fail_after_three(ledger, clock, ValueError("a fault"))
        assert os.strerror(errno.ENOSPC) in caplog.text
        assert n_committed(ledger) == 1


def add_three(ledger: Ledger, clock: Clock) -> None:
    with GroupCommit(ledger, clock.monotonic) as group:
        for i in range(3):
            clock.now += i == 2
            group.add(make_record(ledger, i))


def test_a_failed_record_is_an_error_and_not_repeated(tmp_path: Path, clock: Clock) -> None:
    """After a failed fsync the kernel may have dropped the data, although a second fsync succeeds."""
    disk = Full(clock)
    with locked(tmp_path, disk) as ledger:
        with pytest.raises(WriteFailed, match=os.strerror(errno.ENOSPC)):
            add_three(ledger, clock)
        assert disk.n_records == 2
        assert n_committed(ledger) == 1
