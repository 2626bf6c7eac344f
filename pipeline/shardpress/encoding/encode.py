"""Task that encodes the rows of a part: it reads extras and rows, encodes them, finds bad rows and writes the features.

A task is a plain value that any thread or process can run. The number of concurrent tasks limits the memory. While one
task encodes, another one reads rows or waits for the disk. The features of a row depend only on that row, because all
rows of a part and of a block start at a tile boundary of their shard. If the encoder ignores positions, the rows of
several small shards are encoded in one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shardpress.base.errors import DataError
from shardpress.cluster.threads import check
from shardpress.encoding.bad_data import BadData, RowFacts
from shardpress.encoding.partfile import part_file, stored_categories
from shardpress.encoding.parts import PartRows
from shardpress.encoding.worker import EncodeSettings, Worker, worker_of
from shardpress.hdf5.shard import Block, Shard
from shardpress.model.device import TILE_ROWS, theanos_errors
from shardpress.model.encoder import Model
from shardpress.model.scaler import Cleaning
from shardpress.output.folder import PARTS, unique_name, write_file
from shardpress.result.finished import stored_name
from shardpress.result.records import BadValues, Entry, Part, Range
from shardpress.scan.drift import MAX_LISTED_COLUMNS
from shardpress.shards.conversion import Conversion
from shardpress.shards.digests import Digest, ExtrasDigest
from shardpress.shards.rows import keep_chunks, read_extras, text_rows


@dataclass(frozen=True)
class EncodeTask:
    """Task to encode the rows of one part."""

    pieces: Sequence[PartRows]
    settings: EncodeSettings
    unreadable: Mapping[str, str] = field(default_factory=dict)  # reasons why shards cannot be read, by their ids
    name: str = "part"  # beginning of the names of the files

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


class _Section:
    """Rows of one shard in a part, while they are encoded."""

    def __init__(self, shard: str, source: Block, first: int) -> None:
        self.shard = shard
        self.source = source
        self.first = first  # position of the first row in the part
        self.facts = RowFacts()
        self.digest = Digest()
        self.extras: dict[str, list[np.ndarray]] = {extra.name: [] for extra in source.shard.extras}
        self.extras_digest = ExtrasDigest(source.start)
        self.lost: list[BadValues] = []  # of extras

    @property
    def rows(self) -> slice:
        """The rows in the part."""
        return slice(self.first, self.first + len(self.source))

    def read_extras(self, stop: int, raises: bool) -> int:
        """Read the extras of the following rows, up to row `stop` of the shard. Return the bytes of their strings."""
        block = replace(self.source, start=self.source.stop, stop=stop)
        self.source = replace(self.source, stop=stop)
        n_bytes = 0
        for name, values in read_extras(block, None if raises else self.lost, check).items():
            self.extras[name].append(values)
            if values.dtype.hasobject:
                n_bytes += sum(map(len, values.tolist()))
        return n_bytes

    def range(self, valid: np.ndarray, is_unreadable: bool) -> Range:
        """Return the record of the rows, given the good rows of the part (n_rows,)."""
        return Range(
            first=self.first,
            shard=self.shard,
            start=self.source.start,
            stop=self.source.stop,
            n_bad=int(np.count_nonzero(~valid[self.rows])),
            n_outside=self.facts.n_outside,
            bad=[*self.facts.bad, *self.lost],
            outside=self.facts.outside[:MAX_LISTED_COLUMNS],
            lost=_lost_ranges(self.source.shard, self.lost),
            rows=None if is_unreadable else str(self.digest),
            extras=None if is_unreadable or self.lost else str(self.extras_digest),
        )


@theanos_errors()  # also in a worker process, because most of Theano's exceptions cannot be pickled
def encode_parts(task: EncodeTask) -> list[Part]:
    """Encode rows and write their features to a file, or to several if their extras have long strings.

    A file counts only when the journal names it.

    Raises
    ------
    DataError
        If rows cannot be read, or if the settings do not allow them.
    WriteFailed, SystemLimit
        If a file cannot be written.
    ReadFailed, DeviceError, ConfigError, NotPermitted
        See `shardpress.encoding.worker.worker_of`.
    """
    worker = worker_of(task.settings)
    keep_chunks(task.settings.chunk_bytes)
    return [_encode_part(worker, task, i, sections) for i, sections in enumerate(_sections_of_parts(task))]


def _sections_of_parts(task: EncodeTask) -> Iterator[list[_Section]]:
    """Yield the rows of each part with their extras, which are read first: a part ends where its strings are too long.

    A part ends at a tile boundary of its last shard, or at its end.
    """
    raises = task.settings.bad_data.on_bad_data == "raise"
    sections: list[_Section] = []
    n_bytes = 0
    for piece in task.pieces:
        is_new = True
        for block in piece.source.cut(_rows_at_once(piece.source, task.settings.text_bytes)):
            if n_bytes > task.settings.text_bytes:
                yield sections
                sections = []
                n_bytes = 0
                is_new = True
            if is_new:
                first = sections[-1].rows.stop if sections else 0
                sections.append(_Section(piece.shard, replace(block, stop=block.start), first))
                is_new = False
            try:
                n_bytes += sections[-1].read_extras(block.stop, raises)
            except DataError as damage:
                raise DataError(f"{damage} To continue without damaged values, use --on-bad-data skip.") from damage
    yield sections


def _rows_at_once(source: Block, text_bytes: int) -> int:
    """Return the rows whose extras are read together: all rows, or whole tiles if there are strings."""
    if not any(extra.dtype.hasobject for extra in source.shard.extras):
        return len(source)
    return max(1, text_rows(source.shard, text_bytes) // TILE_ROWS) * TILE_ROWS


def _encode_part(worker: Worker, task: EncodeTask, number: int, sections: Sequence[_Section]) -> Part:
    settings = task.settings
    n_rows = sections[-1].rows.stop
    errors = np.empty(n_rows, dtype=np.float32) if settings.row_error else None
    arrays = _Arrays(worker.features(n_rows), np.ones(n_rows, dtype=bool), errors)
    with worker.readers:  # released before the part is written, because writing waits for the disk
        for section in sections:
            if section.shard in task.unreadable:
                _mark_unreadable(section, task.unreadable[section.shard], arrays.at(section.rows))
        readable = [section for section in sections if section.shard not in task.unreadable]
        encoding = _RowEncoding(worker, task.settings)
        for pieces in encoding.pieces_at_once(readable):
            encoding.encode(pieces, arrays)
    stored, error = worker.stored(arrays.features)
    stem = f"{PARTS}/{task.name}-{number:04d}"
    entry = _write_part(worker, settings, stem, sections, arrays._replace(features=stored))
    return Part(
        entry,
        n_rows,
        [section.range(arrays.valid, section.shard in task.unreadable) for section in sections],
        dtype=None if error is None else settings.storage.dtype,
        max_error=error,
    )


def _lost_ranges(shard: Shard, reports: Sequence[BadValues]) -> dict[str, list[list[int]]]:
    """Return the row ranges of the shard whose values are lost, by the stored names of the extras."""
    names = {extra.stored.layout.name: stored_name(extra.name) for extra in shard.extras if extra.stored is not None}
    lost: dict[str, list[list[int]]] = {}
    for report in reports:
        assert report.dataset is not None
        ranges = lost.setdefault(names[report.dataset], [])
        if ranges and ranges[-1][1] == report.start:
            ranges[-1][1] = report.stop
        else:
            ranges.append([report.start, report.stop])
    return lost


def _mark_unreadable(section: _Section, reason: str, arrays: _Arrays) -> None:
    """Mark all rows of a section as bad."""
    arrays.features[:] = np.nan
    arrays.valid[:] = False
    if arrays.errors is not None:
        arrays.errors[:] = np.nan
    section.facts.bad.append(BadValues(section.source.start, section.source.stop, [], reason))


class _Piece(NamedTuple):
    """Rows of a section that are read at once."""

    section: _Section
    block: Block

    @property
    def first(self) -> int:
        """Position of the first row in the part."""
        return self.section.first + self.block.start - self.section.source.start


class _RowEncoding:
    """Encoding of the rows of a part, several megabytes at a time."""

    def __init__(self, worker: Worker, settings: EncodeSettings) -> None:
        model = worker.model
        bad_data = _bad_data(model, settings)
        self._worker = worker
        self._block_rows = settings.block_rows
        self._bad_data = bad_data
        self._conversion = Conversion(model.offset, model.preparation)
        self._cleaning = Cleaning(model.scaler, bad_data.missing, bad_data.clips_drift)
        # The encoder cannot find bad rows if a finite number marks missing values, or if rows are cleaned before.
        self._finds_suspects = bad_data.missing is None and not model.scaler.cleans

    def pieces_at_once(self, sections: Iterable[_Section]) -> Iterator[list[_Piece]]:
        """Yield the pieces that are encoded together: one block of a large shard, or all rows of several small ones."""
        pieces: list[_Piece] = []
        room = 0
        for section in sections:
            for block in section.source.cut(self._block_rows):
                piece = _Piece(section, block)
                if pieces and (len(block) > room or not self._follows(pieces[-1], piece)):
                    yield pieces
                    pieces = []
                if not pieces:
                    room = self._block_rows
                pieces.append(piece)
                room -= len(block)
        if pieces:
            yield pieces

    def _follows(self, last: _Piece, piece: _Piece) -> bool:
        """Return whether a piece can be encoded together with the one before it."""
        before = last.block.shard
        shard = piece.block.shard
        dtype = self._conversion.dtype_of(shard)
        return (
            piece.first == last.first + len(last.block)  # an unreadable shard can be between them
            and shard.stored_dtype == before.stored_dtype
            and self._worker.encoder.ignores_positions(self._cleaning.dtype_of(dtype))
        )

    def encode(self, pieces: Sequence[_Piece], arrays: _Arrays) -> None:
        """Encode pieces, and mark bad rows. Rows outside the range are first reported, and then clipped."""
        bad_data = self._bad_data
        encoder = self._worker.encoder
        cleaning = self._cleaning
        rows = self._read(pieces)
        out = arrays.at(slice(pieces[0].first, pieces[0].first + len(rows)))
        filled = cleaning.filled(rows, pieces[0].block.shard.stored_dtype)
        cleaned = filled if bad_data.clips_drift else cleaning.clipped(filled)
        suspects = encoder.encode_checked(cleaned, out.features)
        if not self._finds_suspects:
            suspects = None
        judgments = [
            (piece, numbers, selected, bad_data.judge(piece.block, numbers, rows[selected], cleaned[selected]))
            for piece, numbers, selected in _selected(pieces, suspects)
        ]
        if bad_data.clips_drift and any(judged.n_outside for *_, judged in judgments):
            # Encode all rows again: clipping does not change rows inside the range. This case is rare, whereas a check
            # before the first encoding would take time for every block.
            encoder.encode_checked(cleaning.clipped(cleaned), out.features)
        bad = []
        for piece, numbers, selected, judged in judgments:
            judged.bad += bad_data.overflown(piece.block, numbers, out.features[selected], judged)
            shift = piece.first - pieces[0].first - piece.block.start
            bad += [shift + row.start for row in judged.bad]
            piece.section.facts.add(judged)
        out.features[bad] = np.nan
        out.valid[bad] = False
        if out.errors is not None:
            # The features are those of clipped rows, but the error is that of the rows before.
            out.errors[:] = encoder.errors(filled, out.features)
            out.errors[bad] = np.nan

    def _read(self, pieces: Sequence[_Piece]) -> np.ndarray:
        """Return the rows of pieces: (n_rows, n_columns), in the dtype of their shards' rows."""
        shard = pieces[0].block.shard
        row_bytes = self._conversion.row_bytes(shard)
        memory = self._worker.block_memory(row_bytes)
        n_rows = 0
        for section, block in pieces:
            check()  # a part can take seconds, but a signal should stop the run at once
            try:
                self._conversion.read(block, memory[n_rows * row_bytes :], section.digest)
            except DataError as error:
                if self._bad_data.on_bad_data != "raise":
                    raise
                advice = "To continue without the rows of damaged files, use --on-bad-data skip --max-bad 100%."
                raise DataError(f"{error} {advice}") from error
            n_rows += len(block)
        return np.ndarray((n_rows, shard.n_inputs), self._conversion.dtype_of(shard), memory)


