"""The output directory: whose it is, what stands in it for good, and how an interrupted run goes on.

The commit protocol:

1. The kernel's lock makes one run the driver. Nobody else writes.
2. Results (parts, and what the scan and the training leave) are files with unique names, never overwritten. A task may
   write one; until a commit record names it, it does not exist.
3. A commit record, ``commits/<key>-<fingerprint>.json``, gives the file's size and BLAKE3 and the fingerprint of
   everything it was made from. Only the driver writes records, each once: that is the moment a result exists. Results
   that are finished close together share a file of records, ``commits/part-<unique>.json``.
4. ``manifest.json`` names every part and comes last. Readers follow it and never list a directory.

So results of other settings stand beside this run's until its manifest replaces theirs; only then are they swept away.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import re
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import (
    CannotCreate,
    DataError,
    NewerFormat,
    NoInput,
    NotPermitted,
    ReadFailed,
    TryAgain,
    WriteFailed,
    shown,
)
from pipeline.formats import Digested, digest, seal, unseal
from pipeline.output.disk import TEMPORARY, Disk, Pieces, publish, remove, sync_directory, write_error

__all__ = ["LAST_GOOD", "MANIFEST", "Entry", "Ledger", "Record", "claim", "read_manifest"]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LAST_GOOD = "model-last-good.h5"  # of a training that diverged
MARKER = ".shardpress"
_LOCK = ".lock"
_REQUEST = "run.json"
_PIECE = 2**20  # bytes read at once
_FOLDERS = ("parts", "stages", "commits")
_OUTPUT, _COMMIT, _COMMITS = "shardpress-output/1", "shardpress-commit/1", "shardpress-commits/1"
_TOP = (
    r"\.shardpress|(manifest|run|report)\.json|(model|model-last-good|index|single)\.h5|encoder\.npz|quarantine\.jsonl"
)
_OPTIONAL = (LAST_GOOD, "single.h5", "quarantine.jsonl")  # of those above, what not every run leaves
_RESULT = re.compile(r"(parts/part|stages/(scan|checkpoint|model))-[0-9-]*[0-9a-f]{32}\.(h5|npz)")
_RECORD = re.compile(r"commits/([a-z]+(?:-[0-9]+)*-[0-9a-f]{16})\.json")
_RECORDS = re.compile(r"commits/[a-z]+-[0-9a-f]{32}\.json")
_HALF = re.compile(rf"({_TOP}|{_RESULT.pattern}|{_RECORD.pattern}|{_RECORDS.pattern})\.[0-9a-f]{{32}}\{TEMPORARY}")


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


@contextmanager
def claim(directory: Path, disk: Disk | None = None) -> Iterator[Ledger]:
    """Make `directory` ours for as long as the context lasts, or refuse before anything is read.

    The kernel holds the lock, and frees it when the process ends, however it ends: no lock is ever stale.

    Parameters
    ----------
    directory : Path
        Made with its parents when it is not there.
    disk : Disk, optional
        What makes the changes.

    Raises
    ------
    CannotCreate
        When it cannot be made, is no directory, or holds files that are not ours.
    NotPermitted
        When nothing can be written there.
    NewerFormat
        When a later version of shardpress has written there.
    TryAgain
        When another run holds it, or its file system knows no locks.
    """
    disk = disk or Disk()
    where = f"output={shown(directory)}"
    try:
        _make(directory, disk)
        _mark(directory, disk)
        descriptor = _lock(directory)
    except (PermissionError, NotPermitted) as error:
        raise NotPermitted(f"{where}: {error}. Choose an --output that you may write to.") from error
    except (OSError, WriteFailed) as error:
        raise CannotCreate(f"{where}: {error}. Choose another --output.") from error
    try:
        try:
            for name in _FOLDERS:
                _make_folder(directory, name, disk)
        except OSError as error:
            raise CannotCreate(f"{where}: {error}. Choose another --output.") from error
        yield Ledger(directory, disk)
    finally:
        os.close(descriptor)


class Ledger:
    """The claimed output directory.

    Parameters
    ----------
    directory : Path
        Claimed.
    disk : Disk
    """

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory, self.disk = directory, disk
        self._records: dict[str, Record] = {}
        self._files: dict[str, str] = {}  # of each record, the file that holds it
        for name, record in self._read_records():
            self._records[record.path], self._files[record.path] = record, name

    # -- writing --

    def write(self, stem: str, suffix: str, data: bytes | memoryview) -> Entry:
        """Put a result's file there, under a name that nothing else ever has. It does not exist until `commit`.

        May be called from any thread or process; raises like `pipeline.output.disk.publish`.
        """
        return self._publish(f"{stem}-{uuid.uuid4().hex}{suffix}", data, name_is_synced=False)

    def replace(self, name: str, data: bytes) -> Entry:
        """Put a file of a fixed name there, in place of an earlier one; raises like `pipeline.output.disk.publish`."""
        return self._publish(name, data, replace=True)

    def replace_by_pieces(self, name: str, data: Pieces) -> Entry:
        """Like `replace`, of content that need not fit in memory."""
        passing = Digested(data.pieces)
        self._put(name, Pieces(data.n_bytes, passing), replace=True)
        return Entry(name, data.n_bytes, passing.blake3)

    def commit(self, key: str, fingerprint: str, entry: Entry, facts: Mapping[str, Any] | None = None) -> Record:
        """Make a result exist. When it does already, the earlier one stays and this one's file goes.

        Returns
        -------
        Record
            The one that counts.
        """
        (record,) = self.commit_together([Record(key, fingerprint, entry, dict(facts or {}))])
        return record

    def commit_together(self, records: Sequence[Record]) -> list[Record]:
        """Make results exist, all in one moment; else like `commit`, which takes four syncs for each of them.

        Parameters
        ----------
        records : sequence of Record
            Of one kind, of files that `write` has put there.

        Returns
        -------
        list of Record
            Those that count, in the same order.

        Raises
        ------
        WriteFailed, SystemLimit, NotPermitted, CannotCreate
            When the records cannot be written; a later run finds all of them, or none.
        """
        new: dict[str, Record] = {}
        for record in records:
            if record.path not in self._records:
                new.setdefault(record.path, record)
        if new:
            for folder in sorted({os.path.dirname(record.entry.file) for record in new.values()}):
                self._sync(folder)  # what a record names is there for good before it
            name = self._write_records(list(new.values()))
            self._records.update(new)
            self._files.update(dict.fromkeys(new, name))
        counting = [self._records[record.path] for record in records]
        for record, counts in zip(records, counting, strict=True):
            if record.entry.file != counts.entry.file:
                self._remove(record.entry.file)
        return counting

    def drop(self, *records: Record) -> None:
        """Take results back: their records first, for good, and only then their files."""
        gone = {record.path for record in records}
        rest: dict[str, list[Record]] = {self._files.get(path, path): [] for path in gone}
        for path, name in self._files.items():
            if name in rest and path not in gone:
                rest[name].append(self._records[path])
        for name, others in sorted(rest.items()):
            if others:
                self.replace(name, _sealed(others))
            else:
                self._remove(name)
        for path in gone:
            self._records.pop(path, None)
            self._files.pop(path, None)
        if records:
            self._sync("commits")
        for record in records:
            self._remove(record.entry.file)

    def forget(self) -> None:
        """Begin again: every result goes, the manifest first, so that a reader never sees a mixture."""
        self._remove(MANIFEST)
        self._sync("")
        self.drop(*self._records.values())
        self.sweep()

    def finish(self, request: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Write the manifest: from here on the run is complete."""
        self.replace(MANIFEST, seal(_OUTPUT, {**manifest, "request": request}))

    def sweep(self, *keep: str) -> None:
        """Remove files that half-written and uncommitted results left behind, and nothing of anybody else's.

        Parameters
        ----------
        keep : str
            Fingerprints; with any given, results of all others go too.
        """
        if keep:
            self.drop(*(record for record in self._records.values() if record.fingerprint not in keep))
        named = {record.entry.file for record in self._records.values()} | set(_files_of(self._manifest()))
        for folder in ("", *_FOLDERS):
            for name in sorted(os.listdir(self.directory / folder)):
                path = f"{folder}/{name}" if folder else name
                is_left = _RESULT.fullmatch(path) or (keep and path in _OPTIONAL)
                if _HALF.fullmatch(path) or (is_left and path not in named):
                    self._remove(path)

    # -- reading --

    def records(self, kind: str, fingerprint: str) -> list[Record]:
        """Committed results of a kind (``part``, ``scan``) made from `fingerprint`, in the order of their keys."""
        found = (record for record in self._records.values() if record.fingerprint == fingerprint)
        return sorted((r for r in found if r.key.split("-")[0] == kind), key=lambda record: record.key)

    def all_records(self, kind: str | None = None) -> list[Record]:
        """Committed results of a kind, or of all, whatever they were made from."""
        return [record for record in self._records.values() if kind in (None, record.key.split("-")[0])]

    def fault(self, entry: Entry, digests: bool = True) -> str | None:
        """What is wrong with a file of ours; None when it is as it was written.

        Parameters
        ----------
        entry : Entry
        digests : bool
            Read it and compare its BLAKE3, instead of its size only.
        """
        return _fault(self.directory, entry, digests)

    def load(self, record: Record) -> bytes:
        """The content of a committed result.

        Raises
        ------
        ValueError
            When it is not what was committed.
        """
        path = self.directory / record.entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            _check_limits(error, path)
            raise ValueError(f"file={shown(record.entry.file)}: {error.strerror}") from error
        if digest([data]) != record.entry.blake3:
            raise ValueError(f"file={shown(record.entry.file)}: not what was committed")
        return data

    def manifest(self) -> dict[str, Any] | None:
        """What a finished run says of itself; None without one that can be read."""
        return self._manifest(warn=True)

    def request(self) -> dict[str, Any] | None:
        """What the last run here was asked for."""
        try:
            return unseal(_OUTPUT, (self.directory / _REQUEST).read_bytes())
        except (OSError, ValueError):
            return None

    def has_diverged(self) -> bool:
        """Whether the training of the last run here has diverged, and not that of one before it."""
        try:
            left, asked = ((self.directory / name).stat().st_mtime_ns for name in (LAST_GOOD, _REQUEST))
        except OSError:
            return False
        return left >= asked

    def set_request(self, request: Mapping[str, Any]) -> None:
        """Leave word of what this run is asked for."""
        data = seal(_OUTPUT, request)
        path = self.directory / _REQUEST
        if not path.is_file() or path.read_bytes() != data:
            self.replace(_REQUEST, data)

    # -- inside --

    def _publish(
        self, name: str, data: bytes | memoryview, replace: bool = False, name_is_synced: bool = True
    ) -> Entry:
        self._put(name, data, replace, name_is_synced)
        return Entry(name, len(data), digest([data]))

    def _put(
        self, name: str, data: bytes | memoryview | Pieces, replace: bool = False, name_is_synced: bool = True
    ) -> None:
        path = self.directory / name
        try:
            publish(self.disk, path, data, replace, name_is_synced)
        except FileExistsError as error:
            raise CannotCreate(f"file={shown(path)}: something else lies in its place. Move it away.") from error

    def _write_records(self, records: Sequence[Record]) -> str:
        """One file of records; its name."""
        first, *others = records
        kind = first.key.split("-")[0]
        name = f"commits/{kind}-{uuid.uuid4().hex}.json" if others else first.path
        return self._publish(name, _sealed(records) if others else seal(_COMMIT, _plain(first))).file

    def _remove(self, name: str) -> None:
        path = self.directory / name
        if path.is_symlink() or not path.is_dir():  # whatever its name, a directory is somebody else's
            remove(self.disk, path)

    def _sync(self, folder: str) -> None:
        try:
            sync_directory(self.disk, self.directory / folder)
        except OSError as error:
            raise write_error(error, self.directory / folder, "syncing it") from error

    def _manifest(self, warn: bool = False) -> dict[str, Any] | None:
        try:
            return read_manifest(self.directory)
        except NoInput:
            return None
        except DataError as error:
            if warn:
                log.warning("%s; the run counts as unfinished", error)
            return None

    def _read_records(self) -> Iterator[tuple[str, Record]]:
        """Each record, with the name of its file."""
        for name in sorted(f"commits/{name}" for name in os.listdir(self.directory / "commits")):
            one, several = _RECORD.fullmatch(name), _RECORDS.fullmatch(name)
            if not one and not several:
                continue
            path = self.directory / name
            try:
                data = path.read_bytes()
                found = _record(data, one[1]) if one else _records(data)
            except NewerFormat as error:
                raise NewerFormat(f"file={shown(path)}: {error}") from error
            except (OSError, ValueError, KeyError, TypeError) as error:
                _check_limits(error, path)
                log.warning("file=%s: no valid commit record (%s); what it stood for is made anew", shown(path), error)
                self._remove(name)
            else:
                yield from ((name, record) for record in found)


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
        manifest = unseal(_OUTPUT, path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(
            f"file={shown(path)}: {error.strerror}, expected the output directory of a finished run"
        ) from error
    except PermissionError as error:
        raise NotPermitted(f"file={shown(path)}: {error.strerror}, expected a file that you may read") from error
    except OSError as error:
        _check_limits(error, path)
        raise ReadFailed(f"file={shown(path)}: {error.strerror}. Check the storage.") from error
    except NewerFormat as error:
        raise NewerFormat(f"file={shown(path)}: {error}") from error
    except json.JSONDecodeError as error:
        raise DataError(f"file={shown(path)}: not JSON: {error}") from error
    except ValueError as error:
        raise DataError(f"file={shown(path)}: not JSON of ours: {error}") from error
    try:
        names = _files_of(manifest)
    except (KeyError, TypeError) as error:
        raise DataError(f"file={shown(path)}: names no proper parts: {error!r}") from error
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise NotPermitted(
                f"file={shown(path)}: names the file {shown(name)}, expected names inside the directory only. Do not "
                "use this output."
            )
    return manifest


def _check_limits(error: Exception, path: Path) -> None:
    """Raise what says nothing about the file: that this process, or the system, has too many open."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise write_error(error, path, "reading it") from error


def _files_of(manifest: Mapping[str, Any] | None) -> list[str]:
    return [str(line["file"]) for key in ("parts", "files") for line in (manifest or {}).get(key, [])]


def _fault(directory: Path, entry: Entry, digests: bool) -> str | None:
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
        _check_limits(error, path)
        return f"file={shown(path)}: committed, but cannot be read: {error.strerror}"
    return None


def _sealed(records: Sequence[Record]) -> bytes:
    return seal(_COMMITS, {"records": [_plain(record) for record in records]})


def _plain(record: Record) -> dict[str, Any]:
    return {**vars(record), "entry": vars(record.entry)}


def _record(data: bytes, name: str) -> list[Record]:
    record = _as_record(unseal(_COMMIT, data))
    if name != f"{record.key}-{record.fingerprint[:16]}":
        raise ValueError("its name and its content differ")
    return [record]


def _records(data: bytes) -> list[Record]:
    return [_as_record(content) for content in unseal(_COMMITS, data)["records"]]


def _as_record(content: dict[str, Any]) -> Record:
    record = Record(**{**content, "entry": Entry(**content["entry"])})
    if not _RECORD.fullmatch(record.path) or not _RESULT.fullmatch(record.entry.file):
        raise ValueError("names what is no result")
    return record


# -- claiming ----------------------------------------------------------------------------------------------------


def _make(directory: Path, disk: Disk) -> None:
    """A directory with its parents, each on the disk before the next."""
    if directory.is_dir():
        return
    _make(directory.parent, disk)
    try:
        disk.make_directory(directory)
    except FileExistsError:
        if not directory.is_dir():
            raise
    try:
        sync_directory(disk, directory.parent)
    except PermissionError as error:
        log.debug("output=%s: its parent may be written, but not read and synced: %s", shown(directory), error)


def _make_folder(directory: Path, name: str, disk: Disk) -> None:
    if (directory / name).is_symlink():
        raise CannotCreate(
            f"output={shown(directory)}: its {name} is a link, expected a directory. Choose another --output."
        )
    _make(directory / name, disk)


def _mark(directory: Path, disk: Disk) -> None:
    """Refuse what is not ours, and leave the sign that it is."""
    path = directory / MARKER
    if path.exists():
        try:
            unseal(_OUTPUT, path.read_bytes())
        except NewerFormat as error:
            raise NewerFormat(f"output={shown(directory)}: {error}") from error
        except ValueError:
            log.debug("output=%s: its marker is damaged", shown(directory))
    elif any(not _HALF.fullmatch(name) for name in os.listdir(directory)):
        raise CannotCreate(
            f"output={shown(directory)}: holds files that are not of shardpress, expected a new or empty directory. "
            "Choose another --output."
        )
    else:
        publish(disk, path, seal(_OUTPUT, {}), replace=True)


def _lock(directory: Path) -> int:
    """Hold the run's lock. What the file says is for people; only the kernel's lock decides."""
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise CannotCreate(
                f"output={shown(directory)}: its {_LOCK} is a second name of another file, expected a file of its own. "
                "Choose another --output."
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = shown(os.read(descriptor, 1000).decode(errors="replace").strip())
            raise TryAgain(
                f"output={shown(directory)}: another run is at work there ({holder}). Type the same command again "
                "when it has ended, or choose another --output."
            ) from error
        except OSError as error:
            raise TryAgain(
                f"output={shown(directory)}: cannot be locked: {error.strerror}. Choose an --output on a file system "
                "that knows locks."
            ) from error
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):  # a full disk is no reason not to look what is there
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {platform.node()} since {since}\n".encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
