"""The ledger: a result exists from its commit on, and nothing of anybody else's is ever touched."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.formats import fingerprint, seal
from pipeline.output import lock as module
from pipeline.output.disk import Disk
from pipeline.output.ledger import Ledger
from pipeline.output.lock import locked
from pipeline.output.records import MANIFEST, Entry, Record, fault_of, read_manifest
from tests.support.faulty import Broken, Watched, forked
from tests.support.helpers import as_nobody, refused

KEY, OTHER = "part-000000-000000000000", "part-000000-000000000016"
NOW, BEFORE = fingerprint("now"), fingerprint("before")
HEX = "0123456789abcdef" * 2
# In every folder, and with names that resemble ours.
FOREIGN = [
    "notes.txt",
    "novel.writing",
    f"novel.h5.{HEX}.writing",
    "model.h5.writing",
    f"part-000000-000000000000-{HEX}.h5",
    "parts/labels.csv",
    "parts/part-of-mine.h5",
    "parts/part-000000-000000000000.h5",
    f"parts/part-000000-000000000000-{HEX}.h5.bak",
    f"parts/old-part-000000-000000000000-{HEX}.h5",
    f"parts/novel.{HEX}.writing",
    f"parts/model-{HEX}.h5",
    "stages/model.h5",
    f"stages/models-{HEX}.h5",
    f"stages/{HEX}.npz",
    "commits/readme.md",
    f"commits/{HEX}.json",
    f"commits/part-000000-000000000000-{HEX}.json",
    f"commits/part-{HEX}.json.bak",
    f"commits/{HEX[:16]}-{HEX}.json",
    "more/model.h5",
    f"more/part-000000-000000000000-{HEX}.h5",
    f"parts/more/part-000000-000000000000-{HEX}.h5",
]
HALF_WRITTEN = [
    f"{name}.{HEX}.writing"
    for name in (
        *(".shardpress", MANIFEST, "run.json", "report.json", "model.h5", "model-last-good.h5", "index.h5"),
        *("encoder.npz", "quarantine.jsonl", "single.h5", f"parts/{KEY}-{HEX}.h5", f"stages/scan-{HEX}.npz"),
        *(f"stages/checkpoint-{HEX}.npz", f"stages/model-{HEX}.h5", f"commits/part-{HEX}.json"),
        *(f"commits/{KEY}-{HEX[:16]}.json", f"commits/scan-{HEX[:16]}.json"),  # of the form before
    )
]


def contents(folder: Path) -> dict[str, bytes]:
    """What every file below a folder holds, but for the marker and the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".shardpress", ".lock")
    }


def fill(folder: Path, *names: str) -> dict[str, bytes]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(name.encode())
    return {name: name.encode() for name in names}


def commit(
    ledger: Ledger, key: str = KEY, made_from: str = NOW, data: bytes = b"data", facts: dict[str, Any] | None = None
) -> Record:
    """Write and commit a result."""
    kind = key.split("-")[0]
    stem, suffix = (f"parts/{key}", ".h5") if kind == "part" else (f"stages/{kind}", ".npz")
    record = Record(key, made_from, ledger.write(stem, suffix, data), facts or {})
    ledger.commit(record)
    return counting(ledger, record)


def counting(ledger: Ledger, record: Record) -> Record:
    """The record that counts for what this one is of."""
    (found,) = (each for each in ledger.records() if each.identity == record.identity)
    return found


def together(ledger: Ledger, *keys: str, made_from: str = NOW) -> list[Record]:
    """Write and commit results in one group."""
    entries = [ledger.write(f"parts/{key}", ".h5", key.encode()) for key in keys]
    records = [
        Record(key, made_from, entry, {"i": i}) for i, (key, entry) in enumerate(zip(keys, entries, strict=True))
    ]
    ledger.commit(*records)
    return [counting(ledger, record) for record in records]


def claimed(directory: Path, disk: Disk | None = None) -> None:
    """Claim a directory and let go of it at once."""
    with locked(directory, disk):
        pass


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with locked(tmp_path / "out") as found:
        yield found


def reopened(ledger: Ledger) -> Ledger:
    """What a later run finds."""
    return Ledger(ledger.directory, ledger.disk)


