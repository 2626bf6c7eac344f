"""From rows to a fitted model: trained, or taken over from an earlier run that did the same."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.cluster.crew import Threads
from pipeline.cluster.tally import Tally
from pipeline.device import autoencoder_of
from pipeline.errors import TrainingDiverged, shown
from pipeline.model import Model, load_model
from pipeline.output.records import LAST_GOOD, Record
from pipeline.progress import Progress
from pipeline.run.deadline import InTime
from pipeline.run.earlier import latest, load_at_most
from pipeline.run.job import Job, step_of, versions
from pipeline.scan.ranges import Scan
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import row_dtype
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.epochs import Training, train
from pipeline.training.fit import prepared
from pipeline.training.replica import Run, run_by
from pipeline.training.verdict import complaints, measured

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder

__all__ = ["fit"]

log = logging.getLogger(__name__)

_CHECKPOINTS_KEPT = 2  # should the last one be damaged


def fit(job: Job, scan: Scan) -> tuple[Model, Autoencoder]:
    """Train, or take over what an earlier run has left.

    Raises
    ------
    DataError
        When no row is left to train on, or rows cannot be read.
    TrainingDiverged
    """
    fingerprint = job.of_model(scan.unreadable)
    network = network_of(job.config.network, len(scan.minimum))
    autoencoder = autoencoder_of(scan.scaler, network, row_dtype(job.shards))
    directory = job.ledger.directory
    model = latest(
        job, "model", fingerprint, lambda record: load_model(directory / record.entry.file), "%s; it is trained anew"
    )
    if model is None:
        _tell_idle(job)
        model = _trained(job, fingerprint, autoencoder, scan)
        job.ledger.commit(Record("model", fingerprint, job.ledger.write("stages/model", ".h5", model.to_hdf5())))
    else:
        log.info("training: an earlier run has finished it")
        job.clock.taken_over["training"] = "the trained model"
        autoencoder.set_parameters(model.parameters)
    # Versions that did not know the names of columns stored none.
    model = replace(model, columns=job.columns)
    # Only now: until the model is committed, they are what a run goes on from.
    job.ledger.drop(*job.ledger.records("checkpoint", fingerprint))
    for complaint in complaints(model.about["training"], job.config.training, model.network):
        log.warning("%s", complaint)
    gc.collect()  # what is compiled for it holds itself, and with it all rows: encoding needs the memory
    job.clock.lap("training")
    return model, autoencoder


def _trained(job: Job, fingerprint: str, autoencoder: Autoencoder, scan: Scan) -> Model:
    job.clock.model = fingerprint
    scaler = scan.scaler
    sizes = job.budget.sizes(job.device)
    by_crew = job.config.training.replicas > 1 and not isinstance(job.crew, Threads)
    if by_crew:  # workers read their rows themselves
        sizes = replace(sizes, resident=False, on_device=False)
    training = prepared(
        autoencoder,
        job.shards,
        scan,
        job.config.training,
        job.config.validation,
        job.config.bad_data.missing_value,
        sizes,
    )
    checkpoint = latest(
        *(job, "checkpoint", fingerprint),
        partial(_resume, job, training),
        "checkpoint %s; the one before it is taken",
    )
    if checkpoint is not None:
        log.info("training: going on behind step %d of an earlier run", checkpoint.n_steps)
        job.clock.taken_over["training"] = f"the training up to step {checkpoint.n_steps}"
    ends_by = job.clock.ends_by
    in_time = None if ends_by is None else InTime(job, scan, ends_by)
    try:
        total = _rows_to_train(training)
        row_bytes = job.shards[0].row_bytes
        where = _crew_at_work(job) if by_crew else nullcontext()
        with Progress("training", total, "rows", row_bytes, training.n_rows_done) as progress, where as run:

            def advance(n_rows: int, place: object) -> None:
                if in_time is not None and n_rows:  # after a step, at which a training can be limited
                    in_time(training)
                    progress.expect(_rows_to_train(training))
                progress.advance(n_rows, place if run is None else _Place(place, job.crew.tally))

            save = partial(_save, job, fingerprint)
            done = train(training, save, advance, run, job.config.timing.checkpoint_minutes)
    except TrainingDiverged as error:  # it would again, so its weights are left for a look at them
        stopped = Model(scaler, autoencoder.network, training.best, {"stopped": str(error)}, scan.offset, job.columns)
        job.ledger.replace(LAST_GOOD, stopped.to_hdf5())
        path = job.ledger.directory / LAST_GOOD
        raise TrainingDiverged(f"{error} The last good weights are in {shown(path)}.") from error
    if done.best_epoch < 0:
        log.info("training: no epoch was better than the start, whose parameters are taken")
    elif len(done.history) < training.settings.epochs:
        log.info("training: stopped early, epoch %d was the best", done.best_epoch)
    settings = {"config": job.config.flat(), "versions": versions(), "device": str(job.device)}
    limits = {} if in_time is None else {"deadline": in_time.facts(training)}
    about = {"training": {**done.summary(), **measured(training), **limits}, **settings}
    return Model(scaler, autoencoder.network, training.best, about, scan.offset, job.columns)


def _rows_to_train(training: Training) -> int:
    """Return the rows of all steps that the training takes, each epoch counted."""
    if training.standing.ended_at is not None:
        return training.n_rows_done
    return training.settings.epochs * training.order.n_rows


def _resume(job: Job, training: Training, record: Record) -> Checkpoint:
    """Resume the training from a committed checkpoint; raise `ValueError` if it cannot be one of this training.

    Whoever can write in the output directory can also write records that fit. So the size is checked before the file is
    read, and what it says before it is used.
    """
    array_bytes = sum(array.nbytes for array in training.checkpoint().arrays.values())
    checkpoint = Checkpoint.from_npz(load_at_most(job.ledger, record, array_bytes))
    n_steps = checkpoint.n_steps
    epoch = checkpoint.standing.epoch
    is_possible = (epoch - 1) * training.steps_per_epoch <= n_steps <= (epoch + 1) * training.steps_per_epoch
    if n_steps != step_of(record) or not is_possible:
        raise ValueError(f"is after step {n_steps} in epoch {epoch}, but its record says step {step_of(record)}")
    return training.go_on_from(checkpoint)


def _tell_idle(job: Job) -> None:
    """Warn of devices that wait while the processor trains."""
    is_alone = job.config.training.replicas == 1 and job.device.used == "cpu"
    if is_alone and set(job.config.cluster.devices or ()) - {"cpu"}:
        log.warning(
            "training: one replica is trained by this process, on the processor, while --devices wait. "
            "THEANO_FLAGS=device=cuda (or what they are) has it train on one of them, --replicas 8 on all."
        )


@dataclass(frozen=True)
class _Place:
    """Where a training stands, and how fast its workers are; put into words when a line is due."""

    training: object
    workers: Tally

    def __str__(self) -> str:
        return f"{self.training}, {self.workers}"


@contextmanager
def _crew_at_work(job: Job) -> Iterator[Run]:
    """What trains replicas in other processes; in this one, which has the model already, nobody is needed for it."""
    with job.crew.executor(job.budget.n_threads) as (executor, n_at_once):
        job.crew.tally.begin("training")
        yield run_by(executor, n_at_once)


def _save(job: Job, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint, and let go of all but the last ones."""
    entry = job.ledger.write("stages/checkpoint", ".npz", checkpoint.to_npz())
    now = checkpoint.standing
    facts = {"n_epochs": now.epoch, "of": job.config.training.epochs if now.n_epochs is None else now.n_epochs}
    # So many digits that the order of the keys is that of the steps.
    job.ledger.commit(Record(f"checkpoint-{checkpoint.n_steps:012d}", fingerprint, entry, facts))
    job.ledger.drop(*job.ledger.records("checkpoint", fingerprint)[:-_CHECKPOINTS_KEPT])
