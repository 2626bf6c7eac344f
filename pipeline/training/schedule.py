"""The size of every step: pure arithmetic."""

from __future__ import annotations

from pipeline.settings.defaults import LEAST_STEPS
from pipeline.settings.resolve import ResolvedTraining

__all__ = ["learning_rate", "long_epoch"]


def learning_rate(settings: ResolvedTraining, step: int, steps_per_epoch: int) -> float:
    """Size of a step, counted from 0 over all epochs.

    The linear schedule rises over the first epoch, while the weights are far from any order and a whole step would
    saturate the units, and falls to 0 over the others. Many short epochs count as twenty.
    """
    if settings.schedule == "constant":
        return settings.learning_rate
    n_steps = settings.epochs * steps_per_epoch
    n_rising = long_epoch(settings, steps_per_epoch)
    rise = (step + 1) / n_rising
    fall = (n_steps - step) / max(1, n_steps - n_rising)
    return settings.learning_rate * min(rise, fall, 1.0)


def long_epoch(settings: ResolvedTraining, steps_per_epoch: int) -> int:
    """The steps of an epoch; of many short ones a twentieth of all steps, or of as many as are made at least."""
    return max(steps_per_epoch, min(LEAST_STEPS, settings.epochs * steps_per_epoch) // 20)