# -- whose directory it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "new/and/deep", "with space\nand größe"])
def test_a_new_directory_is_made_with_its_parents(tmp_path: Path, name: str) -> None:
    claimed(tmp_path / name)
    assert sorted(os.listdir(tmp_path / name)) == [".lock", ".shardpress", "commits", "parts", "stages"]


def test_p8_every_new_directory_is_on_the_disk_before_anything_is_put_into_it(tmp_path: Path) -> None:
    watched, synced = Watched(), [tmp_path]
    claimed(tmp_path / "new" / "out", watched)
    waiting = []
    for name, path in watched.calls:
        if name == "make_directory":
            assert Path(str(path)).parent in synced
            waiting.append(path)
        elif name == "sync_directory":
            synced += [each for each in waiting if Path(str(each)).parent == path]
    assert set(waiting) == set(synced) - {tmp_path} > {tmp_path / "new", tmp_path / "new" / "out"}


def test_an_empty_directory_is_taken_and_so_is_one_where_a_run_died_at_once(tmp_path: Path) -> None:
    fill(tmp_path, f".shardpress.{HEX}.writing")
    claimed(tmp_path)
    with locked(tmp_path) as ledger:
        ledger.sweep()
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("names", [["thesis.tex"], [MANIFEST], [f"parts/{KEY}-{HEX}.h5"], ["model.h5", "index.h5"]])
def test_d13_a_directory_with_files_of_others_is_refused_and_left_alone(tmp_path: Path, names: list[str]) -> None:
    there = fill(tmp_path, *names)
    with refused(73, f"output={tmp_path}", "files that are not of shardpress", "--output"):
        claimed(tmp_path)
    assert contents(tmp_path) == there
    assert not (tmp_path / ".shardpress").exists()


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_what_cannot_be_a_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    with refused(73, f"output={tmp_path / name}", "--output"):
        claimed(tmp_path / name)
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("name", ["", "below"])
def test_d6_a_directory_that_may_not_be_written_is_refused(open_path: Path, name: str) -> None:
    folder = open_path / "closed"
    folder.mkdir(mode=0o555)
    exit_code, sentence = as_nobody(lambda: claimed(folder / name))
    assert exit_code == 77, sentence
    assert f"output={folder / name}" in sentence
    assert "Choose an --output that you may write to" in sentence


@pytest.mark.parametrize("name", ["make_directory", "create"])
@pytest.mark.parametrize(
    ("code", "exit_code"),
    [(errno.EROFS, 73), (errno.ENOSPC, 73), (errno.EIO, 73), (errno.EACCES, 77), (errno.EPERM, 77)],
    ids=lambda code: errno.errorcode.get(code, ""),
)
def test_d6_what_cannot_be_made_is_an_error_before_the_work_starts(
    tmp_path: Path, name: str, code: int, exit_code: int
) -> None:
    with refused(exit_code, f"output={tmp_path / 'out'}", os.strerror(code), "--output"):
        claimed(tmp_path / "out", Broken(code, name))


def test_p8_a_folder_whose_name_is_not_on_the_disk_is_no_place_for_records(tmp_path: Path) -> None:
    with refused(73, "Input/output error"):
        claimed(tmp_path, Broken(errno.EIO, "sync_directory"))


def test_a_parent_that_cannot_be_read_cannot_be_synced_and_that_is_no_error(open_path: Path) -> None:
    (open_path / "closed").mkdir()
    (open_path / "closed").chmod(0o333)
    assert as_nobody(lambda: claimed(open_path / "closed" / "out")) == (0, "")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", seal("shardpress-output/0", {})])
def test_d12_a_damaged_marker_still_says_whose_directory_it_is(tmp_path: Path, content: bytes) -> None:
    fill(tmp_path, "notes.txt")
    (tmp_path / ".shardpress").write_bytes(content)
    claimed(tmp_path)


@pytest.mark.parametrize("name", [".shardpress", MANIFEST, f"commits/{KEY}-{NOW[:16]}.json"])
def test_d12_what_a_later_version_wrote_is_refused_and_left_alone(ledger: Ledger, name: str) -> None:
    form = "shardpress-commit/2" if name.startswith("commits") else "shardpress-output/2"
    (ledger.directory / name).write_bytes(seal(form, {"brand": "new"}))
    before = contents(ledger.directory)
    with refused(76, str(ledger.directory), "later version", "Upgrade"):
        module._mark(ledger.directory, ledger.disk)
        reopened(ledger).sweep()
    assert contents(ledger.directory) == before


