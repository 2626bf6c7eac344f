"""A training run and its progress: steps, rounds of replicas, validation, early stopping, divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from shardpress.base import signals
from shardpress.base.errors import Problem, TrainingDiverged
from shardpress.model.about import Epoch
from shardpress.model.device import DeviceAutoencoder, DeviceStep
from shardpress.settings.resolve import ResolvedTraining
from shardpress.training.averaging import Average, Weights, outer_step
from shardpress.training.checkpoint import Checkpoint, TrainingState, join_groups
from shardpress.training.components import Baseline
from shardpress.training.feed import Rows, StepFeed, numbers_of
from shardpress.training.order import Order, learning_rate, long_epoch
from shardpress.training.replica import Replicas, RoundRunner
from shardpress.training.rounds import Share
from shardpress.training.targets import Supervision

# Number of steps per epoch that compute the cost. They are evenly spread, and take a quarter longer.
_COSTS_PER_EPOCH = 16

# The mean error of this number of rows is exact to a few percent. The mean error of ten rows is not.
_ENOUGH_ROWS = 100

# A start from principal components is kept unless the training reduces the error by this share. A smaller reduction is
# within the differences between seeds, and on counts of cells it made nearest neighbours of the features worse.
_LEAST_IMPROVEMENT = 0.02

# A training of fewer than twice this number of epochs does not stop because its first half is worse than the start.
_LEAST_PATIENT_EPOCHS = 4

# A few rows decide only whether the training made the reconstruction clearly worse: by this number of standard errors
# of the mean difference between the errors of a row before and after the training.
_FEW_ROWS = 10
_STANDARD_ERRORS = 2

# Rows are scaled to [0, 1]: a training run does not recover from a cost that exceeds the first one by this factor.
_DIVERGED = 100.0
_SMALL = 0.01  # lower initial costs, such as the costs of components, can grow a hundredfold for a while


@dataclass(frozen=True)
class Limit:
    """Decision to end a training run early."""

    n_epochs: int  # epochs of the whole training run, during which the learning rate falls to 0
    ends_here: bool = False  # the training ends with the last step, in what is then the last epoch


class StepResult(NamedTuple):
    """Steps that have just been taken, or the end of an epoch."""

    n_steps: int  # number of steps, or of the shares of replicas; 0 at the end of an epoch
    n_rows: int
    # cost before the last of these steps, or the mean cost of replicas; None if it was not computed
    cost: float | None = None
    epoch: Epoch | None = None  # the epoch that has just ended, after all results of its steps


@dataclass
class Training:
    """A model, the rows that it is trained on, and the progress so far."""

    autoencoder: DeviceAutoencoder  # initialized; trained in place
    step: DeviceStep
    rows: Rows
    order: Order
    validation: np.ndarray  # unscaled rows (n_validation, n_inputs), possibly none
    settings: ResolvedTraining
    patience: int = 0  # epochs without a better validation cost, counted as in `long_epoch`; 0 for never
    baseline: Baseline | None = None
    replicas: Replicas | None = None
    supervision: Supervision | None = None
    validation_numbers: np.ndarray | None = None  # int64 (n_validation,), the numbers of these rows in the shards
    # cost of the validation rows; None if it has not decided which epoch is the best
    start_cost: float | None = field(init=False)
    state: TrainingState = field(init=False)
    best: dict[str, np.ndarray] = field(init=False)  # parameters of the best epoch, or the initial ones
    # velocity of the outer steps of the replicas; empty for one replica
    outer: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.start_cost = self._finite_start_cost()
        self.state = TrainingState(self.settings.optimizer, best_cost=self.start_cost)
        self.best = self.autoencoder.parameters()
        self.outer = {}
        if self.replicas is not None:
            self.outer = {name: np.zeros_like(array) for name, array in self.best.items()}
        self._start = self.best

    def __str__(self) -> str:
        state = self.state
        n_epochs = self.n_epochs
        costs = ""
        if state.history:
            costs = f", {state.history[-1]}"
        step = f"step {self.n_steps_done}/{n_epochs * self.steps_per_epoch}"
        return f"epoch {min(state.epoch + 1, n_epochs)}/{n_epochs}, {step}{costs}"

    @property
    def n_epochs(self) -> int:
        """Number of epochs of the training: the configured number, unless a deadline has limited it."""
        if self.state.n_epochs is not None:
            return self.state.n_epochs
        return self.settings.epochs

    @cached_property
    def steps_per_epoch(self) -> int:
        """Number of minibatches; the last one may be smaller."""
        return -(-self.order.n_rows // self.settings.batch_size)

    @property
    def n_steps_done(self) -> int:
        """Number of steps so far; with replicas, the number that one replica would have taken on the same rows."""
        epoch, in_epoch = self._position
        if self.replicas is not None:
            in_epoch = in_epoch * self.steps_per_epoch // self.replicas.rounds.n_shares
        return epoch * self.steps_per_epoch + in_epoch

    @property
    def epoch_part(self) -> float:
        return self.state.n_done / self._n_pieces

    @property
    def last_epoch_part(self) -> float:
        """Part of the last epoch that is trained: below 1 if a deadline ended the training within it."""
        ended_at = self.state.ended_at
        if ended_at is None:
            return 1.0
        return ended_at / self._n_pieces

    @property
    def _n_pieces(self) -> int:
        """Number of steps of an epoch, or number of its shares if there are replicas."""
        if self.replicas is None:
            return self.steps_per_epoch
        return self.replicas.rounds.n_shares

    @property
    def n_rows_done(self) -> int:
        """Total number of rows in all steps so far."""
        epoch, n_done = self._position
        if self.replicas is None:
            in_epoch = min(n_done * self.settings.batch_size, self.order.n_rows)
        else:
            in_epoch = self.replicas.rounds.n_rows_of(epoch, n_done)
        return epoch * self.order.n_rows + in_epoch

    @property
    def n_rows_planned(self) -> int:
        """Total number of rows in all planned steps; a row counts once in each epoch."""
        if self.state.ended_at is not None:
            return self.n_rows_done
        return self.n_epochs * self.order.n_rows

    @property
    def _position(self) -> tuple[int, int]:
        """Epoch, and number of its finished steps (or shares); if an epoch ended early, it remains the current one."""
        state = self.state
        if state.ended_at is None:
            return state.epoch, state.n_done
        is_evaluated = state.n_done == 0
        return state.epoch - is_evaluated, state.ended_at

    @property
    def is_watched(self) -> bool:
        """Whether the validation cost decides which epoch is the best; otherwise the last epoch counts as the best.

        The cost does not decide if there are few validation rows, or if training learns to fill in missing entries,
        since validation rows are complete.
        """
        return len(self.validation) >= _ENOUGH_ROWS and not self.settings.hides_much

    @property
    def is_over(self) -> bool:
        """Whether all epochs are done, or validation has not improved for too long."""
        if self.state.epoch >= self.n_epochs:
            return True
        costs = [epoch.objective or 0.0 for epoch in self.state.history[self._n_patient_epochs :]]
        if not (self.is_watched and self.patience and costs):
            return False
        if self.state.best_epoch < 0 and self._n_patient_epochs >= _LEAST_PATIENT_EPOCHS and self._may_keep_components:
            return True
        n_steps = (len(costs) - 1 - int(np.argmin(costs))) * self.steps_per_epoch
        return n_steps >= self.patience * long_epoch(self.steps_per_epoch, self.n_epochs)

    @property
    def _n_patient_epochs(self) -> int:
        """Number of epochs at the start that early stopping ignores.

        While the learning rate is high, a good start may get worse. It recovers when the learning rate falls, or never:
        if all these epochs are worse than principal components, the training stops.
        """
        return self.n_epochs // 2 if self.settings.schedule == "linear" else 0

    def _finite_start_cost(self) -> float | None:
        if not self.is_watched:
            return None
        cost = self.autoencoder.cost(self.validation)
        if self.supervision is not None:
            cost += self._validate_targets()[0] or 0.0
        return cost if math.isfinite(cost) else None

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def checkpoint(self) -> Checkpoint:
        """Return copies of everything that decides how the training continues."""
        weights = self.weights()
        arrays = join_groups(parameters=weights.parameters, state=weights.rule, best=self.best, outer=self.outer)
        return Checkpoint(arrays, deepcopy(self.state), self.n_steps_done)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue after a checkpoint of the same training run; on the CPU the result has the same bits.

        Raise `ValueError` if the checkpoint belongs to a different training run.
        """
        self._check_arrays(checkpoint)
        self._check_progress(checkpoint.state)
        self.set_weights(Weights(checkpoint.group("parameters"), checkpoint.group("state")))
        self.outer = checkpoint.group("outer")
        self.best = checkpoint.group("best")
        # A copy, since the caller keeps the checkpoint, while this state changes.
        self.state = deepcopy(checkpoint.state)

    def _check_arrays(self, checkpoint: Checkpoint) -> None:
        """Raise `ValueError` unless the arrays of a checkpoint have the names and shapes of this training run."""
        if checkpoint.state.optimizer != self.settings.optimizer:
            raise ValueError(
                f"was written with the optimizer {checkpoint.state.optimizer}, expected {self.settings.optimizer}"
            )
        shapes = {name: array.shape for name, array in checkpoint.arrays.items()}
        expected = {name: array.shape for name, array in self.checkpoint().arrays.items()}
        if shapes != expected:
            raise ValueError(f"holds arrays of shapes {shapes}, expected {expected}")

    def _check_progress(self, state: TrainingState) -> None:
        """Raise `ValueError` for a state that this training run cannot have reached."""
        n_epochs = self.settings.epochs
        if state.n_epochs is not None:
            n_epochs = state.n_epochs
        if not state.epoch <= n_epochs <= self.settings.epochs:
            raise ValueError(f"is in epoch {state.epoch} of {n_epochs}, expected at most {self.settings.epochs}")
        n_pieces = self._n_pieces
        if max(state.n_done, state.ended_at or 0) > n_pieces:
            raise ValueError(f"has done {state.n_done} steps of its epoch, expected at most {n_pieces}")
        if state.n_done and not state.costs and self.replicas is None:
            raise ValueError(f"has done {state.n_done} steps of its epoch, but has no cost")

    def weights(self) -> Weights:
        """Return copies of the parameters and of the arrays of the update rule."""
        return Weights(self.autoencoder.parameters(), self.step.state())

    def set_weights(self, weights: Weights) -> None:
        self.autoencoder.set_parameters(weights.parameters)
        self.step.set_state(weights.rule)

    # -- changes by the loop -----------------------------------------------------------------------------------------

    def apply(self, limit: Limit) -> bool:
        """Apply a limit, which checkpoints store; return whether it changes anything."""
        state = self.state
        before = (state.n_epochs, state.ended_at)
        state.n_epochs = limit.n_epochs
        if limit.ends_here and state.n_done < self._n_pieces:
            state.ended_at = state.n_done
        return (state.n_epochs, state.ended_at) != before

    def record(self, step: StepResult, seconds: float) -> None:
        """Count steps that have been taken; `seconds` is the duration of all steps of the current epoch.

        Raise `TrainingDiverged` if the cost is not finite or has grown without bound.
        """
        state = self.state
        number = state.n_done
        # Count the steps before the cost is checked: the weights have changed, and a checkpoint must show that.
        state.n_done += step.n_steps
        state.seconds = seconds
        if step.cost is not None:
            piece = "minibatch" if self.replicas is None else "share"
            _check_cost(state, step.cost, f"epoch {state.epoch}, {piece} {number}")
            state.costs.append(step.cost)

    def end_epoch(self) -> Epoch:
        """Validate the model at the end of an epoch, and start the next one; raise like `record`."""
        start = time.monotonic()
        state = self.state
        validation_cost = self._validate()
        loss, accuracy = self._validate_targets()
        seconds = state.seconds + time.monotonic() - start
        epoch = Epoch(state.epoch, float(np.mean(state.costs)), validation_cost, seconds, loss, accuracy)
        if self._is_best(epoch.objective):
            self.best = self.autoencoder.parameters()
            state.best_epoch = state.epoch
            state.best_cost = epoch.objective
        state.start_next_epoch(epoch)
        return epoch

    def finish(self) -> None:
        """Set the parameters of the best epoch, or the initial ones.

        A start from principal components is kept if training hardly improved it. With few validation rows, the initial
        parameters are used only if training made the model clearly worse.
        """
        if self._has_hardly_improved():
            self._keep_start()
        self.autoencoder.set_parameters(self.best)
        if self.is_watched or len(self.validation) < _FEW_ROWS or self.settings.hides_much or self.supervision:
            return  # the best epoch was chosen with the initial parameters in view, or cannot be judged
        errors = self.autoencoder.errors(self.validation).astype(np.float64)
        self.autoencoder.set_parameters(self._start)
        with np.errstate(invalid="ignore", over="ignore"):  # an initial error may be infinite
            start_errors = self.autoencoder.errors(self.validation).astype(np.float64)
            excess = errors - start_errors
            tolerance = _STANDARD_ERRORS * excess.std() / np.sqrt(len(excess))
            is_worse = excess.mean() > tolerance
        if is_worse:
            self._keep_start()
            self.start_cost = float(start_errors.mean())
        self.autoencoder.set_parameters(self.best)

    def _has_hardly_improved(self) -> bool:
        """Return whether training from principal components has hardly reduced the validation cost."""
        best_cost = self.state.best_cost
        if self.start_cost is None or best_cost is None or not self._may_keep_components:
            return False
        return best_cost > (1 - _LEAST_IMPROVEMENT) * self.start_cost

    @property
    def _may_keep_components(self) -> bool:
        return self.settings.start == "components" and not self.supervision

    def _keep_start(self) -> None:
        self.best = self._start
        self.state.best_epoch = -1

    def _is_best(self, objective: float | None) -> bool:
        """Return whether an epoch with this objective is the best one so far."""
        state = self.state
        return not self.is_watched or state.best_cost is None or (objective or 0.0) < state.best_cost

    def _validate_targets(self) -> tuple[float | None, float | None]:
        """Return the weighted loss of the validation rows, and the accuracy of the head; None without a head."""
        if self.supervision is None or not len(self.validation):
            return None, None
        return self.supervision.validate(self.autoencoder, self.validation)

    def _validate(self) -> float | None:
        """Return the cost of the validation rows; None if there are none."""
        state = self.state
        # The costs of the last steps may not have been computed.
        if not all(np.isfinite(array).all() for array in self.autoencoder.parameters().values()):
            _check_cost(state, math.nan, f"the end of epoch {state.epoch}")
        if not len(self.validation):
            return None
        cost = self.autoencoder.cost(self.validation)
        _check_cost(state, cost, f"the validation after epoch {state.epoch}")
        return cost


