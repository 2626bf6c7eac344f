"""The output directory: what stands in it for good, and how an interrupted run goes on.

The commit protocol:

1. The kernel's lock makes one run the driver. Nobody else writes.
2. Results (parts, and what the scan and the training leave) are files with unique names, never overwritten. A task may
   write one; until a commit record names it, it does not exist.
3. A commit record gives the file's size and BLAKE3 and the fingerprint of everything it was made from. Records stand in
   files ``commits/<kind>-<unique>.json``, alone or with those of results that were finished at about the same time.
   Only the driver writes them, each once: that is the moment a result exists.
4. ``manifest.json`` names every part and comes last. Readers follow it and never list a directory.

So results of other settings stand beside this run's until its manifest replaces theirs; only then are they swept away.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, NoInput, shown
from pipeline.formats import Digested, digest, seal
from pipeline.output.disk import Disk, Pieces, publish, remove, sync_directory, write_error
from pipeline.output.records import (
    FOLDERS,
    LAST_GOOD,
    MANIFEST,
    OUTPUT,
    RECORDS,
    Entry,
    Record,
    check_storage,
    files_of,
    is_left,
    read_manifest,
    records_of,
    sealed,
    unsealed,
    write_result,
)

__all__ = ["Ledger"]

log = logging.getLogger(__name__)

_REQUEST = "run.json"


class Ledger:
    """The output directory that is ours, for as long as its lock is held."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory, self.disk = directory, disk
        self._files: dict[str, list[Record]] = {}  # each file of records, and what it holds
        for name in sorted(os.listdir(directory / "commits")):
            self._look_into(f"commits/{name}")
        self._records = {record.identity: record for held in self._files.values() for record in held}

    # -- writing --

    def write(self, stem: str, suffix: str, data: bytes | memoryview) -> Entry:
        """Put a result's file there, as `pipeline.output.records.write_result` does."""
        return write_result(self.directory, self.disk, stem, suffix, data)

    def replace(self, name: str, data: bytes | Pieces) -> Entry:
        """Put a file of a fixed name there, in place of an earlier one; like `pipeline.output.disk.publish`."""
        passing = Digested(data.pieces if isinstance(data, Pieces) else [data])  # it need not fit in memory
        publish(self.disk, self.directory / name, Pieces(len(data), passing))
        return Entry(name, len(data), passing.blake3)

    def commit(self, *records: Record) -> None:
        """Make results exist, all in one moment. Of one that exists already the first stays, and this one's file goes.

        Parameters
        ----------
        records : Record
            Of one kind, of files that `write` has put there. Any number of them take four syncs.

        Raises
        ------
        WriteFailed, SystemLimit, NotPermitted
            When the records cannot be written; a later run finds all of them, or none.
        """
        new: dict[tuple[str, str], Record] = {}
        for record in records:
            if record.identity not in self._records:
                new.setdefault(record.identity, record)
        if new:
            held = list(new.values())
            for folder in sorted({os.path.dirname(record.entry.file) for record in held}):
                self._sync(folder)  # what a record names is there for good before it
            entry = self.write(f"commits/{held[0].kind}", ".json", sealed(held))
            self._sync("commits")
            # Only now: of what fails before, a later run finds out whether it exists.
            self._files[entry.file] = held
            self._records |= new
        for record in records:
            if record.entry.file != self._records[record.identity].entry.file:
                self._remove(record.entry.file)

    def drop(self, *records: Record) -> None:
        """Take results back: their records first, for good, and only then their files."""
        gone = {record.identity for record in records}
        for name, held in list(self._files.items()):
            rest = [record for record in held if record.identity not in gone]
            if not rest:
                self._remove(name)
                del self._files[name]
            elif len(rest) < len(held):
                publish(self.disk, self.directory / name, sealed(rest), name_is_synced=False)  # with all others, below
                self._files[name] = rest
        if records:
            self._sync("commits")  # else a power cut could bring back a record whose file is gone
        for record in records:
            self._records.pop(record.identity, None)
            self._remove(record.entry.file)

    def forget(self) -> None:
        """Begin again: every result goes, the manifest first, so that a reader never sees a mixture."""
        self._remove(MANIFEST)
        self._sync("")
        self._remove(_REQUEST)
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
            self.drop(*(record for record in self.records() if record.fingerprint not in keep))
        # A manifest's parts stay without their records, too: its readers count on them.
        named = {record.entry.file for record in self.records()} | set(files_of(self.manifest(warn=False) or {}))
        for folder in ("", *FOLDERS):
            for name in sorted(os.listdir(self.directory / folder)):
                path = os.path.join(folder, name)
                if is_left(path, is_replaced=bool(keep)) and path not in named:
                    self._remove(path)

    def set_request(self, request: Mapping[str, Any], deadline: Mapping[str, Any] | None = None) -> None:
        """Leave word of what this run is asked for, and of when it is to be over."""
        if (self.request(), self.deadline()) != (request, deadline):  # else the file keeps its time, see `has_diverged`
            self.replace(_REQUEST, seal(OUTPUT, {**request, **({"deadline": deadline} if deadline else {})}))

    # -- reading --

    def records(self, kind: str | None = None, fingerprint: str | None = None) -> list[Record]:
        """Committed results in the order of their keys; of a kind (``part``, ``scan``), or made from `fingerprint`."""
        found = [
            record
            for record in self._records.values()
            if kind in (None, record.kind) and fingerprint in (None, record.fingerprint)
        ]
        return sorted(found, key=lambda record: record.key)

    def load(self, record: Record) -> bytes:
        """The content of a committed result, or `ValueError` when it is not what was committed."""
        path = self.directory / record.entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            check_storage(error, path)
            raise ValueError(f"file={shown(record.entry.file)}: {error.strerror}") from error
        if digest([data]) != record.entry.blake3:
            raise ValueError(f"file={shown(record.entry.file)}: not what was committed")
        return data

    def manifest(self, warn: bool = True) -> dict[str, Any] | None:
        """What a finished run says of itself; None without one that can be read."""
        try:
            return read_manifest(self.directory)
        except NoInput:
            return None
        except DataError as error:
            if warn:
                log.warning("%s; the run counts as unfinished", error)
            return None

    def request(self) -> dict[str, Any] | None:
        """What the last run here was asked for."""
        told = self._told()
        return told and {name: value for name, value in told.items() if name != "deadline"}

    def deadline(self) -> dict[str, Any] | None:
        """When it was to be over; None where it could take its time."""
        return (self._told() or {}).get("deadline")

    def has_diverged(self) -> bool:
        """Whether the training of the last run here has diverged, and not that of one before it."""
        try:
            model, request = ((self.directory / name).stat() for name in (LAST_GOOD, _REQUEST))
        except OSError:
            return False
        return model.st_mtime_ns >= request.st_mtime_ns  # a run leaves word of its request before it trains

    # -- inside --

    def _told(self) -> dict[str, Any] | None:
        try:
            return unsealed(self.directory / _REQUEST)
        except (OSError, ValueError):
            return None

    def _look_into(self, name: str) -> None:
        """Remember what a file of records holds. A damaged one goes: what it stood for counts as never made."""
        if not RECORDS.fullmatch(name):
            return
        try:
            self._files[name] = records_of(self.directory, name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = shown(self.directory / name)
            log.warning("file=%s: no valid commit record (%s); what it stood for is made anew", path, error)
            self._remove(name)

    def _remove(self, name: str) -> None:
        path = self.directory / name
        try:
            is_file = path.is_symlink() or not path.is_dir()
        except OSError as error:
            raise write_error(error, path, "removing it") from error
        if is_file:  # whatever its name, a directory is somebody else's
            remove(self.disk, path)

    def _sync(self, folder: str) -> None:
        try:
            sync_directory(self.disk, self.directory / folder)
        except OSError as error:
            raise write_error(error, self.directory / folder, "syncing it") from error