# -- the lock ----------------------------------------------------------------------------------------------------


def test_c1_a_second_run_is_told_who_is_at_work(tmp_path: Path) -> None:
    who = f"pid {os.getpid()} on {platform.node()} since {time.strftime('%Y')}-"
    with locked(tmp_path), refused(75, f"output={tmp_path}: another run is at work there", who, "same command again"):
        claimed(tmp_path)
    claimed(tmp_path)


def test_c1_a_run_that_fails_lets_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    claimed(tmp_path)


def test_c1_a_run_that_cannot_even_begin_lets_go(tmp_path: Path) -> None:
    claimed(tmp_path)
    (tmp_path / "commits").rmdir()
    with refused(73, "No space left"):
        claimed(tmp_path, Broken(errno.ENOSPC, "make_directory"))
    claimed(tmp_path)


HOLDER = """
import sys
from pathlib import Path
from pipeline.output.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_c2_a_killed_run_leaves_no_lock_behind(tmp_path: Path) -> None:
    """The kernel frees it: nobody has to remove a file after a crash."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with refused(75, f"pid {holder.pid} on "):
            claimed(tmp_path)
        holder.kill()
    assert holder.returncode == -signal.SIGKILL
    claimed(tmp_path)


def test_c1_of_many_runs_one_gets_the_directory(tmp_path: Path) -> None:
    claimed(tmp_path)
    descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                with locked(tmp_path):
                    os._exit(0)
            except BaseException as error:
                os._exit(getattr(error, "exit_code", 1))
        children.append(child)
    assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} == {75}
    os.close(descriptor)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_c3_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with refused(75, "cannot be locked", os.strerror(code), "knows locks"):
        claimed(tmp_path)


@pytest.mark.parametrize("name", ["ftruncate", "pwrite"])
def test_d2_a_full_disk_does_not_keep_anybody_from_looking_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Only the kernel's lock decides; the words in the file are for people."""

    def fail(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    claimed(tmp_path)
    monkeypatch.setattr(os, name, fail)
    with locked(tmp_path), refused(75, "another run is at work"):
        claimed(tmp_path)


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_s13_a_link_in_the_locks_place_is_refused_and_its_target_stays(
    tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    claimed(tmp_path / "out")
    (tmp_path / "out" / ".lock").unlink()
    make(victim, tmp_path / "out" / ".lock")
    with refused(73, f"output={tmp_path / 'out'}", ".lock", "Choose another --output"):
        claimed(tmp_path / "out")
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["parts", "stages", "commits"])
@pytest.mark.parametrize("is_there", [True, False], ids=["elsewhere", "dangling"])
def test_s13_a_folder_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, is_there: bool) -> None:
    victim = tmp_path / "victim"
    if is_there:
        fill(victim, f"{KEY}-{HEX}.h5")
    claimed(tmp_path / "out")
    (tmp_path / "out" / name).rmdir()
    (tmp_path / "out" / name).symlink_to(victim)
    with refused(73, f"output={tmp_path / 'out'}: its {name} is a link, expected a directory"):
        claimed(tmp_path / "out")
    assert victim.exists() == is_there
    if is_there:
        assert set(contents(victim)) == {f"{KEY}-{HEX}.h5"}


def test_s13_the_output_itself_may_be_a_link_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "parts").symlink_to("large")
    claimed(tmp_path / "parts")
    claimed(tmp_path / "parts" / "below")
    assert (tmp_path / "large" / "below" / ".shardpress").exists()


# -- results -----------------------------------------------------------------------------------------------------


def test_a_committed_result_is_found_by_later_runs(ledger: Ledger) -> None:
    record = commit(ledger, data=b"data", facts={"n_rows": 3, "path": "größe \udcff"})
    assert (ledger.directory / record.entry.file).read_bytes() == b"data"
    for found in (ledger, reopened(ledger)):
        assert found.records("part", NOW) == [record]
        assert fault_of(found.directory, record.entry) is None
        assert found.load(record) == b"data"


def test_a_written_file_does_not_exist_before_its_commit(ledger: Ledger) -> None:
    ledger.write(f"parts/{KEY}", ".h5", b"data")
    found = reopened(ledger)
    assert found.records("part") == []
    found.sweep()
    assert contents(ledger.directory) == {}


