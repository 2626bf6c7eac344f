"""Averages of replicas, and the outer step: pure arithmetic, in float64 and in the order of the replicas.

The method is local SGD: replicas train independently and are averaged at intervals (Stich, "Local SGD converges fast
and communicates little", 2019, arXiv:1805.09767). The mean move is the gradient of an outer Nesterov step (Douillard et
al., "DiLoCo: distributed low-communication training of language models", 2023, arXiv:2311.08105, algorithm 1). Adam's
moments are averaged as well, since they oscillate if each replica keeps its own (Iacob et al., "DES-LOC", 2025,
arXiv:2505.22549).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

_Arrays = Mapping[str, np.ndarray]

# The values of DiLoCo, for 8 replicas. Together they amplify a steady move by 0.7 / (1 - 0.9) = 7. Fewer replicas see
# fewer rows in the same number of steps, and with two replicas these values diverged.
_RATE = 0.7
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Weights:
    """Arrays of a training run between two steps, float32, by name."""

    parameters: _Arrays
    rule: _Arrays  # arrays of the update rule; one without axes counts steps


class Average:
    """Mean of the weights of replicas, each weighted by the number of rows that it was trained on.

    Weights are added one after the other: another order would round differently, and only a few large models fit into
    memory at once.
    """

    def __init__(self) -> None:
        self.n_rows = 0
        self._parameters: dict[str, np.ndarray] = {}
        self._rule: dict[str, np.ndarray] = {}

    def add(self, weights: Weights, n_rows: int) -> None:
        self.n_rows += n_rows
        _add(self._parameters, weights.parameters, n_rows)
        _add(self._rule, weights.rule, n_rows)

    def mean(self) -> Weights:
        """Return the mean in float32; at least one row must have been added."""
        return Weights(self._divide(self._parameters), self._divide(self._rule))

    def _divide(self, sums: _Arrays) -> dict[str, np.ndarray]:
        means: dict[str, np.ndarray] = {}
        for name, total in sums.items():
            mean = total
            if total.ndim:
                mean = total / self.n_rows
            means[name] = np.asarray(mean).astype(np.float32)
        return means


def _add(sums: dict[str, np.ndarray], arrays: _Arrays, n_rows: int) -> None:
    """Add arrays to sums. Step counts are not averaged; their maximum is used for bias corrections."""
    for name, array in arrays.items():
        if array.ndim:
            sums[name] = sums.get(name, 0.0) + float(n_rows) * array.astype(np.float64)
        else:
            sums[name] = np.maximum(sums.get(name, array), array)


def outer_step(
    start: Weights, mean: Weights, velocity: _Arrays, n_replicas: int
) -> tuple[Weights, dict[str, np.ndarray]]:
    """Take a step along the mean move: ``v <- m v + d ;  p <- p + 0.7 (d + m v)``, where m is at most 0.9.

    Return the weights at the start of the next round, with the mean arrays of the update rule, and the next `velocity`
    ``v``: float32 as in a checkpoint, by the names of parameters, 0 in the first round.
    """
    momentum = min(_MOMENTUM, 1 - _RATE / n_replicas)  # amplifies a steady move by the number of replicas, at most 7
    parameters: dict[str, np.ndarray] = {}
    next_velocity: dict[str, np.ndarray] = {}
    for name, before in start.parameters.items():
        move = mean.parameters[name].astype(np.float64) - before
        v = momentum * velocity[name].astype(np.float64) + move
        parameters[name] = (before + _RATE * (move + momentum * v)).astype(np.float32)
        next_velocity[name] = v.astype(np.float32)
    return replace(mean, parameters=parameters), next_velocity
