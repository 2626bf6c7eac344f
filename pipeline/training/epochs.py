"""Epochs of minibatches, validation, early stopping, divergence."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from pipeline import signals
from pipeline.errors import TrainingDiverged
from pipeline.progress import Progress
from pipeline.settings.config import Config
from pipeline.training.checkpoint import Checkpoint, Epoch, Trained, flat
from pipeline.training.order import Order
from pipeline.training.rows import Rows

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder
    from kernels.step import TrainingStep

__all__ = ["learning_rate", "train"]

log = logging.getLogger(__name__)

# The cost is asked for on so many steps of an epoch, evenly spread: asking makes a step a quarter slower.
_COSTS_PER_EPOCH = 16

# Rows are scaled to [0, 1], so a cost that has grown so far will not come back.
_DIVERGED = 100.0
_SMALL = 1e-6

# An epoch may be over in milliseconds: its end is saved only when saving takes less than a fiftieth of the time.
_RARELY = 50


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Size of a step, counted from 0 over all epochs.

    The linear schedule rises over the first epoch, while the weights are far from any order and a whole step would
    saturate the units, and falls to 0 over the others.
    """
    assert config.learning_rate is not None
    if config.schedule == "constant":
        return config.learning_rate
    n_steps = config.epochs * steps_per_epoch
    rise = (step + 1) / steps_per_epoch
    fall = (n_steps - step) / max(1, n_steps - steps_per_epoch)
    return config.learning_rate * min(rise, fall, 1.0)


