"""Helpers for complete training runs."""

from __future__ import annotations

import math
from collections.abc import Callable

from shardpress.training.checkpoint import Checkpoint, TrainingState
from shardpress.training.epochs import StepResult, Training
from shardpress.training.loop import CheckpointPolicy, training_loop
from shardpress.training.replica import RoundRunner


def train(
    training: Training,
    save: Callable[[Checkpoint], object] | None = None,
    checkpoint_minutes: float = math.inf,
    runner: RoundRunner | None = None,
    watch: Callable[[StepResult], object] | None = None,
) -> TrainingState:
    """Take all training steps. Call `save` with each checkpoint, and `watch` with each result. Return the state."""
    checkpoints = None if save is None else CheckpointPolicy(save, 60 * checkpoint_minutes)
    with training_loop(training, checkpoints=checkpoints, runner=runner) as steps:
        for step in steps:
            if watch is not None:
                watch(step)
    return training.state
