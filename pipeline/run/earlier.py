"""What an earlier run has left in the output directory: whether it is what is asked for, and what of it can be used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.cluster.executor import compute
from pipeline.cluster.threads import threads
from pipeline.errors import ConfigError, DataError, NoInput, shown
from pipeline.formats import MOST_JSON_BYTES
from pipeline.output.ledger import Ledger
from pipeline.output.publication import misplaced_names
from pipeline.output.records import SINGLE_FILE, Entry, Record, fault_of, plain_name
from pipeline.run.fingerprints import Request, differences, other_inputs, other_settings
from pipeline.run.job import Clock, Job, Prepared, rows_in, trained
from pipeline.settings.config import Config
from pipeline.settings.deadline import deadline_of, in_words

__all__ = [
    "QUARANTINE",
    "asked_for",
    "intact",
    "kept_deadline",
    "latest",
    "load_at_most",
    "passes",
    "plainly",
    "take_up",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

QUARANTINE = "quarantine.jsonl"
_LONGEST = 1000  # characters of a complaint
_ARCHIVE_BYTES = 2**20  # of what is beside the arrays in an archive


def take_up(ledger: Ledger, prepared: Prepared, clock: Clock) -> dict[str, Any] | None:
    """The manifest of an earlier run, if it is what is asked for; otherwise make ready to go on.

    Raises
    ------
    ConfigError
        When there are results of other settings or inputs, or an unfinished run of them, and no leave to replace them.
    """
    config = prepared.config
    request = prepared.request
    if config.results.restart:
        log.info("output=%s: beginning again", shown(ledger.directory))
        ledger.forget()
    ledger.sweep()  # what a killed run left half-written, before anything needs the room
    now = plainly(request)
    manifest = asked_for(ledger, prepared)
    if manifest is not None and not passes(manifest, prepared):
        log.info("output=%s: looked at again, since it is asked for otherwise", shown(ledger.directory))
    elif manifest is not None and _is_intact(ledger, manifest, prepared, clock):
        if ledger.request() == now:  # else somebody has begun to replace it, and may go on with that
            ledger.sweep(*manifest.get("kept", ()))
        return manifest
    deadline = kept_deadline(ledger, config, now, clock.began)
    clock.ends_by = None if deadline is None else deadline["ends_by"]
    # Before its first result, so that what an interrupted run leaves is known for what it is.
    ledger.set_request(now, deadline)
    return None


def kept_deadline(ledger: Ledger, config: Config, now: Mapping[str, Any], start: float) -> dict[str, Any] | None:
    """When a run that starts then is to be over: as set by its first start, unless that has passed.

    None where it may take its time; else ``ends_by``, in seconds since 1970, beside the settings that say so.
    """
    typed = deadline_of(config.timing, start)
    if typed is None:
        return None
    asked = {"finish_by": config.timing.finish_by, "max_hours": config.timing.max_hours}
    before = ledger.deadline() if ledger.request() == now else None
    if before is not None and asked == {name: before[name] for name in asked}:
        if before["ends_by"] > start:
            return before
        log.warning("deadline: %s has passed, the next one is %s", in_words(before["ends_by"]), in_words(typed))
    return {**asked, "ends_by": typed}


def asked_for(ledger: Ledger, prepared: Prepared) -> dict[str, Any] | None:
    """The manifest of a finished run, if this one is asked for the same; changes nothing.

    Raises
    ------
    ConfigError
        As `take_up`.
    """
    manifest = ledger.manifest()
    now = plainly(prepared.request)
    if manifest is None:
        _check_unfinished(ledger, prepared.config, now)
    elif manifest["fingerprint"] != prepared.request.of_all():
        _check_finished(ledger, prepared.config, manifest["request"], now)
        return None
    return manifest


def plainly(request: Request) -> dict[str, Any]:
    """A request as it comes back from a file: lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    return found


def latest(job: Job, kind: str, fingerprint: str, read: Callable[[Record], T], complaint: str) -> T | None:
    """The last result of a kind, made from `fingerprint`, that `read` can use; those behind it are dropped.

    Of each of those `complaint` is said, with the reason in place of its ``%s``.
    """
    for record in reversed(intact(job, job.ledger.records(kind, fingerprint))):
        try:
            return read(record)
        except (ValueError, DataError, NoInput) as error:  # of the file: what the system lacks ends the run
            log.warning(complaint, shown(str(error)[:_LONGEST]))  # a forged file may be quoted in it
            job.ledger.drop(record)
    return None


def load_at_most(ledger: Ledger, record: Record, array_bytes: int) -> bytes:
    """Return the content of a committed ``.npz`` file whose arrays take `array_bytes` bytes at most.

    Raises
    ------
    ValueError
        When it is longer, or not what was committed.
    """
    most = array_bytes + MOST_JSON_BYTES + _ARCHIVE_BYTES
    if record.entry.n_bytes > most:
        raise ValueError(f"file={shown(record.entry.file)}: {record.entry.n_bytes} bytes, expected {most} at most")
    return ledger.load(record)


