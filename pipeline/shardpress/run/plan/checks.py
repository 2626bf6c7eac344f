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

from shardpress.errors import DataError, EarlierVersion, ShardpressError, TryAgain, printable
from shardpress.hdf5.files import writers
from shardpress.model import Model
from shardpress.output.journal import Journal, Record
from shardpress.output.lock import LOCK, objection
from shardpress.run.base import base_of, open_readonly, with_settings_of
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.inputs import too_many_bad_shards
from shardpress.run.prepare import Prepared, prepare
from shardpress.run.refusal import changed_files, check_change
from shardpress.run.resume import EarlierResults, checkpoint_in_words, is_complete, stored_deadline
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import check_free
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
    """Return the prepared run; None if the settings, the inputs or the earlier results are invalid."""
    n_before = len(findings.problems)
    journal = findings.attempt(lambda: open_readonly(config))
    if len(findings.problems) > n_before and config.results.append:
        return None
    lenient = config.changed(on_bad_data="skip", max_bad="100%")  # so that all bad shards are found
    prepared = findings.attempt(lambda: prepare(lenient, journal))
    if prepared is not None and config.results.append:
        assert journal is not None
        assert journal.base is not None
        config = with_settings_of(config, journal.base)
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
    with suppress(ShardpressError):  # `check_inputs` has reported it
        journal = open_readonly(prepared.config)
        if journal is not None:
            prepared, earlier = _with_parts(journal, prepared)
            reusable = _reusable_results(prepared, earlier)
            findings.attempt(lambda: check_change(journal, prepared))
    if reusable.is_complete:
        return reusable  # a finished run writes nothing
    free = free_bytes(directory)
    if free is not None:
        findings.attempt(lambda: check_free(prepared, reusable.n_written, free))
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
    n_limited = stage.n_limited(scan)
    if prepared.allows_bad_data and n_limited * prepared.n_rows > prepared.max_bad_rows * scan.n_rows:
        n_bad = n_limited * prepared.n_rows // max(1, scan.n_rows)
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
    n_written: int = 0  # rows whose features exist
    words: dict[str, str] = field(default_factory=dict)  # about reused results, by the name of the stage
    files: list[str] = field(default_factory=list)  # how they differ from those of the published result, in words


def _with_parts(journal: Journal, prepared: Prepared) -> tuple[Prepared, EarlierResults]:
    """Return the run with the change that the intact parts of the result leave to it.

    Files are compared by size only; with ``--verify digests`` a run also compares their digests.
    """
    earlier = EarlierResults(journal, prepared.budget.n_threads, compares_digests=False, is_readonly=True)
    base = base_of(journal)
    if base is not None:
        base = replace(base, parts=earlier.published_parts())
    return prepared.with_change(base, journal.base), earlier


def _reusable_results(prepared: Prepared, earlier: EarlierResults) -> Reusable:
    """Return the results in a directory that a run would reuse.

    The function `shardpress.run.refusal.check_change` checks whether the settings allow replacing the others.
    """
    if is_complete(earlier.journal, prepared):
        words = dict.fromkeys(("scan", "training", "encoding"), _FINISHED)
        return Reusable(is_complete=True, has_scan=True, n_written=prepared.n_rows, words=words)
    return _reusable_stages(earlier, prepared)


def _reusable_stages(earlier: EarlierResults, prepared: Prepared) -> Reusable:
    """Return the results of a run that is unfinished or damaged, or has another request, that a run would reuse."""
    scanning = ScanStage(prepared)
    has_scan = scanning.load(earlier) is not None
    scan = scanning.existing(earlier)  # even if it will be repeated, because it lists the unreadable shards
    unreadable: dict[int, str] = {}
    if scan is not None:
        prepared = prepared.with_digests(scan.digests)
        unreadable = {prepared.scanned[i]: reason for i, reason in scan.unreadable.items()}

    model = prepared.given_model
    checkpoint = None
    n_written = 0
    if model is None and scan is not None:
        training = TrainingStage(prepared)
        model = training.load(earlier)
        if model is None:
            checkpoint = training.last_checkpoint(earlier)
    if model is not None:
        n_written = EncodingStage(prepared, model, unreadable).existing(earlier).n_rows

    words = _training_in_words(prepared, model, checkpoint)
    if has_scan:
        words["scan"] = _FINISHED
    if n_written:
        words["encoding"] = f"{n_written} of {prepared.n_rows} rows were encoded by an earlier run"
    deadline = stored_deadline(earlier.journal, prepared.config, prepared.request, time.time()) or {}
    return Reusable(
        has_scan=has_scan,
        model=model,
        checkpoint=checkpoint,
        ends_by=deadline.get("ends_by"),
        n_written=n_written,
        words=words,
        files=changed_files(prepared),
    )


def _training_in_words(prepared: Prepared, model: Model | None, checkpoint: Record | None) -> dict[str, str]:
    if prepared.keeps_model:
        return {"training": "the model stays"}
    if prepared.given_model is not None:
        return {"training": "the model is given (--model)"}
    if model is not None:
        return {"training": _FINISHED}
    if checkpoint is not None:
        return {"training": f"resumes from a checkpoint at {checkpoint_in_words(checkpoint)}"}
    return {}
