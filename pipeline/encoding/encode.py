"""One part: read, encode, judge, write. A plain task, for any thread or process.

Memory is bounded by the number of tasks at a time: one reads or waits for the disk while another one's rows are
encoded. The features of a row depend on nothing but the row: every part and block starts at a whole tile of its shard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.threads import check
from pipeline.device import theanos_errors
from pipeline.encoding.bad_data import BadData
from pipeline.encoding.parts import LISTED, Part, PartFacts
from pipeline.encoding.worker import EncodeSettings, Worker, check_place, worker_of
from pipeline.errors import DataError
from pipeline.output.disk import GuardedDisk
from pipeline.output.records import write_result
from pipeline.scan.cleaning import Cleaning
from pipeline.scan.drift import Outside, farthest
from pipeline.shards.rows import read, read_riders, salvage_riders
from pipeline.shards.shard import Block

__all__ = ["EncodeTask", "encode_part"]


@dataclass(frozen=True)
class EncodeTask:
    """A part to be made."""

    part: Part
    settings: EncodeSettings
    unreadable: str | None = None  # why its shard cannot be read, if it cannot: all its rows are bad ones then

    def __str__(self) -> str:
        return str(self.part.source)


@theanos_errors()  # in a worker's process, too: what Theano raises could hardly be sent from there
def encode_part(task: EncodeTask) -> PartFacts:
    """Write the features of a part to a file, which does not count before it is committed.

    Raises
    ------
    DataError
        For rows that cannot be read, or that are not allowed.
    TooCoarse
        When features cannot be stored as they shall be.
    WriteFailed, SystemLimit
    TryAgain
        When the output directory is no longer the one in which the run began.
    ReadFailed, DeviceError, ConfigError, NotPermitted
        As `pipeline.encoding.worker.worker_of`.
    """
    part, settings, source = task.part, task.settings, task.part.source
    worker = worker_of(settings)
    memory = worker.part_memory(source.shard)
    features, valid = memory.features(len(source)), np.ones(len(source), dtype=bool)
    if task.unreadable is None:
        with worker.turns:  # not for what follows, which waits for the disk
            n_outside, bad, outside = _encode_rows(worker, task, features, valid)
    else:
        features[:], valid[:] = np.nan, False
        n_outside, outside = 0, list[Outside]()
        bad = [{"row": [source.start, source.stop], "columns": [], "reason": task.unreadable}]
    error = memory.store(len(source))
    riders, lost = _riders(source, settings.bad_data)
    facts: dict[str, Any] = {
        "n_rows": len(source),
        "n_bad": int(len(valid) - valid.sum()),
        "n_outside": n_outside,
        "shard": part.number,
        "path": source.shard.path,
        "dataset": source.shard.dataset,
        "start": source.start,
        "stop": source.stop,
        **({} if error is None else {"dtype": settings.storage.dtype, "max_error": error}),
    }
    data = memory.file(valid, riders, settings.attributes, facts)
    disk = GuardedDisk(worker.disk, partial(check_place, settings))
    entry = write_result(Path(settings.directory), disk, f"parts/{part.key}", ".h5", data)
    # Only now, since what cannot be read of a rider is among them.
    listed = [*bad, *lost] if settings.bad_data.lists else []
    return PartFacts(entry, **facts, bad=tuple(listed), outside=tuple(outside))


def _encode_rows(
    worker: Worker, task: EncodeTask, features: np.ndarray, valid: np.ndarray
) -> tuple[int, list[dict[str, Any]], list[Outside]]:
    """Features of a part's rows, and which of them count; how many lie outside the model's range, and what is said."""
    source, bad_data, n_outside = task.part.source, task.settings.bad_data, 0
    if task.settings.has_range:
        bad_data = replace(bad_data, trained_on=worker.model.scaler)
    cleaning = Cleaning(worker.model.scaler, bad_data.missing)
    bad, outside = list[dict[str, Any]](), list[Outside]()
    for block in source.cut(task.settings.block_rows):
        check()  # a part can take seconds, and a run is to stop at once
        place = slice(block.start - source.start, block.stop - source.start)
        rows = read(block, worker.block_memory(block))
        cleaned = cleaning.cleaned(block, rows)
        suspects = worker.encode(cleaned, features[place])
        if bad_data.missing is not None or cleaning.scaler.cleans:
            suspects = None  # the encoder knows of no such value, which any row may hold, nor what has been cleaned
        if suspects is None or len(suspects):
            judged = bad_data.judge(block, (rows, cleaned), features[place], worker.encode, suspects)
            valid[place][judged.bad] = False
            n_outside += judged.n_outside
            bad += judged.reasons
            outside = farthest([*outside, *judged.outside])
    return n_outside, bad, outside[:LISTED]


def _riders(source: Block, bad_data: BadData) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What rides along, and what is said of values that cannot be read: where bad data pass, they are as if missing."""
    try:
        return read_riders(source), []  # at one go; piece by piece is several times as slow
    except DataError:
        if bad_data.on_bad_data == "raise":
            raise
        return salvage_riders(source, check)
