"""Tests of resuming a training run on the real kernels: only the checkpoint matters, and all bits are equal."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.device import training_step_of
from shardpress.formats import pack
from shardpress.hdf5.shard import Shard
from shardpress.settings.resolve import network_of
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training.checkpoint import Checkpoint, Epoch, TrainingState
from shardpress.training.epochs import Training
from shardpress.training.order import Order, slab_starts
from shardpress.training.rows import Reader, ResidentRows, StreamedRows
from shardpress.training.start import start_of
from tests.support.cases import case
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


# One network for each update rule, one with all other options, and one that early stopping ends.

SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"learning_rate": 0.05},
    "momentum": {"optimizer": "momentum", "learning_rate": 1.0},
    "nesterov": {"optimizer": "nesterov", "learning_rate": 1.0},
    "rmsprop": {"optimizer": "rmsprop", "learning_rate": 0.05},
    "deep": {
        **{"hidden": (8,), "activation": "leaky-relu", "decoder_gain": True},
        **{"corruption": 0.25, "learning_rate": 0.01},
    },
    "patient": {"learning_rate": 0.1, "epochs": 40, "patience": 3, "schedule": "constant"},
}


class Rig:
    """A tiny training run on the real kernels, compiled once, that can be resumed."""

    def __init__(self, shards: Sequence[Shard], name: str, resident: bool) -> None:
        from shardpress_kernels.autoencoder import Autoencoder

        self.config = settings_of(**{**ONE_LAYER, "n_features": 3, "batch_size": 8, "epochs": 6, **SETTINGS[name]})
        reader = Reader(shards, AS_STORED, 2)
        self.rows = ResidentRows.of(reader) if resident else StreamedRows(reader)
        self.order = Order(slab_starts(shards, AS_STORED, 5), np.array([3, 17, 18]), 11, seed=1)
        self.validation = np.repeat(self.rows.take(np.array([3, 17])), 50, axis=0)  # enough bad rows to matter
        self.autoencoder = Autoencoder(network_of(self.config.network, 6))
        network = self.autoencoder.network
        self._starts = [start_of(network, np.random.default_rng(seed), None) for seed in (0, 1)]
        self.step = training_step_of(self.autoencoder, self.config.training, np.dtype(np.float32), self.rows.resident)
        self._zeros = {name: np.zeros_like(array) for name, array in self.step.state().items()}

    def train(self, content: bytes = b"") -> tuple[Training, dict[int, bytes]]:
        """Train from the start, or from a checkpoint after another training run has changed all state.

        Also return the checkpoints by their number of steps. At the end of an epoch, it is the one after validation.
        """
        if not content:
            self.autoencoder.set_parameters(self._starts[0])
            self.step.set_state(self._zeros)
        else:
            self.autoencoder.set_parameters(self._starts[1])
            self.step.set_state({name: array + 7 for name, array in self._zeros.items()})
        training = Training(
            self.autoencoder,
            self.step,
            self.rows,
            self.order,
            self.validation,
            self.config.training,
            self.config.validation.patience,
        )
        if content:
            training.resume(Checkpoint.from_npz(content))
        found: dict[int, bytes] = {}
        train(training, lambda each: found.update({each.n_steps: each.to_npz()}), checkpoint_minutes=0.0)
        return training, found


def bits_of(training: Training) -> Any:
    """Return the parameters of the best epoch, those of the model, and the history of a training run."""
    best = {name: array.tobytes() for name, array in training.best.items()}
    model = {name: array.tobytes() for name, array in training.autoencoder.parameters().items()}
    return best, model, training.state.best_epoch, [replace(each, seconds=0) for each in training.state.history]


@pytest.fixture(scope="module")
def make_rig(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Rig]:
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(5)
    for i, size in enumerate((20, 0, 26, 7)):
        write_shard(folder / f"{i}.h5", rng.random((size, 6), dtype=np.float32))
    shards = open_shards([str(folder)])
    return cache(partial(Rig, shards))


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("name", SETTINGS)
def test_training_resumes_after_any_step_with_the_same_bits(make_rig: Any, name: str, resident: bool) -> None:
    """Checkpoints are those of the first and last steps, of the boundaries of epochs, and random ones."""
    rig = make_rig(name, resident)
    training, checkpoints = rig.train()
    expected = bits_of(training)
    n = training.steps_per_epoch
    n_epochs = len(training.state.history)
    assert (n_epochs < rig.config.training.epochs) == (name == "patient")
    n_steps = n_epochs * n
    assert sorted(checkpoints) == list(range(1, n_steps + 1))
    random = np.random.default_rng(3).integers(1, n_steps, 4).tolist()
    for after in (1, n - 1, n, n + 1, 3 * n + 2, n_steps - 1, n_steps, *random):
        with case(after):
            resumed, later = rig.train(checkpoints[after])
            assert bits_of(resumed) == expected
            if later:
                resumed_again, _ = rig.train(later[min(later)])
                assert bits_of(resumed_again) == expected


def test_a_checkpoint_of_another_training_run_is_refused(make_rig: Any) -> None:
    rig = make_rig("momentum", True)
    _, checkpoints = rig.train()
    with pytest.raises(ValueError, match="momentum"):
        make_rig("nesterov", True).train(checkpoints[2])
    checkpoint = Checkpoint.from_npz(checkpoints[2])
    arrays = checkpoint.arrays
    state = next(name for name in arrays if name.startswith("state/"))
    wrong = [
        {**arrays, "best/W": np.zeros((5, 3), np.float32)},
        {**arrays, state: np.zeros((7, 7), np.float32)},
        {name: array for name, array in arrays.items() if name != state},
        {**arrays, "parameters/extra": np.zeros(1, np.float32)},
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="array"):
            rig.train(replace(checkpoint, arrays=each).to_npz())
