"""Tests of resuming a training run on the real kernels: only the checkpoint matters, and all bits are equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from shardpress.hdf5.shard import Shard
from shardpress.shards.conversion import AS_STORED
from shardpress.shards.open import open_shards
from shardpress.training.checkpoint import Checkpoint
from shardpress.training.epochs import Training
from shardpress.training.fit import Sizes, prepare_training
from tests.support.cases import case
from tests.support.helpers import scanned, write_shard
from tests.support.loops import train
from tests.support.networks import ONE_LAYER
from tests.support.settings import settings_of

pytestmark = [pytest.mark.process, pytest.mark.compiler]

# All options of a deep network. Early stopping ends the training.
CONFIG = settings_of(
    **{**ONE_LAYER, "hidden": (8,), "activation": "leaky-relu", "decoder_gain": True, "corruption": 0.05},
    **{"n_features": 3, "batch_size": 8, "epochs": 40, "patience": 3},
    **{"optimizer": "adam", "learning_rate": 0.2, "schedule": "constant", "seed": 1},
)


class Rig:
    """A tiny training run on the real kernels that can be resumed."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        sizes = Sizes(resident=False, window_rows=20, max_validation_rows=2, max_sample_rows=100, n_threads=2)
        prepared = prepare_training(shards, AS_STORED, scanned(shards, 5), CONFIG, sizes)
        validation = np.repeat(prepared.validation, 50, axis=0)  # enough rows to matter
        self._prepared = replace(prepared, validation=validation)
        self._parameters = prepared.autoencoder.parameters()
        self._rule = prepared.step.state()

    def train(self, content: bytes = b"") -> tuple[Training, dict[int, bytes]]:
        """Train from the start, or from a checkpoint after another training run has changed all state.

        Also return the checkpoints by their number of steps. At the end of an epoch, it is the one after validation.
        """
        change = 7 if content else 0
        self._prepared.autoencoder.set_parameters({name: array + change for name, array in self._parameters.items()})
        self._prepared.step.set_state({name: array + change for name, array in self._rule.items()})
        training = replace(self._prepared)
        if content:
            training.resume(Checkpoint.from_npz(content))
        found: dict[int, bytes] = {}
        train(training, lambda each: found.update({each.n_steps: each.to_npz()}))
        return training, found


def bits_of(training: Training) -> Any:
    """Return the parameters of the best epoch, those of the model, and the history of a training run."""
    best = {name: array.tobytes() for name, array in training.best.items()}
    model = {name: array.tobytes() for name, array in training.autoencoder.parameters().items()}
    return (
        best,
        model,
        training.state.best_epoch,
        [structs.replace(epoch, seconds=0) for epoch in training.state.history],
    )


def test_training_resumes_after_any_step_with_the_same_bits(tmp_path: Path) -> None:
    """Checkpoints are those of the first and last steps, of the boundaries of epochs, and random ones."""
    rng = np.random.default_rng(5)
    for i, size in enumerate((20, 0, 26, 7)):
        rows = rng.random((size, 6), dtype=np.float32)
        rows[5:6] = np.nan
        write_shard(tmp_path / f"{i}.h5", rows)
    rig = Rig(open_shards([str(tmp_path)]))
    training, checkpoints = rig.train()
    expected = bits_of(training)
    n = training.steps_per_epoch
    n_epochs = len(training.state.history)
    assert n_epochs < CONFIG.training.epochs
    n_steps = n_epochs * n
    assert sorted(checkpoints) == list(range(1, n_steps + 1))
    random = np.random.default_rng(3).integers(1, n_steps, 2).tolist()
    for after in (1, n - 1, n, n + 1, n_steps - 1, n_steps, *random):
        with case(after):
            resumed, later = rig.train(checkpoints[after])
            assert bits_of(resumed) == expected
            if later:
                resumed_again, _ = rig.train(later[min(later)])
                assert bits_of(resumed_again) == expected
