"""Tests of training with a simulated device: schedule, early stopping and divergence."""

from __future__ import annotations

import itertools
import math
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardpress.errors import TrainingDiverged
from shardpress.settings.resolve import Settings
from shardpress.signals import Stopped, stoppable
from shardpress.training.checkpoint import Checkpoint, TrainingState
from shardpress.training.epochs import Limit, StepResult, Training
from shardpress.training.loop import CheckpointPolicy, training_loop
from shardpress.training.order import Order, learning_rate
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
        self.rates = []
        self.growth = 0.0

    def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
        self.n_steps += 1
        self.rates.append(learning_rate)
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


def test_the_last_epoch_is_kept_without_validation() -> None:
    device = Counting()
    trained = run(device)
    assert [epoch.epoch for epoch in trained.history] == list(range(6))
    assert trained.best_epoch == 5
    assert device.n_steps == 12


def test_early_stopping_restores_the_best_weights() -> None:
    device = Counting(validation_costs=[0.9, 0.5, 0.3, 0.4, 0.31])
    trained = run(device, validation=ENOUGH_ROWS)
    assert trained.best_epoch == 1
    assert len(trained.history) == 4, "two epochs without a better cost are enough"
    assert device.n_steps == 4, "two steps an epoch, two epochs"


def test_patience_zero_restores_the_best_without_early_stopping() -> None:
    device = Counting(validation_costs=[0.9, 0.3, 0.5, 0.5, 0.5, 0.5, 0.5])
    trained = run(device, CONFIG.changed(patience=0), ENOUGH_ROWS)
    assert len(trained.history) == 6
    assert trained.best_epoch == 0
    assert device.n_steps == 2


def test_a_perfect_reconstruction_is_never_replaced() -> None:
    trained = run(Counting(validation_costs=[0.9, 0.3, 0.0, 0.0, 0.1]), validation=ENOUGH_ROWS)
    assert trained.best_epoch == 1
    assert len(trained.history) == 4


