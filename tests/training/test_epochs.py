"""Training: schedule, early stopping, divergence, with a stand-in for the device."""

from __future__ import annotations

import io
import itertools
import math
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import TrainingDiverged
from pipeline.settings.config import Config
from pipeline.shards.open import open_shards
from pipeline.shards.vet import Shard
from pipeline.signals import Stopped, stoppable
from pipeline.training.epochs import Checkpoint, Trained, learning_rate, train
from pipeline.training.rows import Order, ResidentRows, StreamedRows, slab_starts
from tests.support.helpers import write_shard

CONFIG = Config(learning_rate=0.5, batch_size=4, epochs=6, patience=2, schedule="constant")
NO_ROWS = np.empty((0, 1))


class Numbered:
    """Stands for rows: minibatches are their numbers."""

    resident = None

    def minibatches(self, order: Order, epoch: int, batch_size: int, first: int = 0) -> Iterator[np.ndarray]:
        for start in range(first * batch_size, order.n_rows, batch_size):
            yield np.arange(start, min(start + batch_size, order.n_rows))


class Counting:
    """Stands for an autoencoder and its step: the parameter counts the steps, and costs are told in advance."""

    def __init__(self, costs: Sequence[float] = (), validation_costs: Sequence[float] = ()) -> None:
        self._costs = itertools.chain(costs, itertools.repeat(1.0))
        self._validation_costs = iter(validation_costs)
        self.n_steps, self.rates = 0.0, []

    def __call__(self, minibatch: np.ndarray, with_cost: bool = False) -> float | None:
        self.n_steps += 1
        return next(self._costs) if with_cost else None

    def set_learning_rate(self, rate: float) -> None:
        self.rates.append(rate)

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


def run(device: Any, config: Config = CONFIG, validation: np.ndarray = NO_ROWS, n_rows: int = 8) -> Trained:
    order = Order(np.array([0, n_rows]), np.empty(0, dtype=np.int64), n_rows, seed=0)
    return train(device, device, Numbered(), order, validation, config)


def test_without_validation_every_epoch_runs_and_the_last_one_stays() -> None:
    device = Counting()
    trained = run(device)
    assert [epoch.epoch for epoch in trained.history] == list(range(6))
    assert trained.best_epoch == 5
    assert device.n_steps == trained.parameters["W"] == 12


def test_early_stopping_restores_the_best_weights() -> None:
    device = Counting(validation_costs=[0.5, 0.3, 0.4, 0.31])
    trained = run(device, validation=np.zeros((1, 1)))
    assert trained.best_epoch == 1
    assert len(trained.history) == 4, "two epochs without a better cost are enough"
    assert device.n_steps == trained.parameters["W"] == 4, "two steps an epoch, two epochs"


def test_patience_zero_never_stops_early_but_still_restores() -> None:
    device = Counting(validation_costs=[0.3, 0.5, 0.5, 0.5, 0.5, 0.5])
    trained = run(device, replace(CONFIG, patience=0), np.zeros((1, 1)))
    assert len(trained.history) == 6
    assert trained.best_epoch == 0
    assert device.n_steps == 2


def test_nothing_is_better_than_a_perfect_reconstruction() -> None:
    trained = run(Counting(validation_costs=[0.3, 0.0, 0.0, 0.1]), validation=np.zeros((1, 1)))
    assert trained.best_epoch == 1
    assert len(trained.history) == 4


def test_the_cost_of_an_epoch_is_the_mean_of_those_asked_for_before_each_step() -> None:
    trained = run(Counting(costs=[4.0, 2.0]), replace(CONFIG, epochs=1))
    assert trained.history[0].cost == 3.0


def test_costs_are_asked_for_on_few_of_many_steps() -> None:
    asked = []

    class Watching(Counting):
        def __call__(self, minibatch: np.ndarray, with_cost: bool = False) -> float | None:
            asked.append(with_cost)
            return super().__call__(minibatch, with_cost)

    run(Watching(), replace(CONFIG, epochs=1, batch_size=1), n_rows=320)
    assert asked[0], "the first cost is the one everything is compared with"
    assert sum(asked) == 16


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e9])
def test_divergence_says_where_and_keeps_the_last_good_weights(bad: float) -> None:
    device = Counting(costs=[0.5, 0.4, 0.3, bad])
    with pytest.raises(
        TrainingDiverged, match=r"epoch 1, minibatch 1: .*last finite cost 0\.3\b.*learning-rate"
    ) as caught:
        run(device)
    assert caught.value.exit_code == 65
    assert device.n_steps == 2, "the weights after epoch 0"


