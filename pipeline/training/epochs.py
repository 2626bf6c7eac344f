"""Epochs of minibatches: steps, validation, early stopping, divergence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pipeline import signals
from pipeline.errors import TrainingDiverged
from pipeline.settings.resolve import ResolvedTraining
from pipeline.training.averaging import Average, State, outer_step
from pipeline.training.checkpoint import Checkpoint, Epoch, Standing, grouped
from pipeline.training.components import Baseline
from pipeline.training.order import Order, learning_rate, long_epoch
from pipeline.training.replica import Replicas, Run
from pipeline.training.rounds import Share
from pipeline.training.rows import Rows, begun

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.step import TrainingStep

__all__ = ["Training", "steps_of", "train"]

log = logging.getLogger(__name__)

Advance = Callable[[int, object], object]
Taken = tuple[int, int, float | None]
"""Numbers of steps (or shares of replicas) and of their rows that were taken, and the cost where it was computed."""

# The cost is asked for on so many steps of an epoch, evenly spread: asking makes a step a quarter slower.
_COSTS_PER_EPOCH = 16

# The mean error of so many rows is good to a few percent; that of ten is not.
_ENOUGH_ROWS = 100

# Rows are scaled to [0, 1], so a cost that has grown so far will not come back.
_DIVERGED = 100.0
_SMALL = 0.01  # a first cost of almost nothing, as of principal components, may grow a hundredfold for a while

# An epoch may be over in milliseconds: its end is saved only when saving takes less than a fiftieth of the time.
_RARELY = 50


@dataclass
class Training:
    """A training: what is trained on which rows, and how far it has come.

    Attributes
    ----------
    autoencoder : Autoencoder
        Initialized; trained in place.
    rows : Rows
        Where minibatches come from.
    order : Order
        Which rows they hold.
    validation : ndarray of shape (n_validation, n_inputs)
        Unscaled; may be empty.
    patience : int
        Stop after this number of epochs, or hundreds of steps where these are longer, without a better validation cost;
        0 never stops.
    baseline : Baseline or None
        What its result is held against.
    replicas : Replicas or None
        Of the autoencoder, where several train it.
    outer : dict
        The velocity of the steps that they take together, by the parameters' names; empty where there is one.
    best : dict
        The parameters of the best epoch so far; those of the start, as long as none was better.
    start_cost : float or None
        The validation rows' cost at the start; None where it is not watched.
    """

    autoencoder: Autoencoder
    step: TrainingStep
    rows: Rows
    order: Order
    validation: np.ndarray
    settings: ResolvedTraining
    patience: int = 0
    baseline: Baseline | None = None
    replicas: Replicas | None = None

    def __post_init__(self) -> None:
        cost = self.autoencoder.cost(self.validation) if self.is_watched else math.inf
        self.start_cost = cost if math.isfinite(cost) else None
        self.standing = Standing(self.settings.optimizer, best_cost=self.start_cost)
        self.best = self.autoencoder.parameters()
        self.outer = {name: np.zeros_like(array) for name, array in self.best.items()} if self.replicas else {}

    def __str__(self) -> str:
        now = self.standing
        n_epochs = self.settings.epochs
        costs = f", {now.history[-1]}" if now.history else ""
        step = f"step {self.n_steps_done}/{n_epochs * self.steps_per_epoch}"
        return f"epoch {min(now.epoch + 1, n_epochs)}/{n_epochs}, {step}{costs}"

    @property
    def steps_per_epoch(self) -> int:
        """Minibatches, of which the last one may be smaller."""
        return -(-self.order.n_rows // self.settings.batch_size)

    @property
    def n_steps_done(self) -> int:
        """So far; where replicas take them at the same time, those that one would have taken on as many rows."""
        epoch, in_epoch = self._position
        if self.replicas:
            in_epoch = in_epoch * self.steps_per_epoch // self.replicas.rounds.n_shares
        return epoch * self.steps_per_epoch + in_epoch

    @property
    def last_epoch_part(self) -> float:
        """The part of the last epoch that is trained: below 1 if a deadline ended the training within it."""
        ended_at = self.standing.ended_at
        if ended_at is None:
            return 1.0
        return ended_at / self._n_pieces

    @property
    def _n_pieces(self) -> int:
        """Steps of an epoch, or its shares where there are replicas."""
        return self.replicas.rounds.n_shares if self.replicas else self.steps_per_epoch

    @property
    def n_rows_done(self) -> int:
        """Rows of all steps so far."""
        epoch, n_done = self._position
        in_epoch = min(n_done * self.settings.batch_size, self.order.n_rows)
        if self.replicas:
            in_epoch = self.replicas.rounds.n_rows_of(epoch, n_done)
        return epoch * self.order.n_rows + in_epoch

    @property
    def _position(self) -> tuple[int, int]:
        """The epoch, and its steps (or shares) that are done; after the end of a part of an epoch, still that one."""
        now = self.standing
        if now.ended_at is not None:
            is_evaluated = now.n_done == 0
            return now.epoch - is_evaluated, now.ended_at
        return now.epoch, now.n_done

    @property
    def is_watched(self) -> bool:
        """Whether the validation's cost tells which epoch is the best: else that is the last one.

        It does not of a few rows, nor of rows that are whole where training learns to fill in what is missing.
        """
        return len(self.validation) >= _ENOUGH_ROWS and not self.settings.hides_much

    @property
    def is_over(self) -> bool:
        """All epochs are done, or validation has not got better for too long."""
        now = self.standing
        settings = self.settings
        if now.epoch >= settings.epochs:
            return True
        # Where the rate is going to fall, that gains most: what first epochs lose, from a good start, comes back.
        first = settings.epochs // 2 if settings.schedule == "linear" else 0
        costs = [epoch.validation_cost or 0.0 for epoch in now.history[first:]]
        if not (self.is_watched and self.patience and costs):
            return False
        n_steps = (len(costs) - 1 - int(np.argmin(costs))) * self.steps_per_epoch
        return n_steps >= self.patience * long_epoch(settings, self.steps_per_epoch)

    def checkpoint(self) -> Checkpoint:
        """Copies of all that decides how it goes on."""
        now = deepcopy(self.standing)
        state = self.state()
        arrays = grouped(parameters=state.parameters, state=state.rule, best=self.best, outer=self.outer)
        return Checkpoint(arrays, now, self.n_steps_done)

    def go_on_from(self, checkpoint: Checkpoint) -> Checkpoint:
        """Take up a training like this one; a `ValueError` says why that cannot be.

        On the CPU the result is the same, bit for bit, as without the interruption.
        """
        if checkpoint.standing.optimizer != self.settings.optimizer:
            raise ValueError(f"is one of {checkpoint.standing.optimizer}, expected {self.settings.optimizer}")
        arrays = (checkpoint.arrays, self.checkpoint().arrays)
        found, expected = ({name: array.shape for name, array in each.items()} for each in arrays)
        if found != expected:
            raise ValueError(f"holds arrays of shapes {found}, expected {expected}")
        self._check_progress(checkpoint.standing)
        self.set_state(State(checkpoint.group("parameters"), checkpoint.group("state")))
        self.outer = checkpoint.group("outer")
        # A copy, since the checkpoint is the caller's and this one goes on.
        self.best = checkpoint.group("best")
        self.standing = deepcopy(checkpoint.standing)
        if self.standing.n_epochs is not None:
            self.limit(self.standing.n_epochs)
        return checkpoint

    def _check_progress(self, now: Standing) -> None:
        """Refuse a place that this training cannot have reached; before anything of it is changed."""
        n_epochs = self.settings.epochs if now.n_epochs is None else now.n_epochs
        if not now.epoch <= n_epochs <= self.settings.epochs:
            raise ValueError(f"is in epoch {now.epoch} of {n_epochs}, expected {self.settings.epochs} at most")
        n_pieces = self._n_pieces
        if max(now.n_done, now.ended_at or 0) > n_pieces:
            raise ValueError(f"has done {now.n_done} steps of its epoch, expected {n_pieces} at most")
        if now.n_done and not now.costs and self.replicas is None:
            raise ValueError(f"has done {now.n_done} steps of its epoch, but kept no cost")

    def state(self) -> State:
        """Copies of what the last step has left."""
        return State(self.autoencoder.parameters(), self.step.state())

    def set_state(self, state: State) -> None:
        """Go on from there."""
        self.autoencoder.set_parameters(state.parameters)
        self.step.set_state(state.rule)

    def limit(self, n_epochs: int) -> None:
        """Make so many epochs in all, over which the learning rate falls to its end. Checkpoints keep it."""
        self.standing.n_epochs = n_epochs
        self.settings = replace(self.settings, epochs=n_epochs)

    def end_here(self) -> None:
        """End the training with the step that was taken last. Checkpoints keep it."""
        now = self.standing
        self.limit(now.epoch + 1)
        if now.n_done < self._n_pieces:
            now.ended_at = now.n_done


def train(
    training: Training,
    save: Callable[[Checkpoint], object] = lambda checkpoint: None,
    advance: Advance = lambda n_rows, standing: None,
    run: Run | None = None,
    checkpoint_minutes: float = math.inf,
) -> Standing:
    """Train until the epochs are over or validation stops getting better; the best epoch's parameters stay.

    Those of the start, where no epoch was better.

    Parameters
    ----------
    save : callable
        Given a checkpoint every `checkpoint_minutes`, at the end of epochs, and when a signal comes.
    advance : callable
        Called with the number of rows trained on since the last call, and with the training, whose `str` says how far
        it is. After a step it may call the training's `limit` or `end_here`; a checkpoint, written at once, keeps that.
    run : callable, optional
        Where there are replicas, what trains them; without it this process does, one after the other.

    Raises
    ------
    TrainingDiverged
        When a cost is not finite or has grown without bound; the autoencoder is left with the last good parameters.
    """
    keeper = _Keeper(training, save, 60 * checkpoint_minutes)
    # A step that a signal cuts short would leave weights that belong to no place in the order.
    with signals.deferred():
        try:
            while not training.is_over:
                _train_epoch(training, keeper, advance, run)
                done = _end_epoch(training)
                advance(0, training)
                log.debug("epoch %d: %s, %.2f s", done.epoch, done, done.seconds)
                keeper.keep(end_of_epoch=True)
        except TrainingDiverged:
            training.autoencoder.set_parameters(training.best)
            raise
        except signals.Stopped:  # whatever was saved last: not even one step is lost
            save(training.checkpoint())
            raise
    training.autoencoder.set_parameters(training.best)
    return training.standing


class _Keeper:
    """Saves checkpoints: often enough to lose little, seldom enough to cost little."""

    def __init__(self, training: Training, save: Callable[[Checkpoint], object], seconds_between: float) -> None:
        self._training = training
        self._save = save
        self._seconds_between = seconds_between
        self._cost = 0.0
        self._last = time.monotonic()

    def keep(self, end_of_epoch: bool = False) -> None:
        """Save one when it is time."""
        waited = time.monotonic() - self._last
        if waited >= self._seconds_between or (end_of_epoch and waited >= _RARELY * self._cost):
            self.save()

    def save(self) -> None:
        """Save one."""
        start = time.monotonic()
        self._save(self._training.checkpoint())
        self._last = time.monotonic()
        self._cost = self._last - start


def _train_epoch(training: Training, keeper: _Keeper, advance: Advance, run: Run | None) -> None:
    """Take an epoch's steps, or what is left of them."""
    now = training.standing
    if now.ended_at is not None:  # an interrupted run had ended it here
        return
    start = time.monotonic() - now.seconds  # also what steps took before an interruption
    if training.replicas is None:
        taken = steps_of(training, training.order, now.epoch, now.n_done)
    else:
        taken = rounds_taken(training, training.replicas, run)
    for n_taken, n_rows, cost in taken:
        number = now.n_done
        # Before the cost is looked at: a checkpoint of what follows counts the step that the weights have taken.
        now.n_done = number + n_taken
        now.seconds = time.monotonic() - start
        if cost is not None:
            what = "minibatch" if training.replicas is None else "share"
            now.costs.append(_checked(now, cost, f"epoch {now.epoch}, {what} {number}"))
        limits = (now.n_epochs, now.ended_at)
        if n_rows:  # of a round there may be none left
            before = time.monotonic()
            advance(n_rows, training)
            start += time.monotonic() - before  # an epoch's seconds are those of its steps
        if (now.n_epochs, now.ended_at) != limits:
            keeper.save()
        if now.ended_at is not None:
            return
        keeper.keep()


