"""Contents of an output directory: results, commit records, the manifest, and the names of these files."""

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

from shardpress.errors import DataError, NoInput, NotPermitted, OtherVersion, ReadFailed, printable
from shardpress.formats import Digested, digest, seal, unseal
from shardpress.output.disk import TEMPORARY, Disk, Pieces, publish, write_error

MANIFEST = "manifest.json"
LAST_GOOD = "model-last-good.h5"
"""Model of the last finite parameters of a training run that diverged."""
INDEX = "index.h5"
NAMES = (
    MANIFEST,
    "model.h5",
    INDEX,
    "report.json",
    "report.html",
    "bad_rows.jsonl",
)
"""Names in the output directory of the files that a finished run publishes together."""
PUBLISHED = "published"
CURRENT = f"{PUBLISHED}/current"
"""The symbolic link whose target is the publication that readers see."""
FOLDERS = ("parts", "stages", "commits")
OUTPUT = "shardpress-output/2"
_COMMITS = "shardpress-commits/2"
# Error numbers of `open` and `read` that concern the file itself.
_ABOUT_THE_FILE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EACCES,
    errno.EPERM,
)
_PIECE = 2**20  # bytes read at once, so that verifying large parts takes little memory

# Only files with these names are ever removed. All others belong to the user.
_OPTIONAL = (LAST_GOOD, "bad_rows.jsonl")  # written only by some runs
_TOP = (
    r"\.shardpress|(manifest|run|report)\.json|report\.html|(model|model-last-good|index)\.h5"
    r"|bad_rows\.jsonl"
)
_RESULT = re.compile(
    r"(parts/part|index|stages/(scan|checkpoint|model|probe|reference|map|generation))-[0-9-]*[0-9a-f]{32}\.(h5|npz|txt|json)"
)
RECORDS = re.compile(r"commits/[a-z]+-[0-9a-f]{32}\.json")
"""Pattern for the names of files of commit records."""
_TEMPORARY = re.compile(rf"({_TOP}|{CURRENT}|{_RESULT.pattern}|{RECORDS.pattern})\.[0-9a-f]{{32}}\{TEMPORARY}")
_PUBLICATION = re.compile(rf"{PUBLISHED}/[0-9a-f]{{32}}")
_IDENTITY = re.compile(r"[a-z]+(-[0-9]+)* [0-9a-f]{64}")  # key and fingerprint


@dataclass(frozen=True)
class Entry:
    """A file in the output directory."""

    file: str  # path relative to the directory
    n_bytes: int
    blake3: str  # digest of the content, in hexadecimal digits


@dataclass(frozen=True)
class Record:
    """Commit record of one result."""

    key: str  # scan, model, reference, checkpoint-<step>, part-<shard>-<row>, generation-<number>, map-<number>
    fingerprint: str  # of everything that determines the result
    entry: Entry
    facts: dict[str, Any] = field(default_factory=dict)  # plain values that are stored with the record

    @property
    def kind(self) -> str:
        """First word of the key."""
        return self.key.partition("-")[0]

    @property
    def identity(self) -> tuple[str, str]:
        return self.key, self.fingerprint


def write_result(directory: Path, disk: Disk, stem: str, suffix: str, data: bytes | memoryview | Pieces) -> Entry:
    """Write the file of a result under a unique name. The result exists only when a commit record names the file.

    Any thread or process can call this. It raises like `shardpress.output.disk.publish`.
    """
    name = f"{stem}-{uuid.uuid4().hex}{suffix}"  # independent of clocks and seeds
    # The directory is synced before the record is written, once for a group of results.
    if isinstance(data, Pieces):
        content = Digested(data.pieces)
        publish(disk, directory / name, Pieces(data.n_bytes, content), name_is_synced=False)
        return Entry(name, content.n_bytes, content.blake3)
    publish(disk, directory / name, data, name_is_synced=False)
    return Entry(name, len(data), digest([data]))


def sealed(records: Sequence[Record]) -> bytes:
    content = [{**vars(record), "entry": vars(record.entry)} for record in records]
    return seal(_COMMITS, {"records": content})


def unsealed(path: Path, form: str = OUTPUT) -> dict[str, Any]:
    """Return the content of a sealed file.

    Raises
    ------
    OSError, ValueError
        If the file cannot be read or is damaged.
    OtherVersion
        If another version of shardpress has written the file.
    ReadFailed, SystemLimit
        If the storage or the system fails, which does not mean that the file is damaged.
    """
    try:
        return unseal(form, path.read_bytes())
    except OtherVersion as error:
        raise type(error)(f"file={printable(path)}: {error}") from error
    except OSError as error:
        check_storage(error, path)
        raise


