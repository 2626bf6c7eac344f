"""Tests of the journal: results that it names are found again, and files of users are never changed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardpress.base.errors import ReadFailed, ShardpressError
from shardpress.base.formats import digest
from shardpress.output.folder import fault_of, files_inside
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import locked
from shardpress.result.finished import Result
from shardpress.result.records import Entry
from tests.support.cases import case, sample
from tests.support.faulty import FailingDisk, RecordingDisk, ShortWriteDisk
from tests.support.helpers import refused
from tests.support.interruptions import flip
from tests.support.journals import (
    BEFORE,
    HEX,
    KEY,
    KEYS,
    NOW,
    OTHER,
    REQUEST,
    add,
    contents,
    fill,
    index_of,
    named,
    reopen,
    written,
)

# Files of a user in every folder, with names similar to the names of results.
FOREIGN = [
    "notes.txt",
    f"novel.h5.{HEX}.writing",
    "generation-one.h5",
    f"parts/{KEY}.h5",
    f"parts/old-{KEY}-{HEX}.h5",
    f"parts/model-{HEX}.h5",
    f"work/models-{HEX}.h5",
    f"more/{KEY}-{HEX}.h5",
    f"parts/more/{KEY}-{HEX}.h5",
]
DIRECTORIES = [f"work/scan-{HEX[::-1]}.npz", f"index.h5.{HEX[::-1]}.writing"]
UNREFERENCED = [
    f"parts/{KEY}-{HEX}.h5",
    f"work/scan-{HEX}.npz",
    f"work/checkpoint-{HEX}.npz",
    f"work/model-{HEX}.h5",
    "work/model-last-good.h5",
    "generation-1.h5",
]
FIXED = [".shardpress", "report.html", "index.h5", "bad_rows.jsonl", "work/journal.jsonl"]
HALF_WRITTEN = [f"{name}.{HEX}.writing" for name in (*UNREFERENCED, *FIXED)]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with locked(tmp_path / "out") as found:
        yield found


def journal_file(journal: Journal) -> Path:
    return journal.directory / "work/journal.jsonl"


# -- results -----------------------------------------------------------------------------------------------------


def test_records_are_selected_by_kind_and_fingerprint_in_order(journal: Journal) -> None:
    keys = [f"part-{shard:06d}-{row:012d}" for shard in (0, 2, 10) for row in (0, 9, 10)]
    shuffled = random.Random(0).sample(keys, len(keys))
    for key in [*shuffled, "checkpoint-000000000010", "checkpoint-000000000009"]:
        add(journal, key)
    add(journal, KEY, BEFORE)
    scan = add(journal, "scan", data=b"of the scan")
    for found in (journal, reopen(journal)):
        assert found.records("scan", NOW) == [scan]
        assert found.load(scan) == b"of the scan"
        assert [record.part.file.split("/")[1][: len(KEY)] for record in found.parts(NOW)] == keys
        assert [record.key[-3:] for record in found.records("checkpoint", NOW)] == ["009", "010"]
        assert [record.fingerprint for record in found.parts(BEFORE)] == [BEFORE]
        assert found.records("scan", BEFORE) == []
        assert len(found.parts()) == len(keys) + 1


# -- the order of changes ----------------------------------------------------------------------------------------


def test_lines_that_do_not_wait_are_synced_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    recording = RecordingDisk()
    with locked(tmp_path, recording):
        journal = Journal(tmp_path, recording, clock=lambda: now[0])
        journal.set_request(REQUEST)
        n_syncs = []
        for i, seconds in enumerate([0.9, 1.1, 1.2, 2.0, 2.2]):
            now[0] = seconds
            record = written(journal, KEYS[0], made_from=str(i))
            recording.calls.clear()
            journal.add(record, waits=False)
            n_syncs.append(recording.names.count("sync"))
    assert n_syncs == [0, 1, 0, 0, 1]


def test_a_result_is_withdrawn_durably_before_its_file_is_removed(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as journal:
        records = [add(journal, key) for key in KEYS]
        recording.calls.clear()
        journal.withdraw(records[0], records[3])
        names = recording.names
        assert names.index("sync") < names.index("remove")
        again = add(journal, KEYS[0], data=b"new")
        assert reopen(journal).parts(NOW) == [again, *(records[i] for i in (1, 2, 4))]


def test_a_journal_is_rewritten_after_a_failed_change(tmp_path: Path) -> None:
    """After a failed call, the contents of the file are unknown. A short write leaves a part of a line."""
    faults = [ShortWriteDisk(0, errno.EIO), *(FailingDisk(number, errno.EIO) for number in range(5))]
    for number, fault in enumerate(faults):
        with case(number), locked(tmp_path / str(number)) as journal:
            first = add(journal, KEYS[0])
            second = written(journal, KEYS[1])
            good = journal.disk
            journal.disk = fault
            with refused(74, os.strerror(errno.EIO)):
                journal.add(second)
            assert reopen(journal).parts()[:1] == [first]
            journal.disk = good
            third = add(journal, KEYS[2])
            assert reopen(journal).parts() == [first, second, third]


# -- damage ------------------------------------------------------------------------------------------------------


def test_a_torn_or_damaged_line_ends_the_journal(journal: Journal) -> None:
    """Later lines are not trusted, and the next change removes them."""
    records = [add(journal, key) for key in KEYS]
    data = journal_file(journal).read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]  # of the lines; the first one is no record
    places = sample(range(ends[0], len(data)), 30)
    for place in (*places, *ends[:-1], len(data) - 1):
        n_valid = sum(end <= place for end in ends) - 1
        damaged = {
            "torn": data[:place],
            "zeros": data[:place] + bytes(300),
            "flipped": data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
            "not ours": data[:place] + b"x\n" + data[place:],
        }
        for kind, content in damaged.items():
            journal_file(journal).write_bytes(content)
            with case(kind, place):
                assert reopen(journal).parts() == records[:n_valid]
    found = reopen(journal)
    found.set_request(REQUEST)
    again = reopen(journal)
    assert (again.parts(), again.request) == (found.parts(), REQUEST)


def test_a_forged_record_is_ignored(journal: Journal) -> None:
    """The files of withdrawn records are removed, so a record must not name any other file."""
    good = add(journal)
    data = journal_file(journal).read_bytes()
    entry = {"file": f"work/scan-{HEX}.npz", "n_bytes": 1, "blake3": HEX}
    record = {"type": "result", "key": "scan", "fingerprint": NOW, "entry": entry}
    changes: list[dict[str, object]] = [{}, {"key": 3}, {"type": "unknown"}]
    changes += [{"entry": {**entry, "file": file}} for file in ("index.h5", "../victim", f"/parts/{KEY}-{HEX}.h5")]
    for change in changes:
        text = json.dumps({**record, **change}).encode()
        line = digest([text])[:32].encode() + b" " + text + b"\n"
        journal_file(journal).write_bytes(data + line)
        with case(change):
            found = reopen(journal)
            assert (found.parts(), len(found.records())) == ([good], 0 if change else 1)


def test_an_error_of_the_system_does_not_count_as_damage(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a sweep would remove the results of an unfinished run."""
    record = add(journal, "scan")
    before = contents(journal.directory)

    def fail(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", fail)
        for read in (lambda: reopen(journal).sweep(), lambda: journal.load(record)):
            with pytest.raises(ShardpressError):
                read()
        context.setattr(os, "open", fail)
        with pytest.raises(ReadFailed):
            fault_of(journal.directory, record.entry)
    assert contents(journal.directory) == before
    assert reopen(journal).records() == [record]


def turn_into(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def turn(path: Path) -> None:
        path.rename(path.with_suffix(".moved"))
        make(path)

    return turn


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "flipped": flip,
    "symlink": turn_into(lambda path: path.symlink_to(path.with_suffix(".moved"))),
    "fifo": turn_into(os.mkfifo),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_has_a_fault_and_is_not_loaded(journal: Journal, kind: str) -> None:
    good = add(journal, OTHER)
    bad = add(journal)
    DAMAGE[kind](journal.directory / bad.entry.file)
    assert fault_of(journal.directory, good.entry) is None
    assert str(journal.directory / bad.entry.file) in str(fault_of(journal.directory, bad.entry))
    assert (fault_of(journal.directory, bad.entry, digests=False) is None) == (kind == "flipped")
    if kind in ("deleted", "flipped"):
        with pytest.raises(ValueError, match=bad.entry.file):
            journal.load(bad)


# -- commits -----------------------------------------------------------------------------------------------------


def test_all_names_are_synced_before_the_commit(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as journal:
        record = add(journal)
        data = index_of(record)
        recording.calls.clear()
        journal.commit(data)
    before = recording.calls[: recording.calls.index(("replace", tmp_path / "index.h5"))]
    for folder in (tmp_path / "parts", tmp_path / "work"):
        assert ("sync_directory", folder) in before, folder
    assert recording.names.count("replace") == 2, "the index, and the new journal"


def test_a_journal_of_another_index_is_ignored(journal: Journal, tmp_path: Path) -> None:
    journal.commit(index_of(add(journal)))
    earlier = journal.directory / "index.h5"
    shutil.copy(earlier, tmp_path / "backup.h5")
    kept = Result.open(tmp_path / "backup.h5").parts[0].file
    journal.commit(index_of(add(journal, data=b"new"), Record("scan", NOW, Entry(kept, 4, digest([b"data"])))))
    unfinished = add(journal, OTHER, data=b"unfinished")
    shutil.copy(tmp_path / "backup.h5", earlier)  # a user restores the earlier index
    found = reopen(journal)
    assert named(found) == []
    found.sweep()
    assert set(contents(journal.directory)) == {"index.h5", kept}
    assert not (journal.directory / unfinished.entry.file).exists()


def test_a_withdrawn_part_of_the_published_result_stays(journal: Journal) -> None:
    """Readers may use it; but a run does not."""
    published = add(journal)
    journal.commit(index_of(published))
    unfinished = add(journal, OTHER)
    journal.withdraw_files([published.entry.file, unfinished.entry.file])
    journal.withdraw(published)
    for found in (journal, reopen(journal)):
        assert found.is_withdrawn(published.entry.file)
        assert named(found) == []
        found.sweep()
    assert set(contents(journal.directory)) == {"index.h5", published.entry.file}


# -- files of users ----------------------------------------------------------------------------------------------------


def test_a_damaged_index_prevents_a_sweep(journal: Journal) -> None:
    journal.commit(index_of(add(journal)))
    flip(journal.directory / "index.h5")
    before = contents(journal.directory)
    restarted = reopen(journal, restarts=True)
    restarted.sweep()
    assert contents(journal.directory) == before
    record = add(restarted, OTHER)
    restarted.commit(index_of(record))
    restarted.sweep()
    assert set(contents(journal.directory)) == {"index.h5", record.entry.file}


def test_sweeping_keeps_foreign_files_and_directories(journal: Journal) -> None:
    record = add(journal)
    bad = add(journal, OTHER)
    (journal.directory / bad.entry.file).unlink()
    foreign = fill(journal.directory, *FOREIGN, *(f"{name}/thesis.tex" for name in [bad.entry.file, *DIRECTORIES]))
    journal.withdraw(bad)
    fill(journal.directory, *HALF_WRITTEN, *UNREFERENCED)
    reopen(journal).sweep()
    assert set(contents(journal.directory)) == {record.entry.file, *foreign}
    reopen(journal, restarts=True).sweep()
    assert contents(journal.directory) == foreign


def test_linked_paths_of_an_output_are_inside(journal: Journal, tmp_path: Path) -> None:
    part = journal.directory / add(journal).entry.file
    (tmp_path / "output").symlink_to(journal.directory)
    (tmp_path / "folder").symlink_to(part.parent)
    (tmp_path / "other.h5").symlink_to(part)
    foreign = tmp_path / "foreign.h5"
    foreign.write_bytes(b"foreign")
    folder = tmp_path / "folder"
    inside = [part, tmp_path / "other.h5", tmp_path / "output/parts" / part.name]
    paths = list(map(str, [*inside, folder / part.name, folder / "gone.h5"]))
    for directory in (journal.directory, tmp_path / "output"):
        assert files_inside(directory, [str(foreign), *paths]) == paths
    for directory in (tmp_path / "nowhere", foreign):
        assert files_inside(directory, paths) == []
