"""The encoding: features of the rows that no part contains yet, in parts that are written one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from msgspec import structs

from shardpress.base.errors import DataError, quantity
from shardpress.base.formats import digest, fingerprint
from shardpress.base.progress import Progress, activity
from shardpress.cluster.executor import compute
from shardpress.encoding.bad_data import BadData
from shardpress.encoding.encode import EncodeTask, encode_part
from shardpress.encoding.parts import PartSize, Piece, plan_parts, without_overlaps
from shardpress.encoding.storage import storage_of
from shardpress.encoding.worker import IN_MEMORY, Encoders, EncodeSettings, serving
from shardpress.hdf5.shard import Block
from shardpress.model.encoder import Model
from shardpress.output.disk import Disk
from shardpress.output.folder import WORK
from shardpress.output.journal import Journal, Record
from shardpress.report.facts import bad_shards, drift_facts
from shardpress.result.records import Entry, Part, Range, in_order
from shardpress.run.budget import extras_bytes
from shardpress.run.context import RunContext
from shardpress.run.estimate import Pace, measure_tasks
from shardpress.run.inputs import bad_shards_error
from shardpress.run.memory import block_bytes, chunk_bytes, trained_network_bytes
from shardpress.run.prepare import Prepared
from shardpress.run.request import categories_of
from shardpress.run.resume import EarlierResults
from shardpress.scan import blocks as scan_blocks
from shardpress.scan.drift import farthest
from shardpress.shards.damaged import damage_error

if TYPE_CHECKING:
    from shardpress_kernels.autoencoder import Autoencoder

log = logging.getLogger(__name__)

_MANY_OUTSIDE = 0.01  # fraction of the rows above which a warning is logged
_COLUMNS_LISTED = 3  # columns that a message lists
# Rows of small files, or for many threads, are divided into about this number of parts, so that each worker has some.
_MANY_PARTS = 64
_PARTS_OF_THREAD = 4
_LEAST_FILES = 64  # in one part, because each part costs some milliseconds, and has a file of its own
_LEAST_BYTES = 2**23  # features in a part, if that gives fewer parts


@dataclass(frozen=True)
class Encoded:
    parts: list[Part]
    new: list[Part]  # those that are not published yet

    @property
    def n_rows(self) -> int:
        return sum(part.n_live for part in self.parts)


@dataclass(frozen=True)
class EncodingStage:
    """Stage that encodes all rows, or reuses parts of an earlier run."""

    prepared: Prepared  # with the model's offset
    model: Model
    unreadable: Mapping[int, str]  # reasons, by the positions of the shards

    name: ClassVar[str] = "encoding"

    @cached_property
    def key(self) -> str:
        """Fingerprint of the features, under which the journal names parts."""
        extras = self.prepared.shards[0].extras
        return fingerprint(self.prepared.wanted.features(self.model.fingerprint), categories_of(extras))

    def load(self, earlier: EarlierResults) -> Encoded | None:
        """Return the features if an earlier run has encoded all rows, or None."""
        encoded = self.existing(earlier)
        if encoded.n_rows < self.prepared.n_rows:
            return None
        return encoded

    def existing(self, earlier: EarlierResults) -> Encoded:
        """Return the parts that stay in the result, and those that an unfinished run has encoded."""
        kept = self.prepared.change.kept
        found = []
        for part in earlier.parts(self.key, self.prepared.identities):
            # A run without a scan may have encoded the first rows of a file before it met a damaged chunk.
            ranges = [each for each in part.ranges if each.is_unreadable or each.shard not in self.unreadable]
            if ranges:
                found.append(structs.replace(part, ranges=ranges))
        parts = without_overlaps([*kept, *found], self.prepared.shards)
        published = {part.file for part in kept}
        return Encoded(_sorted(parts), _sorted(part for part in parts if part.file not in published))

    def make(self, context: RunContext) -> Encoded:
        """Encode the missing rows."""
        encoder = Encoders(self.model)
        encoded = self.existing(context.earlier)
        n_missing = self.prepared.n_rows - encoded.n_rows
        missing: list[list[Piece]] = []
        if n_missing:
            missing = plan_parts(self.prepared.shards, encoded.parts, part_size(self.prepared, n_missing))
        context.state.features_key = self.key
        if encoded.parts:
            context.state.reused[self.name] = f"the features of {_rows_in_words(encoded.parts)}"
        if encoded.new:
            log.info("encoding: resuming; an earlier run has encoded %s", _rows_in_words(encoded.new))
        new = self._encode(context, encoder, missing) if missing else []
        return Encoded(_sorted([*encoded.parts, *new]), _sorted([*encoded.new, *new]))

    def check(self, encoded: Encoded) -> None:
        """Raise `DataError` if too many rows or shards are bad; warn if many rows differ from the training rows."""
        limited = set(self.prepared.limited)
        ranges = [each for _, each in in_order(encoded.parts)]
        limited_ranges = [each for each in ranges if each.shard in limited]
        self._check_bad_rows(limited_ranges)
        self._check_bad_shards(limited_ranges)
        self._check_lost_extras(limited_ranges)
        n_outside = sum(each.n_outside for each in ranges)
        base = self.prepared.base
        has_verdict = self.prepared.appends or (self.prepared.keeps_model and base is not None and base.n_appends > 0)
        if has_verdict or n_outside <= _MANY_OUTSIDE * encoded.n_rows:
            return  # the verdict on the rows of an append includes their range
        worst = farthest((column for each in ranges for column in each.outside), _COLUMNS_LISTED)
        log.warning(
            "%d of %d rows are outside the range of the model's training rows, farthest in %s. Their features may "
            "be meaningless. Train a model on such rows, or choose how to treat them with --on-drift.",
            n_outside,
            encoded.n_rows,
            "; ".join(one.described(self.prepared.columns) for one in worst),
        )

    def facts(self, encoded: Encoded) -> dict[str, Any]:
        """Return facts for the report: storage of the features and, with a given model, their drift."""
        prepared = self.prepared
        storage = {
            "dtype": encoded.parts[0].dtype or "float32",
            "compression": prepared.config.storage.compression,
            "max_error": max(part.max_error or 0.0 for part in encoded.parts),
            "n_bytes": sum(part.entry.n_bytes for part in encoded.parts),
        }
        if not prepared.has_other_rows:
            return {"storage": storage}
        ranges = [each for _, each in in_order(encoded.parts)]
        return {"storage": storage, "drift": drift_facts(prepared.shards, ranges, prepared.config.bad_data.on_drift)}

    def sample(
        self, encoder: Encoders | Autoencoder, stretches: Sequence[scan_blocks.Piece], disk: Disk
    ) -> tuple[Pace, list[Part]]:
        """Encode some rows on a disk that discards the files."""
        prepared = self.prepared
        if prepared.config.bad_data.on_bad_data == "raise":  # the scan reports bad rows
            prepared = replace(prepared, config=prepared.config.changed(on_bad_data="skip"))
        n_rows = min(prepared.budget.part_rows, max(len(stretch.block) for stretch in stretches))
        settings = replace(self, prepared=prepared).settings(n_rows, Path())
        parts: list[list[Piece]] = []
        room = 0
        for piece in (Piece(stretch.number, block) for stretch in stretches for block in stretch.block.cut(n_rows)):
            if not parts or len(parts[-1]) == _LEAST_FILES or room < len(piece.source):
                parts.append([])
                room = n_rows
            parts[-1].append(piece)
            room -= len(piece.source)
        _compile_encoder(encoder, prepared, settings.row_error)
        with serving(settings, self.model, encoder.encode_checked, disk, encoder.errors):
            orders = prepared.conversion.orders
            tasks = [(encode_part, EncodeTask(pieces, settings, orders=orders)) for pieces in parts]
            return measure_tasks(tasks, prepared.budget.n_writers, lambda part: part.n_rows)

    def settings(self, part_rows: int, directory: Path) -> EncodeSettings:
        """Return the settings that all parts share, except for the model's file.

        Buffers have `part_rows` rows, so small runs need little memory.
        """
        prepared = self.prepared
        budget = prepared.budget
        settings = prepared.config.bad_data
        scaler = self.model.scaler
        bad_data = BadData(
            on_bad_data=settings.on_bad_data,
            missing=settings.missing_value,
            on_drift=settings.on_drift,
            fills=scaler.fill is not None,
        )
        return EncodeSettings(
            directory=str(directory),
            model=IN_MEMORY,
            block_rows=min(part_rows, budget.block_rows),
            part_rows=part_rows,
            n_readers=budget.n_threads,
            bad_data=bad_data,
            has_range=prepared.has_other_rows and not scaler.clips,  # clipped rows are never outside
            storage=storage_of(prepared.config.storage),
            row_error=prepared.config.storage.row_error,
            n_wide=budget.n_wide,
            chunk_bytes=budget.chunk_bytes,
        )

    # -- private --

    def _check_bad_rows(self, ranges: Sequence[Range]) -> None:
        """Raise `DataError` if there are more bad rows than the settings allow, for example outside ``--fit-on``."""
        settings = self.prepared.config.bad_data
        limit = self.prepared.max_bad_rows
        n_bad = sum(each.n_bad for each in ranges)
        if n_bad > limit:
            worst = max(ranges, key=lambda each: each.n_bad)
            block = Block(self.prepared.shards[worst.shard], worst.start, worst.stop)
            raise DataError(
                f"{quantity(n_bad, 'bad row')}, most of them in {block}, expected at most {limit} "
                f"(--max-bad {settings.max_bad}, --on-bad-data {settings.on_bad_data}). Fix the files, or raise "
                "--max-bad."
            )

    def _check_bad_shards(self, ranges: Sequence[Range]) -> None:
        """Raise `DataError` if there are more bad shards than the settings allow, in this run or in an earlier one."""
        prepared = self.prepared
        found = bad_shards(prepared.bad_shards, ranges, prepared.request.shards)
        if len(found) > prepared.max_bad_shards:
            n_shards = len(prepared.shards) + len(prepared.bad_shards)
            raise bad_shards_error(found, n_shards, prepared.max_bad_shards, prepared.config.bad_data)

    def _check_lost_extras(self, ranges: Sequence[Range]) -> None:
        """Raise `DataError` if values of extras were lost, for example in an earlier run that allowed it."""
        if self.prepared.allows_bad_data:
            return
        reasons: dict[str, str] = {}
        for each in ranges:
            if each.lost:
                # Reports of lost values follow those of bad rows.
                reasons.setdefault(self.prepared.shards[each.shard].path, each.bad[-1]["reason"])
        if reasons:
            raise damage_error(reasons, len(self.prepared.shards), None)

    def _encode(
        self, context: RunContext, encoder: Encoders | Autoencoder, missing: Sequence[Sequence[Piece]]
    ) -> list[Part]:
        """Encode parts, and name each one in the journal as soon as it is written."""
        prepared = self.prepared
        if context.pool.is_local:
            # before the progress bar starts to count
            with activity("encoding: loading or compiling kernels", "a minute once, later a second"):
                _compile_encoder(encoder, prepared, prepared.config.storage.row_error)
        sizes = [sum(len(piece.source) for piece in pieces) for pieces in missing]
        settings = self._shared_settings(context, max(sizes))
        tasks = []
        for pieces in missing:
            unreadable = {i: self.unreadable[i] for i, _ in pieces if i in self.unreadable}
            orders = prepared.conversion.of(piece.source for piece in pieces).orders
            tasks.append((encode_part, EncodeTask(pieces, settings, unreadable, orders)))
        # Small parts are sent together, with about the number of rows of a full part in total.
        n_small = prepared.budget.part_rows * len(tasks) // max(1, sum(sizes))
        stats = context.pool.stats
        parts: list[Part] = []
        with (
            serving(settings, self.model, encoder.encode_checked, context.journal.disk, encoder.errors),
            Progress(self.name, sum(sizes), "rows", prepared.shards[0].row_bytes) as progress,
            context.pool.executor(prepared.budget.n_writers) as (executor, n_at_once),
        ):

            def keep(part: Part) -> None:
                ranges = [structs.replace(each, append_id=prepared.append_ids[each.shard]) for each in part.ranges]
                part = structs.replace(part, ranges=ranges)
                identities = [prepared.identities[each.shard] for each in part.ranges]
                context.journal.add(Record.of_part(part, self.key, identities), waits=False)
                parts.append(part)
                progress.advance(part.n_rows, stats)

            stats.begin(self.name)
            compute(tasks, executor, n_at_once, keep, n_small)
        return parts

    def _shared_settings(self, context: RunContext, part_rows: int) -> EncodeSettings:
        settings = self.settings(part_rows, context.journal.directory)
        n_sharing = context.pool.n_local_processes
        n_processes = max(1, n_sharing)  # number of processes that share the memory budget
        return replace(
            settings,
            model=write_model(context.journal, self.model),  # the next sweep removes the copy of a given model
            n_readers=-(-settings.n_readers // n_sharing) if n_sharing else 0,
            n_wide=max(1, settings.n_wide // n_processes),
            chunk_bytes=settings.chunk_bytes // n_processes,
        )


def part_size(prepared: Prepared, n_rows: int) -> PartSize:
    """Return the size of parts for `n_rows` rows. They are of about the same size, and some for each thread."""
    budget = prepared.budget
    step_rows = min(budget.part_rows, budget.block_rows)
    n_bytes = 4 * n_rows * prepared.config.network.n_outputs
    n_wanted = min(_PARTS_OF_THREAD * budget.n_threads, _MANY_PARTS, n_bytes // _LEAST_BYTES)
    n_parts = max(-(-n_rows // budget.part_rows), n_wanted)
    part_rows = -(-n_rows // (n_parts * step_rows)) * step_rows
    n_files = max(_LEAST_FILES, len(prepared.shards) // _MANY_PARTS)
    return PartSize(part_rows, n_files, step_rows)


def write_model(journal: Journal, model: Model) -> Entry:
    """Write the file of a model that is not published yet."""
    data = model.to_hdf5()
    return journal.write(f"{WORK}/model-{digest([data])[:32]}.h5", data)


def encoding_bytes(prepared: Prepared) -> int:
    """Return the maximum memory of the encoding in bytes, which does not depend on the model."""
    budget = prepared.budget
    row_bytes = 4 * prepared.config.network.n_outputs + 1 + 4 * prepared.config.storage.row_error
    part_bytes = min(budget.part_rows, prepared.n_rows) * row_bytes
    writers = budget.n_writers * (block_bytes(prepared) + part_bytes)
    extras = min(budget.n_wide, budget.n_writers) * extras_bytes(prepared.shards, budget.part_rows)
    return trained_network_bytes(prepared) + writers + extras + chunk_bytes(prepared)


def _compile_encoder(encoder: Encoders | Autoencoder, prepared: Prepared, row_error: bool) -> None:
    """Compile the encoder and, if it is needed, the error of rows for the dtypes of rows, by encoding no rows."""
    network = encoder.network
    for dtype in sorted({prepared.conversion.dtype_of(shard).name for shard in prepared.shards}):
        nothing = np.empty((0, network.n_inputs), np.dtype(dtype))
        features = np.empty((0, network.n_outputs), dtype=np.float32)
        encoder.encode_checked(nothing, features)
        if row_error:
            encoder.errors(nothing, features)


def _sorted(parts: Iterable[Part]) -> list[Part]:
    """Return parts in the order of their first rows."""
    return sorted(parts, key=lambda part: (part.ranges[0].shard, part.ranges[0].start))


def _rows_in_words(parts: Sequence[Part]) -> str:
    return f"{quantity(sum(part.n_live for part in parts), 'row')} in {quantity(len(parts), 'part')}"
