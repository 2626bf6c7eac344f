"""Tests of the journal: results that it names are found again, and files of users are never changed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shardpress.errors import NotPermitted, ReadFailed, ShardpressError
from shardpress.formats import digest
from shardpress.output.files import fault_of, unique_name
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import locked
from shardpress.records import Entry, Generation
from shardpress.result import Result
from tests.support.faulty import BrokenDisk, FailingDisk, RecordingDisk, ShortWriteDisk, forked, journal_lines
from tests.support.helpers import refused, without_privileges
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
    is_published,
    reopen,
    written,
)

# Files of a user in every folder, with names similar to the names of results.
FOREIGN = [
    "notes.txt",
    "novel.writing",
    f"novel.h5.{HEX}.writing",
    "model.h5.writing",
    "generation-one.h5",
    f"part-000000-000000000000-{HEX}.h5",
    "parts/labels.csv",
    "parts/part-of-mine.h5",
    "parts/part-000000-000000000000.h5",
    f"parts/part-000000-000000000000-{HEX}.h5.bak",
    f"parts/old-part-000000-000000000000-{HEX}.h5",
    f"parts/novel.{HEX}.writing",
    f"parts/model-{HEX}.h5",
    "work/model.h5",
    f"work/models-{HEX}.h5",
    f"work/{HEX}.npz",
    f"work/part-000000-000000000000-{HEX}.h5",
    f"more/part-000000-000000000000-{HEX}.h5",
    f"parts/more/part-000000-000000000000-{HEX}.h5",
]
HALF_WRITTEN = [
    f"{name}.{HEX}.writing"
    for name in (
        ".shardpress",
        "report.html",
        "index.h5",
        "generation-1.h5",
        "bad_rows.jsonl",
        f"parts/{KEY}-{HEX}.h5",
        "work/journal.jsonl",
        f"work/scan-{HEX}.npz",
        f"work/checkpoint-{HEX}.npz",
        f"work/model-{HEX}.h5",
        "work/model-last-good.h5",
    )
]
UNREFERENCED = [name.removesuffix(f".{HEX}.writing") for name in HALF_WRITTEN if HEX in name[:-41]]


def journal_file(journal: Journal) -> Path:
    return journal.directory / "work/journal.jsonl"


# -- results -----------------------------------------------------------------------------------------------------


def test_a_named_result_is_found_by_later_runs(journal: Journal) -> None:
    record = add(journal, data=b"data", facts={"n_rows": 3, "path": "größe \udcff"})
    assert (journal.directory / record.entry.file).read_bytes() == b"data"
    for found in (journal, reopen(journal)):
        assert found.records("part", NOW) == [record]
        assert fault_of(found.directory, record.entry) is None
        assert found.load(record) == b"data"


def test_a_file_does_not_count_before_the_journal_names_it(journal: Journal) -> None:
    journal.set_request(REQUEST)
    written(journal)
    found = reopen(journal)
    assert found.records() == []
    found.sweep()
    assert contents(journal.directory) == {}


def test_records_are_selected_by_kind_and_fingerprint_in_order(journal: Journal) -> None:
    keys = [f"part-{shard:06d}-{row:012d}" for shard in (0, 2, 10) for row in (0, 9, 10)]
    shuffled = random.Random(0).sample(keys, len(keys))
    for key in [*shuffled, "scan", "checkpoint-000000000010", "checkpoint-000000000009"]:
        add(journal, key)
    add(journal, KEY, BEFORE)
    for found in (journal, reopen(journal)):
        assert [record.key for record in found.records("part", NOW)] == keys
        assert [record.key[-3:] for record in found.records("checkpoint", NOW)] == ["009", "010"]
        assert [record.fingerprint for record in found.records("part", BEFORE)] == [BEFORE]
        assert found.records("scan", BEFORE) == []
        assert len(found.records("part")) == len(keys) + 1


def test_the_first_of_two_results_of_a_part_is_kept(journal: Journal) -> None:
    first = written(journal, data=b"first")
    second = written(journal, data=b"second")
    for records in [(first, second), (second,), (first,)]:
        journal.add(*records)
        assert journal.records() == [first]
    assert list(contents(journal.directory).values()) == [b"first"]
    assert add(reopen(journal), data=b"other") == first
    assert list(contents(journal.directory).values()) == [b"first"]


@pytest.mark.process
def test_names_are_unique_for_any_clock_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: 0)
    random.seed(0)

    def some_names() -> list[str]:
        return [unique_name("part", ".h5") for _ in range(50)]

    names = some_names()
    for _ in range(2):  # processes that are forks of each other
        names += forked(some_names)[1]
    assert len(set(names)) == 150


def test_requests_are_written_only_if_they_changed(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as journal:
        assert (journal.request, journal.deadline) == (None, None)
        for deadline in ({"ends_by": 1.5}, None):
            journal.set_request(REQUEST, deadline)
            n_calls = len(recording.calls)
            journal.set_request(REQUEST, deadline)
            assert len(recording.calls) == n_calls
            for found in (journal, reopen(journal)):
                assert (found.request, found.deadline) == (REQUEST, deadline)


# -- the order of changes ----------------------------------------------------------------------------------------


def test_the_names_of_files_are_synced_before_the_journal(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as journal:
        for key in ("scan", "checkpoint-000000000001"):
            record = written(journal, key)
            recording.calls.clear()
            journal.add(record)
            names = recording.names
            assert ("sync_directory", tmp_path / "work") in recording.calls[: names.index("sync")], key


def test_lines_that_do_not_wait_are_synced_once_a_second(tmp_path: Path) -> None:
    now = [0.0]
    recording = RecordingDisk()
    with locked(tmp_path, recording):
        journal = Journal(tmp_path, recording, clock=lambda: now[0])
        journal.set_request(REQUEST)
        n_syncs = []
        for i, seconds in enumerate([0.1, 0.9, 1.1, 1.2, 2.0, 2.2]):
            now[0] = seconds
            record = written(journal, KEYS[0], made_from=str(i))
            recording.calls.clear()
            journal.add(record, waits=False)
            n_syncs.append(recording.names.count("sync"))
        assert n_syncs == [0, 0, 1, 0, 0, 1]
        assert len(reopen(journal).records()) == 6


def test_a_result_is_withdrawn_durably_before_its_file_is_removed(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as journal:
        records = [add(journal, key) for key in KEYS]
        recording.calls.clear()
        journal.withdraw(records[0], records[3])
        names = recording.names
        assert names.index("sync") < names.index("remove")
        files = [tmp_path / records[i].entry.file for i in (0, 3)]
        assert recording.calls[-2:] == [("remove", path) for path in files]
        for found in (journal, reopen(journal)):
            assert found.records("part", NOW) == [records[i] for i in (1, 2, 4)]
        again = add(journal, KEYS[0], data=b"new")
        assert reopen(journal).records("part", NOW) == [again, *(records[i] for i in (1, 2, 4))]


def test_changing_nothing_writes_nothing(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as journal:
        recording.calls.clear()
        journal.withdraw()
        journal.withdraw_parts([])
    assert recording.calls == []


@pytest.mark.parametrize("fault", ["write", "sync", "close", "short write"])
def test_a_journal_is_rewritten_after_a_failed_change(tmp_path: Path, fault: str) -> None:
    """After a failed write or sync, the contents of the file are unknown."""
    with locked(tmp_path) as journal:
        first = add(journal, KEYS[0])
        second = written(journal, KEYS[1])
        broken = ShortWriteDisk(0, errno.EIO) if fault == "short write" else BrokenDisk(errno.EIO, fault)
        good = journal.disk
        journal.disk = broken
        with refused(74, os.strerror(errno.EIO)):
            journal.add(second)
        assert reopen(journal).records()[:1] == [first]
        recording = RecordingDisk()
        journal.disk = recording
        third = add(journal, KEYS[2])
        assert "open_to_append" not in recording.names
        journal.disk = good
        fourth = add(journal, KEYS[3])
        assert reopen(journal).records() == [first, second, third, fourth]


def test_any_failed_call_keeps_earlier_results(tmp_path: Path) -> None:
    """The names of files are synced before lines are added, which can fail as well."""
    for number in range(20):
        with locked(tmp_path / str(number)) as journal:
            first = add(journal, KEYS[0])
            second = written(journal, KEYS[1])
            good = journal.disk
            journal.disk = FailingDisk(number, errno.EIO)
            try:
                journal.add(second)
            except ShardpressError:
                journal.disk = good
                third = add(journal, KEYS[2])
                assert reopen(journal).records() == [first, second, third], number
            else:
                assert number >= 5
                return
    pytest.fail("each call failed")


# -- damage ------------------------------------------------------------------------------------------------------


def test_a_torn_or_damaged_line_ends_the_journal(journal: Journal) -> None:
    """Later lines are not trusted, and the next change removes them."""
    records = [add(journal, key) for key in KEYS]
    data = journal_file(journal).read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(data) if byte == ord("\n"))]
    for n_valid in range(1, 5):
        start, stop = starts[n_valid + 1 : n_valid + 3]
        line = data[start:stop]
        damaged = {
            "torn": data[: stop - 1],
            "torn in the middle": data[: start + len(line) // 2],
            "zeros": data[:start] + bytes(300),
            "flipped": data[: start + 50] + bytes([data[start + 50] ^ 1]) + data[start + 51 :],
            "not ours": data[:start] + b"x\n" + data[start:],
        }
        for kind, content in damaged.items():
            journal_file(journal).write_bytes(content)
            found = reopen(journal)
            assert found.records() == records[:n_valid], kind
            found.set_request(REQUEST)
            again = reopen(journal)
            assert (again.records(), again.request) == (records[:n_valid], REQUEST), kind


def line_of(content: object) -> bytes:
    text = json.dumps(content).encode()
    return digest([text])[:32].encode() + b" " + text + b"\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"key": 3},
        {"fingerprint": None},
        {"entry": None},
        {"entry": {"file": "index.h5", "n_bytes": 1, "blake3": HEX}},
        {"entry": {"file": "../victim", "n_bytes": 1, "blake3": HEX}},
        {"entry": {"file": f"/parts/{KEY}-{HEX}.h5", "n_bytes": 1, "blake3": HEX}},
        {"type": "unknown"},
    ],
    ids=str,
)
def test_a_forged_record_is_ignored(journal: Journal, changes: dict[str, object]) -> None:
    """The files of withdrawn records are removed, so a record must not name any other file."""
    good = add(journal)
    with journal_file(journal).open("ab") as file:
        entry = {"file": f"parts/{OTHER}-{HEX}.h5", "n_bytes": 1, "blake3": HEX}
        record = {"type": "result", "key": OTHER, "fingerprint": NOW, "entry": entry}
        file.write(line_of({**record, **changes}))
    assert reopen(journal).records() == [good]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_an_error_of_the_system_does_not_count_as_damage(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Otherwise a sweep would remove the results of an unfinished run."""
    record = add(journal, "scan")
    before = contents(journal.directory)

    def fail(*_arguments: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", fail)
        with pytest.raises(ShardpressError):
            reopen(journal).sweep()
        if number != errno.EACCES:
            with pytest.raises(ShardpressError):
                journal.load(record)
    if number not in (errno.EACCES, errno.EMFILE):
        with monkeypatch.context() as context:
            context.setattr(os, "open", fail)
            with pytest.raises(ReadFailed):
                fault_of(journal.directory, record.entry)
    assert contents(journal.directory) == before
    assert reopen(journal).records() == [record]


@pytest.mark.process
def test_a_journal_without_permission_is_refused(open_path: Path) -> None:
    with locked(open_path / "out") as journal:
        add(journal)
    journal_file(journal).chmod(0)
    exit_code, sentence = without_privileges(lambda: Journal(open_path / "out", RecordingDisk()))
    assert exit_code == NotPermitted.exit_code, sentence


def turn_into(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def turn(path: Path) -> None:
        path.rename(path.with_suffix(".moved"))
        make(path)

    return turn


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, os.strerror(errno.ENOENT)),
    "truncated": (lambda path: os.truncate(path, 3), "3 bytes, expected 4"),
    "emptied": (lambda path: os.truncate(path, 0), "0 bytes, expected 4"),
    "grown": (lambda path: os.truncate(path, 5), "5 bytes, expected 4"),
    "flipped": (flip, "BLAKE3"),
    "symlink": (turn_into(lambda path: path.symlink_to(path.with_suffix(".moved"))), os.strerror(errno.ELOOP)),
    "directory": (turn_into(Path.mkdir), "regular file"),
    "fifo": (turn_into(os.mkfifo), "regular file"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_fault_of_a_damaged_file_is_named(journal: Journal, kind: str) -> None:
    good = add(journal, OTHER)
    bad = add(journal)
    damage, words = DAMAGE[kind]
    damage(journal.directory / bad.entry.file)
    assert fault_of(journal.directory, good.entry) is None
    found = fault_of(journal.directory, bad.entry)
    assert found is not None
    assert found.startswith(f"file={journal.directory / bad.entry.file}: ")
    assert words in found
    assert (fault_of(journal.directory, bad.entry, digests=False) is None) == (kind == "flipped")


@pytest.mark.parametrize("kind", ["deleted", "truncated", "flipped", "directory"])
def test_a_damaged_file_is_not_loaded(journal: Journal, kind: str) -> None:
    record = add(journal, "scan")
    DAMAGE[kind][0](journal.directory / record.entry.file)
    with pytest.raises(ValueError, match=record.entry.file):
        journal.load(record)


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


def test_a_commit_keeps_only_the_given_records(journal: Journal) -> None:
    part = add(journal)
    scan = add(journal, "scan")
    add(journal, "checkpoint-000000000001")
    journal.set_request(REQUEST)
    journal.commit(index_of(part), kept=[scan])
    for found in (journal, reopen(journal)):
        assert found.records() == [scan]
        assert (found.request, found.base is not None) == (None, True)
        found.sweep()
    assert set(contents(journal.directory)) == {"index.h5", part.entry.file, scan.entry.file}
    assert is_published(journal, part)


def test_a_commit_without_its_new_journal_is_complete(journal: Journal) -> None:
    """The process is killed between the rename of the index and the first line of the next journal."""
    part = add(journal)
    scan = add(journal, "scan")
    old = journal_file(journal).read_bytes()
    journal.commit(index_of(part), kept=[scan])
    journal_file(journal).write_bytes(old)
    found = reopen(journal)
    assert (found.records(), found.base is not None) == ([], True)
    found.sweep()
    assert set(contents(journal.directory)) == {"index.h5", part.entry.file}
    assert is_published(journal, part)


def test_a_journal_of_another_index_is_ignored(journal: Journal, tmp_path: Path) -> None:
    journal.commit(index_of(add(journal)))
    earlier = journal.directory / "index.h5"
    shutil.copy(earlier, tmp_path / "backup.h5")
    kept = Result.open(tmp_path / "backup.h5").parts[0].file
    journal.commit(index_of(add(journal, data=b"new"), Record(OTHER, NOW, Entry(kept, 4, digest([b"data"])))))
    unfinished = add(journal, OTHER, data=b"unfinished")
    shutil.copy(tmp_path / "backup.h5", earlier)  # a user restores the earlier index
    found = reopen(journal)
    assert found.records() == []
    found.sweep()
    assert set(contents(journal.directory)) == {"index.h5", kept}
    assert not (journal.directory / unfinished.entry.file).exists()


def test_a_withdrawn_part_of_the_published_result_stays(journal: Journal) -> None:
    """Readers may use it; but a run does not."""
    published = add(journal)
    journal.commit(index_of(published))
    unfinished = add(journal, OTHER)
    journal.withdraw_parts([published.entry.file, unfinished.entry.file])
    journal.withdraw(published)
    for found in (journal, reopen(journal)):
        assert found.is_withdrawn(published.entry.file)
        assert found.records() == []
        found.sweep()
    assert is_published(journal, published)
    assert not (journal.directory / unfinished.entry.file).exists()


def test_parts_of_earlier_generations_stay(journal: Journal) -> None:
    first = add(journal, data=b"first")
    journal.commit(index_of(first))
    assert journal.published is not None
    earlier = Generation(1, "", 1, journal.published.digest)
    data = (journal.directory / "index.h5").read_bytes()
    second = add(journal, made_from=BEFORE, data=b"second")
    journal.commit(index_of(second, generation=2, generations=(earlier,)), keeps_earlier=True)
    journal.sweep()
    generation = journal.directory / "generation-1.h5"
    assert generation.read_bytes() == data
    files = {"index.h5", "generation-1.h5", first.entry.file, second.entry.file}
    assert set(contents(journal.directory)) == files
    flip(generation)
    reopen(journal).sweep()  # what it named is unknown
    assert set(contents(journal.directory)) == files
    generation.unlink()
    reopen(journal).sweep()  # a user has removed it
    assert set(contents(journal.directory)) == {"index.h5", second.entry.file}


def test_only_generations_of_the_published_result_stay(journal: Journal) -> None:
    """The second generation still lists the first one, which the third one has discarded."""
    parts = []
    earlier: tuple[Generation, ...] = ()
    for number in (1, 2, 3):
        parts.append(add(journal, made_from=str(number), data=f"{number}".encode()))
        journal.commit(index_of(parts[-1], generation=number, generations=earlier), keeps_earlier=number > 1)
        assert journal.published is not None
        earlier = (Generation(number, "", 1, journal.published.digest),)
        journal.sweep()
    assert set(contents(journal.directory)) == {
        "index.h5",
        "generation-2.h5",
        *(part.entry.file for part in parts[1:]),
    }


# -- starting over -----------------------------------------------------------------------------------------------


def test_an_interrupted_restart_is_resumed(journal: Journal) -> None:
    published = add(journal)
    journal.commit(index_of(published))
    old = add(journal, OTHER)
    restarted = reopen(journal, restarts=True)
    assert (restarted.base, restarted.records()) == (None, [])
    restarted.sweep()
    assert not (journal.directory / old.entry.file).exists()
    assert journal_lines(journal_file(journal).read_bytes())[0]["restarts"], "the sweep follows the new journal"
    record = add(restarted, data=b"new")
    resumed = reopen(journal)
    assert (resumed.base, resumed.records()) == (None, [record])
    resumed.sweep()
    assert is_published(journal, published)
    resumed.commit(index_of(record))
    resumed.sweep()
    assert is_published(journal, record)
    assert reopen(journal).base is not None
    assert not (journal.directory / published.entry.file).exists()


@pytest.mark.parametrize(
    "damage", [flip, Path.unlink, lambda path: os.truncate(path, 0)], ids=["flip", "gone", "empty"]
)
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "after"])
def test_a_restart_can_be_resumed_without_the_earlier_index(
    journal: Journal, damage: Callable[[Path], object], is_before: bool
) -> None:
    journal.commit(index_of(add(journal)))
    index = journal.directory / "index.h5"
    if is_before:
        damage(index)
        with pytest.raises(ShardpressError) as caught:
            reopen(journal)
        assert caught.value.exit_code == 65
    record = add(reopen(journal, restarts=True), OTHER)
    if not is_before:
        damage(index)
    resumed = reopen(journal)
    assert (resumed.base, resumed.records()) == (None, [record])
    resumed.commit(index_of(record))
    assert is_published(journal, record)