def check_limits(error: OSError, path: Path) -> None:
    """Raise `SystemLimit` if a file could not be read because too many files are open."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise write_error(error, path, "reading it") from error


def check_storage(error: OSError, path: Path) -> None:
    """Raise `ReadFailed` or `SystemLimit`, unless `error` concerns the file itself, such as a missing file.

    A result that is temporarily unreadable is not damaged. It is neither removed nor recomputed.
    """
    check_limits(error, path)
    if error.errno not in _ABOUT_THE_FILE:
        raise ReadFailed(
            f"file={printable(path)}: {error.strerror} while reading it. Check the storage, then run the same command "
            "again. If only this file remains unreadable, delete it; it is then recomputed."
        ) from error


def records_of(directory: Path, name: str) -> list[Record]:
    """Return all records of a file; raise `KeyError`, `TypeError`, or an error of `unsealed` if one is invalid."""
    return [_record(content) for content in unsealed(directory / name, _COMMITS)["records"]]


def _record(content: dict[str, Any]) -> Record:
    record = Record(**{**content, "entry": Entry(**content["entry"])})
    # The files of dropped records are removed, so a record must not name any other file.
    if not _IDENTITY.fullmatch(" ".join(record.identity)) or not _RESULT.fullmatch(record.entry.file):
        raise ValueError("its key is not the key of a result")
    return record


def read_manifest(directory: Path) -> dict[str, Any]:
    """Return the manifest of a finished run.

    Raises
    ------
    NoInput
        If `directory` does not hold a finished run.
    ReadFailed, SystemLimit
        If the storage or the system fails.
    DataError
        If the manifest is damaged or has another format.
    OtherVersion
        If another version of shardpress has written the manifest.
    NotPermitted
        If the user has no permission to read the manifest, or it lists files outside the directory.
    """
    return _checked_manifest(directory / MANIFEST)


def read_generation(directory: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of an earlier generation, whose file the current manifest lists as `entry`."""
    return _checked_manifest(directory / result_entry(directory, entry).file)


def result_entry(directory: Path, line: Mapping[str, Any]) -> Entry:
    """Return the entry of a result that a manifest names in addition to its parts and files.

    Raise `NotPermitted` for any other name, because a result is in the output directory.
    """
    try:
        entry = Entry(str(line["file"]), int(line["n_bytes"]), str(line["blake3"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"output={printable(directory)}: its manifest has an invalid entry: {error!r}") from error
    if not _RESULT.fullmatch(entry.file):
        raise NotPermitted(
            f"output={printable(directory)}: its manifest names {printable(entry.file)}, expected a result that "
            "shardpress wrote. Do not use this output."
        )
    return entry


def _checked_manifest(path: Path) -> dict[str, Any]:
    manifest, names = _load_manifest(path)
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or not _is_allowed(name):
            found = f"lists the file {printable(name)}, expected only names inside the directory"
            raise NotPermitted(f"file={printable(path)}: {found}. Do not use this output.")
    return manifest


def _load_manifest(path: Path) -> tuple[dict[str, Any], list[str]]:
    where = f"file={printable(path)}"
    try:
        manifest = unsealed(path)
        return manifest, files_of(manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        expected = "expected the output directory of a finished run, with its links. Check the path, or finish the run."
        raise NoInput(f"{where}: no finished run ({error.strerror}), {expected}") from error
    except PermissionError as error:
        raise NotPermitted(
            f"{where}: {error.strerror}, expected a file that you can read. As its owner, run chmod u+r on it."
        ) from error
    except OSError as error:
        raise ReadFailed(f"{where}: {error.strerror}. Check the storage, then run the same command again.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON that shardpress wrote: {error}") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: has an invalid list of parts or files: {error!r}") from error


def _is_allowed(name: str) -> bool:
    """Return whether a manifest is allowed to name a file: in `PUBLISHED`, only files of publications, not links."""
    if Path(name).parts[:1] != (PUBLISHED,):
        return True
    folder, _, plain = name.rpartition("/")
    return plain in NAMES and bool(_PUBLICATION.fullmatch(folder))


def publications(directory: Path) -> list[Path]:
    """Return the directories of all publications, finished or not. Links are not followed."""
    folder = directory / PUBLISHED
    if folder.is_symlink():
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = [folder / name for name in names if _PUBLICATION.fullmatch(f"{PUBLISHED}/{name}")]
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def plain_name(file: str) -> str:
    """Return the plain name under which users find a file of a manifest."""
    name = file.rpartition("/")[2]
    return name if name in NAMES else file


def files_of(manifest: Mapping[str, Any]) -> list[str]:
    lines = [*manifest.get("parts", []), *manifest.get("files", [])]
    return [str(line["file"]) for line in lines]


def is_index(path: str) -> bool:
    """Return whether a path is the path of an index, or of a view that an index names."""
    return path.startswith("index-") and bool(_RESULT.fullmatch(path))


def is_left(path: str, is_replaced: bool = False) -> bool:
    """Return whether a relative path has the name of a result or of a temporary file.

    If the finished run is being replaced, files that only some runs write are included.
    """
    if _TEMPORARY.fullmatch(path) or _RESULT.fullmatch(path):
        return True
    return is_replaced and path in _OPTIONAL


def fault_of(directory: Path, entry: Entry, digests: bool = True) -> str | None:
    """Return the fault of a file; None if it is unchanged. Without `digests`, compare only its size.

    Raise `ReadFailed` or `SystemLimit` if the storage or the system fails.
    """
    path = directory / entry.file
    try:
        # Links are not followed, and opening a FIFO does not wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fault = _difference(descriptor, entry, digests)
        finally:
            os.close(descriptor)
    except OSError as error:
        check_storage(error, path)
        fault = f"committed, but cannot be read: {error.strerror}"
    return None if fault is None else f"file={printable(path)}: {fault}"


def _difference(descriptor: int, entry: Entry, digests: bool) -> str | None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return "no longer a regular file"
    if status.st_size != entry.n_bytes:
        return f"{status.st_size} bytes, expected {entry.n_bytes} as committed"
    if digests:
        pieces = iter(partial(os.read, descriptor, _PIECE), b"")
        if digest(pieces) != entry.blake3:
            return "its content has changed: the BLAKE3 digest differs from the committed one"
    return None
