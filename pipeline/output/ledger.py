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

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import CannotCreate, DataError, NewerFormat, NoInput, shown
from pipeline.formats import Digested, digest, seal, unseal
from pipeline.output.disk import Disk, Pieces, publish, remove, sync_directory, write_error
from pipeline.output.records import (
    FOLDERS,
    HALF,
    LAST_GOOD,
    MANIFEST,
    OPTIONAL,
    OUTPUT,
    RECORD,
    RECORDS,
    RESULT,
    Entry,
    Record,
    check_limits,
    fault,
    files_of,
    read_manifest,
    record_of,
    records_of,
    sealed,
    write_result,
)

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

_REQUEST = "run.json"


class Ledger:
    """The output directory that is ours.

    Parameters
    ----------
    directory : Path
        Locked.
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
        return write_result(self.directory, self.disk, stem, suffix, data)

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
                self.replace(name, sealed(others))
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
        self.replace(MANIFEST, seal(OUTPUT, {**manifest, "request": request}))

    def sweep(self, *keep: str) -> None:
        """Remove files that half-written and uncommitted results left behind, and nothing of anybody else's.

        Parameters
        ----------
        keep : str
            Fingerprints; with any given, results of all others go too.
        """
        if keep:
            self.drop(*(record for record in self._records.values() if record.fingerprint not in keep))
        named = {record.entry.file for record in self._records.values()} | set(files_of(self._manifest()))
        for folder in ("", *FOLDERS):
            for name in sorted(os.listdir(self.directory / folder)):
                path = f"{folder}/{name}" if folder else name
                is_left = RESULT.fullmatch(path) or (keep and path in OPTIONAL)
                if HALF.fullmatch(path) or (is_left and path not in named):
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
        """What is wrong with a file of ours, as `pipeline.output.records.fault` has it."""
        return fault(self.directory, entry, digests)

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
            check_limits(error, path)
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
            return unseal(OUTPUT, (self.directory / _REQUEST).read_bytes())
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
        data = seal(OUTPUT, request)
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
        return self._publish(name, sealed(records if others else first)).file

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
            one, several = RECORD.fullmatch(name), RECORDS.fullmatch(name)
            if not one and not several:
                continue
            path = self.directory / name
            try:
                data = path.read_bytes()
                found = record_of(data, one[1]) if one else records_of(data)
            except NewerFormat as error:
                raise NewerFormat(f"file={shown(path)}: {error}") from error
            except (OSError, ValueError, KeyError, TypeError) as error:
                check_limits(error, path)
                log.warning("file=%s: no valid commit record (%s); what it stood for is made anew", shown(path), error)
                self._remove(name)
            else:
                yield from ((name, record) for record in found)
