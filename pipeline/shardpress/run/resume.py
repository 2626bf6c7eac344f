"""Results in the output directory that a run reuses, and whether they are already what it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from shardpress.base.errors import DataError, NoInput, printable
from shardpress.cluster.executor import compute
from shardpress.cluster.threads import threads
from shardpress.model.encoder import Model
from shardpress.output.folder import fault_of
from shardpress.output.journal import Deadline, Journal, PartRecord, Record
from shardpress.result.facts import BadFile
from shardpress.result.finished import Result, read_model_file
from shardpress.result.records import Entry, Part, Request, RowsFacts
from shardpress.run.task import Task
from shardpress.settings.config import Config
from shardpress.settings.kinds import deadline_of, time_in_words

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R", Record, PartRecord)

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
        return self._intact(self.journal.records(kind, key))

    def _intact(self, records: Sequence[R]) -> list[R]:
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

    def parts(self, key: str) -> list[PartRecord]:
        """Return the intact parts in the journal that were made from the fingerprint `key`."""
        return self._intact(self.journal.parts(key))

    def published_parts(self) -> tuple[Part, ...]:
        """Return the intact parts of the published result."""
        base = self.journal.base
        if base is None:
            return ()
        usable = [part for part in base.parts if not self.journal.is_withdrawn(part.file)]
        faults = self.faults(part.entry for part in usable)
        return tuple(part for part, fault in zip(usable, faults, strict=True) if not fault)

    def model(self, key: str) -> Model | None:
        """Return the model in the journal that was trained from the fingerprint `key`, or None."""

        def read(record: Record) -> Model:
            return read_model_file(self.journal.directory / record.entry.file)

        return self.latest("model", key, read, "%s; the model is trained again")

    def withdraw(self, *records: Record | PartRecord) -> None:
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
        with threads(self._n_threads) as pool:
            results = compute([(check, batch) for batch in batches], pool, self._n_threads)
        faults = [fault for batch in results for fault in batch]
        self._faults.update(zip(unchecked, faults, strict=True))
        if not self._is_readonly:
            for fault in filter(None, faults):
                log.warning("%s; it is recomputed", fault)
        return [self._faults[entry] for entry in entries]


def _faults_of(directory: Path, entries: Sequence[Entry], digests: bool) -> list[str | None]:
    return [fault_of(directory, entry, digests) for entry in entries]


def step_of(checkpoint: Record) -> int:
    """Return the number of steps after which a checkpoint was written."""
    return int(checkpoint.key.split("-")[1])


def checkpoint_in_words(checkpoint: Record) -> str:
    return f"{checkpoint.n_epochs} of {checkpoint.of_epochs} epochs, step {step_of(checkpoint)}"


def n_rows_in(parts: Iterable[PartRecord]) -> int:
    return sum(record.part.n_live for record in parts)


# -- requests ----------------------------------------------------------------------------------------------------------


def stored_deadline(journal: Journal, config: Config, now: Request, start: float) -> Deadline | None:
    """Return the deadline of a run that starts at `start`, in seconds since 1970.

    None if the run has no deadline. A run that is resumed keeps the deadline of its first start, unless that deadline
    has passed.
    """
    requested = config.training.finish_by
    ends_by = deadline_of(requested, start)
    if requested is None or ends_by is None:
        return None
    before = journal.deadline if journal.request is not None and _is_same_work(journal.request, now) else None
    if before is not None and before.finish_by == requested:
        if before.ends_by > start:
            return before
        passed = time_in_words(before.ends_by)
        log.warning("deadline: %s has passed; the new deadline is %s", passed, time_in_words(ends_by))
    return Deadline(requested, ends_by)


def _is_same_work(before: Request, now: Request) -> bool:
    places = [[(shard.place, shard.kind) for shard in request.shards] for request in (before, now)]
    return places[0] == places[1] and before.settings == now.settings


def is_complete(result: Result, task: Task) -> bool:
    """Return whether the result in the output directory is what the run is asked for."""
    change = task.change
    if change.trains or change.has_other_rows or task.encoded:
        return False
    if task.base is None or change.moved(task.base, task.wanted):
        return False
    return _is_acceptable(result, task)


def _is_acceptable(result: Result, task: Task) -> bool:
    """Return whether a finished run satisfies settings that do not determine its results.

    These are the limits on bad data, and the labels of the report.
    """
    config = task.settings
    facts = result.facts
    if has_other_labels(config, facts.rows):
        return False
    if not config.results.append:  # otherwise only new rows are limited
        if result.n_bad > task.max_bad_rows or facts.rows.bad.shards.n > task.max_bad_shards:
            return False
        if not task.allows_bad_data and any(rows.lost for _, rows in result.ranges):
            return False
    if facts.rows.bad.n_uncompared != task.inputs.n_uncompared:
        return False
    # Files are compared by name only, because they may have been moved to another directory.
    return _names(facts.rows.bad_shards) == _names(task.inputs.bad_shards)


def has_other_labels(config: Config, rows: RowsFacts) -> bool:
    """Return whether ``--labels`` or ``--missing-label`` changes the labels in the report of a finished run."""
    inputs = config.inputs
    has_other_missing = inputs.missing_label != rows.config.get("missing_label")
    return has_other_missing or inputs.labels not in (None, rows.config["labels"])


def _names(bad_shards: Sequence[BadFile]) -> list[str]:
    return [Path(bad.file).name for bad in bad_shards]


def expensive_work(journal: Journal) -> str:
    """Return a description of the expensive results of an unfinished run, without trainings that have diverged."""
    diverged = {record.fingerprint for record in journal.records("diverged")}  # they would diverge again
    done = []
    checkpoints = [record for record in journal.records("checkpoint") if record.fingerprint not in diverged]
    if journal.records("model"):
        done.append("trained")
    elif checkpoints:
        done.append(f"a checkpoint at {checkpoint_in_words(checkpoints[-1])}")
    n_rows = n_rows_in(journal.parts())
    if n_rows:
        done.append(f"{n_rows} rows encoded")
    return ", ".join(done)
