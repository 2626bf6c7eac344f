"""Tests of resuming a training run on the real kernels: only the checkpoint matters, and all bits are equal."""

from __future__ import annotations

import io
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from shardpress.device import training_step_of
from shardpress.formats import pack
from shardpress.hdf5.shard import Shard
from shardpress.settings.resolve import network_of
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.signals import Stopped, stoppable
from shardpress.training.checkpoint import Checkpoint, Epoch, TrainingState
from shardpress.training.epochs import Training
from shardpress.training.order import Order, slab_starts
from shardpress.training.rows import Reader, ResidentRows, StreamedRows
from shardpress.training.start import start_of
from tests.support.helpers import write_shard
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

pytestmark = [pytest.mark.process, pytest.mark.compiler]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        Checkpoint({"parameters/W": np.array([np.nan], np.float32)}, TrainingState("adam"), 0).to_npz(),
        Checkpoint({"parameters/W": np.array([1.0], np.float64)}, TrainingState("adam"), 0).to_npz(),
        Checkpoint({}, TrainingState("adam"), 3).to_npz()[:-40],
    ],
    ids=["empty", "other", "nan", "float64", "truncated"],
)
def test_invalid_checkpoints_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\b(shardpress|float32)\b"):
        Checkpoint.from_npz(content)


def test_a_checkpoint_keeps_every_field_of_the_training_state() -> None:
    """A field that is saved but not restored, or the reverse, would change how a training run continues."""
    epochs = [Epoch(0, 0.5, None, 0.25), Epoch(1, 0.4, 0.3, 0.125)]
    state = TrainingState("adam", 2, 3, [0.5, 0.25], 1.5, epochs, 0.3, 1, [0.5, 0.25], 7, 5)
    fresh = TrainingState("")
    assert all(getattr(state, each.name) != getattr(fresh, each.name) for each in fields(TrainingState))
    checkpoint = Checkpoint.from_npz(Checkpoint({}, state, 11).to_npz())
    assert (checkpoint.state, checkpoint.n_steps) == (state, 11)
    progress = asdict(state)
    without = [{key: value for key, value in progress.items() if key != name} for name in progress]
    for wrong in [*without, {**progress, "more": 1}, {**progress, "history": [{}]}, {**progress, "history": None}]:
        with pytest.raises(ValueError, match=r"\bcheckpoint\b"):
            Checkpoint.from_npz(pack({}, {"progress": wrong, "n_steps": 11}))


def test_a_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    class Canary:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "made"),)

    buffer = io.BytesIO()
    np.savez(buffer, about=np.array([Canary()], dtype=object))
    for content in (buffer.getvalue(), pickle.dumps(Canary())):
        with pytest.raises(ValueError, match=r"\bshardpress\b"):
            Checkpoint.from_npz(content)
    assert not (tmp_path / "made").exists()


# One network for each update rule, and one with all other options.
RATES = {"adam": 0.05, "momentum": 1.0, "nesterov": 1.0, "rmsprop": 0.05, "deep": 0.01}
DEEP: dict[str, Any] = {"hidden": (8,), "activation": "leaky-relu", "decoder_gain": True, "corruption": 0.25}


class Trained(NamedTuple):
    """Result of a training run."""

    parameters: dict[str, np.ndarray]
    state: TrainingState


