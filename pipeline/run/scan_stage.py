"""What one pass over the rows tells, taken over from an earlier run or found out, and what of it stops a run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from pipeline.columns import Columns
from pipeline.errors import DataError, counted, some
from pipeline.output.ledger import Ledger
from pipeline.output.records import Record
from pipeline.progress import Progress
from pipeline.run.earlier import latest, load_at_most
from pipeline.run.job import Job, Prepared
from pipeline.scan import ranges
from pipeline.scan.blocks import ScanSettings
from pipeline.scan.ranges import Scan, scan_bytes
from pipeline.settings.config import BadDataSettings
from pipeline.settings.kinds import allowed
from pipeline.shards.shard import Shard, with_offset

__all__ = ["judge", "load_scan", "offset_of", "scan_settings", "scanned", "with_offset_in"]

log = logging.getLogger(__name__)

P = TypeVar("P", bound=Prepared)

_COLUMNS = 10  # that a sentence names


def scanned(job: Job) -> Scan:
    """What one pass over the rows tells.

    Raises
    ------
    DataError
        For bad rows and shards that the settings do not allow; or when there is nothing to learn from.
    """
    scan = _earlier(job)
    if scan is None:
        scan = _scan(job)
        offset = offset_of(job, scan)
        if offset is not None:
            log.info(
                "scan: %s of whole numbers above 2^53, of which float64 would lose digits: scanning again with their "
                "minimum subtracted",
                counted(np.count_nonzero(offset), "column"),
            )
            scan = replace(_scan(with_offset_in(job, offset)), offset=offset)
        entry = job.ledger.write("stages/scan", ".npz", scan.to_npz())
        job.ledger.commit(Record("scan", job.request.of_scan(), entry))
    judge(job, scan)  # behind the commit: with more leave the next run need not scan again
    if job.given is None:
        ranges.check_usable(job.shards, scan, job.config.bad_data.missing_value)
        _doubt(job, scan)
        _tell_narrow(scan, job.columns)
    _tell_filled(job, scan)
    job.clock.lap("scan")
    return scan


def with_offset_in(prepared: P, offset: np.ndarray | None) -> P:
    """Return a run whose rows are read with an offset (n_inputs,) subtracted; the same one without an offset."""
    if offset is None:
        return prepared
    return replace(prepared, shards=tuple(with_offset(shard, offset) for shard in prepared.shards))


def offset_of(prepared: Prepared, scan: Scan) -> np.ndarray | None:
    """Return what to subtract from the rows, by a scan of them as they are; None without large whole numbers.

    A given model has its own offset. A missing value is compared with the rows as they are, so they stay so.
    """
    if prepared.given is not None or prepared.config.bad_data.missing_value is not None:
        return None
    return ranges.offset_for(prepared.shards, scan)


def _earlier(job: Job) -> Scan | None:
    fingerprint = job.request.of_scan()
    complaint = "scan: %s; it is made anew"
    scan = latest(job, "scan", fingerprint, lambda record: load_scan(job.ledger, record, job.shards), complaint)
    if scan is None:
        return None
    if scan.unreadable:  # the files may have been mended without a change of their times
        job.ledger.drop(*job.ledger.records("scan", fingerprint))
        return None
    log.info("scan: an earlier run has finished it")
    job.clock.taken_over["scan"] = "the scan"
    return scan


def load_scan(ledger: Ledger, record: Record, shards: Sequence[Shard]) -> Scan:
    """Return a committed scan of these shards; raise `ValueError` if it is none."""
    return Scan.from_npz(load_at_most(ledger, record, scan_bytes(shards))).check_fits(shards)


def _scan(job: Job) -> Scan:
    shards = job.shards
    budget = job.budget
    settings = scan_settings(job)
    settings = replace(settings, chunk_bytes=settings.chunk_bytes // max(1, job.crew.n_sharing))  # of each process
    with (
        Progress("scan", job.n_rows, "rows", shards[0].row_bytes) as progress,
        job.crew.executor(budget.n_threads) as where,
    ):
        tally = job.crew.tally
        tally.begin("scan")
        return ranges.scan(shards, settings, *where, lambda n_rows: progress.advance(n_rows, tally))


def scan_settings(job: Prepared) -> ScanSettings:
    """How the rows are looked at."""
    # Those that were refused count as bad ones already; without leave the first one is an error.
    max_unreadable = job.max_bad_shards - len(job.bad_shards) if job.tolerates_bad_data else None
    settings = job.config.bad_data
    return ScanSettings(
        job.budget.block_rows,
        settings.missing_value,
        max_unreadable,
        settings.clip_quantile,
        job.impute,
        job.budget.chunk_bytes,
    )


def judge(job: Prepared, scan: Scan) -> None:
    """Stop for bad rows, unless the settings let them pass.

    Raises
    ------
    DataError
    """
    n_bad = len(scan.bad_rows)
    limit = job.max_bad_rows
    settings = job.config.bad_data
    if not n_bad:
        return
    words = ranges.describe_bad_rows(job.shards, scan, settings.missing_value)
    if n_bad > limit:
        most = f"{limit} at most (--max-bad-rows {settings.max_bad_rows})"
        expected = most if job.tolerates_bad_data else "finite numbers"
        # A given model fills nothing in, or has done so.
        can_fill = job.given is None and ranges.misses_values(job.shards, scan, settings.missing_value)
        raise DataError(f"{words}, expected {expected}. {_leave_out(settings, scan, can_fill)}")
    log.warning("%s; they are left out and get NaN features", words)


def _leave_out(settings: BadDataSettings, scan: Scan, can_fill: bool) -> str:
    """What to do about bad rows: all flags that it takes, so that the next run goes through."""
    fill = "fill in what is missing with --impute median" if can_fill else ""
    if not scan.n_good:
        return f"Mend the files{fill and ', or '}{fill}: no row would be left."
    n_bad = len(scan.bad_rows)
    how = "skip" if settings.on_bad_data == "raise" else settings.on_bad_data
    limit = f" --max-bad-rows {n_bad}" if n_bad > allowed(settings.max_bad_rows, scan.n_rows) else ""
    return f"Mend the files, {fill}{fill and ', '}or leave these rows out with --on-bad-data {how}{limit}."


def _doubt(job: Job, scan: Scan) -> None:
    """Warn of data from which little can be learnt."""
    if scan.n_good < job.config.network.n_features:
        n_inputs = job.shards[0].n_inputs
        advice = " If rows stand as columns there: --orientation columns." if n_inputs > scan.n_rows else ""
        log.warning(
            "%s of %d columns, fewer than the %d features that they become: a model can learn them by "
            "heart and tell little about others. Give more rows, or lower --n-features.%s",
            *(counted(scan.n_good, "usable row"), n_inputs, job.config.network.n_features, advice),
        )


def _tell_narrow(scan: Scan, names: Columns) -> None:
    """Warn of columns that count for next to nothing, since outliers widen their range."""
    if len(columns := scan.narrow):
        worst = columns[0]
        log.warning(
            "%s with a range of over a hundred standard deviations, but for outliers, so that a model sees these only: "
            "%s; column %s ranges from %g to %g, but 80 %% of its values lie between %g and %g. Clip the outermost "
            "values with --clip-quantile %g.",
            *(counted(len(columns), "column"), some(names.listed(columns), _COLUMNS)),
            *(names.numbered(int(worst)), scan.minimum[worst], scan.maximum[worst], *scan.inner[:, worst]),
            0.01 if scan.clips else 0.001,
        )


def _tell_filled(job: Job, scan: Scan) -> None:
    if scan.n_missing is not None and scan.n_missing.any():
        by = "what the model has for it" if job.given else f"its {job.config.bad_data.impute}"
        n_columns = int((scan.n_missing > 0).sum())
        log.info(
            "scan: %s in %s, each filled with %s",
            *(counted(int(scan.n_missing.sum()), "missing value"), counted(n_columns, "column"), by),
        )