def test_nan_in_the_weights_is_found_although_the_step_was_not_asked_for_its_cost() -> None:
    class Breaking(Counting):
        def parameters(self) -> dict[str, np.ndarray]:
            return {"W": np.array(np.nan if self.n_steps > 2 else self.n_steps)}

    with pytest.raises(TrainingDiverged, match="the end of epoch 1"):
        run(Breaking())


def test_a_validation_cost_that_explodes_is_divergence() -> None:
    with pytest.raises(TrainingDiverged, match="the validation after epoch 0"):
        run(Counting(validation_costs=[math.inf]), validation=np.zeros((1, 1)))


def test_the_linear_schedule_rises_over_one_epoch_and_ends_at_almost_nothing() -> None:
    config = replace(CONFIG, schedule="linear", epochs=3)
    rates = [learning_rate(config, step, 4) for step in range(12)]
    assert np.allclose(rates, 0.5 * np.array([1, 2, 3, 4, 4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5]) / 4)


def test_the_linear_schedule_works_for_a_single_epoch_and_a_single_step() -> None:
    for epochs, steps in [(1, 1), (1, 4), (2, 1)]:
        config = replace(CONFIG, schedule="linear", epochs=epochs)
        rates = [learning_rate(config, step, steps) for step in range(epochs * steps)]
        assert all(0 < rate <= 0.5 for rate in rates)


def test_every_step_gets_the_rate_of_the_schedule() -> None:
    device = Counting()
    config = replace(CONFIG, schedule="linear", epochs=3)
    run(device, config)
    assert device.rates == [learning_rate(config, step, 2) for step in range(6)]


# -- checkpoints -------------------------------------------------------------------------------------------------


def saved(config: Config, **device: Any) -> list[Checkpoint]:
    """Every checkpoint of a training that saves one after each step."""
    found: list[Checkpoint] = []
    order = Order(np.array([0, 8]), np.empty(0, dtype=np.int64), 8, seed=0)
    counting = Counting(**device)
    train(counting, counting, Numbered(), order, np.zeros((1, 1)), config, None, found.append)
    return found


@pytest.mark.parametrize("patience", [0, 2])
def test_p5_training_goes_on_from_any_checkpoint_as_if_nothing_had_happened(patience: int) -> None:
    costs, validation = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], [0.5, 0.3, 0.4, 0.31, 0.2, 0.1]
    config = replace(CONFIG, patience=patience, checkpoint_minutes=0.0)
    undisturbed = run(Counting(costs, validation), config, np.zeros((1, 1)))
    checkpoints = saved(config, costs=costs, validation_costs=validation)
    assert len(checkpoints) >= 2 * len(undisturbed.history)
    for checkpoint in checkpoints:
        again = Checkpoint.from_npz(checkpoint.to_npz())
        done = len(again.progress["history"])
        device = Counting(costs[again.n_steps :], validation[done:])
        order = Order(np.array([0, 8]), np.empty(0, dtype=np.int64), 8, seed=0)
        trained = train(device, device, Numbered(), order, np.zeros((1, 1)), config, again)
        assert trained.parameters == undisturbed.parameters
        assert [replace(epoch, seconds=0) for epoch in trained.history] == [
            replace(epoch, seconds=0) for epoch in undisturbed.history
        ]
        assert trained.best_epoch == undisturbed.best_epoch


