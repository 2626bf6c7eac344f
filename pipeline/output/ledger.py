"""The output directory: which files it holds, and how an interrupted run resumes.

::

    .shardpress  .lock       mark the directory as an output; the kernel's lock on .lock admits one run at a time
    run.json                 what the last run was asked for
    stages/                  results of the scan and the training, and checkpoints
    parts/                   features
    commits/                 commit records
    published/<unique>/      manifest.json, model.h5 and the other files of a finished run
    published/current        link to the publication that readers see
    index-<digest>.h5        indexes, and views that they name
    manifest.json, ...       links: index.h5 -> published/current/index.h5

The commit protocol:

1. The run that holds the lock is the driver, and only the driver commits. Before each change it compares ``.lock``
   with the file that it has locked. If they differ, the directory was moved away or its lock was replaced; then the
   run ends with `TryAgain` and changes nothing.
2. Results (parts, and what the scan and the training leave) have unique names and are never overwritten. Tasks may
   write them; a result exists from the moment at which a commit record names it.
3. A commit record holds the size and the BLAKE3 of the file, and the fingerprint of everything that the result was
   made from. Files ``commits/<kind>-<unique>.json`` hold one record or several, and are written once.
4. A finished run is published in one step (`pipeline.output.publication`). Readers follow its manifest and never list
   a directory.

Results of other settings therefore stay until the next publication replaces the run that uses them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, NoInput, NotPermitted, WriteFailed, shown
from pipeline.formats import digest, seal
from pipeline.output.disk import Disk, publish, remove, sync_directory, write_error
from pipeline.output.publication import (
    Publication,
    settle,
    sweep_links,
    sweep_publications,
    withdraw,
)
from pipeline.output.records import (
    FOLDERS,
    LAST_GOOD,
    NAMES,
    OUTPUT,
    PUBLISHED,
    RECORDS,
    Entry,
    Record,
    check_storage,
    files_of,
    is_left,
    plain_name,
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
        self.directory = directory
        self.disk = disk
        self._files: dict[str, list[Record]] = {}  # each file of records, and what it holds
        for name in sorted(os.listdir(directory / "commits")):
            self._look_into(f"commits/{name}")
        self._records = {record.identity: record for held in self._files.values() for record in held}

    # -- writing --

    def write(self, stem: str, suffix: str, data: bytes | memoryview) -> Entry:
        """Put a result's file there, as `pipeline.output.records.write_result` does."""
        return write_result(self.directory, self.disk, stem, suffix, data)

    def check(self) -> None:
        """Raise `TryAgain` unless the path still leads to the directory whose lock is held.

        Changes check by themselves. What was only read is checked before it decides anything.
        """
        self.disk.check()

    def replace(self, name: str, data: bytes) -> None:
        """Write a file of a fixed name that is not published, in place of an earlier one."""
        publish(self.disk, self.directory / name, data)

    def publication(self) -> Publication:
        """Begin the publication of a finished run: files that become visible with its manifest."""
        return Publication(self.directory, self.disk)

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
        """Discard every result. The finished run is taken back first, in one step, so that no reader sees a mixture."""
        names = [name for name in NAMES if os.path.lexists(self.directory / name)]
        if names:
            try:
                settle(self.directory, self.disk, names)
            except (WriteFailed, NotPermitted) as error:
                # Without links, or without space for them, files go one by one.
                log.debug("%s", error)
        withdraw(self.directory, self.disk)
        self._remove(_REQUEST)
        self.drop(*self._records.values())
        self.sweep()
        for name in NAMES:
            self._remove(name)

    def finish(
        self, request: Mapping[str, Any], manifest: Mapping[str, Any], publication: Publication | None = None
    ) -> None:
        """Publish the manifest with the files of `publication`: from here on the run is complete."""
        publication = publication or self.publication()
        publication.finish({**manifest, "request": request})

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
        published = files_of(self.manifest(warn=False) or {})
        named = {record.entry.file for record in self.records()} | set(published) | set(map(plain_name, published))
        folders = [*FOLDERS, PUBLISHED] if self._has_publications() else FOLDERS
        for folder in ("", *folders):
            for name in sorted(os.listdir(self.directory / folder)):
                path = os.path.join(folder, name)
                if is_left(path, is_replaced=bool(keep)) and path not in named:
                    self._remove(path)
        # Only after publications: without any link, the only one of them would be taken for a finished run.
        sweep_publications(self.directory, self.disk, named)
        sweep_links(self.directory, self.disk)

    def set_request(self, request: Mapping[str, Any], deadline: Mapping[str, Any] | None = None) -> None:
        """Leave word of what this run is asked for, and of when it is to be over."""
        if (self.request(), self.deadline()) != (request, deadline):  # else the file keeps its time, see `has_diverged`
            more = {"deadline": deadline, "contents": self.contents()}
            self.replace(_REQUEST, seal(OUTPUT, {**request, **{name: each for name, each in more.items() if each}}))

    def set_contents(self, contents: Sequence[Mapping[str, Any]]) -> None:
        """Store what is known of the input files' contents next to the request, which has to be there."""
        before = self._told()
        if before is not None and before.get("contents", []) != list(contents):
            self.replace(_REQUEST, seal(OUTPUT, {**before, "contents": list(contents)}))

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
        return told and {name: value for name, value in told.items() if name not in ("deadline", "contents")}

    def deadline(self) -> dict[str, Any] | None:
        """When it was to be over; None where it could take its time."""
        return (self._told() or {}).get("deadline")

    def contents(self) -> list[dict[str, Any]]:
        """What is known of the input files' contents; empty where an earlier version or no run was here."""
        return list((self._told() or {}).get("contents", []))

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

    def _has_publications(self) -> bool:
        path = self.directory / PUBLISHED
        return path.is_dir() and not path.is_symlink()

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
