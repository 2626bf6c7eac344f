"""The training: a model fitted to the scanned rows, or the model of an earlier run."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar

from shardpress.cluster.pool import LocalPool
from shardpress.errors import TrainingDiverged, printable
from shardpress.model import Model
from shardpress.output.files import LAST_GOOD, WORK, unique_name
from shardpress.output.journal import Record
from shardpress.progress import Progress
from shardpress.run.context import RunContext, versions
from shardpress.run.deadline import DeadlinePolicy, epochs_that_fit
from shardpress.run.encoding_stage import write_model
from shardpress.run.memory import ALLOCATOR_BYTES, NETWORK_COPIES, SCALING_BYTES, chunk_bytes, network_bytes
from shardpress.run.modeling import trained_model, training_facts
from shardpress.run.prepare import Prepared
from shardpress.run.resume import EarlierResults, step_of
from shardpress.run.sample import Sample, StageEstimate, TrainingPace
from shardpress.scan.ranges import Scan, readable
from shardpress.settings.deadline import in_words
from shardpress.shards.shard import Shard, block_of, first_rows, row_dtype
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.epochs import Training
from shardpress.training.fit import prepare_training
from shardpress.training.loop import CheckpointPolicy, training_loop
from shardpress.training.replica import RoundRunner, runner_on
from shardpress.training.verdict import complaints

log = logging.getLogger(__name__)

_NUMBER_BYTES = 8  # number of a row that is left out
_CHECKPOINT_SECONDS = 300.0  # longest time between two checkpoints
_CHECKPOINTS_KEPT = 2  # more than one, because the last one could be damaged


@dataclass(frozen=True)
class TrainingStage:
    """Stage that trains a model, or reuses the model of an earlier run."""

    prepared: Prepared  # with shards whose rows are read minus the scan's offset
    scan: Scan | None = None  # only `make` needs it

    name: ClassVar[str] = "training"

    @cached_property
    def key(self) -> str:
        """Fingerprint of everything that determines the model."""
        return self.prepared.request.of_model()

    def load(self, earlier: EarlierResults) -> Model | None:
        model = earlier.model(self.key)
        if model is None:
            return None
        self._remove_checkpoints(earlier)
        return replace(model, columns=self.prepared.columns)

    def last_checkpoint(self, earlier: EarlierResults) -> Record | None:
        """Return the record of the last checkpoint of an unfinished training run, or None."""
        checkpoints = earlier.records("checkpoint", self.key)
        return checkpoints[-1] if checkpoints else None

    def make(self, context: RunContext) -> Model:
        """Train, and keep the model."""
        assert self.scan is not None
        prepared = self.prepared
        self._warn_of_idle_devices(context)
        model = _trained(prepared, context, self.key, prepared.as_trained(self.scan))
        context.journal.add(Record("model", self.key, write_model(context.journal, model)))
        # Checkpoints are removed only now: until the journal names the model, a run resumes from them.
        self._remove_checkpoints(context.earlier)
        # The compiled functions are in reference cycles, which keep all rows in memory.
        gc.collect()
        return model

    def check(self, model: Model) -> None:
        for complaint in complaints(model.about["training"], self.prepared.config.training, model.network):
            log.warning("%s", complaint)

    def facts(self, model: Model) -> dict[str, Any]:
        return {"training": model.about["training"]}

    def memory_bytes(self, resident: bool) -> int:
        """Return the maximum number of bytes of rows and copies of the network during training."""
        prepared = self.prepared
        budget = prepared.budget
        config = prepared.config
        n_rows = prepared.n_rows
        n_inputs = prepared.max_network.n_inputs
        row_bytes = n_inputs * row_dtype(prepared.shards).itemsize
        n_validated = min(round(config.validation.validation_fraction * n_rows), budget.max_validation_rows)
        numbers = _NUMBER_BYTES * (n_rows - prepared.n_fitted)
        if prepared.targets is not None:
            numbers += prepared.targets.values.nbytes
        rows = n_rows * row_bytes if resident else 0
        windows = 0 if resident else 2 * min(budget.window_rows, n_rows) * row_bytes + ALLOCATOR_BYTES
        sample = 0
        if config.training.start == "components" or n_validated:
            sample = min(budget.max_sample_rows, n_rows) * 4 * n_inputs + SCALING_BYTES
        network = NETWORK_COPIES * network_bytes(prepared)
        return chunk_bytes(prepared) + rows + numbers + n_validated * row_bytes + max(sample, windows) + network

    def estimate(
        self, sample: Sample, checkpoint: Record | None, ends_by: float | None, reserved: float
    ) -> StageEstimate:
        """Estimate the time of the training, of which `reserved` seconds before a deadline are left to later stages."""
        config = self.prepared.config
        pace = sample.training
        assert pace is not None
        once = self._seconds_once(pace, sample.resident)
        epoch = self._seconds_per_epoch(pace, sample)
        n_epochs = float(config.training.epochs)
        if checkpoint is not None:
            n_epochs_done = step_of(checkpoint) * config.training.batch_size / pace.n_rows
            n_epochs = max(0.0, checkpoint.facts.get("of", n_epochs) - n_epochs_done)
        if ends_by is not None:
            n_epochs = min(n_epochs, epochs_that_fit(ends_by - time.time() - once - reserved, epoch))
        rate = pace.steps.in_words()
        what = f"{n_epochs:.3g} of {config.training.epochs} epochs, {epoch:.3g} s each at {rate}"
        if not sample.resident:
            what += ", streamed"
        if ends_by is not None:
            what += f", to finish by {in_words(ends_by)}"
        if config.validation.patience and pace.n_validated:
            what += "; may stop early"
        return StageEstimate(self.name, once + n_epochs * epoch, what)

    # -- private --

    def _remove_checkpoints(self, earlier: EarlierResults) -> None:
        earlier.withdraw(*earlier.journal.records("checkpoint", self.key))

    def _warn_of_idle_devices(self, context: RunContext) -> None:
        config = self.prepared.config
        is_alone = config.training.replicas == 1 and context.device.used == "cpu"
        if is_alone and set(config.cluster.devices or ()) - {"cpu"}:
            log.warning(
                "training: this process trains one replica on the CPU, and the --devices are idle. To train on one of "
                "them, set THEANO_FLAGS=device=cuda (or another kind of device). To train on all of them, use "
                "--replicas 8."
            )

    def _seconds_once(self, pace: TrainingPace, resident: bool) -> float:
        """Return the seconds of a training run that do not depend on its number of epochs."""
        reading = pace.reading.seconds_for(self.prepared.n_rows)
        if not resident:
            n_read = pace.n_validated + self.prepared.budget.max_sample_rows
            reading = min(reading, pace.reading.seconds_for(n_read))
        return pace.once + reading

    def _seconds_per_epoch(self, pace: TrainingPace, sample: Sample) -> float:
        steps = pace.steps.seconds_for(pace.n_rows)
        if sample.resident:
            return steps + pace.validating
        reading = pace.reading.seconds_for(self.prepared.n_rows)
        if sample.on_host:  # the processor reads and computes
            return steps + reading + pace.validating
        return max(steps, reading) + pace.validating


def _trained(prepared: Prepared, context: RunContext, key: str, scan: Scan) -> Model:
    """Train the autoencoder, or resume its training, and return the model.

    If the training diverges, the last good weights are stored in the output directory.
    """
    context.state.model_key = key
    training = _prepared_training(prepared, context, scan)
    _resume_latest(context, key, training)
    deadline = None
    if context.state.ends_by is not None:
        deadline = DeadlinePolicy(prepared, context, scan, context.state.ends_by)
    try:
        _train(prepared, context, key, training, deadline)
    except TrainingDiverged as error:  # another run would diverge, too, so the weights are stored for inspection
        last_good = trained_model(training, scan, prepared.shards[0], {"stopped": str(error)})
        context.journal.add(Record("diverged", key, context.journal.write(LAST_GOOD, last_good.to_hdf5())))
        path = context.journal.directory / LAST_GOOD
        raise TrainingDiverged(f"{error} The last good weights are in {printable(path)}.") from error
    _log_end(training)
    about = _facts(prepared, context, training, scan)
    if deadline is not None:
        about["training"]["deadline"] = deadline.facts(training)
    return trained_model(training, scan, prepared.shards[0], about)


def _train(
    prepared: Prepared, context: RunContext, key: str, training: Training, deadline: DeadlinePolicy | None
) -> None:
    """Take all remaining steps, and show their progress."""
    row_bytes = prepared.shards[0].row_bytes
    checkpoints = CheckpointPolicy(partial(_save, prepared, context, key), _CHECKPOINT_SECONDS)
    with (
        Progress("training", training.n_rows_planned, "rows", row_bytes, training.n_rows_done) as progress,
        _runner(prepared, context) as runner,
        training_loop(training, deadline, checkpoints, runner) as steps,
    ):
        stats = context.pool.stats
        stats.begin("training")
        for step in steps:
            if deadline is not None:  # it may have changed the number of epochs
                progress.expect(training.n_rows_planned)
            progress.advance(step.n_rows, training, stats)


def _prepared_training(prepared: Prepared, context: RunContext, scan: Scan) -> Training:
    sizes = prepared.budget.sizes(context.device)
    if _uses_workers(prepared, context):  # workers read their rows themselves
        sizes = replace(sizes, resident=False, on_device=False)
    return prepare_training(prepared.shards, scan, prepared.config, sizes, prepared.targets)


def _resume_latest(context: RunContext, key: str, training: Training) -> None:
    """Resume the training from the last good checkpoint of an earlier run, if there is one."""
    checkpoint = context.earlier.latest(
        "checkpoint",
        key,
        partial(_resume, context, training),
        "checkpoint %s; using the previous one",
    )
    if checkpoint is not None:
        log.info("training: resuming after step %d of an earlier run", checkpoint.n_steps)
        context.state.reused["training"] = f"the training up to step {checkpoint.n_steps}"


def _resume(context: RunContext, training: Training, record: Record) -> Checkpoint:
    """Resume the training from a checkpoint; raise `ValueError` if it does not fit."""
    checkpoint = Checkpoint.from_npz(context.journal.load(record))
    n_steps = checkpoint.n_steps
    epoch = checkpoint.state.epoch
    is_possible = (epoch - 1) * training.steps_per_epoch <= n_steps <= (epoch + 1) * training.steps_per_epoch
    if n_steps != step_of(record) or not is_possible:
        raise ValueError(f"contains step {n_steps} of epoch {epoch}, but its record says step {step_of(record)}")
    training.resume(checkpoint)
    return checkpoint


def _log_end(training: Training) -> None:
    """Log a line if the training has stopped early, or if no epoch was better than the start."""
    state = training.state
    if state.best_epoch < 0:
        log.info("training: no epoch reduced the error of the initial parameters enough; keeping them")
    elif len(state.history) < training.n_epochs:
        log.info("training: stopped early; epoch %d was the best", state.best_epoch)


def _facts(prepared: Prepared, context: RunContext, training: Training, scan: Scan) -> dict[str, Any]:
    facts = training_facts(training, prepared.config, context.device)
    outlier = (facts["training"]["baseline"] or {}).get("outlier")
    if outlier:
        outlier |= _location(readable(prepared.shards, scan)[0], outlier["row"])
    return {**facts, "versions": versions()}


def _location(shards: Sequence[Shard], number: int) -> dict[str, Any]:
    """Return the file and the row of a row that is numbered over all shards."""
    row = block_of(shards, first_rows(shards), number, number + 1)
    return {"file": row.shard.path, "row": row.shard.first_row + row.start}


def _uses_workers(prepared: Prepared, context: RunContext) -> bool:
    return prepared.config.training.replicas > 1 and not isinstance(context.pool, LocalPool)


@contextmanager
def _runner(prepared: Prepared, context: RunContext) -> Iterator[RoundRunner | None]:
    """Provide a function that trains replicas on worker processes; None if this process trains."""
    if not _uses_workers(prepared, context):
        yield None
        return
    with context.pool.executor(prepared.budget.n_threads) as (executor, n_at_once):
        yield runner_on(executor, n_at_once)


def _save(prepared: Prepared, context: RunContext, key: str, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint, and remove all but the last ones."""
    entry = context.journal.write(unique_name(f"{WORK}/checkpoint", ".npz"), checkpoint.to_npz())
    state = checkpoint.state
    n_epochs = prepared.config.training.epochs if state.n_epochs is None else state.n_epochs
    facts = {"n_epochs": state.epoch, "of": n_epochs}
    # Twelve digits, so that the keys sort in the order of the steps.
    context.journal.add(Record(f"checkpoint-{checkpoint.n_steps:012d}", key, entry, facts))
    context.journal.withdraw(*context.journal.records("checkpoint", key)[:-_CHECKPOINTS_KEPT])
