"""The end of a run: its features are verified, and published with the files that accompany them."""

from __future__ import annotations

import json
import logging
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np

from pipeline.columns import Columns
from pipeline.encoding.index import index_files
from pipeline.encoding.partfile import part_shapes, stored_categories
from pipeline.encoding.parts import LISTED, PartFacts
from pipeline.encoding.whole import single_file
from pipeline.errors import VerificationFailed, counted, shown
from pipeline.features import Shape
from pipeline.model import Model
from pipeline.output.publication import Publication
from pipeline.output.records import SINGLE_FILE, Entry, fault_of, plain_name
from pipeline.report.facts import Drifted, bad_told, drift_told, inputs_told, last_told, looked_at
from pipeline.report.page.build import page_bytes, report_bytes
from pipeline.report.rows import Encoded, check_rows
from pipeline.report.sample import Looking, Made
from pipeline.run.deadline import gave_up, tell_if_late
from pipeline.run.earlier import QUARANTINE
from pipeline.run.job import Job, versions
from pipeline.run.memory import peak_bytes
from pipeline.scan.ranges import Scan
from pipeline.shards.riding import why_left_out
from pipeline.shards.shard import Block

__all__ = ["Summary", "again", "finish"]

log = logging.getLogger(__name__)

_OTHER_FILES = 32  # that a reader has open beside


@dataclass(frozen=True)
class Summary:
    """What a finished run says at its end.

    Attributes
    ----------
    n_bad, n_parts : int
        Rows whose features are NaN; feature files.
    device : str
        Where the products ran, and why there.
    cost : float or None
        The best epoch's validation cost, or training cost without validation; None without training.
    components, mean : float or None
        The same of as many principal components as there are features, and of the columns' mean; None where that was
        not asked for, without validation, and in the manifests of earlier versions.
    seconds : dict of str to float
        For each stage.
    n_bad_shards, n_outside : int
        Shards left out or not read; rows outside the range that a given model was trained on.
    compiling : float
        Seconds that the compiler has taken beside the stages, the first time on a machine.
    gave_up : str
        What was left undone to be over in time, in a sentence.
    before : bool
        Whether an earlier run had finished it all.
    """

    output: str
    n_rows: int
    n_inputs: int
    n_features: int
    n_bad: int
    n_parts: int
    device: str
    cost: float | None
    seconds: dict[str, float]
    n_bad_shards: int = 0
    n_outside: int = 0
    before: bool = False
    components: float | None = None
    mean: float | None = None
    compiling: float = 0.0
    gave_up: str = ""

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        stages += f", compiling for this machine, once, {self.compiling:.1f} s" if self.compiling else ""
        bad = f" {counted(self.n_bad, 'bad row')} with NaN features." if self.n_bad else ""
        bad += f" {counted(self.n_bad_shards, 'bad shard')}." if self.n_bad_shards else ""
        bad += f" {counted(self.n_outside, 'row')} outside the model's range." if self.n_outside else ""
        bad += f" {self.gave_up}" if self.gave_up else ""
        rows = counted(self.n_rows, "row")
        features = counted(self.n_features, "feature")
        return (
            f"{'Already complete' if self.before else 'Done'}: {rows} x {self.n_inputs} columns -> {features} in "
            f"{self.output}/index.h5 ({counted(self.n_parts, 'part')}).{self._errors()}{bad} "
            f"Device: {self.device}. Time: {stages}."
        )

    def _errors(self) -> str:
        if self.cost is None:
            return ""
        beside = ""
        if self.components is not None and self.mean is not None:
            of = counted(self.n_features, "principal component")
            beside = f" ({of}: {self.components:.3g}, the mean: {self.mean:.3g})"
        return f" Mean squared error {self.cost:.3g} in scaled units{beside}."


def finish(job: Job, model: Model, parts: Sequence[PartFacts], scan: Scan | None) -> Summary:
    """Publish the parts with the files that accompany them, and remove what is no longer needed."""
    verified = _verified(job, model, parts)
    unreadable = scan.unreadable if scan else {}
    attributes = {**job.about(model), "storage": _stored(job, parts)}
    summary = _summary(job, model, parts, len(unreadable))
    told = {"summary": asdict(summary), "storage": attributes["storage"], "verification": verified}
    report = _report(job, model, parts, scan, told)
    job.clock.lap("report")
    publication = job.ledger.publication()
    entries = [publication.write(name, data) for name, data in _files(job, model, parts, attributes, report)]
    entries += _single_file(job, publication, parts, {**attributes, "n_bad": summary.n_bad})
    kept = [job.request.of_scan(), job.of_model(unreadable), job.clock.features or ""]
    manifest = {
        **attributes,
        "fingerprint": job.request.of_all(),
        "kept": kept,
        "n_rows": summary.n_rows,
        "n_features": summary.n_features,
        "n_bad": summary.n_bad,
        "bad_shards": job.bad_shards,
        "left_out": why_left_out(job.shards),
        "summary": asdict(summary),
        "verification": verified,
        "files": [asdict(entry) for entry in entries],
        "parts": [part.line() for part in parts],
    }
    job.ledger.finish(asdict(job.request), manifest, publication)
    tell_if_late(job.clock.ends_by)
    if not job.config.results.single_file:
        _tell_if_many(len(parts))
    # Only now: until the manifest named others, readers followed it to an earlier run's results.
    job.ledger.sweep(*kept)
    return summary