def steps_of(training: Training, order: Order, epoch: int, n_done: int) -> Iterator[Taken]:
    """Take the steps of an epoch from number `n_done` on, one or more at a time: those that are asked for a cost alone.

    Yields
    ------
    tuple of (int, int, float or None)
        Steps that have just been taken, their rows, and the cost.
    """
    rows = training.rows
    settings = training.settings
    n_steps = training.steps_per_epoch
    stride = max(1, n_steps // _COSTS_PER_EPOCH)

    def pieces(n_each: int) -> Iterator[np.ndarray]:
        return rows.minibatches(order, epoch, settings.batch_size, n_done, n_each)

    number = n_done
    for lengths in begun(training.step, pieces, settings, training.validation.shape[1], epoch * n_steps + n_done):
        while lengths:
            asked = number % stride == 0
            n = 1 if asked else min(len(lengths), stride - number % stride)
            first = epoch * n_steps + number
            rates = [learning_rate(training.settings, first + i, n_steps) for i in range(n)]
            signals.check()  # now, since what has been taken is counted at once
            yield n, sum(lengths[:n]), training.step.take(rates, asked)
            number = number + n
            lengths = lengths[n:]


def rounds_taken(training: Training, replicas: Replicas, run: Run | None) -> Iterator[Taken]:
    """Train the replicas on their shares of the epoch under way, round by round."""
    now = training.standing
    runner: AbstractContextManager[Run] = replicas.run_here(now.epoch, now.n_done) if run is None else nullcontext(run)
    with runner as run_tasks:
        for shares in replicas.rounds.rounds(now.epoch, now.n_done):
            signals.check()
            yield _round(training, replicas, run_tasks, shares)


def _round(training: Training, replicas: Replicas, run: Run, shares: Sequence[Share]) -> Taken:
    """Train on these shares at the same time, and continue from the mean of what the replicas arrive at."""
    start = training.state()
    last = start
    average = Average()
    costs: list[float] = []
    tasks = [replicas.task(share, start, training.settings, training.steps_per_epoch) for share in shares]
    try:
        for done in run(tasks):
            average.add(done.state, done.n_rows)
            last = done.state
            costs += done.costs
    except BaseException:  # in the middle of a round, which is then trained again
        training.set_state(start)
        raise
    if len(shares) > 1 and average.n_rows:  # a single replica is not averaged
        last, training.outer = outer_step(start, average.mean(), training.outer, len(shares))
    training.set_state(last)
    cost = float(np.mean(costs)) if costs else None
    return len(shares), average.n_rows, cost


def _end_epoch(training: Training) -> Epoch:
    """Look at what an epoch's steps have left, and turn to the next one."""
    start = time.monotonic()
    now = training.standing
    validation_cost = _validate(training, now)
    seconds = now.seconds + time.monotonic() - start
    done = Epoch(now.epoch, float(np.mean(now.costs)), validation_cost, seconds)
    now.history.append(done)
    if not training.is_watched or now.best_cost is None or (validation_cost or 0.0) < now.best_cost:
        training.best = training.autoencoder.parameters()
        now.best_epoch = now.epoch
        now.best_cost = validation_cost
    now.epoch = now.epoch + 1
    now.n_done = 0
    now.costs = []
    now.seconds = 0.0
    return done


def _validate(training: Training, now: Standing) -> float | None:
    """The validation rows' cost; None without any."""
    # The last steps' costs may not have been asked for.
    if not all(np.isfinite(array).all() for array in training.autoencoder.parameters().values()):
        _checked(now, math.nan, f"the end of epoch {now.epoch}")
    if not len(training.validation):
        return None
    return _checked(now, training.autoencoder.cost(training.validation), f"the validation after epoch {now.epoch}")


def _checked(now: Standing, cost: float, where: str) -> float:
    """A cost that is finite and has not grown without bound; `now` keeps the first one and the last."""
    first, last = now.watch
    first = cost if first is None else first
    if not math.isfinite(cost) or cost > _DIVERGED * max(first, _SMALL):
        words = "none" if last is None else f"{last:.4g}"
        raise TrainingDiverged(
            f"training diverged at {where}: cost {cost:.4g}, last finite cost {words}. Lower --learning-rate."
        )
    now.watch = [first, cost]
    return cost
