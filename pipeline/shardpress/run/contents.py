"""Detection of input files whose contents were changed although their modification time is the same.

The status change time (ctime) of such a file is new. But chmod, hard links and backups also update it, so a digest of
the contents confirms the change. ctimes and digests are stored next to the request, and are not part of a fingerprint.
The digest becomes part of the request only if the contents have changed, so that the results depend on it, as on a new
modification time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from shardpress.errors import DataError, printable
from shardpress.hdf5.files import FILES
from shardpress.output.journal import Journal
from shardpress.records import FileContents
from shardpress.run.digests import digest_of, digests_of_rows, file_digests
from shardpress.run.prepare import Prepared
from shardpress.shards.shard import Shard

log = logging.getLogger(__name__)

Contents = list[FileContents]
"""Facts about the file of each shard."""


def compare_contents(journal: Journal, prepared: Prepared, reads: bool = True) -> tuple[Prepared, Contents]:
    """Compare the input files with the ctimes and digests that an earlier run has stored.

    Return the run, whose request contains a digest of each changed file, and current facts about the contents. The
    facts are empty if nothing was stored. Without `reads`, files with a new ctime are assumed to be unchanged.
    """
    shards = prepared.shards
    stored = _stored(journal, prepared)
    if not stored:
        return prepared, []
    moved = [i for i, shard in enumerate(shards) if shard.identity.ctime_ns != stored[i].ctime_ns]
    if not reads or prepared.config.results.verify != "digests":
        moved = []
    digests = file_digests([shards[i] for i in moved], prepared.budget.n_threads)
    contents = list(stored)
    for i, found in zip(moved, digests, strict=True):
        is_equal = stored[i].blake3 is not None and stored[i].blake3 == found
        rows = stored[i].rows if is_equal else None
        contents[i] = _line(shards[i], found, rows, is_changed=stored[i].is_changed or not is_equal)
    return _marked(prepared, contents), contents


def _stored(journal: Journal, prepared: Prepared) -> Contents:
    """Return the facts with which the files are compared; empty if there are none.

    These are the facts of the finished run. A later run that has not finished can have stored new contents of a file,
    but the result has the features of the earlier ones. Its ctimes of equal contents save computing the digests again.
    The files that an append encodes are compared with those that an interrupted append has encoded.
    """
    later = _stored_lines(journal, prepared)
    stored = [] if journal.base is None else journal.base.facts.contents
    if prepared.finished is not None:
        return [] if journal.contents == stored else later
    if not _describes(stored, prepared.shards):
        return later
    found = []
    for i, line in enumerate(stored):
        if later and later[i].blake3 == line.blake3:
            line = structs.replace(line, ctime_ns=later[i].ctime_ns)
        found.append(line)
    return found


def record_times(prepared: Prepared, journal: Journal) -> None:
    """Store the ctimes of the input files before the first result that is made from them; their digests follow.

    If the run is interrupted before their digests are stored, a file with a new ctime counts as changed.
    """
    if prepared.config.results.verify == "digests" and not _recorded(prepared, journal):
        lines = [_line(shard, None, None) for shard in prepared.shards]
        journal.set_contents([*_kept(prepared), *lines])


def record_contents(prepared: Prepared, journal: Journal) -> None:
    """Store digests of the input files, unless they are already stored or never compared (``--verify sizes``).

    An append stores the digests of the files that it encodes, in addition to those of the other files.
    """
    recorded = _recorded(prepared, journal)
    if prepared.config.results.verify != "digests" or all(line.blake3 for line in recorded):
        return
    digests = file_digests(prepared.shards, prepared.budget.n_threads)
    row_digests = digests_of_rows(prepared.shards, prepared.budget.n_threads)
    contents = []
    for shard, before, found, rows in zip(prepared.shards, recorded, digests, row_digests, strict=True):
        line = _line(shard, found, rows, before.is_changed)
        ctime_ns = _ctime_of(shard)
        if ctime_ns is not None and ctime_ns != line.ctime_ns:
            line = structs.replace(line, ctime_ns=ctime_ns)
            log.warning(
                "file=%s: its ctime changed before its digest was computed, so a change of its contents cannot be "
                "ruled out",
                printable(shard.path),
            )
        contents.append(line)
    journal.set_contents([*_kept(prepared), *contents])


def check_contents(prepared: Prepared, journal: Journal) -> None:
    """Raise `DataError` if the contents of a file have changed since the start of the run."""
    contents = _stored_lines(journal, prepared)
    if prepared.config.results.verify != "digests" or not contents:
        return
    for shard, line in zip(prepared.shards, contents, strict=True):
        if line.blake3 is None or _ctime_of(shard) in (None, line.ctime_ns):
            continue
        if digest_of(shard.path, shard.identity) != line.blake3:
            raise DataError(
                f"file={printable(shard.path)}: its contents changed during the run, although its modification time "
                "did not. Input files must not change during a run. Run the same command again once no other process "
                "writes to the file."
            )


def _recorded(prepared: Prepared, journal: Journal) -> Contents:
    """Return the facts about the files of this run; empty before `record_times`."""
    return _stored_lines(journal, prepared) if prepared.finished is None else _stored(journal, prepared)


def _kept(prepared: Prepared) -> Contents:
    """Return the facts about the files of the finished run to which an append adds others."""
    return [] if prepared.finished is None else prepared.finished.contents


def _stored_lines(journal: Journal, prepared: Prepared) -> Contents:
    """Return the stored facts about the shards of a run or an append; empty if there are none."""
    contents = journal.contents
    if prepared.finished is not None:
        contents = contents[len(prepared.finished.contents) :]
    return contents if _describes(contents, prepared.shards) else []


def _line(shard: Shard, blake3: str | None, rows: str | None, is_changed: bool = False) -> FileContents:
    identity = shard.identity
    return FileContents(
        Path(shard.path).name, identity.size, identity.mtime_ns, identity.ctime_ns, blake3, rows, is_changed
    )


def _ctime_of(shard: Shard) -> int | None:
    """Return the current ctime of a shard's file, or None if the file no longer exists."""
    try:
        return int(FILES.stat(shard.path).st_ctime_ns)
    except OSError:
        return None


def _describes(contents: Contents, shards: Sequence[Shard]) -> bool:
    now = [(Path(shard.path).name, shard.identity.size, shard.identity.mtime_ns) for shard in shards]
    return [line.identity for line in contents] == now


def _marked(prepared: Prepared, contents: Contents) -> Prepared:
    """Return the prepared run with a digest in its request for each changed file."""
    if not any(line.is_changed for line in contents):
        return prepared
    shards = []
    for shard, line in zip(prepared.request.shards, contents, strict=True):
        shards.append(structs.replace(shard, contents=line.blake3 if line.is_changed else None))
    return replace(prepared, request=structs.replace(prepared.request, shards=shards))
