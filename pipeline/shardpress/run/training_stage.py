"""The training: a model fitted to the scanned rows, or the model of an earlier run."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, islice
from typing import ClassVar

import numpy as np
from msgspec import structs

from shardpress.base.errors import TrainingDiverged, printable
from shardpress.base.outliers import Outlier
from shardpress.base.progress import Progress, activity
from shardpress.hdf5.shard import Shard, block_of, first_rows, rows_of
from shardpress.model.about import NOTHING_KNOWN, About
from shardpress.model.encoder import Model
from shardpress.output.folder import LAST_GOOD, WORK, unique_name
from shardpress.output.journal import Record
from shardpress.run.context import RunContext, versions
from shardpress.run.deadline import DeadlinePolicy
from shardpress.run.encoding_stage import write_model
from shardpress.run.estimate import SECONDS, Pace, StageEstimate, measure_seconds
from shardpress.run.memory import ALLOCATOR_BYTES, NETWORK_COPIES, SCALING_BYTES, chunk_bytes, network_bytes
from shardpress.run.modeling import about_training, trained_model
from shardpress.run.resume import EarlierResults, step_of
from shardpress.run.space import CHECKPOINTS_KEPT
from shardpress.run.task import Task
from shardpress.scan.blocks import ScanBlock
from shardpress.scan.ranges import Scan, readable
from shardpress.settings.kinds import time_in_words
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.complaints import complaints
from shardpress.training.components import errors_of_components, sampled
from shardpress.training.epochs import Training, steps_of
from shardpress.training.fit import Sizes, prepare_training
from shardpress.training.loop import CheckpointPolicy, training_loop
from shardpress.training.replica import RoundRunner, runner_on

log = logging.getLogger(__name__)

_NUMBER_BYTES = 8  # number of a row that is left out
_CHECKPOINT_SECONDS = 300.0  # longest time between two checkpoints
_UNTIMED_STEPS = 3  # first steps of a sample, whose data are not yet in the processor's caches


@dataclass(frozen=True)
class _TrainingSample:
    """Measured training of some rows, extrapolated to all of them."""

    once: float  # seconds that do not depend on the number of epochs
    epoch: float  # seconds of an epoch
    n_rows: int  # of an epoch
    steps: Pace
    model: Model
    components: list[tuple[int, float]]  # as `errors_of_components` returns them


@dataclass(frozen=True)
class TrainingStage:
    """Stage that trains a model, or reuses the model of an earlier run."""

    task: Task
    scan: Scan

    name: ClassVar[str] = "training"

    @cached_property
    def key(self) -> str:
        """Fingerprint of everything that determines the model."""
        return self.task.request_after(self.scan).of_model()

    def load(self, earlier: EarlierResults) -> Model | None:
        model = earlier.model(self.key)
        if model is None:
            return None
        self._remove_checkpoints(earlier)
        return replace(model, columns=self.task.inputs.columns)

    def last_checkpoint(self, earlier: EarlierResults) -> Record | None:
        """Return the record of the last checkpoint of an unfinished training run, or None."""
        checkpoints = earlier.records("checkpoint", self.key)
        return checkpoints[-1] if checkpoints else None

    def make(self, context: RunContext) -> Model:
        """Train, and keep the model."""
        self._warn_of_idle_devices(context)
        model = _trained(self.task, context, self.key, self.task.as_trained(self.scan))
        context.journal.add(Record("model", self.key, write_model(context.journal, model)))
        # Checkpoints are removed only now: until the journal names the model, a run resumes from them.
        self._remove_checkpoints(context.earlier)
        # The compiled functions are in reference cycles, which keep all rows in memory.
        gc.collect()
        return model

    def check(self, model: Model) -> None:
        for complaint in complaints(model.about, self.task.settings.training, model.network):
            log.warning("%s", complaint)

    def sample(self, sizes: Sizes, stretches: Sequence[ScanBlock], reading: Pace) -> _TrainingSample:
        """Train for a moment on some of the rows that were scanned, which took the time `reading`.

        Raise `DataError` if too few rows are good.
        """
        task = self.task
        sample, scan = _with_some_rows(task, self.scan, stretches)
        once, training = measure_seconds(lambda: _prepared_training(sample, scan, sizes))
        if sizes.resident or sizes.on_device:
            once += reading.seconds_for(task.inputs.n_rows - sample.inputs.n_rows)
        n_validated = min(
            round(task.settings.validation.validation_fraction * task.n_fitted), sizes.max_validation_rows
        )
        steps = _pace_of_steps(training)
        n_rows = task.n_fitted - n_validated
        seconds = steps.seconds_for(n_rows)
        if len(training.validation):
            validating, _ = measure_seconds(lambda: training.autoencoder.cost(training.validation))
            validation = Pace(len(training.validation), validating)
            once += 2 * validation.seconds_for(n_validated)  # before the first epoch, and after the last one
            seconds += validation.seconds_for(n_validated)
        rows = sampled(training.rows, training.order, scan.scaler, sizes.max_sample_rows)
        errors = errors_of_components(rows, training.autoencoder.network.n_features)
        model = _model(training, task, scan, NOTHING_KNOWN)
        return _TrainingSample(once, seconds, n_rows, steps, model, errors)

    def estimate(
        self, sample: _TrainingSample, checkpoint: Record | None, left: float | None, reserved: float
    ) -> StageEstimate:
        """Estimate the time of the training; of the seconds `left` before a deadline, some are `reserved`."""
        config = self.task.settings
        n_epochs = float(config.training.epochs)
        if checkpoint is not None:
            n_epochs = max(0.0, n_epochs - step_of(checkpoint) * config.training.batch_size / sample.n_rows)
        if left is not None:
            n_epochs = min(n_epochs, max(0.0, left - sample.once - reserved) / sample.epoch)
        what = f"{n_epochs:.3g} of {config.training.epochs} epochs, {sample.epoch:.3g} s each at {sample.steps}"
        if not self.task.budget.resident:
            what += ", streamed"
        if left is not None:
            what += f", to finish by {time_in_words(time.time() + left)}"
        if config.validation.patience:
            what += "; may stop early"
        return StageEstimate(self.name, sample.once + n_epochs * sample.epoch, what)

    # -- private --

    def _remove_checkpoints(self, earlier: EarlierResults) -> None:
        earlier.withdraw(*earlier.journal.records("checkpoint", self.key))

    def _warn_of_idle_devices(self, context: RunContext) -> None:
        config = self.task.settings
        is_alone = config.training.replicas == 1 and context.device.used == "cpu"
        if is_alone and set(config.cluster.devices or ()) - {"cpu"}:
            log.warning(
                "training: this process trains one replica on the CPU, and the --devices are idle. To train on one of "
                "them, set THEANO_FLAGS=device=cuda (or another kind of device). To train on all of them, use "
                "--replicas 8."
            )


def training_bytes(task: Task, resident: bool) -> int:
    """Return the maximum number of bytes of rows and copies of the network during training."""
    budget = task.budget
    config = task.settings
    n_rows = task.inputs.n_rows
    n_inputs = task.max_network.n_inputs
    row_bytes = task.row_bytes
    n_validated = min(round(config.validation.validation_fraction * n_rows), budget.max_validation_rows)
    numbers = _NUMBER_BYTES * (n_rows - task.n_fitted)
    if task.targets is not None:
        numbers += task.targets.values.nbytes
    rows = n_rows * row_bytes if resident else 0
    windows = 0 if resident else 2 * min(budget.window_rows, n_rows) * row_bytes + ALLOCATOR_BYTES
    sample = 0
    if config.training.start == "components" or n_validated:
        sample = min(budget.max_sample_rows, n_rows) * 4 * n_inputs + SCALING_BYTES
    network = NETWORK_COPIES * network_bytes(task)
    return chunk_bytes(task) + rows + numbers + n_validated * row_bytes + max(sample, windows) + network


def _trained(task: Task, context: RunContext, key: str, scan: Scan) -> Model:
    """Train the autoencoder, or resume its training, and return the model.

    If the training diverges, the last good weights are stored in the output directory.
    """
    context.state.model_key = key
    sizes = task.budget.sizes(context.device)
    if _uses_workers(task, context):  # workers read their rows themselves
        sizes = replace(sizes, resident=False, on_device=False)
    training = _prepared_training(task, scan, sizes)
    _resume_latest(context, key, training)
    deadline = None
    if context.state.ends_by is not None:
        deadline = DeadlinePolicy(task, context.journal.directory, scan, context.state.ends_by)
    try:
        _train(task, context, key, training, deadline)
    except TrainingDiverged as error:  # another run would diverge, too, so the weights are stored for inspection
        facts = About(stopped=str(error))
        last_good = _model(training, task, scan, facts)
        context.journal.add(Record("diverged", key, context.journal.write(LAST_GOOD, last_good.to_hdf5())))
        path = context.journal.directory / LAST_GOOD
        raise TrainingDiverged(f"{error} The last good weights are in {printable(path)}.") from error
    _log_end(training)
    with activity("training: measuring the features", "a second"):
        about = _about(task, context, training, scan, deadline)
    return _model(training, task, scan, about)


def _train(task: Task, context: RunContext, key: str, training: Training, deadline: DeadlinePolicy | None) -> None:
    """Take all remaining steps, and show their progress."""
    row_bytes = task.inputs.shards[0].row_bytes
    checkpoints = CheckpointPolicy(partial(_save, task, context, key), _CHECKPOINT_SECONDS)
    with (
        Progress("training", training.n_rows_planned, "rows", row_bytes, training.n_rows_done) as progress,
        _runner(task, context) as runner,
        training_loop(training, deadline, checkpoints, runner) as steps,
    ):
        stats = context.pool.stats
        stats.begin("training")
        for step in steps:
            if deadline is not None:  # it may have changed the number of epochs
                progress.expect(training.n_rows_planned)
            progress.advance(step.n_rows, training, stats)


def _prepared_training(task: Task, scan: Scan, sizes: Sizes) -> Training:
    conversion = replace(task.conversion, offset=scan.offset)
    return prepare_training(task.inputs.shards, conversion, scan, task.settings, sizes, task.targets)


def _model(training: Training, task: Task, scan: Scan, about: About) -> Model:
    conversion = replace(task.conversion, offset=scan.offset)
    return trained_model(training, scan.scaler, task.inputs.columns, conversion, about)


def _with_some_rows(task: Task, scan: Scan, stretches: Sequence[ScanBlock]) -> tuple[Task, Scan]:
    """Return a run on some rows of each stretch, and their scan. There are enough for the principal components."""
    n_each = -(-task.budget.max_sample_rows // len(stretches))
    shards = []
    numbers_of_stretches = []
    for stretch in stretches:
        block = next(stretch.block.cut(n_each))
        shards.append(rows_of(block.shard, block.start, len(block)))
        numbers_of_stretches.append(stretch.first_row + np.arange(block.start, block.stop))
    numbers = np.concatenate(numbers_of_stretches)
    targets = task.targets
    if targets is not None:
        targets = replace(targets, values=targets.values[numbers])
    bad_rows = np.flatnonzero(np.isin(numbers, scan.bad_rows))
    scan = replace(scan, n_rows=len(numbers), bad_rows=bad_rows, unreadable={}, n_selected=None)
    inputs = replace(task.inputs, shards=tuple(shards))
    return replace(task, inputs=inputs, targets=targets, fitted=None), scan


def _pace_of_steps(training: Training) -> Pace:
    """Measure training steps for a limited time, in at most a few passes over the rows."""
    passes = (steps_of(training, training.order, epoch, 0) for epoch in range(_UNTIMED_STEPS + 1))
    steps = chain.from_iterable(passes)
    for _ in islice(steps, _UNTIMED_STEPS):
        pass
    n_rows = 0
    seconds = 0.0
    start = time.monotonic()
    for step in steps:  # at least one, since each pass has one
        n_rows += step.n_rows
        seconds = time.monotonic() - start
        if seconds > SECONDS:
            break
    return Pace(n_rows, seconds)


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


def _about(task: Task, context: RunContext, training: Training, scan: Scan, deadline: DeadlinePolicy | None) -> About:
    about = about_training(training, task.settings, context.device, task.targets)
    facts = about.training
    assert facts is not None
    baseline = facts.baseline
    if baseline is not None and baseline.outlier is not None:
        outlier = _with_file(baseline.outlier, readable(task.inputs.shards, scan)[0])
        facts = structs.replace(facts, baseline=structs.replace(baseline, outlier=outlier))
    if deadline is not None:
        facts = structs.replace(facts, deadline=deadline.facts(training))
    return structs.replace(about, training=facts, versions=versions())


def _with_file(outlier: Outlier, shards: Sequence[Shard]) -> Outlier:
    """Return an outlier with its file and its row there, given its number in all shards."""
    row = block_of(shards, first_rows(shards), outlier.row, outlier.row + 1)
    return structs.replace(outlier, file=row.shard.path, row=row.shard.first_row + row.start)


def _uses_workers(task: Task, context: RunContext) -> bool:
    return task.settings.training.replicas > 1 and not context.pool.is_local


@contextmanager
def _runner(task: Task, context: RunContext) -> Iterator[RoundRunner | None]:
    """Provide a function that trains replicas on worker processes; None if this process trains."""
    if not _uses_workers(task, context):
        yield None
        return
    with context.pool.executor(task.budget.n_threads) as (executor, n_at_once):
        yield runner_on(executor, n_at_once)


def _save(task: Task, context: RunContext, key: str, checkpoint: Checkpoint) -> None:
    """Keep a checkpoint, and remove all but the last ones."""
    entry = context.journal.write(unique_name(f"{WORK}/checkpoint", ".npz"), checkpoint.to_npz())
    state = checkpoint.state
    n_epochs = task.settings.training.epochs if state.n_epochs is None else state.n_epochs
    # Twelve digits, so that the keys sort in the order of the steps.
    context.journal.add(Record(f"checkpoint-{checkpoint.n_steps:012d}", key, entry, state.epoch, n_epochs))
    context.journal.withdraw(*context.journal.records("checkpoint", key)[:-CHECKPOINTS_KEPT])