def _selected(
    pieces: Sequence[_Piece], suspects: np.ndarray | None
) -> Iterator[tuple[_Piece, np.ndarray, np.ndarray | slice]]:
    """Yield each piece with the rows to judge: their numbers in the shard, and their positions among all rows.

    These are the suspects, in ascending order, or all rows if None.
    """
    start = 0
    for piece in pieces:
        stop = start + len(piece.block)
        if suspects is None:
            yield piece, np.arange(piece.block.start, piece.block.stop), slice(start, stop)  # a slice makes no copy
        elif len(suspects):
            own = suspects[slice(*np.searchsorted(suspects, [start, stop]))]
            if len(own):
                yield piece, own + (piece.block.start - start), own
        start = stop


def _bad_data(model: Model, settings: EncodeSettings) -> BadData:
    """Return the settings for bad data, completed with facts about the model, which tasks do not include."""
    bad_data = replace(settings.bad_data, columns=model.columns)
    if settings.has_range:
        bad_data = replace(bad_data, trained_on=model.scaler)
    return bad_data


# -- writing -------------------------------------------------------------------------------------------------------


def _write_part(
    worker: Worker, settings: EncodeSettings, stem: str, sections: Sequence[_Section], arrays: _Arrays
) -> Entry:
    """Write the file of a part, and add the extras to the digests of its sections."""
    first = sections[0]
    content = part_file(
        arrays.features,
        arrays.valid,
        _extras_of(sections),
        stored_categories(first.source.shard.extras),  # the same in all shards
        settings.storage.compression,
        arrays.errors,
    )
    return write_file(Path(settings.directory), worker.disk, unique_name(stem, ".h5"), content)


def _extras_of(sections: Sequence[_Section]) -> dict[str, np.ndarray]:
    """Return the extras of a part."""
    n_rows = sections[-1].rows.stop
    extras = {}
    for extra in sections[0].source.shard.extras:
        # Concatenation would change the byte order, and forget the names of an enumeration's values.
        values = np.empty(n_rows, extra.dtype)
        for section in sections:
            row = section.first
            for block in section.extras.pop(extra.name):
                values[row : row + len(block)] = block
                row += len(block)
            section.extras_digest.add(extra.name, [values[section.rows]])
        extras[extra.name] = values
    return extras