def train(
    autoencoder: Autoencoder,
    step: TrainingStep,
    rows: Rows,
    order: Order,
    validation: np.ndarray,
    config: Config,
    checkpoint: Checkpoint | None = None,
    save: Callable[[Checkpoint], object] = lambda checkpoint: None,
) -> Trained:
    """Train until the epochs are over or validation stops getting better.

    Parameters
    ----------
    autoencoder : Autoencoder
        Initialized; trained in place, and left with the best epoch's parameters.
    step : TrainingStep
        One step of it.
    rows : Rows
        Where minibatches come from.
    order : Order
        Which rows they hold.
    validation : ndarray of shape (n_validation, n_inputs)
        Unscaled; may be empty.
    config : Config
    checkpoint : Checkpoint, optional
        Where to go on. On the CPU the result is the same, bit for bit, as without the interruption.
    save : callable
        Given a checkpoint every ``config.checkpoint_minutes``, at the end of epochs, and when a signal comes.

    Raises
    ------
    TrainingDiverged
        When a cost is not finite or has grown without bound; the autoencoder is left with the last good parameters.
    ValueError
        When the checkpoint is of another model or update rule.
    """
    assert config.batch_size is not None
    state = _State(autoencoder, step, config, -(-order.n_rows // config.batch_size))
    if checkpoint is not None:
        state.restore(checkpoint)
    keeper = _Keeper(state, save, 60 * config.checkpoint_minutes)
    # A step that a signal cuts short would leave weights that belong to no place in the order.
    with Progress("training", config.epochs, "epochs") as progress, signals.deferred():
        progress.advance(state.epoch)
        try:
            while not state.is_over:
                _train_epoch(state, rows, order, keeper)
                done = _end_epoch(state, validation)
                progress.advance(1, str(done))
                log.debug("epoch %d: %s, %.2f s", done.epoch, done, done.seconds)
                keeper.keep(end_of_epoch=True)
        except TrainingDiverged:
            autoencoder.set_parameters(state.best)
            raise
        except signals.Stopped:
            save(state.checkpoint())
            raise
    if state.epoch < config.epochs:
        log.info("training: stopped early, epoch %d was the best", state.best_epoch)
    autoencoder.set_parameters(state.best)
    return Trained(state.best, tuple(state.history), state.best_epoch)


class _State:
    """Everything that decides how training goes on."""

    def __init__(self, autoencoder: Autoencoder, step: TrainingStep, config: Config, n_steps: int) -> None:
        self.autoencoder, self.step, self.config, self.n_steps = autoencoder, step, config, n_steps
        self.epoch = 0
        self.n_done = 0  # steps of this epoch
        self.costs: list[float] = []
        self.seconds = 0.0
        self.history: list[Epoch] = []
        self.best, self.best_cost, self.best_epoch = autoencoder.parameters(), math.inf, 0
        self.watch = _CostWatch()

    @property
    def is_over(self) -> bool:
        """All epochs are done, or validation has not got better for too long."""
        waited = self.epoch - 1 - self.best_epoch
        patience = self.config.patience
        watched = bool(self.history) and self.history[-1].validation_cost is not None
        return self.epoch >= self.config.epochs or bool(watched and patience and waited >= patience)

    def checkpoint(self) -> Checkpoint:
        """Copies of all of it."""
        arrays = flat(self.autoencoder.parameters(), self.step.state(), self.best)
        progress = {
            "optimizer": self.config.optimizer,
            "epoch": self.epoch,
            "n_done": self.n_done,
            "costs": list(self.costs),
            "seconds": self.seconds,
            "history": [asdict(epoch) for epoch in self.history],
            "best_cost": self.best_cost if math.isfinite(self.best_cost) else None,
            "best_epoch": self.best_epoch,
            "watch": self.watch.seen(),
        }
        return Checkpoint(arrays, progress, self.epoch * self.n_steps + self.n_done)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from there; a `ValueError` says what does not fit."""
        progress = checkpoint.progress
        try:
            if progress["optimizer"] != self.config.optimizer:
                raise ValueError(f"a checkpoint of {progress['optimizer']}, expected {self.config.optimizer}")
            self.best = checkpoint.group("best")
            self.autoencoder.set_parameters(self.best)  # which are not needed yet, but must fit
            self.autoencoder.set_parameters(checkpoint.group("parameters"))
            self.step.set_state(checkpoint.group("state"))
            self.epoch, self.n_done, self.costs = progress["epoch"], progress["n_done"], list(progress["costs"])
            self.seconds, self.history = progress["seconds"], [Epoch(**epoch) for epoch in progress["history"]]
            self.best_epoch = progress["best_epoch"]
            self.best_cost = math.inf if progress["best_cost"] is None else progress["best_cost"]
            self.watch = _CostWatch(*progress["watch"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no checkpoint of a training: {error!r}") from error


class _Keeper:
    """Saves checkpoints: often enough to lose little, seldom enough to cost little."""

    def __init__(self, state: _State, save: Callable[[Checkpoint], object], seconds_between: float) -> None:
        self._state, self._save, self._seconds_between = state, save, seconds_between
        self._cost, self._last = 0.0, time.monotonic()

    def keep(self, end_of_epoch: bool = False) -> None:
        """Save one when it is time."""
        start = time.monotonic()
        waited = start - self._last
        if waited >= self._seconds_between or (end_of_epoch and waited >= _RARELY * self._cost):
            self._save(self._state.checkpoint())
            self._last = time.monotonic()
            self._cost = self._last - start


def _train_epoch(state: _State, rows: Rows, order: Order, keeper: _Keeper) -> None:
    """Take an epoch's steps, or what is left of them."""
    config, n_steps = state.config, state.n_steps
    assert config.batch_size is not None
    stride = max(1, n_steps // _COSTS_PER_EPOCH)
    start = time.monotonic() - state.seconds
    for minibatch in rows.minibatches(order, state.epoch, config.batch_size, state.n_done):
        signals.check()
        number = state.n_done
        state.step.set_learning_rate(learning_rate(config, state.epoch * n_steps + number, n_steps))
        cost = state.step(minibatch, with_cost=number % stride == 0)
        state.n_done, state.seconds = number + 1, time.monotonic() - start
        if cost is not None:
            state.costs.append(state.watch.check(cost, f"epoch {state.epoch}, minibatch {number}"))
        keeper.keep()


def _end_epoch(state: _State, validation: np.ndarray) -> Epoch:
    """Look at what an epoch's steps have left, and turn to the next one."""
    start, epoch = time.monotonic(), state.epoch
    validation_cost = _validate(state.autoencoder, validation, epoch, state.watch)
    seconds = state.seconds + time.monotonic() - start
    done = Epoch(epoch, float(np.mean(state.costs)), validation_cost, seconds)
    state.history.append(done)
    if validation_cost is None or validation_cost < state.best_cost:
        state.best, state.best_epoch = state.autoencoder.parameters(), epoch
        state.best_cost = math.inf if validation_cost is None else validation_cost
    state.epoch, state.n_done, state.costs, state.seconds = epoch + 1, 0, [], 0.0
    return done


def _validate(autoencoder: Autoencoder, validation: np.ndarray, epoch: int, watch: _CostWatch) -> float | None:
    """The validation rows' cost; None without any."""
    # The last steps' costs may not have been asked for.
    if not all(np.isfinite(array).all() for array in autoencoder.parameters().values()):
        watch.check(math.nan, f"the end of epoch {epoch}")
    return watch.check(autoencoder.cost(validation), f"the validation after epoch {epoch}") if len(validation) else None


class _CostWatch:
    """Knows the first and the last good cost, and refuses one that is not finite or has grown without bound."""

    def __init__(self, first: float | None = None, last: float | None = None) -> None:
        self._first, self._last = first, last

    def seen(self) -> list[float | None]:
        """What it goes by."""
        return [self._first, self._last]

    def check(self, cost: float, where: str) -> float:
        first = cost if self._first is None else self._first
        if not math.isfinite(cost) or cost > _DIVERGED * max(first, _SMALL):
            last = "none" if self._last is None else f"{self._last:.4g}"
            raise TrainingDiverged(
                f"training diverged at {where}: cost {cost:.4g}, last finite cost {last}. Lower --learning-rate."
            )
        self._first, self._last = first, cost
        return cost
