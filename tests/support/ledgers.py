"""Helpers that write and commit results, reopen a ledger, and read its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardpress.formats import fingerprint
from shardpress.output.ledger import Ledger
from shardpress.output.records import Record

KEY = "part-000000-000000000000"
OTHER = "part-000000-000000000016"
KEYS = [f"part-{i:06d}-000000000000" for i in range(5)]
NOW = fingerprint("now")
BEFORE = fingerprint("before")
HEX = "0123456789abcdef" * 2


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, except for the marker and the lock."""
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
    return valid_record(ledger, record)


def valid_record(ledger: Ledger, record: Record) -> Record:
    """Return the ledger's valid record with the same identity as `record`."""
    (found,) = (each for each in ledger.records() if each.identity == record.identity)
    return found


def commit_together(ledger: Ledger, *keys: str, made_from: str = NOW) -> list[Record]:
    """Write and commit results in one group."""
    entries = [ledger.write(f"parts/{key}", ".h5", key.encode()) for key in keys]
    records = [
        Record(key, made_from, entry, {"i": i}) for i, (key, entry) in enumerate(zip(keys, entries, strict=True))
    ]
    ledger.commit(*records)
    return [valid_record(ledger, record) for record in records]


def reopen(ledger: Ledger) -> Ledger:
    """Open the directory of a ledger again, as a later run does."""
    return Ledger(ledger.directory, ledger.disk)


def record_files(ledger: Ledger) -> list[Path]:
    return sorted((ledger.directory / "commits").iterdir())


def file_of(ledger: Ledger) -> str:
    """Return the relative path of the only record file."""
    (path,) = record_files(ledger)
    return f"commits/{path.name}"
