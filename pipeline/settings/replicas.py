"""How many replicas train a model, and how often they meet: from sizes alone, so that it is the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TrainingSizes", "fitting_replicas", "rounds_in_epoch", "usual_replicas"]

# Weights x rows x epochs that one device trains in minutes, where it is a card; two cores take an hour.
_ONE_DEVICE = 10**14
_MANY = 8

# What replicas need to end as well as one does, see docs/training.md: meetings, and steps of each between them in all.
_LEAST_ROUNDS = 70
_LEAST_STEPS = 2000

# Steps between two meetings. Of fewer, moves are still those of the update rule's momentum, and the momentum of common
# steps adds up what has been added up already: with three of them a training has diverged. Of more, a task would take
# longer than a second or two, all of which is lost with a worker.
_FEWEST_STEPS = 16
_MOST_STEPS = 512


@dataclass(frozen=True)
class TrainingSizes:
    """What the replicas of a training follow from.

    Attributes
    ----------
    n_rows : int
        That an epoch trains on.
    window_rows : int
        That a replica may hold at a time.
    """

    n_rows: int
    epochs: int
    window_rows: int


def usual_replicas(n_weights: int, sizes: TrainingSizes) -> int:
    """How many there are, where none are asked for."""
    return 1 if n_weights * sizes.n_rows * sizes.epochs <= _ONE_DEVICE else _MANY


def fitting_replicas(asked: int, batch_size: int, sizes: TrainingSizes) -> int:
    """As many of the replicas that were asked for as all have steps enough: half of them, a quarter, or one."""
    while asked > 1 and not _suits(asked, batch_size, sizes):
        asked //= 2
    return asked


def rounds_in_epoch(replicas: int, batch_size: int, sizes: TrainingSizes) -> int:
    """How often they meet in each epoch behind the first."""
    steps = _steps(replicas, batch_size, sizes) // _LEAST_ROUNDS
    steps = min(max(steps, _FEWEST_STEPS), _MOST_STEPS)
    return -(-sizes.n_rows // (replicas * min(steps * batch_size, sizes.window_rows)))


def _suits(replicas: int, batch_size: int, sizes: TrainingSizes) -> bool:
    has_steps = _steps(replicas, batch_size, sizes) >= _LEAST_STEPS
    return has_steps and _FEWEST_STEPS * batch_size <= sizes.window_rows


def _steps(replicas: int, batch_size: int, sizes: TrainingSizes) -> int:
    """Of each of them, over all epochs but the first, which one trains alone."""
    return (sizes.epochs - 1) * sizes.n_rows // (replicas * batch_size)
