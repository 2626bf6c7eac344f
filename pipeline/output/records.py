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
from pipeline.formats import Digested, digest, seal, unseal
from pipeline.output.disk import TEMPORARY, Disk, Pieces, publish, write_error

__all__ = [
    "CURRENT",
    "FOLDERS",
    "INDEX",
    "LAST_GOOD",
    "MANIFEST",
    "NAMES",
    "OUTPUT",
    "PUBLISHED",
    "RECORDS",
    "SINGLE_FILE",
    "Entry",
    "Record",
    "check_limits",
    "check_storage",
    "fault_of",
    "files_of",
    "is_index",
    "is_left",
    "manifest_path",
    "plain_name",
    "publications",
    "published_file",
    "read_manifest",
    "records_of",
    "sealed",
    "unsealed",
    "write_result",
]

MANIFEST = "manifest.json"
LAST_GOOD = "model-last-good.h5"  # of a training that diverged
INDEX = "index.h5"
SINGLE_FILE = "single.h5"
NAMES = (
    *(MANIFEST, "model.h5", "encoder.npz", INDEX, "report.json", "report.html"),
    *("quarantine.jsonl", SINGLE_FILE),
)
"""Plain names, in the output directory itself, of the files that a finished run publishes together."""
PUBLISHED = "published"
CURRENT = f"{PUBLISHED}/current"
"""The symbolic link whose target is the publication that readers see."""
FOLDERS = ("parts", "stages", "commits")
OUTPUT = "shardpress-output/1"
_COMMITS = "shardpress-commits/1"
# Error numbers of an open or a read that say something about the file itself.
_ABOUT_THE_FILE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENXIO,
    errno.EACCES,
    errno.EPERM,
)
_PIECE = 2**20  # bytes read at once, so that verifying large parts takes no memory

# Only files of these names are ever removed: whatever else lies in the directory is somebody else's.
_OPTIONAL = (LAST_GOOD, "single.h5", "quarantine.jsonl")  # what not every run leaves
_TOP = (
    r"\.shardpress|(manifest|run|report)\.json|report\.html|(model|model-last-good|index|single)\.h5|encoder\.npz"
    r"|quarantine\.jsonl"
)
_RESULT = re.compile(r"(parts/part|index|stages/(scan|checkpoint|model|probe))-[0-9-]*[0-9a-f]{32}\.(h5|npz|txt)")
RECORDS = re.compile(r"commits/[a-z]+-[0-9a-f]{32}\.json")
"""Names of files of commit records."""
_HALF = re.compile(rf"({_TOP}|{CURRENT}|{_RESULT.pattern}|{RECORDS.pattern})\.[0-9a-f]{{32}}\{TEMPORARY}")
_PUBLICATION = re.compile(rf"{PUBLISHED}/[0-9a-f]{{32}}")
_IDENTITY = re.compile(r"[a-z]+(-[0-9]+)* [0-9a-f]{64}")  # key and fingerprint


@dataclass(frozen=True)
class Entry:
    """A file that stands in the output directory.

    Attributes
    ----------
    file : str
        Relative to the directory.
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
    facts : dict
        Plain values.
    """

    key: str
    fingerprint: str
    entry: Entry
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The key's first word."""
        return self.key.partition("-")[0]

    @property
    def identity(self) -> tuple[str, str]:
        """There is one result of each."""
        return self.key, self.fingerprint


def write_result(directory: Path, disk: Disk, stem: str, suffix: str, data: bytes | memoryview | Pieces) -> Entry:
    """Put a file there under a name that nothing else ever has. It does not exist until a record names it.

    May be called from any thread or process; raises like `pipeline.output.disk.publish`.
    """
    name = f"{stem}-{uuid.uuid4().hex}{suffix}"  # of no clock, which may jump back, and no seed
    # Its name is synced right before its record is written: once for all results of a group.
    if isinstance(data, Pieces):  # it need not fit in memory
        passing = Digested(data.pieces)
        publish(disk, directory / name, Pieces(len(data), passing), name_is_synced=False)
        return Entry(name, len(data), passing.blake3)
    publish(disk, directory / name, data, name_is_synced=False)
    return Entry(name, len(data), digest([data]))


def sealed(records: Sequence[Record]) -> bytes:
    """The content of a file of records."""
    return seal(_COMMITS, {"records": [{**vars(record), "entry": vars(record.entry)} for record in records]})


def unsealed(path: Path, form: str = OUTPUT) -> dict[str, Any]:
    """What a file of ours holds.

    Raises
    ------
    OSError, ValueError
        When it cannot be read, or is not as it was written.
    NewerFormat, ReadFailed, SystemLimit
        Which say nothing against it: it is of a later version, the storage failed, or too many others are open.
    """
    try:
        return unseal(form, path.read_bytes())
    except NewerFormat as error:
        raise NewerFormat(f"file={shown(path)}: {error}") from error
    except OSError as error:
        check_storage(error, path)
        raise


