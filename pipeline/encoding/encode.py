"""One part: read, encode, judge, write. A plain task, for any thread or process.

Memory is bounded by the number of tasks at a time: one reads or waits for the disk while another one's rows are
encoded. The features of a row depend on nothing but the row: every part and block starts at a whole tile of its shard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster.threads import check
from pipeline.device import theanos_errors
from pipeline.encoding.bad_data import BadData
from pipeline.encoding.partfile import PartMemory
from pipeline.encoding.parts import LISTED, Part, PartFacts
from pipeline.encoding.template import Streamed
from pipeline.encoding.worker import EncodeSettings, Worker, check_place, worker_of
from pipeline.errors import DataError
from pipeline.output.disk import GuardedDisk, Pieces
from pipeline.output.records import Entry, write_result
from pipeline.scan.drift import Outside, farthest
from pipeline.scan.scaler import Cleaning
from pipeline.shards.rows import keep_chunks, read, read_riders, salvage_riders, stream_rider
from pipeline.shards.shard import Block, Rider, is_wide

__all__ = ["EncodeTask", "encode_part"]

_LIBC = ctypes.CDLL(None)


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
    part = task.part
    settings = task.settings
    source = task.part.source
    worker = worker_of(settings)
    keep_chunks(settings.chunk_bytes)
    memory = worker.part_memory(source.shard)
    features = memory.features(len(source))
    valid = np.ones(len(source), dtype=bool)
    if task.unreadable is None:
        with worker.turns:  # not for what follows, which waits for the disk
            n_outside, bad, outside = _encode_rows(worker, task, features, valid)
    else:
        features[:], valid[:] = np.nan, False
        n_outside = 0
        outside = list[Outside]()
        bad = [{"row": [source.start, source.stop], "columns": [], "reason": task.unreadable}]
    error = memory.store(len(source))
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
    entry, lost = _written(worker, task, memory, valid, facts)
    # Only now, since what cannot be read of a rider is among them.
    listed = [*bad, *lost] if settings.bad_data.lists else []
    return PartFacts(entry, **facts, bad=tuple(listed), outside=tuple(outside))


def _encode_rows(
    worker: Worker, task: EncodeTask, features: np.ndarray, valid: np.ndarray
) -> tuple[int, list[dict[str, Any]], list[Outside]]:
    """Features of a part's rows, and which of them count; how many lie outside the model's range, and what is said."""
    source = task.part.source
    n_outside = 0
    bad_data = replace(task.settings.bad_data, columns=worker.model.columns)
    if task.settings.has_range:
        bad_data = replace(bad_data, trained_on=worker.model.scaler)
    cleaning = Cleaning(worker.model.scaler, bad_data.missing)
    bad = list[dict[str, Any]]()
    outside = list[Outside]()
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


def _written(
    worker: Worker, task: EncodeTask, memory: PartMemory, valid: np.ndarray, facts: Mapping[str, Any]
) -> tuple[Entry, list[dict[str, Any]]]:
    """Write the file of a part whose features are in `memory`, and return it with reports of extras that are lost."""
    settings = task.settings
    source = task.part.source
    shard = source.shard
    wideness = [is_wide(rider, len(source)) for rider in shard.riders]
    narrow = tuple(rider for rider, wide in zip(shard.riders, wideness, strict=True) if not wide)

    disk = GuardedDisk(worker.disk, partial(check_place, settings))

    def write(data: memoryview | Pieces) -> Entry:
        return write_result(Path(settings.directory), disk, f"parts/{task.part.key}", ".h5", data)

    if len(narrow) == len(shard.riders):
        riders, lost = _riders(source, settings.bad_data)
        return write(memory.file(valid, riders, settings.attributes, facts)), lost
    with worker.wide_turns:
        values, lost = _riders(replace(source, shard=replace(shard, riders=narrow)), settings.bad_data)
        reports = None if settings.bad_data.on_bad_data == "raise" else lost
        # In the order of the shard's, in which a mask follows the extra whose lost values it marks.
        extras = {
            rider.name: _streamed(source, rider, values, reports) if wide else values[rider.name]
            for rider, wide in zip(shard.riders, wideness, strict=True)
        }
        entry = write(memory.stream(valid, extras, settings.attributes, facts))
        _trim()
    return entry, lost


def _trim() -> None:
    """Return freed memory to the system, or the allocator would keep that of long texts for each thread by itself."""
    trim = getattr(_LIBC, "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _streamed(
    source: Block, rider: Rider, values: Mapping[str, np.ndarray], reports: list[dict[str, Any]] | None
) -> Streamed:
    """Return a wide extra of a part, to be read block by block."""
    none = np.empty(0, rider.dtype)  # whose shape and dtype tell those of an array for each row
    shape = (len(source), *none.shape[1:])
    return Streamed(shape, none.dtype, partial(stream_rider, source, rider, values, reports, check))


def _riders(source: Block, bad_data: BadData) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """What rides along, and what is said of values that cannot be read: where bad data pass, they are as if missing."""
    try:
        return read_riders(source), []  # at one go; piece by piece is several times as slow
    except DataError:
        if bad_data.on_bad_data == "raise":
            raise
        return salvage_riders(source, check)
