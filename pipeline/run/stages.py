"""The stages in order, and how an interrupted run goes on: the only file that knows them all."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernels import TILE_ROWS
from pipeline.device import start_device, theanos_errors
from pipeline.encoding.bad_data import Outside, Policy, farthest
from pipeline.encoding.encode import Encoded, encode_parts, plan_parts
from pipeline.encoding.singlefile import SINGLE_FILE, single_file
from pipeline.errors import ConfigError, DataError, WriteFailed, counted, shown
from pipeline.features import index_bytes
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk
from pipeline.output.groupcommit import GroupCommit
from pipeline.output.ledger import Entry, Ledger, Record, claim
from pipeline.run.budget import make_plan
from pipeline.run.earlier import QUARANTINE, earlier, n_allowed, trained
from pipeline.run.fingerprints import Request, request_of
from pipeline.run.job import Clock, Job, resolved
from pipeline.run.training_stage import autoencoder_of, fit, intact, scanned
from pipeline.scan.ranges import Scan
from pipeline.settings.config import Config, allowed, problems
from pipeline.shards.open import open_shards
from pipeline.shards.ridinglog import why_left_out
from pipeline.shards.vet import Shard

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["Summary", "run"]

log = logging.getLogger(__name__)

_OF_RECORDS = ("bad", "outside")  # facts of a part that its line of the manifest does not repeat
_MANY_OUTSIDE = 0.01  # of the rows


@dataclass(frozen=True)
class Summary:
    """What a finished run says at its end.

    Attributes
    ----------
    output : str
        Where the features are.
    n_rows, n_inputs, n_features, n_bad : int
        Rows, columns in, columns out, rows whose features are NaN.
    n_parts : int
        Feature files.
    device : str
        Where the products ran, and why there.
    cost : float or None
        The best epoch's validation cost, or training cost without validation; None without training.
    seconds : dict of str to float
        For each stage.
    n_bad_shards : int
        Shards that were left out, or could not be read.
    n_outside : int
        Rows outside the range that a given model was trained on.
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

    def __str__(self) -> str:
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        cost = "" if self.cost is None else f" Mean squared error {self.cost:.5f} in scaled units."
        bad = f" {counted(self.n_bad, 'bad row')} with NaN features." if self.n_bad else ""
        bad += f" {counted(self.n_bad_shards, 'bad shard')}." if self.n_bad_shards else ""
        bad += f" {counted(self.n_outside, 'row')} outside the model's range." if self.n_outside else ""
        rows, features = counted(self.n_rows, "row"), counted(self.n_features, "feature")
        return (
            f"{'Already complete' if self.before else 'Done'}: {rows} x {self.n_inputs} columns -> {features} in "
            f"{self.output}/index.h5 ({counted(self.n_parts, 'part')}).{cost}{bad} "
            f"Device: {self.device}. Time: {stages}."
        )


def run(
    config: Config,
    command: Sequence[str],
    disk: Disk | None = None,
    on_claim: Callable[[Path], object] = lambda directory: None,
) -> Summary:
    """Scan, train, encode; or what is left of it, when an earlier run in the same place was interrupted.

    Parameters
    ----------
    config : Config
    command : sequence of str
        The command line, for the outputs' attributes.
    disk : Disk, optional
        What makes every change to the file system.
    on_claim : callable
        Told the output directory once it is this run's own.

    Raises
    ------
    ShardpressError
        One of its kinds for whatever a user can mend. A note says how far the run came.
    """
    clock = Clock()
    _refuse(problems(config))
    shards, bad_shards = _open(config)
    n_rows, n_inputs = sum(shard.n_rows for shard in shards), shards[0].n_inputs
    if n_inputs == 1:
        raise DataError(
            f"file={shown(shards[0].path)} dataset={shown(shards[0].dataset)}: shape {shards[0].shape} has a single "
            "column, expected two or more: there is nothing to press together. Name another dataset with --dataset."
        )
    model = load_model(config.model) if config.model else None
    config = resolved(config, n_rows, n_inputs, model)
    _refuse(problems(config, n_rows, n_inputs) if model is None else _misfits(config, model, shards[0]))
    directory = Path(config.output)
    _refuse(_own_inputs(directory, shards) + _own_model(directory, config.model))
    assert config.n_features is not None
    make = partial(make_plan, config, shards, config.n_features, TILE_ROWS)
    request = request_of(config, shards, model, make(on_device=False))
    with claim(directory, disk) as ledger:
        on_claim(directory)
        manifest = earlier(ledger, request, config, bad_shards, clock)
        if manifest is not None:
            return Summary(**{**manifest["summary"], "output": config.output, "seconds": clock.seconds, "before": True})
        _check_space(ledger, config, shards, request)
        device = start_device(config)
        plan = make(on_device=device.used != "cpu")
        log.debug("plan: %s", plan)
        job = Job(config, command, shards, bad_shards, request, plan, ledger, device, clock)
        try:
            with theanos_errors():
                return _extract(job, model)
        except BaseException as error:
            error.add_note(_standing(job))
            raise


