"""From rows to a fitted model: trained, or taken over from an earlier run that did the same."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cluster.crew import Threads
from pipeline.cluster.tally import Tally
from pipeline.device import autoencoder_of
from pipeline.errors import TrainingDiverged, shown
from pipeline.model import Model, load_model
from pipeline.output.records import LAST_GOOD, Record
from pipeline.progress import Progress
from pipeline.run.deadline import DeadlinePolicy
from pipeline.run.earlier import latest, load_at_most
from pipeline.run.job import Job, step_of, versions
from pipeline.scan.ranges import Scan
from pipeline.settings.resolve import network_of
from pipeline.shards.shard import row_dtype
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.epochs import Training
from pipeline.training.fit import prepare_training
from pipeline.training.loop import CheckpointPolicy, training_loop
from pipeline.training.replica import RoundRunner, runner_on
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
    """Train the autoencoder, or resume its training, and return the model.

    Raises
    ------
    TrainingDiverged
        The last good weights are then stored in the output directory.
    """
    job.clock.model = fingerprint
    training = _prepared_training(job, autoencoder, scan)
    _resume_latest(job, fingerprint, training)
    deadline = None
    if job.clock.ends_by is not None:
        deadline = DeadlinePolicy(job, scan, job.clock.ends_by)
    try:
        _train(job, fingerprint, training, deadline)
    except TrainingDiverged as error:  # it would diverge again, so the weights are stored for inspection
        path = _store_last_good(job, scan, training, error)
        raise TrainingDiverged(f"{error} The last good weights are in {shown(path)}.") from error
    _log_end(training)
    about = _facts(job, training)
    if deadline is not None:
        about["training"]["deadline"] = deadline.facts(training)
    return _model(job, scan, training, about)


def _train(job: Job, fingerprint: str, training: Training, deadline: DeadlinePolicy | None) -> None:
    """Take all steps that are left, and show their progress."""
    row_bytes = job.shards[0].row_bytes
    with (
        Progress("training", training.n_rows_planned, "rows", row_bytes, training.n_rows_done) as progress,
        _runner(job) as runner,
        training_loop(training, deadline, _checkpoints(job, fingerprint), runner) as steps,
    ):
        place: object = training
        if runner is not None:
            place = _Place(training, job.crew.tally)
        for step in steps:
            if deadline is not None:  # it may have changed the number of epochs
                progress.expect(training.n_rows_planned)
            progress.advance(step.n_rows, place)


def _prepared_training(job: Job, autoencoder: Autoencoder, scan: Scan) -> Training:
    sizes = job.budget.sizes(job.device)
    if _uses_workers(job):  # which read their rows themselves
        sizes = replace(sizes, resident=False, on_device=False)
    return prepare_training(
        autoencoder,
        job.shards,
        scan,
        job.config.training,
        job.config.validation,
        job.config.bad_data.missing_value,
        sizes,
    )


def _resume_latest(job: Job, fingerprint: str, training: Training) -> None:
    """Resume the training from the last good checkpoint of an earlier run, if there is one."""
    checkpoint = latest(
        job,
        "checkpoint",
        fingerprint,
        partial(_resume, job, training),
        "checkpoint %s; the one before it is taken",
    )
    if checkpoint is not None:
        log.info("training: going on behind step %d of an earlier run", checkpoint.n_steps)
        job.clock.taken_over["training"] = f"the training up to step {checkpoint.n_steps}"


def _resume(job: Job, training: Training, record: Record) -> Checkpoint:
    """Resume the training from a committed checkpoint; raise `ValueError` if it cannot be one of this training.

    A user who can write to the output directory can also forge records. So the size is checked before the file is read,
    and its content before it is used.
    """
    array_bytes = sum(array.nbytes for array in training.checkpoint().arrays.values())
    checkpoint = Checkpoint.from_npz(load_at_most(job.ledger, record, array_bytes))
    n_steps = checkpoint.n_steps
    epoch = checkpoint.state.epoch
    is_possible = (epoch - 1) * training.steps_per_epoch <= n_steps <= (epoch + 1) * training.steps_per_epoch
    if n_steps != step_of(record) or not is_possible:
        raise ValueError(f"is after step {n_steps} in epoch {epoch}, but its record says step {step_of(record)}")
    training.resume(checkpoint)
    return checkpoint


def _store_last_good(job: Job, scan: Scan, training: Training, error: TrainingDiverged) -> Path:
    """Store the best weights of a training that diverged, and return the path."""
    model = _model(job, scan, training, {"stopped": str(error)})
    job.ledger.replace(LAST_GOOD, model.to_hdf5())
    return job.ledger.directory / LAST_GOOD


def _log_end(training: Training) -> None:
    """Log if the training has stopped early, or if no epoch was better than the start."""
    state = training.state
    if state.best_epoch < 0:
        log.info("training: no epoch was better than the start, whose parameters are taken")
    elif len(state.history) < training.n_epochs:
        log.info("training: stopped early, epoch %d was the best", state.best_epoch)


def _facts(job: Job, training: Training) -> dict[str, Any]:
    """Return the facts about the training that the model's file stores."""
    return {
        "training": {**training.state.summary(), **measured(training)},
        "config": job.config.flat(),
        "versions": versions(),
        "device": str(job.device),
    }


def _model(job: Job, scan: Scan, training: Training, about: dict[str, Any]) -> Model:
    """Return the best model of a training."""
    return Model(scan.scaler, training.autoencoder.network, training.best, about, scan.offset, job.columns)


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
    """Progress of a training and the speed of its workers; formatted only when a line is due."""

    training: object
    workers: Tally

    def __str__(self) -> str:
        return f"{self.training}, {self.workers}"


def _uses_workers(job: Job) -> bool:
    """Return whether worker processes train the replicas."""
    return job.config.training.replicas > 1 and not isinstance(job.crew, Threads)


@contextmanager
def _runner(job: Job) -> Iterator[RoundRunner | None]:
    """Within the context worker processes train the replicas; None if this process trains, which has the model."""
    if not _uses_workers(job):
        yield None
        return
    with job.crew.executor(job.budget.n_threads) as (executor, n_at_once):
        job.crew.tally.begin("training")
        yield runner_on(executor, n_at_once)


def _checkpoints(job: Job, fingerprint: str) -> CheckpointPolicy:
    """Return the policy that commits checkpoints."""
    seconds_between = 60 * job.config.timing.checkpoint_minutes
    return CheckpointPolicy(partial(_save, job, fingerprint), seconds_between)


def _save(job: Job, fingerprint: str, checkpoint: Checkpoint) -> None:
    """Commit a checkpoint, and drop all but the last ones."""
    entry = job.ledger.write("stages/checkpoint", ".npz", checkpoint.to_npz())
    state = checkpoint.state
    n_epochs = job.config.training.epochs if state.n_epochs is None else state.n_epochs
    facts = {"n_epochs": state.epoch, "of": n_epochs}
    # With so many digits the order of the keys is that of the steps.
    job.ledger.commit(Record(f"checkpoint-{checkpoint.n_steps:012d}", fingerprint, entry, facts))
    job.ledger.drop(*job.ledger.records("checkpoint", fingerprint)[:-_CHECKPOINTS_KEPT])
