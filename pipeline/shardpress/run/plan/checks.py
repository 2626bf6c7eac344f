"""Checks that find all problems that would stop a run, except those that an earlier problem hides."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from shardpress.errors import DataError, EarlierVersion, ShardpressError, TryAgain, printable, quantity
from shardpress.hdf5.files import writers
from shardpress.model import Model
from shardpress.output.disk import Disk
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import LOCK, objection
from shardpress.records import Part
from shardpress.run.append import check_finished, open_finished
from shardpress.run.budget import n_threads_of
from shardpress.run.contents import compare_contents
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.finished import FinishedRun
from shardpress.run.prepare import Prepared, prepare, too_many_bad_shards
from shardpress.run.resume import (
    EarlierResults,
    adds_extras_to,
    checkpoint_in_words,
    finished_result,
    is_acceptable,
    stored_deadline,
)
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import Written, check_free
from shardpress.run.training_stage import TrainingStage
from shardpress.scan.ranges import Scan
from shardpress.settings.config import Config

T = TypeVar("T")

_LEFT_OUT = " This shard is left out."  # end of the warning about a refused shard
_FINISHED = "finished by an earlier run"


@dataclass
class Findings:
    """Problems and warnings that a run would meet."""

    problems: list[ShardpressError] = field(default_factory=list)  # errors that would stop it, in order
    warnings: list[str] = field(default_factory=list)

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Return the result of `check`; None if it raises an error, which is added to the problems."""
        try:
            return check()
        except ShardpressError as error:
            self.problems.append(error)
            return None


class _WarningCollector(logging.Handler):
    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        self._warnings.append(record.getMessage())


@contextmanager
def captured_warnings() -> Iterator[Findings]:
    """Yield findings that collect the package's warnings. These are not logged."""
    findings = Findings()
    log = logging.getLogger("shardpress")
    handler = _WarningCollector(findings.warnings)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield findings
    finally:
        log.removeHandler(handler)
        log.propagate = True


def check_inputs(config: Config, findings: Findings) -> Prepared | None:
    """Return the prepared run; None if the settings or the inputs are invalid, or if there is nothing to append."""
    finished = None
    if config.results.append:
        finished = findings.attempt(lambda: _finished_run(config))
        if finished is None or not finished.sources:
            return None
        config = finished.config
    lenient = config.changed(on_bad_data="skip", max_bad="100%")  # so that all bad shards are found
    prepared = findings.attempt(lambda: prepare(lenient, finished))
    if config.bad_data.on_bad_data == "raise":
        left_out = [words for words in findings.warnings if words.endswith(_LEFT_OUT)]
        findings.problems += [DataError(words.removesuffix(_LEFT_OUT)) for words in left_out]
        findings.warnings[:] = [words for words in findings.warnings if words not in left_out]
    if prepared is None:
        return None
    if config.bad_data.on_bad_data != "raise":
        n_shards = len(prepared.shards) + len(prepared.bad_shards)
        error = too_many_bad_shards(config, prepared.bad_shards, n_shards)
        if error is not None:
            findings.problems.append(error)
    return replace(prepared, config=replace(prepared.config, bad_data=config.bad_data))


def _finished_run(config: Config) -> FinishedRun:
    """Return the finished run that an append would extend."""
    check_finished(config)
    journal = _open_readonly(config)
    assert journal is not None
    earlier = EarlierResults(journal, n_threads_of(config.machine), compares_digests=False, is_readonly=True)
    return open_finished(config, journal, earlier)


def adds_extras(prepared: Prepared) -> bool:
    """Return whether a run would only add extras to the finished run in its output."""
    directory = Path(prepared.config.results.output)
    if not prepared.config.inputs.include or objection(directory) is not None:
        return False
    with suppress(ShardpressError):  # `check_output` reports it
        journal = _open_readonly(prepared.config)
        if journal is not None:
            prepared, _ = compare_contents(journal, prepared, reads=False)
            return adds_extras_to(journal, prepared)
    return False


def check_output(prepared: Prepared, findings: Findings) -> Reusable:
    """Return the results that a run would reuse; check that the output is writable and has enough space."""
    directory = Path(prepared.config.results.output)
    error = objection(directory)
    is_replaced = prepared.config.results.restart and isinstance(error, EarlierVersion)
    if error is not None and not is_replaced:
        findings.problems.append(error)
        return Reusable()
    pid = _locking_process(directory)
    if pid is not None:
        findings.problems.append(
            TryAgain(
                f"output={printable(directory)}: another run (process {pid}) is using this directory. Wait until it "
                "has ended, or choose another --output."
            )
        )
    reusable = Reusable()
    journal = findings.attempt(lambda: _open_readonly(prepared.config))
    if journal is not None:
        prepared, _ = compare_contents(journal, prepared, reads=False)
        reusable = _reusable_results(journal, prepared)
        if prepared.finished is None:
            findings.attempt(lambda: finished_result(journal, prepared))
    if reusable.is_complete:
        return reusable  # a finished run writes nothing
    free = free_bytes(directory)
    if free is not None:
        findings.attempt(lambda: check_free(prepared, reusable.written, free))
    return reusable


def _locking_process(directory: Path) -> int | None:
    """Return the process that holds the lock of a directory, or None."""
    try:
        status = os.stat(directory / LOCK)
    except OSError:
        return None
    return writers().get((status.st_dev, status.st_ino))


