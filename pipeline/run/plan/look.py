"""What would stop a run, found without one: all of it, as far as one thing does not hide behind another."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.encoding.parts import PartFacts, plan_parts
from pipeline.encoding.storage import storages
from pipeline.errors import DataError, NoInput, ShardpressError, TryAgain, shown
from pipeline.hdf5.files import writers
from pipeline.model import Model, load_model
from pipeline.output.disk import Disk, free_inodes
from pipeline.output.ledger import Ledger
from pipeline.output.lock import LOCK, objection
from pipeline.output.records import FOLDERS, Record, fault_of
from pipeline.run.contents import compare_contents
from pipeline.run.earlier import asked_for, kept_deadline, passes, plainly
from pipeline.run.fingerprints import differences
from pipeline.run.job import Prepared, prepare, refusal, step_of, trained
from pipeline.run.scan_stage import judge, load_scan
from pipeline.run.space import lacks_inodes, lacks_space
from pipeline.scan.ranges import Scan, check_usable
from pipeline.settings.config import Config
from pipeline.shards.twins import find_twins

__all__ = [
    "Findings",
    "Kept",
    "free_bytes",
    "heard",
    "looked_at_inputs",
    "looked_at_output",
    "looked_at_rows",
    "nearest",
]

T = TypeVar("T")

_TWINS_BYTES = 2**29  # of rows that are compared in full: a plan is to take seconds
_TWINS_SHARDS = 1000  # of one shape, of which some rows are compared
_TWINS_LISTED = 10
_LEFT_OUT = " This shard is left out."  # how a warning of a refused one ends
_NOTHING = "nothing of an earlier run is there"
_DECIDES = {"scan": ("scan",), "training": ("scan", "training"), "encoding": ("scan", "training", "encoding")}


@dataclass
class Findings:
    """What is found about a run.

    Attributes
    ----------
    problems : list of ShardpressError
        What would stop it, in the order in which it would meet that.
    warnings : list of str
        What it would warn of.
    """

    problems: list[ShardpressError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def caught(self, look: Callable[[], T]) -> T | None:
        """What a look finds; None where it fails, which is a problem then."""
        try:
            return look()
        except ShardpressError as error:
            self.problems.append(error)
            return None


class _Ear(logging.Handler):
    """Takes up warnings in their words."""

    def __init__(self, warnings: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._warnings = warnings

    def emit(self, record: logging.LogRecord) -> None:
        self._warnings.append(record.getMessage())


@contextmanager
def heard() -> Iterator[Findings]:
    """Findings that take up what the program warns of within the context, in place of a log of it."""
    found = Findings()
    log = logging.getLogger("pipeline")
    handler = _Ear(found.warnings)
    log.addHandler(handler)
    log.propagate = False
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.propagate = True


def looked_at_inputs(config: Config, found: Findings) -> Prepared | None:
    """What a run with these settings would know at its start; None where they or the inputs do not allow it."""
    lenient = config.changed(on_bad_data="skip", max_bad_shards="100%")  # so that every bad shard is met
    prepared = found.caught(lambda: prepare(lenient))
    if config.bad_data.on_bad_data == "raise":
        left_out = [words for words in found.warnings if words.endswith(_LEFT_OUT)]
        found.problems += [DataError(words.removesuffix(_LEFT_OUT)) for words in left_out]
        found.warnings[:] = [words for words in found.warnings if words not in left_out]
    if prepared is None:
        return None
    n_shards = len(prepared.shards) + len(prepared.bad_shards)
    if config.bad_data.on_bad_data != "raise" and (error := refusal(config, prepared.bad_shards, n_shards)):
        found.problems.append(error)
    found.caught(lambda: _warn_of_twins(prepared, found))
    return replace(prepared, config=replace(prepared.config, bad_data=config.bad_data))


def _warn_of_twins(prepared: Prepared, found: Findings) -> None:
    """Warn of shards with equal rows, of some of them in a line each."""
    twins = list(find_twins(prepared.shards, _TWINS_BYTES, _TWINS_SHARDS))
    found.warnings += map(str, twins[:_TWINS_LISTED])
    if len(twins) > _TWINS_LISTED:
        found.warnings.append(f"{len(twins) - _TWINS_LISTED} more files hold the same rows as another one")


def looked_at_output(prepared: Prepared, found: Findings) -> Kept:
    """What an earlier run has left that would be used; and whether there is leave and room to write."""
    directory = Path(prepared.config.results.output)
    if error := objection(directory):
        found.problems.append(error)
        return Kept()
    if pid := _at_work(directory):
        where = f"output={shown(directory)}"
        words = f"{where}: another run (process {pid}) is at work there. Wait until it has ended."
        found.problems.append(TryAgain(words))
    ledger = found.caught(lambda: looked_into(directory))
    if ledger is not None:
        prepared, _ = compare_contents(ledger, prepared, reads=False)
    left = Kept() if ledger is None else kept(ledger, prepared)
    if ledger is not None and not prepared.config.results.restart:
        found.caught(lambda: asked_for(ledger, prepared))
    free = free_bytes(directory)
    if free is not None and (lack := lacks_space(prepared, left.n_bytes, free)):
        found.problems.append(lack)
    if lack := lacks_inodes(prepared, left.n_encoded, _n_free_inodes(directory)):
        found.problems.append(lack)
    return left


def _at_work(directory: Path) -> int | None:
    """The process that holds a directory's lock."""
    try:
        status = os.stat(directory / LOCK)
    except OSError:
        return None
    return writers().get((status.st_dev, status.st_ino))


