"""Tests of resuming a training run on the real kernels: only the checkpoint matters, and all bits are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpress.device import training_step_of
from shardpress.hdf5.shard import Shard
from shardpress.settings.resolve import network_of
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training.checkpoint import Checkpoint, Epoch, TrainingState
from shardpress.training.epochs import Training
from shardpress.training.order import Order, slab_starts
from shardpress.training.rows import Reader, StreamedRows
from shardpress.training.start import start_of
from tests.support.cases import case
from tests.support.helpers import write_shard
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

pytestmark = [pytest.mark.process, pytest.mark.compiler]


def test_a_checkpoint_keeps_every_field_of_the_training_state() -> None:
    """A field that is saved but not restored would change how a training run continues."""
    epochs = [Epoch(0, 0.5, None, 0.25), Epoch(1, 0.4, 0.3, 0.125)]
    state = TrainingState("adam", 2, 3, [0.5, 0.25], 1.5, epochs, 0.3, 1, [0.5, 0.25], 7, 5)
    fresh = TrainingState("")
    assert all(getattr(state, each.name) != getattr(fresh, each.name) for each in fields(TrainingState))
    checkpoint = Checkpoint.from_npz(Checkpoint({}, state, 11).to_npz())
    assert (checkpoint.state, checkpoint.n_steps) == (state, 11)


# All options of a deep network. Early stopping ends the training.
CONFIG = settings_of(
    **{**ONE_LAYER, "hidden": (8,), "activation": "leaky-relu", "decoder_gain": True, "corruption": 0.05},
    **{"n_features": 3, "batch_size": 8, "epochs": 40, "patience": 3},
    **{"optimizer": "adam", "learning_rate": 0.1, "schedule": "constant"},
)


class Rig:
    """A tiny training run on the real kernels that can be resumed."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        from shardpress_kernels.autoencoder import Autoencoder

        reader = Reader(shards, AS_STORED, 2)
        self.rows = StreamedRows(reader)
        self.order = Order(slab_starts(shards, AS_STORED, 5), np.array([3, 17, 18]), 11, seed=1)
        self.validation = np.repeat(self.rows.take(np.array([3, 17])), 50, axis=0)  # enough bad rows to matter
        self.autoencoder = Autoencoder(network_of(CONFIG.network, 6))
        network = self.autoencoder.network
        self._starts = [start_of(network, np.random.default_rng(seed), None) for seed in (0, 1)]
        self.step = training_step_of(self.autoencoder, CONFIG.training, np.dtype(np.float32), self.rows.resident)
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
            CONFIG.training,
            CONFIG.validation.patience,
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


def test_training_resumes_after_any_step_with_the_same_bits(tmp_path: Path) -> None:
    """Checkpoints are those of the first and last steps, of the boundaries of epochs, and random ones."""
    rng = np.random.default_rng(5)
    for i, size in enumerate((20, 0, 26, 7)):
        write_shard(tmp_path / f"{i}.h5", rng.random((size, 6), dtype=np.float32))
    rig = Rig(open_shards([str(tmp_path)]))
    training, checkpoints = rig.train()
    expected = bits_of(training)
    n = training.steps_per_epoch
    n_epochs = len(training.state.history)
    assert n_epochs < CONFIG.training.epochs
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