def _verified(job: Job, model: Model, parts: Sequence[PartFacts]) -> dict[str, Any]:
    """What comes of reading some features back from their files, and encoding their rows again.

    Raises
    ------
    VerificationFailed
        When they differ; the parts in which they do are not there any more then.
    """
    how = _encoded(job, model)
    directory = job.ledger.directory
    lines = [part.line() for part in parts]
    found = check_rows(directory, lines, lambda part: job.shards[part["shard"]], how)
    job.ledger.check()
    if found.faults:
        wrong = {fault.file for fault in found.faults}
        fingerprint = job.clock.features or ""
        job.ledger.drop(*(part.record(fingerprint) for part in parts if part.entry.file in wrong))
        where = shown(directory / found.faults[0].file)
        first = found.faults[0].fault
        raise VerificationFailed(
            f"file={where}: {first}; {len(wrong)} of {counted(len(parts), 'part')} hold what they should not. Type the "
            "same command again, and these are made anew. If that ends here too, check the memory of this machine and "
            "of its device, or let THEANO_FLAGS=optimizer_excluding=fused compute otherwise."
        )
    for each in found.unchecked:
        log.warning("file=%s: features of its rows are not verified: %s", shown(each.file), each.fault)
    job.clock.lap("verification")
    log.info("verification: %s", found)
    return asdict(found)


def again(manifest: Mapping[str, Any], output: str, seconds: dict[str, float]) -> Summary:
    """What an earlier run said at its end, said again of where its results lie now."""
    return Summary(**{**manifest["summary"], "output": output, "seconds": seconds, "compiling": 0.0, "before": True})


def _summary(job: Job, model: Model, parts: Sequence[PartFacts], n_unreadable: int) -> Summary:
    training = {} if job.given is not None else model.about["training"]
    baseline = training.get("baseline") or {}  # not known to an earlier version, or not asked for
    return Summary(
        output=job.config.results.output,
        n_rows=sum(part.n_rows for part in parts),
        n_inputs=model.n_inputs,
        n_features=model.n_features,
        n_bad=sum(part.n_bad for part in parts),
        n_parts=len(parts),
        device=job.devices,
        cost=_best_cost(training) if training else None,
        components=baseline.get("components"),
        mean=baseline.get("mean"),
        seconds=job.clock.seconds,  # the very dict: the lap of the single file is still to come
        n_bad_shards=len(job.bad_shards) + n_unreadable,
        n_outside=sum(part.n_outside for part in parts),
        compiling=job.clock.compiling,
        gave_up=gave_up(training),
    )


def _best_cost(training: dict[str, Any]) -> float | None:
    if training["best_epoch"] < 0:
        return training["start_cost"]  # not known where it is not watched, of a training that had no time
    best = training["history"][training["best_epoch"]]
    return float(best["cost"] if best["validation_cost"] is None else best["validation_cost"])


