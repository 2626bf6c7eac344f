"""Check before a run that the disk has room for its features: enough bytes, and enough inodes."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.encoding.storage import storages
from pipeline.errors import WriteFailed, printable
from pipeline.output.ledger import Ledger
from pipeline.run.prepare import Prepared
from pipeline.run.resume import n_rows_in

__all__ = ["bytes_needed", "check_space", "inode_error", "space_error"]

log = logging.getLogger(__name__)

_OTHER_FILES = 8  # files that a run creates after its parts: commits, manifest, index.h5, model.h5, and so on
_LEAST_COMPRESSED = 4  # compression ratio that is assumed before any features are known


def check_space(ledger: Ledger, prepared: Prepared) -> None:
    """Raise `WriteFailed` if the features do not fit on the disk of the output directory."""
    try:
        free = ledger.disk.free_bytes(ledger.directory)
        n_free_inodes = ledger.disk.free_inodes(ledger.directory)
    except OSError as error:
        log.debug("output=%s: the free space is unknown: %s", printable(ledger.directory), error)
        return
    # Existing parts may belong to this model, whose fingerprint is known only after the training.
    records = ledger.records("part")
    n_written = sum(record.entry.n_bytes for record in records)
    if shortage := space_error(prepared, n_written, free):
        raise shortage
    if shortage := inode_error(prepared, n_rows_in(records), n_free_inodes):
        raise shortage


def space_error(prepared: Prepared, n_written: int, free: int) -> WriteFailed | None:
    """Return an error if `free` bytes are too few for the features; `n_written` bytes are already written."""
    needed = bytes_needed(prepared) - n_written
    if needed <= free:
        return None
    output = Path(prepared.config.results.output)
    return WriteFailed(
        f"output={printable(output)}: {free} bytes are free, expected at least {needed} for the features. Free some "
        "space, or choose another --output."
    )


def inode_error(prepared: Prepared, n_encoded: int, n_free: int | None) -> WriteFailed | None:
    """Return an error if a run needs more new files than the file system can create, otherwise None.

    Parameters
    ----------
    n_encoded : int
        Rows whose features are committed already.
    n_free : int or None
        Number of files that can still be created; None if the file system has no such limit.
    """
    n_missing = prepared.n_rows - n_encoded
    if n_free is None or n_missing <= 0:
        return None
    part_rows = prepared.budget.part_rows
    n_parts = sum(-(-shard.n_rows // part_rows) for shard in prepared.shards)
    n_needed = -(-n_parts * n_missing // prepared.n_rows) + _OTHER_FILES
    if n_needed <= n_free:
        return None
    output = Path(prepared.config.results.output)
    return WriteFailed(
        f"output={printable(output)}: {n_free} inodes are free, expected at least {n_needed} for this run's files. "
        "Remove files that are not needed, or choose another --output."
    )


def bytes_needed(prepared: Prepared) -> int:
    """Return the minimum size of all features and extras in bytes.

    Models and digests are not counted, because they are small.
    """
    config = prepared.config
    storage = storages(config.storage)[0]
    extras_bytes = 1 + sum(extra.dtype.itemsize for extra in prepared.shards[0].extras)  # 1 for `valid`
    feature_bytes = storage.itemsize * config.network.n_features
    part_bytes = feature_bytes
    if storage.compression != "none":
        part_bytes = feature_bytes // _LEAST_COMPRESSED
    row_bytes = part_bytes + extras_bytes
    if config.results.single_file:
        row_bytes += feature_bytes + extras_bytes
    return prepared.n_rows * row_bytes