def test_training_keeps_a_start_that_is_not_improved() -> None:
    device = Counting(validation_costs=[0.2, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    trained = run(device, validation=ENOUGH_ROWS)
    assert trained.best_epoch == -1
    assert len(trained.history) == 6, "it continues while it improves, even if it remains worse than at its start"
    assert device.n_steps == 0


def test_a_small_improvement_does_not_replace_components() -> None:
    for start, lowest, best_epoch in (("components", 0.99, -1), ("components", 0.97, 2), ("random", 0.99, 2)):
        with case(start, lowest):
            device = Counting(validation_costs=[1, 0.999, 0.998, lowest, 0.999, 0.999, 0.999])
            config = CONFIG.changed(start=start, patience=0)
            assert run(device, config, ENOUGH_ROWS).best_epoch == best_epoch
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


def test_a_start_that_is_not_finite_is_never_the_best() -> None:
    trained = run(Counting(validation_costs=[math.nan, *[0.5] * 6]), CONFIG.changed(patience=0), ENOUGH_ROWS)
    assert trained.best_epoch == 0


def test_few_validation_rows_and_corruption_disable_validation() -> None:
    costs = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    for n, corruption in [(FEW_ROWS, 0.0), (ENOUGH_ROWS, 0.25)]:
        device = Counting(validation_costs=costs)
        trained = run(device, CONFIG.changed(corruption=corruption), n)
        assert [epoch.validation_cost for epoch in trained.history] == costs
        assert trained.best_epoch == 5
        assert device.n_steps == 12


def test_patience_starts_in_the_second_half_of_a_falling_rate() -> None:
    costs = [0.9, *[0.1] + [0.5] * 9, *[0.6] * 10]
    trained = run(Counting(validation_costs=costs), CONFIG.changed(schedule="linear", epochs=20), ENOUGH_ROWS)
    assert trained.best_epoch == 0
    assert len(trained.history) == 13, "ten epochs, another one, and two without improvement"


def test_patience_is_longer_for_short_epochs() -> None:
    """A twentieth of 200 epochs of 2 steps is 20 steps; two of them are 20 epochs."""
    trained = run(Counting(validation_costs=[0.9, 0.5, *[0.6] * 200]), CONFIG.changed(epochs=200), ENOUGH_ROWS)
    assert len(trained.history) == 21


def test_the_cost_of_an_epoch_is_the_mean_of_sampled_costs() -> None:
    trained = run(Counting(costs=[4.0, 2.0]), CONFIG.changed(epochs=1))
    assert trained.history[0].cost == 3.0


def test_costs_are_sampled_on_few_steps() -> None:
    requests = []

    class Watching(Counting):
        def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
            requests.append(with_cost)
            return super().take_one(minibatch, learning_rate, with_cost)

    run(Watching(), CONFIG.changed(epochs=1, batch_size=1), n_rows=320)
    assert requests[0], "all others are compared with the first cost"
    assert sum(requests) == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_divergence_names_its_place_and_keeps_the_last_weights(bad: float) -> None:
    device = Counting(costs=[0.5, 0.4, 0.3, bad])
    with pytest.raises(TrainingDiverged, match=r"epoch 1, minibatch 1\b.*\b0\.3\b.*--learning-rate") as caught:
        run(device)
    assert caught.value.exit_code == 65
    assert device.n_steps == 2, "the weights after epoch 0"


def test_nan_in_the_weights_is_found_without_a_cost() -> None:
    class Breaking(Counting):
        def parameters(self) -> dict[str, np.ndarray]:
            return {"W": np.array(np.nan if self.n_steps > 2 else self.n_steps)}

    with pytest.raises(TrainingDiverged, match=r"\bepoch 1\b"):
        run(Breaking())


def test_an_infinite_validation_cost_is_divergence() -> None:
    with pytest.raises(TrainingDiverged, match=r"\bvalidation\b.*\bepoch 0\b"):
        run(Counting(validation_costs=[math.inf]), validation=FEW_ROWS)


def test_the_linear_schedule_rises_first_and_ends_near_zero() -> None:
    config = CONFIG.changed(schedule="linear", epochs=3)
    rates = [learning_rate(config.training, step, 4, 3) for step in range(12)]
    assert np.allclose(rates, 0.5 * np.array([1, 2, 3, 4, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5]) / 4)


def test_the_linear_schedule_limits_its_rise() -> None:
    """The rate rises over a twentieth of many short epochs, but never over hundreds of steps."""
    for epochs, n, n_rising in [(20, 12, 12), (60, 12, 36), (200, 12, 100), (999, 12, 100), (60, 500, 500)]:
        config = CONFIG.changed(schedule="linear", epochs=epochs)
        rates = [learning_rate(config.training, step, n, epochs) for step in range(n_rising + 2)]
        assert np.argmax(rates) in (n_rising - 1, n_rising), (epochs, n)
        assert np.allclose(np.diff(rates[:n_rising]), config.training.learning_rate / n_rising)


def test_the_linear_schedule_supports_a_single_epoch_or_step() -> None:
    for epochs, steps in [(1, 1), (1, 4), (2, 1)]:
        config = CONFIG.changed(schedule="linear", epochs=epochs)
        rates = [learning_rate(config.training, step, steps, epochs) for step in range(epochs * steps)]
        assert all(0 < rate <= 0.5 for rate in rates), (epochs, steps)


def test_every_step_uses_the_rate_of_the_schedule() -> None:
    device = Counting()
    config = CONFIG.changed(schedule="linear", epochs=3)
    run(device, config)
    assert device.rates == [learning_rate(config.training, step, 2, 3) for step in range(6)]


# -- checkpoints -------------------------------------------------------------------------------------------------


def checkpoints_of(config: Settings, **device: Any) -> list[Checkpoint]:
    """Return every checkpoint of a training run that saves one after each step."""
    found: list[Checkpoint] = []
    train(training(Counting(**device), config, ENOUGH_ROWS), found.append, checkpoint_minutes=0.0)
    return found


@pytest.mark.parametrize("patience", [0, 2])
def test_training_resumes_from_any_checkpoint_with_equal_results(patience: int) -> None:
    costs = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    validation = [0.9, 0.5, 0.3, 0.4, 0.31, 0.2, 0.1]
    config = CONFIG.changed(patience=patience)
    undisturbed = Counting(costs, validation)
    expected = run(undisturbed, config, ENOUGH_ROWS)
    checkpoints = checkpoints_of(config, costs=costs, validation_costs=validation)
    assert len(checkpoints) >= 2 * len(expected.history)
    for checkpoint in checkpoints:
        again = Checkpoint.from_npz(checkpoint.to_npz())
        device = Counting(costs[again.n_steps :], [0.9, *validation[1 + len(again.state.history) :]])
        resumed = training(device, config, ENOUGH_ROWS)
        resumed.resume(again)
        n_rows = [resumed.n_rows_done]
        found = train(resumed, watch=lambda step, n_rows=n_rows: n_rows.append(step.n_rows))
        assert sum(n_rows) == resumed.n_rows_done == len(found.history) * resumed.order.n_rows, "each row of all epochs"
        assert resumed.best == {"W": device.n_steps} == {"W": undisturbed.n_steps}
        assert [replace(epoch, seconds=0) for epoch in found.history] == [
            replace(epoch, seconds=0) for epoch in expected.history
        ]
        assert found.best_epoch == expected.best_epoch


def test_progress_names_step_epoch_and_costs() -> None:
    lines: list[str] = []
    config = CONFIG.changed(epochs=2, patience=0)
    observed = training(Counting([0.5], [0.9, 0.25, 0.125]), config, ENOUGH_ROWS)
    train(observed, watch=lambda step: lines.append(str(observed)))
    n_steps = len(lines) // 2 - 1
    assert lines[0] == f"epoch 1/2, step 1/{2 * n_steps}"
    assert lines[n_steps + 1].startswith(f"epoch 2/2, step {n_steps + 1}/{2 * n_steps}, cost ")
    assert lines[-1].endswith(", validation 0.125")
    assert lines[-1].startswith(f"epoch 2/2, step {2 * n_steps}/{2 * n_steps}")


def test_short_epochs_share_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise saves would take longer than short epochs. In this test a save takes 10 s and a step takes 1 s."""
    now = [0.0]
    monkeypatch.setattr("shardpress.training.loop.time.monotonic", lambda: now[0])

    class Slow(Counting):
        def take_one(self, minibatch: np.ndarray, learning_rate: float, with_cost: bool) -> float | None:
            now[0] += 1
            return super().take_one(minibatch, learning_rate, with_cost)

    n_saved = 0

    def save(checkpoint: Checkpoint) -> None:
        nonlocal n_saved
        n_saved = n_saved + 1
        now[0] = now[0] + 10

    train(training(Slow(), CONFIG.changed(epochs=1000)), save, 1e6)
    assert 3 <= n_saved <= 5, "2000 seconds of steps, and a save for every 500"


class Slow(Counting):
    """Stand-in that takes a second for each call."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self._clock = clock

    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> float | None:
        self._clock[0] += 1.0
        return super().take(learning_rates, with_cost)


def test_seconds_of_an_epoch_exclude_the_time_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise measurements for a deadline between steps would count as training, and fewer epochs would fit."""
    clock = [0.0]
    for module in ("epochs", "loop"):
        monkeypatch.setattr(f"shardpress.training.{module}.time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Measuring:
        def after_step(self, training: Training) -> Limit | None:
            clock[0] += 1000.0
            return None

    limited_training = training(Slow(clock), CONFIG)
    with training_loop(limited_training, Measuring()) as steps:
        for _ in steps:
            clock[0] += 100.0
    assert [epoch.seconds for epoch in limited_training.state.history] == [2.0] * CONFIG.training.epochs


# -- policies ----------------------------------------------------------------------------------------------------


class Limiting:
    """Policy that returns a limit after one of the steps."""

    def __init__(self, number: int, limit: Limit) -> None:
        self._number = number
        self._limit = limit

    def after_step(self, training: Training) -> Limit | None:
        return self._limit if training.n_steps_done == self._number else None


def limited_training(number: int, limit: Limit, device: Any = None) -> tuple[Training, list[Checkpoint]]:
    """Return a training run of six epochs of two steps that gets a limit after a step, and its checkpoints."""
    found: list[Checkpoint] = []
    ended = training(device or Counting(), CONFIG.changed(schedule="linear"))
    # Without a checkpoint at the end of each epoch, only limits are saved.
    with training_loop(ended, Limiting(number, limit), Saving(found)) as steps:
        for _ in steps:
            pass
    return ended, found


class Saving(CheckpointPolicy):
    """Policy that saves only checkpoints that the loop requires at once."""

    def __init__(self, found: list[Checkpoint]) -> None:
        super().__init__(found.append)

    def after_epoch(self, training: Training) -> None:
        pass


def test_a_limit_shortens_a_training_run_and_its_schedule() -> None:
    device = Counting()
    ended, found = limited_training(2, Limit(3), device)
    assert len(ended.state.history) == 3
    assert ended.settings == CONFIG.changed(schedule="linear").training, "the settings do not change"
    rates = [learning_rate(ended.settings, step, 2, 6 if step < 2 else 3) for step in range(6)]
    assert device.rates == rates
    assert [checkpoint.state.n_epochs for checkpoint in found] == [3], "saved at once"


@pytest.mark.parametrize(("number", "ended_at", "n_epochs"), [(1, 1, 1), (3, 1, 2), (4, None, 2)])
def test_a_training_run_ends_with_the_step_of_a_limit(number: int, ended_at: int | None, n_epochs: int) -> None:
    device = Counting()
    ended, found = limited_training(number, Limit(n_epochs, ends_here=True), device)
    assert device.n_steps == number == ended.n_steps_done
    assert len(ended.state.history) == n_epochs
    assert ended.state.ended_at == ended_at
    assert ended.last_epoch_part == (0.5 if ended_at else 1.0)
    assert ended.n_rows_planned == ended.n_rows_done == 4 * number
    (checkpoint,) = found
    resumed = training(Counting(), CONFIG.changed(schedule="linear"))
    resumed.resume(checkpoint)
    assert train(resumed).history[-1].cost == ended.state.history[-1].cost
    assert resumed.best == ended.best


def test_a_loop_ended_by_its_caller_keeps_the_best_weights() -> None:
    device = Counting()
    abandoned = training(device, CONFIG)
    n_steps = []
    with training_loop(abandoned) as steps:
        for step in steps:
            n_steps.append(step.n_steps)
            if len(abandoned.state.history) == 1 and step.epoch is None:
                break
    assert n_steps == [1, 1, 0, 1], "two steps, the end of an epoch, another step"
    assert abandoned.best == {"W": 2.0}
    assert device.n_steps == 2


def test_a_signal_saves_the_last_step_and_keeps_its_weights() -> None:
    device = Counting()
    found: list[Checkpoint] = []
    stopped = training(device, CONFIG)

    def stop(step: StepResult) -> None:
        if stopped.n_steps_done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with stoppable(), pytest.raises(Stopped):
        train(stopped, found.append, watch=stop)
    assert found[-1].n_steps == device.n_steps == 3
    assert found[-1].group("parameters") == {"W": 3.0}
