"""The training loop, which the caller iterates, and its policies for early ends and for checkpoints."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Protocol

from shardpress.base import signals
from shardpress.base.errors import TrainingDiverged
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.epochs import Limit, StepResult, Training, rounds_of_epoch, steps_of
from shardpress.training.replica import RoundRunner

log = logging.getLogger(__name__)

# A checkpoint is saved at the end of an epoch only if writing takes less than a fiftieth of the time since the last
# checkpoint.
_INTERVAL_PER_WRITE = 50


class _LimitPolicy(Protocol):
    """Policy that decides whether a training run must end early, for example because of a deadline."""

    def after_step(self, training: Training) -> Limit | None:
        """Return a new limit, or None to continue as before.

        The loop calls this method after each step, applies the limit, and saves a checkpoint of the decision at once.
        The time of the call does not count as training time. The training must not be changed.
        """


class CheckpointPolicy:
    """Policy that decides when the checkpoints of a training run are written, and writes them.

    A checkpoint is due after a fixed time. A checkpoint is also written at the end of an epoch, unless epochs are so
    short that this would take a large share of the training time.
    """

    def __init__(self, write: Callable[[Checkpoint], object], seconds_between: float = math.inf) -> None:
        self._write = write
        self._seconds_between = seconds_between
        self._seconds_to_write = 0.0
        self._last_write = time.monotonic()

    def after_step(self, training: Training) -> None:
        """Write a checkpoint if it is due."""
        if self._seconds_since_last() >= self._seconds_between:
            self.save(training)

    def after_epoch(self, training: Training) -> None:
        """Write a checkpoint if it is due, or if it takes only a small share of the time since the last one."""
        least_interval = min(self._seconds_between, _INTERVAL_PER_WRITE * self._seconds_to_write)
        if self._seconds_since_last() >= least_interval:
            self.save(training)

    def save(self, training: Training) -> None:
        start = time.monotonic()
        self._write(training.checkpoint())
        self._last_write = time.monotonic()
        self._seconds_to_write = self._last_write - start

    def _seconds_since_last(self) -> float:
        return time.monotonic() - self._last_write


@contextmanager
def training_loop(
    training: Training,
    limits: _LimitPolicy | None = None,
    checkpoints: CheckpointPolicy | None = None,
    runner: RoundRunner | None = None,
) -> Iterator[Iterator[StepResult]]:
    """Train until the epochs are over or validation stops improving.

    The context is an iterator over the steps, which the caller advances. A signal takes effect between two steps only.
    When the context ends, for any reason, the weights are those after a complete step. At the end, the model has the
    parameters of the best epoch, or the initial ones if no epoch was better. After `TrainingDiverged` (a cost is not
    finite, or has grown without bound) it has the parameters of the best epoch so far. After a signal
    (`shardpress.base.signals.Stopped`) a checkpoint of the last step is saved.

    After each step the loop calls `limits`, yields the step, and calls `checkpoints`. A new limit is saved at once. At
    the end of an epoch, the loop evaluates the model, yields the epoch, and calls `checkpoints`. By default, no
    checkpoints are saved, and this process trains one replica after the other.
    """
    loop = _Loop(training, limits, checkpoints, runner)
    with signals.deferred(), closing(loop.steps()) as steps:
        try:
            yield steps
        except TrainingDiverged:
            training.autoencoder.set_parameters(training.best)
            raise
        except signals.Stopped:  # save even if a checkpoint was just written: no step is lost
            loop.save()
            raise
    training.finish()


class _Loop:
    """The steps of a training run, with the policies that are called between them; see `training_loop`."""

    def __init__(
        self,
        training: Training,
        limits: _LimitPolicy | None,
        checkpoints: CheckpointPolicy | None,
        runner: RoundRunner | None,
    ) -> None:
        self._training = training
        self._limits = limits
        self._checkpoints = checkpoints
        self._runner = runner

    def steps(self) -> Generator[StepResult, None, None]:
        training = self._training
        while not training.is_over:
            yield from self._steps_of_epoch()
            epoch = training.end_epoch()
            yield StepResult(0, 0, epoch=epoch)
            log.debug("epoch %d: %s, %.2f s", epoch.epoch, epoch, epoch.seconds)
            if self._checkpoints is not None:
                self._checkpoints.after_epoch(training)

    def save(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(self._training)

    def _steps_of_epoch(self) -> Iterator[StepResult]:
        """Take the remaining steps of the current epoch."""
        training = self._training
        state = training.state
        if state.ended_at is not None:  # the deadline of an interrupted run ended the epoch here
            return
        start = time.monotonic() - state.seconds  # includes the steps before an interruption
        for step in self._pieces():
            training.record(step, time.monotonic() - start)
            is_limited = False
            if step.n_rows:  # a round may have no training rows
                before = time.monotonic()
                limit = None if self._limits is None else self._limits.after_step(training)
                is_limited = limit is not None and training.apply(limit)
                yield step
                start += time.monotonic() - before  # the time of policies and callers does not count
            if is_limited:
                self.save()
            if state.ended_at is not None:
                return
            if self._checkpoints is not None:
                self._checkpoints.after_step(training)

    def _pieces(self) -> Iterator[StepResult]:
        """Take the remaining steps of the current epoch, or train on its remaining shares."""
        training = self._training
        if training.replicas is None:
            return steps_of(training, training.order, training.state.epoch, training.state.n_done)
        return rounds_of_epoch(training, training.replicas, self._runner)
