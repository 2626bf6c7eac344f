"""Tests of training with a simulated device: early stopping and divergence."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from shardpress.base.errors import TrainingDiverged
from shardpress.settings.resolve import Settings
from shardpress.training.checkpoint import TrainingState
from shardpress.training.epochs import Training
from shardpress.training.order import Order
from shardpress_kernels.network import Network
from tests.support import standin
from tests.support.cases import case
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

CONFIG = settings_of(
    **ONE_LAYER,
    n_features=1,
    learning_rate=0.5,
    batch_size=4,
    epochs=6,
    patience=2,
    schedule="constant",
)
NO_ROWS = np.empty((0, 1))
FEW_ROWS = np.zeros((99, 1))
ENOUGH_ROWS = np.zeros((100, 1))


class Numbered:
    """Stand-in for rows whose minibatches are row numbers."""

    resident = None

    def minibatches(
        self, order: Order, epoch: int, batch_size: int, first: int = 0, n_each: int = 1
    ) -> Iterator[np.ndarray]:
        for start in range(first * batch_size, order.n_rows, n_each * batch_size):
            yield np.arange(start, min(start + n_each * batch_size, order.n_rows))


class Counting:
    """Stand-in for an autoencoder and its step. The parameter counts the steps, and the costs are predefined."""

    network = Network((1, 1))

    def __init__(self, costs: Sequence[float] = (), validation_costs: Sequence[float] = ()) -> None:
        self._costs = itertools.chain(costs, itertools.repeat(1.0))
        self._validation_costs = iter(validation_costs)
        self.n_steps = 0.0
        self.growth = 0.0

    def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
        self.n_steps += 1
        return next(self._costs) if with_cost else None

    def n_at_once(self, batch_size: int) -> int:
        return 3

    begin = standin.TrainingStep.begin
    take = standin.TrainingStep.take

    def parameters(self) -> dict[str, np.ndarray]:
        return {"W": np.array(self.n_steps, dtype=np.float32)}

    def set_parameters(self, values: dict[str, np.ndarray]) -> None:
        self.n_steps = float(values["W"])

    def state(self) -> dict[str, np.ndarray]:
        return {}

    def set_state(self, values: dict[str, np.ndarray]) -> None:
        assert values == {}

    def cost(self, rows: np.ndarray) -> float:
        return next(self._validation_costs)

    def errors(self, rows: np.ndarray) -> np.ndarray:
        """Return errors around 1 that grow by `growth` with each step."""
        noise = np.random.default_rng(int(self.n_steps)).normal(0, 0.01, len(rows))
        return (1 + self.growth * self.n_steps + noise).astype(np.float32)


def training(device: Any, config: Settings, validation: np.ndarray = NO_ROWS, n_rows: int = 8) -> Training:
    order = Order(np.array([0, n_rows]), np.empty(0, dtype=np.int64), n_rows, seed=0)
    return Training(device, device, Numbered(), order, validation, config.training, config.validation.patience)


def run(device: Any, config: Settings = CONFIG, validation: np.ndarray = NO_ROWS, n_rows: int = 8) -> TrainingState:
    return train(training(device, config, validation, n_rows))


# The costs of a case are those of the validation rows before the training and after each epoch of two steps.
STOPPING: dict[str, tuple[list[float], dict[str, Any], int, int]] = {
    "two epochs without a better cost are enough": ([0.9, 0.5, 0.0, 0.0, 0.1], {}, 1, 4),
    "training continues while it improves, but keeps a better start": ([0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], {}, -1, 6),
    "a start that is not finite is never the best": ([math.nan, *[0.5] * 6], {"patience": 0}, 0, 6),
    "patience begins in the second half of a falling rate": (
        [0.9, 0.1, *[0.5] * 9, *[0.6] * 10],
        {"schedule": "linear", "epochs": 20},
        0,
        13,
    ),
    # A twentieth of 200 epochs of 2 steps is 20 steps; two of them are 20 epochs.
    "patience is longer for short epochs": ([0.9, 0.5, *[0.6] * 200], {"epochs": 200}, 0, 21),
    "training stops if its first half is worse than components": (
        [0.5, *[0.6] * 4, 0.6, *[0.1] * 3],
        {"start": "components", "schedule": "linear", "epochs": 8},
        -1,
        5,
    ),
    "training continues if an epoch of its first half is better": (
        [0.5, 0.6, 0.49, 0.6, 0.6, 0.6, 0.4, 0.4, 0.1],
        {"start": "components", "schedule": "linear", "epochs": 8},
        7,
        8,
    ),
    "a training of few epochs may be better than components at its end": (
        [0.5, *[0.6] * 5, 0.1],
        {"start": "components", "schedule": "linear", "epochs": 6},
        5,
        6,
    ),
    "components are kept without a clear improvement": (
        [1, 0.999, 0.998, 0.99, 0.999, 0.999, 0.999],
        {"start": "components", "patience": 0},
        -1,
        6,
    ),
}


def test_early_stopping_restores_the_best_weights() -> None:
    for name, (costs, settings, best_epoch, n_epochs) in STOPPING.items():
        with case(name):
            device = Counting(validation_costs=costs)
            trained = run(device, CONFIG.changed(**settings), ENOUGH_ROWS)
            assert trained.best_epoch == best_epoch
            assert len(trained.history) == n_epochs
            assert device.n_steps == 2 * (best_epoch + 1)


def test_few_rows_keep_the_start_if_training_makes_them_clearly_worse() -> None:
    for growth, n_steps in ((0.1, 0), (0.0, 12), (-0.01, 12)):
        device = Counting(validation_costs=[0.5] * 7)
        device.growth = growth
        trained = training(device, CONFIG, FEW_ROWS)
        state = train(trained)
        assert state.best_epoch == (-1 if growth > 0 else 5)
        assert device.n_steps == n_steps
        assert trained.start_cost == (pytest.approx(1, abs=0.01) if growth > 0 else None)


def test_without_usable_validation_the_last_epoch_is_kept() -> None:
    costs = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for rows, corruption in [(NO_ROWS, 0.0), (FEW_ROWS, 0.0), (ENOUGH_ROWS, 0.25)]:
        device = Counting(validation_costs=costs)
        trained = run(device, CONFIG.changed(corruption=corruption), rows)
        assert [epoch.validation_cost for epoch in trained.history] == (costs if len(rows) else [None] * 6)
        assert trained.best_epoch == 5
        assert device.n_steps == 12


def test_divergence_names_its_place_and_keeps_the_last_weights() -> None:
    class Breaking(Counting):
        def parameters(self) -> dict[str, np.ndarray]:
            return {"W": np.array(np.nan if self.n_steps > 2 else self.n_steps)}

    for bad in (math.nan, math.inf, 1e9):
        device = Counting(costs=[0.5, 0.4, 0.3, bad])
        with pytest.raises(TrainingDiverged, match=r"epoch 1, minibatch 1\b.*\b0\.3\b"):
            run(device)
        assert device.n_steps == 2, "the weights after epoch 0"
    with pytest.raises(TrainingDiverged, match=r"\bepoch 1\b"):
        run(Breaking())
    with pytest.raises(TrainingDiverged, match=r"\bepoch 0\b"):
        run(Counting(validation_costs=[math.inf]), validation=FEW_ROWS)
