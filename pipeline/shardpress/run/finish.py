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
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from msgspec import structs
from threadpoolctl import threadpool_limits

from shardpress.base.errors import DataError, NoInput, NotPermitted, VerificationFailed, printable, quantity
from shardpress.base.outliers import Outlier
from shardpress.base.progress import activity
from shardpress.base.text import duration
from shardpress.encoding.index import write_index
from shardpress.encoding.partfile import row_shapes, stored_categories, stored_masks, stored_paths
from shardpress.hdf5.shard import Block, Shard, UnreadableShard, first_rows
from shardpress.model.labels import LabelChoice
from shardpress.output.disk import publish, remove
from shardpress.output.folder import BAD_ROWS, REPORT
from shardpress.output.journal import Journal
from shardpress.report.commonrows import EncodedRows
from shardpress.report.judgment import judge
from shardpress.report.overview import bad_data_facts, bad_shards, drift_facts, input_facts, sample_facts
from shardpress.report.page.build import is_current, page_bytes
from shardpress.report.recompute import check_rows
from shardpress.report.sampling import PartSource, SampleSpec, sizes_of
from shardpress.result.facts import (
    Append,
    AppendCounts,
    Drift,
    Judgment,
    LastRun,
    Memory,
    ReportFacts,
    RowCheck,
    SampleFacts,
    ScanFacts,
    StageFacts,
    StorageFacts,
    Summary,
    Verdict,
    WarningFacts,
)
from shardpress.result.finished import Result, Use, load_statistics, result_bytes, stored_name
from shardpress.result.records import Keys, Part, Range, Request, RunFacts, in_order, plain, stretches_of, with_digests
from shardpress.run.context import RunContext, versions
from shardpress.run.deadline import gave_up, warn_if_late
from shardpress.run.encoding_stage import Encoding
from shardpress.run.estimate import finish_seconds
from shardpress.run.extension import extension_of
from shardpress.run.fitted import name_of_extra
from shardpress.run.generations import Generations, count_generations
from shardpress.run.memory import block_bytes, peak_bytes, trained_network_bytes
from shardpress.run.new_rows import check_verdict, reference_of, verdict_on
from shardpress.run.outcome import Outcome
from shardpress.run.task import Task
from shardpress.run.use import use_of_rows
from shardpress.shards.extras import why_left_out
from shardpress.training.complaints import kept_start

log = logging.getLogger(__name__)

_OTHER_OPEN_FILES = 32  # open files of a process in addition to the files of index.h5


def check_same_rows(journal: Journal, encoding: Encoding) -> None:
    """Raise `DataError` if the rows of a shard have changed since the scan. Then withdraw the scan and its model."""
    request = encoding.fit.request
    for known, encoded in zip(request.shards, with_digests(request.shards, encoding.parts), strict=True):
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


def write_derived(journal: Journal, result: Result) -> None:
    """Write the files that are derived from the published result, unless they are up to date."""
    if not is_current(journal.directory / REPORT, result.digest):
        publish(journal.disk, journal.directory / REPORT, page_bytes(result))
    lines = _bad_rows(result)
    stored = _content(journal.directory / BAD_ROWS)
    if lines or result.facts.config["on_bad_data"] == "skip":
        if stored != lines:
            publish(journal.disk, journal.directory / BAD_ROWS, lines)
    elif stored is not None:
        remove(journal.disk, journal.directory / BAD_ROWS)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _bad_rows(result: Result) -> bytes:
    """Return one line of JSON for each bad shard and each bad row."""
    columns = result.model.columns
    lines: list[dict[str, Any]] = []
    for file in result.facts.bad_shards:
        lines.append({**plain(file), "dataset": None, "row": None, "columns": []})
    for _, rows in result.ranges:
        shard = result.by_id[rows.shard]
        for bad in rows.bad:
            ends = [shard.first_row + bad.start, shard.first_row + bad.stop]
            is_one_row = bad.dataset is None and not rows.is_unreadable
            line: dict[str, Any] = {"file": shard.path, "dataset": bad.dataset or shard.dataset}
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
    steps = _Finish(encoding, context)
    usual = duration(finish_seconds(encoding.fit.task.inputs.n_inputs))
    # BLAS threads spin while they wait for each other: small products take ten times as long on a busy machine.
    with activity("verification: recomputing features", usual), threadpool_limits(1, "blas"):
        verification = steps.verify()
    with activity("report: measuring a sample of rows", usual):
        sample = steps.sample()
        steps.judge_new_rows()
        steps.count_generations(sample)
    outcome = steps.outcome(sample)
    report = steps.report(outcome.judgment, sample)
    with activity("result: writing the index and the report", "a second"):
        steps.publish(outcome.summary, verification, report)
    return outcome