def test_results_come_by_kind_and_fingerprint_in_the_order_of_their_keys(ledger: Ledger) -> None:
    keys = [f"part-{shard:06d}-{row:012d}" for shard in (0, 2, 10) for row in (0, 9, 10)]
    shuffled = random.Random(0).sample(keys, len(keys))
    for key in [*shuffled, "scan", "checkpoint-000000000010", "checkpoint-000000000009"]:
        commit(ledger, key)
    commit(ledger, KEY, BEFORE)
    for found in (ledger, reopened(ledger)):
        assert [record.key for record in found.records("part", NOW)] == keys
        assert [record.key[-3:] for record in found.records("checkpoint", NOW)] == ["009", "010"]
        assert [record.fingerprint for record in found.records("part", BEFORE)] == [BEFORE]
        assert found.records("scan", BEFORE) == []
        assert len(found.records("part")) == len(keys) + 1


def test_c4_of_a_part_that_was_made_twice_the_first_stays_and_the_other_goes(ledger: Ledger) -> None:
    first = ledger.write(f"parts/{KEY}", ".h5", b"first")
    second = ledger.write(f"parts/{KEY}", ".h5", b"second")
    record = Record(KEY, NOW, first, {"n_rows": 1})
    for each in (record, Record(KEY, NOW, second, {"n_rows": 2}), record):
        ledger.commit(each)
        assert ledger.records() == [record]
    assert contents(ledger.directory / "parts") == {Path(first.file).name: b"first"}
    assert len(os.listdir(ledger.directory / "commits")) == 1
    assert reopened(ledger).records("part", NOW) == [record]


def test_c4_a_result_of_an_earlier_run_counts_too(ledger: Ledger) -> None:
    record = commit(ledger)
    assert commit(reopened(ledger), data=b"other") == record
    assert set(contents(ledger.directory / "parts").values()) == {b"data"}


def test_p12_names_are_unique_whatever_the_clock_says(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: 0)
    random.seed(0)

    def write(n_files: int) -> list[str]:
        return [ledger.write(f"parts/{KEY}", ".h5", b"").file for _ in range(n_files)]

    names = write(50)
    for _ in range(2):  # processes that are copies of each other
        names += forked(lambda: write(50))[1]
    assert len(set(names)) == 150 == len(os.listdir(ledger.directory / "parts"))


# -- results that are committed together ---------------------------------------------------------------------------

KEYS = [f"part-{i:06d}-000000000000" for i in range(5)]


def record_files(ledger: Ledger) -> list[Path]:
    return sorted((ledger.directory / "commits").iterdir())


def file_of(ledger: Ledger) -> str:
    """The only file of records."""
    (path,) = record_files(ledger)
    return f"commits/{path.name}"


def test_results_that_are_committed_together_are_found_by_later_runs(ledger: Ledger) -> None:
    commit(ledger, "scan")
    records = together(ledger, *KEYS)
    assert [record.key for record in records] == KEYS
    assert len(record_files(ledger)) == 2
    for found in (ledger, reopened(ledger)):
        assert found.records("part", NOW) == records
        assert [found.load(record) for record in records] == [key.encode() for key in KEYS]
        found.sweep(NOW)
    assert len(record_files(ledger)) == 2


def test_committing_nothing_touches_nothing(tmp_path: Path) -> None:
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        watched.calls.clear()
        ledger.commit()
    assert watched.calls == []


def test_c4_in_a_group_too_the_first_of_a_part_that_was_made_twice_stays(ledger: Ledger) -> None:
    earlier = commit(ledger, KEYS[1])
    records = together(ledger, KEYS[0], KEYS[0], KEYS[1], KEYS[2])
    assert [record.facts.get("i") for record in records] == [0, 0, None, 3]
    assert records[2] == earlier
    assert set(contents(ledger.directory / "parts")) == {Path(record.entry.file).name for record in records}
    assert reopened(ledger).records("part", NOW) == [records[0], earlier, records[3]]


def test_p8_what_is_committed_is_on_the_disk_before_its_record_is_begun(tmp_path: Path) -> None:
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        watched.calls.clear()
        together(ledger, *KEYS)
    paths = [Path(str(path)) if isinstance(path, Path) else Path() for _, path in watched.calls]
    first_of_record = next(i for i, path in enumerate(paths) if path.parent.name == "commits")
    assert watched.calls[first_of_record - 1] == ("sync_directory", tmp_path / "parts")
    assert {path.parent.name for path in paths[first_of_record:]} <= {"commits", "", tmp_path.name}
    assert watched.calls[-1] == ("sync_directory", tmp_path / "commits")
    assert watched.names[:first_of_record].count("sync") == len(KEYS)