def test_extending_ends_an_interrupted_restart(journal: Journal) -> None:
    """An append or a retraining builds on the result that readers see, and not on nothing."""
    journal.commit(index_of(add(journal)))
    restarted = add(reopen(journal, restarts=True), OTHER)
    extended = reopen(journal, extends=True)
    assert extended.base is not None
    assert extended.base.digest == journal.published.digest if journal.published else False
    assert extended.records() == [restarted]
    extended.set_request(REQUEST)
    again = reopen(journal)
    assert again.base is not None
    assert again.records() == [restarted]


# -- lost files --------------------------------------------------------------------------------------------------


def test_results_survive_without_work(journal: Journal) -> None:
    """A user deletes `work/`: the unfinished run is lost, and the result stays."""
    published = add(journal)
    journal.commit(index_of(published))
    add(journal, OTHER)
    shutil.rmtree(journal.directory / "work")
    with locked(journal.directory) as found:
        assert (found.records(), found.base is not None) == ([], True)
        found.sweep()
        assert set(contents(journal.directory)) == {"index.h5", published.entry.file}


@pytest.mark.parametrize("lost", ["work/journal.jsonl", "index.h5"])
def test_parts_that_nothing_names_are_not_removed(journal: Journal, lost: str) -> None:
    record = add(journal)
    if lost == "index.h5":
        journal.commit(index_of(record))
    (journal.directory / lost).unlink()
    before = contents(journal.directory)
    with refused(65, f"output={journal.directory}", "--restart"):
        reopen(journal)
    assert contents(journal.directory) == before
    restarted = reopen(journal, restarts=True)
    restarted.sweep()
    assert contents(journal.directory) == {}


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


