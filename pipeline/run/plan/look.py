"""What would stop a run, found without one: all of it, as far as one thing does not hide behind another."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from pipeline.errors import DataError, ShardpressError, TryAgain, shown
from pipeline.hdf5.files import writers
from pipeline.output.disk import free_inodes
from pipeline.output.lock import LOCK, objection
from pipeline.run.contents import compare_contents
from pipeline.run.earlier import asked_for
from pipeline.run.job import Prepared, prepare, refusal
from pipeline.run.plan.kept import Kept, kept, looked_into
from pipeline.run.scan_stage import judge
from pipeline.run.space import lacks_inodes, lacks_space
from pipeline.scan.ranges import Scan, check_usable
from pipeline.settings.config import Config
from pipeline.shards.twins import find_twins

__all__ = ["Findings", "free_bytes", "heard", "looked_at_inputs", "looked_at_output", "looked_at_rows", "nearest"]

T = TypeVar("T")

_TWINS_BYTES = 2**29  # of rows that are compared in full: a plan is to take seconds
_TWINS_SHARDS = 1000  # of one shape, of which some rows are compared
_TWINS_LISTED = 10
_LEFT_OUT = " This shard is left out."  # how a warning of a refused one ends


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
    log, handler = logging.getLogger("pipeline"), _Ear(found.warnings)
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
