"""The end of a run: verify the features, and publish them with the files that accompany them."""

from __future__ import annotations

import json
import logging
import os
import resource
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from shardpress.columns import Columns
from shardpress.encoding.index import index_files
from shardpress.encoding.partfile import part_shapes, stored_categories, stored_masks
from shardpress.encoding.parts import PartFacts
from shardpress.errors import VerificationFailed, printable, quantity
from shardpress.features import Shape
from shardpress.model import Model
from shardpress.report.facts import bad_data_facts, input_facts, last_run_facts, sample_facts
from shardpress.report.judgment import Judgment, judge
from shardpress.report.measures import LabelChoice
from shardpress.report.newrows import Verdict
from shardpress.report.page.build import page_bytes, report_bytes
from shardpress.report.rows import Preprocessing, RowCheck, check_rows
from shardpress.report.sample import PartSource, SampleSpec, largest_sample
from shardpress.run.context import RunContext, versions
from shardpress.run.deadline import gave_up, warn_if_late
from shardpress.run.encoding_stage import Encoded
from shardpress.run.finished import FinishedRun
from shardpress.run.generations import Generations, count_generations, kept_keys
from shardpress.run.memory import block_bytes, peak_bytes, trained_network_bytes
from shardpress.run.new_rows import check_verdict, reference_key, verdict_on
from shardpress.run.prepare import Prepared
from shardpress.run.resume import (
    BAD_ROWS,
    EarlierResults,
    drop_replaced,
    finished_manifest,
    is_acceptable,
    plain_request,
)
from shardpress.run.summary import Summary
from shardpress.run.trained import trained_in
from shardpress.scan.ranges import Scan
from shardpress.shards.extras import why_left_out
from shardpress.shards.shard import Block, Shard

log = logging.getLogger(__name__)

_MAX_APPENDS = 200  # appends in the report; the manifest lists all of them
_OTHER_OPEN_FILES = 32  # open files of a process in addition to the files of index.h5


@dataclass(frozen=True)
class StageResults:
    """Results of the stages before the last one."""

    scan: Scan | None  # None if the rows were not scanned, which can happen with a given model
    model: Model
    encoded: Encoded
    facts: Mapping[str, Any]  # for the report; ``storage`` is also stored in the manifest


