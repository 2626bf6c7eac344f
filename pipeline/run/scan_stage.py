"""What one pass over the rows tells, taken over from an earlier run or found out, and what of it stops a run."""

from __future__ import annotations

import logging

import numpy as np

from pipeline.cluster.threads import threads
from pipeline.errors import DataError, counted
from pipeline.output.records import Record
from pipeline.progress import Progress
from pipeline.run.earlier import latest
from pipeline.run.job import Job
from pipeline.scan.ranges import Scan, ScanSettings, check_usable, describe_bad_rows, scan
from pipeline.settings.config import Config
from pipeline.settings.kinds import allowed

__all__ = ["scanned"]

log = logging.getLogger(__name__)


def scanned(job: Job) -> Scan:
    """What one pass over the rows tells.

    Raises
    ------
    DataError
        For bad rows and shards that the settings do not allow; or when there is nothing to learn from.
    """
    found = _earlier_scan(job)
    if found is None:
        found = _scan(job)
        entry = job.ledger.write("stages/scan", ".npz", found.to_npz())
        job.ledger.commit(Record("scan", job.request.of_scan(), entry))
    _judge(job, found)  # behind the commit: with more leave the next run need not scan again
    if job.given is None:
        check_usable(job.shards, found, job.config.missing_value)
        _doubt(job, found)
    job.clock.lap("scan")
    return found


def _earlier_scan(job: Job) -> Scan | None:
    fingerprint = job.request.of_scan()
    found = latest(
        job, "scan", fingerprint, lambda record: Scan.from_npz(job.ledger.load(record)), "scan: %s; it is made anew"
    )
    if found is None:
        return None
    if found.unreadable:  # the files may have been mended without a change of their times
        job.ledger.drop(*job.ledger.records("scan", fingerprint))
        return None
    log.info("scan: an earlier run has finished it")
    return found


def _scan(job: Job) -> Scan:
    shards, config, budget = job.shards, job.config, job.budget
    row_bytes = shards[0].n_inputs * np.dtype(shards[0].dtype).itemsize
    max_unreadable = None  # the first one is an error
    if job.tolerates_bad_data:
        n_shards = len(shards) + len(job.bad_shards)  # those that were refused count as bad ones already
        max_unreadable = max(0, allowed(config.max_bad_shards, n_shards) - len(job.bad_shards))
    settings = ScanSettings(budget.block_rows, config.missing_value, max_unreadable)
    with Progress("scan", job.n_rows, "rows", row_bytes) as progress, threads(budget.n_threads) as pool:
        return scan(shards, settings, pool, budget.n_threads, progress.advance)


def _judge(job: Job, found: Scan) -> None:
    """Stop for bad rows, unless the settings let them pass."""
    n_bad = len(found.bad_rows)
    if not n_bad:
        return
    config = job.config
    words = describe_bad_rows(job.shards, found, config.missing_value)
    if not job.tolerates_bad_data:
        raise DataError(f"{words}, expected finite numbers. {_leave_out(config, found)}")
    limit = allowed(config.max_bad_rows, found.n_rows)
    if n_bad > limit:
        raise DataError(
            f"{words}, expected {limit} at most (--max-bad-rows {config.max_bad_rows}). {_leave_out(config, found)}"
        )
    log.warning("%s; they are left out and get NaN features", words)


def _leave_out(config: Config, found: Scan) -> str:
    """What to do about bad rows: all flags that it takes, so that the next run goes through."""
    if not found.n_good:
        return "Mend the files: no row would be left."
    how = config.on_bad_data if config.on_bad_data != "raise" else "skip"
    limit = f" --max-bad-rows {len(found.bad_rows)}"
    is_within = len(found.bad_rows) <= allowed(config.max_bad_rows, found.n_rows)
    return f"Mend the files, or leave these rows out with --on-bad-data {how}{'' if is_within else limit}."


def _doubt(job: Job, found: Scan) -> None:
    """Warn of data from which little can be learnt."""
    if found.n_good < job.config.n_features:
        n_inputs = job.shards[0].n_inputs
        advice = " If rows stand as columns there: --orientation columns." if n_inputs > found.n_rows else ""
        log.warning(
            "%s of %d columns, fewer than the %d features that they become: a model can learn them by "
            "heart and tell little about others. Give more rows, or lower --n-features.%s",
            *(counted(found.n_good, "usable row"), n_inputs, job.config.n_features, advice),
        )
