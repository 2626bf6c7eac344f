"""Results of earlier runs in the output directory: which of them are reused, and whether others can be replaced."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.encoding.parts import PartFacts
from shardpress.errors import ConfigError, DataError, NoInput, printable
from shardpress.formats import MOST_JSON_BYTES
from shardpress.output.ledger import Ledger
from shardpress.output.publication import misplaced_names
from shardpress.output.records import Entry, Record, fault_of, plain_name
from shardpress.run.fingerprints import (
    Request,
    can_append,
    differences,
    may_only_add_extras,
    other_inputs,
    other_settings,
    shares_inputs,
)
from shardpress.run.prepare import Prepared
from shardpress.settings.config import Config
from shardpress.settings.deadline import deadline_of, in_words

log = logging.getLogger(__name__)

T = TypeVar("T")

BAD_ROWS = "bad_rows.jsonl"
_MAX_COMPLAINT = 1000  # characters of an error that a warning quotes
_SIZES_PER_TASK = 100  # files whose sizes a task compares
_ARCHIVE_BYTES = 2**20  # maximum size of a .npz file in addition to its arrays


# -- results -----------------------------------------------------------------------------------------------------------


class EarlierResults:
    """Committed results of an output directory. Each file is checked once, before it is used.

    Files are compared by their sizes or also by their digests. If the object is read-only, as `shardpress plan`
    requires, damaged results are kept, and nothing is logged.
    """

    def __init__(self, ledger: Ledger, n_threads: int, compares_digests: bool, is_readonly: bool = False) -> None:
        self.ledger = ledger
        self._n_threads = n_threads
        self._compares_digests = compares_digests
        self._is_readonly = is_readonly
        self._faults: dict[Entry, str | None] = {}

    def records(self, kind: str, key: str) -> list[Record]:
        """Return records of a kind that were made from the fingerprint `key`, in the order of their keys.

        Records with damaged files are logged and dropped first.
        """
        records = self.ledger.records(kind, key)
        faults = self.faults(record.entry for record in records)
        damaged = [record for record, fault in zip(records, faults, strict=True) if fault]
        # All in one call, because they can share a file of records, which is then written only once.
        self.drop(*damaged)
        return [record for record, fault in zip(records, faults, strict=True) if not fault]

    def latest(self, kind: str, key: str, read: Callable[[Record], T], complaint: str) -> T | None:
        """Return the last result of a kind, made from `key`, that `read` accepts, or None.

        Later results, for which `read` raises `ValueError`, `DataError` or `NoInput`, are dropped. For each of them,
        `complaint` is logged with the reason in place of ``%s``.
        """
        for record in reversed(self.records(kind, key)):
            try:
                return read(record)
            except (ValueError, DataError, NoInput) as error:
                # Other errors concern the system, not the file, and end the run.
                if not self._is_readonly:
                    log.warning(complaint, printable(str(error)[:_MAX_COMPLAINT]))  # may quote a forged file
                self.drop(record)
        return None

    def drop(self, *records: Record) -> None:
        if not self._is_readonly:
            self.ledger.drop(*records)

    def faults(self, entries: Iterable[Entry]) -> list[str | None]:
        """Return the fault of each file, or None for an intact file; log the faults."""
        entries = list(entries)
        unchecked = [entry for entry in entries if entry not in self._faults]
        check = partial(_faults_of, self.ledger.directory, digests=self._compares_digests)
        # A size takes less time than a task.
        n_per_task = 1 if self._compares_digests else _SIZES_PER_TASK
        batches = [unchecked[start : start + n_per_task] for start in range(0, len(unchecked), n_per_task)]
        found: list[str | None] = []
        if batches:  # starting a pool takes as long as comparing many sizes
            with threads(self._n_threads) as pool:
                results = compute([(check, batch) for batch in batches], pool, self._n_threads)
            found = [fault for batch in results for fault in batch]
        self._faults.update(zip(unchecked, found, strict=True))
        if not self._is_readonly:
            self.ledger.check()
            for fault in filter(None, found):
                log.warning("%s; it is recomputed", fault)
        return [self._faults[entry] for entry in entries]

    def is_published_intact(self, manifest: Mapping[str, Any]) -> bool:
        """Return whether the files of a finished run are unchanged since they were published."""
        lines = [*manifest["parts"], *manifest["files"]]
        faults = self.faults(Entry(line["file"], line["n_bytes"], line["blake3"]) for line in lines)
        misplaced = misplaced_names(self.ledger.directory, manifest)
        for name in misplaced:
            log.warning(
                "file=%s: is not a link to the published file; it is recomputed",
                printable(self.ledger.directory / name),
            )
        return not any(faults) and not misplaced


def _faults_of(directory: Path, entries: Sequence[Entry], digests: bool) -> list[str | None]:
    return [fault_of(directory, entry, digests) for entry in entries]


def load_at_most(ledger: Ledger, record: Record, array_bytes: int) -> bytes:
    """Return the content of a committed ``.npz`` file whose arrays have at most `array_bytes` bytes.

    Raise `ValueError` if the file is longer, or its content has changed since the commit.
    """
    most = array_bytes + MOST_JSON_BYTES + _ARCHIVE_BYTES
    if record.entry.n_bytes > most:
        raise ValueError(f"file={printable(record.entry.file)}: {record.entry.n_bytes} bytes, expected at most {most}")
    return ledger.load(record)


def step_of(checkpoint: Record) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.key.split("-")[1])


def checkpoint_in_words(checkpoint: Record) -> str:
    facts = checkpoint.facts
    epochs = ""
    if "of" in facts:  # a forged record has none
        epochs = f"{facts['n_epochs']} of {facts['of']} epochs, "
    return f"{epochs}step {step_of(checkpoint)}"


def n_rows_in(parts: Iterable[Record]) -> int:
    return sum(PartFacts.from_record(record).n_rows for record in parts)


# -- requests ----------------------------------------------------------------------------------------------------------


def stored_deadline(ledger: Ledger, config: Config, now: Mapping[str, Any], start: float) -> dict[str, Any] | None:
    """Return the deadline of a run that starts at `start`: ``ends_by`` (seconds since 1970) and ``finish_by``.

    None if the run has no deadline. A run that is resumed keeps the deadline of its first start, unless that deadline
    has passed.
    """
    ends_by = deadline_of(config.timing, start)
    if ends_by is None:
        return None
    requested = config.timing.finish_by
    before = ledger.deadline() if ledger.request() == now else None
    if before is not None and before["finish_by"] == requested:
        if before["ends_by"] > start:
            return before
        log.warning("deadline: %s has passed; the new deadline is %s", in_words(before["ends_by"]), in_words(ends_by))
    return {"finish_by": requested, "ends_by": ends_by}


def drop_replaced(ledger: Ledger, manifest: Mapping[str, Any]) -> None:
    """Remove parts that an append has replaced, once its manifest is published.

    They have the fingerprints of parts that stay, so a sweep does not remove them.
    """
    kept = set(manifest["kept"])
    files = {part["file"] for part in manifest["parts"]}
    parts = [record for record in ledger.records("part") if record.entry.file not in files]
    ledger.drop(*(record for record in parts if record.fingerprint in kept))


def adds_extras_to(ledger: Ledger, prepared: Prepared) -> bool:
    """Return whether a run names the files and settings of the finished run in its output, and extras in addition.

    Unless rows have changed, an append can add these extras. With `--overwrite`, `--retrain` and `--restart`, a user
    requests a new run.
    """
    results = prepared.config.results
    if results.append or results.overwrite or results.retrain or results.restart or not prepared.config.inputs.include:
        return False
    manifest = ledger.manifest(warn=False)
    if manifest is None or manifest["fingerprint"] == prepared.request.of_all():
        return False
    return may_only_add_extras(manifest["request"], plain_request(prepared.request))


def finished_manifest(ledger: Ledger, prepared: Prepared) -> dict[str, Any] | None:
    """Return the manifest of a finished run with the same request, or None. Nothing is changed.

    Raise `ConfigError` if there are other results, and the settings do not allow replacing them.
    """
    manifest = ledger.manifest()
    now = plain_request(prepared.request)
    if manifest is None:
        _check_unfinished(ledger, prepared.config, now)
    elif manifest["fingerprint"] != prepared.request.of_all():
        _check_finished(ledger, prepared.config, manifest["request"], now)
        return None
    return manifest


def plain_request(request: Request) -> dict[str, Any]:
    """Return a request as it is read from a file: with lists instead of tuples.

    The names of rows are omitted.
    """
    found: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    del found["row_names"]
    return found


def is_acceptable(manifest: Mapping[str, Any], prepared: Prepared) -> bool:
    """Return whether a finished run satisfies settings that do not determine its results.

    These are the limits on bad data, the list of bad data, and the labels of the report.
    """
    config = prepared.config
    if config.inputs.labels not in (None, manifest["config"].get("labels")):
        return False
    if lacks_bad_rows(manifest, config):
        return False
    summary = manifest["summary"]
    # The numbers of rows and shards are equal, because the requests are.
    if summary["n_bad"] > prepared.max_bad_rows or summary["n_bad_shards"] > prepared.max_bad_shards:
        return False
    # Files are compared by name only, because they may have been moved to another directory.
    return _names(manifest["bad_shards"]) == _names(prepared.bad_shards)


def lacks_bad_rows(manifest: Mapping[str, Any], config: Config) -> bool:
    """Return whether a finished run has no list of bad data, although the settings request it."""
    files = {plain_name(line["file"]) for line in manifest["files"]}
    return config.bad_data.on_bad_data == "skip" and BAD_ROWS not in files


def _names(bad_shards: Sequence[Mapping[str, str]]) -> list[str]:
    return [Path(bad["file"]).name for bad in bad_shards]


def _check_finished(ledger: Ledger, config: Config, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the settings allow replacing the results of another run.

    `overwrite` never replaces the results of other input files.
    """
    where = f"output={printable(ledger.directory)}"
    changed = differences(before, now)
    results = config.results
    if other_inputs(before, now) and not (results.retrain and results.drop_missing):
        if results.retrain:
            advice = "Add these files to --input, or train without them with --drop-missing."
        else:
            advice = (
                "Choose another --output, or discard the results with --restart. (--overwrite replaces only results of "
                "the same files.)"
            )
            if shares_inputs(before, now):
                advice = f"To update the results with the same model, use --append --drop-missing. {advice}"
        raise ConfigError(f"{where}: contains the results of other input files: {changed}. {advice}")
    if not (results.overwrite or results.retrain):
        advice = (
            "Choose another --output, or replace them with --overwrite (results that are still valid are reused) or "
            "--restart."
        )
        if can_append(before, now):
            # Training again takes long and gives other features, which earlier classifiers cannot use.
            advice = (
                "To encode only new and changed files, with the same model, use --append. To write "
                f"the features of new files to another --output, use --model {printable(ledger.directory)} with their "
                "--input. To train a new generation on all files, use --retrain; to replace the results, --overwrite."
            )
        raise ConfigError(f"{where}: contains the results of a different run: {changed}. {advice}")
    log.info("%s: replacing the earlier results, which differ: %s", where, changed)


