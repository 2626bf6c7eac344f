"""Task that encodes one part: it reads rows, encodes them, finds bad rows and writes the features.

A task is a plain value that any thread or process can run. The number of concurrent tasks limits the memory. While one
task encodes, another one reads rows or waits for the disk. The features of a row depend only on that row, because every
part and every block starts at a tile boundary of its shard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.cluster.threads import check
from shardpress.device import theanos_errors
from shardpress.encoding.bad_data import BadData, RowFacts
from shardpress.encoding.partfile import PartMemory
from shardpress.encoding.parts import MAX_LISTED_COLUMNS, PartRange
from shardpress.encoding.template import Streamed
from shardpress.encoding.worker import EncodeSettings, Worker, check_place, worker_of
from shardpress.model import Model
from shardpress.output.disk import GuardedDisk, Pieces
from shardpress.output.files import PARTS, unique_name, write_file
from shardpress.records import Entry, Part
from shardpress.result import stored_name
from shardpress.scan.scaler import Cleaning
from shardpress.shards.digests import Digest, ExtrasDigest
from shardpress.shards.rows import keep_chunks, read, read_extras, stream_extra
from shardpress.shards.shard import Block, Extra, Shard, is_wide

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class EncodeTask:
    """Task to encode one part."""

    part: PartRange
    settings: EncodeSettings
    unreadable: str | None = None  # reason why the part's shard cannot be read; all of its rows are then bad

    def __str__(self) -> str:
        return str(self.part.source)


@theanos_errors()  # also in a worker process, because most of Theano's exceptions cannot be pickled
def encode_part(task: EncodeTask) -> Part:
    """Encode a part and write its features to a file. The file counts only when the journal names it.

    Raises
    ------
    DataError
        If rows cannot be read, or if the settings do not allow them.
    WriteFailed, SystemLimit
        If the file cannot be written.
    TryAgain
        If the output directory has been moved or replaced since the start of the run.
    ReadFailed, DeviceError, ConfigError, NotPermitted
        See `shardpress.encoding.worker.worker_of`.
    """
    settings = task.settings
    source = task.part.source
    worker = worker_of(settings)
    keep_chunks(settings.chunk_bytes)
    memory = worker.part_memory(source.shard)
    features = memory.features(len(source))
    valid = np.ones(len(source), dtype=bool)
    digest = Digest()
    if task.unreadable is None:
        with worker.readers:  # released before the part is written, because writing waits for the disk
            rows = _encode_rows(worker, task, features, valid, digest)
    else:
        rows = _mark_unreadable(source, task.unreadable, features, valid)
    error = memory.store(len(source))
    facts = _facts(task, valid, rows.n_outside, error)
    extras_digest = ExtrasDigest(source.start)
    entry, lost = _write_part(worker, task, memory, valid, facts, extras_digest)
    # Wide extras are read during the writing, so `lost` is complete only after it.
    listed = [*rows.bad, *lost]
    return Part(
        entry,
        **facts,
        bad=listed,
        outside=rows.outside[:MAX_LISTED_COLUMNS],
        lost=_lost_ranges(source.shard, lost),
        rows=None if task.unreadable else str(digest),
        extras=None if task.unreadable or lost else str(extras_digest),
    )


def _lost_ranges(shard: Shard, reports: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """Return the row ranges of the shard whose values are lost, by the stored names of the extras."""
    names_by_dataset: dict[str, list[str]] = {}  # the fields of a table are extras in one dataset
    for extra in shard.extras:
        if extra.layout is not None:
            names_by_dataset.setdefault(extra.layout.name, []).append(stored_name(extra.name))
    found: dict[str, list[list[int]]] = {}
    for report in reports:
        first, end = report["row"]
        for name in names_by_dataset[report["dataset"]]:
            ranges = found.setdefault(name, [])
            if ranges and ranges[-1][1] == first:
                ranges[-1][1] = end
            else:
                ranges.append([first, end])
    return found


def _facts(task: EncodeTask, valid: np.ndarray, n_outside: int, error: float | None) -> dict[str, Any]:
    """Return the fields of `Part` that are also stored in the part's file."""
    source = task.part.source
    facts = {
        "n_rows": len(source),
        "n_bad": int(len(valid) - valid.sum()),
        "n_outside": n_outside,
        "shard": task.part.shard,
        "path": source.shard.path,
        "dataset": source.shard.dataset,
        "start": source.start,
        "stop": source.stop,
    }
    if error is not None:
        facts["dtype"] = task.settings.storage.dtype
        facts["max_error"] = error
    return facts


def _mark_unreadable(source: Block, reason_text: str, features: np.ndarray, valid: np.ndarray) -> RowFacts:
    """Mark all rows of a part as bad, and return the facts about them."""
    features[:] = np.nan
    valid[:] = False
    reason = {"row": [source.start, source.stop], "columns": [], "reason": reason_text}
    return RowFacts(bad=[reason])


