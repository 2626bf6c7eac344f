"""Helpers that write, name and publish results, reopen a journal, and read its directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from shardpress.base.formats import fingerprint
from shardpress.output.folder import unique_name
from shardpress.output.journal import Journal, PartRecord, Record
from shardpress.result.finished import result_bytes
from shardpress.result.records import Part, Range, Request
from tests.support.hostilemodels import model_of
from tests.support.parts import shard_facts
from tests.support.runfacts import run_facts

KEY = "part-000000-000000000000"
OTHER = "part-000000-000000000016"
KEYS = [f"part-{i:06d}-000000000000" for i in range(5)]
NOW = fingerprint("now")
BEFORE = fingerprint("before")
HEX = "0123456789abcdef" * 2
REQUEST = Request(shards=[], scan={}, training={"epochs": 1}, encoding={})


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, except for the marker, the lock and the journal."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name not in (".shardpress", "lock", "journal.jsonl"):
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def fill(folder: Path, *names: str) -> dict[str, bytes]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(name.encode())
    return {name: name.encode() for name in names}


def written(journal: Journal, key: str = KEY, made_from: str = NOW, data: bytes = b"data") -> Record | PartRecord:
    """Write the file of a result, which the journal does not name yet."""
    kind = key.split("-")[0]
    name = unique_name(f"parts/{key}", ".h5") if kind == "part" else unique_name(f"work/{kind}", ".npz")
    entry = journal.write(name, data)
    if kind == "part":
        return PartRecord(made_from, Part(entry, 1, []))
    return Record(key, made_from, entry)


def add(journal: Journal, key: str = KEY, made_from: str = NOW, data: bytes = b"data") -> Any:
    """Write a result and name it in the journal. Return its record."""
    record = written(journal, key, made_from, data)
    journal.add(record)
    return record


def named(journal: Journal) -> list[Record | PartRecord]:
    """Return all results that a journal names."""
    return [*journal.records(), *journal.parts()]


def index_of(*records: Record | PartRecord) -> bytes:
    """Return the content of an index with these parts, and without datasets."""
    shard = shard_facts(0, len(records))
    facts = run_facts(request=replace(REQUEST, shards=[shard]))
    parts = [Part(record.entry, 1, [Range(0, shard.id, i, i + 1)]) for i, record in enumerate(records)]
    return result_bytes(lambda file: None, model_of(), facts, parts, {}, {})


def reopen(journal: Journal, restarts: bool = False) -> Journal:
    """Open the directory of a journal again, as a later run does."""
    return Journal(journal.directory, journal.disk, restarts)