# -- before the start --------------------------------------------------------------------------------------------


def _open(config: Config) -> tuple[tuple[Shard, ...], list[dict[str, str]]]:
    """The shards, and those that were refused and may be left out."""
    if config.on_bad_data == "raise":
        return open_shards(
            config.input, config.dataset, followed=config.follow, orientation=config.orientation, carry=config.carry
        ), []
    refused: list[dict[str, str]] = []

    def refuse(path: Path, error: DataError) -> None:
        log.warning("%s This shard is left out.", error)
        refused.append({"file": str(path), "reason": str(error)})

    shards = open_shards(config.input, config.dataset, refuse, config.follow, config.orientation, config.carry)
    limit = allowed(config.max_bad_shards, len(shards) + len(refused))
    if len(refused) > limit:
        raise DataError(
            f"{len(refused)} of {len(shards) + len(refused)} shards are bad, expected {limit} at most "
            f"(--max-bad-shards {config.max_bad_shards}). The first: {refused[0]['reason']}"
        )
    return shards, refused


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise ConfigError("; ".join(found))


def _misfits(config: Config, model: Model, shard: Shard) -> list[str]:
    """What does not fit together about an old model and new shards."""
    where = f"model={shown(config.model)}"
    found = []
    if model.n_inputs != shard.n_inputs:
        found.append(f"{where}: made for {model.n_inputs} columns, found {shard.n_inputs} in file={shown(shard.path)}")
    if model.n_features != config.n_features:
        found.append(f"{where}: gives {model.n_features} features, found n_features {config.n_features}: leave it out")
    return found


def _own_inputs(directory: Path, shards: Sequence[Shard]) -> list[str]:
    """Shards that writing to `directory` would remove."""
    inside = [shard.path for shard in shards if directory.resolve() in Path(shard.path).resolve().parents]
    return [
        f"output={shown(directory)}: holds the input file={shown(path)}, expected another --output"
        for path in inside[:1]
    ]


def _own_model(directory: Path, model: str | None) -> list[str]:
    """A model that writing to `directory` would remove."""
    if model is None or directory.resolve() not in (Path(model).resolve(), Path(model).resolve().parent):
        return []
    return [f"output={shown(directory)}: holds the model itself and what it was trained on, expected another --output"]


def _check_space(ledger: Ledger, config: Config, shards: Sequence[Shard], request: Request) -> None:
    """A full disk is better met in the evening."""
    assert config.n_features is not None
    row_bytes = 4 * config.n_features + 1 + 8 * len(shards[0].riders)
    needed = sum(shard.n_rows for shard in shards) * row_bytes * (2 if config.single_file else 1)
    try:
        free = ledger.disk.free_bytes(ledger.directory)
    except OSError as error:
        log.debug("output=%s: how much is free there cannot be told: %s", shown(ledger.directory), error)
        return
    # Parts of this very model that are there already; which one it is, only the training tells.
    there = sum(record.entry.n_bytes for record in ledger.all_records("part"))
    if needed - there > free:
        raise WriteFailed(
            f"output={shown(ledger.directory)}: {free} bytes are free there, expected {needed - there} at least for "
            "the features. Free some space, or choose another --output."
        )


# -- the stages --------------------------------------------------------------------------------------------------


def _extract(job: Job, given: Model | None) -> Summary:
    found: Scan | None
    if given is None:
        model, autoencoder, found = fit(job)
    else:
        # Which rows are bad must be known before the first part is written.
        found = scanned(job) if job.tolerates_bad_data else None
        if found is not None:
            job.clock.lap("scan")
        model, autoencoder = given, autoencoder_of(job, given.scaler)
        autoencoder.set_parameters(given.parameters)
    records = _encode(job, model, autoencoder, _policy(job, given, found), job.of_features(model, found))
    _tell_outside(records)
    job.clock.lap("encoding")
    return _finish(job, model, records, given is None, found)