def _files(
    job: Job, model: Model, parts: Sequence[PartFacts], attributes: Mapping[str, Any], report: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what stands beside the parts, each made when the one before it is written."""
    yield "model.h5", model.to_hdf5()
    yield "encoder.npz", model.to_npz()
    yield from _index(job, parts, attributes)
    yield "report.json", report_bytes(report)
    yield "report.html", page_bytes(report)
    if job.config.bad_data.on_bad_data == "quarantine":
        yield QUARANTINE, _quarantine(job, parts)


def _index(job: Job, parts: Sequence[PartFacts], attributes: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    n_features = job.config.network.n_features
    dtype = np.dtype(attributes["storage"]["dtype"])

    def viewed(part: PartFacts) -> tuple[str, dict[str, Shape]]:
        return part.entry.file, part_shapes(part.n_rows, n_features, job.shards[part.shard].riders, dtype)

    return index_files(parts, viewed, stored_categories(job.shards[0].riders), attributes)  # these are the same in all


def _tell_if_many(n_parts: int) -> None:
    """HDF5 keeps every part open that it has read by a view, and takes those that it cannot open for missing ones."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if n_parts > most - _OTHER_FILES:
        log.warning(
            "index.h5 is a view of %d files, and a process may have %d open (ulimit -n): who reads them all by HDF5 "
            "itself gets NaN for the last ones, and no error. Raise that limit there, or read with open_features(), "
            "which opens one at a time, or write one file with --single-file.",
            *(n_parts, most),
        )


def _stored(job: Job, parts: Sequence[PartFacts]) -> dict[str, Any]:
    """How features are stored, how far that moves them at most, and the bytes of their files."""
    return {
        "dtype": parts[0].dtype or "float32",
        "compression": job.config.storage.compression,
        "max_error": max(part.max_error or 0.0 for part in parts),
        "n_bytes": sum(part.entry.n_bytes for part in parts),
    }


def _report(
    job: Job, model: Model, parts: Sequence[PartFacts], scan: Scan | None, told: Mapping[str, Any]
) -> dict[str, Any]:
    """Every number of the run; how many there are does not depend on how many rows, shards or warnings."""
    config = job.config
    clock = job.clock
    request = job.request.of_all()
    sample = _sample(job, model, parts)  # first, since what fails there is a warning
    report = {
        "made": datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": " ".join(job.command),
        "config": config.flat(),
        "device": asdict(job.device),
        "versions": versions(),
        "fingerprints": {"request": request, "model": model.fingerprint},
        "inputs": inputs_told(job.shards),
        **told,
        "stages": _stages(job),
        "cluster": job.crew.facts(),
        "memory": {"peak_bytes": peak_bytes()},
        "taken_over": list(clock.taken_over.values()),
        "warnings": {"n": clock.warnings.n, "first": clock.warnings.first},
        "bad": bad_told(job.shards, job.bad_shards, scan, config.bad_data.missing_value),
        **last_told(job.ledger.directory, request),
        "sample": sample,
    }
    if job.given is None:
        report["training"] = model.about["training"]
    else:
        report["drift"] = drift_told(job.shards, [_drifted(part) for part in parts], config.bad_data.on_drift)
    if scan is not None:
        report["scan"] = scan.summary()
    return report


def _drifted(part: PartFacts) -> Drifted:
    is_whole = len(part.outside) < LISTED and all(one.n_values for one in part.outside)
    return Drifted(part.shard, part.n_rows, part.n_outside, part.outside, is_whole)


def _sample(job: Job, model: Model, parts: Sequence[PartFacts]) -> dict[str, Any] | None:
    config = job.config
    folder = job.ledger.directory
    made = [Made(Block(job.shards[part.shard], part.start, part.stop), folder / part.entry.file) for part in parts]
    how = _encoded(job, model)
    return looked_at(made, Looking(model, how.missing, how.clips, config.machine.memory_budget, config.training.seed))


def _encoded(job: Job, model: Model) -> Encoded:
    settings = job.config.bad_data
    clips = job.given is not None and settings.on_drift == "clip"
    return Encoded(model, settings.missing_value, clips)


def _stages(job: Job) -> dict[str, dict[str, Any]]:
    """Of each stage that is over, what it has done in which time; rows only where it has dealt with all of them."""
    n_rows = job.n_rows
    n_bytes = sum(shard.n_rows * shard.row_bytes for shard in job.shards)
    clock = job.clock
    whole = {"scan", "encoding"} - clock.taken_over.keys()
    return {
        stage: {
            "seconds": seconds,
            "processor_seconds": clock.processor_seconds[stage],
            "n_cores": len(os.sched_getaffinity(0)),
            "bound_by": clock.bounds[stage],
            "n_rows": n_rows if stage in whole else 0,
            "n_bytes": n_bytes if stage in whole else 0,
        }
        for stage, seconds in clock.seconds.items()
    }


def _quarantine(job: Job, parts: Sequence[PartFacts]) -> bytes:
    """One line of JSON for each bad shard and each bad row."""
    lines: list[dict[str, Any]] = [{**bad, "dataset": None, "row": None, "columns": []} for bad in job.bad_shards]
    for part in parts:
        lines += [{"file": part.path, "dataset": part.dataset, **_with_names(bad, job.columns)} for bad in part.bad]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _with_names(bad: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return what is known of a bad row, with the names of its columns if they have any."""
    if not columns.is_known:
        return dict(bad)
    return {**bad, "names": [columns.name_of(column) for column in bad["columns"]]}


def _single_file(
    job: Job, publication: Publication, parts: Sequence[PartFacts], attributes: Mapping[str, Any]
) -> list[Entry]:
    """All rows in one file, when it is asked for or was: it is large, so one that is as it was written stays."""
    ledger = job.ledger
    # The manifest is the last one's still, and tells what that file was made of.
    before = ledger.manifest() or {"parts": [], "files": []}
    is_same = [line["blake3"] for line in before["parts"]] == [part.entry.blake3 for part in parts]
    earlier = [Entry(**line) for line in before["files"] if is_same and plain_name(line["file"]) == SINGLE_FILE]
    if earlier and not fault_of(ledger.directory, earlier[0]):
        return [publication.reuse(SINGLE_FILE, earlier[0])]
    if not earlier and not job.config.results.single_file:
        return []
    content = single_file(ledger.directory, [part.entry.file for part in parts], attributes)
    entry = publication.write(SINGLE_FILE, content)
    job.clock.lap("single file")
    log.info("single file: %s, %.1f MB", shown(ledger.directory / SINGLE_FILE), entry.n_bytes / 1e6)
    return [entry]
