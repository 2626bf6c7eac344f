"""The end of a run: verify the features, and publish them with the files that accompany them."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from msgspec import structs
from threadpoolctl import threadpool_limits

from shardpress.base.errors import DataError, VerificationFailed, printable, quantity
from shardpress.base.progress import activity
from shardpress.base.text import duration
from shardpress.encoding.index import write_index
from shardpress.encoding.partfile import row_shapes, stored_categories, stored_masks, stored_paths
from shardpress.hdf5.shard import Block, Shard, UnreadableShard
from shardpress.output.disk import publish, remove
from shardpress.output.folder import BAD_ROWS, DESCRIPTIONS, REPORT
from shardpress.output.journal import Journal
from shardpress.report.overview import bad_data_facts, bad_shards, drift_facts, input_facts
from shardpress.report.page.build import is_current, page_bytes
from shardpress.report.recompute import check_rows
from shardpress.report.sampling import sizes_of
from shardpress.report.summary import report_of
from shardpress.result.facts import (
    Append,
    Memory,
    OneRun,
    RowCheck,
    RunDetails,
    SampleFacts,
    ScanFacts,
    StageFacts,
    StorageFacts,
    Verdict,
    WarningFacts,
)
from shardpress.result.finished import Result, result_bytes
from shardpress.result.records import (
    ModelFacts,
    Part,
    RowsFacts,
    RunFacts,
    in_order,
    plain,
    stretches_of,
)
from shardpress.run.context import RunContext, RunState, versions
from shardpress.run.deadline import warn_if_late
from shardpress.run.encoding_stage import Encoding
from shardpress.run.estimate import finish_seconds
from shardpress.run.generations import Generations, count_generations
from shardpress.run.memory import block_bytes, peak_bytes, trained_network_bytes
from shardpress.run.new_rows import check_verdict
from shardpress.run.outcome import Outcome
from shardpress.run.result_rows import ResultRows
from shardpress.run.resume import has_other_labels
from shardpress.run.task import Fit, Task
from shardpress.settings.config import Config
from shardpress.settings.kinds import as_typed
from shardpress.shards.conversion import digest_of_rows
from shardpress.shards.extras import why_left_out
from shardpress.shards.kept import KeptDescriptions

log = logging.getLogger(__name__)

T = TypeVar("T")

_OTHER_OPEN_FILES = 32  # open files of a process in addition to the files of index.h5
_NOT_OF_RESULTS = ("overwrite", "restart", "quiet", "verbose")  # settings that do not affect results
_MAX_VALUE = 200  # characters of a setting


def check_same_rows(journal: Journal, encoding: Encoding) -> None:
    """Raise `DataError` if the rows of a shard have changed since the scan. Then withdraw the scan and its model."""
    request = encoding.fit.request
    for known, encoded in zip(request.shards, encoding.shards, strict=True):
        if None not in (known.rows, encoded.rows) and known.rows != encoded.rows:
            stale = journal.records("scan")  # its file can have the same size and times as now
            if encoding.fit.task.source == "trained":
                # The changed rows may have trained it, but its fingerprint is that of the scanned rows.
                stale += journal.records(fingerprint=request.of_model())
            journal.withdraw(*stale)
            raise _changed(known.path)


def _changed(path: str) -> DataError:
    return DataError(
        f"file={printable(path)}: its contents changed during the run. Input files must not change during a run. Run "
        "the same command again once no other process writes to the file."
    )


def write_derived(journal: Journal, result: Result, descriptions: KeptDescriptions) -> None:
    """Write the files that are derived from the published result, and descriptions of the input files.

    Files that are up to date stay.
    """
    if not is_current(journal.directory / REPORT, result.digest):
        publish(journal.disk, journal.directory / REPORT, page_bytes(result))
    lines = _bad_rows(result)
    stored = _content(journal.directory / BAD_ROWS)
    if lines or result.facts.rows.config["on_bad_data"] == "skip":
        if stored != lines:
            publish(journal.disk, journal.directory / BAD_ROWS, lines)
    elif stored is not None:
        remove(journal.disk, journal.directory / BAD_ROWS)
    kept = journal.directory / DESCRIPTIONS.format(result.digest)
    if descriptions and (descriptions.is_changed or not kept.exists()):
        publish(journal.disk, kept, descriptions.data(), name_is_synced=False)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _bad_rows(result: Result) -> bytes:
    """Return one line of JSON for each bad shard and each bad row."""
    columns = result.model.columns
    lines: list[dict[str, object]] = []
    for file in result.facts.rows.bad_shards:
        lines.append({**plain(file), "dataset": None, "row": None, "columns": []})
    for _, rows in result.ranges:
        shard = result.by_id[rows.shard]
        for bad in rows.bad:
            ends = [shard.first_row + bad.start, shard.first_row + bad.stop]
            is_one_row = bad.dataset is None and not rows.is_unreadable
            line: dict[str, object] = {"file": shard.path, "dataset": bad.dataset or shard.dataset}
            line |= {"row": ends[0] if is_one_row else ends, "columns": bad.columns, "reason": bad.reason}
            if columns.has_names:
                line["names"] = [columns.name_of(column) for column in bad.columns]
            lines.append(line)
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def finish(encoding: Encoding, context: RunContext) -> Outcome:
    """Verify and publish the features with the files that accompany them, and remove what is no longer needed.

    Raise `VerificationFailed` if stored features differ from recomputed ones, and `RowsDrifted` if appended rows
    differ from the rows of the training, and the settings do not allow that.
    """
    task = encoding.fit.task
    journal = context.journal
    state = context.state
    rows = ResultRows(encoding, journal.directory)
    earlier_runs = [] if task.result is None else task.result.facts.runs
    number = len(earlier_runs) + 1
    usual = duration(finish_seconds(task.inputs.n_inputs))
    # BLAS threads spin while they wait for each other: small products take ten times as long on a busy machine.
    with activity("verification: recomputing features", usual), threadpool_limits(1, "blas"):
        verification = _verification(encoding, rows, context, number)
    with activity("report: measuring a sample of rows", usual):
        sample = _sample(task, rows, number)
        verdict = None
        if task.appends and task.kept is not None and rows.added:
            verdict = rows.verdict(task.kept)
            state.end_stage("verdict")
            check_verdict(verdict, journal.directory, task.settings.results.on_append_drift)
        results = task.settings.results
        generations = count_generations(journal, rows.encoded(), results, rows.classes(sample.value))
        if generations.keeps_published:
            state.end_stage("maps")
    with activity("result: writing the index and the report", "a second"):
        append = _append(task, rows, verdict)
        facts = RunFacts(
            _model_facts(encoding.fit, generations, number),
            _rows_facts(encoding, rows, sample, verification),
            [*earlier_runs, _this_run(encoding, context, number, generations.number, append)],
            _details(task, context),
        )
        result = _publish(encoding, rows, generations, facts, context)
    report = report_of(result)
    remark = report.judgment.remark if sample.run == number else ""
    return Outcome(results.output, report.summary, remark, generations.number)


class _Measurement(NamedTuple, Generic[T]):
    """Facts that need rows of the input."""

    value: T
    run: int  # number of the run that has read them


def _verification(encoding: Encoding, rows: ResultRows, context: RunContext, number: int) -> _Measurement[RowCheck]:
    """Recompute the features of some rows, compare them with the stored ones, and withdraw parts that differ."""
    task = encoding.fit.task
    if task.kept is not None and not encoding.new:
        facts = task.kept.facts.rows
        return _Measurement(facts.verification, facts.verification_run)
    row_check = check_rows(
        context.journal.directory,
        in_order(encoding.new, task.positions),
        encoding.fit.request.shards,
        task.by_id.__getitem__,
        rows.spec,
    )
    if row_check.faults:
        raise _verification_error(encoding, row_check, context.journal)
    for fault in row_check.unchecked:
        log.warning("file=%s: its features could not be verified: %s", printable(fault.file), fault.fault)
    context.state.end_stage("verification")
    log.info("verification: %s", row_check)
    return _Measurement(row_check, number)


def _verification_error(encoding: Encoding, row_check: RowCheck, journal: Journal) -> DataError | VerificationFailed:
    """Withdraw the parts in which features differ, and return the error that reports them."""
    files = {fault.file for fault in row_check.faults}
    journal.withdraw_files(sorted(files))
    first = row_check.faults[0]
    part = next(part for part in encoding.new if part.file == first.file)
    for rows in part.ranges:
        block = Block(encoding.fit.task.by_id[rows.shard], rows.start, rows.stop)
        if rows.rows not in (None, digest_of_rows(block)):
            return _changed(block.shard.path)
    return VerificationFailed(
        f"file={printable(journal.directory / first.file)}: {first.fault}; {len(files)} of "
        f"{quantity(len(encoding.new), 'part')} contain wrong features. Run the same command again to recompute "
        "them. If it fails again, test the memory of this machine and of its device, or avoid the fused "
        "operations with THEANO_FLAGS=optimizer_excluding=fused."
    )


# -- a sample of rows ----------------------------------------------------------------------------------------------


def _sample(task: Task, rows: ResultRows, number: int) -> _Measurement[SampleFacts | None]:
    """Return facts about a sample of rows: those of the earlier run if its rows and labels stay, otherwise new ones."""
    if task.kept is None or _changes_sample(task, task.kept.facts.rows):
        return _Measurement(rows.sample(_labels(task)), number)
    facts = task.kept.facts.rows
    return _Measurement(facts.sample, facts.sample_run)


def _changes_sample(task: Task, before: RowsFacts) -> bool:
    """Return whether a run that keeps a model measures a sample of rows again.

    An append does not, because it would read rows of files that have not changed. If a file can no longer be read, the
    earlier facts stay, because its rows could not be judged again.
    """
    if any(isinstance(shard, UnreadableShard) for shard in task.inputs.shards):
        return False
    if has_other_labels(task.settings, before):
        return True
    change = task.change
    is_moved = task.base is not None and bool(change.moved(task.base, task.wanted))
    has_other_settings = bool(change.settings.keys() - {"include", "row_error"})
    return not task.appends and (bool(change.relabelled) or change.encodes_again or is_moved or has_other_settings)


def _labels(task: Task) -> str | None:
    """Return the dataset of ``--labels``. A run that keeps the model keeps that of the result."""
    labels = task.settings.inputs.labels
    if labels is None and task.kept is not None:
        labels = task.kept.facts.rows.config["labels"]
    return labels


# -- facts ---------------------------------------------------------------------------------------------------------


def _model_facts(fit: Fit, generations: Generations, number: int) -> ModelFacts:
    if fit.task.kept is not None:
        return fit.task.kept.facts.model
    trained: list[str] = []
    if fit.task.source == "trained":
        trained = [shard.rows for shard in fit.request.shards if shard.rows is not None and shard.shape[0]]
    return ModelFacts(
        key=fit.request.of_model(),
        run=number,
        source=fit.task.source,
        scan=_scan_facts(fit),
        trained=trained,
        generation=generations.number,
        generations=list(generations.earlier),
        maps=list(generations.maps),
    )


def _scan_facts(fit: Fit) -> ScanFacts:
    if fit.task.source == "trained" and fit.scan is not None:
        return fit.scan.facts()
    # The rows alone do not show which scaling a given model has.
    scale = fit.model.scaler.scale_setting
    return ScanFacts(scale) if fit.scan is None else structs.replace(fit.scan.facts(), scale=scale)


def _rows_facts(
    encoding: Encoding,
    rows: ResultRows,
    sample: _Measurement[SampleFacts | None],
    verification: _Measurement[RowCheck],
) -> RowsFacts:
    fit = encoding.fit
    task = fit.task
    inputs = task.inputs
    ranges = [row_range for _, row_range in rows.ranges]
    extras = inputs.shards[0].extras  # the same in all shards
    bad_files = bad_shards(inputs.bad_shards, ranges, fit.request.shards)
    drift = None
    if task.has_other_rows:
        drift = drift_facts(fit.request.shards, inputs.columns, ranges, task.settings.bad_data.on_drift)
    before = {} if task.kept is None else task.kept.facts.rows.left_out
    # The digests of the shards are those of their parts.
    shards = [structs.replace(shard, rows=None, extras=None) for shard in fit.request.shards]
    return RowsFacts(
        config=_config(task),
        request=structs.replace(fit.request, shards=shards),
        key=task.wanted.features(fit.model.fingerprint),
        storage=_storage_facts(task, encoding.parts),
        bad_shards=inputs.bad_shards,
        uncompared=list(inputs.uncompared),
        left_out={**before, **why_left_out(inputs.shards)},
        masks=stored_masks(extras),
        paths=stored_paths(extras),
        inputs=input_facts(inputs.shards),
        bad=bad_data_facts(bad_files, ranges, fit.request.shards, fit.model.columns, inputs.n_uncompared),
        drift=drift,
        sample=sample.value,
        sample_run=sample.run,
        verification=verification.value,
        verification_run=verification.run,
    )


def _storage_facts(task: Task, parts: Sequence[Part]) -> StorageFacts:
    return StorageFacts(
        dtype=parts[0].dtype or "float32",
        compression=task.settings.storage.compression,
        max_error=max(part.max_error or 0.0 for part in parts),
        n_bytes=sum(part.entry.n_bytes for part in parts),
    )


def _config(task: Task) -> dict[str, Any]:
    """Return the settings. An append adds rows or extras to those of the earlier run."""
    settings = task.settings
    if task.kept is None or not settings.results.append:
        return {**settings.flat(), "labels": _labels(task)}
    added = {
        "input": list(settings.inputs.input),
        "include": list(settings.inputs.include),
        "row_error": settings.storage.row_error,
    }
    labels = {"labels": _labels(task), "missing_label": settings.inputs.missing_label}
    return {**task.kept.facts.rows.config, **added, **labels}


def _append(task: Task, rows: ResultRows, verdict: Verdict | None) -> Append | None:
    """Return the numbers of files and rows that an append has changed; None if the run is no append."""
    if not task.appends or task.kept is None:
        return None
    change = task.change
    n_rows = sum(row_range.n_rows for _, row_range in rows.added)
    append_id = len(task.kept.facts.appends) + 1
    return Append(len(change.new), len(change.replaced), len(change.gone), n_rows, append_id, verdict)


def _this_run(encoding: Encoding, context: RunContext, number: int, generation: int, append: Append | None) -> OneRun:
    task = encoding.fit.task
    training = encoding.fit.model.about.training
    ranges = [rows for part in encoding.parts for rows in part.ranges]
    return OneRun(
        number=number,
        made=datetime.now().astimezone().isoformat(" ", "seconds"),
        command=" ".join(context.command),
        device=context.devices,
        versions=versions(),
        seconds=dict(context.state.seconds),
        compiling=context.state.seconds_compiling,
        generation=generation,
        source=task.source,
        n_rows=task.inputs.n_rows,
        n_bad=sum(rows.n_bad for rows in ranges),
        cost=training.best_cost if training is not None and task.source == "trained" else None,
        changed={} if task.result is None else _changed_settings(task.result.facts.rows.config, _config(task)),
        append=append,
    )


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return settings that differ from those of the earlier run, with both values as a user types them."""
    earlier = Config.from_flat(before).flat()  # values of JSON get their types
    changed = {}
    for name, value in Config.from_flat(now).flat().items():
        if earlier[name] != value and name not in _NOT_OF_RESULTS:
            changed[name] = (_in_words(earlier[name]), _in_words(value))
    return changed


