"""The encoding: features of the rows that no part contains yet, in parts that are written one by one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from msgspec import structs

from shardpress.cluster.executor import compute
from shardpress.encoding.bad_data import BadData
from shardpress.encoding.encode import EncodeTask, encode_part
from shardpress.encoding.parts import MAX_LISTED_COLUMNS, PartRange, in_order, plan_parts
from shardpress.encoding.storage import storage_of
from shardpress.encoding.worker import IN_MEMORY, Encoders, EncodeSettings, serving
from shardpress.errors import DataError, printable, quantity
from shardpress.formats import digest, fingerprint
from shardpress.model import Model
from shardpress.output.disk import Disk
from shardpress.output.files import WORK
from shardpress.output.journal import Journal, Record
from shardpress.progress import Progress
from shardpress.records import Entry, Part
from shardpress.report.facts import PartDrift, drift_facts
from shardpress.run.budget import extras_bytes
from shardpress.run.context import RunContext
from shardpress.run.memory import block_bytes, chunk_bytes, trained_network_bytes
from shardpress.run.prepare import Prepared
from shardpress.run.request import categories_of
from shardpress.run.resume import EarlierResults
from shardpress.run.sample import Pace, Stretch, measure_tasks
from shardpress.scan.drift import farthest
from shardpress.shards.shard import Shard

if TYPE_CHECKING:
    from shardpress_kernels.autoencoder import Autoencoder

log = logging.getLogger(__name__)

_MANY_OUTSIDE = 0.01  # fraction of the rows above which a warning is logged
_COLUMNS_LISTED = 3  # columns that a message lists


@dataclass(frozen=True)
class Encoded:
    parts: list[Part]  # in the order of the rows
    new: list[Part]  # those that are not published yet

    @property
    def n_rows(self) -> int:
        return sum(part.n_rows for part in self.parts)


@dataclass(frozen=True)
class EncodingStage:
    """Stage that encodes all rows, or reuses parts of an earlier run."""

    prepared: Prepared  # with shards whose rows are read minus the model's offset
    model: Model
    unreadable: Mapping[int, str]  # reasons, by the positions of the shards

    name: ClassVar[str] = "encoding"

    @cached_property
    def keys(self) -> list[str]:
        """Fingerprints of the features of each shard, under which the journal names its parts."""
        extras = self.prepared.shards[0].extras
        key = self.prepared.wanted.features(self.model.fingerprint)
        return [fingerprint(key, categories_of(extras), identity) for identity in self.prepared.identities]

    def load(self, earlier: EarlierResults) -> Encoded | None:
        """Return the features if an earlier run has encoded all rows, or None."""
        encoded = self.existing(earlier)
        if encoded.n_rows < self.prepared.n_rows:
            return None
        return encoded

    def existing(self, earlier: EarlierResults) -> Encoded:
        """Return the parts that earlier runs have encoded; withdraw parts that overlap others."""
        kept = list(self.prepared.change.kept)
        found = earlier.parts(self.keys)
        _, overlapping = self._missing([*kept, *found])
        earlier.withdraw(*(Record.of_part(part, self.keys[part.shard]) for part in overlapping))
        found = [part for part in found if part not in overlapping]
        return Encoded(in_order([*kept, *found]), found)

    def make(self, context: RunContext) -> Encoded:
        """Encode the missing rows."""
        encoder = Encoders(self.model)
        encoded = self.existing(context.earlier)
        missing, _ = self._missing(encoded.parts)
        context.state.part_keys = frozenset(self.keys)
        if encoded.parts:
            context.state.reused[self.name] = f"the features of {_rows_in_words(encoded.parts)}"
        if encoded.new:
            log.info("encoding: resuming; an earlier run has encoded %s", _rows_in_words(encoded.new))
        new = self._encode(context, encoder, missing) if missing else []
        return Encoded(in_order([*encoded.parts, *new]), in_order([*encoded.new, *new]))

    def check(self, encoded: Encoded) -> None:
        """Raise `DataError` if too many rows or shards are bad; warn if many rows differ from the training rows."""
        limited = set(self.prepared.limited)
        parts = [part for part in encoded.parts if part.shard in limited]
        self._check_bad_rows(parts)
        self._check_bad_shards(parts)
        n_outside = sum(part.n_outside for part in encoded.parts)
        if self.prepared.appends or n_outside <= _MANY_OUTSIDE * encoded.n_rows:
            return  # the verdict on the rows of an append includes their range
        worst = farthest((column for part in encoded.parts for column in part.outside), _COLUMNS_LISTED)
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
        drifted = []
        for part in encoded.parts:
            is_whole = len(part.outside) < MAX_LISTED_COLUMNS
            drifted.append(PartDrift(part.shard, part.n_rows, part.n_outside, part.outside, is_whole))
        return {"storage": storage, "drift": drift_facts(prepared.shards, drifted, prepared.config.bad_data.on_drift)}

    def sample(self, encoder: Encoders | Autoencoder, stretches: Sequence[Stretch], disk: Disk) -> Pace:
        """Encode some rows on a disk that discards the files."""
        prepared = self.prepared
        if prepared.config.bad_data.on_bad_data == "raise":  # the scan reports bad rows
            prepared = replace(prepared, config=prepared.config.changed(on_bad_data="skip"))
        n_rows = min(prepared.budget.part_rows, max(len(stretch.block) for stretch in stretches))
        settings = replace(self, prepared=prepared).settings(n_rows, Path())
        parts = [PartRange(stretch.number, block) for stretch in stretches for block in stretch.block.cut(n_rows)]
        compile_encoder(encoder, prepared.shards)
        with serving(settings, self.model, encoder.encode_checked, disk):
            tasks = [(encode_part, EncodeTask(part, settings)) for part in parts]
            pace, _ = measure_tasks(tasks, prepared.budget.n_writers, lambda part: part.n_rows)
        return pace

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
            n_wide=budget.n_wide,
            chunk_bytes=budget.chunk_bytes,
        )

    # -- private --

    def _check_bad_rows(self, parts: Sequence[Part]) -> None:
        """Raise `DataError` if there are more bad rows than the settings allow, for example outside ``--fit-on``."""
        settings = self.prepared.config.bad_data
        limit = self.prepared.max_bad_rows
        n_bad = sum(part.n_bad for part in parts)
        if n_bad > limit:
            worst = max(parts, key=lambda part: part.n_bad)
            raise DataError(
                f"{quantity(n_bad, 'bad row')}, most of them in file={printable(worst.path)} "
                f"dataset={printable(worst.dataset)} rows={worst.start}:{worst.stop}, expected at most {limit} "
                f"(--max-bad {settings.max_bad}, --on-bad-data {settings.on_bad_data}). Fix the files, or raise "
                "--max-bad."
            )

    def _check_bad_shards(self, parts: Sequence[Part]) -> None:
        """Raise `DataError` if there are more bad shards than the settings allow, in this run or in an earlier one."""
        prepared = self.prepared
        reasons = [bad["reason"] for bad in prepared.bad_shards]
        reasons += [part.bad[0]["reason"] for part in parts if part.is_unreadable and part.start == 0]
        limit = prepared.max_bad_shards
        if len(reasons) > limit:
            raise DataError(
                f"{quantity(len(reasons), 'bad shard')}, expected at most {limit} (--max-bad "
                f"{prepared.config.bad_data.max_bad}, --on-bad-data {prepared.config.bad_data.on_bad_data}). Fix the "
                f"files, or raise --max-bad. The first error: {reasons[0]}"
            )

    def _missing(self, parts: Sequence[Part]) -> tuple[list[PartRange], list[Part]]:
        """Return the parts to encode, and existing parts that cannot be used, as `plan_parts` does."""
        prepared = self.prepared
        return plan_parts(prepared.shards, prepared.budget.part_rows, parts)

    def _encode(self, context: RunContext, encoder: Encoders | Autoencoder, missing: Sequence[PartRange]) -> list[Part]:
        """Encode parts, and name each one in the journal as soon as it is written."""
        if context.pool.is_local:
            compile_encoder(encoder, self.prepared.shards)  # before the progress bar starts to count
        settings = self._shared_settings(context, max(len(part.source) for part in missing))
        tasks = [EncodeTask(part, settings, self.unreadable.get(part.shard)) for part in missing]
        n_rows = sum(len(part.source) for part in missing)
        # Parts of small shards are sent together, with about the number of rows of a full part in total.
        n_small = self.prepared.budget.part_rows * len(tasks) // max(1, n_rows)
        append_ids = self.prepared.append_ids
        stats = context.pool.stats
        parts: list[Part] = []
        with (
            serving(settings, self.model, encoder.encode_checked, context.journal.disk),
            Progress(self.name, n_rows, "rows", missing[0].source.shard.row_bytes) as progress,
            context.pool.executor(self.prepared.budget.n_writers) as (executor, n_at_once),
        ):

            def keep(part: Part) -> None:
                part = structs.replace(part, append_id=append_ids[part.shard])
                context.journal.add(Record.of_part(part, self.keys[part.shard]), waits=False)
                parts.append(part)
                progress.advance(part.n_rows, stats)

            stats.begin(self.name)
            compute([(encode_part, task) for task in tasks], executor, n_at_once, keep, n_small)
        return parts

    def _shared_settings(self, context: RunContext, part_rows: int) -> EncodeSettings:
        settings = self.settings(part_rows, context.journal.directory)
        n_sharing = context.pool.n_local_processes
        n_processes = max(1, n_sharing)  # number of processes that share the memory budget
        return replace(
            settings,
            model=self._model_file(context),
            n_readers=-(-settings.n_readers // n_sharing) if n_sharing else 0,
            attributes=context.attributes(self.prepared, self.model),
            n_wide=max(1, settings.n_wide // n_processes),
            chunk_bytes=settings.chunk_bytes // n_processes,
        )

    def _model_file(self, context: RunContext) -> Entry:
        """Return the file from which workers load the model. The next sweep removes the copy of a given model."""
        return write_model(context.journal, self.model)


def write_model(journal: Journal, model: Model) -> Entry:
    """Write the file of a model that is not published yet."""
    data = model.to_hdf5()
    return journal.write(f"{WORK}/model-{digest([data])[:32]}.h5", data)


def encoding_bytes(prepared: Prepared) -> int:
    """Return the maximum memory of the encoding in bytes, which does not depend on the model."""
    budget = prepared.budget
    largest_shard = max(shard.n_rows for shard in prepared.shards)
    part_bytes = min(budget.part_rows, largest_shard) * (4 * prepared.config.network.n_outputs + 1)
    writers = budget.n_writers * (block_bytes(prepared) + part_bytes)
    extras = min(budget.n_wide, budget.n_writers) * extras_bytes(prepared.shards, budget.part_rows)
    return trained_network_bytes(prepared) + writers + extras + chunk_bytes(prepared)


def compile_encoder(encoder: Encoders | Autoencoder, shards: Sequence[Shard]) -> None:
    """Compile the encoder for the dtypes of shards, by encoding no rows."""
    network = encoder.network
    for dtype in sorted({shard.dtype for shard in shards}):
        nothing = np.empty((0, network.n_inputs), np.dtype(dtype))
        encoder.encode_checked(nothing, np.empty((0, network.n_outputs), dtype=np.float32))


def _rows_in_words(parts: Sequence[Part]) -> str:
    return f"{quantity(sum(part.n_rows for part in parts), 'row')} in {quantity(len(parts), 'part')}"
