"""What stands in an output directory: results and their commit records, the manifest, and the names of all of them."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, NewerFormat, NoInput, NotPermitted, ReadFailed, shown
from pipeline.formats import digest, seal, unseal
from pipeline.output.disk import TEMPORARY, Disk, publish, write_error

__all__ = [
    "FOLDERS",
    "HALF",
    "LAST_GOOD",
    "MANIFEST",
    "OPTIONAL",
    "OUTPUT",
    "RECORD",
    "RECORDS",
    "RESULT",
    "Entry",
    "Record",
    "check_limits",
    "fault",
    "files_of",
    "read_manifest",
    "record_of",
    "records_of",
    "sealed",
    "write_result",
]

MANIFEST = "manifest.json"
LAST_GOOD = "model-last-good.h5"  # of a training that diverged
_PIECE = 2**20  # bytes read at once
FOLDERS = ("parts", "stages", "commits")
OUTPUT, _COMMIT, _COMMITS = "shardpress-output/1", "shardpress-commit/1", "shardpress-commits/1"
_TOP = (
    r"\.shardpress|(manifest|run|report)\.json|(model|model-last-good|index|single)\.h5|encoder\.npz|quarantine\.jsonl"
)
OPTIONAL = (LAST_GOOD, "single.h5", "quarantine.jsonl")  # of those above, what not every run leaves
RESULT = re.compile(r"(parts/part|stages/(scan|checkpoint|model))-[0-9-]*[0-9a-f]{32}\.(h5|npz)")
RECORD = re.compile(r"commits/([a-z]+(?:-[0-9]+)*-[0-9a-f]{16})\.json")
RECORDS = re.compile(r"commits/[a-z]+-[0-9a-f]{32}\.json")
HALF = re.compile(rf"({_TOP}|{RESULT.pattern}|{RECORD.pattern}|{RECORDS.pattern})\.[0-9a-f]{{32}}\{TEMPORARY}")


@dataclass(frozen=True)
class Entry:
    """A file that stands in the output directory.

    Attributes
    ----------
    file : str
        Relative to the directory.
    n_bytes : int
    blake3 : str
    """

    file: str
    n_bytes: int
    blake3: str


@dataclass(frozen=True)
class Record:
    """What makes a result exist.

    Attributes
    ----------
    key : str
        What the result is: ``scan``, ``model``, ``checkpoint-<step>``, ``part-<shard>-<row>``.
    fingerprint : str
        Of everything it was made from.
    entry : Entry
        Its file.
    facts : dict
        Plain values.
    """

    key: str
    fingerprint: str
    entry: Entry
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it is written when it is committed alone, relative to the output directory."""
        return f"commits/{self.key}-{self.fingerprint[:16]}.json"


def write_result(directory: Path, disk: Disk, stem: str, suffix: str, data: bytes | memoryview) -> Entry:
    """Put a result's file there, under a name that nothing else ever has. It does not exist until it is committed.

    May be called from any thread or process; raises like `pipeline.output.disk.publish`.
    """
    name = f"{stem}-{uuid.uuid4().hex}{suffix}"
    publish(disk, directory / name, data, name_is_synced=False)
    return Entry(name, len(data), digest([data]))


def read_manifest(directory: Path) -> dict[str, Any]:
    """What a finished run says of itself.

    Raises
    ------
    NoInput
        When `directory` holds no finished run.
    ReadFailed, SystemLimit
        When the storage or the system fails.
    DataError
        When its manifest is damaged or of another format.
    NewerFormat
    NotPermitted
        When it may not be read, or names files outside the directory.
    """
    path = directory / MANIFEST
    try:
        manifest = unseal(OUTPUT, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(
            f"file={shown(path)}: {error.strerror}, expected the output directory of a finished run"
        ) from error
    except PermissionError as error:
        raise NotPermitted(f"file={shown(path)}: {error.strerror}, expected a file that you may read") from error
    except OSError as error:
        check_limits(error, path)
        raise ReadFailed(f"file={shown(path)}: {error.strerror}. Check the storage.") from error
    except NewerFormat as error:
        raise NewerFormat(f"file={shown(path)}: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"file={shown(path)}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"file={shown(path)}: not JSON of ours: {error}") from error
    try:
        names = files_of(manifest)
    except (KeyError, TypeError) as error:
        raise DataError(f"file={shown(path)}: names no proper parts: {error!r}") from error
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise NotPermitted(
                f"file={shown(path)}: names the file {shown(name)}, expected names inside the directory only. Do not "
                "use this output."
            )
    return manifest


def check_limits(error: Exception, path: Path) -> None:
    """Raise what says nothing about the file: that this process, or the system, has too many open."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise write_error(error, path, "reading it") from error


def files_of(manifest: Mapping[str, Any] | None) -> list[str]:
    """Every file that a manifest names."""
    return [str(line["file"]) for key in ("parts", "files") for line in (manifest or {}).get(key, [])]


def fault(directory: Path, entry: Entry, digests: bool = True) -> str | None:
    """What is wrong with a file of ours; None when it is as it was written.

    Parameters
    ----------
    directory : Path
    entry : Entry
    digests : bool
        Read it and compare its BLAKE3, instead of its size only.
    """
    path = directory / entry.file
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return f"file={shown(path)}: no regular file any more"
            if status.st_size != entry.n_bytes:
                return f"file={shown(path)}: {status.st_size} bytes, expected {entry.n_bytes} as committed"
            if digests and digest(iter(partial(file.read, _PIECE), b"")) != entry.blake3:
                return f"file={shown(path)}: its BLAKE3 is not the one committed: the content has changed"
    except OSError as error:
        check_limits(error, path)
        return f"file={shown(path)}: committed, but cannot be read: {error.strerror}"
    return None


def sealed(records: Record | Sequence[Record]) -> bytes:
    """The content of a file of one record, or of several."""
    if isinstance(records, Record):
        return seal(_COMMIT, _plain(records))
    return seal(_COMMITS, {"records": [_plain(record) for record in records]})


def _plain(record: Record) -> dict[str, Any]:
    return {**vars(record), "entry": vars(record.entry)}


def record_of(data: bytes, name: str) -> list[Record]:
    """What a file of one record holds, or a `ValueError`, `KeyError` or `TypeError`."""
    record = _as_record(unseal(_COMMIT, data))
    if name != f"{record.key}-{record.fingerprint[:16]}":
        raise ValueError("its name and its content differ")
    return [record]


def records_of(data: bytes) -> list[Record]:
    """What a file of several records holds, or an error like that of `record_of`."""
    return [_as_record(content) for content in unseal(_COMMITS, data)["records"]]


def _as_record(content: dict[str, Any]) -> Record:
    record = Record(**{**content, "entry": Entry(**content["entry"])})
    if not RECORD.fullmatch(record.path) or not RESULT.fullmatch(record.entry.file):
        raise ValueError("names what is no result")
    return record