def _check_cost(state: TrainingState, cost: float, where: str) -> None:
    """Raise `TrainingDiverged` for a cost that is not finite or has grown without bound, and store it otherwise."""
    first, last = state.watch
    if first is None:
        first = cost
    if not math.isfinite(cost) or cost > _DIVERGED * max(first, _SMALL):
        words = "none" if last is None else f"{last:.4g}"
        words = f"cost {cost:.4g}, last finite cost {words}"
        raise TrainingDiverged(Problem(f"training diverged at {where}", words, "Lower {learning_rate}"))
    state.watch = [first, cost]


def steps_of(training: Training, order: Order, epoch: int, n_done: int) -> Iterator[StepResult]:
    """Take the steps of an epoch from number `n_done` on, several at once if no cost is computed."""
    settings = training.settings
    first = epoch * training.steps_per_epoch
    stride = max(1, training.steps_per_epoch // _COSTS_PER_EPOCH)
    feed = _feed_from(training, order, epoch, n_done)
    number = n_done
    while n_ready := feed.n_ready():
        with_cost = number % stride == 0
        n_steps = 1
        if not with_cost:
            n_steps = min(n_ready, stride - number % stride)
        steps = range(first + number, first + number + n_steps)
        rates = [learning_rate(settings, step, training.steps_per_epoch, training.n_epochs) for step in steps]
        signals.check()  # before the steps, because steps that have been taken must be counted
        n_rows, cost = feed.take(rates, with_cost)
        yield StepResult(n_steps, n_rows, cost)
        number += n_steps


def _feed_from(training: Training, order: Order, epoch: int, n_done: int) -> StepFeed:
    """Return the minibatches of an epoch from number `n_done` on."""
    batch_size = training.settings.batch_size

    def pieces(n_each: int) -> Iterator[np.ndarray]:
        return training.rows.minibatches(order, epoch, batch_size, n_done, n_each)

    first_step = epoch * training.steps_per_epoch + n_done
    targets = None
    if training.supervision is not None:
        values = training.supervision.targets.values

        def targets(n_each: int) -> Iterator[np.ndarray]:
            return (values[numbers] for numbers in numbers_of(order, epoch, batch_size, n_done, n_each))

    return StepFeed(training.step, pieces, training.autoencoder.network, training.settings, first_step, targets)


# -- replicas ------------------------------------------------------------------------------------------------------


def rounds_of_epoch(training: Training, replicas: Replicas, runner: RoundRunner | None) -> Iterator[StepResult]:
    """Train the replicas on the remaining shares of the current epoch, round by round."""
    epoch = training.state.epoch
    n_done = training.state.n_done
    context: AbstractContextManager[RoundRunner]
    if runner is None:
        context = replicas.runner_here(epoch, n_done)
    else:
        context = nullcontext(runner)
    with context as run:
        for shares in replicas.rounds.rounds(epoch, n_done):
            signals.check()
            yield _round(training, replicas, run, shares)


def _round(training: Training, replicas: Replicas, run: RoundRunner, shares: Sequence[Share]) -> StepResult:
    """Train on these shares at the same time, and continue from the mean of the replicas."""
    start = training.weights()
    weights = start
    average = Average()
    costs = []
    tasks = [replicas.task(share, start, training.n_epochs, training.steps_per_epoch) for share in shares]
    try:
        for result in run(tasks):  # one by one, since many models would not fit into memory
            average.add(result.weights, result.n_rows)
            weights = result.weights  # a single replica is not averaged
            if result.cost is not None:
                costs.append(result.cost)
    except BaseException:  # in the middle of a round, which is then trained again
        training.set_weights(start)
        raise
    if len(shares) > 1 and average.n_rows:
        weights, training.outer = outer_step(start, average.mean(), training.outer, len(shares))
    training.set_weights(weights)
    return StepResult(len(shares), average.n_rows, float(np.mean(costs)) if costs else None)
