"""From a fitted model to committed parts: what is missing is encoded and committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cluster.executor import compute
from pipeline.columns import Columns
from pipeline.encoding.bad_data import BadData
from pipeline.encoding.encode import EncodeTask, encode_part
from pipeline.encoding.parts import PartFacts, plan_parts
from pipeline.encoding.storage import Storage, TooCoarse, storages
from pipeline.encoding.worker import IN_MEMORY, EncodeSettings, serving
from pipeline.errors import DataError, counted, shown
from pipeline.model import Model
from pipeline.output.groupcommit import GroupCommit
from pipeline.output.records import Entry
from pipeline.progress import Progress
from pipeline.run.earlier import intact
from pipeline.run.job import Job, Prepared
from pipeline.scan.drift import farthest
from pipeline.shards.shard import row_dtype

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["encode", "encode_settings"]

log = logging.getLogger(__name__)

_MANY_OUTSIDE = 0.01  # of the rows
_WORST = 3  # columns, as many as a sentence takes


def encode(job: Job, model: Model, autoencoder: Autoencoder, unreadable: Mapping[int, str]) -> list[PartFacts]:
    """Commit every part that is not there yet; all of them, in the order of the rows.

    Parameters
    ----------
    autoencoder : Autoencoder
        `model` on its device.
    unreadable : mapping of int to str
        Why, for each shard that cannot be read, by its place in the input.
    """
    *smaller, last = storages(job.config.storage)
    for storage in smaller:
        try:
            return _encode_as(job, model, autoencoder, unreadable, storage)
        except TooCoarse as error:  # no sample could tell: one row among all may lie far outside
            log.info("encoding: begins again with %s, since of these features %s", last.dtype, error)
    return _encode_as(job, model, autoencoder, unreadable, last)


def _encode_as(
    job: Job, model: Model, autoencoder: Autoencoder, unreadable: Mapping[int, str], storage: Storage
) -> list[PartFacts]:
    job.clock.features = fingerprint = job.of_features(model, unreadable, storage)
    there = [PartFacts.of(record) for record in intact(job, job.ledger.records("part", fingerprint))]
    missing, overlapping = plan_parts(job.shards, job.budget.part_rows, there)
    job.ledger.drop(*(part.record(fingerprint) for part in overlapping))
    if there:
        there_are = f"{counted(sum(part.n_rows for part in there), 'row')} in {counted(len(there), 'part')}"
        job.clock.taken_over["encoding"] = f"the features of {there_are}"
        if missing:
            log.info("encoding: going on, an earlier run has committed %s", there_are)
    limit = _Limit(job)
    for part in there:  # bad rows of earlier runs count, too: the limit is one of the whole input
        limit.count(part)
    if missing:
        if job.crew.is_here:
            for dtype in sorted({shard.dtype for shard in job.shards}):
                # No rows, no work: it compiles before the progress starts to count.
                autoencoder.encode(np.empty((0, model.network.n_inputs), dtype=dtype))
        n_rows = max(len(part.source) for part in missing)
        made = encode_settings(job, model, n_rows, job.ledger.directory)
        file = _model_file(job, model, unreadable)
        n_readers = -(-made.n_readers // job.crew.n_sharing) if job.crew.n_sharing else 0
        n_processes = max(1, job.crew.n_sharing)  # that share the memory budget
        settings = replace(
            made,
            model=file,
            n_readers=n_readers,
            attributes=job.about(model),
            storage=storage,
            n_wide=max(1, made.n_wide // n_processes),
            chunk_bytes=made.chunk_bytes // n_processes,
        )
        tasks = [EncodeTask(part, settings, unreadable.get(part.number)) for part in missing]
        with serving(settings, model, autoencoder.encode_checked, job.ledger.disk):
            _encode(job, tasks, fingerprint, limit)
    parts = [PartFacts.of(record) for record in job.ledger.records("part", fingerprint)]
    _tell_outside(parts, job.columns)
    job.clock.lap("encoding")
    return parts


def _model_file(job: Job, model: Model, unreadable: Mapping[int, str]) -> Entry:
    """Where every worker finds the model: as committed, or a copy of a given one, which the next sweep removes."""
    committed = [] if job.given else job.ledger.records("model", job.of_model(unreadable))
    return committed[0].entry if committed else job.ledger.write("stages/model", ".h5", model.to_hdf5())


def encode_settings(job: Prepared, model: Model, part_rows: int, directory: Path) -> EncodeSettings:
    """What the parts of a run have in common, the largest of which has `part_rows` rows, but for the model's file."""
    settings = job.config.bad_data
    scaler = model.scaler
    return EncodeSettings(
        directory=str(directory),
        model=IN_MEMORY,
        dtype=row_dtype(job.shards).name,
        block_rows=min(part_rows, job.budget.block_rows),
        part_rows=part_rows,  # of what there is: a run on few rows takes little memory
        n_readers=job.budget.n_threads,
        bad_data=BadData(
            on_bad_data=settings.on_bad_data,
            missing=settings.missing_value,
            on_drift=settings.on_drift,
            fills=scaler.fill is not None,
        ),
        has_range=job.given is not None and not scaler.clips,  # of clipped rows none lies outside
        storage=storages(job.config.storage)[0],
        n_wide=job.budget.n_wide,
        chunk_bytes=job.budget.chunk_bytes,
    )


def _encode(job: Job, tasks: Sequence[EncodeTask], fingerprint: str, limit: _Limit) -> None:
    n_rows = sum(len(task.part.source) for task in tasks)
    tally = job.crew.tally
    with (
        GroupCommit(job.ledger) as group,  # outermost: it commits what waits when all else has ended, by an error too
        Progress("encoding", n_rows, "rows", tasks[0].part.source.shard.row_bytes) as progress,
        job.crew.executor(job.budget.n_writers) as where,
    ):

        def commit(part: PartFacts) -> None:
            limit.count(part)  # first: a part too many is not committed
            group.add(part.record(fingerprint))
            progress.advance(part.n_rows, tally)

        tally.begin("encoding")
        n_small = job.budget.part_rows * len(tasks) // max(1, n_rows)  # parts of small shards make a whole one
        compute([(encode_part, task) for task in tasks], *where, commit, n_small)


class _Limit:
    """Counts bad rows, and says when they are too many."""

    def __init__(self, job: Job) -> None:
        self._settings = job.config.bad_data
        self._limit = job.max_bad_rows
        self._n_bad = 0

    def count(self, part: PartFacts) -> None:
        self._n_bad += part.n_bad
        if self._n_bad > self._limit:
            raise DataError(
                f"file={shown(part.path)} dataset={shown(part.dataset)} rows={part.start}:{part.stop}: "
                f"{counted(self._n_bad, 'bad row')} so far, expected {self._limit} at most (--max-bad-rows "
                f"{self._settings.max_bad_rows}, --on-bad-data {self._settings.on_bad_data}). Mend the files, or raise "
                "it."
            )


def _tell_outside(parts: Sequence[PartFacts], columns: Columns) -> None:
    """Warn when many rows are not like those that a given model has learnt from."""
    n_rows = sum(part.n_rows for part in parts)
    n_outside = sum(part.n_outside for part in parts)
    if n_outside > _MANY_OUTSIDE * n_rows:
        worst = farthest((column for part in parts for column in part.outside), _WORST)
        log.warning(
            "%d of %d rows lie outside the range of the rows that the model was trained on, farthest in %s. Their "
            "features may mean little: train a model on such rows, or choose with --on-drift.",
            *(n_outside, n_rows, "; ".join(one.described(columns) for one in worst)),
        )
