"""The end of a run: verify the features, and publish them with the files that accompany them."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.columns import Columns
from shardpress.encoding.index import IndexedFile, in_views, write_index
from shardpress.encoding.partfile import part_shapes, stored_categories, stored_masks
from shardpress.errors import VerificationFailed, printable, quantity
from shardpress.model import Model
from shardpress.output.disk import publish, remove
from shardpress.output.files import BAD_ROWS, REPORT
from shardpress.output.journal import Journal
from shardpress.records import Entry, Keys, Part, RunFacts
from shardpress.report.commonrows import EncodedRows
from shardpress.report.facts import bad_data_facts, input_facts, last_run_facts, sample_facts
from shardpress.report.judgment import Judgment, judge
from shardpress.report.measures import LabelChoice
from shardpress.report.newrows import Verdict
from shardpress.report.page.build import is_current, page_bytes
from shardpress.report.reference import Reference
from shardpress.report.rows import Preprocessing, RowCheck, check_rows
from shardpress.report.sample import PartSource, SampleSpec, largest_sample
from shardpress.result import Result, result_bytes
from shardpress.run.context import RunContext, versions
from shardpress.run.deadline import gave_up, warn_if_late
from shardpress.run.encoding_stage import Encoded
from shardpress.run.generations import Generations, count_generations
from shardpress.run.memory import block_bytes, peak_bytes, trained_network_bytes
from shardpress.run.new_rows import check_verdict, verdict_on
from shardpress.run.prepare import Prepared
from shardpress.run.resume import EarlierResults, finished_result, is_acceptable
from shardpress.run.summary import Summary
from shardpress.run.trained import trained_in
from shardpress.scan.ranges import Scan
from shardpress.shards.extras import why_left_out
from shardpress.shards.shard import Block, Shard

log = logging.getLogger(__name__)

_OTHER_OPEN_FILES = 32  # open files of a process in addition to the files of index.h5


@dataclass(frozen=True)
class StageResults:
    """Results of the stages before the last one."""

    scan: Scan | None  # None if the rows were not scanned, which can happen with a given model
    model: Model
    encoded: Encoded
    facts: Mapping[str, Any]  # for the report; ``storage`` is stored by itself


def load_finished(prepared: Prepared, earlier: EarlierResults) -> Result | None:
    """Return the result of a finished run with the same request whose files are intact, or None.

    Raise `ConfigError` if there are results of other settings or inputs that must not be replaced.
    """
    result = finished_result(earlier.journal, prepared)
    if result is None:
        return None
    if not is_acceptable(result, prepared):
        log.info(
            "output=%s: the finished results exceed the new limits, or lack the requested labels; updating them",
            printable(earlier.journal.directory),
        )
        return None
    return result if earlier.is_intact(result) else None


def write_derived(journal: Journal) -> None:
    """Write the files that are derived from the published result, unless they are up to date."""
    result = journal.published
    assert result is not None
    if not is_current(journal.directory / REPORT, result.digest):
        publish(journal.disk, journal.directory / REPORT, page_bytes(result))
    lines = _bad_rows(result)
    found = _content(journal.directory / BAD_ROWS)
    if lines or result.facts.config["on_bad_data"] == "skip":
        if found != lines:
            publish(journal.disk, journal.directory / BAD_ROWS, lines)
    elif found is not None:
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
    for bad in result.facts.bad_shards:
        lines.append({**bad, "dataset": None, "row": None, "columns": []})
    for part in result.parts:
        for each in part.bad:
            lines.append({"file": part.path, "dataset": part.dataset, **_with_names(each, columns)})
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def finish(prepared: Prepared, results: StageResults, context: RunContext) -> Summary:
    """Verify and publish the features with the files that accompany them, and remove what is no longer needed.

    Raise `VerificationFailed` if stored features differ from recomputed ones, and `RowsDrifted` if appended rows
    differ from the rows of the training, and the settings do not allow that.
    """
    steps = _Finish(prepared, results, context)
    verification = steps.verify()
    sample = steps.sample()
    steps.judge_new_rows()
    steps.count_generations((sample or {}).get("probe"))
    summary, judgment = steps.summarize(sample)
    report = steps.report(judgment, sample)
    steps.publish(summary, verification, report)
    return summary


def finish_bytes(prepared: Prepared) -> int:
    """Return the bytes of the report's sample, and of memory that the allocator keeps after the encoding."""
    blocks = prepared.budget.n_writers * block_bytes(prepared)
    _, sample_bytes = largest_sample(prepared.max_network, prepared.config.machine.memory_budget)
    return trained_network_bytes(prepared) + blocks + sample_bytes


