"""From a fitted model to committed parts: what is missing is encoded and committed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.encoding.bad_data import Outside, Policy, farthest
from pipeline.encoding.encode import Encoded, encode_parts, plan_parts
from pipeline.errors import DataError, counted, shown
from pipeline.model import Model
from pipeline.output.groupcommit import GroupCommit
from pipeline.output.records import Record
from pipeline.run.earlier import intact, n_allowed
from pipeline.run.job import Job
from pipeline.scan.ranges import Scan

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["encode", "policy_of", "tell_outside"]

log = logging.getLogger(__name__)


_MANY_OUTSIDE = 0.01  # of the rows
# of the rows


def policy_of(job: Job, found: Scan | None) -> Policy:
    """What becomes of rows that cannot be encoded like the others."""
    config, given = job.config, job.given
    return Policy(
        on_bad_data=config.on_bad_data,
        missing=config.missing_value,
        unreadable={} if found is None else found.unreadable,
        out_of_range=config.out_of_range,
        minimum=None if given is None else given.scaler.minimum,
        maximum=None if given is None else given.scaler.maximum,
    )


def encode(job: Job, model: Model, autoencoder: Autoencoder, policy: Policy, fingerprint: str) -> list[Record]:
    """Commit every part that is not there yet; the records of all of them, in the order of the rows."""
    ledger = job.ledger
    job.clock.features = fingerprint
    there = intact(job, ledger.records("part", fingerprint))
    parts, overlapping = plan_parts(job.shards, job.budget.part_rows, there)
    ledger.drop(*overlapping)
    if there and parts:
        n_rows = sum(record.facts["n_rows"] for record in there)
        there_are = f"{counted(n_rows, 'row')} in {counted(len(there), 'part')}"
        log.info("encoding: going on, an earlier run has committed %s", there_are)
    dtypes = [np.dtype(name) for name in sorted({shard.dtype for shard in job.shards})]
    if parts:
        for dtype in dtypes:
            # No rows, no work: it compiles before the progress starts to count.
            autoencoder.encode(np.empty((0, autoencoder.n_inputs), dtype=dtype))
    limit = n_allowed(job.config, job.config.max_bad_rows, sum(shard.n_rows for shard in job.shards))
    n_bad = 0

    def count(facts: Mapping[str, Any]) -> None:
        nonlocal n_bad
        n_bad += facts["n_bad"]
        if n_bad > limit:
            raise DataError(
                f"file={shown(facts['path'])} dataset={shown(facts['dataset'])} rows={facts['start']}:{facts['stop']}: "
                f"{counted(n_bad, 'bad row')} so far, expected {limit} at most (--max-bad-rows "
                f"{job.config.max_bad_rows}, --on-bad-data {job.config.on_bad_data}). Mend the files, or raise it."
            )

    for record in there:
        count(record.facts)

    about = {**job.about(), "model": model.fingerprint}
    n_callers = min(job.budget.n_threads, autoencoder.n_callers(dtypes))
    with GroupCommit(ledger) as group:

        def commit(done: Encoded) -> None:
            count(done.facts)
            group.add(Record(done.part.key, fingerprint, done.entry, done.facts))

        encode_parts(
            parts,
            ledger.write,
            autoencoder.encode_checked,
            job.n_features,
            job.budget,
            policy,
            about,
            commit,
            n_callers,
        )
    return ledger.records("part", fingerprint)


def tell_outside(records: Sequence[Record]) -> None:
    """Warn when many rows are not like those that a given model has learnt from."""
    n_rows, n_outside = (sum(record.facts[name] for record in records) for name in ("n_rows", "n_outside"))
    if n_outside > _MANY_OUTSIDE * n_rows:
        worst = farthest(Outside(*found) for record in records for found in record.facts.get("outside", []))
        log.warning(
            "%d of %d rows lie outside the range of the rows that the model was trained on, farthest in %s. Their "
            "features may mean little: train a model on such rows, or choose with --out-of-range.",
            *(n_outside, n_rows, "; ".join(map(str, worst))),
        )
