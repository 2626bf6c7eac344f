"""Helpers for single training steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from shardpress_kernels.step import TrainingStep


def take_step(
    step: TrainingStep,
    minibatch: np.ndarray,
    learning_rate: float,
    with_cost: bool = False,
    noise: np.ndarray | None = None,
    targets: np.ndarray | None = None,
    kept: np.ndarray | None = None,
) -> float | None:
    """Take one step on a minibatch. If `with_cost` is set, return the cost before the step."""
    step.begin(minibatch, noise, len(minibatch), targets, kept)
    return step.take([learning_rate], with_cost)