def test_sweeping_keeps_foreign_files(journal: Journal) -> None:
    record = add(journal)
    foreign = fill(journal.directory, *FOREIGN)
    fill(journal.directory, *HALF_WRITTEN, *UNREFERENCED)
    reopen(journal).sweep()
    assert set(contents(journal.directory)) == {record.entry.file, *foreign}
    reopen(journal, restarts=True).sweep()
    assert contents(journal.directory) == foreign


def test_foreign_directories_are_kept_for_any_name(journal: Journal) -> None:
    bad = add(journal)
    (journal.directory / bad.entry.file).unlink()
    foreign = fill(
        journal.directory,
        f"{bad.entry.file}/thesis.tex",
        f"work/scan-{HEX}.npz/thesis.tex",
        f"index.h5.{HEX}.writing/thesis.tex",
    )
    journal.withdraw(bad)
    reopen(journal).sweep()
    assert contents(journal.directory) == foreign


def test_a_moved_directory_keeps_its_results(journal: Journal, tmp_path: Path) -> None:
    part = add(journal)
    journal.commit(index_of(part))
    record = add(journal, OTHER)
    shutil.copytree(journal.directory, tmp_path / "moved")
    with locked(tmp_path / "moved") as moved:
        assert moved.records("part", NOW) == [record]
        assert fault_of(moved.directory, record.entry) is None
        assert is_published(moved, part)


def test_swapped_directories_keep_their_results(tmp_path: Path) -> None:
    records = {}
    for name in "ab":
        with locked(tmp_path / name) as journal:
            part = add(journal, data=name.encode())
            journal.commit(index_of(part))
            records[name] = part, add(journal, OTHER)
    for source, target in ("ac", "ba", "cb"):
        (tmp_path / source).rename(tmp_path / target)
    for name, other in ("ab", "ba"):
        with locked(tmp_path / name) as journal:
            part, unfinished = records[other]
            assert is_published(journal, part)
            assert journal.records() == [unfinished]