def load_finished(prepared: Prepared, earlier: EarlierResults) -> Summary | None:
    """Return the summary of a finished run with the same request whose files are intact, or None.

    Raise `ConfigError` if there are results of other settings or inputs that must not be replaced.
    """
    manifest = finished_manifest(earlier.ledger, prepared)
    if manifest is None:
        return None
    if not is_acceptable(manifest, prepared):
        log.info(
            "output=%s: the finished results lack a requested file or exceed the new limits; updating them",
            printable(earlier.ledger.directory),
        )
        return None
    if not earlier.is_published_intact(manifest):
        return None
    return Summary.of_manifest(manifest, prepared.config.results.output)


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
    report = steps.report(summary, judgment, verification, sample)
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
        self._ledger = context.ledger
        self._scan = results.scan
        self._model = results.model
        self._encoded = results.encoded
        self._parts = results.encoded.parts
        self._all_parts = _all_parts(prepared, self._parts)
        self._facts = results.facts
        # These results stay in the directory, so that a later run can reuse them.
        unreadable = results.scan.unreadable if results.scan else {}
        self._kept_keys = [prepared.scan_key, prepared.request.of_model(unreadable), results.encoded.key]
        if prepared.finished is not None:
            self._kept_keys = [*prepared.finished.manifest["kept"], results.encoded.key]
            self._kept_keys.append(reference_key(prepared.finished))
        self._attributes = {**context.attributes(prepared, results.model), "storage": results.facts["storage"]}
        settings = prepared.config.bad_data
        clips = prepared.has_other_rows and settings.on_drift == "clip"
        self._preprocessing = Preprocessing(results.model, settings.missing_value, clips)
        self._verdict: Verdict | None = None
        self._generations = Generations()
        self._made = datetime.now().astimezone().isoformat(" ", "seconds")

    def verify(self) -> dict[str, Any]:
        """Recompute the features of some rows, compare them with the stored ones, and drop parts that differ."""
        lines = [part.line() for part in self._parts]
        checked = check_rows(
            self._ledger.directory, lines, lambda part: self._shard(part["shard"]), self._preprocessing
        )
        self._ledger.check()
        if checked.faults:
            raise self._verification_error(checked)
        for each in checked.unchecked:
            log.warning("file=%s: its features could not be verified: %s", printable(each.file), each.fault)
        self._context.state.end_stage("verification")
        log.info("verification: %s", checked)
        return asdict(checked)

    def _verification_error(self, checked: RowCheck) -> VerificationFailed:
        """Drop the parts in which features differ, and return the error that reports them."""
        files = {fault.file for fault in checked.faults}
        wrong = [part for part in self._parts if part.entry.file in files]
        self._ledger.drop(*(part.record(self._encoded.key) for part in wrong))
        first = checked.faults[0]
        return VerificationFailed(
            f"file={printable(self._ledger.directory / first.file)}: {first.fault}; {len(files)} of "
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
        self._verdict = verdict_on(self._sources(new), new, self._sample_spec(), self._prepared, self._context)
        self._context.state.end_stage("verdict")
        check_verdict(self._verdict, self._ledger.directory, self._prepared.config.results.on_append_drift)

    def count_generations(self, probe: Mapping[str, Any] | None) -> None:
        """Determine the generation, and fit maps from its features to those of earlier ones."""
        labels = None if probe is None else str(probe["labels"])
        results = self._prepared.config.results
        self._generations = count_generations(self._ledger, self._features(), results, labels)
        if self._generations.keys:
            self._context.state.end_stage("maps")

    def _features(self) -> dict[str, Any]:
        """Return the entries of the manifest that describe the features, before it is published."""
        return {
            "parts": [part.line() for part in self._all_parts],
            "n_features": self._model.n_features,
            "model": self._model.fingerprint,
            "request": plain_request(self._prepared.whole_request),
        }

    def _sources(self, parts: Sequence[PartFacts]) -> list[PartSource]:
        folder = self._ledger.directory
        sources = []
        for part, trained in zip(parts, trained_in(parts, self._all_parts, self._prepared), strict=True):
            block = Block(self._shard(part.shard), part.start, part.stop)
            sources.append(PartSource(block, folder / part.entry.file, trained, part.lost or {}))
        return sources

    def _masks(self) -> dict[str, str]:
        """Return the datasets that mark the rows with a value of another dataset, by the name of that dataset."""
        masks = stored_masks(self._prepared.shards[0].extras)
        finished = self._prepared.finished
        if finished is not None and finished.parts:  # the parts that stay have masks, too
            masks |= finished.manifest.get("masks", {})
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

    def report(
        self,
        summary: Summary,
        judgment: Judgment,
        verification: Mapping[str, Any],
        sample: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """Return the content of report.json. Its size does not grow with the number of rows, shards or warnings."""
        prepared = self._prepared
        context = self._context
        config = prepared.config
        state = context.state
        request = prepared.whole_request.of_all()
        report = {
            "made": self._made,
            "host": socket.gethostname(),
            "directory": str(self._ledger.directory.resolve()),
            "command": " ".join(context.command),
            "config": config.flat(),
            "device": asdict(context.device),
            "versions": versions(),
            "fingerprints": {"request": request, "model": self._model.fingerprint},
            "target": self._model.target,
            "inputs": input_facts(prepared.shards),
            "summary": asdict(summary),
            "verification": verification,
            "stages": self._stages(),
            "cluster": context.pool.facts(),
            "memory": {"peak_bytes": peak_bytes()},
            "taken_over": list(state.reused.values()),
            "warnings": {"n": state.warnings.n, "first": state.warnings.first},
            "bad": bad_data_facts(prepared.shards, prepared.bad_shards, self._scan, config.bad_data.missing_value),
            "last": last_run_facts(self._ledger.directory, request),
            "sample": sample,
            "judgment": asdict(judgment),
            **self._facts,
        }
        report["generations"] = self._generations.facts()
        if prepared.finished is not None:
            report["appends"] = self._appends(prepared.finished)[-_MAX_APPENDS:]
        state.end_stage("report")
        return report

    def publish(self, summary: Summary, verification: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Write the files that accompany the parts; the manifest comes last and makes all of them visible."""
        prepared = self._prepared
        publication = self._ledger.publication()
        entries = [publication.write(name, data) for name, data in self._files(report)]
        generations = self._generations
        entries += generations.entries
        manifest = {
            **self._attributes,
            "fingerprint": prepared.whole_request.of_all(),
            **generations.facts(),
            "kept": [*dict.fromkeys([*self._kept_keys, *generations.keys])],
            "n_rows": summary.n_rows,
            "n_features": summary.n_features,
            "n_bad": summary.n_bad,
            "bad_shards": prepared.bad_shards,
            "left_out": why_left_out(prepared.shards),
            "masks": self._masks(),
            "summary": asdict(summary),
            "verification": verification,
            "files": [asdict(entry) for entry in entries],
            "parts": [part.line() for part in self._all_parts],
        }
        if prepared.finished is not None:
            manifest |= self._append_facts(prepared.finished)
        self._ledger.finish(plain_request(prepared.whole_request), manifest, publication)
        warn_if_late(self._context.state.ends_by)
        _warn_of_many_parts(len(self._all_parts))
        if prepared.finished is not None:
            drop_replaced(self._ledger, manifest)
        # The sweep comes last: until the new manifest is published, readers use the results that the old one lists.
        self._ledger.sweep(*kept_keys(manifest))

    # -- private --

    def _shard(self, number: int) -> Shard:
        return self._prepared.shards[self._prepared.position(number)]

    def _append_facts(self, finished: FinishedRun) -> dict[str, Any]:
        """Return the entries of the manifest that an append keeps or extends."""
        before = finished.manifest
        inputs = self._prepared.config.inputs
        names_now = {Path(bad["file"]).name for bad in self._prepared.bad_shards}
        names_now |= {Path(shard.path).name for shard in self._prepared.shards}
        bad_shards = [bad for bad in before["bad_shards"] if Path(bad["file"]).name not in names_now]
        return {
            # The settings of the training stay, and those of the features are the same.
            "config": {**before["config"], "input": list(inputs.input), "include": list(inputs.include)},
            "bad_shards": [*bad_shards, *self._prepared.bad_shards],
            "left_out": {**before.get("left_out", {}), **why_left_out(self._prepared.shards)},
            "appends": self._appends(finished),
        }

    def _appends(self, finished: FinishedRun) -> list[dict[str, Any]]:
        """Return facts about all appends, including this one."""
        drift = None if self._verdict is None else self._verdict.facts()
        return [
            *finished.appends,
            {"id": finished.append_id, "made": self._made, **finished.counts(self._parts), "drift": drift},
        ]

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

    def _files(self, report: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Yield names and contents of the files next to the parts. Each is built after the previous one is written."""
        yield "model.h5", self._model.to_hdf5()
        yield from self._index()
        yield "report.json", report_bytes(report)
        yield "report.html", page_bytes(report)
        if self._prepared.allows_bad_data:
            yield BAD_ROWS, self._bad_rows()

    def _index(self) -> Iterator[tuple[str, bytes]]:
        first = self._prepared.shards[0]
        n_features = self._prepared.config.network.n_outputs
        dtype = np.dtype(self._attributes["storage"]["dtype"])
        encoded = {part.shard for part in self._parts}

        def shapes_of(part: PartFacts) -> tuple[str, dict[str, Shape]]:
            # Appended shards have the extras of the earlier parts that are in the index.
            extras = self._shard(part.shard).extras if part.shard in encoded else first.extras
            return part.entry.file, part_shapes(part.n_rows, n_features, extras, dtype)

        categories = stored_categories(first.extras)  # the same in all shards
        append_ids = None
        if self._prepared.finished is not None:
            append_ids = [(part.append_id or 0, part.n_rows) for part in self._all_parts]
        return index_files(self._all_parts, shapes_of, categories, self._attributes, append_ids)

    def _bad_rows(self) -> bytes:
        """Return one line of JSON for each bad shard and each bad row."""
        columns = self._prepared.columns
        lines: list[dict[str, Any]] = []
        for bad in self._prepared.bad_shards:
            lines.append({**bad, "dataset": None, "row": None, "columns": []})
        # Parts of an extended run come from its manifest, which has no lists of bad rows.
        lists = {record.entry.file: record.facts.get("bad", ()) for record in self._ledger.records("part")}
        for part in self._all_parts:
            for bad in part.bad or lists.get(part.entry.file, ()):
                lines.append({"file": part.path, "dataset": part.dataset, **_with_names(bad, columns)})
        return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _all_parts(prepared: Prepared, parts: Sequence[PartFacts]) -> list[PartFacts]:
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