def _encode_rows(worker: Worker, task: EncodeTask, features: np.ndarray, valid: np.ndarray, digest: Digest) -> RowFacts:
    """Encode the rows of a part into `features`, set `valid` to False for bad rows, and add the rows to `digest`."""
    source = task.part.source
    bad_data = _bad_data(worker.model, task.settings)
    cleaning = Cleaning(worker.model.scaler, bad_data.missing, bad_data.clips)
    # The encoder cannot find bad rows if a finite number marks missing values, or if rows are cleaned before encoding.
    finds_suspects = bad_data.missing is None and not cleaning.scaler.cleans
    facts = RowFacts()
    for block in source.cut(task.settings.block_rows):
        check()  # a part can take seconds, but a signal should stop the run at once
        place = slice(block.start - source.start, block.stop - source.start)
        rows = read(block, worker.block_memory(block), digest)
        cleaned = cleaning.cleaned(block, rows)
        suspects = worker.encode(cleaned, features[place])
        if not finds_suspects:
            suspects = None
        if suspects is not None and len(suspects) == 0:
            continue
        bad, found = bad_data.judge(block, (rows, cleaned), features[place], worker.encode, suspects)
        valid[place][bad] = False
        facts.add(found)
    return facts


def _bad_data(model: Model, settings: EncodeSettings) -> BadData:
    """Return the settings for bad data, completed with facts about the model, which tasks do not include."""
    bad_data = replace(settings.bad_data, columns=model.columns)
    if settings.has_range:
        bad_data = replace(bad_data, trained_on=model.scaler)
    return bad_data


def _write_part(
    worker: Worker,
    task: EncodeTask,
    memory: PartMemory,
    valid: np.ndarray,
    facts: Mapping[str, Any],
    digest: ExtrasDigest,
) -> tuple[Entry, list[dict[str, Any]]]:
    """Write the file of a part from the features in `memory`, and add the extras to `digest`.

    Return its entry, and reports of lost extra values.
    """
    settings = task.settings
    source = task.part.source
    if any(is_wide(extra, len(source)) for extra in source.shard.extras):
        with worker.wide_writers:
            streamed, lost = _stream_extras(source, settings.bad_data, digest)
            entry = _write_file(worker, task, memory.stream(valid, streamed, settings.attributes, facts))
            _trim_memory()
        return entry, lost
    extras, lost = _read_extras(source, settings.bad_data, digest)
    entry = _write_file(worker, task, memory.file(valid, extras, settings.attributes, facts))
    return entry, lost


def _write_file(worker: Worker, task: EncodeTask, data: memoryview | Pieces) -> Entry:
    disk = GuardedDisk(worker.disk, partial(check_place, task.settings))
    name = unique_name(f"{PARTS}/{task.part.key}", ".h5")
    return write_file(Path(task.settings.directory), disk, name, data)


def _trim_memory() -> None:
    """Return freed memory to the system. Otherwise the allocator keeps the memory of long texts for each thread."""
    trim = getattr(_LIBC, "malloc_trim", None)  # a function of glibc
    if trim is not None:
        trim(0)


def _stream_extras(
    source: Block, bad_data: BadData, digest: ExtrasDigest
) -> tuple[dict[str, np.ndarray | Streamed], list[dict[str, Any]]]:
    """Return the extras of a part, and a list of reports of lost values.

    Wide extras are read later. They append their reports to the same list.
    """
    shard = source.shard
    narrow = tuple(extra for extra in shard.extras if not is_wide(extra, len(source)))
    values, lost = _read_extras(replace(source, shard=replace(shard, extras=narrow)), bad_data, digest)
    reports = None if bad_data.on_bad_data == "raise" else lost
    found: dict[str, np.ndarray | Streamed] = {}
    for extra in shard.extras:  # keep this order, because a mask follows the extra whose lost values it marks
        if extra.name in values:
            found[extra.name] = values[extra.name]
        else:
            found[extra.name] = _wide_extra(source, extra, values, reports, digest)
    return found, lost


def _wide_extra(
    source: Block,
    extra: Extra,
    values: Mapping[str, np.ndarray],
    reports: list[dict[str, Any]] | None,
    digest: ExtrasDigest,
) -> Streamed:
    """Return a wide extra of a part, which is read block by block."""
    empty = np.empty(0, extra.dtype)  # NumPy splits a dtype of arrays into shape and dtype
    shape = (len(source), *empty.shape[1:])

    def blocks() -> Iterator[np.ndarray]:
        return digest.passing(extra.name, stream_extra(source, extra, values, reports, check))

    return Streamed(shape, empty.dtype, blocks)


def _read_extras(
    source: Block, bad_data: BadData, digest: ExtrasDigest
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Return the values of extras, and reports of values that are lost because they cannot be read."""
    lost: list[dict[str, Any]] = []
    extras = read_extras(source, None if bad_data.on_bad_data == "raise" else lost, check)
    for name, values in extras.items():
        digest.add(name, values)
    return extras, lost
