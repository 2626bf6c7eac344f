"""What would stop a run, found without one: all of it, as far as one thing does not hide behind another."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from pipeline.errors import DataError, ShardpressError, TryAgain, shown
from pipeline.hdf5.files import writers
from pipeline.output.lock import LOCK, objection
from pipeline.run.earlier import asked_for
from pipeline.run.job import Prepared, prepare, refusal
from pipeline.run.plan.kept import Kept, kept, looked_into
from pipeline.run.scan_stage import judge
from pipeline.run.space import lacks_space
from pipeline.scan.ranges import Scan, check_usable
from pipeline.settings.config import Config

__all__ = ["Problems", "free_bytes", "heard", "looked_at_inputs", "looked_at_output", "looked_at_rows", "nearest"]

T = TypeVar("T")


class Problems(list[ShardpressError]):
    """What would stop a run, in the order in which it would meet it."""

    def caught(self, look: Callable[[], T]) -> T | None:
        """What a look finds; None where it fails, which is a problem then."""
        try:
            return look()
        except ShardpressError as error:
            self.append(error)
            return None


@contextmanager
def heard() -> Iterator[list[str]]:
    """What the program warns of within the context, in place of a log of it."""
    said: list[str] = []
    log, handler = logging.getLogger("pipeline"), logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log.addHandler(handler)
    log.propagate = False
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.propagate = True


def looked_at_inputs(config: Config, problems: Problems, warnings: list[str]) -> Prepared | None:
    """What a run with these settings would know at its start; None where they or the inputs do not allow it."""
    lenient = replace(config, on_bad_data="skip", max_bad_shards="100%")  # so that every bad shard is met
    prepared = problems.caught(lambda: prepare(lenient))
    left_out = [words for words in warnings if words.endswith(" This shard is left out.")]
    if config.on_bad_data == "raise":
        problems += [DataError(words.removesuffix(" This shard is left out.")) for words in left_out]
        warnings[:] = [words for words in warnings if words not in left_out]
    if prepared is None:
        return None
    asked = replace(prepared.config, on_bad_data=config.on_bad_data, max_bad_shards=config.max_bad_shards)
    n_shards = len(prepared.shards) + len(prepared.bad_shards)
    if config.on_bad_data != "raise" and (error := refusal(config, prepared.bad_shards, n_shards)):
        problems.append(error)
    return replace(prepared, config=asked)


def looked_at_output(prepared: Prepared, problems: Problems) -> Kept:
    """What an earlier run has left that would be used; and whether there is leave and room to write."""
    directory = Path(prepared.config.output)
    if error := objection(directory):
        problems.append(error)
        return Kept()
    if pid := _at_work(directory):
        where = f"output={shown(directory)}"
        problems.append(TryAgain(f"{where}: another run (process {pid}) is at work there. Wait until it has ended."))
    ledger = problems.caught(lambda: looked_into(directory))
    found = Kept() if ledger is None else kept(ledger, prepared)
    if ledger is not None and not prepared.config.restart:
        problems.caught(lambda: asked_for(ledger, prepared))
    free = free_bytes(directory)
    if free is not None and (lack := lacks_space(prepared, found.n_bytes, free)):
        problems.append(lack)
    return found


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


def looked_at_rows(prepared: Prepared, scan: Scan, problems: Problems, warnings: list[str]) -> bool:
    """Whether rows like those of a scan of some of them can be learnt from."""
    where = "" if scan.n_rows == prepared.n_rows else f"{scan.n_rows} of {prepared.n_rows} rows were looked at: "
    n_before = len(problems)
    if prepared.tolerates_bad_data and len(scan.bad_rows) * prepared.n_rows > prepared.max_bad_rows * scan.n_rows:
        n = len(scan.bad_rows) * prepared.n_rows // scan.n_rows
        warnings.append(f"about {n} rows are bad, expected {prepared.max_bad_rows} at most (--max-bad-rows)")
    problems.caught(lambda: judge(prepared, scan))
    if prepared.given is None:
        problems.caught(lambda: check_usable(prepared.shards, scan, prepared.config.missing_value))
    problems[n_before:] = [type(error)(f"{where}{error}") for error in problems[n_before:]]
    return scan.n_good > 1 and not scan.constant.all()