def nearest_directory(directory: Path) -> Path:
    """Return the directory itself, or the nearest existing one above it."""
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())


def free_bytes(directory: Path) -> int | None:
    """Return how many bytes can still be written to a directory's disk; None if that is unknown."""
    try:
        return shutil.disk_usage(nearest_directory(directory)).free
    except OSError:
        return None


def check_rows(stage: ScanStage, scan: Scan, findings: Findings) -> bool:
    """Return whether a model can be trained on the rows, according to a scan of some of them."""
    prepared = stage.prepared
    n_before = len(findings.problems)
    n_bad = len(scan.bad_rows) * prepared.n_rows // max(1, scan.n_rows)
    if prepared.allows_bad_data and len(scan.bad_rows) * prepared.n_rows > prepared.max_bad_rows * scan.n_rows:
        limit = f"expected at most {prepared.max_bad_rows} (--max-bad {prepared.config.bad_data.max_bad})"
        findings.warnings.append(f"about {n_bad} rows are bad, {limit}")
    findings.attempt(lambda: stage.check_bad_rows(scan))
    if prepared.given_model is None:
        findings.attempt(lambda: stage.check_usable(scan))
        findings.warnings += [f"hint: {printable(hint)}" for hint in scan.hints]
    if scan.n_rows < prepared.n_rows:
        where = f"in a sample of {scan.n_rows} of {prepared.n_rows} rows: "
        found = findings.problems[n_before:]
        findings.problems[n_before:] = [type(error)(f"{where}{error}") for error in found]
    return scan.n_fitted > 1 and not scan.constant.all()


# -- results of an earlier run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reusable:
    """Results of an earlier run that a run would reuse."""

    is_complete: bool = False  # whether the run would only compare files with their digests
    has_scan: bool = False
    model: Model | None = None  # the trained model, or the given model
    checkpoint: Record | None = None  # the last one of an unfinished training run
    ends_by: float | None = None  # deadline, in seconds since 1970
    written: Written = field(default_factory=Written)
    words: dict[str, str] = field(default_factory=dict)  # about reused results, by the name of the stage


class _UnchangingDisk(Disk):
    """Disk that removes no file, not even those that a run would remove."""

    def remove(self, path: Path) -> None:
        """Do nothing."""


def _open_readonly(config: Config) -> Journal | None:
    """Return the journal of an output directory without locking or changing it; None if it does not exist yet."""
    directory = Path(config.results.output)
    if not directory.is_dir():
        return None
    results = config.results
    return Journal(directory, _UnchangingDisk(), results.restart, results.append or results.retrain)


def _reusable_results(journal: Journal, prepared: Prepared) -> Reusable:
    """Return the results in a directory that a run would reuse.

    Files are compared by size only; with ``--verify digests`` a run also compares their digests. The function
    `shardpress.run.resume.finished_result` checks whether the settings allow replacing the other results.
    """
    base = journal.base
    earlier = EarlierResults(journal, prepared.budget.n_threads, compares_digests=False, is_readonly=True)
    is_same = base is not None and base.fingerprint == prepared.request.of_all()
    if base is not None and is_same and is_acceptable(base, prepared) and earlier.is_intact(base):
        words = dict.fromkeys(("scan", "training", "encoding"), _FINISHED)
        return Reusable(is_complete=True, has_scan=True, written=Written(prepared.n_rows), words=words)
    return _reusable_stages(earlier, prepared)


def _reusable_stages(earlier: EarlierResults, prepared: Prepared) -> Reusable:
    """Return the results of a run that is unfinished or damaged, or has another request, that a run would reuse."""
    scanning = ScanStage(prepared)
    has_scan = scanning.load(earlier) is not None
    scan = scanning.existing(earlier)  # even if it will be repeated, because it lists the unreadable shards
    unreadable = scan.unreadable if scan else {}

    training = TrainingStage(prepared, tuple(unreadable))
    model = prepared.given_model or training.load(earlier)
    checkpoint = None
    parts: list[Part] = []
    if model is None:
        checkpoint = training.last_checkpoint(earlier)
    else:
        parts = EncodingStage(prepared, model, prepared.by_number(unreadable)).existing(earlier).parts
    n_encoded = sum(part.n_rows for part in parts)
    n_bytes = sum(part.entry.n_bytes for part in parts)

    words = _training_in_words(prepared, model, checkpoint)
    if prepared.finished is not None:
        n_kept = sum(part.n_rows for part in prepared.finished.parts)
        words["encoding"] = f"only new and changed files; the features of {quantity(n_kept, 'row')} stay"
    if has_scan:
        words["scan"] = _FINISHED
    if n_encoded:
        words["encoding"] = f"{n_encoded} of {prepared.n_rows} rows were encoded by an earlier run"
    deadline = stored_deadline(earlier.journal, prepared.config, prepared.request, time.time()) or {}
    return Reusable(
        has_scan=has_scan,
        model=model,
        checkpoint=checkpoint,
        ends_by=deadline.get("ends_by"),
        written=Written(n_encoded, n_bytes),
        words=words,
    )


def _training_in_words(prepared: Prepared, model: Model | None, checkpoint: Record | None) -> dict[str, str]:
    if prepared.given_model is not None:
        return {"training": "the model is given (--model or --append)"}
    if model is not None:
        return {"training": _FINISHED}
    if checkpoint is not None:
        return {"training": f"resumes from a checkpoint at {checkpoint_in_words(checkpoint)}"}
    return {}
