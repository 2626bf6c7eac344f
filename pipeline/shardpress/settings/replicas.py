"""Numbers of replicas and of their averages. Both depend on sizes only, so they are the same on all machines."""

from __future__ import annotations

from dataclasses import dataclass

# Weights x rows x epochs above which replicas are used by default. At this size a GPU trains for minutes, and two cores
# train for an hour.
_ONE_DEVICE = 10**14
_MANY = 8

# Replicas are as good as one model if each takes this number of steps and they are averaged this number of times: see
# docs/performance.md.
_MIN_ROUNDS = 70
_MIN_STEPS = 2000

# Steps between two averages. With fewer steps, the momentum of the update rule still dominates, and the averages add
# momentum once more; with three steps a training run diverged. With more steps, a task takes longer than a second or
# two, and a lost worker loses all of it.
_MIN_STEPS_PER_ROUND = 16
_MAX_STEPS_PER_ROUND = 512


@dataclass(frozen=True)
class TrainingSizes:
    """Sizes of a training run that determine its number of replicas."""

    n_rows: int  # that an epoch trains on
    epochs: int
    window_rows: int  # that a replica can hold at a time


def usual_replicas(n_weights: int, sizes: TrainingSizes) -> int:
    """Return the default number of replicas."""
    if n_weights * sizes.n_rows * sizes.epochs <= _ONE_DEVICE:
        return 1
    return _MANY


def fitting_replicas(requested: int, batch_size: int, sizes: TrainingSizes) -> int:
    """Return the requested number of replicas, halved until each replica has enough steps."""
    if _MIN_STEPS_PER_ROUND * batch_size > sizes.window_rows:
        return 1
    n = requested
    while n > 1 and _steps(n, batch_size, sizes) < _MIN_STEPS:
        n //= 2
    return n


def rounds_in_epoch(replicas: int, batch_size: int, sizes: TrainingSizes) -> int:
    """Return how often the replicas are averaged in each epoch after the first."""
    steps = _steps(replicas, batch_size, sizes) // _MIN_ROUNDS
    steps = min(max(steps, _MIN_STEPS_PER_ROUND), _MAX_STEPS_PER_ROUND)
    rows_per_round = replicas * min(steps * batch_size, sizes.window_rows)
    return -(-sizes.n_rows // rows_per_round)


def _steps(replicas: int, batch_size: int, sizes: TrainingSizes) -> int:
    """Return the steps per replica after the first epoch, which only one replica trains."""
    return (sizes.epochs - 1) * sizes.n_rows // (replicas * batch_size)
