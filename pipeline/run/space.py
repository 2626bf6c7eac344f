"""Whether the features will fit onto the disk: a full one is better met in the evening."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.encoding.storage import storages
from pipeline.errors import WriteFailed, shown
from pipeline.output.ledger import Ledger
from pipeline.run.job import Prepared

__all__ = ["bytes_needed", "check_space", "lacks_space"]

log = logging.getLogger(__name__)

_LEAST_COMPRESSED = 4  # how many times smaller features may become, before anything is known of them


def check_space(ledger: Ledger, prepared: Prepared) -> None:
    """Look what is free where they go.

    Raises
    ------
    WriteFailed
        When the features will not fit.
    """
    try:
        free = ledger.disk.free_bytes(ledger.directory)
    except OSError as error:
        log.debug("output=%s: how much is free there cannot be told: %s", shown(ledger.directory), error)
        return
    # Parts of this very model that are there already; which one it is, only the training tells.
    there = sum(record.entry.n_bytes for record in ledger.records("part"))
    if lack := lacks_space(prepared, there, free):
        raise lack


def lacks_space(prepared: Prepared, there: int, free: int) -> WriteFailed | None:
    """What is to be said when `free` bytes do not hold the features, of which `there` bytes are written already."""
    needed = bytes_needed(prepared) - there
    if needed <= free:
        return None
    return WriteFailed(
        f"output={shown(Path(prepared.config.output))}: {free} bytes are free there, expected {needed} at least for "
        "the features. Free some space, or choose another --output."
    )


def bytes_needed(prepared: Prepared) -> int:
    """What the features of all rows and what rides along take: at least, since models and digests are small."""
    config, storage = prepared.config, storages(prepared.config)[0]
    beside = 1 + sum(rider.dtype.itemsize for rider in prepared.shards[0].riders)  # 1 for whether it is valid
    row_bytes = storage.itemsize * config.n_features
    in_parts = row_bytes // _LEAST_COMPRESSED if storage.compression != "none" else row_bytes
    return prepared.n_rows * (in_parts + beside + (row_bytes + beside if config.single_file else 0))