def _check_unfinished(ledger: Ledger, config: Config, now: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the settings allow replacing an unfinished run.

    A typing error in a command must not discard a training run. Results that no settings can restore are not protected.
    """
    before = ledger.request() or now
    where = f"output={printable(ledger.directory)}"
    changed = differences(before, now)
    progress = _finished_work(ledger)
    if progress and other_inputs(before, now):
        raise ConfigError(
            f"{where}: contains an unfinished run of other input files ({progress}): {changed}. Choose another "
            "--output, or discard that run with --restart."
        )
    if progress and other_settings(before, now) and not config.results.overwrite:
        raise ConfigError(
            f"{where}: contains an unfinished run ({progress}) with other settings: {changed}. Restore these settings "
            "to resume it, choose another --output, or use the new settings with --overwrite (results that are still "
            "valid are reused)."
        )
    if changed and ledger.records():
        log.warning(
            "this run differs from the previous one in this output; recomputing everything that depends on: %s", changed
        )


def _finished_work(ledger: Ledger) -> str:
    """Return a description of the expensive results of an unfinished run; empty if its training has diverged."""
    if ledger.has_diverged():
        return ""  # the training would diverge again
    done = []
    checkpoints = ledger.records("checkpoint")
    if ledger.records("model"):
        done.append("trained")
    elif checkpoints:
        done.append(f"a checkpoint at {checkpoint_in_words(checkpoints[-1])}")
    n_rows = n_rows_in(ledger.records("part"))
    if n_rows:
        done.append(f"{n_rows} rows encoded")
    return ", ".join(done)
