"""Helpers for complete training runs."""

from __future__ import annotations

from collections.abc import Callable

from shardpress.training.checkpoint import Checkpoint, TrainingState
from shardpress.training.epochs import Training
from shardpress.training.loop import CheckpointPolicy, training_loop


def train(training: Training, save: Callable[[Checkpoint], object] | None = None) -> TrainingState:
    """Take all training steps. Call `save` with a checkpoint after each step. Return the state."""
    checkpoints = None if save is None else CheckpointPolicy(save, 0.0)
    with training_loop(training, checkpoints=checkpoints) as steps:
        for _ in steps:
            pass
    return training.state
