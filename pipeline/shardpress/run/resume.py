"""Results of earlier runs in the output directory: which of them are reused, and whether others can be replaced."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.errors import ConfigError, DataError, NoInput, printable
from shardpress.model import Model
from shardpress.output.files import fault_of
from shardpress.output.journal import Journal, Record
from shardpress.records import Entry, Part, Request
from shardpress.result import Result, read_model_file
from shardpress.run.fingerprints import (
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

_MAX_COMPLAINT = 1000  # characters of an error that a warning quotes
_SIZES_PER_TASK = 100  # files whose sizes a task compares


# -- results -----------------------------------------------------------------------------------------------------------


class EarlierResults:
    """Results in an output directory that a run can use. Each file is checked once, before that.

    Files are compared by their sizes or also by their digests. If the object is read-only, as `shardpress plan`
    requires, damaged results are kept, and nothing is logged.
    """

    def __init__(self, journal: Journal, n_threads: int, compares_digests: bool, is_readonly: bool = False) -> None:
        self.journal = journal
        self._n_threads = n_threads
        self._compares_digests = compares_digests
        self._is_readonly = is_readonly
        self._faults: dict[Entry, str | None] = {}

    def records(self, kind: str, key: str) -> list[Record]:
        """Return records of a kind that were made from the fingerprint `key`, in the order of their keys.

        Records with damaged files are logged and withdrawn first.
        """
        records = self.journal.records(kind, key)
        faults = self.faults(record.entry for record in records)
        damaged = [record for record, fault in zip(records, faults, strict=True) if fault]
        self.withdraw(*damaged)
        return [record for record, fault in zip(records, faults, strict=True) if not fault]

    def latest(self, kind: str, key: str, read: Callable[[Record], T], complaint: str) -> T | None:
        """Return the last result of a kind, made from `key`, that `read` accepts, or None.

        Later results, for which `read` raises `ValueError`, `DataError` or `NoInput`, are withdrawn. For each of them,
        `complaint` is logged with the reason in place of ``%s``.
        """
        for record in reversed(self.records(kind, key)):
            try:
                return read(record)
            except (ValueError, DataError, NoInput) as error:
                # Other errors concern the system, not the file, and end the run.
                if not self._is_readonly:
                    log.warning(complaint, printable(str(error)[:_MAX_COMPLAINT]))  # may quote a forged file
                self.withdraw(record)
        return None

    def parts(self, key: str) -> list[Part]:
        """Return the intact parts that were made from the fingerprint `key`, in the order of their rows."""
        found = [record.part for record in self.records("part", key)]
        base = self.journal.base
        if base is not None and base.facts.keys.features == key and not base.facts.appends:
            usable = [part for part in base.parts if not self.journal.is_withdrawn(part.file)]
            faults = self.faults(part.entry for part in usable)
            found += [part for part, fault in zip(usable, faults, strict=True) if not fault]
        return sorted(found, key=lambda part: part.key)

    def model(self, key: str) -> Model | None:
        """Return the model that was trained from the fingerprint `key`, or None."""
        base = self.journal.base
        # An append may have encoded other rows of a file than those that trained the model.
        if base is not None and base.facts.keys.model == key and not base.facts.appends:
            return base.model

        def read(record: Record) -> Model:
            return read_model_file(self.journal.directory / record.entry.file)

        return self.latest("model", key, read, "%s; the model is trained again")

    def withdraw(self, *records: Record) -> None:
        if not self._is_readonly:
            self.journal.withdraw(*records)

    def faults(self, entries: Iterable[Entry]) -> list[str | None]:
        """Return the fault of each file, or None for an intact file; log the faults."""
        entries = list(entries)
        unchecked = [entry for entry in entries if entry not in self._faults]
        check = partial(_faults_of, self.journal.directory, digests=self._compares_digests)
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
            self.journal.check()
            for fault in filter(None, found):
                log.warning("%s; it is recomputed", fault)
        return [self._faults[entry] for entry in entries]

    def is_intact(self, result: Result) -> bool:
        """Return whether the files that a result names are unchanged since they were written."""
        entries = [*(part.entry for part in result.parts), *result.facts.views]
        is_wrong = any(self.journal.is_withdrawn(part.file) for part in result.parts)
        return not is_wrong and not any(self.faults(entries))


def _faults_of(directory: Path, entries: Sequence[Entry], digests: bool) -> list[str | None]:
    return [fault_of(directory, entry, digests) for entry in entries]


def step_of(checkpoint: Record) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.key.split("-")[1])


def checkpoint_in_words(checkpoint: Record) -> str:
    facts = checkpoint.facts
    return f"{facts['n_epochs']} of {facts['of']} epochs, step {step_of(checkpoint)}"


def n_rows_in(parts: Iterable[Record]) -> int:
    return sum(record.part.n_rows for record in parts)


# -- requests ----------------------------------------------------------------------------------------------------------


def stored_deadline(journal: Journal, config: Config, now: Request, start: float) -> dict[str, Any] | None:
    """Return the deadline of a run that starts at `start`: ``ends_by`` (seconds since 1970) and ``finish_by``.

    None if the run has no deadline. A run that is resumed keeps the deadline of its first start, unless that deadline
    has passed.
    """
    ends_by = deadline_of(config.timing, start)
    if ends_by is None:
        return None
    requested = config.timing.finish_by
    before = journal.deadline if journal.request == now else None
    if before is not None and before["finish_by"] == requested:
        if before["ends_by"] > start:
            return before
        log.warning("deadline: %s has passed; the new deadline is %s", in_words(before["ends_by"]), in_words(ends_by))
    return {"finish_by": requested, "ends_by": ends_by}


def adds_extras_to(journal: Journal, prepared: Prepared) -> bool:
    """Return whether a run names the files and settings of the finished run in its output, and extras in addition.

    Unless rows have changed, an append can add these extras. With `--overwrite`, `--retrain` and `--restart`, a user
    requests a new run.
    """
    results = prepared.config.results
    if results.append or results.overwrite or results.retrain or results.restart or not prepared.config.inputs.include:
        return False
    base = journal.base
    if base is None or base.fingerprint == prepared.request.of_all():
        return False
    return may_only_add_extras(base.facts.request, prepared.request)


def finished_result(journal: Journal, prepared: Prepared) -> Result | None:
    """Return the result of a finished run with the same request, or None. Nothing is changed.

    Raise `ConfigError` if there are other results, and the settings do not allow replacing them.
    """
    base = journal.base
    if base is None:
        _check_unfinished(journal, prepared.config, prepared.request)
    elif base.fingerprint != prepared.request.of_all():
        _check_finished(journal, prepared.config, base.facts.request, prepared.request)
        return None
    return base


def is_acceptable(result: Result, prepared: Prepared) -> bool:
    """Return whether a finished run satisfies settings that do not determine its results.

    These are the limits on bad data, and the labels of the report.
    """
    config = prepared.config
    facts = result.facts
    if config.inputs.labels not in (None, facts.config.get("labels")):
        return False
    # The numbers of rows and shards are equal, because the requests are.
    if facts.summary["n_bad"] > prepared.max_bad_rows or facts.summary["n_bad_shards"] > prepared.max_bad_shards:
        return False
    # Files are compared by name only, because they may have been moved to another directory.
    return _names(facts.bad_shards) == _names(prepared.bad_shards)


def _names(bad_shards: Sequence[Mapping[str, str]]) -> list[str]:
    return [Path(bad["file"]).name for bad in bad_shards]


def _check_finished(journal: Journal, config: Config, before: Request, now: Request) -> None:
    """Raise `ConfigError` unless the settings allow replacing the results of another run.

    `overwrite` never replaces the results of other input files.
    """
    where = f"output={printable(journal.directory)}"
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
                f"the features of new files to another --output, use --model {printable(journal.directory)} with their "
                "--input. To train a new generation on all files, use --retrain; to replace the results, --overwrite."
            )
        raise ConfigError(f"{where}: contains the results of a different run: {changed}. {advice}")
    log.info("%s: replacing the earlier results, which differ: %s", where, changed)


def _check_unfinished(journal: Journal, config: Config, now: Request) -> None:
    """Raise `ConfigError` unless the settings allow replacing an unfinished run.

    A typing error in a command must not discard a training run. Results that no settings can restore are not protected.
    """
    before = journal.request or now
    where = f"output={printable(journal.directory)}"
    changed = differences(before, now)
    progress = _finished_work(journal, before)
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
    if changed and journal.records():
        log.warning(
            "this run differs from the previous one in this output; recomputing everything that depends on: %s", changed
        )


def _finished_work(journal: Journal, request: Request) -> str:
    """Return a description of the expensive results of an unfinished run; empty if its training has diverged."""
    if journal.records("diverged", request.of_model()):
        return ""  # the training would diverge again
    done = []
    checkpoints = journal.records("checkpoint")
    if journal.records("model"):
        done.append("trained")
    elif checkpoints:
        done.append(f"a checkpoint at {checkpoint_in_words(checkpoints[-1])}")
    n_rows = n_rows_in(journal.records("part"))
    if n_rows:
        done.append(f"{n_rows} rows encoded")
    return ", ".join(done)