def _policy(job: Job, given: Model | None, found: Scan | None) -> Policy:
    config = job.config
    return Policy(
        on_bad_data=config.on_bad_data,
        missing=config.missing_value,
        unreadable={} if found is None else found.unreadable,
        out_of_range=config.out_of_range,
        minimum=None if given is None else given.scaler.minimum,
        maximum=None if given is None else given.scaler.maximum,
    )


def _encode(job: Job, model: Model, autoencoder: Autoencoder, policy: Policy, fingerprint: str) -> list[Record]:
    """Commit every part that is not there yet; the records of all of them, in the order of the rows."""
    ledger = job.ledger
    job.clock.features = fingerprint
    there = intact(job, ledger.records("part", fingerprint))
    parts, overlapping = plan_parts(job.shards, job.plan.part_rows, there)
    ledger.drop(*overlapping)
    if there and parts:
        n_rows = sum(record.facts["n_rows"] for record in there)
        there_are = f"{counted(n_rows, 'row')} in {counted(len(there), 'part')}"
        log.info("encoding: going on, an earlier run has committed %s", there_are)
    dtypes = [np.dtype(name) for name in sorted({shard.dtype for shard in job.shards})]
    if parts:
        for dtype in dtypes:
            # No rows, no work: it compiles before the progress starts to count.
            autoencoder.encode(np.empty((0, autoencoder.n_inputs), dtype=dtype))
    limit = n_allowed(job.config, job.config.max_bad_rows, sum(shard.n_rows for shard in job.shards))
    n_bad = 0

    def count(facts: Mapping[str, Any]) -> None:
        nonlocal n_bad
        n_bad += facts["n_bad"]
        if n_bad > limit:
            raise DataError(
                f"file={shown(facts['path'])} dataset={shown(facts['dataset'])} rows={facts['start']}:{facts['stop']}: "
                f"{counted(n_bad, 'bad row')} so far, expected {limit} at most (--max-bad-rows "
                f"{job.config.max_bad_rows}, --on-bad-data {job.config.on_bad_data}). Mend the files, or raise it."
            )

    for record in there:
        count(record.facts)

    about = {**job.about(), "model": model.fingerprint}
    n_callers = min(job.plan.n_threads, autoencoder.n_callers(dtypes))
    with GroupCommit(ledger) as group:

        def commit(done: Encoded) -> None:
            count(done.facts)
            group.add(Record(done.part.key, fingerprint, done.entry, done.facts))

        encode_parts(
            parts, ledger.write, autoencoder.encode_checked, job.n_features, job.plan, policy, about, commit, n_callers
        )
    return ledger.records("part", fingerprint)


def _tell_outside(records: Sequence[Record]) -> None:
    """Warn when many rows are not like those that a given model has learnt from."""
    n_rows, n_outside = (sum(record.facts[name] for record in records) for name in ("n_rows", "n_outside"))
    if n_outside > _MANY_OUTSIDE * n_rows:
        worst = farthest(Outside(*found) for record in records for found in record.facts.get("outside", []))
        log.warning(
            "%d of %d rows lie outside the range of the rows that the model was trained on, farthest in %s. Their "
            "features may mean little: train a model on such rows, or choose with --out-of-range.",
            *(n_outside, n_rows, "; ".join(map(str, worst))),
        )


