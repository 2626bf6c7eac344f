"""What becomes of a model when its replicas meet: pure arithmetic, in float64 and in the replicas' order.

Replicas that train apart and are averaged now and then: Stich, "Local SGD converges fast and communicates little", 2019
(arXiv:1805.09767). The mean move as a gradient of an outer Nesterov step: Douillard et al., "DiLoCo: distributed
low-communication training of language models", 2023 (arXiv:2311.08105), algorithm 1. Adam's moments are averaged too:
Iacob et al., "DES-LOC", 2025 (arXiv:2505.22549), where those that stay with their replicas oscillate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

__all__ = ["State", "averaged", "outer_step"]

Arrays = Mapping[str, np.ndarray]

# DiLoCo's: together they make of a steady move 0.7 / (1 - 0.9) = 7 times as much.
_RATE, _MOMENTUM = 0.7, 0.9


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


def averaged(states: Sequence[State], n_rows: Sequence[int]) -> State:
    """The mean of states, each of which counts by the rows that it was trained on.

    Parameters
    ----------
    n_rows : sequence of int
        As many as states, one of them at least above 0.
    """
    parameters, rules = [state.parameters for state in states], [state.rule for state in states]
    return State(_averaged(parameters, n_rows), _averaged(rules, n_rows))


def outer_step(start: State, mean: State, velocity: Arrays) -> tuple[State, dict[str, np.ndarray]]:
    """Take the mean move of the parameters as a step: ``v <- 0.9 v + d ;  p <- p + 0.7 (d + 0.9 v)``.

    Parameters
    ----------
    start, mean : State
        Before a round, and of all replicas behind it.
    velocity : mapping
        `v` by the parameters' names, float32; 0 at first.

    Returns
    -------
    State
        What the next round begins with: the rule's own arrays are the mean ones.
    dict
        The next velocity, rounded to float32, as a checkpoint keeps it.
    """
    parameters, following = dict[str, np.ndarray](), dict[str, np.ndarray]()
    for name, before in start.parameters.items():
        move = mean.parameters[name].astype(np.float64) - before
        v = _MOMENTUM * velocity[name].astype(np.float64) + move
        parameters[name] = (before + _RATE * (move + _MOMENTUM * v)).astype(np.float32)
        following[name] = v.astype(np.float32)
    return replace(mean, parameters=parameters), following


def _averaged(arrays: Sequence[Arrays], n_rows: Sequence[int]) -> dict[str, np.ndarray]:
    return {name: _mean([each[name] for each in arrays], n_rows) for name in arrays[0]}


def _mean(arrays: Sequence[np.ndarray], n_rows: Sequence[int]) -> np.ndarray:
    if not arrays[0].ndim:  # a mean count of steps would be none: bias corrections are those of the longest
        return np.asarray(np.maximum.reduce(arrays))
    total = np.zeros(arrays[0].shape)
    for array, n in zip(arrays, n_rows, strict=True):  # one after the other: in any other order it is another sum
        total += float(n) * array.astype(np.float64)
    return (total / sum(n_rows)).astype(np.float32)
