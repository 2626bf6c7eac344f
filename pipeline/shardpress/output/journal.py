"""The output directory, and the protocol that lets an interrupted run resume.

::

    index.h5            the last result; its rename is the commit
    generation-N.h5     earlier results that --retrain keeps
    parts/              files with rows
    report.html, bad_rows.jsonl   derived from index.h5
    .shardpress         marks the directory as an output
    work/               lock, journal.jsonl, and the model, scan and checkpoints of a run that is not finished;
                        descriptions of the input files, by the digest of the index, so that they need not be opened

The protocol:

1. The run that holds the lock is the driver, and only the driver writes the journal and the index. Before the journal
   grows, before the commit and before a sweep, it compares ``work/lock`` with the file that it has locked. If they
   differ, the directory was moved away or its lock was replaced, and the run ends with `TryAgain`. A file that a task
   writes meanwhile counts for no run, and the next sweep removes it.
2. Parts, models, scans and checkpoints have unique names and are never overwritten. Any task can write them; such a
   file counts as soon as the journal names it, with its size, its BLAKE3, and the fingerprint of everything that
   determines it.
3. The journal consists of lines, each with its digest. The first one names the digest of the index from which the run
   started. A journal of another index is ignored. Other lines name results, withdraw some of them, or contain the
   request of the last run, with the sizes and times of files whose content it has compared.
4. A line is synced only after the names of the files that it can name. A file is removed only after a synced line has
   withdrawn it, or a synced journal no longer names it.
5. The commit syncs parts, folders and journal, and then replaces ``index.h5`` by one rename. Before it, readers see the
   earlier result, and after it the new one.
6. A sweep removes files of our names that neither an index nor the journal names.
7. A run with ``--restart`` says so in the first line, and starts from nothing. The same command without ``--restart``
   resumes it. A run with ``--append`` or ``--retrain`` starts from the result that is published.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from shardpress.base.errors import DataError, NoInput, ShardpressError, printable
from shardpress.base.formats import digest
from shardpress.hdf5.sealed import FORMAT
from shardpress.output.disk import Disk, changing, publish, remove, sync_directory, write_all, write_error
from shardpress.output.folder import (
    DESCRIPTIONS,
    FOLDERS,
    JOURNAL,
    PARTS,
    check_storage,
    is_ours,
    is_result,
    write_file,
)
from shardpress.result.finished import GENERATION, INDEX, Result
from shardpress.result.records import Entry, Part, Request, plain

log = logging.getLogger(__name__)

_DIGEST = 32  # hexadecimal digits of a line's digest
_SECONDS = 1.0  # largest age of a line that is not synced; a power cut loses at most the parts of this time


class Record(msgspec.Struct, frozen=True, omit_defaults=True, tag="result"):
    """A scan, a model or a checkpoint that a run has written, as the journal names it."""

    key: str  # scan, model, diverged, checkpoint-<step>
    fingerprint: str  # of everything that determines the content
    entry: Entry
    n_epochs: int = 0  # finished ones, of a checkpoint
    of_epochs: int = 0

    @property
    def kind(self) -> str:
        """First word of the key."""
        return self.key.partition("-")[0]

    @property
    def identity(self) -> tuple[str, str]:
        return self.key, self.fingerprint


class PartRecord(msgspec.Struct, frozen=True, tag="part"):
    """A part that a run has written."""

    fingerprint: str  # of everything that determines the features of a row, and the form in which they are stored
    part: Part
    is_copy: bool = False  # whether its rows are those of published parts, and need no verification

    @property
    def entry(self) -> Entry:
        return self.part.entry

    @property
    def identity(self) -> tuple[str, str]:
        return self.part.file, self.fingerprint


class _Base(msgspec.Struct, frozen=True, tag="base"):
    """The first line: the digest of the index from which a run starts, and whether it ignores that result."""

    digest: str | None
    restarts: bool
    format: str = FORMAT


class Deadline(msgspec.Struct, frozen=True):
    finish_by: str  # as a user has given it
    ends_by: float  # in seconds since 1970


class _RequestLine(msgspec.Struct, frozen=True, tag="request"):
    request: Request
    deadline: Deadline | None


class _Withdrawal(msgspec.Struct, frozen=True, tag="withdrawn"):
    files: list[str]


_Named = Record | PartRecord
_Line = _Base | Record | PartRecord | _RequestLine | _Withdrawal


class Journal:
    """An output directory while this process holds its lock.

    A run that `restarts` ignores earlier results and the earlier journal. A run that `extends` the published result
    uses it even if an interrupted run has ignored it. `check` raises `TryAgain` if the path no longer refers to the
    directory whose lock is held. An `earlier` result of the directory is not read again if it is still published.
    """

    def __init__(
        self,
        directory: Path,
        disk: Disk,
        restarts: bool = False,
        extends: bool = False,
        check: Callable[[], object] = lambda: None,
        earlier: Result | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = directory
        self.disk = disk
        self._check = check
        self._clock = clock
        self._next_sync = clock()
        data = b"" if restarts else _content(directory / JOURNAL)
        lines, n_valid = _decoded(data)
        is_restart = bool(lines) and isinstance(lines[0], _Base) and lines[0].restarts
        self.published = _published(directory, restarts or (is_restart and not extends), earlier)
        self._begin(restarts)
        if not restarts:
            self._read(lines, is_whole=n_valid == len(data))
        if extends and self._base.restarts:
            self._begin_line(restarts=False)

    def _begin(self, restarts: bool) -> None:
        """Start with an empty journal, which is written with the first line that is added."""
        self._begin_line(restarts)
        self._records: dict[tuple[str, str], _Named] = {}
        self._request: _RequestLine | None = None
        self._withdrawn: set[str] = set()

    def _begin_line(self, restarts: bool) -> None:
        self._base = _Base(None if self.published is None else self.published.digest, restarts)
        self._is_written = False  # whether the file contains all lines; otherwise it is written again

    # -- reading --

    @property
    def base(self) -> Result | None:
        """The earlier result from which the run starts; None if there is none, or if it is ignored."""
        return None if self._base.restarts else self.published

    def records(self, kind: str | None = None, fingerprint: str | None = None) -> list[Record]:
        """Return results that are no parts, sorted by key, optionally only of one kind (``scan``) or fingerprint."""
        records = []
        for record in self._records.values():
            if not isinstance(record, Record):
                continue
            if kind in (None, record.kind) and fingerprint in (None, record.fingerprint):
                records.append(record)
        return sorted(records, key=lambda record: record.key)

    def parts(self, fingerprint: str | None = None) -> list[PartRecord]:
        """Return parts, optionally only with one fingerprint, in the order of their files' names."""
        parts = [record for record in self._records.values() if isinstance(record, PartRecord)]
        selected = [record for record in parts if fingerprint in (None, record.fingerprint)]
        return sorted(selected, key=lambda record: record.part.file)

    def load(self, record: Record) -> bytes:
        """Return the content of a result; raise `ValueError` if it is damaged."""
        path = self.directory / record.entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            check_storage(error, path)
            raise ValueError(f"file={printable(record.entry.file)}: {error.strerror}") from error
        if digest([data]) != record.entry.blake3:
            raise ValueError(f"file={printable(record.entry.file)}: its content differs from what was written")
        return data

    def is_withdrawn(self, file: str) -> bool:
        """Return whether a part of the base was found to be wrong."""
        return file in self._withdrawn

    @property
    def request(self) -> Request | None:
        """Request of the last run; None if there is none."""
        return None if self._request is None else self._request.request

    @property
    def deadline(self) -> Deadline | None:
        """Deadline of an unfinished run; None if it has none."""
        return None if self._request is None else self._request.deadline

    # -- writing --

    def write(self, name: str, data: bytes | memoryview) -> Entry:
        return write_file(self.directory, self.disk, name, data)

    def add(self, *records: _Named, waits: bool = True) -> None:
        """Name results, so that later runs find them.

        A result that was named before is kept, and the new file is removed. Unless the call `waits` for the disk, a
        power cut can lose the records of the last second.
        """
        new: dict[tuple[str, str], _Named] = {}
        for record in records:
            if record.identity not in self._records:
                new.setdefault(record.identity, record)
        self._records |= new
        self._append(list(new.values()), waits)
        for record in records:
            if record.entry.file != self._records[record.identity].entry.file:
                self._remove(record.entry.file)

    def withdraw(self, *records: _Named) -> None:
        self.withdraw_files([record.entry.file for record in records])

    def withdraw_files(self, files: list[str]) -> None:
        """Remove results: first their records, and after a sync their files.

        Parts of the published result are only removed from what a run can use, because readers use them.
        """
        if files:
            line = _Withdrawal(files)
            self._apply(line)
            self._append([line])
        for file in files:
            self._remove(file)

    def set_request(self, request: Request, deadline: Deadline | None = None) -> None:
        line = _RequestLine(request, deadline)
        if line != self._request:
            self._request = line
            self._append([line])

    def commit(
        self,
        data: bytes,
        keeps_earlier: bool = False,
        kept: Sequence[Record] = (),
        known: Result | None = None,
    ) -> Result:
        """Publish and return a result, which completes the run. Only the records `kept` stay in the journal.

        With `keeps_earlier`, the earlier result becomes ``generation-N.h5``. If the published file is that of a `known`
        result, its tables are not read again.
        """
        self._append([])
        if keeps_earlier and self.published is not None:
            name = GENERATION.format(self.published.facts.model.generation)
            publish(self.disk, self.directory / name, self.published.data)
        self._check()
        publish(self.disk, self.directory / INDEX, data)
        self.published = Result.open(self.directory, earlier=known)
        self._begin(restarts=False)
        self.add(*kept)
        return self.published

    def sweep(self) -> None:
        """Remove files of our names that neither an index nor the journal names. User files are never removed."""
        self._check()
        try:
            used = set(self._named_files())
        except ShardpressError as error:
            log.warning("output=%s: no file is removed: %s", printable(self.directory), error)
            return
        unnamed = [path for path in self._paths() if is_ours(path) and path not in used]
        if unnamed and not self._is_written:  # the file may name what is removed
            self._append([])
        for path in unnamed:
            self._remove(path)

    # -- private --

    def _named_files(self) -> Iterator[str]:
        yield from (record.entry.file for record in self._records.values())
        if self.published is None:
            if os.path.lexists(self.directory / INDEX):
                raise DataError(
                    f"its {INDEX} cannot be read. Files of earlier results are removed when the run has finished"
                )
            return
        yield from self.published.files
        yield DESCRIPTIONS.format(self.published.digest)
        for earlier in self.published.facts.model.generations:
            name = GENERATION.format(earlier.generation)
            yield name
            if os.path.lexists(self.directory / name):  # otherwise a user has removed it
                yield from self.published.generation(earlier.generation).files

    def _paths(self) -> Iterator[str]:
        for folder in ("", *FOLDERS):
            yield from (os.path.join(folder, name) for name in _names_in(self.directory / folder))

    def _remove(self, name: str) -> None:
        path = self.directory / name
        is_named = self.published is not None and name in self.published.files
        if not is_named and (path.is_symlink() or not path.is_dir()):  # shardpress creates no folder with such a name
            remove(self.disk, path)

    def _append(self, lines: Sequence[_Line], waits: bool = True) -> None:
        """Add lines to the file, and sync it if `waits`, or if the last sync was a second ago."""
        self._check()
        path = self.directory / JOURNAL
        is_written = self._is_written
        waits = waits or not is_written or self._clock() >= self._next_sync
        self._is_written = False  # after an error, the file may end with a part of a line
        if waits:
            self._sync_names()
        if not is_written:
            publish(self.disk, path, b"".join(map(_encoded, self._lines())))
        elif lines or waits:
            with changing(path, "adding to it"):
                self._add_to_file(path, b"".join(map(_encoded, lines)), waits)
        self._is_written = True
        if waits:
            self._next_sync = self._clock() + _SECONDS

    def _sync_names(self) -> None:
        for folder in FOLDERS:
            with changing(self.directory / folder, "syncing it"):
                sync_directory(self.disk, self.directory / folder)

    def _add_to_file(self, path: Path, data: bytes, waits: bool) -> None:
        descriptor = self.disk.open_to_append(path)
        try:
            write_all(self.disk, descriptor, memoryview(data))
            if waits:
                self.disk.sync(descriptor)
        finally:
            self.disk.close(descriptor)

    def _lines(self) -> Iterator[_Line]:
        yield self._base
        if self._request is not None:
            yield self._request
        yield from self._records.values()
        if self._withdrawn:
            yield _Withdrawal(sorted(self._withdrawn))

    def _read(self, lines: Sequence[_Line], is_whole: bool) -> None:
        """Use the lines of the journal. Those of another index are ignored."""
        if lines and self._is_base(lines[0]):
            for line in lines:
                self._apply(line)
            self._is_written = is_whole
        elif self.published is None and any(is_result(f"{PARTS}/{name}") for name in _names_in(self.directory / PARTS)):
            raise DataError(
                f"output={printable(self.directory)}: has files in {PARTS}/, but no {INDEX} and no journal that name "
                f"them. Restore {INDEX} from a copy, or discard the files with --restart."
            )

    def _is_base(self, line: _Line) -> bool:
        """Return whether the first line belongs to the published index, or to a run that does not need the index."""
        if not isinstance(line, _Base):
            return False
        return line.digest == self._base.digest or (line.restarts and self.published is None)

    def _apply(self, line: _Line) -> None:
        if isinstance(line, _Base):
            self._base = line
        elif isinstance(line, _RequestLine):
            self._request = line
        elif isinstance(line, Record | PartRecord):
            self._records[line.identity] = line
        else:
            withdrawn = set(line.files)
            kept = [record for record in self._records.values() if record.entry.file not in withdrawn]
            self._withdrawn |= withdrawn - {record.entry.file for record in self._records.values()}
            self._records = {record.identity: record for record in kept}