class Rig:
    """A tiny training run on the real kernels, compiled once, that can be stopped and resumed."""

    def __init__(self, shards: Sequence[Shard], name: str, resident: bool) -> None:
        from shardpress_kernels.autoencoder import Autoencoder

        more = DEEP if name == "deep" else {"optimizer": name}
        config = settings_of(**{**ONE_LAYER, **more}, n_features=3, learning_rate=RATES[name], batch_size=8, epochs=6)
        self.config = config
        reader = Reader(shards, AS_STORED, 2)
        rows = ResidentRows.of(reader) if resident else StreamedRows(reader)
        self.rows = rows
        self.order = Order(slab_starts(shards, AS_STORED, 5), np.array([3, 17, 18]), 11, seed=1)
        self.validation = np.repeat(rows.take(np.array([3, 17])), 50, axis=0)  # enough bad rows to matter
        self.autoencoder = Autoencoder(network_of(self.config.network, 6))
        self.step = training_step_of(self.autoencoder, self.config.training, np.dtype(np.float32), rows.resident)
        self._zeros = {name: np.zeros_like(array) for name, array in self.step.state().items()}

    @property
    def n_steps(self) -> int:
        """Number of steps per epoch."""
        return -(-self.order.n_rows // self.config.training.batch_size)

    def train(
        self,
        checkpoint: Checkpoint | None = None,
        stop: int = 0,
        save: Callable[[Checkpoint], object] = lambda _: None,
        checkpoint_minutes: float = 1e6,
        **settings: Any,
    ) -> Trained:
        """Train from the start, or from a checkpoint after another training run has changed all state.

        SIGTERM arrives in step number `stop` of this call, counted from 1.
        """
        if checkpoint is None:
            self.autoencoder.set_parameters(self._start(seed=0))
            self.step.set_state(self._zeros)
        else:
            self.autoencoder.set_parameters(self._start(seed=1))
            self.step.set_state({name: array + 7 for name, array in self._zeros.items()})
        step: Any = Interrupted(self.step, stop) if stop else self.step
        config = self.config.changed(**settings)
        with stoppable():
            training = Training(
                self.autoencoder,
                step,
                self.rows,
                self.order,
                self.validation,
                config.training,
                config.validation.patience,
            )
            if checkpoint is not None:
                training.resume(checkpoint)
            state = train(training, save, checkpoint_minutes)
        assert {name: array.tobytes() for name, array in self.autoencoder.parameters().items()} == {
            name: array.tobytes() for name, array in training.best.items()
        }
        return Trained(training.best, state)

    def _start(self, seed: int) -> dict[str, np.ndarray]:
        return start_of(self.autoencoder.network, np.random.default_rng(seed), None)

    def interrupted(self, stop: int, checkpoint: Checkpoint | None = None, **settings: Any) -> Trained | Checkpoint:
        """Return the checkpoint of a stopped training run, or its result if it ended before the stop."""
        found: list[Checkpoint] = []
        try:
            return self.train(checkpoint, stop, found.append, **settings)
        except Stopped:
            return Checkpoint.from_npz(found[-1].to_npz())


class Interrupted:
    """A training step during which a signal arrives."""

    def __init__(self, step: Any, number: int) -> None:
        self._step = step
        self._number = number

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    def take(self, learning_rates: Sequence[float], with_cost: bool = False) -> float | None:
        assert len(learning_rates) == 1
        self._number -= 1
        if not self._number:
            os.kill(os.getpid(), signal.SIGTERM)
        return self._step.take(learning_rates, with_cost)


def assert_same(found: Trained | Checkpoint, expected: Trained) -> None:
    assert isinstance(found, Trained)
    for name, array in expected.parameters.items():
        assert found.parameters[name].tobytes() == array.tobytes(), name
    histories = [[replace(epoch, seconds=0) for epoch in each.state.history] for each in (found, expected)]
    assert histories[0] == histories[1]
    assert found.state.best_epoch == expected.state.best_epoch


@pytest.fixture(scope="module")
def make_rig(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Rig]:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(5)
    for i, size in enumerate((20, 0, 26, 7)):
        write_shard(folder / f"{i}.h5", rng.random((size, 6), dtype=np.float32))
    shards = open_shards([str(folder)])
    return cache(partial(Rig, shards))


KINDS = pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
ALL = pytest.mark.parametrize("name", [*RATES])
RULES = pytest.mark.parametrize("name", [name for name in RATES if name != "deep"])


@pytest.mark.process
@pytest.mark.compiler
@KINDS
@ALL
def test_training_resumes_at_any_step_with_the_same_bits(make_rig: Any, name: str, resident: bool) -> None:
    """Stops are in the first, a middle and the last epoch, at random steps and at the boundaries of epochs."""
    training = make_rig(name, resident)
    expected = training.train()
    assert len(expected.state.history) == training.config.training.epochs
    n = training.n_steps
    random = np.random.default_rng(3).integers(1, 6 * n, 4).tolist()
    for stop in {1, n - 1, n, n + 1, 3 * n + 2, 6 * n - 1, *random}:
        checkpoint = training.interrupted(stop)
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.n_steps == stop, "the current step is completed"
        assert_same(training.train(checkpoint), expected)


@KINDS
@ALL
def test_training_resumes_repeatedly_with_the_same_bits(make_rig: Any, name: str, resident: bool) -> None:
    training = make_rig(name, resident)
    rng = np.random.default_rng(4)
    expected = training.train()
    found: Trained | Checkpoint | None = None
    while not isinstance(found, Trained):
        found = training.interrupted(int(rng.integers(1, 6)), found)
    assert_same(found, expected)


@RULES
def test_an_interruption_does_not_delay_early_stopping(make_rig: Any, name: str) -> None:
    """Validation may have been waiting for an improvement when the training was stopped."""
    training = make_rig(name, True)
    settings = {
        "learning_rate": 2 * training.config.training.learning_rate,
        "epochs": 40,
        "patience": 3,
        "schedule": "constant",
    }
    expected = training.train(**settings)
    n_epochs = len(expected.state.history)
    assert expected.state.best_epoch + 4 <= n_epochs < 40, "it stops early"
    for epoch in range(expected.state.best_epoch, n_epochs):
        for stop in (epoch * training.n_steps + 1, (epoch + 1) * training.n_steps - 1):
            checkpoint = training.interrupted(stop, **settings)
            assert_same(training.train(checkpoint, **settings), expected)


def test_training_resumes_from_every_checkpoint(make_rig: Any) -> None:
    training = make_rig("adam", False)
    expected = training.train()
    found = []
    training.train(save=lambda checkpoint: found.append(checkpoint.to_npz()), checkpoint_minutes=0.0)
    checkpoints = [Checkpoint.from_npz(data) for data in found]
    n = training.n_steps
    assert [each.n_steps for each in checkpoints] == sorted([*range(1, 6 * n + 1), *range(n, 6 * n + 1, n)])
    for checkpoint in checkpoints[::3]:
        assert_same(training.train(checkpoint), expected)
    assert_same(training.train(checkpoints[-1], stop=1), expected)  # no steps are left


def test_a_checkpoint_of_another_training_run_is_refused(make_rig: Any) -> None:
    training = make_rig("momentum", True)
    checkpoint = training.interrupted(3)
    assert isinstance(checkpoint, Checkpoint)
    for optimizer in ("adam", "rmsprop", "nesterov"):
        with pytest.raises(ValueError, match="momentum"):
            make_rig(optimizer, True).train(checkpoint)
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