def _in_words(value: object) -> str:
    return "none" if value is None else str(as_typed(value))[:_MAX_VALUE]


def _details(task: Task, context: RunContext) -> RunDetails:
    state = context.state
    state.end_stage("report")
    return RunDetails(
        host=socket.gethostname(),
        directory=str(context.journal.directory.resolve()),
        device=asdict(context.device),
        stages=_stages(task, state),
        cluster=context.pool.facts(),
        memory=Memory(peak_bytes()),
        taken_over=list(state.reused.values()),
        warnings=WarningFacts(state.warnings.n, list(state.warnings.first)),
    )


def _stages(task: Task, state: RunState) -> dict[str, StageFacts]:
    """Return the times of each finished stage, and its rows and bytes if it processed all of them."""
    stages = {}
    for stage, seconds in state.seconds.items():
        shards: Sequence[Shard] = ()
        if stage in ("scan", "encoding") and stage not in state.reused:
            shards = [task.inputs.shards[i] for i in task.scanned]
        stages[stage] = StageFacts(
            seconds=seconds,
            processor_seconds=state.processor_seconds[stage],
            n_cores=len(os.sched_getaffinity(0)),
            bound_by=state.bounds[stage],
            n_rows=sum(shard.n_rows for shard in shards),
            n_bytes=sum(shard.n_rows * shard.row_bytes for shard in shards),
        )
    return stages


