"""Tests of files, records and the manifest: damaged files are ignored and reported with their names."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardpress.errors import ReadFailed, printable
from shardpress.formats import seal
from shardpress.output.ledger import Ledger
from shardpress.output.lock import locked
from shardpress.output.records import MANIFEST, fault_of, read_manifest
from tests.support.faulty import forked
from tests.support.helpers import refused, without_privileges
from tests.support.ledgers import (
    HEX,
    KEY,
    KEYS,
    NOW,
    OTHER,
    commit,
    commit_together,
    contents,
    file_of,
    record_files,
    reopen,
)


@pytest.mark.process
def test_names_are_unique_for_any_clock(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("time", "time_ns", "monotonic", "monotonic_ns"):
        monkeypatch.setattr(time, name, lambda: 0)
    random.seed(0)

    def write(n_files: int) -> list[str]:
        return [ledger.write(f"parts/{KEY}", ".h5", b"").file for _ in range(n_files)]

    names = write(50)
    for _ in range(2):  # processes that are forks of each other
        names += forked(lambda: write(50))[1]
    assert len(set(names)) == 150 == len(os.listdir(ledger.directory / "parts"))


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
def test_the_fault_of_a_damaged_result_is_named(ledger: Ledger, kind: str) -> None:
    good = commit(ledger, OTHER)
    bad = commit(ledger)
    damage, words = DAMAGE[kind]
    damage(ledger.directory / bad.entry.file)
    assert fault_of(ledger.directory, good.entry) is None
    found = fault_of(ledger.directory, bad.entry)
    assert found is not None
    assert found.startswith(f"file={ledger.directory / bad.entry.file}: ")
    assert words in found
    assert (fault_of(ledger.directory, bad.entry, digests=False) is None) == (kind == "flipped")


@pytest.mark.parametrize("kind", ["deleted", "truncated", "flipped", "directory"])
def test_a_damaged_result_is_not_loaded(ledger: Ledger, kind: str) -> None:
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
    return seal("shardpress-commits/2", {"records": contents})


DAMAGED_RECORDS = {
    "empty": b"",
    "zeros": bytes(400),
    "half": group_of(RECORD)[:200],
    "edited": group_of(RECORD).replace(b'"n_bytes": 1', b'"n_bytes": 2'),
    "unknown version": seal("shardpress-commits/x", {"records": [RECORD]}),
    "other format": seal("shardpress-output/2", {"records": [RECORD]}),
    "not in a list": seal("shardpress-commits/2", RECORD),
    "list": b"[]",
    "no records": seal("shardpress-commits/2", {}),
    "a number of records": seal("shardpress-commits/2", {"records": 3}),
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


@pytest.mark.parametrize("n_parts", [1, 5], ids=["alone", "together"])
def test_a_damaged_record_file_is_ignored_and_named(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, n_parts: int
) -> None:
    """Its results are lost; all other results stay valid."""
    victim = ledger.directory.parent / "victim"
    victim.write_bytes(b"precious")
    for words, content in DAMAGED_RECORDS.items():
        commit_together(ledger, *KEYS[:n_parts])
        (damaged,) = record_files(ledger)
        good = commit(ledger, OTHER)
        damaged.write_bytes(content)
        found = reopen(ledger)
        assert f"file={damaged}: " in caplog.text, words
        assert found.records("part") == [good], words
        found.sweep()
        assert set(contents(ledger.directory)) == {file_of(ledger), good.entry.file}, words
        assert victim.read_bytes() == b"precious", words
        found.forget()
        ledger = reopen(found)


def test_a_record_file_of_a_later_version_is_refused(ledger: Ledger) -> None:
    commit_together(ledger, *KEYS)
    (group,) = record_files(ledger)
    group.write_bytes(seal("shardpress-commits/3", {}))
    before = contents(ledger.directory)
    with refused(76, f"file={group}: ", "shardpress-commits/3"):
        reopen(ledger)
    assert contents(ledger.directory) == before


@pytest.mark.parametrize("act", ["records", "fault", "load", "manifest", "request"])
def test_too_many_open_files_are_a_system_limit(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, act: str) -> None:
    record = commit(ledger)
    ledger.finish({}, {"parts": []})
    before = contents(ledger.directory)
    acts = {
        "records": lambda: reopen(ledger),
        "fault": lambda: fault_of(ledger.directory, record.entry),
        "load": lambda: ledger.load(record),
        "manifest": reopen(ledger).manifest,
        "request": ledger.request,
    }

    def fail(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as context:
        context.setattr(*((os, "open") if act == "fault" else (Path, "read_bytes")), fail)
        with refused(71, os.strerror(errno.EMFILE), "ulimit -n"):
            acts[act]()
    assert contents(ledger.directory) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EIO, errno.EAGAIN])
def test_an_error_of_the_system_does_not_count_as_damage(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    record = commit(ledger)
    before = contents(ledger.directory)

    def fail(*_arguments: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as context:
        context.setattr(os, "open", fail)
        with pytest.raises(ReadFailed):
            fault_of(ledger.directory, record.entry)
    with monkeypatch.context() as context:
        context.setattr(Path, "read_bytes", fail)
        with pytest.raises(ReadFailed):
            ledger.load(record)
        with pytest.raises(ReadFailed):
            reopen(ledger)
    assert contents(ledger.directory) == before


# -- the manifest ------------------------------------------------------------------------------------------------


def test_a_run_without_a_manifest_is_unfinished(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (ledger.directory, tmp_path / "nowhere", tmp_path / "file"):
        with refused(66, f"file={folder / MANIFEST}: "):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"{", "JSON"),
        (b"\xff", "JSON"),
        (b"", "JSON"),
        (bytes(100), "JSON"),
        (b"[]", "format"),
        (b"[" * 100_000, "nested"),
        (seal("shardpress-output/x", {"parts": []}), "'shardpress-output/2'"),
        (seal("shardpress-output/2", {"parts": []}).replace(b"parts", b"trap"), "digest"),
        (seal("shardpress-output/2", {"parts": [{}]}), "parts"),
        (seal("shardpress-output/2", {"parts": 3}), "parts"),
        (json.dumps({"format": "shardpress-output/2", "parts": []}).encode(), "digest"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_damaged_manifest_makes_its_run_unfinished(
    ledger: Ledger, caplog: pytest.LogCaptureFixture, content: bytes, phrase: str
) -> None:
    (ledger.directory / MANIFEST).write_bytes(content)
    with refused(65, MANIFEST, phrase):
        read_manifest(ledger.directory)
    assert ledger.manifest() is None
    assert f"file={ledger.directory / MANIFEST}: " in caplog.text


@pytest.mark.parametrize("key", ["parts", "files"])
def test_a_manifest_with_paths_outside_is_refused(ledger: Ledger, key: str) -> None:
    for name in ("/etc/passwd", "../victim", "parts/../../victim", "..", "a/..", "parts/\n/../x", "/", "//x"):
        ledger.finish({}, {key: [{"file": name}]})
        reopened = reopen(ledger)
        for read in (lambda: read_manifest(ledger.directory), reopened.manifest, reopened.sweep):
            with refused(77, f"file={ledger.directory / MANIFEST}: ", printable(f" {name}")):
                read()


@pytest.mark.process
def test_a_manifest_without_permission_is_refused(open_path: Path) -> None:
    with locked(open_path / "out") as ledger:
        ledger.finish({}, {"parts": []})
    (open_path / "out" / MANIFEST).chmod(0)
    exit_code, sentence = without_privileges(lambda: read_manifest(open_path / "out"))
    assert (exit_code, os.strerror(errno.EACCES) in sentence) == (77, True)


def test_a_storage_error_does_not_make_a_run_unfinished(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    ledger.finish({}, {"parts": []})
    reopened = reopen(ledger)
    monkeypatch.setattr(Path, "read_bytes", fail)
    with refused(74, MANIFEST, os.strerror(errno.EIO)):
        reopened.manifest()