def test_epochs_that_take_no_time_share_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of a millisecond is not followed by a write of ten. By this clock a save takes 10 s, a step 1 s."""
    now = [0.0]
    monkeypatch.setattr("pipeline.training.epochs.time.monotonic", lambda: now[0])

    class Slow(Counting):
        def __call__(self, minibatch: np.ndarray, with_cost: bool = False) -> float | None:
            now[0] += 1
            return super().__call__(minibatch, with_cost)

    n_saved = 0

    def save(checkpoint: Checkpoint) -> None:
        nonlocal n_saved
        n_saved, now[0] = n_saved + 1, now[0] + 10

    device = Slow()
    order = Order(np.array([0, 8]), np.empty(0, dtype=np.int64), 8, seed=0)
    config = replace(CONFIG, epochs=1000, checkpoint_minutes=1e6)
    train(device, device, Numbered(), order, NO_ROWS, config, None, save)
    assert 3 <= n_saved <= 5, "2000 seconds of steps, and a save for every 500"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        Checkpoint({"parameters/W": np.array([np.nan], np.float32)}, {}, 0).to_npz(),
        Checkpoint({"parameters/W": np.array([1.0], np.float64)}, {}, 0).to_npz(),
        Checkpoint({}, {}, 3).to_npz()[:-40],
    ],
    ids=["empty", "other", "nan", "float64", "truncated"],
)
def test_s15_what_is_no_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"no arrays of shardpress|finite float32"):
        Checkpoint.from_npz(content)


def test_s14_a_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made"),)

    buffer = io.BytesIO()
    np.savez(buffer, about=np.array([Canary()], dtype=object))
    for content in (buffer.getvalue(), pickle.dumps(Canary())):
        with pytest.raises(ValueError, match="no arrays of shardpress"):
            Checkpoint.from_npz(content)
    assert not (tmp_path / "made").exists()


# -- checkpoints of the real thing -----------------------------------------------------------------------------------


class Rig:
    """A tiny training on the real kernels, compiled once, that can be stopped and taken up again."""

    def __init__(self, shards: Sequence[Shard], optimizer: str, resident: bool) -> None:
        from kernels.autoencoder import Autoencoder
        from kernels.step import TrainingStep

        rows = ResidentRows(shards, 2) if resident else StreamedRows(shards, 2)
        self.rows, self.order = rows, Order(slab_starts(shards, 5), np.array([3, 17, 18]), 11, seed=1)
        self.validation = rows.take(np.array([3, 17]))
        self.autoencoder = Autoencoder(6, 3)
        self.step = TrainingStep(self.autoencoder, optimizer, 0.9, np.dtype(np.float32), rows.resident)
        self._zeros = {name: np.zeros_like(array) for name, array in self.step.state().items()}
        rates = {"adam": 0.05, "rmsprop": 0.05, "momentum": 1.0, "nesterov": 1.0}
        self.config = Config(
            optimizer=optimizer, learning_rate=rates[optimizer], batch_size=8, epochs=6, checkpoint_minutes=1e6
        )

    @property
    def n_steps(self) -> int:
        """Of one epoch."""
        return -(-self.order.n_rows // self.config.batch_size)

    def train(
        self,
        checkpoint: Checkpoint | None = None,
        stop: int = 0,
        save: Callable[[Checkpoint], object] = lambda _: None,
        **settings: Any,
    ) -> Trained:
        """Train from the start, or from a checkpoint after another training has left its traces everywhere.

        SIGTERM comes within step number `stop` of this sitting, counted from 1.
        """
        if checkpoint is None:
            self.autoencoder.initialize(np.random.default_rng(0))
            self.step.set_state(self._zeros)
        else:
            self.autoencoder.initialize(np.random.default_rng(1))
            self.step.set_state({name: array + 7 for name, array in self._zeros.items()})
        step: Any = Interrupted(self.step, stop) if stop else self.step
        config = replace(self.config, **settings)
        with stoppable():
            return train(self.autoencoder, step, self.rows, self.order, self.validation, config, checkpoint, save)

    def interrupted(self, stop: int, checkpoint: Checkpoint | None = None, **settings: Any) -> Trained | Checkpoint:
        """What a training leaves that is stopped; what it gives, when it is over before that."""
        found: list[Checkpoint] = []
        try:
            return self.train(checkpoint, stop, found.append, **settings)
        except Stopped:
            return Checkpoint.from_npz(found[-1].to_npz())


class Interrupted:
    """A step within which a signal comes."""

    def __init__(self, step: Any, number: int) -> None:
        self._step, self._number = step, number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def __call__(self, minibatch: np.ndarray, with_cost: bool = False) -> float | None:
        self._number -= 1
        if not self._number:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._step(minibatch, with_cost)


def assert_same(found: Trained | Checkpoint, expected: Trained) -> None:
    assert isinstance(found, Trained)
    for name, array in expected.parameters.items():
        assert found.parameters[name].tobytes() == array.tobytes(), name
    histories = [[replace(epoch, seconds=0) for epoch in trained.history] for trained in (found, expected)]
    assert histories[0] == histories[1]
    assert found.best_epoch == expected.best_epoch


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Rig]:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(5)
    for i, size in enumerate((20, 0, 26, 7)):
        write_shard(folder / f"{i}.h5", rng.random((size, 6), dtype=np.float32))
    shards = open_shards([str(folder)])
    return cache(partial(Rig, shards))


KINDS = pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
RULES = pytest.mark.parametrize("optimizer", ["adam", "momentum", "nesterov", "rmsprop"])


@KINDS
@RULES
def test_p5_a_training_that_was_stopped_at_any_step_goes_on_bit_for_bit(
    rig: Any, optimizer: str, resident: bool
) -> None:
    """In the first, a middle and the last epoch, at random steps and at an epoch's end and beginning."""
    training = rig(optimizer, resident)
    expected = training.train()
    assert len(expected.history) == training.config.epochs
    n = training.n_steps
    random = np.random.default_rng(3).integers(1, 6 * n, 4).tolist()
    for stop in {1, n - 1, n, n + 1, 3 * n + 2, 6 * n - 1, *random}:
        checkpoint = training.interrupted(stop)
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.n_steps == stop, "the step that was under way is taken to its end"
        assert_same(training.train(checkpoint), expected)