def finish_bytes(task: Task) -> int:
    """Return the bytes of the report's sample, and of memory that the allocator keeps after the encoding."""
    blocks = task.budget.n_writers * block_bytes(task)
    sizes = sizes_of(task.max_network, task.settings.machine.memory_budget)
    return trained_network_bytes(task) + blocks + sizes.n_bytes


class _TrainingErrors(NamedTuple):
    """What the summary says about a training; None if the model was trained on other rows."""

    cost: float | None = None
    components: float | None = None
    mean: float | None = None
    outlier: Outlier | None = None
    gave_up: str = ""
    kept_start: str = ""


class _Finish:
    """The steps of the last stage."""

    def __init__(self, encoding: Encoding, context: RunContext) -> None:
        task = encoding.fit.task
        self._fit = encoding.fit
        self._task = task
        self._context = context
        self._journal = context.journal
        self._model = encoding.fit.model
        self._encoding = encoding
        self._parts = encoding.parts
        self._kept = task.kept  # the result whose model stays, or None
        self._ranges = in_order(self._parts, self._task.positions)
        settings = task.settings.bad_data
        clips_drift = task.has_other_rows and settings.on_drift == "clip"
        self._spec = SampleSpec(
            self._model,
            settings.missing_value,
            clips_drift,
            task.settings.machine.memory_budget,
            task.settings.training.seed,
            task.inputs.orders,
        )
        self._extension = extension_of(task)
        self._use = use_of_rows(encoding.fit, self._parts)
        self._verdict: Verdict | None = None
        self._generations = Generations()
        self._made = datetime.now().astimezone().isoformat(" ", "seconds")

    def verify(self) -> RowCheck:
        """Recompute the features of some rows, compare them with the stored ones, and withdraw parts that differ."""
        if self._kept is not None and not self._encoding.new:
            return self._kept.facts.verification
        task = self._task
        checked = check_rows(
            self._journal.directory,
            in_order(self._encoding.new, task.positions),
            self._fit.request.shards,
            lambda shard_id: (task.by_id[shard_id], self._fit.conversion),
            self._spec,
        )
        if checked.faults:
            raise self._verification_error(checked)
        for each in checked.unchecked:
            log.warning("file=%s: its features could not be verified: %s", printable(each.file), each.fault)
        self._context.state.end_stage("verification")
        log.info("verification: %s", checked)
        return checked

    def _verification_error(self, checked: RowCheck) -> DataError | VerificationFailed:
        """Withdraw the parts in which features differ, and return the error that reports them."""
        files = {fault.file for fault in checked.faults}
        self._journal.withdraw_parts(sorted(files))
        first = checked.faults[0]
        part = next(part for part in self._encoding.new if part.file == first.file)
        for each in part.ranges:
            rows = Block(self._task.by_id[each.shard], each.start, each.stop)
            if each.rows not in (None, self._fit.conversion.digest(rows)):
                return _changed(rows.shard.path)
        n_parts = quantity(len(self._encoding.new), "part")
        return VerificationFailed(
            f"file={printable(self._journal.directory / first.file)}: {first.fault}; {len(files)} of "
            f"{n_parts} contain wrong features. Run the same command again to recompute "
            "them. If it fails again, test the memory of this machine and of its device, or avoid the fused "
            "operations with THEANO_FLAGS=optimizer_excluding=fused."
        )

    def sample(self) -> SampleFacts | None:
        """Return facts about some rows and their features for the report. Log a warning if they are incomplete."""
        task = self._task
        config = task.settings
        if self._extension is not None and self._extension.keeps_sample:
            return self._extension.before.report.sample
        include = config.inputs.include
        if config.training.target is not None:
            include = (config.training.target, *include)
        if self._kept is not None:  # another extra does not change the labels
            include = (*_labels_of(self._kept.facts), *include)
        named = self._labels
        if named is not None:
            named = stored_name(name_of_extra("labels", named, task.inputs.shards))
        choice = self._label_choice(named, include)
        sources = self._sources(self._ranges)
        return sample_facts(sources, self._spec, choice, config.storage.row_error)

    @property
    def _labels(self) -> str | None:
        """Dataset of ``--labels``. A run that changes no row keeps that of the result."""
        labels = self._task.settings.inputs.labels
        if labels is None and self._extension is not None:
            labels = self._extension.before.config["labels"]
        return labels

    def judge_new_rows(self) -> None:
        """Compare the rows that an append brings with the rows of the training. Log the verdict."""
        task = self._task
        new = self._added
        if self._kept is None or not task.appends or not new:
            return
        ranges = [each for _, each in new]
        self._verdict = verdict_on(self._sources(new), ranges, self._spec, self._kept)
        self._context.state.end_stage("verdict")
        check_verdict(self._verdict, self._journal.directory, task.settings.results.on_append_drift)

    def count_generations(self, sample: SampleFacts | None) -> None:
        """Determine the generation, and fit maps from its features to those of earlier ones."""
        labels = None
        probe = None if sample is None else sample.probe or sample.no_test
        if probe is not None and probe.score_name == "accuracy":
            labels = self._label_choice(probe.labels)
        results = self._task.settings.results
        rows = EncodedRows(
            self._journal.directory,
            self._ranges,
            self._model.n_features,
            self._model.fingerprint,
            with_digests(self._fit.request.shards, self._parts),
            self._use,
            self._model.target is not None,
        )
        self._generations = count_generations(self._journal, rows, results, labels)
        if self._generations.keeps_published:
            self._context.state.end_stage("maps")

    def _sources(self, pairs: Sequence[tuple[Part, Range]]) -> list[PartSource]:
        """Return the rows of ranges whose files can be read."""
        folder = self._journal.directory
        starts = first_rows(self._task.inputs.shards)
        sources = []
        for part, each in pairs:
            shard = self._task.by_id[each.shard]
            if not isinstance(shard, UnreadableShard):
                row = int(starts[self._task.positions[each.shard]]) + each.start
                trained = ~self._are_held_out[row : row + each.n_rows]
                fitted = self._use[row : row + each.n_rows] == Use.TRAINING
                block = Block(shard, each.start, each.stop)
                sources.append(PartSource(block, folder / part.file, each.first, trained, fitted, each.lost))
        return sources

    @cached_property
    def _are_held_out(self) -> np.ndarray:
        """Mask of all rows that can test linear models on supervised features, bool (n_rows,).

        Targets of validation rows decide at most which epoch is the best. So these rows test supervised features unless
        there are others.
        """
        is_left_out = self._use > Use.VALIDATION
        is_validation = self._use == Use.VALIDATION
        target = self._model.target
        if target is None or target.fit_on is not None or is_left_out.sum() > is_validation.sum():
            return is_left_out
        return is_validation

    def _label_choice(self, named: str | None, include: Sequence[str] = ()) -> LabelChoice:
        extras = self._task.inputs.shards[0].extras  # earlier parts lack the categories of later rows
        categories = [np.array(extra.categories) for extra in extras if extra.categories is not None]
        by_name = dict(zip(stored_categories(extras), categories, strict=True))
        missing = self._task.settings.inputs.missing_label
        return LabelChoice(tuple(include), named, stored_masks(extras), by_name, missing)

    def outcome(self, sample: SampleFacts | None) -> Outcome:
        """Return the numbers of the run, and a judgment of the features from a sample."""
        task = self._task
        ranges = [each for _, each in self._ranges]
        state = self._context.state
        errors = self._training_errors()
        summary = Summary(
            output=task.settings.results.output,
            n_rows=task.inputs.n_rows,
            n_inputs=self._model.n_columns,
            n_features=self._model.n_features,
            n_bad=sum(each.n_bad for each in ranges),
            n_parts=len(self._parts),
            device=self._context.devices,
            cost=errors.cost,
            components=errors.components,
            mean=errors.mean,
            outlier=errors.outlier,
            gave_up=errors.gave_up,
            kept_start=errors.kept_start,
            seconds=state.seconds,
            n_bad_shards=len(bad_shards(task.inputs.bad_shards, ranges, self._fit.request.shards)),
            n_outside=sum(each.n_outside for _, each in (self._added if task.appends else self._ranges)),
            appended=self._counts() if task.appends else None,
            verdict=self._verdict.verdict if self._verdict is not None and self._verdict.n_sampled else None,
            compiling=state.seconds_compiling,
            n_components=self._model.network.n_features,
        )
        return Outcome(summary, judge(summary, sample, task.settings), self._generations.number)

    def report(self, judgment: Judgment, sample: SampleFacts | None) -> ReportFacts:
        task = self._task
        context = self._context
        state = context.state
        ranges = [each for _, each in self._ranges]
        shards = self._fit.request.shards
        bad_files = bad_shards(task.inputs.bad_shards, ranges, shards)
        report = ReportFacts(
            host=socket.gethostname(),
            directory=str(self._journal.directory.resolve()),
            device=asdict(context.device),
            inputs=input_facts(task.inputs.shards),
            stages=self._stages(),
            cluster=context.pool.facts(),
            memory=Memory(peak_bytes()),
            taken_over=list(state.reused.values()),
            warnings=WarningFacts(state.warnings.n, list(state.warnings.first)),
            bad=bad_data_facts(bad_files, ranges, shards, self._model.columns, task.inputs.n_uncompared),
            last=_last_run(task.result),
            sample=sample,
            judgment=judgment,
            scan=self._scan_facts(),
            drift=self._drift(),
        )
        state.end_stage("report")
        return report if self._extension is None else self._extension.report(report)

    def publish(self, summary: Summary, verification: RowCheck, report: ReportFacts) -> None:
        """Write the index, which completes the run, and then the files that are derived from it."""
        task = self._task
        journal = self._journal
        generations = self._generations
        storage = _storage_facts(task, self._parts)
        if self._extension is not None:
            summary = self._extension.summary(summary)
        facts = RunFacts(
            config=self._config(),
            request=self._request(),
            keys=self._keys(),
            made=self._made,
            command=" ".join(self._context.command),
            device=self._context.devices,
            versions=versions(),
            storage=storage,
            bad_shards=task.inputs.bad_shards,
            uncompared=list(task.inputs.uncompared),
            left_out=self._left_out(),
            masks=stored_masks(self._task.inputs.shards[0].extras),
            paths=stored_paths(self._task.inputs.shards[0].extras),
            summary=summary,
            verification=verification,
            generation=generations.number,
            generations=list(generations.earlier),
            maps=list(generations.maps),
            appends=self._appends(),
            trained=self._trained(),
            report=report,
        )
        extras = task.inputs.shards[0].extras  # the same in all shards
        dtype = np.dtype(storage.dtype)
        shapes = row_shapes(task.settings.network.n_outputs, extras, dtype, task.settings.storage.row_error)
        stretches = stretches_of(self._ranges)
        append_ids = None
        if facts.appends:
            numbers = {shard.id: shard.append_id for shard in facts.request.shards}
            append_ids = [(numbers[each.shard], each.n_rows) for _, each in self._ranges]
        data = result_bytes(
            lambda file: write_index(file, stretches, shapes, stored_categories(extras), self._use, append_ids),
            self._model,
            facts,
            self._parts,
            generations.linear_maps,
            self._statistics(),
        )
        # The scan stays, because a later run with other settings of the training can use it.
        scans = journal.records("scan") if task.source == "trained" else []
        result = journal.commit(data, generations.keeps_published, scans)
        warn_if_late(self._context.state.ends_by)
        _warn_of_many_parts(len(self._parts))
        write_derived(journal, result)
        journal.sweep()

    # -- private --

    def _scan_facts(self) -> ScanFacts:
        if self._kept is not None:
            return self._kept.facts.report.scan
        scan = self._fit.scan
        if self._task.source == "trained" and scan is not None:
            return scan.facts()
        # The rows alone do not show which scaling a given model has.
        scale = self._fit.model.scaler.scale_setting
        return ScanFacts(scale) if scan is None else structs.replace(scan.facts(), scale=scale)

    def _drift(self) -> Drift | None:
        """Return facts about values outside the model's range, if it was trained on other rows."""
        task = self._task
        if not task.has_other_rows:
            return None
        ranges = [rows for _, rows in self._ranges]
        return drift_facts(task.request.shards, task.inputs.columns, ranges, task.settings.bad_data.on_drift)

    @property
    def _added(self) -> list[tuple[Part, Range]]:
        """The ranges of new and changed shards."""
        change = self._task.change
        added = set(self._task.ids_of([*change.new, *change.replaced]))
        return [(part, each) for part, each in self._ranges if each.shard in added]

    def _training_errors(self) -> _TrainingErrors:
        """Return what the summary says about a training, if the model was trained on the same rows."""
        task = self._task
        if self._kept is not None and not task.appends:
            before = self._kept.facts.summary
            return _TrainingErrors(
                before.cost, before.components, before.mean, before.outlier, before.gave_up, before.kept_start
            )
        training = self._model.about.training
        if task.source != "trained" or training is None:
            return _TrainingErrors()
        errors = _TrainingErrors(
            cost=training.best_cost,
            gave_up=gave_up(training),
            kept_start=kept_start(self._model.about, self._model.network),
        )
        baseline = training.baseline
        if baseline is None:
            return errors
        return errors._replace(components=baseline.components, mean=baseline.mean, outlier=baseline.outlier)

    def _config(self) -> dict[str, Any]:
        """Return the settings. An append adds rows or extras to those of the earlier run."""
        config = self._task.settings
        if self._kept is None or not config.results.append:
            return {**config.flat(), "labels": self._labels}
        added = {
            "input": list(config.inputs.input),
            "include": list(config.inputs.include),
            "row_error": config.storage.row_error,
        }
        labels = {"labels": self._labels, "missing_label": config.inputs.missing_label}
        return {**self._kept.facts.config, **added, **labels}

    def _request(self) -> Request:
        """Return the request. The digests of the shards are those of their parts."""
        request = self._fit.request
        return structs.replace(request, shards=[structs.replace(s, rows=None, extras=None) for s in request.shards])

    def _keys(self) -> Keys:
        task = self._task
        features = task.wanted.features(self._model.fingerprint)
        if self._kept is not None:
            return Keys(self._kept.facts.keys.model, features)
        return Keys(self._fit.request.of_model(), features)

    def _trained(self) -> list[str]:
        """Return the digests of the shards that trained the model; nothing if they are unknown."""
        task = self._task
        if self._kept is not None:
            return self._kept.facts.trained
        if task.source == "given":
            return []
        return [shard.rows for shard in self._fit.request.shards if shard.rows is not None and shard.shape[0]]

    def _left_out(self) -> dict[str, str]:
        before = {} if self._kept is None else self._kept.facts.left_out
        return {**before, **why_left_out(self._task.inputs.shards)}

    def _counts(self) -> AppendCounts:
        change = self._task.change
        n_rows = sum(rows.n_rows for _, rows in self._added)
        return AppendCounts(len(change.new), len(change.replaced), len(change.gone), n_rows)

    def _appends(self) -> list[Append]:
        """Return facts about all appends, including this one."""
        if self._kept is None:
            return []
        before = self._kept.facts.appends
        if not self._task.appends:
            return before
        n = self._counts()
        append = Append(
            n.n_new, n.n_changed, n.n_dropped, n.n_rows, id=len(before) + 1, made=self._made, drift=self._verdict
        )
        return [*before, append]

    def _statistics(self) -> Mapping[str, np.ndarray]:
        """Return the statistics of held-out rows with which appended rows are compared; none if there are none."""
        task = self._task
        if self._kept is not None:
            return self._kept.statistics()
        if task.source == "given":
            model = task.settings.inputs.model
            assert model is not None
            return load_statistics(model, self._model.fingerprint)
        ranges = [each for _, each in self._ranges]
        try:
            reference = reference_of(self._sources(self._ranges), ranges, self._use, self._spec)
        except (DataError, NoInput, NotPermitted) as error:  # the features are complete nevertheless
            log.warning("later appends will have no verdict, because the held-out rows cannot be read: %s", error)
            return {}
        return {} if reference is None else reference.stored()

    def _stages(self) -> dict[str, StageFacts]:
        """Return the times of each finished stage, and its rows and bytes if it processed all of them."""
        state = self._context.state
        stages = {}
        for stage, seconds in state.seconds.items():
            shards: Sequence[Shard] = ()
            if stage in ("scan", "encoding") and stage not in state.reused:
                shards = [self._task.inputs.shards[i] for i in self._task.scanned]
            stages[stage] = StageFacts(
                seconds=seconds,
                processor_seconds=state.processor_seconds[stage],
                n_cores=len(os.sched_getaffinity(0)),
                bound_by=state.bounds[stage],
                n_rows=sum(shard.n_rows for shard in shards),
                n_bytes=sum(shard.n_rows * shard.row_bytes for shard in shards),
            )
        return stages


def _storage_facts(task: Task, parts: Sequence[Part]) -> StorageFacts:
    return StorageFacts(
        dtype=parts[0].dtype or "float32",
        compression=task.settings.storage.compression,
        max_error=max(part.max_error or 0.0 for part in parts),
        n_bytes=sum(part.entry.n_bytes for part in parts),
    )


def _labels_of(facts: RunFacts) -> tuple[str, ...]:
    """Return the dataset with the labels of the report, if there is one."""
    sample = facts.report.sample
    name = None if sample is None else sample.points.dataset
    return () if name is None else (name,)


def _last_run(base: Result | None) -> LastRun | None:
    return None if base is None else LastRun(base.facts.made, base.facts.summary, base.facts.config)


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