def test_p8_of_a_group_the_rest_stays_and_what_is_taken_back_is_gone_for_good_before_its_file(tmp_path: Path) -> None:
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        records = together(ledger, *KEYS)
        watched.calls.clear()
        ledger.drop(records[0], records[3])
        names, gone = watched.names, [tmp_path / records[i].entry.file for i in (0, 3)]
        assert names.index("replace") < names.index("sync_directory") < len(names) - 2
        assert watched.calls[-2:] == [("remove", path) for path in gone]
        for found in (ledger, reopened(ledger)):
            assert found.records("part", NOW) == [records[i] for i in (1, 2, 4)]
        again = commit(ledger, KEYS[0], data=b"new")
        assert reopened(ledger).records("part", NOW) == [again, *(records[i] for i in (1, 2, 4))]
        ledger.drop(*ledger.records("part", NOW))
    assert contents(tmp_path) == {}


def test_a_group_of_other_settings_goes_when_results_are_replaced(ledger: Ledger) -> None:
    together(ledger, *KEYS, made_from=BEFORE)
    records = together(ledger, *KEYS)
    found = reopened(ledger)
    found.sweep(NOW)
    assert reopened(ledger).records("part") == records
    assert len(record_files(ledger)) == 1
    found.forget()
    assert contents(ledger.directory) == {}