@KINDS
@RULES
def test_p5_a_training_that_is_stopped_again_and_again_ends_alike(rig: Any, optimizer: str, resident: bool) -> None:
    training, rng = rig(optimizer, resident), np.random.default_rng(4)
    expected = training.train()
    found: Trained | Checkpoint | None = None
    while not isinstance(found, Trained):
        found = training.interrupted(int(rng.integers(1, 6)), found)
    assert_same(found, expected)


@RULES
def test_p5_early_stopping_is_not_put_off_by_an_interruption(rig: Any, optimizer: str) -> None:
    """Validation may have been waiting for something better when the training was stopped."""
    training = rig(optimizer, True)
    settings = {"learning_rate": 2 * training.config.learning_rate, "epochs": 40, "patience": 3}
    expected = training.train(**settings)
    n_epochs = len(expected.history)
    assert expected.best_epoch == n_epochs - 4, "it stops early"
    for epoch in range(expected.best_epoch, n_epochs):
        for stop in (epoch * training.n_steps + 1, (epoch + 1) * training.n_steps - 1):
            checkpoint = training.interrupted(stop, **settings)
            assert_same(training.train(checkpoint, **settings), expected)


def test_p5_a_checkpoint_of_any_step_and_any_epochs_end_will_do(rig: Any) -> None:
    training = rig("adam", False)
    expected, found = training.train(), []
    training.train(save=lambda checkpoint: found.append(checkpoint.to_npz()), checkpoint_minutes=0.0)
    checkpoints = [Checkpoint.from_npz(data) for data in found]
    n = training.n_steps
    assert [each.n_steps for each in checkpoints] == sorted([*range(1, 6 * n + 1), *range(n, 6 * n + 1, n)])
    for checkpoint in checkpoints[::3]:
        assert_same(training.train(checkpoint), expected)
    assert_same(training.train(checkpoints[-1], stop=1), expected)  # nothing is left to do


def test_s15_a_checkpoint_of_another_training_is_refused(rig: Any) -> None:
    training = rig("momentum", True)
    checkpoint = training.interrupted(3)
    assert isinstance(checkpoint, Checkpoint)
    for optimizer in ("adam", "rmsprop", "nesterov"):
        with pytest.raises(ValueError, match="momentum"):
            rig(optimizer, True).train(checkpoint)
    arrays = checkpoint.arrays
    state = next(name for name in arrays if name.startswith("state/"))
    wrong = [
        {**arrays, "parameters/W": np.zeros((5, 3), np.float32)},
        {**arrays, "best/W": np.zeros((5, 3), np.float32)},
        {**arrays, state: np.zeros((7, 7), np.float32)},
        {name: array for name, array in arrays.items() if name != state},
        {name: array for name, array in arrays.items() if name != "best/b_hidden"},
        {**arrays, "parameters/extra": np.zeros(1, np.float32)},
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="array"):
            training.train(replace(checkpoint, arrays=each))
    for name in checkpoint.progress:
        progress = {key: value for key, value in checkpoint.progress.items() if key != name}
        with pytest.raises(ValueError, match="no checkpoint of a training"):
            training.train(replace(checkpoint, progress=progress))