class _Finish:
    """The steps of the last stage."""

    def __init__(self, prepared: Prepared, results: StageResults, context: RunContext) -> None:
        self._prepared = prepared
        self._context = context
        self._journal = context.journal
        self._scan = results.scan
        self._model = results.model
        self._encoded = results.encoded
        self._parts = results.encoded.parts
        self._all_parts = _all_parts(prepared, self._parts)
        self._facts = results.facts
        settings = prepared.config.bad_data
        clips = prepared.has_other_rows and settings.on_drift == "clip"
        self._preprocessing = Preprocessing(results.model, settings.missing_value, clips)
        self._verdict: Verdict | None = None
        self._reference: Reference | None = None
        self._generations = Generations()
        self._made = datetime.now().astimezone().isoformat(" ", "seconds")

    def verify(self) -> dict[str, Any]:
        """Recompute the features of some rows, compare them with the stored ones, and withdraw parts that differ."""
        checked = check_rows(
            self._journal.directory, self._parts, lambda part: self._shard(part.shard), self._preprocessing
        )
        self._journal.check()
        if checked.faults:
            raise self._verification_error(checked)
        for each in checked.unchecked:
            log.warning("file=%s: its features could not be verified: %s", printable(each.file), each.fault)
        self._context.state.end_stage("verification")
        log.info("verification: %s", checked)
        return asdict(checked)

    def _verification_error(self, checked: RowCheck) -> VerificationFailed:
        """Withdraw the parts in which features differ, and return the error that reports them."""
        files = {fault.file for fault in checked.faults}
        self._journal.withdraw_parts(sorted(files))
        first = checked.faults[0]
        return VerificationFailed(
            f"file={printable(self._journal.directory / first.file)}: {first.fault}; {len(files)} of "
            f"{quantity(len(self._parts), 'part')} contain wrong features. Run the same command again to recompute "
            "them. If it fails again, test the memory of this machine and of its device, or avoid the fused "
            "operations with THEANO_FLAGS=optimizer_excluding=fused."
        )

    def sample(self) -> dict[str, Any] | None:
        """Return facts about some rows and their features for the report. Log a warning if they are incomplete."""
        config = self._prepared.config
        inputs = config.inputs
        include = inputs.include
        if config.training.target is not None:
            include = (config.training.target, *include)
        choice = LabelChoice(include, inputs.labels, self._masks())
        return sample_facts(self._sources(self._parts), self._sample_spec(), choice)

    def judge_new_rows(self) -> None:
        """Compare the rows that an append has encoded with the rows of the training. Log the verdict."""
        finished = self._prepared.finished
        if finished is None:
            return
        new = finished.new_parts(self._parts)
        if not new:
            return
        self._verdict, self._reference = verdict_on(self._sources(new), new, self._sample_spec(), self._prepared)
        self._context.state.end_stage("verdict")
        check_verdict(self._verdict, self._journal.directory, self._prepared.config.results.on_append_drift)

    def count_generations(self, probe: Mapping[str, Any] | None) -> None:
        """Determine the generation, and fit maps from its features to those of earlier ones."""
        labels = None if probe is None else str(probe["labels"])
        results = self._prepared.config.results
        rows = EncodedRows(
            self._journal.directory,
            self._all_parts,
            self._model.n_features,
            self._model.fingerprint,
            self._prepared.whole_request.shards,
        )
        self._generations = count_generations(self._journal, rows, results, labels)
        if self._generations.keeps_published:
            self._context.state.end_stage("maps")

    def _sources(self, parts: Sequence[Part]) -> list[PartSource]:
        folder = self._journal.directory
        sources = []
        for part, trained in zip(parts, trained_in(parts, self._all_parts, self._prepared), strict=True):
            block = Block(self._shard(part.shard), part.start, part.stop)
            sources.append(PartSource(block, folder / part.file, trained, part.lost))
        return sources

    def _masks(self) -> dict[str, str]:
        """Return the datasets that mark the rows with a value of another dataset, by the name of that dataset."""
        masks = stored_masks(self._prepared.shards[0].extras)
        finished = self._prepared.finished
        if finished is not None and finished.parts:  # the parts that stay have masks, too
            masks |= finished.result.facts.masks
        return masks

    def _sample_spec(self) -> SampleSpec:
        config = self._prepared.config
        preprocessing = self._preprocessing
        return SampleSpec(
            self._model, preprocessing.missing, preprocessing.clips, config.machine.memory_budget, config.training.seed
        )

    def summarize(self, sample: Mapping[str, Any] | None) -> tuple[Summary, Judgment]:
        """Return the numbers of the run, and a judgment of the features from a sample."""
        prepared = self._prepared
        training = {} if prepared.given_model is not None else self._model.about["training"]
        baseline = training.get("baseline") or {}
        n_unreadable = len(self._scan.unreadable) if self._scan else 0
        state = self._context.state
        summary = Summary(
            output=prepared.config.results.output,
            n_rows=sum(part.n_rows for part in self._all_parts),
            n_inputs=self._model.n_columns,
            n_features=self._model.n_features,
            n_bad=sum(part.n_bad for part in self._all_parts),
            n_parts=len(self._all_parts),
            device=self._context.devices,
            cost=_best_cost(training) if training else None,
            components=baseline.get("components"),
            mean=baseline.get("mean"),
            seconds=state.seconds,
            n_bad_shards=len(prepared.bad_shards) + n_unreadable,
            n_outside=sum(part.n_outside for part in self._parts),
            appended=None if prepared.finished is None else prepared.finished.counts(self._parts),
            verdict=self._verdict.verdict if self._verdict is not None and self._verdict.n_sampled else None,
            generation=self._generations.number if self._generations.number > 1 else None,
            compiling=state.seconds_compiling,
            gave_up=gave_up(training),
            n_components=self._model.network.n_features,
        )
        judgment = judge(asdict(summary), sample, prepared.config.flat(), self._facts.get("scan"))
        return replace(summary, judgment=judgment.remark), judgment

    def report(self, judgment: Judgment, sample: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return what only the report needs. Its size does not grow with the number of rows, shards or warnings."""
        prepared = self._prepared
        context = self._context
        state = context.state
        report = {
            "host": socket.gethostname(),
            "directory": str(self._journal.directory.resolve()),
            "device": asdict(context.device),
            "inputs": input_facts(prepared.shards),
            "stages": self._stages(),
            "cluster": context.pool.facts(),
            "memory": {"peak_bytes": peak_bytes()},
            "taken_over": list(state.reused.values()),
            "warnings": {"n": state.warnings.n, "first": state.warnings.first},
            "bad": bad_data_facts(
                prepared.shards, prepared.bad_shards, self._scan, prepared.config.bad_data.missing_value
            ),
            "last": last_run_facts(self._journal.base, prepared.whole_request.of_all()),
            "sample": sample,
            "judgment": asdict(judgment),
            **{name: facts for name, facts in self._facts.items() if name not in ("storage", "training")},
        }
        state.end_stage("report")
        return report

    def publish(self, summary: Summary, verification: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Write the index, which completes the run, and then the files that are derived from it."""
        prepared = self._prepared
        journal = self._journal
        views: list[Entry] = []
        files = in_views(self._indexed_files(), lambda name, data: views.append(journal.write(name, data)))
        generations = self._generations
        facts = RunFacts(
            config=self._config(),
            request=prepared.whole_request,
            keys=self._keys(),
            made=self._made,
            command=" ".join(self._context.command),
            device=self._context.devices,
            versions=versions(),
            storage=dict(self._facts["storage"]),
            bad_shards=self._bad_shards(),
            left_out=self._left_out(),
            masks=self._masks(),
            summary=asdict(summary),
            verification=dict(verification),
            generation=generations.number,
            generations=list(generations.earlier),
            maps=list(generations.maps),
            appends=self._appends(),
            contents=journal.contents,
            views=views,
            report=dict(report),
        )
        categories = stored_categories(prepared.shards[0].extras)  # the same in all shards
        append_ids = None
        if prepared.finished is not None:
            append_ids = [(part.append_id, part.n_rows) for part in self._all_parts]
        data = result_bytes(
            lambda file: write_index(file, files, categories, append_ids),
            self._model,
            facts,
            self._all_parts,
            generations.linear_maps,
            self._statistics(),
        )
        # The scan stays, because a later run with other settings of the training can use it.
        scans = [] if prepared.finished is not None else journal.records("scan", prepared.scan_key)
        journal.commit(data, generations.keeps_published, scans)
        warn_if_late(self._context.state.ends_by)
        _warn_of_many_parts(len(self._all_parts))
        write_derived(journal)
        journal.sweep()

    # -- private --

    def _shard(self, number: int) -> Shard:
        return self._prepared.shards[self._prepared.position(number)]

    def _config(self) -> dict[str, Any]:
        """Return the settings. Those of the training stay in an append, and those of the features are the same."""
        config = self._prepared.config
        if self._prepared.finished is None:
            return config.flat()
        inputs = {"input": list(config.inputs.input), "include": list(config.inputs.include)}
        return {**self._prepared.finished.result.facts.config, **inputs}

    def _keys(self) -> Keys:
        finished = self._prepared.finished
        if finished is not None:
            return finished.result.facts.keys
        unreadable = self._scan.unreadable if self._scan else {}
        return Keys(self._prepared.request.of_model(unreadable), self._encoded.key)

    def _bad_shards(self) -> list[dict[str, str]]:
        prepared = self._prepared
        if prepared.finished is None:
            return prepared.bad_shards
        names_now = {Path(bad["file"]).name for bad in prepared.bad_shards}
        names_now |= {Path(shard.path).name for shard in prepared.shards}
        before = prepared.finished.result.facts.bad_shards
        return [*(bad for bad in before if Path(bad["file"]).name not in names_now), *prepared.bad_shards]

    def _left_out(self) -> dict[str, str]:
        finished = self._prepared.finished
        before = {} if finished is None else finished.result.facts.left_out
        return {**before, **why_left_out(self._prepared.shards)}

    def _appends(self) -> list[dict[str, Any]]:
        """Return facts about all appends, including this one."""
        finished = self._prepared.finished
        if finished is None:
            return []
        drift = None if self._verdict is None else self._verdict.facts()
        return [
            *finished.result.facts.appends,
            {"id": finished.append_id, "made": self._made, **finished.counts(self._parts), "drift": drift},
        ]

    def _statistics(self) -> tuple[Mapping[str, np.ndarray], Mapping[str, Any]] | None:
        """Return the statistics with which appended rows are compared, for the next append."""
        if self._reference is not None:
            return self._reference.stored()
        finished = self._prepared.finished
        return None if finished is None else finished.result.statistics()

    def _stages(self) -> dict[str, dict[str, Any]]:
        """Return the times of each finished stage, and its rows and bytes if it processed all of them."""
        state = self._context.state
        stages = {}
        for stage, seconds in state.seconds.items():
            shards: Sequence[Shard] = ()
            if stage in ("scan", "encoding") and stage not in state.reused:
                shards = self._prepared.shards
            stages[stage] = {
                "seconds": seconds,
                "processor_seconds": state.processor_seconds[stage],
                "n_cores": len(os.sched_getaffinity(0)),
                "bound_by": state.bounds[stage],
                "n_rows": sum(shard.n_rows for shard in shards),
                "n_bytes": sum(shard.n_rows * shard.row_bytes for shard in shards),
            }
        return stages

    def _indexed_files(self) -> list[IndexedFile]:
        """Return the file of each part, with the shape and dtype of each dataset."""
        first = self._prepared.shards[0]
        n_features = self._prepared.config.network.n_outputs
        dtype = np.dtype(self._facts["storage"]["dtype"])
        encoded = {part.shard for part in self._parts}
        files: list[IndexedFile] = []
        for part in self._all_parts:
            # Appended shards have the extras of the earlier parts that are in the index.
            extras = self._shard(part.shard).extras if part.shard in encoded else first.extras
            files.append((part.file, part_shapes(part.n_rows, n_features, extras, dtype)))
        return files


def _all_parts(prepared: Prepared, parts: Sequence[Part]) -> list[Part]:
    """Return the parts of the results in the order of the rows: encoded ones, and those of an extended run."""
    if prepared.finished is None:
        return list(parts)
    return sorted([*prepared.finished.parts, *parts], key=lambda part: part.key)


def _best_cost(training: Mapping[str, Any]) -> float | None:
    if training["best_epoch"] < 0:
        return training["start_cost"]  # None if a training run without validation had no time
    best = training["history"][training["best_epoch"]]
    return float(best["cost"] if best["validation_cost"] is None else best["validation_cost"])


def _with_names(bad: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return the facts about a bad row, with the names of its columns if they are known."""
    if not columns.is_known:
        return dict(bad)
    return {**bad, "names": [columns.name_of(column) for column in bad["columns"]]}


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