def _names_in(folder: Path) -> list[str]:
    """Return the names in a folder, which may be missing in a copy."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _published(directory: Path, restarts: bool, earlier: Result | None) -> Result | None:
    """Return the result in a directory, or None if there is none, or if it cannot be read and the run `restarts`."""
    try:
        return Result.open(directory / INDEX, earlier=earlier)
    except NoInput:
        return None
    except DataError:
        if not restarts:
            raise
        return None


def _content(path: Path) -> bytes:
    """Return the content of the journal, which is empty if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise write_error(error, path, "reading it") from error


def _encoded(line: _Line) -> bytes:
    text = json.dumps(plain(line)).encode()
    return digest([text])[:_DIGEST].encode() + b" " + text + b"\n"


def _decoded(data: bytes) -> tuple[list[_Line], int]:
    """Return the lines up to the first one that is damaged, and the number of their bytes."""
    lines: list[_Line] = []
    n_valid = 0
    for line in data.splitlines(keepends=True):
        stored, _, text = line.removesuffix(b"\n").partition(b" ")
        if not line.endswith(b"\n") or digest([text])[:_DIGEST].encode() != stored:
            break
        try:
            content: _Line = msgspec.convert(json.loads(text), _Line)
        except (ValueError, msgspec.ValidationError):
            break
        if isinstance(content, Record | PartRecord) and not is_result(content.entry.file):
            break  # the files of withdrawn records are removed, so a record must not name any other file
        lines.append(content)
        n_valid += len(line)
    return lines, n_valid
