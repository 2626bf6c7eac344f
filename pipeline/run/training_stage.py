"""From rows to a fitted model: scan, then train; each is taken over from an earlier run that did the same."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.cluster.threads import compute
from pipeline.errors import DataError, ShardpressError, TrainingDiverged, counted, shown
from pipeline.model import Model, load_model
from pipeline.output.ledger import LAST_GOOD, Record
from pipeline.progress import Progress
from pipeline.run.budget import Plan
from pipeline.run.job import Job, versions
from pipeline.scan.ranges import Scan, check_usable, describe_bad_rows, readable, scan
from pipeline.scan.scaler import Scaler
from pipeline.settings.config import Config, allowed
from pipeline.shards.open import row_dtype
from pipeline.training.epochs import Checkpoint, train
from pipeline.training.rows import Order, ResidentRows, Rows, StreamedRows, slab_starts, spread_rows

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder, TrainingStep

__all__ = ["autoencoder_of", "fit", "intact", "scanned"]

log = logging.getLogger(__name__)

_MEAN_BYTES = 2**22
_CHECKPOINTS_KEPT = 2


def fit(job: Job) -> tuple[Model, Autoencoder, Scan]:
    """Scan and train, or take over what an earlier run has left.

    Raises
    ------
    DataError
        For bad rows that the settings do not allow, or a training that diverges.
    """
    found = scanned(job)
    check_usable(job.shards, found, job.config.missing_value)
    _doubt(job, found)
    job.clock.lap("scan")
    scaler = Scaler(found.minimum, found.maximum)
    autoencoder = autoencoder_of(job, scaler)
    model = _earlier_model(job, found)
    if model is None:
        model = _trained(job, autoencoder, scaler, found)
    else:
        log.info("training: an earlier run has finished it")
        autoencoder.set_parameters(model.parameters)
    job.ledger.drop(*job.ledger.records("checkpoint", job.of_model(found)))
    job.clock.lap("training")
    return model, autoencoder, found


def autoencoder_of(job: Job, scaler: Scaler) -> Autoencoder:
    """The model on the device, its parameters not yet set."""
    from kernels.autoencoder import Autoencoder

    minimum, scale = scaler.arrays(row_dtype(job.shards))
    return Autoencoder(job.shards[0].n_inputs, job.n_features, minimum, scale, scaler.maximum.astype(minimum.dtype))


def intact(job: Job, records: Iterable[Record]) -> list[Record]:
    """Those of `records` whose files are as they were committed; the others are dropped, and said so."""
    records = list(records)
    digests = job.config.verify == "digests"
    faults = compute([partial(job.ledger.fault, record.entry, digests) for record in records], job.plan.n_threads)
    for record, fault in zip(records, faults, strict=True):
        if fault:
            log.warning("%s; it is made anew", fault)
            job.ledger.drop(record)
    return [record for record, fault in zip(records, faults, strict=True) if not fault]


# -- scan --------------------------------------------------------------------------------------------------------


def scanned(job: Job) -> Scan:
    """What one pass over the rows tells.

    Raises
    ------
    DataError
        For bad rows and shards that the settings do not allow.
    """
    found = _earlier_scan(job)
    if found is None:
        found = _scan(job)
        entry = job.ledger.write("stages/scan", ".npz", found.to_npz())
        job.ledger.commit("scan", job.request.of_scan(), entry)
    _judge(job, found)
    return found


def _earlier_scan(job: Job) -> Scan | None:
    for record in intact(job, job.ledger.records("scan", job.request.of_scan())):
        try:
            found = Scan.from_npz(job.ledger.load(record))
        except ValueError as error:
            log.warning("scan: %s; it is made anew", error)
            job.ledger.drop(record)
            continue
        if found.unreadable:
            job.ledger.drop(record)  # the files may have been mended without a change of their times
            continue
        log.info("scan: an earlier run has finished it")
        return found
    return None


def _scan(job: Job) -> Scan:
    shards, config, plan = job.shards, job.config, job.plan
    n_rows = sum(shard.n_rows for shard in shards)
    row_bytes = shards[0].n_inputs * np.dtype(shards[0].dtype).itemsize
    max_unreadable = None
    if job.tolerates_bad_data:
        n_shards = len(shards) + len(job.bad_shards)
        max_unreadable = max(0, allowed(config.max_bad_shards, n_shards) - len(job.bad_shards))
    with Progress("scan", n_rows, "rows", row_bytes) as progress:
        return scan(shards, plan.block_rows, plan.n_threads, progress.advance, config.missing_value, max_unreadable)


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
    if found.n_good < job.n_features:
        n_inputs = job.shards[0].n_inputs
        advice = " If rows stand as columns there: --orientation columns." if n_inputs > found.n_rows else ""
        log.warning(
            "%s of %d columns, fewer than the %d features that they become: a model can learn them by "
            "heart and tell little about others. Give more rows, or lower --n-features.%s",
            *(counted(found.n_good, "usable row"), n_inputs, job.n_features, advice),
        )


# -- training ----------------------------------------------------------------------------------------------------


def _earlier_model(job: Job, found: Scan) -> Model | None:
    for record in intact(job, job.ledger.records("model", job.of_model(found))):
        try:
            return load_model(job.ledger.directory / record.entry.file)
        except ShardpressError as error:
            log.warning("%s; it is trained anew", error)
            job.ledger.drop(record)
    return None


def _trained(job: Job, autoencoder: Autoencoder, scaler: Scaler, found: Scan) -> Model:
    try:
        training = _train(job, autoencoder, scaler, found)
    except TrainingDiverged as error:
        stopped = Model(scaler, autoencoder.parameters(), {"stopped": str(error)})
        job.ledger.replace(LAST_GOOD, stopped.to_hdf5())
        path = job.ledger.directory / LAST_GOOD
        raise TrainingDiverged(f"{error} The last good weights are in {shown(path)}.") from error
    about = {"training": training, "config": asdict(job.config), "versions": versions(), "device": str(job.device)}
    model = Model(scaler, autoencoder.parameters(), about)
    fingerprint = job.of_model(found)
    job.ledger.commit("model", fingerprint, job.ledger.write("stages/model", ".h5", model.to_hdf5()))
    return model


def _train(job: Job, autoencoder: Autoencoder, scaler: Scaler, found: Scan) -> dict[str, Any]:
    from kernels.autoencoder import TrainingStep

    config, plan = job.config, job.plan
    job.clock.model = fingerprint = job.of_model(found)
    shards, found = readable(job.shards, found)
    watched = _validation(found, plan, config)
    order = Order(
        slab_starts(shards, plan.window_rows // 4), np.union1d(found.bad_rows, watched), plan.window_rows, config.seed
    )
    if not order.n_rows:
        counts = f"{found.n_rows} rows, {len(found.bad_rows)} bad, {len(watched)} for validation"
        raise DataError(f"no rows to train on: {counts}. Lower --validation-fraction.")
    rows: Rows = ResidentRows(shards, plan.n_threads) if plan.resident else StreamedRows(shards, plan.n_threads)
    validation = rows.take(watched)
    log.info(
        "training: %s %s, %d for validation, minibatches of %d",
        *(counted(order.n_rows, "row"), "in memory" if plan.resident else "streamed", len(watched), config.batch_size),
    )
    autoencoder.initialize(np.random.default_rng(config.seed), _mean(scaler, rows, found, config))
    step = TrainingStep(autoencoder, config.optimizer, config.momentum, row_dtype(shards), rows.resident)
    # Now, so that the training's time and rate are its own.
    step.compile()
    autoencoder.errors(validation[:0])
    checkpoint = _earlier_checkpoint(job, fingerprint, autoencoder, step)
    if checkpoint is not None:
        log.info("training: going on behind step %d of an earlier run", checkpoint.n_steps)
    save = partial(_save, job, fingerprint)
    return train(autoencoder, step, rows, order, validation, config, checkpoint, save).summary()


def _earlier_checkpoint(job: Job, fingerprint: str, autoencoder: Autoencoder, step: TrainingStep) -> Checkpoint | None:
    """The latest good one."""
    for record in reversed(intact(job, job.ledger.records("checkpoint", fingerprint))):
        try:
            checkpoint = Checkpoint.from_npz(job.ledger.load(record))
            checkpoint.check_fits(autoencoder, step)
            return checkpoint
        except ValueError as error:
            log.warning("checkpoint %s; the one before it is taken", error)
            job.ledger.drop(record)
    return None


def _save(job: Job, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint, and let go of all but the last ones."""
    entry = job.ledger.write("stages/checkpoint", ".npz", checkpoint.to_npz())
    facts = {"n_epochs": checkpoint.progress["epoch"], "of": job.config.epochs}
    job.ledger.commit(f"checkpoint-{checkpoint.n_steps:012d}", fingerprint, entry, facts)
    job.ledger.drop(*job.ledger.records("checkpoint", fingerprint)[:-_CHECKPOINTS_KEPT])


def _validation(found: Scan, plan: Plan, config: Config) -> np.ndarray:
    """Numbers of the rows that training is watched with."""
    n_wanted = round(config.validation_fraction * found.n_rows)
    if n_wanted > plan.max_validation_rows:
        log.info(
            "validation: %s instead of %d, to stay in the memory budget",
            counted(plan.max_validation_rows, "row"),
            n_wanted,
        )
    return spread_rows(found.n_rows, found.bad_rows, min(n_wanted, plan.max_validation_rows), config.seed)


def _mean(scaler: Scaler, rows: Rows, found: Scan, config: Config) -> np.ndarray | None:
    """The scaled rows' mean, for the start of the biases, over rows that depend on no block, thread or budget."""
    if config.biases == "zero":
        return None
    n_wanted = min(found.n_rows, max(1, _MEAN_BYTES // (8 * len(scaler.minimum))))
    sample = rows.take(spread_rows(found.n_rows, found.bad_rows, n_wanted, config.seed))
    return np.asarray(scaler.transform(sample).mean(axis=0, dtype=np.float64)) if len(sample) else None
