"""How many replicas train a model, and how often they meet: from sizes alone, so that it is the same everywhere."""

from __future__ import annotations

__all__ = ["rounds_in_epoch", "shared_out", "usual_replicas"]

# Weights x rows x epochs that one device trains in minutes, where it is a card; two cores take an hour.
_ONE_DEVICE, _MANY = 10**14, 8

# What replicas need to end as well as one does, see docs/training.md: meetings, and steps of each between them in all.
_LEAST_ROUNDS, _LEAST_STEPS = 70, 2000
_LEAST_BATCH = 16

# Steps between two meetings, at most: a task of a second or less, so that little is lost with a worker.
_MOST_STEPS = 256


def usual_replicas(n_weights: int, n_rows: int, epochs: int) -> int:
    """How many there are, where none are asked for."""
    return 1 if n_weights * n_rows * epochs <= _ONE_DEVICE else _MANY


def shared_out(asked: int, n_rows: int, epochs: int, batch_size: int, may_shrink: bool) -> tuple[int, int]:
    """As many of the replicas that were asked for as all have steps enough, and the rows of their minibatches.

    Parameters
    ----------
    n_rows : int
        That an epoch trains on.
    may_shrink : bool
        Whether minibatches may become smaller, so that there are more of them.
    """
    while asked > 1:
        size = batch_size
        while may_shrink and size > _LEAST_BATCH and _steps(asked, n_rows, epochs, size) < _LEAST_STEPS:
            size = max(_LEAST_BATCH, size // 2)
        if _steps(asked, n_rows, epochs, size) >= _LEAST_STEPS:
            return asked, size
        asked //= 2
    return 1, batch_size


def rounds_in_epoch(replicas: int, n_rows: int, epochs: int, batch_size: int, window_rows: int) -> int:
    """How often they meet in each epoch behind the first.

    Parameters
    ----------
    window_rows : int
        That one of them may hold at a time.
    """
    steps = min(_MOST_STEPS, max(1, _steps(replicas, n_rows, epochs, batch_size) // _LEAST_ROUNDS))
    return -(-n_rows // (replicas * min(steps * batch_size, window_rows)))


def _steps(replicas: int, n_rows: int, epochs: int, batch_size: int) -> int:
    """Of each of them, over all epochs but the first, which one trains alone."""
    return (epochs - 1) * n_rows // (replicas * batch_size)
