"""Checks that find all problems that would stop a run, except those that an earlier problem hides."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from shardpress.encoding.parts import PartFacts
from shardpress.errors import DataError, EarlierVersion, NoInput, ShardpressError, TryAgain, printable, quantity
from shardpress.hdf5.files import writers
from shardpress.model import Model
from shardpress.output.disk import Disk, free_inodes
from shardpress.output.ledger import Ledger
from shardpress.output.lock import LOCK, objection
from shardpress.output.records import FOLDERS, Record
from shardpress.run.append import check_finished, open_finished
from shardpress.run.budget import n_threads_of
from shardpress.run.contents import compare_contents
from shardpress.run.encoding_stage import EncodingStage
from shardpress.run.fingerprints import differences
from shardpress.run.finished import FinishedRun
from shardpress.run.prepare import Prepared, prepare, too_many_bad_shards
from shardpress.run.resume import (
    EarlierResults,
    adds_extras_to,
    checkpoint_in_words,
    finished_manifest,
    is_acceptable,
    plain_request,
    stored_deadline,
)
from shardpress.run.scan_stage import ScanStage
from shardpress.run.space import Written, inode_error, space_error
from shardpress.run.training_stage import TrainingStage
from shardpress.scan.ranges import Scan
from shardpress.settings.config import Config
from shardpress.shards.twins import find_twins

T = TypeVar("T")

_TWINS_LISTED = 10
_LEFT_OUT = " This shard is left out."  # end of the warning about a refused shard
_NOTHING = "no earlier results"
_DECIDES = {"scan": ("scan",), "training": ("scan", "training"), "encoding": ("scan", "training", "encoding")}


@dataclass
class Findings:
    """Problems and warnings that a run would meet.

    Attributes
    ----------
    problems : list of ShardpressError
        Errors that would stop the run, in the order of the run.
    warnings : list of str
        Warnings that it would log.
    """

    problems: list[ShardpressError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def attempt(self, check: Callable[[], T]) -> T | None:
        """Return the result of `check`; None if it raises an error, which is added to the problems."""
        try:
            return check()
        except ShardpressError as error:
            self.problems.append(error)
            return None


class _WarningCollector(logging.Handler):
    """Handler that collects the messages of warnings."""

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
    findings.attempt(lambda: _warn_of_twins(prepared, findings))
    return replace(prepared, config=replace(prepared.config, bad_data=config.bad_data))


def _finished_run(config: Config) -> FinishedRun:
    """Return the finished run that an append would extend."""
    check_finished(config)
    ledger = _open_readonly(Path(config.results.output))
    if ledger is None:
        raise NoInput(
            f"output={printable(config.results.output)}: lacks some of its directories, expected a complete output "
            "directory. Copy the whole directory again."
        )
    earlier = EarlierResults(ledger, n_threads_of(config.machine), compares_digests=False, is_readonly=True)
    return open_finished(config, ledger, earlier)


def adds_extras(prepared: Prepared) -> bool:
    """Return whether a run would only add extras to the finished run in its output."""
    directory = Path(prepared.config.results.output)
    if not prepared.config.inputs.include or objection(directory) is not None:
        return False
    with suppress(ShardpressError):  # `check_output` reports it
        ledger = _open_readonly(directory)
        if ledger is not None:
            prepared, _ = compare_contents(ledger, prepared, reads=False)
            return adds_extras_to(ledger, prepared)
    return False


def _warn_of_twins(prepared: Prepared, findings: Findings) -> None:
    """Warn about shards with equal rows: one line for each of the first few, and one for all others."""
    twins = list(find_twins(prepared.shards, compares_all=False))
    findings.warnings += map(str, twins[:_TWINS_LISTED])
    if len(twins) > _TWINS_LISTED:
        findings.warnings.append(f"{len(twins) - _TWINS_LISTED} more files contain the same rows as another file")


def check_output(prepared: Prepared, findings: Findings) -> Reusable:
    """Return the results that a run would reuse; check that the output is writable and has enough space."""
    directory = Path(prepared.config.results.output)
    error = objection(directory)
    discards_earlier = prepared.config.results.restart and isinstance(error, EarlierVersion)
    if error is not None and not discards_earlier:
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
    ledger = None if discards_earlier else findings.attempt(lambda: _open_readonly(directory))
    if ledger is not None:
        prepared, _ = compare_contents(ledger, prepared, reads=False)
        reusable = _reusable_results(ledger, prepared)
        if not prepared.config.results.restart and prepared.finished is None:
            findings.attempt(lambda: finished_manifest(ledger, prepared))
    if reusable.is_complete:
        return reusable  # a finished run writes nothing
    free = free_bytes(directory)
    shortages = [inode_error(prepared, reusable.written, _n_free_inodes(directory))]
    if free is not None:
        shortages.insert(0, space_error(prepared, reusable.written, free))
    findings.problems += [error for error in shortages if error is not None]
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


def _n_free_inodes(directory: Path) -> int | None:
    """Return how many files can still be created on a directory's disk; None if that is unlimited or unknown."""
    try:
        return free_inodes(nearest_directory(directory))
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
    """Results of an earlier run that a run would reuse.

    Attributes
    ----------
    is_complete : bool
        Whether everything is finished: the run would only compare files with their digests.
    has_scan : bool
        Whether the scan of an earlier run can be reused.
    model : Model or None
        The trained model, or the given model.
    checkpoint : Record or None
        The last checkpoint of an unfinished training run.
    ends_by : float or None
        Deadline of the run, in seconds since 1970.
    written : Written
        Committed features and Parquet files.
    why : dict of str to str
        Reused results of ``scan``, ``training`` and ``encoding``, or the reason why nothing can be reused.
    """

    is_complete: bool = False
    has_scan: bool = False
    model: Model | None = None
    checkpoint: Record | None = None
    ends_by: float | None = None
    written: Written = field(default_factory=Written)
    why: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_DECIDES, _NOTHING))


