"""Check before a run that the disk has room for its features."""

from __future__ import annotations

import logging
from pathlib import Path

from shardpress.encoding.storage import storage_of
from shardpress.errors import WriteFailed, printable
from shardpress.output.journal import Journal
from shardpress.run.prepare import Prepared

log = logging.getLogger(__name__)

_VALID_BYTES = 1  # of a row in `valid`
_ERROR_BYTES = 4  # of a row in `error`
_LEAST_COMPRESSED = 4  # compression ratio that is assumed before any features are known


def check_space(journal: Journal, prepared: Prepared) -> None:
    """Raise `WriteFailed` if the features do not fit on the disk of the output directory."""
    try:
        free = journal.disk.free_bytes(journal.directory)
    except OSError as error:
        log.debug("output=%s: the free space is unknown: %s", printable(journal.directory), error)
        return
    # Existing parts may belong to this model, whose fingerprint is known only after the training.
    parts = [record.part for record in journal.records("part")]
    parts += prepared.change.kept
    check_free(prepared, sum(part.n_rows for part in parts), free)


def check_free(prepared: Prepared, n_written: int, free: int) -> None:
    """Raise `WriteFailed` if `free` bytes are too few for the features of all rows except `n_written`."""
    needed = bytes_missing(prepared, n_written)
    if needed > free:
        output = Path(prepared.config.results.output)
        raise WriteFailed(
            f"output={printable(output)}: {free} bytes are free, expected at least {needed} for the features. Free "
            "some space, or choose another --output."
        )


def bytes_missing(prepared: Prepared, n_written: int) -> int:
    """Return the minimum number of bytes of the features and extras of all rows except `n_written`.

    Models and digests are not counted, because they are small.
    """
    storage = storage_of(prepared.config.storage)
    part_bytes = storage.itemsize * prepared.config.network.n_outputs
    if storage.compression != "none":
        part_bytes //= _LEAST_COMPRESSED
    other_bytes = sum(extra.dtype.itemsize for extra in prepared.shards[0].extras) + _VALID_BYTES
    if prepared.config.storage.row_error:
        other_bytes += _ERROR_BYTES
    return max(0, prepared.n_rows - n_written) * (part_bytes + other_bytes)
