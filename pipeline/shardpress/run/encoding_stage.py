"""The encoding: features of the rows that no part contains yet, in parts that are written one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from msgspec import structs

from shardpress.base.errors import DataError, quantity
from shardpress.base.formats import digest, fingerprint
from shardpress.base.progress import Progress, activity
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding.bad_data import BadData
from shardpress.encoding.copy_rows import CopyTask, copy_rows, groups_of
from shardpress.encoding.encode import EncodeTask, encode_parts
from shardpress.encoding.partfile import stored_categories
from shardpress.encoding.parts import PartRows, PartSize, plan_parts, without_overlaps
from shardpress.encoding.storage import storage_of
from shardpress.encoding.worker import IN_MEMORY, Encoders, EncodeSettings, serving
from shardpress.hdf5.shard import Block
from shardpress.model.device import RowEncoder
from shardpress.model.encoder import Model
from shardpress.output.disk import Disk
from shardpress.output.folder import WORK
from shardpress.output.journal import Journal, PartRecord
from shardpress.report.overview import bad_shards
from shardpress.result.records import Entry, Part, Range, ShardFacts, in_order, with_digests
from shardpress.run.budget import extras_bytes
from shardpress.run.context import RunContext
from shardpress.run.estimate import Pace, measure_tasks
from shardpress.run.inputs import bad_shards_error
from shardpress.run.memory import block_bytes, chunk_bytes, trained_network_bytes
from shardpress.run.request import categories_of
from shardpress.run.resume import EarlierResults
from shardpress.run.task import Fit, Task
from shardpress.scan import blocks as scan_blocks
from shardpress.scan.drift import farthest
from shardpress.shards.damaged import damage_error

log = logging.getLogger(__name__)

_MANY_OUTSIDE = 0.01  # fraction of the rows above which a warning is logged
_COLUMNS_LISTED = 3  # columns that a message lists
# Rows of small files, or for many threads, are divided into about this number of parts, so that each worker has some.
_MANY_PARTS = 64
_PARTS_OF_THREAD = 4
_LEAST_FILES = 64  # in one part, because each part costs some milliseconds, and has a file of its own
_LEAST_BYTES = 2**23  # features in a part, if that gives fewer parts


@dataclass(frozen=True)
class Encoding:
    """The features of all rows."""

    fit: Fit
    parts: list[Part]
    new: list[Part]  # those with rows that no earlier result has

    @cached_property
    def ranges(self) -> list[tuple[Part, Range]]:
        """All ranges of rows with their parts, in the order of the rows."""
        return in_order(self.parts, self.fit.task.positions)

    @cached_property
    def shards(self) -> list[ShardFacts]:
        """The shards with the digests of their content."""
        return with_digests(self.fit.request.shards, self.parts)

    @property
    def n_rows(self) -> int:
        return sum(part.n_live for part in self.parts)


@dataclass(frozen=True)
class EncodingStage:
    """Stage that encodes all rows, or reuses parts of an earlier run."""

    fit: Fit

    name: ClassVar[str] = "encoding"

    @property
    def task(self) -> Task:
        return self.fit.task

    @cached_property
    def key(self) -> str:
        """Fingerprint of the features, under which the journal names parts."""
        extras = self.task.inputs.shards[0].extras
        return fingerprint(self.task.wanted.features(self.fit.model.fingerprint), categories_of(extras))

    def load(self, earlier: EarlierResults) -> Encoding | None:
        """Return the features if an earlier run has encoded all rows, or None."""
        encoding = self.existing(earlier)
        if encoding.n_rows < self.task.inputs.n_rows or self._copied(encoding):
            return None
        return encoding

    def existing(self, earlier: EarlierResults) -> Encoding:
        """Return the parts that stay in the result, and those that an unfinished run has encoded."""
        change = self.task.change
        written = []
        new_files = set()
        for record in earlier.parts(self.key):
            ranges = [rows for rows in record.part.ranges if self._is_usable(rows)]
            if ranges:
                written.append(structs.replace(record.part, ranges=ranges))
            if not record.is_copy:
                new_files.add(record.part.file)
        parts = [*change.kept, *written, *change.copied]
        if written:
            parts = without_overlaps(parts, self.task.by_id)
        return self._encoding(parts, [part for part in parts if part.file in new_files])

    def make(self, context: RunContext) -> Encoding:
        """Encode the missing rows."""
        encoder = Encoders(self.fit.model)
        encoding = self._with_copies(self.existing(context.earlier), context)
        n_missing = self.task.inputs.n_rows - encoding.n_rows
        missing: list[list[PartRows]] = []
        if n_missing:
            missing = plan_parts(self.task.by_id, encoding.parts, part_size(self.task, n_missing))
        context.state.features_key = self.key
        if encoding.parts:
            context.state.reused[self.name] = f"the features of {_rows_in_words(encoding.parts)}"
        if encoding.new:
            log.info("encoding: resuming; an earlier run has encoded %s", _rows_in_words(encoding.new))
        new = self._encode(context, encoder, missing) if missing else []
        return self._encoding([*encoding.parts, *new], [*encoding.new, *new])

    def check(self, encoding: Encoding) -> None:
        """Raise `DataError` if too many rows or shards are bad; warn if many rows differ from the training rows."""
        limited = set(self.task.ids_of(self.task.limited))
        ranges = [rows for _, rows in encoding.ranges]
        limited_ranges = [rows for rows in ranges if rows.shard in limited]
        self._check_bad_rows(limited_ranges)
        self._check_bad_shards(limited_ranges)
        self._check_lost_extras(limited_ranges)
        n_outside = sum(rows.n_outside for rows in ranges)
        kept = self.task.kept
        has_verdict = self.task.appends or (kept is not None and bool(kept.facts.appends))
        if has_verdict or n_outside <= _MANY_OUTSIDE * encoding.n_rows:
            return  # the verdict on the rows of an append includes their range
        worst = farthest((column for rows in ranges for column in rows.outside), _COLUMNS_LISTED)
        log.warning(
            "%d of %d rows are outside the range of the model's training rows, farthest in %s. Their features may "
            "be meaningless. Train a model on such rows, or choose how to treat them with --on-drift.",
            n_outside,
            encoding.n_rows,
            "; ".join(one.described(self.task.inputs.columns) for one in worst),
        )

    def sample(
        self, encoder: RowEncoder, stretches: Sequence[scan_blocks.ScanBlock], disk: Disk
    ) -> tuple[Pace, list[Part]]:
        """Encode some rows on a disk that discards the files."""
        task = self.task
        if task.settings.bad_data.on_bad_data == "raise":  # the scan reports bad rows
            task = replace(task, settings=task.settings.changed(on_bad_data="skip"))
        n_rows = min(task.budget.part_rows, max(len(stretch.block) for stretch in stretches))
        settings = EncodingStage(replace(self.fit, task=task)).settings(n_rows, Path())
        parts: list[list[PartRows]] = []
        room = 0
        for stretch in stretches:
            for block in stretch.block.cut(n_rows):
                if not parts or len(parts[-1]) == _LEAST_FILES or room < len(block):
                    parts.append([])
                    room = n_rows
                parts[-1].append(PartRows(task.request.shards[stretch.number].id, block))
                room -= len(block)
        _compile_encoder(encoder, self.fit, settings.row_error)
        with serving(settings, self.fit.model, encoder, disk):
            tasks = [(encode_parts, EncodeTask(pieces, settings)) for pieces in parts]
            return measure_tasks(tasks, task.budget.n_writers, lambda parts: sum(part.n_rows for part in parts))

    def settings(self, part_rows: int, directory: Path) -> EncodeSettings:
        """Return the settings that all parts share, except for the model's file.

        Buffers have `part_rows` rows, so small runs need little memory.
        """
        task = self.task
        budget = task.budget
        settings = task.settings.bad_data
        scaler = self.fit.model.scaler
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
            has_range=task.has_other_rows and not scaler.clips,  # clipped rows are never outside
            storage=storage_of(task.settings.storage),
            row_error=task.settings.storage.row_error,
            text_bytes=budget.text_bytes,
            chunk_bytes=budget.chunk_bytes,
        )

    # -- private --

    def _is_usable(self, rows: Range) -> bool:
        """Return whether rows that an unfinished run has encoded are those of this run."""
        # A run without a scan may have encoded the first rows of a file before it met a damaged chunk.
        return rows.shard in self.task.by_id and (rows.is_unreadable or rows.shard not in self.fit.unreadable)

    def _encoding(self, parts: Iterable[Part], new: Iterable[Part]) -> Encoding:
        """Return the features, with the parts in the order of their first rows."""

        def place(part: Part) -> tuple[int, int]:
            return self.task.positions[part.ranges[0].shard], part.ranges[0].start

        return Encoding(self.fit, sorted(parts, key=place), sorted(new, key=place))

    def _copied(self, encoding: Encoding) -> list[Part]:
        """Return the parts whose rows are to be copied."""
        files = {part.file for part in self.task.change.copied}
        return [part for part in encoding.parts if part.file in files]

    def _with_copies(self, encoding: Encoding, context: RunContext) -> Encoding:
        """Copy the rows of parts that do not stay. Those of damaged parts are missing then."""
        copied = self._copied(encoding)
        if not copied:
            return encoding
        journal = context.journal
        task = self.task
        n_threads = task.budget.n_writers
        faults = EarlierResults(journal, n_threads, compares_digests=True).faults(part.entry for part in copied)
        intact = [part for part, fault in zip(copied, faults, strict=True) if not fault]
        size = part_size(task, max(1, sum(part.n_live for part in intact)))
        most_bytes = 4 * size.n_rows * task.settings.network.n_outputs + task.budget.text_bytes
        categories = stored_categories(task.inputs.shards[0].extras)
        compression = task.settings.storage.compression
        tasks = []
        for pairs in groups_of(in_order(intact, task.positions), size, most_bytes):
            stem = self._stem(pairs[0][1].shard, pairs[0][1].start)
            copy_task = CopyTask(pairs, stem, journal.directory, journal.disk, categories, compression)
            tasks.append((copy_rows, copy_task))
        copies: list[Part] = []

        def keep(part: Part) -> None:
            journal.add(PartRecord(self.key, part, is_copy=True), waits=False)
            copies.append(part)

        with activity("encoding: copying rows of small parts", "seconds"), threads(n_threads) as pool:
            compute(tasks, pool, n_threads, keep)
        stay = [part for part in encoding.parts if part not in copied]
        return self._encoding([*stay, *copies], encoding.new)

    def _stem(self, shard: str, start: int) -> str:
        """Return the beginning of the name of a part with its first row. The names sort like the rows."""
        return f"part-{self.task.positions[shard]:06d}-{start:012d}"

    def _check_bad_rows(self, ranges: Sequence[Range]) -> None:
        """Raise `DataError` if there are more bad rows than the settings allow, for example outside ``--fit-on``."""
        settings = self.task.settings.bad_data
        limit = self.task.max_bad_rows
        n_bad = sum(rows.n_bad for rows in ranges)
        if n_bad > limit:
            worst = max(ranges, key=lambda rows: rows.n_bad)
            block = Block(self.task.by_id[worst.shard], worst.start, worst.stop)
            raise DataError(
                f"{quantity(n_bad, 'bad row')}, most of them in {block}, expected at most {limit} "
                f"(--max-bad {settings.max_bad}, --on-bad-data {settings.on_bad_data}). Fix the files, or raise "
                "--max-bad."
            )

    def _check_bad_shards(self, ranges: Sequence[Range]) -> None:
        """Raise `DataError` if there are more bad shards than the settings allow, in this run or in an earlier one."""
        task = self.task
        bad = bad_shards(task.inputs.bad_shards, ranges, task.request.shards)
        if len(bad) > task.max_bad_shards:
            n_shards = task.inputs.n_files
            raise bad_shards_error(bad, n_shards, task.max_bad_shards, task.settings.bad_data)

    def _check_lost_extras(self, ranges: Sequence[Range]) -> None:
        """Raise `DataError` if values of extras were lost, for example in an earlier run that allowed it."""
        if self.task.allows_bad_data:
            return
        reasons: dict[str, str] = {}
        for rows in ranges:
            if rows.lost:
                # Reports of lost values follow those of bad rows.
                reasons.setdefault(self.task.by_id[rows.shard].path, rows.bad[-1].reason)
        if reasons:
            raise damage_error(reasons, len(self.task.inputs.shards), None)

    def _encode(self, context: RunContext, encoder: RowEncoder, missing: Sequence[Sequence[PartRows]]) -> list[Part]:
        """Encode parts, and name each one in the journal as soon as it is written."""
        task = self.task
        if context.pool.is_local:
            # before the progress bar starts to count
            with activity("encoding: loading or compiling kernels", "a minute once, later a second"):
                _compile_encoder(encoder, self.fit, task.settings.storage.row_error)
        sizes = [sum(len(piece.source) for piece in pieces) for pieces in missing]
        settings = self._shared_settings(context, max(sizes))
        tasks = []
        for pieces in missing:
            first = pieces[0]
            name = self._stem(first.shard, first.source.start)
            unreadable = {shard: self.fit.unreadable[shard] for shard, _ in pieces if shard in self.fit.unreadable}
            tasks.append((encode_parts, EncodeTask(pieces, settings, unreadable, name)))
        # Small parts are sent together, with about the number of rows of a full part in total.
        n_small = task.budget.part_rows * len(tasks) // max(1, sum(sizes))
        stats = context.pool.stats
        parts: list[Part] = []
        with (
            serving(settings, self.fit.model, encoder, context.journal.disk),
            Progress(self.name, sum(sizes), "rows", task.inputs.shards[0].row_bytes) as progress,
            context.pool.executor(task.budget.n_writers) as (executor, n_at_once),
        ):

            def keep(new_parts: Sequence[Part]) -> None:
                for part in new_parts:
                    context.journal.add(PartRecord(self.key, part), waits=False)
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
            model=write_model(context.journal, self.fit.model),  # the next sweep removes the copy of a given model
            n_readers=-(-settings.n_readers // n_sharing) if n_sharing else 0,
            chunk_bytes=settings.chunk_bytes // n_processes,
        )


def part_size(task: Task, n_rows: int) -> PartSize:
    """Return the size of parts for `n_rows` rows. They are of about the same size, and some for each thread."""
    budget = task.budget
    step_rows = min(budget.part_rows, budget.block_rows)
    n_bytes = 4 * n_rows * task.settings.network.n_outputs
    n_wanted = min(_PARTS_OF_THREAD * budget.n_threads, _MANY_PARTS, n_bytes // _LEAST_BYTES)
    n_parts = max(-(-n_rows // budget.part_rows), n_wanted)
    part_rows = -(-n_rows // (n_parts * step_rows)) * step_rows
    n_files = max(_LEAST_FILES, len(task.inputs.shards) // _MANY_PARTS)
    return PartSize(part_rows, n_files, step_rows)


def write_model(journal: Journal, model: Model) -> Entry:
    """Write the file of a model that is not published yet."""
    data = model.to_hdf5()
    return journal.write(f"{WORK}/model-{digest([data])[:32]}.h5", data)


def encoding_bytes(task: Task) -> int:
    """Return the maximum memory of the encoding in bytes, which does not depend on the model."""
    budget = task.budget
    row_bytes = 4 * task.settings.network.n_outputs + 1 + 4 * task.settings.storage.row_error
    part_bytes = min(budget.part_rows, task.inputs.n_rows) * row_bytes
    writers = budget.n_writers * (block_bytes(task) + part_bytes)
    extras = budget.n_writers * extras_bytes(task.inputs.shards, budget)
    return trained_network_bytes(task) + writers + extras + chunk_bytes(task)


def _compile_encoder(encoder: RowEncoder, fit: Fit, row_error: bool) -> None:
    """Compile the encoder and, if it is needed, the error of rows for the dtypes of rows, by encoding no rows."""
    network = encoder.network
    for dtype in dict.fromkeys(map(fit.conversion.dtype_of, fit.task.inputs.shards)):
        nothing = np.empty((0, network.n_inputs), dtype)
        features = np.empty((0, network.n_outputs), dtype=np.float32)
        encoder.encode_checked(nothing, features)
        if row_error:
            encoder.errors(nothing, features)


def _rows_in_words(parts: Sequence[Part]) -> str:
    return f"{quantity(sum(part.n_live for part in parts), 'row')} in {quantity(len(parts), 'part')}"