def intact(job: Job, records: Iterable[Record]) -> list[Record]:
    """Those of `records` whose files are as they were committed; the others are dropped, and said so."""
    records = list(records)
    faults = _faults(job.ledger, [record.entry for record in records], job)
    # All at once: their records share files, each of which is written anew but once.
    job.ledger.drop(*(record for record, fault in zip(records, faults, strict=True) if fault))
    return [record for record, fault in zip(records, faults, strict=True) if not fault]


def _is_intact(ledger: Ledger, manifest: Mapping[str, Any], prepared: Prepared, clock: Clock) -> bool:
    lines = [*manifest["parts"], *manifest["files"]]
    faults = _faults(ledger, [Entry(line["file"], line["n_bytes"], line["blake3"]) for line in lines], prepared)
    misplaced = misplaced_names(ledger.directory, manifest)
    for name in misplaced:
        log.warning(
            "file=%s: does not lead to the file that was published; it is made anew", shown(ledger.directory / name)
        )
    clock.lap("verification")
    return not any(faults) and not misplaced


def _faults(ledger: Ledger, entries: Iterable[Entry], prepared: Prepared) -> list[str | None]:
    """What is wrong with each of these files, and said so; None where nothing is."""
    check = partial(fault_of, ledger.directory, digests=prepared.config.results.verify == "digests")
    n_threads = prepared.budget.n_threads
    with threads(n_threads) as pool:
        faults = compute([(check, entry) for entry in entries], pool, n_threads)
    ledger.check()
    for fault in filter(None, faults):
        log.warning("%s; it is made anew", fault)
    return faults


def _check_finished(ledger: Ledger, config: Config, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Results are replaced by leave only; those of other files are not what `overwrite` was said of."""
    where = f"output={shown(ledger.directory)}"
    changed = differences(before, now)
    if other_inputs(before, now):
        raise ConfigError(
            f"{where}: holds the results of other input files: {changed}. Choose another --output, or throw them away "
            "with --restart; --overwrite replaces results of the same files only."
        )
    if not config.results.overwrite:
        raise ConfigError(
            f"{where}: holds the results of another run, and this one differs: {changed}. Choose another --output, or "
            "replace them with --overwrite (what still fits is kept) or --restart."
        )
    log.info("%s: results are replaced, since: %s", where, changed)


def _check_unfinished(ledger: Ledger, config: Config, now: Mapping[str, Any]) -> None:
    """Nor is a training thrown away by a slip of the finger. What nobody can go back to is not worth a stop."""
    before = ledger.request() or now
    where = f"output={shown(ledger.directory)}"
    changed = differences(before, now)
    kept = _kept(ledger)
    if kept and other_inputs(before, now):
        raise ConfigError(
            f"{where}: holds an unfinished run of other input files ({kept}): {changed}. Choose another --output, or "
            "throw it away with --restart."
        )
    if kept and other_settings(before, now) and not config.results.overwrite:
        raise ConfigError(
            f"{where}: holds an unfinished run ({kept}), and this one differs: {changed}. Set that back to go on with "
            "it, choose another --output, or go on as set now with --overwrite (what still fits is kept)."
        )
    if changed and ledger.records():
        log.warning("this run differs from the last one here, and does anew what that touches: %s", changed)


def _kept(ledger: Ledger) -> str:
    """What an unfinished run has done that takes long, in words; nothing when its training has diverged."""
    if ledger.has_diverged():
        return ""  # to go on with it would diverge again
    last = ledger.records("checkpoint")[-1:]
    n_rows = rows_in(ledger.records("part"))
    done = ["trained"] if ledger.records("model") else [f"a checkpoint of {trained(checkpoint)}" for checkpoint in last]
    return ", ".join([*done, *([f"{n_rows} rows encoded"] if n_rows else [])])


def passes(manifest: Mapping[str, Any], prepared: Prepared) -> bool:
    """Whether bad data that earlier settings let pass do so still, and every file is there that these ones ask for."""
    config = prepared.config
    summary = manifest["summary"]
    written = {plain_name(line["file"]) for line in manifest["files"]}
    refused = manifest["bad_shards"], prepared.bad_shards
    before, now = ([Path(bad["file"]).name for bad in each] for each in refused)  # a data set may have been moved
    # As many rows and shards as there were: all that decides the results is the same.
    return (
        before == now
        and (QUARANTINE in written or config.bad_data.on_bad_data != "quarantine")
        and (SINGLE_FILE in written or not config.results.single_file)
        and summary["n_bad"] <= prepared.max_bad_rows
        and summary["n_bad_shards"] <= prepared.max_bad_shards
    )