def check_limits(error: OSError, path: Path) -> None:
    """Raise what says nothing about a file: that this process, or the system, has too many open."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise write_error(error, path, "reading it") from error


def check_storage(error: OSError, path: Path) -> None:
    """Return if an error says that a file of ours is missing or replaced; raise an error of the system otherwise.

    A result that cannot be read for now is not damaged. It is neither removed nor recomputed.

    Raises
    ------
    ReadFailed
        When the storage or the system fails.
    SystemLimit
        When too many files are open.
    """
    check_limits(error, path)
    if error.errno not in _ABOUT_THE_FILE:
        raise ReadFailed(
            f"file={shown(path)}: {error.strerror} while reading it. Check the storage, then type the same command "
            "again. If this file alone stays unreadable, delete it: it is then recomputed."
        ) from error


def records_of(directory: Path, name: str) -> list[Record]:
    """Return the records of a file, all or none; raises like `unsealed`, and `KeyError` or `TypeError`."""
    return [_record(content) for content in unsealed(directory / name, _COMMITS)["records"]]


def _record(content: dict[str, Any]) -> Record:
    record = Record(**{**content, "entry": Entry(**content["entry"])})
    # What is dropped is removed, and what is swept is what no record names: so a record may name nothing but results.
    if not _IDENTITY.fullmatch(" ".join(record.identity)) or not _RESULT.fullmatch(record.entry.file):
        raise ValueError("names what is no result")
    return record


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
    path = manifest_path(directory)
    where = f"file={shown(path)}"
    try:
        manifest = unsealed(path)
        names = files_of(manifest)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(
            f"{where}: no finished run ({error.strerror}), expected the output directory of a finished run"
        ) from error
    except PermissionError as error:
        raise NotPermitted(f"{where}: {error.strerror}, expected a file that you may read") from error
    except OSError as error:
        raise ReadFailed(f"{where}: {error.strerror}. Check the storage.") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON of ours: {error}") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{where}: names no proper parts: {error!r}") from error
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts or not _is_in_its_place(name):
            found = f"names the file {shown(name)}, expected names inside the directory only"
            raise NotPermitted(f"{where}: {found}. Do not use this output.")
    return manifest


def _is_in_its_place(name: str) -> bool:
    """Whether a file in `PUBLISHED` is one of a publication, and not one that a link there leads to."""
    if Path(name).parts[:1] != (PUBLISHED,):
        return True
    folder, _, plain = name.rpartition("/")
    return plain in NAMES and bool(_PUBLICATION.fullmatch(folder))


def manifest_path(directory: Path) -> Path:
    """Return the path of a run's manifest, which need not exist.

    Some tools leave out symbolic links when they copy a directory. In such a copy there is neither ``manifest.json``
    nor ``published/current``, and the only publication is the one that they led to.
    """
    path = directory / MANIFEST
    if os.path.lexists(path) or os.path.lexists(directory / CURRENT):
        return path
    found = [folder / MANIFEST for folder in publications(directory) if (folder / MANIFEST).is_file()]
    return found[0] if len(found) == 1 else path


def publications(directory: Path) -> list[Path]:
    """Return the directories of all publications, finished or not. No link is followed."""
    folder = directory / PUBLISHED
    if folder.is_symlink():
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = [folder / name for name in names if _PUBLICATION.fullmatch(f"{PUBLISHED}/{name}")]
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def published_file(directory: Path, name: str) -> Path:
    """Return the path of a published file by its plain name, also where a copy has lost its links."""
    path = directory / name
    if os.path.lexists(path):
        return path
    return manifest_path(directory).resolve().with_name(name)


def plain_name(file: str) -> str:
    """Return the name by which users know a file that a manifest names."""
    name = file.rpartition("/")[2]
    return name if name in NAMES else file


def files_of(manifest: Mapping[str, Any]) -> list[str]:
    """Every file that a manifest names."""
    return [str(line["file"]) for key in ("parts", "files") for line in manifest.get(key, [])]


def is_index(path: str) -> bool:
    """Whether it is the name under which an index, or a view that one names, is stored."""
    return path.startswith("index-") and bool(_RESULT.fullmatch(path))


def is_left(path: str, is_replaced: bool = False) -> bool:
    """Whether it is the name of a result or of something half-written; if `is_replaced` also of what some runs add."""
    return bool(_HALF.fullmatch(path) or _RESULT.fullmatch(path)) or (is_replaced and path in _OPTIONAL)


def fault_of(directory: Path, entry: Entry, digests: bool = True) -> str | None:
    """What is wrong with a file of ours; None when it is as it was written.

    Parameters
    ----------
    digests : bool
        Read it and compare its BLAKE3, instead of its size only.

    Raises
    ------
    ReadFailed
        When the storage fails.
    SystemLimit
        When too many files are open.
    """
    path = directory / entry.file
    where = f"file={shown(path)}"
    try:
        # No link is followed, and a fifo that lies in its place keeps nobody waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return f"{where}: no regular file any more"
            if status.st_size != entry.n_bytes:
                return f"{where}: {status.st_size} bytes, expected {entry.n_bytes} as committed"
            if digests and digest(iter(partial(file.read, _PIECE), b"")) != entry.blake3:
                return f"{where}: its BLAKE3 is not the one committed: the content has changed"
    except OSError as error:
        check_storage(error, path)
        return f"{where}: committed, but cannot be read: {error.strerror}"
    return None
