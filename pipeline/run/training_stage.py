"""From rows to a fitted model: trained, or taken over from an earlier run that did the same."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.device import autoencoder_of, training_step_of
from pipeline.errors import DataError, TrainingDiverged, counted, shown
from pipeline.model import Model, load_model
from pipeline.output.records import LAST_GOOD, Record
from pipeline.run.budget import Budget
from pipeline.run.earlier import latest
from pipeline.run.job import Job, versions
from pipeline.scan.ranges import Scan, readable
from pipeline.scan.scaler import Scaler
from pipeline.settings.config import Config
from pipeline.shards.shard import row_dtype
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.epochs import train
from pipeline.training.order import Order, slab_starts, spread_rows
from pipeline.training.rows import ResidentRows, Rows, StreamedRows

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.step import TrainingStep

__all__ = ["fit"]

log = logging.getLogger(__name__)

_MEAN_BYTES = 2**22
_CHECKPOINTS_KEPT = 2


def fit(job: Job, found: Scan) -> tuple[Model, Autoencoder]:
    """Train, or take over what an earlier run has left.

    Raises
    ------
    TrainingDiverged
    """
    scaler = Scaler(found.minimum, found.maximum)
    autoencoder = autoencoder_of(scaler, job.n_features, row_dtype(job.shards))
    model = _earlier_model(job, found)
    if model is None:
        model = _trained(job, autoencoder, scaler, found)
    else:
        log.info("training: an earlier run has finished it")
        autoencoder.set_parameters(model.parameters)
    job.ledger.drop(*job.ledger.records("checkpoint", job.of_model(found)))
    job.clock.lap("training")
    return model, autoencoder


def _earlier_model(job: Job, found: Scan) -> Model | None:
    return latest(
        job,
        "model",
        job.of_model(found),
        lambda record: load_model(job.ledger.directory / record.entry.file),
        "%s; it is trained anew",
    )


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
    config, budget = job.config, job.budget
    job.clock.model = fingerprint = job.of_model(found)
    shards, found = readable(job.shards, found)
    watched = _validation(found, budget, config)
    order = Order(
        slab_starts(shards, budget.window_rows // 4),
        np.union1d(found.bad_rows, watched),
        budget.window_rows,
        config.seed,
    )
    if not order.n_rows:
        counts = f"{found.n_rows} rows, {len(found.bad_rows)} bad, {len(watched)} for validation"
        raise DataError(f"no rows to train on: {counts}. Lower --validation-fraction.")
    rows: Rows = ResidentRows(shards, budget.n_threads) if job.resident else StreamedRows(shards, budget.n_threads)
    validation = rows.take(watched)
    log.info(
        "training: %s %s, %d for validation, minibatches of %d",
        *(counted(order.n_rows, "row"), "in memory" if job.resident else "streamed", len(watched), config.batch_size),
    )
    autoencoder.initialize(np.random.default_rng(config.seed), _mean(scaler, rows, found, config))
    step = training_step_of(autoencoder, config.optimizer, config.momentum, row_dtype(shards), rows.resident)
    autoencoder.errors(validation[:0])  # compiles it, before the training's time begins
    checkpoint = _earlier_checkpoint(job, fingerprint, autoencoder, step)
    if checkpoint is not None:
        log.info("training: going on behind step %d of an earlier run", checkpoint.n_steps)
    save = partial(_save, job, fingerprint)
    return train(autoencoder, step, rows, order, validation, config, checkpoint, save).summary()


def _earlier_checkpoint(job: Job, fingerprint: str, autoencoder: Autoencoder, step: TrainingStep) -> Checkpoint | None:
    def read(record: Record) -> Checkpoint:
        checkpoint = Checkpoint.from_npz(job.ledger.load(record))
        checkpoint.check_fits(autoencoder, step)
        return checkpoint

    return latest(job, "checkpoint", fingerprint, read, "checkpoint %s; the one before it is taken")


def _save(job: Job, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint, and let go of all but the last ones."""
    entry = job.ledger.write("stages/checkpoint", ".npz", checkpoint.to_npz())
    facts = {"n_epochs": checkpoint.progress["epoch"], "of": job.config.epochs}
    job.ledger.commit(f"checkpoint-{checkpoint.n_steps:012d}", fingerprint, entry, facts)
    job.ledger.drop(*job.ledger.records("checkpoint", fingerprint)[:-_CHECKPOINTS_KEPT])


def _validation(found: Scan, budget: Budget, config: Config) -> np.ndarray:
    """Numbers of the rows that training is watched with."""
    n_wanted = round(config.validation_fraction * found.n_rows)
    if n_wanted > budget.max_validation_rows:
        log.info(
            "validation: %s instead of %d, to stay in the memory budget",
            counted(budget.max_validation_rows, "row"),
            n_wanted,
        )
    return spread_rows(found.n_rows, found.bad_rows, min(n_wanted, budget.max_validation_rows), config.seed)


def _mean(scaler: Scaler, rows: Rows, found: Scan, config: Config) -> np.ndarray | None:
    """The scaled rows' mean, for the start of the biases, over rows that depend on no block, thread or budget."""
    if config.biases == "zero":
        return None
    n_wanted = min(found.n_rows, max(1, _MEAN_BYTES // (8 * len(scaler.minimum))))
    sample = rows.take(spread_rows(found.n_rows, found.bad_rows, n_wanted, config.seed))
    return np.asarray(scaler.transform(sample).mean(axis=0, dtype=np.float64)) if len(sample) else None
