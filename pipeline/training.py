"""Epochs of minibatches, validation, early stopping."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import signals
from pipeline.config import Config
from pipeline.errors import TrainingDiverged
from pipeline.minibatches import Order, Rows
from pipeline.progress import Progress

if TYPE_CHECKING:
    from kernels.autoencoder import Autoencoder, TrainingStep

__all__ = ["Epoch", "Trained", "learning_rate", "train"]

log = logging.getLogger(__name__)

# The cost is asked for on so many steps of an epoch, evenly spread: asking makes a step a quarter slower.
_COSTS_PER_EPOCH = 16

# Rows are scaled to [0, 1], so a cost that has grown so far will not come back.
_DIVERGED = 100.0
_SMALL = 1e-6


@dataclass(frozen=True)
class Epoch:
    """One line of the training's history.

    Attributes
    ----------
    epoch : int
        From 0.
    cost : float
        Mean squared error per entry of scaled rows, before each step, over the steps on which it was asked for.
    validation_cost : float or None
        The same over the validation rows at the epoch's end; None without any.
    seconds : float
    """

    epoch: int
    cost: float
    validation_cost: float | None
    seconds: float

    def __str__(self) -> str:
        validation = "" if self.validation_cost is None else f", validation {self.validation_cost:.4g}"
        return f"cost {self.cost:.4g}{validation}"


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes
    ----------
    parameters : mapping
        The best epoch's, as `kernels.autoencoder.Autoencoder.parameters` returns them.
    history : tuple of Epoch
    best_epoch : int
        The one with the lowest validation cost; the last one without validation.
    """

    parameters: Mapping[str, np.ndarray]
    history: tuple[Epoch, ...]
    best_epoch: int

    def summary(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {"best_epoch": self.best_epoch, "history": [asdict(epoch) for epoch in self.history]}


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

    Raises
    ------
    TrainingDiverged
        When a cost is not finite or has grown without bound; the autoencoder is left with the last good parameters.
    """
    history: list[Epoch] = []
    best, best_cost, best_epoch = autoencoder.parameters(), math.inf, 0
    watch = _CostWatch()
    with Progress("training", config.epochs, "epochs") as progress:
        for epoch in range(config.epochs):
            start = time.monotonic()
            try:
                cost = _train_epoch(step, rows, order, config, epoch, watch)
                validation_cost = _validate(autoencoder, validation, epoch, watch)
            except TrainingDiverged:
                autoencoder.set_parameters(best)
                raise
            done = Epoch(epoch, cost, validation_cost, time.monotonic() - start)
            history.append(done)
            progress.advance(1, str(done))
            log.debug("epoch %d: %s, %.2f s", epoch, done, done.seconds)
            if validation_cost is None:
                best, best_epoch = autoencoder.parameters(), epoch
            elif validation_cost < best_cost:
                best, best_cost, best_epoch = autoencoder.parameters(), validation_cost, epoch
            elif config.patience and epoch - best_epoch >= config.patience:
                log.info("training: stopped early, epoch %d was the best", best_epoch)
                break
    autoencoder.set_parameters(best)
    return Trained(best, tuple(history), best_epoch)


def _train_epoch(step: TrainingStep, rows: Rows, order: Order, config: Config, epoch: int, watch: _CostWatch) -> float:
    """Take an epoch's steps; the mean of the costs that were asked for."""
    assert config.batch_size is not None
    n_steps = -(-order.n_rows // config.batch_size)
    stride = max(1, n_steps // _COSTS_PER_EPOCH)
    costs = []
    for number, minibatch in enumerate(rows.minibatches(order, epoch, config.batch_size)):
        signals.check()
        step.set_learning_rate(learning_rate(config, epoch * n_steps + number, n_steps))
        cost = step(minibatch, with_cost=number % stride == 0)
        if cost is not None:
            costs.append(watch.check(cost, f"epoch {epoch}, minibatch {number}"))
    return float(np.mean(costs))


def _validate(autoencoder: Autoencoder, validation: np.ndarray, epoch: int, watch: _CostWatch) -> float | None:
    """Look at what an epoch's steps have left: the validation rows' cost; None without any."""
    # The last steps' costs may not have been asked for.
    if not all(np.isfinite(array).all() for array in autoencoder.parameters().values()):
        watch.check(math.nan, f"the end of epoch {epoch}")
    return watch.check(autoencoder.cost(validation), f"the validation after epoch {epoch}") if len(validation) else None


class _CostWatch:
    """Knows the first and the last good cost, and refuses one that is not finite or has grown without bound."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = math.nan

    def check(self, cost: float, where: str) -> float:
        first = cost if self._first is None else self._first
        if not math.isfinite(cost) or cost > _DIVERGED * max(first, _SMALL):
            raise TrainingDiverged(
                f"training diverged at {where}: cost {cost:.4g}, last finite cost {self._last:.4g}. "
                "Lower --learning-rate."
            )
        self._first, self._last = first, cost
        return cost