# -- the result ----------------------------------------------------------------------------------------------------


def _publish(
    encoding: Encoding, rows: ResultRows, generations: Generations, facts: RunFacts, context: RunContext
) -> Result:
    """Write the index, which completes the run, and then the files that are derived from it."""
    task = encoding.fit.task
    journal = context.journal
    extras = task.inputs.shards[0].extras  # the same in all shards
    dtype = np.dtype(facts.rows.storage.dtype)
    shapes = row_shapes(task.settings.network.n_outputs, extras, dtype, task.settings.storage.row_error)
    stretches = stretches_of(rows.ranges)
    append_ids = None
    if facts.appends:
        numbers = {shard.id: shard.append_id for shard in facts.rows.request.shards}
        append_ids = [(numbers[row_range.shard], row_range.n_rows) for _, row_range in rows.ranges]
    data = result_bytes(
        lambda file: write_index(file, stretches, shapes, stored_categories(extras), rows.use, append_ids),
        encoding.fit.model,
        facts,
        encoding.parts,
        generations.linear_maps,
        rows.statistics(),
    )
    # The scan stays, because a later run with other settings of the training can use it.
    scans = journal.records("scan") if task.source == "trained" else []
    known = Result.written(journal.directory, data, facts, encoding.parts)
    result = journal.commit(data, generations.keeps_published, scans, known)
    warn_if_late(context.state.ends_by)
    _warn_of_many_parts(len(encoding.parts))
    write_derived(journal, result, task.inputs.descriptions)
    journal.sweep()
    return result


def finish_bytes(task: Task) -> int:
    """Return the bytes of the report's sample, and of memory that the allocator keeps after the encoding."""
    blocks = task.budget.n_writers * block_bytes(task)
    sizes = sizes_of(task.max_network, task.settings.machine.memory_budget)
    return trained_network_bytes(task) + blocks + sizes.n_bytes


def _warn_of_many_parts(n_parts: int) -> None:
    """Warn if a process cannot open all parts. HDF5 keeps each part open, and reads NaN for parts it cannot open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n_parts > most - _OTHER_OPEN_FILES:
        log.warning(
            "index.h5 refers to %d files, but a process can open only %d (ulimit -n). A program that reads all "
            "rows through HDF5 gets NaN for the last files, without an error. Raise that limit, read with "
            "open_features(), which opens one file at a time, or write one file: shardpress export DIR --to hdf5.",
            n_parts,
            most,
        )