def _finish(job: Job, model: Model, records: list[Record], is_trained: bool, found: Scan | None) -> Summary:
    """Write what stands beside the parts, the manifest last, and sweep away what is no longer needed."""
    ledger = job.ledger
    about = {**job.about(), "model": model.fingerprint}
    n_unreadable = len(found.unreadable) if found else 0
    summary = Summary(
        output=job.config.output,
        n_rows=sum(record.facts["n_rows"] for record in records),
        n_inputs=model.n_inputs,
        n_features=model.n_features,
        n_bad=sum(record.facts["n_bad"] for record in records),
        n_parts=len(records),
        device=str(job.device),
        cost=_best_cost(model.about["training"]) if is_trained else None,
        seconds=job.clock.seconds,
        n_bad_shards=len(job.bad_shards) + n_unreadable,
        n_outside=sum(record.facts["n_outside"] for record in records),
    )
    report = {
        "config": asdict(job.config),
        "device": asdict(job.device),
        "summary": asdict(summary),
        **({"training": model.about["training"]} if is_trained else {}),
    }
    nothing_rides = not any(shard.riders for shard in job.shards)
    alone = [(record.facts["n_rows"], model.n_features) for record in records] if nothing_rides else []
    index = index_bytes(ledger.directory, [record.entry.file for record in records], about, alone)
    files = {
        "model.h5": model.to_hdf5(),
        "encoder.npz": model.to_npz(),
        "index.h5": index,
        "report.json": (json.dumps(report, indent=1) + "\n").encode(),
    }
    if job.config.on_bad_data == "quarantine":
        files[QUARANTINE] = _quarantine(job, records)
    entries = [asdict(ledger.replace(name, data)) for name, data in files.items()]
    entries += [asdict(entry) for entry in _single_file(job, records, {**about, "n_bad": summary.n_bad})]
    lines = [{**asdict(r.entry), **{k: v for k, v in r.facts.items() if k not in _OF_RECORDS}} for r in records]
    request = job.request
    kept = [
        request.of_scan(),
        request.of_model() if found is None else job.of_model(found),
        job.of_features(model, found),
    ]
    ledger.finish(
        asdict(request),
        {
            **about,
            "fingerprint": request.of_all(),
            "kept": kept,
            "n_rows": summary.n_rows,
            "n_features": summary.n_features,
            "n_bad": summary.n_bad,
            "bad_shards": job.bad_shards,
            "left_out": why_left_out(job.shards),
            "summary": asdict(summary),
            "files": entries,
            "parts": lines,
        },
    )
    ledger.sweep(*kept)
    return summary


def _single_file(job: Job, records: Sequence[Record], about: Mapping[str, Any]) -> list[Entry]:
    """All rows in one file, when it is asked for or was: it is large, so one that is as it was written stays."""
    ledger, parts = job.ledger, [asdict(record.entry) for record in records]
    before = ledger.manifest() or {"parts": [], "files": []}
    is_same = [line["blake3"] for line in before["parts"]] == [part["blake3"] for part in parts]
    earlier = [
        Entry(line["file"], line["n_bytes"], line["blake3"])
        for line in before["files"]
        if is_same and line["file"] == SINGLE_FILE
    ]
    if earlier and not ledger.fault(earlier[0]):
        return earlier
    if not earlier and not job.config.single_file:
        return []
    entry = ledger.replace_by_pieces(
        SINGLE_FILE, single_file(ledger.directory, [part["file"] for part in parts], about)
    )
    job.clock.lap("single file")
    log.info("single file: %s, %.1f MB", shown(ledger.directory / SINGLE_FILE), entry.n_bytes / 1e6)
    return [entry]


def _quarantine(job: Job, records: Sequence[Record]) -> bytes:
    """One line of JSON for each bad shard and each bad row."""
    lines: list[dict[str, Any]] = [{**bad, "dataset": None, "row": None, "columns": []} for bad in job.bad_shards]
    for record in records:
        where = {"file": record.facts["path"], "dataset": record.facts["dataset"]}
        lines += [{**where, **bad} for bad in record.facts.get("bad", [])]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _best_cost(training: dict[str, Any]) -> float:
    best = training["history"][training["best_epoch"]]
    cost = best["cost"] if best["validation_cost"] is None else best["validation_cost"]
    return float(cost)


def _standing(job: Job) -> str:
    """How far a run came that did not finish."""
    stages = ", ".join(job.clock.seconds) or "nothing yet"
    checkpoints = job.ledger.records("checkpoint", job.clock.model) if job.clock.model else []
    if checkpoints:
        stages += f"; a checkpoint keeps {trained(checkpoints[-1])}"
    n_rows = sum(shard.n_rows for shard in job.shards)
    records = job.ledger.records("part", job.clock.features) if job.clock.features else []
    n_done = sum(record.facts["n_rows"] for record in records)
    return (
        f"Not finished after {job.clock.total:.1f} s in {shown(job.ledger.directory)}: stages done: {stages}; "
        f"{n_done} of {n_rows} rows have committed features."
    )
