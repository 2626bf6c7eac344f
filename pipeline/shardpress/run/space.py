"""Check before a run that the disk has room for its features: enough bytes, and enough inodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shardpress.encoding.storage import storage_of
from shardpress.errors import WriteFailed, printable
from shardpress.output.ledger import Ledger
from shardpress.output.records import Record
from shardpress.run.prepare import Prepared
from shardpress.run.resume import n_rows_in

log = logging.getLogger(__name__)

_OTHER_FILES = 8  # files that a run creates after its parts: commits, manifest, index.h5, model.h5, and so on
_FLOAT32_BYTES = 4
_LEAST_COMPRESSED = 4  # compression ratio that is assumed before any features are known


@dataclass(frozen=True)
class Written:
    """Committed files that a run reuses.

    Attributes
    ----------
    n_rows, n_bytes : int
        Rows with committed features, and the bytes of their parts.
    """

    n_rows: int = 0
    n_bytes: int = 0


def check_space(ledger: Ledger, prepared: Prepared) -> None:
    """Raise `WriteFailed` if the features do not fit on the disk of the output directory."""
    try:
        free = ledger.disk.free_bytes(ledger.directory)
        n_free_inodes = ledger.disk.free_inodes(ledger.directory)
    except OSError as error:
        log.debug("output=%s: the free space is unknown: %s", printable(ledger.directory), error)
        return
    # Existing parts may belong to this model, whose fingerprint is known only after the training.
    kept = set() if prepared.finished is None else {part.entry.file for part in prepared.finished.parts}
    records = [record for record in ledger.records("part") if record.entry.file not in kept]
    written = Written(n_rows_in(records), _size_of(records))
    if shortage := space_error(prepared, written, free):
        raise shortage
    if shortage := inode_error(prepared, written, n_free_inodes):
        raise shortage


def space_error(prepared: Prepared, written: Written, free: int) -> WriteFailed | None:
    """Return an error if `free` bytes are too few for the features that are not written yet."""
    needed = bytes_missing(prepared, written)
    if needed <= free:
        return None
    output = Path(prepared.config.results.output)
    return WriteFailed(
        f"output={printable(output)}: {free} bytes are free, expected at least {needed} for the features. Free some "
        "space, or choose another --output."
    )


def inode_error(prepared: Prepared, written: Written, n_free: int | None) -> WriteFailed | None:
    """Return an error if a run needs more new files than the file system can create, otherwise None.

    Parameters
    ----------
    prepared : Prepared
    written : Written
        Files that exist already.
    n_free : int or None
        Number of files that can still be created; None if the file system has no such limit.
    """
    part_rows = prepared.budget.part_rows
    n_parts = sum(-(-shard.n_rows // part_rows) for shard in prepared.shards)
    n_missing = max(0, prepared.n_rows - written.n_rows)
    n_new = -(-n_parts * n_missing // max(1, prepared.n_rows))
    n_needed = n_new + _OTHER_FILES
    if n_free is None or n_new == 0 or n_needed <= n_free:
        return None
    output = Path(prepared.config.results.output)
    return WriteFailed(
        f"output={printable(output)}: {n_free} inodes are free, expected at least {n_needed} for this run's files. "
        "Remove files that are not needed, or choose another --output."
    )


def bytes_missing(prepared: Prepared, written: Written) -> int:
    """Return the minimum number of bytes of the features and extras that are not written yet.

    Models and digests are not counted, because they are small.
    """
    config = prepared.config
    storage = storage_of(config.storage)
    extras_bytes = _extras_bytes(prepared)
    feature_bytes = storage.itemsize * config.network.n_outputs
    part_bytes = feature_bytes
    if storage.compression != "none":
        part_bytes = feature_bytes // _LEAST_COMPRESSED
    return max(0, prepared.n_rows * (part_bytes + extras_bytes) - written.n_bytes)


def _size_of(records: Sequence[Record]) -> int:
    """Return the total size of the files of records in bytes."""
    return sum(record.entry.n_bytes for record in records)


def _extras_bytes(prepared: Prepared) -> int:
    """Return the bytes of the extras of a row, and of `valid`."""
    return 1 + sum(extra.dtype.itemsize for extra in prepared.shards[0].extras)
