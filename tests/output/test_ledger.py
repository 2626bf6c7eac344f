"""Tests of the ledger: a result exists as soon as it is committed, and foreign files are never changed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from shardpress.output.ledger import Ledger
from shardpress.output.lock import locked
from shardpress.output.records import MANIFEST, Entry, Record, fault_of, read_manifest
from tests.support.faulty import RecordingDisk
from tests.support.ledgers import (
    BEFORE,
    HEX,
    KEY,
    KEYS,
    NOW,
    OTHER,
    commit,
    commit_together,
    contents,
    file_of,
    fill,
    record_files,
    reopen,
)

# Files of a user in every folder, with names similar to the names of results.
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
        ".shardpress",
        MANIFEST,
        "run.json",
        "report.json",
        "report.html",
        "model.h5",
        "model-last-good.h5",
        "index.h5",
        "bad_rows.jsonl",
        f"parts/{KEY}-{HEX}.h5",
        f"stages/scan-{HEX}.npz",
        f"stages/checkpoint-{HEX}.npz",
        f"stages/model-{HEX}.h5",
        f"commits/part-{HEX}.json",
    )
]


# -- results -----------------------------------------------------------------------------------------------------


def test_a_committed_result_is_found_by_later_runs(ledger: Ledger) -> None:
    record = commit(ledger, data=b"data", facts={"n_rows": 3, "path": "größe \udcff"})
    assert (ledger.directory / record.entry.file).read_bytes() == b"data"
    for found in (ledger, reopen(ledger)):
        assert found.records("part", NOW) == [record]
        assert fault_of(found.directory, record.entry) is None
        assert found.load(record) == b"data"


def test_a_written_file_does_not_exist_before_its_commit(ledger: Ledger) -> None:
    ledger.write(f"parts/{KEY}", ".h5", b"data")
    found = reopen(ledger)
    assert found.records("part") == []
    found.sweep()
    assert contents(ledger.directory) == {}


def test_records_are_selected_by_kind_and_fingerprint_in_order(ledger: Ledger) -> None:
    keys = [f"part-{shard:06d}-{row:012d}" for shard in (0, 2, 10) for row in (0, 9, 10)]
    shuffled = random.Random(0).sample(keys, len(keys))
    for key in [*shuffled, "scan", "checkpoint-000000000010", "checkpoint-000000000009"]:
        commit(ledger, key)
    commit(ledger, KEY, BEFORE)
    for found in (ledger, reopen(ledger)):
        assert [record.key for record in found.records("part", NOW)] == keys
        assert [record.key[-3:] for record in found.records("checkpoint", NOW)] == ["009", "010"]
        assert [record.fingerprint for record in found.records("part", BEFORE)] == [BEFORE]
        assert found.records("scan", BEFORE) == []
        assert len(found.records("part")) == len(keys) + 1


def test_the_first_of_two_results_of_a_part_is_kept(ledger: Ledger) -> None:
    first = ledger.write(f"parts/{KEY}", ".h5", b"first")
    second = ledger.write(f"parts/{KEY}", ".h5", b"second")
    record = Record(KEY, NOW, first, {"n_rows": 1})
    for each in (record, Record(KEY, NOW, second, {"n_rows": 2}), record):
        ledger.commit(each)
        assert ledger.records() == [record]
    assert contents(ledger.directory / "parts") == {Path(first.file).name: b"first"}
    assert len(os.listdir(ledger.directory / "commits")) == 1
    assert reopen(ledger).records("part", NOW) == [record]


def test_a_result_of_an_earlier_run_takes_precedence(ledger: Ledger) -> None:
    record = commit(ledger)
    assert commit(reopen(ledger), data=b"other") == record
    assert set(contents(ledger.directory / "parts").values()) == {b"data"}


# -- results that are committed together -------------------------------------------------------------------------


def test_grouped_results_are_found_by_later_runs(ledger: Ledger) -> None:
    commit(ledger, "scan")
    records = commit_together(ledger, *KEYS)
    assert [record.key for record in records] == KEYS
    assert len(record_files(ledger)) == 2
    for found in (ledger, reopen(ledger)):
        assert found.records("part", NOW) == records
        assert [found.load(record) for record in records] == [key.encode() for key in KEYS]
        found.sweep(NOW)
    assert len(record_files(ledger)) == 2


def test_committing_nothing_writes_nothing(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        recording.calls.clear()
        ledger.commit()
    assert recording.calls == []


def test_the_first_of_two_results_in_a_group_is_kept(ledger: Ledger) -> None:
    earlier = commit(ledger, KEYS[1])
    records = commit_together(ledger, KEYS[0], KEYS[0], KEYS[1], KEYS[2])
    assert [record.facts.get("i") for record in records] == [0, 0, None, 3]
    assert records[2] == earlier
    assert set(contents(ledger.directory / "parts")) == {Path(record.entry.file).name for record in records}
    assert reopen(ledger).records("part", NOW) == [records[0], earlier, records[3]]


def test_files_are_synced_before_their_record_is_written(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        recording.calls.clear()
        commit_together(ledger, *KEYS)
    paths = [Path(str(path)) if isinstance(path, Path) else Path() for _, path in recording.calls]
    first_of_record = next(i for i, path in enumerate(paths) if path.parent.name == "commits")
    assert recording.calls[first_of_record - 1] == ("sync_directory", tmp_path / "parts")
    assert {path.parent.name for path in paths[first_of_record:]} <= {"commits", "", tmp_path.name}
    assert recording.calls[-1] == ("sync_directory", tmp_path / "commits")
    assert recording.names[:first_of_record].count("sync") == len(KEYS)


def test_dropping_results_of_a_group_keeps_the_others(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        records = commit_together(ledger, *KEYS)
        recording.calls.clear()
        ledger.drop(records[0], records[3])
        names = recording.names
        files = [tmp_path / records[i].entry.file for i in (0, 3)]
        assert names.index("replace") < names.index("sync_directory") < len(names) - 2
        assert recording.calls[-2:] == [("remove", path) for path in files]
        for found in (ledger, reopen(ledger)):
            assert found.records("part", NOW) == [records[i] for i in (1, 2, 4)]
        recommitted = commit(ledger, KEYS[0], data=b"new")
        assert reopen(ledger).records("part", NOW) == [recommitted, *(records[i] for i in (1, 2, 4))]
        ledger.drop(*ledger.records("part", NOW))
    assert contents(tmp_path) == {}


def test_replacing_results_removes_groups_of_other_settings(ledger: Ledger) -> None:
    commit_together(ledger, *KEYS, made_from=BEFORE)
    records = commit_together(ledger, *KEYS)
    found = reopen(ledger)
    found.sweep(NOW)
    assert reopen(ledger).records("part") == records
    assert len(record_files(ledger)) == 1
    found.forget()
    assert contents(ledger.directory) == {}


# -- removing results --------------------------------------------------------------------------------------------


def test_a_record_is_removed_durably_before_its_file(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        records = [commit(ledger), commit(ledger, OTHER)]
        files = record_files(ledger)
        recording.calls.clear()
        ledger.drop(*records)
    assert recording.calls[:2] in ([("remove", path) for path in order] for order in (files, files[::-1]))
    assert recording.calls[2:] == [
        ("sync_directory", tmp_path / "commits"),
        *(("remove", tmp_path / record.entry.file) for record in records),
    ]
    assert contents(tmp_path) == {}


def test_dropping_nothing_writes_nothing(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        recording.calls.clear()
        ledger.drop()
    assert recording.calls == []


def test_a_dropped_result_can_be_committed_again(ledger: Ledger) -> None:
    ledger.drop(commit(ledger))
    record = commit(ledger, data=b"new")
    assert reopen(ledger).records("part", NOW) == [record]


def test_a_manifest_is_removed_durably_before_its_files(tmp_path: Path) -> None:
    """If a run starts over, a reader must find an unfinished run, never some files of the old one."""
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        commit(ledger)
        ledger.finish({}, {"parts": []})
        recording.calls.clear()
        ledger.forget()
    published = tmp_path / "published"
    assert recording.calls[:2] == [("remove", published / "current"), ("sync_directory", published)]
    assert contents(tmp_path) == {}
    assert os.listdir(published) == []


def test_sweeping_and_forgetting_keep_foreign_files(ledger: Ledger) -> None:
    foreign = fill(ledger.directory, *FOREIGN)
    for act in (ledger.sweep, lambda: ledger.sweep(NOW), ledger.forget, lambda: reopen(ledger)):
        fill(ledger.directory, *HALF_WRITTEN)
        commit(ledger)
        act()
        assert {name: data for name, data in contents(ledger.directory).items() if name in foreign} == foreign
    ledger.forget()
    assert contents(ledger.directory) == foreign


def test_foreign_directories_are_kept_for_any_name(ledger: Ledger) -> None:
    bad = commit(ledger)
    for name in (bad.entry.file, file_of(ledger)):
        (ledger.directory / name).unlink()
        fill(ledger.directory, f"{name}/thesis.tex")
    foreign = fill(ledger.directory, f"stages/scan-{HEX}.npz/thesis.tex", f"index.h5.{HEX}.writing/thesis.tex")
    ledger.drop(bad)
    found = reopen(ledger)
    found.forget()
    assert len(contents(ledger.directory)) == len(foreign) + 2


def test_sweeping_removes_every_temporary_file(ledger: Ledger) -> None:
    fill(ledger.directory, *HALF_WRITTEN)
    ledger.sweep()
    assert contents(ledger.directory) == {}


def test_results_of_other_settings_are_kept_until_replaced(ledger: Ledger) -> None:
    newer = commit(ledger)
    other = commit(ledger, made_from=BEFORE)
    found = reopen(ledger)
    found.sweep()
    assert found.records("part", NOW) == [newer]
    assert found.records("part", BEFORE) == [other]
    found.sweep(NOW)
    assert set(contents(ledger.directory)) == {file_of(ledger), newer.entry.file}


def test_files_of_the_manifest_are_kept_without_their_record(ledger: Ledger) -> None:
    record = commit(ledger)
    ledger.finish({}, {"parts": [{"file": record.entry.file}], "files": [{"file": "bad_rows.jsonl"}]})
    fill(ledger.directory, "bad_rows.jsonl", "model-last-good.h5")
    (ledger.directory / file_of(ledger)).unlink()
    found = reopen(ledger)
    found.sweep(NOW)
    remaining = {name for name in contents(ledger.directory) if not name.startswith("published/")}
    assert remaining == {MANIFEST, record.entry.file, "bad_rows.jsonl"}


def test_optional_files_are_removed_if_results_are_replaced(ledger: Ledger) -> None:
    fill(ledger.directory, "bad_rows.jsonl", "model-last-good.h5", "model.h5")
    ledger.sweep()
    assert len(contents(ledger.directory)) == 3
    ledger.sweep(NOW)
    assert set(contents(ledger.directory)) == {"model.h5"}


# -- reports of a run --------------------------------------------------------------------------------------------


def test_a_manifest_can_be_read_again(ledger: Ledger) -> None:
    assert ledger.manifest() is None
    ledger.finish({"inputs": {}}, {"parts": [{"file": "größe \udcff"}], "n_rows": 3})
    expected = {"parts": [{"file": "größe \udcff"}], "n_rows": 3, "request": {"inputs": {}}}
    assert read_manifest(ledger.directory) == ledger.manifest() == expected


def test_the_request_is_written_only_if_it_changed(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        assert ledger.request() is None
        ledger.set_request({"epochs": 1})
        n_calls = len(recording.calls)
        ledger.set_request({"epochs": 1})
        assert len(recording.calls) == n_calls
        assert ledger.request() == {"epochs": 1}
        ledger.set_request({"epochs": 2})
        assert reopen(ledger).request() == {"epochs": 2}
        ledger.set_request({"epochs": 2}, {"ends_by": 1.5})
        assert (reopen(ledger).request(), reopen(ledger).deadline()) == ({"epochs": 2}, {"ends_by": 1.5})
        ledger.set_request({"epochs": 2})
        assert ledger.deadline() is None
        (tmp_path / "run.json").write_bytes(b"{")
        assert ledger.request() is None
        ledger.set_request({"epochs": 2})
        assert ledger.request() == {"epochs": 2}


def test_a_moved_directory_keeps_its_results(ledger: Ledger, tmp_path: Path) -> None:
    record = commit(ledger)
    ledger.finish({}, {"parts": [{"file": record.entry.file}]})
    shutil.copytree(ledger.directory, tmp_path / "moved", symlinks=True)
    with locked(tmp_path / "moved") as moved:
        assert moved.records("part", NOW) == [record]
        assert fault_of(moved.directory, record.entry) is None
        assert moved.manifest() == ledger.manifest()
    assert not os.path.isabs(record.entry.file)
    assert isinstance(record.entry, Entry)
