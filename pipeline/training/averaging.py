"""What becomes of a model when its replicas meet: pure arithmetic, in float64 and in the replicas' order.

Replicas that train apart and are averaged now and then: Stich, "Local SGD converges fast and communicates little", 2019
(arXiv:1805.09767). The mean move as a gradient of an outer Nesterov step: Douillard et al., "DiLoCo: distributed
low-communication training of language models", 2023 (arXiv:2311.08105), algorithm 1. Adam's moments are averaged too:
Iacob et al., "DES-LOC", 2025 (arXiv:2505.22549), where those that stay with their replicas oscillate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["Average", "State", "outer_step"]

Arrays = Mapping[str, np.ndarray]

# DiLoCo's, which had 8: together they make of a steady move 0.7 / (1 - 0.9) = 7 times as much. Fewer replicas see fewer
# rows in the same steps: two have diverged by that.
_RATE = 0.7
_MOMENTUM = 0.9


@dataclass(frozen=True)
class State:
    """Where a training stands: float32 arrays by name.

    Attributes
    ----------
    parameters : mapping
        Of the network.
    rule : mapping
        The update rule's own. One without axes counts steps.
    """

    parameters: Arrays
    rule: Arrays


class Average:
    """The mean of states, each of which counts by the rows that it was trained on.

    They are added one after the other: in any other order it is another sum, and of large ones few should be in memory.

    Attributes
    ----------
    n_rows : int
        Of all that were added.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._sums: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})

    def add(self, state: State, n_rows: int) -> None:
        """Count one in."""
        self.n_rows += n_rows
        for sums, arrays in zip(self._sums, (state.parameters, state.rule), strict=True):
            for name, array in arrays.items():
                if array.ndim:
                    sums[name] = sums.get(name, 0.0) + float(n_rows) * array.astype(np.float64)
                else:  # a mean count of steps would be none: bias corrections are those of the longest
                    sums[name] = np.maximum(sums.get(name, array), array)

    def mean(self) -> State:
        """Of those that were added, in float32; of one row at least."""
        parameters, rule = ({name: self._divided(each) for name, each in sums.items()} for sums in self._sums)
        return State(parameters, rule)

    def _divided(self, total: np.ndarray) -> np.ndarray:
        return np.asarray(total / self.n_rows if total.ndim else total).astype(np.float32)


def _momentum_of(n_replicas: int) -> float:
    """By which a steady move counts as often as there are replicas, or 7 times where they are more."""
    return min(_MOMENTUM, 1 - _RATE / n_replicas)


def outer_step(start: State, mean: State, velocity: Arrays, n_replicas: int) -> tuple[State, dict[str, np.ndarray]]:
    """Take the mean move of parameters as a step: ``v <- m v + d ;  p <- p + 0.7 (d + m v)``, with m of 0.9 at most.

    Parameters
    ----------
    start, mean : State
        Before a round, and of all replicas behind it.
    velocity : mapping
        `v` by the parameters' names, float32; 0 at first.
    n_replicas : int
        Two or more.

    Returns
    -------
    State
        What the next round begins with: the rule's own arrays are the mean ones.
    dict
        The next velocity, rounded to float32, as a checkpoint keeps it.
    """
    parameters = dict[str, np.ndarray]()
    following = dict[str, np.ndarray]()
    momentum = _momentum_of(n_replicas)
    for name, before in start.parameters.items():
        move = mean.parameters[name].astype(np.float64) - before
        v = momentum * velocity[name].astype(np.float64) + move
        parameters[name] = (before + _RATE * (move + momentum * v)).astype(np.float32)
        following[name] = v.astype(np.float32)
    return replace(mean, parameters=parameters), following