def nearest(directory: Path) -> Path:
    """The directory itself, or the nearest one above it that is there."""
    return next(path for path in (directory, *directory.absolute().parents) if path.is_dir())


def free_bytes(directory: Path) -> int | None:
    """What may still be written there; None where that cannot be told."""
    try:
        return shutil.disk_usage(nearest(directory)).free
    except OSError:
        return None


def _n_free_inodes(directory: Path) -> int | None:
    """Return how many files may still be created there; None where that is unlimited or unknown."""
    try:
        return free_inodes(nearest(directory))
    except OSError:
        return None


def looked_at_rows(prepared: Prepared, scan: Scan, found: Findings) -> bool:
    """Whether rows like those of a scan of some of them can be learnt from."""
    where = "" if scan.n_rows == prepared.n_rows else f"{scan.n_rows} of {prepared.n_rows} rows were looked at: "
    n_before = len(found.problems)
    if prepared.tolerates_bad_data and len(scan.bad_rows) * prepared.n_rows > prepared.max_bad_rows * scan.n_rows:
        n = len(scan.bad_rows) * prepared.n_rows // scan.n_rows
        found.warnings.append(f"about {n} rows are bad, expected {prepared.max_bad_rows} at most (--max-bad-rows)")
    found.caught(lambda: judge(prepared, scan))
    if prepared.given is None:
        found.caught(lambda: check_usable(prepared.shards, scan, prepared.config.bad_data.missing_value))
    found.problems[n_before:] = [type(error)(f"{where}{error}") for error in found.problems[n_before:]]
    return scan.n_good > 1 and not scan.constant.all()