class _UnchangingDisk(Disk):
    """Disk that removes no file, not even those that a run would remove."""

    def remove(self, path: Path) -> None:
        """Do nothing."""


def _open_readonly(directory: Path) -> Ledger | None:
    """Return the ledger of an output directory without locking or changing it; None if it does not exist yet."""
    if not all(os.path.isdir(directory / name) for name in FOLDERS):
        return None
    return Ledger(directory, _UnchangingDisk())


def _reusable_results(ledger: Ledger, prepared: Prepared) -> Reusable:
    """Return the results in a directory that a run would reuse.

    Files are compared by size only; with ``--verify digests`` a run also compares their digests. The function
    `shardpress.run.resume.finished_manifest` checks whether the settings allow replacing the other results.
    """
    if prepared.config.results.restart:
        return Reusable(why=dict.fromkeys(_DECIDES, "--restart discards all results"))
    manifest = ledger.manifest(warn=False) or {}
    if manifest.get("fingerprint") == prepared.request.of_all() and is_acceptable(manifest, prepared):
        why = dict.fromkeys(_DECIDES, "finished by an earlier run")
        return Reusable(is_complete=True, has_scan=True, written=Written(prepared.n_rows), why=why)
    return _reusable_stages(ledger, prepared, ledger.request() or manifest.get("request"))


def _reusable_stages(ledger: Ledger, prepared: Prepared, before: Mapping[str, Any] | None) -> Reusable:
    """Return the results of an unfinished run, or of a run with another request, that a run would reuse."""
    earlier = EarlierResults(ledger, prepared.budget.n_threads, compares_digests=False, is_readonly=True)
    scanned = prepared.without_copies()
    scanning = ScanStage(scanned)
    has_scan = scanning.load(earlier) is not None
    scan = scanning.committed(earlier)  # even if it will be repeated, because it lists the unreadable shards
    unreadable = scan.unreadable if scan else {}

    training = TrainingStage(prepared, tuple(unreadable))
    model = prepared.given_model or training.load(earlier)
    checkpoint = None
    parts: list[PartFacts] = []
    if model is None:
        checkpoint = training.last_checkpoint(earlier)
    else:
        parts = EncodingStage(prepared, model, scanned.by_number(unreadable)).committed(earlier).parts
    n_encoded = sum(part.n_rows for part in parts)
    n_bytes = sum(part.entry.n_bytes for part in parts)

    reused = {"training": _reused_training(prepared, model, checkpoint)}
    if prepared.finished is not None:
        n_kept = sum(part.n_rows for part in prepared.finished.parts)
        reused["scan"] = "only new and changed files" if prepared.is_scanned else "not needed"
        reused["encoding"] = f"only new and changed files; the features of {quantity(n_kept, 'row')} stay"
    if has_scan:
        reused["scan"] = "finished by an earlier run"
    if n_encoded:
        reused["encoding"] = f"{n_encoded} of {prepared.n_rows} rows were encoded by an earlier run"
    deadline = stored_deadline(ledger, prepared.config, plain_request(prepared.request), time.time()) or {}
    return Reusable(
        has_scan=has_scan,
        model=model,
        checkpoint=checkpoint,
        ends_by=deadline.get("ends_by"),
        written=Written(n_encoded, n_bytes),
        why={stage: reused.get(stage) or _why_not(stage, before, prepared) for stage in _DECIDES},
    )


def _reused_training(prepared: Prepared, model: Model | None, checkpoint: Record | None) -> str:
    if prepared.finished is not None:
        return "the model of the finished run is used (--append)"
    if prepared.given_model is not None:
        return "the model is given (--model)"
    if model is not None:
        return "finished by an earlier run"
    if checkpoint is not None:
        return f"resumes from a checkpoint at {checkpoint_in_words(checkpoint)}"
    return ""


def _why_not(stage: str, before: Mapping[str, Any] | None, prepared: Prepared) -> str:
    """Return the reason why nothing of a stage can be reused."""
    if before is None:
        return _NOTHING
    changed = differences(before, plain_request(prepared.request), _DECIDES[stage])
    return f"recomputed: {changed}" if changed else "not finished by an earlier run, or its files are damaged"
