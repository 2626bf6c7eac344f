"""The output directory: the files in it, and the protocol that lets an interrupted run resume.

::

    .shardpress  .lock       mark the directory as an output; the kernel's lock on .lock allows one run at a time
    run.json                 request of the last run: its inputs and settings
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
2. Results (parts, the scan, models and checkpoints) have unique names and are never overwritten. Any task can write
   them; a result exists as soon as a commit record names it.
3. A commit record holds the size and the BLAKE3 of the file, and the fingerprint of everything that determines the
   result. Files ``commits/<kind>-<unique>.json`` hold one or more records, and are written once.
4. A finished run is published in one step (`shardpress.output.publication`). Readers follow its manifest and never list
   a directory.

Results of other settings therefore stay until the next publication replaces the run that uses them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shardpress.errors import DataError, NoInput, printable
from shardpress.formats import digest, seal
from shardpress.output.disk import Disk, changing, publish, remove, sync_directory
from shardpress.output.publication import Publication, sweep_publications, withdraw
from shardpress.output.records import (
    FOLDERS,
    LAST_GOOD,
    MANIFEST,
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

log = logging.getLogger(__name__)

_REQUEST = "run.json"


def discard_earlier(directory: Path, disk: Disk) -> None:
    """Discard the results of an earlier version of shardpress. The next sweep removes their files."""
    withdraw(directory, disk)
    records = [name for name in sorted(os.listdir(directory / "commits")) if RECORDS.fullmatch(f"commits/{name}")]
    for name in (_REQUEST, *(f"commits/{name}" for name in records)):
        remove(disk, directory / name)
    sync_directory(disk, directory / "commits")


class Ledger:
    """An output directory while this process holds its lock."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self.disk = disk
        self._manifest: dict[str, Any] = {}
        self._manifest_stamp: tuple[int, ...] | None = None
        self._files: dict[str, list[Record]] = {}  # records by the file that holds them
        for name in sorted(os.listdir(directory / "commits")):
            self._read_records(f"commits/{name}")
        self._records: dict[tuple[str, str], Record] = {}
        for records in self._files.values():
            self._records |= _by_identity(records)

    # -- writing --

    def write(self, stem: str, suffix: str, data: bytes | memoryview) -> Entry:
        return write_result(self.directory, self.disk, stem, suffix, data)

    def check(self) -> None:
        """Raise `TryAgain` unless the path still refers to the directory whose lock is held.

        Every change makes this check. Callers make it before they rely on data that they have read.
        """
        self.disk.check()

    def replace(self, name: str, data: bytes) -> None:
        """Write or replace a file that has a fixed name and is not published."""
        publish(self.disk, self.directory / name, data)

    def publication(self) -> Publication:
        return Publication(self.directory, self.disk)

    def commit(self, *records: Record) -> None:
        """Commit results of one kind together, by four syncs. Later runs find all of them or none.

        If a result was committed before, the earlier file is kept and the new one removed.
        """
        new: dict[tuple[str, str], Record] = {}
        for record in records:
            if record.identity not in self._records:
                new.setdefault(record.identity, record)
        if new:
            self._write_records(list(new.values()))
        for record in records:
            if record.entry.file != self._records[record.identity].entry.file:
                self._remove(record.entry.file)

    def _write_records(self, records: Sequence[Record]) -> None:
        folders = {os.path.dirname(record.entry.file) for record in records}
        for folder in sorted(folders):
            self._sync(folder)  # a record must not be on the disk before the file that it names
        entry = self.write(f"commits/{records[0].kind}", ".json", sealed(records))
        self._sync("commits")
        # Add records only after the sync. If it fails, it is unknown whether they exist, and a later run reads them.
        self._files[entry.file] = list(records)
        self._records |= _by_identity(records)

    def drop(self, *records: Record) -> None:
        """Remove results: first their records, and after a sync their files."""
        identities = {record.identity for record in records}
        for name in list(self._files):
            self._drop_from(name, identities)
        if records:
            self._sync("commits")  # otherwise a power cut could restore a record without its file
        for record in records:
            self._records.pop(record.identity, None)
            self._remove(record.entry.file)

    def _drop_from(self, name: str, identities: set[tuple[str, str]]) -> None:
        """Remove records from one file of records; remove the file if it holds no others."""
        records = self._files[name]
        rest = [record for record in records if record.identity not in identities]
        if not rest:
            self._remove(name)
            del self._files[name]
        elif len(rest) < len(records):
            publish(self.disk, self.directory / name, sealed(rest), name_is_synced=False)  # `drop` syncs all names
            self._files[name] = rest

    def forget(self) -> None:
        """Discard all results. The finished run is withdrawn first, in one step, so no reader sees a part of it."""
        withdraw(self.directory, self.disk)
        self._remove(_REQUEST)
        self.drop(*self._records.values())
        self.sweep()
        for name in NAMES:
            self._remove(name)

    def finish(
        self, request: Mapping[str, Any], manifest: Mapping[str, Any], publication: Publication | None = None
    ) -> None:
        """Publish the manifest together with the files of `publication`, which completes the run."""
        publication = publication or self.publication()
        publication.finish({**manifest, "request": request})

    def sweep(self, *keep: str) -> None:
        """Remove files of interrupted writes and of results that are not committed. User files are never removed.

        If any fingerprints are given, results with all other fingerprints are removed as well.
        """
        if keep:
            self.drop(*(record for record in self.records() if record.fingerprint not in keep))
        # The manifest's files are kept even if their records are gone, because readers rely on the manifest.
        published = files_of(self.manifest(warn=False) or {})
        used = {record.entry.file for record in self.records()}
        used.update(published, map(plain_name, published))
        for path in self._paths():
            if is_left(path, is_replaced=bool(keep)) and path not in used:
                self._remove(path)
        sweep_publications(self.directory, self.disk, used)

    def _paths(self) -> Iterator[str]:
        for folder in ("", *FOLDERS, PUBLISHED):
            if (self.directory / folder).is_dir():
                for name in sorted(os.listdir(self.directory / folder)):
                    yield os.path.join(folder, name)

    def set_request(self, request: Mapping[str, Any], deadline: Mapping[str, Any] | None = None) -> None:
        before = self._read_request() or {}
        content = dict(request)
        if deadline:
            content["deadline"] = deadline
        if "contents" in before:
            content["contents"] = before["contents"]
        if content != before:  # otherwise the file keeps its modification time, which `has_diverged` compares
            self._write_request(content)

    def set_contents(self, contents: Sequence[Mapping[str, Any]]) -> None:
        """Store facts about the content of the input files next to the request, which must exist."""
        before = self._read_request()
        if before is not None and before.get("contents", []) != list(contents):
            self._write_request({**before, "contents": list(contents)})

    def _write_request(self, content: Mapping[str, Any]) -> None:
        self.replace(_REQUEST, seal(OUTPUT, content))

    # -- reading --

    def records(self, kind: str | None = None, fingerprint: str | None = None) -> list[Record]:
        """Return committed results sorted by key, optionally only of one kind (``part``, ``scan``) or fingerprint."""
        found = []
        for record in self._records.values():
            if kind in (None, record.kind) and fingerprint in (None, record.fingerprint):
                found.append(record)
        return sorted(found, key=lambda record: record.key)

    def load(self, record: Record) -> bytes:
        """Return the content of a committed result; raise `ValueError` if it is damaged."""
        path = self.directory / record.entry.file
        try:
            data = path.read_bytes()
        except OSError as error:
            check_storage(error, path)
            raise ValueError(f"file={printable(record.entry.file)}: {error.strerror}") from error
        if digest([data]) != record.entry.blake3:
            raise ValueError(f"file={printable(record.entry.file)}: its content differs from what was committed")
        return data

    def manifest(self, warn: bool = True) -> dict[str, Any] | None:
        """Return the manifest of a finished run; None if there is none or it is damaged.

        It is parsed again only if the file has changed, since that takes a second for ten thousand parts.
        """
        stamp = _stamp(self.directory / MANIFEST)
        try:
            if stamp is None or stamp != self._manifest_stamp:
                self._manifest = read_manifest(self.directory)
                self._manifest_stamp = stamp
            return dict(self._manifest)
        except NoInput:
            return None
        except DataError as error:
            if warn:
                log.warning("%s; treating the run as unfinished", error)
            return None

    def request(self) -> dict[str, Any] | None:
        """Return the request of the last run in this directory; None if there is none."""
        content = self._read_request()
        if content is None:
            return None
        return {name: value for name, value in content.items() if name not in ("deadline", "contents")}

    def deadline(self) -> dict[str, Any] | None:
        """Return the deadline of the last run; None if it had none."""
        content = self._read_request() or {}
        return content.get("deadline")

    def contents(self) -> list[dict[str, Any]]:
        """Return the stored facts about the content of the input files; empty if there are none."""
        content = self._read_request() or {}
        return list(content.get("contents", []))

    def has_diverged(self) -> bool:
        """Return whether the training of the last run has diverged."""
        try:
            model = os.stat(self.directory / LAST_GOOD)
            request = os.stat(self.directory / _REQUEST)
        except OSError:
            return False
        # A run stores its request before it trains, so an older model belongs to an earlier run.
        return model.st_mtime_ns >= request.st_mtime_ns

    # -- private --

    def _read_request(self) -> dict[str, Any] | None:
        try:
            return unsealed(self.directory / _REQUEST)
        except (OSError, ValueError):
            return None

    def _read_records(self, name: str) -> None:
        """Read a file of records. A damaged one is removed, and its results are computed again."""
        if not RECORDS.fullmatch(name):
            return
        try:
            self._files[name] = records_of(self.directory, name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            path = printable(self.directory / name)
            log.warning("file=%s: no valid commit record (%s); its result is recomputed", path, error)
            self._remove(name)

    def _remove(self, name: str) -> None:
        path = self.directory / name
        if os.path.islink(path) or not os.path.isdir(path):  # shardpress creates no directory with such a name
            remove(self.disk, path)

    def _sync(self, folder: str) -> None:
        with changing(self.directory / folder, "syncing it"):
            sync_directory(self.disk, self.directory / folder)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return facts that change when a file is replaced; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _by_identity(records: Sequence[Record]) -> dict[tuple[str, str], Record]:
    return {record.identity: record for record in records}