# -- damage ------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def turn_into(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def turn(path: Path) -> None:
        path.rename(path.with_suffix(".moved"))
        make(path)

    return turn


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "deleted": (Path.unlink, "committed, but cannot be read: No such file"),
    "truncated": (lambda path: os.truncate(path, 3), "3 bytes, expected 4 as committed"),
    "emptied": (lambda path: os.truncate(path, 0), "0 bytes, expected 4 as committed"),
    "grown": (lambda path: os.truncate(path, 5), "5 bytes, expected 4 as committed"),
    "flipped": (flip, "its BLAKE3 is not the one committed"),
    "symlink": (turn_into(lambda path: path.symlink_to(path.with_suffix(".moved"))), "cannot be read"),
    "directory": (turn_into(Path.mkdir), "Is a directory"),
    "fifo": (turn_into(os.mkfifo), "no regular file any more"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_d11_a_damaged_result_is_named_with_what_is_wrong(ledger: Ledger, kind: str) -> None:
    good, bad = commit(ledger, OTHER), commit(ledger)
    damage, words = DAMAGE[kind]
    damage(ledger.directory / bad.entry.file)
    assert fault_of(ledger.directory, good.entry) is None
    found = fault_of(ledger.directory, bad.entry)
    assert found is not None
    assert found.startswith(f"file={ledger.directory / bad.entry.file}: ")
    assert words in found
    assert (fault_of(ledger.directory, bad.entry, digests=False) is None) == (kind == "flipped")


@pytest.mark.parametrize("kind", ["deleted", "truncated", "flipped", "directory"])
def test_d11_what_is_not_what_was_committed_is_not_loaded(ledger: Ledger, kind: str) -> None:
    record = commit(ledger, "scan")
    DAMAGE[kind][0](ledger.directory / record.entry.file)
    with pytest.raises(ValueError, match=record.entry.file):
        ledger.load(record)


RECORD: dict[str, Any] = {
    "key": KEY,
    "fingerprint": NOW,
    "entry": {"file": f"parts/{KEY}-{HEX}.h5", "n_bytes": 1, "blake3": HEX * 2},
    "facts": {},
}


def group_of(*contents: object) -> bytes:
    return seal("shardpress-commits/1", {"records": contents})


DAMAGED_RECORDS = {
    "empty": b"",
    "zeros": bytes(400),
    "half": group_of(RECORD)[:200],
    "edited": group_of(RECORD).replace(b'"n_bytes": 1', b'"n_bytes": 2'),
    "unknown version": seal("shardpress-commits/0", {"records": [RECORD]}),
    "other format": seal("shardpress-output/1", {"records": [RECORD]}),
    "not in a list": seal("shardpress-commits/1", RECORD),
    "list": b"[]",
    "no records": seal("shardpress-commits/1", {}),
    "a number of records": seal("shardpress-commits/1", {"records": 3}),
    "text": group_of("part"),
    **{
        f"one {number} that {words}": group_of(*before, {**RECORD, **other})
        for number, before in {"alone": [], "among others": [RECORD]}.items()
        for words, other in {
            "has a number for a key": {"key": 3},
            "has a key that leads outside": {"key": "../../victim"},
            "has a number for a fingerprint": {"fingerprint": 3},
            "has no entry": {"entry": None},
            "has a number for a name": {"entry": {**RECORD["entry"], "file": 3}},
            "has an unknown field": {"more": 1},
            "names no result": {"entry": {**RECORD["entry"], "file": "model.h5"}},
            "leads outside": {"entry": {**RECORD["entry"], "file": "../victim"}},
        }.items()
    },
}


@pytest.mark.parametrize("content", DAMAGED_RECORDS.values(), ids=DAMAGED_RECORDS)
@pytest.mark.parametrize("n_parts", [1, 5], ids=["alone", "together"])
def test_d12_a_damaged_file_of_records_counts_as_none_and_is_named(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, content: bytes, n_parts: int
) -> None:
    """It goes, and takes with it nothing but what it stood for."""
    victim = ledger.directory.parent / "victim"
    victim.write_bytes(b"precious")
    together(ledger, *KEYS[:n_parts])
    (damaged,) = record_files(ledger)
    good = commit(ledger, OTHER)
    damaged.write_bytes(content)
    found = reopened(ledger)
    assert f"file={damaged}: no valid commit record" in caplog.text
    assert found.records("part") == [good]
    found.sweep()
    assert set(contents(ledger.directory)) == {file_of(ledger), good.entry.file}
    assert victim.read_bytes() == b"precious"


def test_d12_a_group_that_a_later_version_wrote_is_refused_and_left_alone(ledger: Ledger) -> None:
    together(ledger, *KEYS)
    (group,) = record_files(ledger)
    group.write_bytes(seal("shardpress-commits/2", {}))
    before = contents(ledger.directory)
    with refused(76, f"file={group}: format 'shardpress-commits/2'"):
        reopened(ledger)
    assert contents(ledger.directory) == before


@pytest.mark.parametrize("act", ["records", "fault", "load", "manifest", "request"])
def test_d14_too_many_open_files_say_nothing_about_a_file(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    record = commit(ledger)
    ledger.finish({}, {"parts": []})
    before = contents(ledger.directory)
    acts = {
        "records": lambda: reopened(ledger),
        "fault": lambda: fault_of(ledger.directory, record.entry),
        "load": lambda: ledger.load(record),
        "manifest": ledger.manifest,
        "request": ledger.request,
    }

    def fail(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as context:
        context.setattr(*((os, "open") if act == "fault" else (Path, "read_bytes")), fail)
        with refused(71, "Too many open files while reading it", "ulimit -n"):
            acts[act]()
    assert contents(ledger.directory) == before


# -- of the form before ----------------------------------------------------------------------------------------------


def alone(ledger: Ledger, record: Record) -> Path:
    """Have a record stand as earlier runs wrote one that was committed alone."""
    path = ledger.directory / "commits" / f"{record.key}-{record.fingerprint[:16]}.json"
    path.write_bytes(seal("shardpress-commit/1", {**vars(record), "entry": vars(record.entry)}))
    return path


def test_a_record_that_an_earlier_run_wrote_alone_counts_like_any_other(ledger: Ledger) -> None:
    others = together(ledger, *KEYS[1:])
    entry = ledger.write(f"parts/{KEYS[0]}", ".h5", b"data")
    first = Record(KEYS[0], NOW, entry, {"n_rows": 3})
    path, scan = alone(ledger, first), alone(ledger, Record("scan", NOW, ledger.write("stages/scan", ".npz", b"scan")))
    found = reopened(ledger)
    found.sweep(NOW)
    assert found.records("part", NOW) == [first, *others]
    assert found.load(first) == b"data"
    assert commit(found, KEYS[0], data=b"again") == first
    found.drop(first, *found.records("scan"))
    assert not path.exists()
    assert not scan.exists()
    assert reopened(ledger).records() == others


@pytest.mark.parametrize(
    "content", [b"", group_of(RECORD), seal("shardpress-commit/1", {**RECORD, "key": "../victim"})]
)
def test_d12_a_damaged_record_that_stands_alone_counts_as_none(ledger: Ledger, content: bytes) -> None:
    path = alone(ledger, Record(**{**RECORD, "entry": Entry(**RECORD["entry"])}))
    path.write_bytes(content)
    assert reopened(ledger).records() == []
    assert not path.exists()


# -- taking back -------------------------------------------------------------------------------------------------


def test_p8_a_record_is_gone_for_good_before_its_file_goes(tmp_path: Path) -> None:
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        records = [commit(ledger), commit(ledger, OTHER)]
        files = record_files(ledger)
        watched.calls.clear()
        ledger.drop(*records)
    assert watched.calls[:2] in ([("remove", path) for path in order] for order in (files, files[::-1]))
    assert watched.calls[2:] == [
        ("sync_directory", tmp_path / "commits"),
        *(("remove", tmp_path / record.entry.file) for record in records),
    ]
    assert contents(tmp_path) == {}


def test_dropping_nothing_touches_nothing(tmp_path: Path) -> None:
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        watched.calls.clear()
        ledger.drop()
    assert watched.calls == []


def test_what_was_dropped_may_be_committed_anew(ledger: Ledger) -> None:
    ledger.drop(commit(ledger))
    record = commit(ledger, data=b"new")
    assert reopened(ledger).records("part", NOW) == [record]


def test_p8_a_manifest_is_gone_for_good_before_anything_that_it_names_goes(tmp_path: Path) -> None:
    """A reader that meets a run beginning again finds an unfinished run, never a mixture."""
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        commit(ledger)
        ledger.finish({}, {"parts": []})
        watched.calls.clear()
        ledger.forget()
    assert watched.calls[:2] == [("remove", tmp_path / MANIFEST), ("sync_directory", tmp_path)]
    assert contents(tmp_path) == {}


def test_d13_neither_sweeping_nor_forgetting_touches_files_of_others(ledger: Ledger) -> None:
    foreign = fill(ledger.directory, *FOREIGN)
    for act in (ledger.sweep, lambda: ledger.sweep(NOW), ledger.forget, lambda: reopened(ledger)):
        fill(ledger.directory, *HALF_WRITTEN)
        commit(ledger)
        act()
        assert {name: data for name, data in contents(ledger.directory).items() if name in foreign} == foreign
    ledger.forget()
    assert contents(ledger.directory) == foreign


def test_d13_directories_of_others_stay_whatever_their_names(ledger: Ledger) -> None:
    bad = commit(ledger)
    for name in (bad.entry.file, file_of(ledger)):
        (ledger.directory / name).unlink()
        fill(ledger.directory, f"{name}/thesis.tex")
    foreign = fill(ledger.directory, f"stages/scan-{HEX}.npz/thesis.tex", f"index.h5.{HEX}.writing/thesis.tex")
    ledger.drop(bad)
    found = reopened(ledger)
    found.forget()
    assert len(contents(ledger.directory)) == len(foreign) + 2


def test_sweeping_removes_every_half_written_file(ledger: Ledger) -> None:
    fill(ledger.directory, *HALF_WRITTEN)
    ledger.sweep()
    assert contents(ledger.directory) == {}


def test_results_of_other_settings_stay_until_they_are_replaced(ledger: Ledger) -> None:
    kept, other = commit(ledger), commit(ledger, made_from=BEFORE)
    found = reopened(ledger)
    found.sweep()
    assert found.records("part", NOW) == [kept]
    assert found.records("part", BEFORE) == [other]
    found.sweep(NOW)
    assert set(contents(ledger.directory)) == {file_of(ledger), kept.entry.file}


def test_what_the_manifest_names_stays_without_its_record_too(ledger: Ledger) -> None:
    record = commit(ledger)
    ledger.finish({}, {"parts": [{"file": record.entry.file}], "files": [{"file": "quarantine.jsonl"}]})
    fill(ledger.directory, "quarantine.jsonl", "model-last-good.h5")
    (ledger.directory / file_of(ledger)).unlink()
    found = reopened(ledger)
    found.sweep(NOW)
    assert set(contents(ledger.directory)) == {MANIFEST, record.entry.file, "quarantine.jsonl"}


def test_what_only_some_runs_leave_goes_when_results_are_replaced(ledger: Ledger) -> None:
    fill(ledger.directory, "quarantine.jsonl", "model-last-good.h5", "model.h5")
    ledger.sweep()
    assert len(contents(ledger.directory)) == 3
    ledger.sweep(NOW)
    assert set(contents(ledger.directory)) == {"model.h5"}


# -- what is said of a run ---------------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was(ledger: Ledger) -> None:
    assert ledger.manifest() is None
    ledger.finish({"inputs": {}}, {"parts": [{"file": "größe \udcff"}], "n_rows": 3})
    expected = {"parts": [{"file": "größe \udcff"}], "n_rows": 3, "request": {"inputs": {}}}
    assert read_manifest(ledger.directory) == ledger.manifest() == expected


def test_without_a_manifest_a_run_is_not_finished(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (ledger.directory, tmp_path / "nowhere", tmp_path / "file"):
        with refused(66, str(folder / MANIFEST), "expected the output directory of a finished run"):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (bytes(100), "not JSON"),
        (b"[]", "expected format"),
        (b"[" * 100_000, "nested too deeply"),
        (seal("shardpress-output/0", {"parts": []}), "expected format 'shardpress-output/1'"),
        (seal("shardpress-output/1", {"parts": []}).replace(b"parts", b"trap"), "its digest does not fit"),
        (seal("shardpress-output/1", {"parts": [{}]}), "names no proper parts"),
        (seal("shardpress-output/1", {"parts": 3}), "names no proper parts"),
        (json.dumps({"format": "shardpress-output/1", "parts": []}).encode(), "its digest does not fit"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_d12_a_damaged_manifest_is_refused_and_its_run_counts_as_unfinished(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, content: bytes, phrase: str
) -> None:
    (ledger.directory / MANIFEST).write_bytes(content)
    with refused(65, MANIFEST, phrase):
        read_manifest(ledger.directory)
    assert ledger.manifest() is None
    assert "the run counts as unfinished" in caplog.text


@pytest.mark.parametrize("key", ["parts", "files"])
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../victim", "parts/../../victim", "..", "a/..", "parts/\n/../x", "/", "//x"]
)
def test_s12_a_manifest_that_names_files_elsewhere_is_refused(ledger: Ledger, key: str, name: str) -> None:
    ledger.finish({}, {key: [{"file": name}]})
    for read in (lambda: read_manifest(ledger.directory), ledger.manifest, ledger.sweep):
        with refused(77, MANIFEST, "names inside the directory only"):
            read()


def test_a_manifest_that_may_not_be_read_says_so(open_path: Path) -> None:
    with locked(open_path / "out") as ledger:
        ledger.finish({}, {"parts": []})
    (open_path / "out" / MANIFEST).chmod(0)
    exit_code, sentence = as_nobody(lambda: read_manifest(open_path / "out"))
    assert (exit_code, "Permission denied" in sentence) == (77, True)


def test_a_failing_storage_does_not_make_a_finished_run_unfinished(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    ledger.finish({}, {"parts": []})
    monkeypatch.setattr(Path, "read_bytes", fail)
    with refused(74, MANIFEST, "Input/output error"):
        ledger.manifest()


def test_what_a_run_was_asked_for_is_written_once(tmp_path: Path) -> None:
    watched = Watched()
    with locked(tmp_path, watched) as ledger:
        assert ledger.request() is None
        ledger.set_request({"epochs": 1})
        n_calls = len(watched.calls)
        ledger.set_request({"epochs": 1})
        assert len(watched.calls) == n_calls
        assert ledger.request() == {"epochs": 1}
        ledger.set_request({"epochs": 2})
        assert reopened(ledger).request() == {"epochs": 2}
        (tmp_path / "run.json").write_bytes(b"{")
        assert ledger.request() is None
        ledger.set_request({"epochs": 2})
        assert ledger.request() == {"epochs": 2}


def test_moving_the_directory_moves_everything(ledger: Ledger, tmp_path: Path) -> None:
    record = commit(ledger)
    ledger.finish({}, {"parts": [{"file": record.entry.file}]})
    shutil.copytree(ledger.directory, tmp_path / "moved")
    with locked(tmp_path / "moved") as moved:
        assert moved.records("part", NOW) == [record]
        assert fault_of(moved.directory, record.entry) is None
        assert moved.manifest() == ledger.manifest()
    assert not os.path.isabs(record.entry.file)
    assert isinstance(record.entry, Entry)