# -- results of an earlier run -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    """What would be taken over.

    Attributes
    ----------
    is_complete : bool
        All of it: the run would only compare what is there with its digests.
    scan : bool
        The scan's result.
    model : Model or None
        The training's.
    n_steps : int
        Of the training, that a checkpoint keeps; 0 without one.
    n_epochs, ends_by : int and float, or None
        How many it is going to make in all, as a checkpoint keeps it, and when the run is to be over (seconds since
        1970).
    n_encoded, n_bytes : int
        Rows with committed features, and the bytes of their files.
    why : dict of str to str
        For ``scan``, ``training`` and ``encoding``, what is used, or why it cannot be.
    """

    is_complete: bool = False
    scan: bool = False
    model: Model | None = None
    n_steps: int = 0
    n_epochs: int | None = None
    ends_by: float | None = None
    n_encoded: int = 0
    n_bytes: int = 0
    why: dict[str, str] = field(default_factory=lambda: dict.fromkeys(_DECIDES, _NOTHING))


class _Unchanging(Disk):
    """For a look: what a run would clear away stays."""

    def remove(self, path: Path) -> None:
        """Leave it."""


def looked_into(directory: Path) -> Ledger | None:
    """An output directory as it is, without its lock and without a change; None where there is none yet."""
    if not all(os.path.isdir(directory / name) for name in FOLDERS):
        return None
    return Ledger(directory, _Unchanging())


def kept(ledger: Ledger, prepared: Prepared) -> Kept:
    """What of a directory's results a run like this one would use.

    Files are compared by their sizes; a run compares their digests, if `verify` asks for it. Whether there is leave to
    replace the others is another question (`pipeline.run.earlier.asked_for`).
    """
    if prepared.config.results.restart:
        return Kept(why=dict.fromkeys(_DECIDES, "--restart throws away what is there"))
    manifest = ledger.manifest(warn=False) or {}
    if manifest.get("fingerprint") == prepared.request.of_all() and passes(manifest, prepared):
        n_bytes = sum(part["n_bytes"] for part in manifest["parts"])
        complete = dict.fromkeys(_DECIDES, "an earlier run has finished it")
        return Kept(True, True, n_encoded=prepared.n_rows, n_bytes=n_bytes, why=complete)
    return _of_records(ledger, prepared, ledger.request() or manifest.get("request"))


def _of_records(ledger: Ledger, prepared: Prepared, before: Mapping[str, Any] | None) -> Kept:
    scan = _scan(ledger, prepared)
    unreadable = scan.unreadable if scan else {}
    fingerprint = prepared.of_model(unreadable)
    model = prepared.given or _model(ledger, fingerprint)
    checkpoints = _there(ledger, ledger.records("checkpoint", fingerprint))
    checkpoint = checkpoints[-1] if checkpoints and model is None else None
    facts = [PartFacts.of(record) for record in _parts(ledger, prepared, model, unreadable)] if model else []
    overlapping = plan_parts(prepared.shards, prepared.budget.part_rows, facts)[1]
    facts = [part for part in facts if part not in overlapping]
    n_encoded = sum(part.n_rows for part in facts)
    used = {
        "scan": "an earlier run has finished it" if scan and not unreadable else "",
        "training": _trained(prepared, model, checkpoint),
        "encoding": f"an earlier run has encoded {n_encoded} of {prepared.n_rows} rows" if n_encoded else "",
    }
    why = {stage: words or _why_not(stage, before, prepared) for stage, words in used.items()}
    n_bytes = sum(part.entry.n_bytes for part in facts)
    told = checkpoint.facts if checkpoint else {}
    deadline = kept_deadline(ledger, prepared.config, plainly(prepared.request), time.time()) or {}
    training = step_of(checkpoint) if checkpoint else 0, told.get("of"), deadline.get("ends_by")
    return Kept(False, bool(used["scan"]), model, *training, n_encoded, n_bytes, why)


def _parts(ledger: Ledger, prepared: Prepared, model: Model, unreadable: Iterable[int]) -> list[Record]:
    """Of features as they are stored: those of the form that was tried last, where one was too coarse."""
    for storage in reversed(storages(prepared.config.storage)):
        fingerprint = prepared.of_features(model, unreadable, storage)
        there = _there(ledger, ledger.records("part", fingerprint))
        if there:
            return there
    return []


def _trained(prepared: Prepared, model: Model | None, checkpoint: Record | None) -> str:
    if prepared.given is not None:
        return "a fitted model is given"
    if model is not None:
        return "an earlier run has finished it"
    return f"a checkpoint keeps {trained(checkpoint)}" if checkpoint else ""


def _why_not(stage: str, before: Mapping[str, Any] | None, prepared: Prepared) -> str:
    if before is None:
        return _NOTHING
    changed = differences(before, plainly(prepared.request), _DECIDES[stage])
    return f"made anew: {changed}" if changed else "an earlier run has not come so far, or its files are damaged"


def _scan(ledger: Ledger, prepared: Prepared) -> Scan | None:
    for record in reversed(_there(ledger, ledger.records("scan", prepared.request.of_scan()))):
        with suppress(ValueError):
            return load_scan(ledger, record, prepared.shards)
    return None


def _model(ledger: Ledger, fingerprint: str) -> Model | None:
    for record in reversed(_there(ledger, ledger.records("model", fingerprint))):
        with suppress(ValueError, DataError, NoInput):
            return load_model(ledger.directory / record.entry.file)
    return None


def _there(ledger: Ledger, records: Iterable[Record]) -> list[Record]:
    """Those whose files are there, of their sizes."""
    return [record for record in records if not fault_of(ledger.directory, record.entry, digests=False)]
