"""Task that encodes one part: it reads rows, encodes them, finds bad rows and writes the features.

A task is a plain value that any thread or process can run. The number of concurrent tasks limits the memory. While one
task encodes, another one reads rows or waits for the disk. The features of a row depend only on that row, because all
rows of a part and of a block start at a tile boundary of their shard.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shardpress.base.errors import DataError
from shardpress.cluster.threads import check
from shardpress.encoding.bad_data import NO_POSITIONS, BadData, RowFacts
from shardpress.encoding.partfile import Streamed, part_file, stored_categories
from shardpress.encoding.parts import Piece
from shardpress.encoding.worker import EncodeSettings, Worker, worker_of
from shardpress.hdf5.shard import WIDE_BYTES, Block, Shard, long_bytes
from shardpress.model.device import theanos_errors
from shardpress.model.encoder import Model
from shardpress.model.scaler import Cleaning
from shardpress.output.disk import Pieces
from shardpress.output.folder import PARTS, unique_name, write_file
from shardpress.result.finished import stored_name
from shardpress.result.records import Entry, Part, Range
from shardpress.scan.drift import MAX_LISTED_COLUMNS
from shardpress.shards.conversion import Conversion
from shardpress.shards.digests import Digest, ExtrasDigest
from shardpress.shards.rows import keep_chunks, read_extras, stream_extra

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class EncodeTask:
    """Task to encode one part."""

    pieces: Sequence[Piece]
    settings: EncodeSettings
    unreadable: Mapping[int, str] = field(default_factory=dict)  # reasons why shards cannot be read, by their positions
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)  # as in `Conversion`

    def __str__(self) -> str:
        first = str(self.pieces[0].source)
        return first if len(self.pieces) == 1 else f"{first} and rows of {len(self.pieces) - 1} more shards"

    @property
    def n_rows(self) -> int:
        return sum(len(piece.source) for piece in self.pieces)


class _Arrays(NamedTuple):
    """Results for the rows of a part, or for some of them."""

    features: np.ndarray  # float32 (n_rows, n_features)
    valid: np.ndarray  # bool (n_rows,)
    errors: np.ndarray | None  # float32 (n_rows,); None if they are not requested

    def at(self, rows: slice) -> _Arrays:
        errors = None if self.errors is None else self.errors[rows]
        return _Arrays(self.features[rows], self.valid[rows], errors)


class _Place:
    """A piece of a part while it is encoded."""

    def __init__(self, piece: Piece, first: int) -> None:
        self.piece = piece
        self.first = first  # position of the first row in the part
        self.facts = RowFacts()
        self.digest = Digest()
        self.extras = ExtrasDigest(piece.source.start)
        self.lost: list[dict[str, Any]] = []  # reports of lost extra values

    @property
    def source(self) -> Block:
        return self.piece.source

    @property
    def rows(self) -> slice:
        """The rows of the piece in the part."""
        return slice(self.first, self.first + len(self.source))

    def range(self, valid: np.ndarray, is_unreadable: bool) -> Range:
        """Return the record of the piece, given the good rows of the part (n_rows,)."""
        return Range(
            first=self.first,
            shard=self.piece.shard,
            start=self.source.start,
            stop=self.source.stop,
            n_bad=int(np.count_nonzero(~valid[self.rows])),
            n_outside=self.facts.n_outside,
            bad=[*self.facts.bad, *self.lost],
            outside=self.facts.outside[:MAX_LISTED_COLUMNS],
            lost=_lost_ranges(self.source.shard, self.lost),
            rows=None if is_unreadable else str(self.digest),
            extras=None if is_unreadable or self.lost else str(self.extras),
        )


@theanos_errors()  # also in a worker process, because most of Theano's exceptions cannot be pickled
def encode_part(task: EncodeTask) -> Part:
    """Encode a part and write its features to a file. The file counts only when the journal names it.

    Raises
    ------
    DataError
        If rows cannot be read, or if the settings do not allow them.
    WriteFailed, SystemLimit
        If the file cannot be written.
    ReadFailed, DeviceError, ConfigError, NotPermitted
        See `shardpress.encoding.worker.worker_of`.
    """
    settings = task.settings
    worker = worker_of(settings)
    keep_chunks(settings.chunk_bytes)
    errors = np.empty(task.n_rows, dtype=np.float32) if settings.row_error else None
    arrays = _Arrays(worker.features(task.n_rows), np.ones(task.n_rows, dtype=bool), errors)
    places = list(_places(task.pieces))
    with worker.readers:  # released before the part is written, because writing waits for the disk
        for place in places:
            reason = task.unreadable.get(place.piece.shard)
            if reason is None:
                _encode_rows(worker, task, place, arrays.at(place.rows))
            else:
                _mark_unreadable(place, reason, arrays.at(place.rows))
    stored, error = worker.stored(arrays.features)
    try:
        entry = _write_part(worker, settings, places, arrays._replace(features=stored))
    except DataError as damage:
        raise DataError(f"{damage} To continue without damaged values, use --on-bad-data skip.") from damage
    # Wide extras are read during the writing, so reports of lost values are complete only after it.
    return Part(
        entry,
        task.n_rows,
        [place.range(arrays.valid, place.piece.shard in task.unreadable) for place in places],
        dtype=None if error is None else settings.storage.dtype,
        max_error=error,
    )


def _places(pieces: Sequence[Piece]) -> Iterator[_Place]:
    first = 0
    for piece in pieces:
        yield _Place(piece, first)
        first += len(piece.source)


def _lost_ranges(shard: Shard, reports: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """Return the row ranges of the shard whose values are lost, by the stored names of the extras."""
    names = {extra.layout.name: stored_name(extra.name) for extra in shard.extras if extra.layout is not None}
    found: dict[str, list[list[int]]] = {}
    for report in reports:
        first, end = report["row"]
        ranges = found.setdefault(names[report["dataset"]], [])
        if ranges and ranges[-1][1] == first:
            ranges[-1][1] = end
        else:
            ranges.append([first, end])
    return found


def _mark_unreadable(place: _Place, reason: str, arrays: _Arrays) -> None:
    """Mark all rows of a piece as bad."""
    arrays.features[:] = np.nan
    arrays.valid[:] = False
    if arrays.errors is not None:
        arrays.errors[:] = np.nan
    place.facts.bad.append({"row": [place.source.start, place.source.stop], "columns": [], "reason": reason})


def _encode_rows(worker: Worker, task: EncodeTask, place: _Place, arrays: _Arrays) -> None:
    """Encode the rows of a piece, and mark bad rows."""
    source = place.source
    model = worker.model
    bad_data = _bad_data(model, task.settings)
    conversion = Conversion(task.orders, model.offset, model.preparation)
    cleaning = Cleaning(model.scaler, bad_data.missing, bad_data.clips_drift)
    # The encoder cannot find bad rows if a finite number marks missing values, or if rows are cleaned before encoding.
    finds_suspects = bad_data.missing is None and not cleaning.scaler.cleans
    for block in source.cut(task.settings.block_rows):
        check()  # a part can take seconds, but a signal should stop the run at once
        out = arrays.at(slice(block.start - source.start, block.stop - source.start))
        try:
            memory = worker.block_memory(conversion.row_bytes(block.shard))
            rows = conversion.read(block, memory, place.digest)
        except DataError as error:
            if bad_data.on_bad_data != "raise":
                raise
            advice = "To continue without the rows of damaged files, use --on-bad-data skip --max-bad 100%."
            raise DataError(f"{error} {advice}") from error
        filled = cleaning.filled(rows, block.shard.stored_dtype)
        # Rows outside the range are first reported, and then clipped.
        cleaned = filled if bad_data.clips_drift else cleaning.clipped(filled)
        suspects = worker.encode(cleaned, out.features)
        if not finds_suspects:
            suspects = None
        bad = NO_POSITIONS
        if suspects is None or len(suspects) > 0:
            bad, found = bad_data.judge(block, (rows, cleaned), out.features, worker.encode, suspects)
            out.valid[bad] = False
            place.facts.add(found)
        if out.errors is not None:
            assert worker.errors is not None
            # The features are those of clipped rows, but the error is that of the rows before.
            out.errors[:] = worker.errors(filled, out.features)
            out.errors[bad] = np.nan


def _bad_data(model: Model, settings: EncodeSettings) -> BadData:
    """Return the settings for bad data, completed with facts about the model, which tasks do not include."""
    bad_data = replace(settings.bad_data, columns=model.columns)
    if settings.has_range:
        bad_data = replace(bad_data, trained_on=model.scaler)
    return bad_data


# -- writing -------------------------------------------------------------------------------------------------------


def _write_part(worker: Worker, settings: EncodeSettings, places: Sequence[_Place], arrays: _Arrays) -> Entry:
    """Write the file of a part, and add the extras to the digests of its pieces."""
    extras = places[0].source.shard.extras  # the same in all shards
    wide = {extra.name for i, extra in enumerate(extras) if _is_wide(places, i)}
    categories = stored_categories(extras)
    # A wide extra is read while it is written.
    with worker.wide_writers if wide else nullcontext():
        values = _extras_of(places, wide, settings.bad_data)
        content = part_file(
            arrays.features,
            arrays.valid,
            values,
            categories,
            settings.storage.compression,
            arrays.errors,
        )
        entry = _write_file(worker, settings, places[0], content)
        if wide:
            _trim_memory()
    return entry


def _write_file(worker: Worker, settings: EncodeSettings, first: _Place, content: Pieces) -> Entry:
    stem = f"{PARTS}/part-{first.piece.shard:06d}-{first.source.start:012d}"  # so that names sort like the rows
    return write_file(Path(settings.directory), worker.disk, unique_name(stem, ".h5"), content)


def _trim_memory() -> None:
    """Return freed memory to the system. Otherwise the allocator keeps the memory of long texts for each thread."""
    trim = getattr(_LIBC, "malloc_trim", None)  # a function of glibc
    if trim is not None:
        trim(0)


def _is_wide(places: Sequence[_Place], position: int) -> bool:
    """Return whether an extra of a part is read and written block by block."""
    n_bytes = [long_bytes(place.source.shard.extras[position], len(place.source)) for place in places]
    return sum(n_bytes) > WIDE_BYTES


def _extras_of(places: Sequence[_Place], wide: set[str], bad_data: BadData) -> dict[str, np.ndarray | Streamed]:
    """Return the extras of a part. Wide ones are read later."""
    raises = bad_data.on_bad_data == "raise"
    n_rows = sum(len(place.source) for place in places)
    extras = places[0].source.shard.extras
    # Concatenation would change the byte order, and forget the names of an enumeration's values.
    narrow = {extra.name: np.empty(n_rows, extra.dtype) for extra in extras if extra.name not in wide}
    for place in places:
        for name, each in _read_extras(place, wide, raises).items():
            narrow[name][place.rows] = each
    values: dict[str, np.ndarray | Streamed] = {}
    # Keep this order, because a mask follows the extra whose lost values it marks.
    for position, extra in enumerate(extras):
        if extra.name in wide:
            values[extra.name] = _wide_extra(places, position, narrow, raises)
        else:
            values[extra.name] = narrow[extra.name]
    return values


def _read_extras(place: _Place, wide: set[str], raises: bool) -> dict[str, np.ndarray]:
    """Return the narrow extras of a piece."""
    source = place.source
    extras = tuple(extra for extra in source.shard.extras if extra.name not in wide)
    narrow = replace(source, shard=replace(source.shard, extras=extras))
    values = read_extras(narrow, None if raises else place.lost, check)
    for name, each in values.items():
        place.extras.add(name, each)
    return values


def _wide_extra(places: Sequence[_Place], position: int, narrow: Mapping[str, np.ndarray], raises: bool) -> Streamed:
    """Return a wide extra of a part, which is read block by block."""
    extra = places[0].source.shard.extras[position]
    empty = np.empty(0, extra.dtype)  # NumPy splits a dtype of arrays into shape and dtype
    n_rows = sum(len(place.source) for place in places)

    def blocks() -> Iterator[np.ndarray]:
        for place in places:
            own = place.source.shard.extras[position]
            masks = {name: values[place.rows] for name, values in narrow.items()}
            stream = stream_extra(place.source, own, masks, None if raises else place.lost, check)
            yield from place.extras.passing(own.name, stream)

    return Streamed((n_rows, *empty.shape[1:]), empty.dtype, blocks)
